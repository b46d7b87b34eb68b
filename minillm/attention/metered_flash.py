"""FlashAttention's two loop orders on the memory-hierarchy meter, each beside its closed form. One head.

Every tile is loaded, computed with and stored as on a GPU, and operations write in place where they can, so that the
SRAM peak is what the algorithm needs. Hidden scores are a large negative number instead of −inf: a tile of a row
without visible keys then gets weights that the next maximum scales to 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from minillm.attention.tiles import Tiles
from minillm.gemm.metered_tile import Moved
from minillm.perf.meter import HbmTensor, Meter, Tile

HIDDEN = -1e30


class Blocks(NamedTuple):
    """Rows of a block of Q, rows of a block of K and V."""

    q: int
    k: int


class Problem(NamedTuple):
    """q (q_len, d), k, v (k_len, d) and the outputs in the HBM of a meter, and how the scores are cut."""

    q: HbmTensor
    k: HbmTensor
    v: HbmTensor
    out: HbmTensor  # (q_len, d)
    lse: HbmTensor  # (q_len, 1)
    softmax_scale: float
    tiles: Tiles


def v1(meter: Meter, problem: Problem, *, keep_k: bool = True) -> None:
    """FlashAttention (arXiv:2205.14135, algorithm 1): one program for the head; K, V outside, Q, O, l, m inside.

    keep_k   K stays for all blocks of Q. False frees it after each product of scores, and keeps P beside S, as in the
             budget of `sram_budget(…, keep_k=False)`: K is then loaded again for every block of Q

    The first kernel sets O, l and m in HBM to their start values (line 2). lse is not written: m and l are.
    """
    q, k, v, out, _, scale, tiles = problem
    row_sum, row_max = meter.empty("l", (tiles.q_len, 1)), meter.empty("m", (tiles.q_len, 1))
    with meter.kernel("initialize") as kernel, kernel.program(0) as sram:
        for rows in tiles.query_blocks():
            with sram.scope():
                sram.store(sram.zeros(out[rows].shape, name="O"), out[rows])
                sram.store(sram.zeros(row_sum[rows].shape, name="l"), row_sum[rows])
                sram.store(sram.full(row_max[rows].shape, -math.inf, name="m"), row_max[rows])
    with meter.kernel("flash v1") as kernel, kernel.program(0) as sram:
        for keys in tiles.key_blocks():
            with sram.scope():
                if keep_k:
                    k_j = sram.load(k[keys])  # step 1 of the budget
                v_j = sram.load(v[keys])
                for rows in tiles.query_blocks(keys):
                    with sram.scope():
                        if not keep_k:
                            k_j = sram.load(k[keys])
                        q_i, out_i = sram.load(q[rows]), sram.load(out[rows])  # step 2
                        sum_i, max_i = sram.load(row_sum[rows]), sram.load(row_max[rows])
                        scores = q_i @ k_j.T  # step 3
                        scores *= scale
                        hide(scores, tiles, rows, keys)
                        sram.free(q_i)  # step 4
                        if not keep_k:
                            sram.free(k_j)
                        tile_max = scores.row_max()  # step 5
                        if keep_k:
                            scores -= tile_max
                            weights = scores.exp_()  # P takes the place of S: steps 5 and 6
                        else:
                            weights = scores - tile_max
                            weights.exp_()
                            sram.free(scores)  # step 6
                        tile_sum = weights.row_sum()  # step 7
                        new_max = max_i.maximum(tile_max)  # step 8
                        old, new = max_i, tile_max  # their factors take their places
                        old -= new_max
                        old.exp_()
                        new -= new_max
                        new.exp_()
                        new_sum = sum_i * old
                        tile_sum *= new
                        new_sum += tile_sum
                        sum_i *= old  # step 9: undo the last division, repair, extend, divide again
                        out_i *= sum_i
                        weights *= new
                        sram.matmul(weights, v_j, into=out_i)
                        out_i /= new_sum
                        sram.store(out_i, out[rows])
                        sram.free(out_i)
                        sram.store(new_sum, row_sum[rows])  # step 10
                        sram.store(new_max, row_max[rows])
                        sram.free(new_sum, new_max)  # step 11 is the end of the scope


def v1_moved(q_len: int, k_len: int, head_dim: int, blocks: Blocks, *, causal: bool, keep_k: bool = True) -> Moved:
    """K and V once; for each block of K: Q and O of the queries that see it, with l and m; O, l, m set at the start.

    Not causal, with T = ceil(k_len / blocks.k):  read 2·k_len·d + T·q_len·(2d + 2), written (T + 1)·q_len·(d + 2).
    """
    pairs = [(rows, keys) for rows, keys in visible_tiles(q_len, k_len, blocks, causal=causal)]
    visits = sum(rows for rows, _ in pairs)  # rows of Q, over all the tiles they are loaded for
    k_reads = k_len if keep_k else sum(keys for _, keys in pairs)
    return Moved(
        read=(k_reads + k_len) * head_dim + visits * (2 * head_dim + 2),
        written=(q_len + visits) * (head_dim + 2),
    )


def v2(meter: Meter, problem: Problem) -> None:
    """FlashAttention-2 (arXiv:2307.08691, algorithm 1): a program for each block of Q; K and V inside."""
    q, k, v, out, lse, scale, tiles = problem
    with meter.kernel("flash v2") as kernel:
        for i, rows in enumerate(tiles.query_blocks()):
            with kernel.program(i) as sram:
                q_i = sram.load(q[rows])
                acc = sram.zeros(out[rows].shape, name="acc")
                row_sum = sram.zeros(lse[rows].shape, name="l")
                row_max = sram.full(lse[rows].shape, -math.inf, name="m")
                for keys in tiles.key_blocks(rows):
                    with sram.scope():
                        k_j, v_j = sram.load(k[keys]), sram.load(v[keys])
                        scores = q_i @ k_j.T
                        scores *= scale
                        hide(scores, tiles, rows, keys)
                        new_max = scores.row_max()
                        new_max.maximum_(row_max)
                        repair = row_max  # the factor takes the place of the old maximum
                        repair -= new_max
                        repair.exp_()
                        scores -= new_max
                        weights = scores.exp_()  # P takes the place of S
                        row_sum *= repair
                        row_sum += weights.row_sum()
                        acc *= repair
                        sram.matmul(weights, v_j, into=acc)
                        row_max.copy_(new_max)
                acc /= row_sum
                sram.store(acc, out[rows])
                row_sum.log_()
                row_sum += row_max
                sram.store(row_sum, lse[rows])


def v2_moved(q_len: int, k_len: int, head_dim: int, blocks: Blocks, *, causal: bool) -> Moved:
    """Q once; for each block of Q: the K and V that it sees; O and lse once.

    Not causal, with T = ceil(q_len / blocks.q):  read q_len·d + T·2·k_len·d, written q_len·(d + 1).
    """
    visits = sum(keys for _, keys in visible_tiles(q_len, k_len, blocks, causal=causal))
    return Moved(read=(q_len + 2 * visits) * head_dim, written=q_len * (head_dim + 1))


def hide(scores: Tile, tiles: Tiles, rows: slice, keys: slice) -> None:
    """Mask a boundary tile; a tile that is visible in full costs nothing."""
    if not tiles.is_full(rows, keys):
        scores.masked_fill_(tiles.hidden(rows, keys), HIDDEN)


def visible_tiles(q_len: int, k_len: int, blocks: Blocks, *, causal: bool) -> Iterator[tuple[int, int]]:
    """(rows, keys) of each tile that isn't skipped, from the arithmetic of the diagonal alone."""
    for first in range(0, q_len, blocks.q):
        rows = min(blocks.q, q_len - first)
        sees = k_len - q_len + first + rows if causal else k_len  # keys that the last of these queries sees
        for start in range(0, sees, blocks.k):
            yield rows, min(blocks.k, k_len - start)
