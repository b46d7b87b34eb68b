"""How many parts the keys of a decode step are split into, and which processor works on which part.

One query a sequence leaves batch · num_kv_heads units of work. A GPU has a hundred processors (SMs) and more: with
few sequences most of them idle while a few read the whole cache. Splitting the keys makes more units.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

FILLED = 0.8  # of the processors: then splitting no longer pays for its merge
NEARLY_BEST = 0.85  # of the best efficiency: fewer splits mean less to merge
MIN_KEYS = 128  # of a split: less isn't worth a launch


def choose_num_splits(
    batch: int, num_kv_heads: int, seq_len: int, num_sms: int, *, min_keys: int = MIN_KEYS, max_splits: int = 128
) -> int:
    """Parts to split the keys into, from 1 to `max_splits`.

    seq_len   keys of the longest sequence
    num_sms   processors that work side by side: SMs of a GPU, cores of a CPU
    min_keys  the least number of keys in a split

    The units, batch · num_kv_heads · splits of them, run in waves of num_sms, and the last wave is rarely full: the
    efficiency is waves / ceil(waves). Unless the units already fill FILLED of the processors, the answer is the
    smallest number of splits whose efficiency is NEARLY_BEST of the best one, as in the flash-attention library's
    heuristic. Raises ValueError for numbers below 1 (seq_len below 0).
    """
    numbers = {"batch": batch, "num_kv_heads": num_kv_heads, "num_sms": num_sms, "min_keys": min_keys}
    if min(*numbers.values(), max_splits) < 1 or seq_len < 0:
        raise ValueError(f"expected {', '.join(numbers)} and max_splits of at least 1, got {numbers}, {max_splits}")
    units = batch * num_kv_heads
    if units >= FILLED * num_sms:
        return 1
    most = max(1, min(max_splits, num_sms, seq_len // min_keys))
    efficiency = [_efficiency(units * splits, num_sms) for splits in range(1, most + 1)]
    return 1 + next(i for i, share in enumerate(efficiency) if share >= NEARLY_BEST * max(efficiency))


def split_keys(seq_len: int, num_splits: int) -> list[slice]:
    """`seq_len` keys in at most `num_splits` slices whose lengths differ by one at most; none is empty."""
    num_splits = min(num_splits, seq_len)
    edges = [seq_len * i // num_splits for i in range(num_splits + 1)] if num_splits else [0]
    return [slice(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]


class Span(NamedTuple):
    """One unit of work on one processor; times in the unit of the costs."""

    sm: int
    start: float
    stop: float
    unit: int


def assign_units(costs: Sequence[float], num_sms: int) -> list[Span]:
    """Units in their order, each to the processor that is free first, as a GPU hands out the programs of a launch.

    costs  of each unit, keys to read, say. The last `stop` is the time of the launch; for pictures of idle processors.
    """
    free = [(0.0, sm) for sm in range(num_sms)]
    spans = []
    for unit, cost in enumerate(costs):
        start, sm = heapq.heappop(free)
        spans.append(Span(sm, start, start + cost, unit))
        heapq.heappush(free, (start + cost, sm))
    return spans


def _efficiency(units: int, num_sms: int) -> float:
    waves = units / num_sms
    return waves / math.ceil(waves)
