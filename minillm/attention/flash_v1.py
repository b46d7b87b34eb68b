"""FlashAttention, first version: the outer loop runs over K and V, and the output is rewritten each time.

Dao, Fu, Ermon, Rudra, Ré 2022 (arXiv:2205.14135), algorithm 1; comments give its lines.

    for each block j of K, V         loaded once
        for each block i of Q        loaded again for every j, and with it O, l, m:
            O_i, l_i, m_i  <-  what they were, repaired and extended by this tile

The score matrix never exists: a tile of it lives between line 9 and line 12. But O, l and m travel to memory and back
for every tile, and O is divided by l every time, only to be multiplied by it at the next one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minillm.attention.flash_backward import tiled_attention
from minillm.attention.online_softmax import finite, nonzero
from minillm.attention.tiles import Tiles, load_rows, store_rows


def flash_attention_v1(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    softmax_scale: float | None = None,
    mask: Tensor | None = None,
    block_q: int = 64,
    block_k: int = 64,
) -> tuple[Tensor, Tensor]:
    """`naive_attention` by FlashAttention's tile loops: same arguments, results and errors, O(N) memory.

    block_q, block_k   rows and columns of a tile of scores, any numbers from 1; lengths need not be multiples

    Tiles without a visible pair are skipped. float16 and bfloat16 accumulate in float32. Differentiable in out and lse.
    """
    return tiled_attention(
        _forward,
        q,
        k,
        v,
        causal=causal,
        window=window,
        softmax_scale=softmax_scale,
        mask=mask,
        block_q=block_q,
        block_k=block_k,
    )


def _forward(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, tiles: Tiles) -> tuple[Tensor, Tensor]:
    per_row = q.shape[:-1]  # (n, group, q_len)
    out = v.new_zeros(*per_row, v.shape[-1])  # line 2
    row_sum = v.new_zeros(*per_row, 1)  # l
    row_max = v.new_full((*per_row, 1), -math.inf)  # m
    for keys in tiles.key_blocks():  # line 5
        k_j, v_j = k[:, keys], v[:, keys]  # line 6: (n, keys, dim)
        for rows in tiles.query_blocks(keys):  # line 7
            q_i, out_i, sum_i, max_i = (load_rows(x, rows) for x in (q, out, row_sum, row_max))  # line 8
            scores = torch.bmm(q_i, k_j.mT).mul_(softmax_scale)  # line 9: (n, group · rows, keys)
            tiles.hide(scores, rows, keys)

            tile_max = scores.amax(dim=-1, keepdim=True)  # line 10
            weights = scores.sub_(finite(tile_max)).exp_()
            tile_sum = weights.sum(dim=-1, keepdim=True)

            new_max = torch.maximum(max_i, tile_max)  # line 11
            old, new = torch.exp(max_i - finite(new_max)), torch.exp(tile_max - finite(new_max))
            new_sum = old * sum_i + new * tile_sum

            # line 12: undo the last division, repair, extend, divide again
            new_out = (sum_i * old * out_i + new * torch.bmm(weights, v_j)) / nonzero(new_sum)
            store_rows(out, rows, new_out)
            store_rows(row_sum, rows, new_sum)  # line 13
            store_rows(row_max, rows, new_max)
    return out, (row_max + torch.log(row_sum)).squeeze(-1)
