"""Chapter 07: fusion and graph compilation.

Complete the functions below, then run `python3 tasks.py grade ch07`. The chapter is `chapters/07_fusion.ipynb`; each
task names the section that prepares it. Everything runs on a CPU, and nothing is timed: bytes, launches and calls are
counted.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from minillm.generation.graph_capture import Graph
from minillm.perf.meter import Counts, HbmTensor, Meter

# ---- Task 1 (prediction): what fusing a chain saves. Prepared by "Napkin" and "Keep the tile".


def fusion_bytes(
    calls: Sequence[tuple[str, tuple[str, ...]]],
    shapes: Mapping[str, tuple[int, int]],
    kept: Collection[str],
    *,
    num_programs: int,
    bytes_per_number: int,
) -> tuple[tuple[int, int], tuple[int, int]]:
    """((launches, bytes), (launches, bytes)) of a chain of operations: a kernel for each call, and one for all.

    calls   in order: the name of the result and the names of the operands, tensors all of them. (Numbers like eps
            travel with the launch and cost nothing.) Each name is the result of one call at most
    shapes  (rows, columns) of every name
    kept    the results that somebody reads after the chain

    Bytes are those read from HBM and those written to it. Each launch has `num_programs` programs that share the rows
    among them. So a tensor that a kernel reads costs its size once, however often the kernel uses it; but one of a
    single row (a weight) is needed by each program, and costs its size `num_programs` times. Each result has all the
    rows. A call of its own writes its result, kept or not. The fused kernel reads what the chain doesn't make itself,
    and writes what is kept.

    Example: calls [("a", ("x", "x")), ("y", ("a", "w"))] with x, a and y of 4 × 8, w of 1 × 8, kept {"y"}, 2 programs,
    2 bytes a number. On their own: 2 launches, (32 + 32) + (32 + 2·8 + 32) = 144 numbers. Fused: 1 launch,
    32 + 2·8 + 32 = 80 numbers. Together ((2, 288), (1, 160)).
    """

    # BEGIN SOLUTION
    def read(names: Collection[str]) -> int:
        return sum(math.prod(shapes[name]) * (num_programs if shapes[name][0] == 1 else 1) for name in set(names))

    made = [result for result, _ in calls]
    eager = sum(read(operands) + math.prod(shapes[result]) for result, operands in calls)
    outside = {name for _, operands in calls for name in operands} - set(made)
    fused = read(outside) + sum(math.prod(shapes[name]) for name in set(kept) & set(made))
    return (len(calls), bytes_per_number * eager), (1, bytes_per_number * fused)
    # END SOLUTION


# ---- Task 2: residual and norm in one launch. Prepared by "Keep the tile"; the meter by chapter 06.


def add_rms_norm_on_meter(
    meter: Meter,
    x: HbmTensor,
    residual: HbmTensor,
    weight: HbmTensor,
    total: HbmTensor,
    out: HbmTensor,
    *,
    block_rows: int,
    eps: float,
) -> tuple[Counts, Tensor, Tensor]:
    """total = x + residual and out = total / sqrt(mean(total²) + eps) · weight, in one launch.

    Returns (meter.total, total.result(), out.result()): what was counted, and what lies in HBM in the end.

    x, residual, total, out (rows, size) and weight (1, size) lie in the meter's HBM; total and out are empty. A program
    for each `block_rows` rows, the last may have fewer. It reads its rows of x and residual and the weight once, and
    writes its rows of total and out once. Nothing else crosses the border.

    As in chapter 06: `with meter.kernel("add_rms_norm") as kernel:`, in it for each program `with kernel.program(i) as
    sram:`, and there `tile = sram.load(x[rows])` and `sram.store(tile, out[rows])` with `rows` a slice.

    The tests' meters have room for 2 · block_rows · size + 2 · block_rows numbers: two tiles of rows and two columns.
    `with sram.scope():` frees at its end what was made inside. Operators and methods make new tiles, so work in place
    where you can: `+=`, `*=`. A tile's `row_sum()` is a column (rows, 1); `column.rsqrt()` is a new one. Columns and
    rows broadcast over a tile.

    Example: x = [[1, 2]], residual = [[2, 2]], weight = [[1, 10]], eps = 0: total = [[3, 4]], whose mean square is
    12.5, so out = [[3, 40]] / 3.5355 = [[0.8485, 11.314]]. 4 + 2 numbers read, 4 written.
    """
    # BEGIN SOLUTION
    num_rows, size = x.shape
    with meter.kernel("add_rms_norm") as kernel:
        for start in range(0, num_rows, block_rows):
            rows = slice(start, min(start + block_rows, num_rows))
            with kernel.program(start) as sram:
                tile = sram.load(x[rows])
                with sram.scope():
                    tile += sram.load(residual[rows])
                sram.store(tile, total[rows])
                with sram.scope():
                    mean = (tile * tile).row_sum()
                    mean *= 1 / size
                    mean += eps
                    tile *= mean.rsqrt()
                with sram.scope():
                    tile *= sram.load(weight)
                sram.store(tile, out[rows])
    return meter.total, total.result(), out.result()
    # END SOLUTION


# ---- Task 3: a loss whose logits never exist. Prepared by "The largest tensor of training".


def loss_by_blocks(hidden: Tensor, lm_head: Tensor, targets: Tensor, *, block: int) -> tuple[Tensor, Tensor]:
    """(losses, d_hidden) of a language model's last step, `block` rows of the vocabulary at a time.

    hidden   (tokens, size), the last hidden states
    lm_head  (vocab_size, size): the logits would be hidden @ lm_head.T
    targets  (tokens,) int64; −100 marks a token that doesn't count
    losses   (tokens,) −log softmax(logits)[target], and 0 where the target is −100
    d_hidden (tokens, size) the gradient of losses.sum() with respect to hidden; 0 where the target is −100

    One pass over lm_head, each of its blocks multiplied with hidden once. No tensor of tokens × vocab_size numbers is
    made, and the tests reject larger ones than hidden, lm_head or a block of logits. Logits may be as large as 10,000:
    keep the largest so far. The vocabulary need not be a multiple of the block, and a gradient is wanted without
    autograd: d_hidden of a row is (the mean of lm_head's rows, weighted by the probabilities) − (lm_head's row of the
    target). The weighted sum can grow in the same pass, and be repaired by the same factor.

    Example: hidden = [[1]], lm_head = [[0], [ln 3]], targets = [1]. Probabilities 1/4 and 3/4: the loss is ln 4 − ln 3,
    d_hidden = [[(0 + 3 · ln 3) / 4 − ln 3]] = [[−ln 3 / 4]].
    """
    # BEGIN SOLUTION
    largest = torch.full((len(hidden), 1), -math.inf, dtype=hidden.dtype)
    total, weighted = torch.zeros_like(largest), torch.zeros_like(hidden)
    counts = targets != -100
    target_rows = lm_head[targets.masked_fill(~counts, 0)]
    for rows in lm_head.split(block):
        logits = hidden @ rows.T
        new = torch.maximum(largest, logits.amax(dim=1, keepdim=True))
        repair = torch.exp(largest - new)
        weights = torch.exp(logits - new)
        total = total * repair + weights.sum(dim=1, keepdim=True)
        weighted = weighted * repair + weights @ rows
        largest = new
    lse = (largest + total.log()).squeeze(1)
    losses = lse - (hidden * target_rows).sum(dim=1)
    d_hidden = weighted / total - target_rows
    return losses.masked_fill(~counts, 0.0), d_hidden.masked_fill(~counts[:, None], 0.0)
    # END SOLUTION


# ---- Task 4: find a pattern in a graph. Prepared by "A pattern and its traps".

Pattern = Any  # ("mul", ("silu", "?gate"), "?up"): an operation and its operands, wildcards "?name", or numbers
COMMUTATIVE = ("add", "mul")  # of two operands, in any order


def match_chain(
    graph: Mapping[str, tuple[Any, ...]], outputs: Collection[str], root: str, pattern: Pattern
) -> dict[str, str] | None:
    """What the pattern's wildcards stand for, if the pattern fits with its result at `root` and may be replaced.

    graph    name -> (operation, operand, …) of every node; operands are names or numbers. A name without a node is an
             input of the graph
    outputs  the names that the graph returns
    pattern  nested in the same way, with patterns as operands. A string "?name" is a wildcard for any one name, a node
             or an input, but not for a number; used twice it stands for the same name twice, while two wildcards may
             stand for one name. A number stands for itself

    `add` and `mul` have two operands that may come in either order, in the graph as in the pattern: try both, at every
    level, and together with what else is to be matched.

    Nodes that match an operation of the pattern are inside the match, and will be gone. So the match is forbidden if
    one of them, other than the root, is needed still: if a node outside the match uses it, if it is one of `outputs`,
    or if a wildcard stands for it. Another way to fit the same pattern may be allowed. Returns None if no way is.

    Example: graph {"s": ("silu", "g"), "y": ("mul", "u", "s")}, outputs ["y"], root "y", pattern
    ("mul", ("silu", "?gate"), "?up") gives {"?gate": "g", "?up": "u"}. With outputs ["y", "s"] it gives None.
    """

    # BEGIN SOLUTION
    def fits(
        wanted: Pattern, value: Any, binding: dict[str, str], inside: frozenset[str]
    ) -> Iterator[tuple[dict[str, str], frozenset[str]]]:
        if isinstance(wanted, str):
            if isinstance(value, str) and binding.get(wanted, value) == value:
                yield {**binding, wanted: value}, inside
        elif not isinstance(wanted, tuple):
            if not isinstance(value, str) and wanted == value:
                yield binding, inside
        elif isinstance(value, str) and value in graph:
            name, *operands = graph[value]
            if name == wanted[0] and len(operands) == len(wanted) - 1:
                orders = [operands, operands[::-1]] if name in COMMUTATIVE else [operands]
                for order in orders:
                    yield from fit_all(list(zip(wanted[1:], order, strict=True)), binding, inside | {value})

    def fit_all(
        pairs: list[tuple[Pattern, Any]], binding: dict[str, str], inside: frozenset[str]
    ) -> Iterator[tuple[dict[str, str], frozenset[str]]]:
        if not pairs:
            yield binding, inside
            return
        for extended, members in fits(*pairs[0], binding, inside):
            yield from fit_all(pairs[1:], extended, members)

    for binding, inside in fits(pattern, root, {}, frozenset()):
        inner = inside - {root}
        users = {operand for name, (_, *operands) in graph.items() if name not in inside for operand in operands}
        if not inner & (users | set(outputs) | set(binding.values())):
            return binding
    return None
    # END SOLUTION


# ---- Task 5: rewrite a graph of torch's. Prepared by "Who finds what to fuse?".


def swap_swiglu(module: fx.GraphModule, fused: Callable[[Tensor, Tensor], Tensor]) -> tuple[int, str]:
    """Put `fused(gate, up)` where F.silu(gate) * up was, in place: (how many were swapped, `module.code`).

    Nodes have `op`, `target`, `args`, `users` (a dict whose keys are nodes), and `next`. Silus and products are of the
    op "call_function": the target of a silu is `F.silu`, its argument `node.args[0]`; the target of a product is
    `operator.mul` or `torch.mul`, its operands are `node.args`, the silu on either side. Other nodes are left alone.

    A silu is swapped if this product is its only use; one that is used elsewhere, too, or on both sides of the product,
    or returned, stays as it is, and so does its product. So does a product with a Python number: `up` has to be a node.
    If both sides are silus that could go, the left one does.

    `module.graph.inserting_before(node)` is a context manager in which `module.graph.call_function(fused, (a, b))`
    makes a node in front of `node`. `old.replace_all_uses_with(new)` and `module.graph.erase_node(old)`, of a node
    without users, do the rest. Mind that nodes stand in the order in which they run: the new one has to find `up`.
    At the end `module.graph.lint()` must pass, no silu that was swapped is left, and `module.recompile()` makes the
    module run the new graph, whose Python `module.code` is.

    Example: for lambda g, u: F.silu(g) * u, traced, the count is 1, and the code has one call, of `fused`.
    """
    # BEGIN SOLUTION
    count = 0
    for product in list(module.graph.nodes):
        if product.target not in (operator.mul, torch.mul):
            continue
        for silu, up in (product.args, product.args[::-1]):
            both_are_nodes = isinstance(silu, fx.Node) and isinstance(up, fx.Node)
            if both_are_nodes and silu is not up and silu.target is F.silu and list(silu.users) == [product]:
                with module.graph.inserting_before(product):
                    new = module.graph.call_function(fused, (silu.args[0], up))
                product.replace_all_uses_with(new)
                module.graph.erase_node(product)
                module.graph.erase_node(silu)
                count += 1
                break
    module.graph.lint()
    module.recompile()
    return count, module.code
    # END SOLUTION


# ---- Task 6 (bug hunt): a decode loop by replays. Prepared by "Launches without Python".


class Memory:
    """What the draft's step keeps. `rows` is made at the first step, as lazy code does."""

    rows: Tensor | None = None


