"""Prefill attention of one head on the memory-hierarchy meter: naive, v1, v2; bytes predicted and counted.

    meter, out, lse = run("v2", q, k, v, sram_bytes=48 * 1024, causal=True)
    assert meter.total.hbm_bytes == 4 * sum(moved("v2", q_len, k_len, head_dim, blocks, causal=True))

Reading order: here the sizes of blocks, the naive version and `run`; `metered_flash` v1 and v2; `sram_budget` what v1
holds on the chip, step by step; `metered_decoding` decode with and without splits.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from minillm.attention.metered_flash import Blocks, Problem, hide, v1, v1_moved, v2, v2_moved
from minillm.attention.tiles import Tiles
from minillm.gemm.metered_tile import Moved
from minillm.perf.meter import Meter

ALGORITHMS = ("naive", "v1", "v2")


class Metered(NamedTuple):
    """What the meter counted, and the results: out (q_len, d), lse (q_len,)."""

    meter: Meter
    out: Tensor
    lse: Tensor


def run(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    sram_bytes: int,
    causal: bool = False,
    softmax_scale: float | None = None,
    blocks: Blocks | None = None,
    stored_as: torch.dtype | None = None,
    trace: bool = False,
    keep_k: bool = True,
) -> Metered:
    """Attention of one head on a meter, with q (q_len, d), k and v (k_len, d), float32 or float64.

    name       "naive", "v1" or "v2"
    causal     bottom-right aligned; v1 and v2 skip what lies beyond the diagonal, naive computes and hides it
    blocks     None = `default_blocks`
    stored_as  dtype that bytes are counted in; None = that of q
    keep_k     of v1, see there

    Raises ValueError for another name, shapes that don't fit, more queries than keys under a causal mask, and tiles
    that don't fit into the SRAM.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"expected one of {ALGORITHMS}, got {name!r}")
    if q.dim() != 2 or k.shape != v.shape or q.shape[1:] != k.shape[1:]:
        raise ValueError(
            f"expected q (q_len, d), k and v (k_len, d), got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    (q_len, head_dim), k_len = q.shape, k.shape[0]
    if causal and q_len > k_len:
        raise ValueError(f"expected no more queries than keys under a causal mask, got {q_len} and {k_len}")
    meter = Meter(sram_bytes, dtype=q.dtype, stored_as=stored_as, trace=trace)
    cut = blocks or default_blocks(name, sram_bytes // meter.stored_as.itemsize, head_dim)
    problem = Problem(
        meter.hbm("Q", q),
        meter.hbm("K", k),
        meter.hbm("V", v),
        meter.empty("O", (q_len, head_dim)),
        meter.empty("lse", (q_len, 1)),
        head_dim**-0.5 if softmax_scale is None else softmax_scale,
        Tiles(q_len, k_len, cut.q, cut.k, causal),
    )
    if name == "v1":
        v1(meter, problem, keep_k=keep_k)
        lse = meter.tensors["m"].result() + meter.tensors["l"].result().log()
    else:
        {"naive": naive, "v2": v2}[name](meter, problem)
        lse = problem.lse.result()
    return Metered(meter, problem.out.result(), lse.squeeze(-1))


def moved(
    name: str, q_len: int, k_len: int, head_dim: int, blocks: Blocks, *, causal: bool = False, keep_k: bool = True
) -> Moved:
    """Numbers that `run` reads from HBM and writes to it, by the closed form of each algorithm."""
    if name == "v1":
        return v1_moved(q_len, k_len, head_dim, blocks, causal=causal, keep_k=keep_k)
    return {"naive": naive_moved, "v2": v2_moved}[name](q_len, k_len, head_dim, blocks, causal=causal)


def default_blocks(name: str, sram_numbers: int, head_dim: int) -> Blocks:
    """Blocks for an SRAM of M numbers: Bc = ceil(M / 4d) and Br = min(Bc, d), as in FlashAttention's algorithm 1.

    Four tiles of Bc × d fill the SRAM: K, V, the scores (Br ≤ d), and Q with O. That is meant up to a constant: with l,
    m and temporary rows v1 fits exactly if M ≥ 8·d·(d + 1) or so, see `sram_budget`, v2 if M·(1 − 4/d) ≥ 8·d².

    The large block is the one of the outer loop, whose number of blocks decides how often everything else is loaded.
    In v2 that is Q, so there the two are exchanged. To compare operations outside products give both the same blocks:
    each tile costs v2 a repair of its rows, and small blocks of K make many tiles.

    Raises ValueError for an SRAM below 4 numbers or a head_dim below 1.
    """
    if sram_numbers < 4 or head_dim < 1:
        raise ValueError(f"expected an SRAM of at least 4 numbers and head_dim ≥ 1, got {sram_numbers}, {head_dim}")
    large = math.ceil(sram_numbers / (4 * head_dim))
    small = min(large, head_dim)
    return Blocks(large, small) if name == "v2" else Blocks(small, large)


def naive(meter: Meter, problem: Problem) -> None:
    """Three kernels with the whole score matrix in HBM between them: S = Q Kᵀ, P = softmax(S) by rows, O = P V."""
    q, k, v, out, lse, scale, tiles = problem
    scores = meter.empty("S", (tiles.q_len, tiles.k_len))
    weights = meter.empty("P", (tiles.q_len, tiles.k_len))
    with meter.kernel("S = QKᵀ") as kernel:
        for i, rows in enumerate(tiles.query_blocks()):
            for j, keys in enumerate(tiles.key_blocks()):
                with kernel.program(i, j) as sram:
                    tile = sram.load(q[rows]) @ sram.load(k[keys]).T
                    tile *= scale
                    sram.store(tile, scores[rows, keys])
    # Whole rows of S, as many as fit beside their maxima and sums.
    num_rows = max(1, meter.sram_bytes // (meter.stored_as.itemsize * (tiles.k_len + 2)))
    with meter.kernel("softmax") as kernel:
        for i, rows in enumerate(replace(tiles, block_q=num_rows).query_blocks()):
            with kernel.program(i) as sram:
                tile = sram.load(scores[rows])
                hide(tile, tiles, rows, slice(0, tiles.k_len))
                row_max = tile.row_max()
                tile -= row_max
                tile.exp_()
                row_sum = tile.row_sum()
                tile /= row_sum
                sram.store(tile, weights[rows])
                row_sum.log_()
                row_sum += row_max
                sram.store(row_sum, lse[rows])
    with meter.kernel("O = PV") as kernel:
        for i, rows in enumerate(tiles.query_blocks()):
            with kernel.program(i) as sram:
                acc = sram.zeros(out[rows].shape, name="acc")
                for keys in tiles.key_blocks():
                    with sram.scope():
                        sram.matmul(sram.load(weights[rows, keys]), sram.load(v[keys]), into=acc)
                sram.store(acc, out[rows])


def naive_moved(q_len: int, k_len: int, head_dim: int, blocks: Blocks, *, causal: bool) -> Moved:
    """S and P written and read once each, q_len·k_len numbers a time, whatever `causal` hides.

    With T_q, T_k blocks of Q and K, the products read T_k·q_len·d of Q and T_q·k_len·d each of K and V.
    """
    num_q_blocks, num_k_blocks = math.ceil(q_len / blocks.q), math.ceil(k_len / blocks.k)
    return Moved(
        read=2 * q_len * k_len + (num_k_blocks * q_len + 2 * num_q_blocks * k_len) * head_dim,
        written=2 * q_len * k_len + q_len * (head_dim + 1),
    )
