"""What FlashAttention's inner loop holds on the chip, step by step: where Bc = M / 4d comes from.

A tile has Br rows (blocks of Q and O are Br × d) and Bc keys (blocks of K and V are Bc × d). One pass of the inner
loop:

    step                                        change             held after it, for Br = d
     1  load K, V                               + 2·Bc·d           2·Bc·d
     2  load Q, O, l, m                         + 2·Br·d + 2·Br    2·Bc·d + 2·d·(d + 1)
     3  S = Q Kᵀ                                + Br·Bc            3·Bc·d + 2·d·(d + 1)         the peak
     4  free Q                                  − Br·d
     5  row maxima; P in the place of S         + Br
     6  free S                                  0: P has its place
     7  row sums                                + Br
     8  new l and m                             + 2·Br
     9  repair and extend O in place, store it  − Br·d
    10  store the new l and m                   − 2·Br
    11  free P, the old l and m, maxima, sums   − Br·Bc − 4·Br

With Bc = M / 4d the peak is 3/4 M and 2·d·(d + 1) more, which fits if M ≥ 8·d·(d + 1).

Freeing K as well in step 4 makes room for P beside S (keep_k=False). That is how the budget is often told. But the
inner loop needs K for the next block of Q: it has to be loaded again each time.
"""

from __future__ import annotations

from typing import NamedTuple

from minillm.attention.metered_flash import Blocks


class Step(NamedTuple):
    """One line of the budget, in numbers."""

    number: int
    what: str
    change: int
    held: int  # after the step


def sram_budget(blocks: Blocks, head_dim: int, *, keep_k: bool = True) -> list[Step]:
    """The steps of one pass of v1's inner loop. The largest `held` is the peak that the meter counts for full tiles."""
    (rows, keys), d = blocks, head_dim
    scores = rows * keys
    changes = [
        ("load K, V", 2 * keys * d),
        ("load Q, O, l, m", 2 * rows * d + 2 * rows),
        ("S = Q Kᵀ", scores),
        ("free Q", -rows * d) if keep_k else ("free Q, K", -(rows + keys) * d),
        ("row maxima, P in place of S", rows) if keep_k else ("row maxima, P", rows + scores),
        ("free S", 0 if keep_k else -scores),
        ("row sums", rows),
        ("new l, m", 2 * rows),
        ("extend O, store it", -rows * d),
        ("store l, m", -2 * rows),
        ("free the rest but K, V" if keep_k else "free the rest but V", -scores - 4 * rows),
    ]
    held, steps = 0, []
    for number, (what, change) in enumerate(changes, start=1):
        held += change
        steps.append(Step(number, what, change, held))
    return steps


def peak_numbers(blocks: Blocks, head_dim: int, *, keep_k: bool = True) -> int:
    """The most numbers that v1 holds at a time."""
    return max(step.held for step in sram_budget(blocks, head_dim, keep_k=keep_k))
