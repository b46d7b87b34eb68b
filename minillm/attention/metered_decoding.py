"""Decode attention of one KV head on the memory-hierarchy meter, with and without splits of the keys.

The keys are read once either way. Splits make more programs, which is what fills a GPU, and cost a second, small
kernel: partial results written and read back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minillm.attention.metered import Metered
from minillm.attention.splits import split_keys
from minillm.gemm.metered_tile import Moved
from minillm.perf.meter import HbmTensor, Meter, Program, Region, Tile


def run_decoding(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_splits: int = 1,
    phi: float | None = None,
    sram_bytes: int = 48 * 1024,
    block_k: int = 64,
    softmax_scale: float | None = None,
    stored_as: torch.dtype | None = None,
    trace: bool = False,
) -> Metered:
    """FlashDecoding of one KV head: q (rows, d), the query heads of its group at one token; k, v (k_len, d).

    num_splits   1 = a single program walks over all keys; more = a program for each split, then one that merges
    phi          FlashDecoding++: this number in place of every maximum, so that nothing is repaired; None = maxima.
                 Without the fallback: the scores have to be near enough

    Every row sees every key. Raises ValueError for shapes that don't fit, no keys, or tiles larger than the SRAM.
    """
    if q.dim() != 2 or k.shape != v.shape or q.shape[1:] != k.shape[1:] or k.shape[0] == 0 or num_splits < 1:
        raise ValueError(
            "expected q (rows, d), k and v (k_len, d) with keys, and at least one split, got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)} and {num_splits}"
        )
    rows, head_dim = q.shape
    meter = Meter(sram_bytes, dtype=q.dtype, stored_as=stored_as, trace=trace)
    queries, keys, values = meter.hbm("q", q), meter.hbm("K", k), meter.hbm("V", v)
    out, lse = meter.empty("o", (rows, head_dim)), meter.empty("lse", (rows, 1))
    scale = head_dim**-0.5 if softmax_scale is None else softmax_scale
    splits = split_keys(k.shape[0], num_splits)
    if len(splits) == 1:
        with meter.kernel("decode") as kernel, kernel.program(0) as sram:
            _walk(sram, queries, keys, values, splits[0], block_k, scale, phi, out[:], lse[:])
        return Metered(meter, out.result(), lse.result().squeeze(-1))

    outs, lses = meter.empty("o_s", (len(splits) * rows, head_dim)), meter.empty("lse_s", (len(splits) * rows, 1))
    places = [slice(s * rows, (s + 1) * rows) for s in range(len(splits))]  # of the splits' results
    with meter.kernel("decode splits") as kernel:
        for s, (part, place) in enumerate(zip(splits, places, strict=True)):
            with kernel.program(s) as sram:
                _walk(sram, queries, keys, values, part, block_k, scale, phi, outs[place], lses[place])
    with meter.kernel("merge") as kernel, kernel.program(0) as sram:
        state = _State(sram, rows, head_dim, phi)
        for place in places:
            with sram.scope():
                weight = state.weigh(sram.load(lses[place]))  # exp(lse) is the weight of a part
                part_out = sram.load(outs[place])
                part_out *= weight
                state.acc += part_out
        state.store(out[:], lse[:])
    return Metered(meter, out.result(), lse.result().squeeze(-1))


def decoding_moved(rows: int, k_len: int, head_dim: int, num_splits: int) -> Moved:
    """K and V once and the queries once a program; S partial results written and read, if S > 1; the result.

    read S·rows·d + 2·k_len·d (+ S·rows·(d + 1)), written rows·(d + 1) (+ S·rows·(d + 1)), with S = min(splits, k_len).
    """
    splits = min(num_splits, k_len)
    partial = splits * rows * (head_dim + 1) if splits > 1 else 0
    return Moved(splits * rows * head_dim + 2 * k_len * head_dim + partial, rows * (head_dim + 1) + partial)


class _State:
    """Maximum, sum and weighted values of some rows, in the SRAM of one program."""

    def __init__(self, sram: Program, rows: int, head_dim: int, phi: float | None) -> None:
        self.sram = sram
        self.phi = phi
        self.acc = sram.zeros(rows, head_dim, name="acc")
        self.row_sum = sram.zeros(rows, 1, name="l")
        self.row_max = sram.full((rows, 1), -math.inf if phi is None else phi, name="m")

    def weigh(self, scores: Tile) -> Tile:
        """exp(scores − maximum), in place, counted into the sums, which a larger maximum has repaired before."""
        if self.phi is None:
            new_max = scores.row_max()
            new_max.maximum_(self.row_max)
            repair = self.row_max  # the factor takes the place of the old maximum
            repair -= new_max
            repair.exp_()
            self.row_sum *= repair
            self.acc *= repair
            self.row_max.copy_(new_max)
            scores -= new_max
        else:
            scores -= self.phi
        weights = scores.exp_()
        self.row_sum += weights.row_sum()
        return weights

    def store(self, out: Region, lse: Region) -> None:
        self.acc /= self.row_sum
        self.sram.store(self.acc, out)
        self.row_sum.log_()
        self.row_sum += self.row_max
        self.sram.store(self.row_sum, lse)


def _walk(
    sram: Program,
    queries: HbmTensor,
    keys: HbmTensor,
    values: HbmTensor,
    part: slice,
    block_k: int,
    scale: float,
    phi: float | None,
    out: Region,
    lse: Region,
) -> None:
    """One program: the queries against the keys of one split, tile after tile."""
    q = sram.load(queries)
    state = _State(sram, q.shape[0], q.shape[1], phi)
    for start in range(part.start, part.stop, block_k):
        tile = slice(start, min(start + block_k, part.stop))
        with sram.scope():
            scores = q @ sram.load(keys[tile]).T
            scores *= scale
            sram.matmul(state.weigh(scores), sram.load(values[tile]), into=state.acc)
    state.store(out, lse)
