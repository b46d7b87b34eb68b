"""FlashAttention, second version: the outer loop runs over Q, and the output stays on the chip until it is done.

Dao 2023 (arXiv:2307.08691), algorithm 1; comments give its lines.

    for each block i of Q            loaded once; independent of the others, so they run side by side
        for each block j of K, V     loaded again for every i
            m, l, acc  <-  repaired and extended by this tile
        O_i = acc / l                one division, one write

Exchanging the loops leaves O, l and m in place. Not dividing until the end spares the operations outside matrix
products, which a GPU is an order of magnitude slower at. And the blocks of Q are work for more processors than
there are heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.attention.flash_backward import tiled_attention
from minillm.attention.online_softmax import OnlineSoftmax
from minillm.attention.tiles import Tiles, load_rows, store_rows


def flash_attention_v2(
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
    """`naive_attention` by FlashAttention-2's tile loops: same arguments, results and errors, O(N) memory.

    block_q, block_k   rows and columns of a tile of scores, any numbers from 1; lengths need not be multiples

    Tiles without a visible pair are skipped. float16 and bfloat16 accumulate in float32. Differentiable in out and lse.
    """
    return tiled_attention(
        flash_forward_v2,
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


def flash_forward_v2(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, tiles: Tiles) -> tuple[Tensor, Tensor]:
    """The loops, in the layout of `flash_backward.Forward`."""
    out = v.new_zeros(*q.shape[:-1], v.shape[-1])
    lse = v.new_zeros(*q.shape[:-1], 1)
    for rows in tiles.query_blocks():  # line 3
        q_i = load_rows(q, rows) * softmax_scale  # line 4: (n, group · rows, k_head_dim)
        state = OnlineSoftmax(q_i.shape[:-1], v.shape[-1], like=v)  # line 5
        for keys in tiles.key_blocks(rows):  # lines 6 and 7
            scores = torch.bmm(q_i, k[:, keys].mT)  # line 8: (n, group · rows, keys)
            tiles.hide(scores, rows, keys)
            state.update(scores, v[:, keys])  # lines 9 and 10
        out_i, lse_i = state.result()  # lines 12 and 13
        store_rows(out, rows, out_i)  # lines 14 and 15
        store_rows(lse, rows, lse_i.unsqueeze(-1))
    return out, lse.squeeze(-1)