def hasty_replayed(
    embed: Tensor, unembed: Tensor, tokens: Sequence[int], *, capacity: int, record: Callable[..., Graph]
) -> Tensor:
    """A draft of `replayed`: five mistakes against four of the chapter's rules. Its first result is right."""
    memory, length = Memory(), 0
    token = torch.tensor(tokens[:1])

    def step() -> Tensor:
        if memory.rows is None:
            memory.rows = torch.zeros(capacity, embed.shape[1], dtype=embed.dtype)
        memory.rows[length] = embed.index_select(0, token)[0]
        mean = memory.rows[: length + 1].mean(dim=0, keepdim=True)
        return mean @ unembed

    graph = record(step, num_warmups=0)
    results = []
    for token_id in tokens:
        token = torch.tensor([token_id])
        results.append(graph.replay())
        length += 1
    return torch.cat(results)


def replayed(
    embed: Tensor, unembed: Tensor, tokens: Sequence[int], *, capacity: int, record: Callable[..., Graph]
) -> Tensor:
    """Repair `hasty_replayed`: logits (len(tokens), vocab_size) after each token, by one replay for each.

    A model that is nothing but memory: the state after some tokens is the mean of their rows of embed (vocab_size,
    size), the logits are the state times unembed (size, vocab_size). A memory of `capacity` rows keeps the embeddings
    seen so far, a row each. 1 ≤ len(tokens) ≤ capacity.

    record(step, num_warmups=n) calls `step()`, which takes no arguments, n times to warm up and once more to record its
    operations, with the tensors that they read and write. It returns a graph: `replay()` repeats these operations on
    the same memory, without calling `step`, and returns the same output tensor each time. Tests watch: record once,
    after at least one warm-up; then a replay for each token, in order, and no more. The rules of recording are in the
    chapter: `.item()`, boolean indices and torch.tensor(…) inside a step are refused.

    Tokens and lengths may change between replays only by writing into tensors that were recorded, as in
    `token.fill_(token_id)`. `rows.index_copy_(0, index, new)` writes rows where a tensor `index` says, and a mask made
    from that tensor does for a slice. Warm-up and recording are steps, too: what they leave behind must not count. The
    arguments are not changed.

    Example: embed = [[1], [3]], unembed = [[1, 10]], tokens = [0, 1, 1]: states 1, 2 and 7/3, so the logits are
    [[1, 10], [2, 20], [2.333, 23.33]].
    """
    # BEGIN SOLUTION
    rows = torch.zeros(capacity, embed.shape[1], dtype=embed.dtype)
    token, length = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    places = torch.arange(capacity)

    def step() -> Tensor:
        rows.index_copy_(0, length, embed.index_select(0, token))
        seen = rows.masked_fill((places > length)[:, None], 0.0)
        return seen.sum(dim=0, keepdim=True) / (length + 1) @ unembed

    graph = record(step, num_warmups=1)
    results = []
    for count, token_id in enumerate(tokens):
        token.fill_(token_id)
        length.fill_(count)
        results.append(graph.replay().clone())
    return torch.cat(results)
    # END SOLUTION
