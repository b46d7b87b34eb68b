"""Chapter 10: online softmax and FlashAttention.

Complete the functions below, then run `python3 tasks.py grade ch10`. The chapter is
`chapters/10_flash_attention.ipynb`; each task names the section that prepares it. Everything is about one head and
runs on a CPU; logarithms are natural, and nothing is timed: tiles, bytes and FLOPs are counted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minillm.perf.meter import Counts, HbmTensor, Meter

# ---- Task 1: one more tile of keys. Prepared by "A maximum that may still grow".


def online_step(
    row_max: Tensor, row_sum: Tensor, acc: Tensor, scores: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The state of some queries after one more tile of keys: (row_max, row_sum, acc), new tensors.

    row_max  (rows,) the largest score so far; −inf before the first visible key
    row_sum  (rows,) the sum of exp(score − row_max) so far
    acc      (rows, dim) the sum of exp(score − row_max) · value so far, not divided by anything
    scores   (rows, keys) of the new tile, scaled already; −inf where a key is hidden
    values   (keys, dim) of the new tile

    A tile may hide all its keys from a row. The row's state is then the same as before, and if it hasn't seen any key
    yet, that is (−inf, 0, 0): never NaN. The arguments are not changed. At the end, acc / row_sum is the attention.

    Example: one row, values of one number. From (−inf, 0, 0), scores [ln 2, ln 8] with values [6, 1] give
    (ln 8, 1.25, 2.5). Then a score of ln 16 with value 3 gives (ln 16, 1.625, 4.25), and 4.25 / 1.625 is
    (2·6 + 8·1 + 16·3) / (2 + 8 + 16).
    """
    raise NotImplementedError("online_step: your code here")


# ---- Task 2: attention over two sets of keys. Prepared by "States add up".


