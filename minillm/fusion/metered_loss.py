"""Cross-entropy on the meter: seven launches over the logits, or one pass that stores no probabilities.

N = rows · vocab_size numbers of b bytes; a target is an int64, 8 bytes. T = ceil(vocab_size / block_columns).

               launches   reads                             writes             FLOPs                    special
    eager      7          b·(4N + 5·rows) + 8·rows          b·(2N + 5·rows)    3N − rows                N + rows
    fused      1          b·(N + rows) + 8·rows             b·2·rows           3N + 2·(T + 1)·rows      N + (T + 1)·rows

The loss of a row is lse − logit of its target. The fused kernel writes both lse and loss, two numbers a row, and loads
the target's logit by its address. A vocabulary of 100,000 makes N the largest tensor of a training step.
"""

from __future__ import annotations

from minillm.fusion.costs import Blocks, Cost, Widths, launch, row_blocks
from minillm.fusion.metered_softmax import maximum_and_sum, one_pass_cost
from minillm.perf.meter import HbmTensor, Meter


def eager_cross_entropy(
    meter: Meter, logits: HbmTensor, targets: HbmTensor, blocks: Blocks, *, name: str = ""
) -> list[HbmTensor]:
    """logits (rows, vocab_size), targets (rows, 1) int64 -> [loss (rows, 1)]: max, sub, exp, sum, log, gather, sub."""
    rows, column = blocks.rows, (logits.shape[0], 1)

    def empty(what: str, shape: tuple[int, ...] = column) -> HbmTensor:
        return meter.empty(name + what, shape)

    largest = launch(meter, name + "max", lambda t: t.row_max(), [logits], empty("m"), rows)
    shifted = empty("x − m", logits.shape)
    launch(meter, name + "sub", lambda a, b: a - b, [logits, largest], shifted, rows)
    weights = launch(meter, name + "exp", lambda t: t.exp(), [shifted], empty("exp", logits.shape), rows)
    total = launch(meter, name + "sum", lambda t: t.row_sum(), [weights], empty("l"), rows)
    log = launch(meter, name + "log", lambda t: t.log(), [total], empty("log l"), rows)
    picked = empty("picked")
    with meter.kernel(name + "gather") as kernel:
        for row in range(logits.shape[0]):
            with kernel.program(row) as sram:
                target = sram.load(targets[row]).item()
                sram.store(sram.load(shifted[row, target : target + 1]), picked[row])
    return [launch(meter, name + "loss", lambda a, b: a - b, [log, picked], empty("loss"), rows)]


def fused_cross_entropy(
    meter: Meter, logits: HbmTensor, targets: HbmTensor, blocks: Blocks, *, name: str = ""
) -> list[HbmTensor]:
    """[loss (rows, 1), lse (rows, 1)] in one launch and one pass, `blocks.columns` of the vocabulary at a time."""
    loss, lse = (meter.empty(name + what, (logits.shape[0], 1)) for what in ("loss", "lse"))
    with meter.kernel(name + "cross_entropy") as kernel:
        for number, rows in enumerate(row_blocks(logits.shape[0], blocks.rows)):
            with kernel.program(number) as sram:
                largest, total = maximum_and_sum(sram, logits, rows, blocks.columns)
                total.log_()
                total += largest
                sram.store(total, lse[rows])
                for i, row in enumerate(range(rows.start, rows.stop)):
                    target = sram.load(targets[row]).item()
                    sram.store(total[i] - sram.load(logits[row, target : target + 1]), loss[row])
    return [loss, lse]


def cross_entropy_cost(version: str, rows: int, size: int, blocks: Blocks, widths: Widths) -> Cost:
    """The closed form above; `size` is the vocabulary's."""
    n, own = rows * size, widths.own
    if version == "fused":
        ending = Cost(1, own * rows + 8 * rows, 2 * own * rows, 2 * rows, rows)
        return one_pass_cost(rows, size, blocks, widths) + ending
    return Cost(7, own * (4 * n + 5 * rows) + 8 * rows, own * (2 * n + 5 * rows), 3 * n - rows, n + rows)