def merge_two(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the keys of a and b together, (out, lse), from the results over each.

    out  (rows, dim) the attention of each row over its keys; 0 for a row without keys
    lse  (rows,) the natural log of the sum of exp(score) over these keys; −inf for a row without keys

    A row may have no keys in a, none in b, or none in either; then out is 0 and lse −inf. Scores may be as large as
    10,000: exp of them must not be taken as they are.

    Example: keys a gave out 2 with lse ln 3, keys b gave out 6 with lse ln 1. Together: (3·2 + 1·6) / (3 + 1) = 3, and
    lse = ln 4.
    """
    raise NotImplementedError("merge_two: your code here")


# ---- Task 3 (prediction): which tiles are worth a visit? Prepared by "Tiles that nobody sees".


def visited_tiles(q_len: int, k_len: int, *, block_q: int, block_k: int, window: int | None = None) -> tuple[int, int]:
    """(full, boundary): how many tiles of the score matrix a causal kernel visits without and with a mask.

    Queries and keys are aligned at their ends: the last query sees the last key, so query i sees the keys up to
    i + k_len − q_len, and with q_len > k_len the first queries see none. With a window of w a query sees the last w of
    those keys only. The tiles are block_q × block_k, smaller at the bottom and on the right.

    A tile is full if each of its queries sees each of its keys, skipped if none sees any, and boundary otherwise.
    Prompts may have 100,000 tokens: go by the tile, not by the pair.

    Examples: 4 queries, 4 keys, tiles of 2 × 2: one full, two boundary, one skipped: (1, 2). With 1 × 1 tiles (10, 0).
    2 queries, 5 keys, 2 × 2: the queries see keys 0 … 3 and 0 … 4: (2, 1), the last tile is 2 × 1. 6 and 6, 2 × 2,
    window=3: (0, 5).
    """
    raise NotImplementedError("visited_tiles: your code here")


# ---- Task 4 (bug hunt): version 1 for a padded batch. Prepared by "Version 1" and "A maximum that may still grow".


def hasty_padded_flash(
    q: Tensor, k: Tensor, v: Tensor, is_key: Tensor, *, block_q: int, block_k: int
) -> tuple[Tensor, Tensor]:
    """Somebody's draft of `padded_flash`, with six mistakes.

    Without padding its `out` is right, if the largest scores come last.
    """
    out = torch.zeros(q.shape[0], v.shape[1], dtype=q.dtype)
    row_sum = torch.zeros(q.shape[0], 1, dtype=q.dtype)
    row_max = torch.full((q.shape[0], 1), -math.inf, dtype=q.dtype)
    for j in range(0, len(k), block_k):
        keys = slice(j, j + block_k)
        for i in range(0, len(q), block_q):
            rows = slice(i, i + block_q)
            scores = q[rows] @ k[keys].T / math.sqrt(q.shape[1])
            scores = scores * is_key[keys]  # padding counts for nothing
            tile_max = scores.amax(dim=1, keepdim=True)
            new_max = torch.maximum(row_max[rows], tile_max)
            weights = torch.exp(scores - tile_max)
            repair = torch.exp(row_max[rows] - new_max)
            new_sum = row_sum[rows] * repair + weights.sum(dim=1, keepdim=True)
            out[rows] = (out[rows] * row_sum[rows] * repair + weights @ v[keys]) / new_sum
            row_sum[rows] = new_sum
            row_max[rows] = new_max
    return out, (row_max + torch.log2(row_sum)).squeeze(1)


def padded_flash(
    q: Tensor, k: Tensor, v: Tensor, is_key: Tensor, *, block_q: int, block_k: int
) -> tuple[Tensor, Tensor]:
    """`hasty_padded_flash`, repaired: FlashAttention v1 over keys of which some are padding. Returns (out, lse).

    q (q_len, d), k (k_len, d), v (k_len, dim). is_key (k_len,) is True for real keys; the others are padding, before,
    after or between the real ones, and must not influence anything, whatever stands there, NaN and inf included. Scores
    are q · k / sqrt(d), there is no causal mask. Tiles are loaded whole and padding is masked in them, as in a kernel:
    the real keys are not picked out first.

    out (q_len, dim) is the attention over the real keys, lse (q_len,) the natural log of the sum of their exp(score).
    Without any real key out is 0 and lse −inf. A tile may be padding from end to end, the first one too. Lengths need
    not be multiples of the blocks. No tensor of q_len × k_len numbers is made.

    Example: q = [[0]], k = [[0], [7], [0]], v = [[1], [5], [3]], is_key = [True, False, True]: out = [[2]] and
    lse = [ln 2].
    """
    raise NotImplementedError("padded_flash: your code here")


# ---- Task 5: version 2 on the meter. Prepared by "Version 2", "How large a tile?" and "Tiles that nobody sees".


def flash_on_meter(
    meter: Meter, q: HbmTensor, k: HbmTensor, v: HbmTensor, out: HbmTensor, *, block_q: int, block_k: int, causal: bool
) -> Counts:
    """out = softmax(q kᵀ / sqrt(d)) v in one launch, by FlashAttention-2's loops. Returns `meter.total`.

    q (q_len, d), k (k_len, d), v (k_len, d), out (q_len, d) lie in the meter's HBM; out is empty. One program for each
    `block_q` rows of q. It loads them once, walks over k and v in blocks of `block_k` from the first on, and stores
    its rows of out once. Nothing else goes to HBM. Lengths need not be multiples of the blocks.

    causal  query i sees keys 0 … i (there are as many queries as keys). Blocks of keys that none of a program's
            queries sees are not loaded; only blocks that some of them don't see are masked

    The tests' meters have room for 2·block_q·d + 2·block_k·d + block_q·block_k + 4·block_q numbers: q, the sum, a block
    of k and of v, one tile of scores, and four columns. `sram.zeros(rows, dim)` and `sram.full((rows, dim), value)`
    make tiles; what is made inside `with sram.scope():` is freed at its end. Operators and methods make new tiles too,
    so work in place: `*=`, `-=`, `exp_()`, `maximum_(tile)`, `copy_(tile)`, `sram.matmul(a, b, into=tile)`, and
    `masked_fill_(mask, value)` with a bool tensor of torch, True where to fill. A column (rows, 1) broadcasts over a
    tile, and `row_max()` and `row_sum()` give columns. Scores may be far below zero.

    Example: q_len = k_len = 5, d = 4, blocks of 2, no mask: three programs. Each reads all 20 numbers of k and of v:
    20 + 3 · 40 = 140 numbers read, 20 written. With causal=True they read 2, 4 and 5 rows of each: 20 + 11 · 8 = 108.
    """
    raise NotImplementedError("flash_on_meter: your code here")


# ---- Task 6: the backward pass, tile by tile. Prepared by "Backward: compute it again".


def flash_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    d_out: Tensor,
    *,
    block_q: int,
    block_k: int,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv), the gradients of attention, with weights computed again from lse. No weights were kept.

    q (q_len, d), k (k_len, d), v (k_len, dim) went into out (q_len, dim) = softmax(q kᵀ / sqrt(d)) v, and lse (q_len,)
    is the natural log-sum-exp of each row of scaled scores. d_out is the gradient of out; the results are shaped like
    q, k and v.

    causal  query i sees the keys up to i + k_len − q_len, with q_len <= k_len. Tiles without a visible pair are
            skipped: neither products nor anything else

    For each visited tile five products: scores, d_out vᵀ, and one each for dq, dk and dv. The tests count FLOPs, and
    reject tensors much larger than q or a tile. Lengths need not be multiples of the blocks.

    Example: q = [[1]], k = [[0], [0]], v = [[1], [3]], so out = [[2]] and lse = [ln 2]. With d_out = [[1]]: dq = [[0]],
    dk = [[−0.5], [0.5]], dv = [[0.5], [0.5]].
    """
    raise NotImplementedError("flash_backward: your code here")
