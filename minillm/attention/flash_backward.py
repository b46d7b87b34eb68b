"""The backward pass of attention, in tiles: weights are computed again instead of being kept.

FlashAttention-2, algorithm 2 (Dao 2023, arXiv:2307.08691). The forward pass leaves out and lse, O(N) numbers; from
them each tile of weights comes back with one product and one exp. With P the weights, S the scaled scores:

    P  = exp(S − lse)            dP = dO Vᵀ                    dV = Pᵀ dO
    dS = P ∘ (dP − delta)        delta = rowsum(dO ∘ O) − dlse
    dQ = dS K · scale            dK = dSᵀ Q · scale

dlse is the gradient that arrives at lse itself (a merge of results uses it): d lse / d S = P, so it joins delta. The
same backward serves every forward pass that returns (out, lse), whatever its loops were.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minillm.attention.naive import check_shapes
from minillm.attention.tiles import Tiles, group_heads, load_rows, ungroup_heads

# q (n, group, q_len, k_head_dim), k (n, k_len, k_head_dim), v (n, k_len, v_head_dim) with n = batch · num_kv_heads,
# softmax_scale, tiles -> out (n, group, q_len, v_head_dim), lse (n, group, q_len)
Forward = Callable[[Tensor, Tensor, Tensor, float, Tiles], tuple[Tensor, Tensor]]


def tiled_attention(
    forward: Forward,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    window: int | None,
    softmax_scale: float | None,
    mask: Tensor | None,
    block_q: int,
    block_k: int,
) -> tuple[Tensor, Tensor]:
    """`forward` with everything around its loops: checks, layout, float32 accumulation, and gradients in tiles.

    Arguments, results and errors are those of `naive_attention`; blocks below 1 raise ValueError, too.
    """
    check_shapes(q, k, v, causal=causal, window=window, mask=mask)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    if mask is not None:
        mask = mask[(None,) * (4 - mask.dim())].expand(q.shape[0], q.shape[2], -1, -1)
    tiles = Tiles(q.shape[1], k.shape[1], block_q, block_k, causal, window, mask)
    return _TiledAttention.apply(q, k, v, forward, scale, tiles)


def attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    d_out: Tensor,
    d_lse: Tensor,
    softmax_scale: float,
    tiles: Tiles,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) in the layout of `Forward`; d_out and d_lse are shaped like out and lse.

    The outer loop runs over K and V, whose gradients stay in place; dq is added up across it. The rows of a tile
    hold every query head of the group, so that the products sum dk and dv over the group by themselves.
    """
    is_empty = lse == -math.inf
    delta = ((d_out * out).sum(dim=-1) - d_lse).masked_fill(is_empty, 0.0)  # (n, group, q_len)
    lse = lse.masked_fill(is_empty, math.inf)  # exp(S − inf) = 0: a row without keys has no weights

    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for keys in tiles.key_blocks():
        k_tile, v_tile = k[:, keys], v[:, keys]  # (n, keys, dim)
        for rows in tiles.query_blocks(keys):
            q_tile, d_out_tile = load_rows(q, rows), load_rows(d_out, rows)  # (n, group · rows, dim)
            weights = torch.bmm(q_tile, k_tile.mT).mul_(softmax_scale)
            tiles.hide(weights, rows, keys)
            weights.sub_(load_rows(lse.unsqueeze(-1), rows)).exp_()

            d_scores = torch.bmm(d_out_tile, v_tile.mT)
            d_scores.sub_(load_rows(delta.unsqueeze(-1), rows)).mul_(weights).mul_(softmax_scale)

            dv[:, keys].baddbmm_(weights.mT, d_out_tile)
            dk[:, keys].baddbmm_(d_scores.mT, q_tile)
            dq[:, :, rows] += torch.bmm(d_scores, k_tile).unflatten(1, (q.shape[1], rows.stop - rows.start))
    return dq, dk, dv


class _TiledAttention(torch.autograd.Function):
    """A forward pass in tiles with `attention_backward` as its gradient. Keeps q, k, v, out and lse."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, forward: Forward, softmax_scale: float, tiles: Tiles
    ) -> tuple[Tensor, Tensor]:
        num_kv_heads = k.shape[2]
        out, lse = forward(*_grouped(q, k, v), softmax_scale, tiles)
        out = ungroup_heads(out, num_kv_heads).to(q.dtype)
        lse = ungroup_heads(lse.unsqueeze(-1), num_kv_heads).squeeze(-1)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.softmax_scale, ctx.tiles = softmax_scale, tiles
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_lse: Tensor) -> Any:
        q, k, v, out, lse = ctx.saved_tensors
        num_kv_heads = k.shape[2]
        per_query = [group_heads(x.to(lse.dtype), num_kv_heads) for x in (out, d_out)]
        per_row = [group_heads(x.unsqueeze(-1), num_kv_heads).squeeze(-1) for x in (lse, d_lse)]
        dq, dk, dv = attention_backward(
            *_grouped(q, k, v), per_query[0], per_row[0], per_query[1], per_row[1], ctx.softmax_scale, ctx.tiles
        )
        dq, dk, dv = (ungroup_heads(x, num_kv_heads) for x in (dq, dk.unsqueeze(1), dv.unsqueeze(1)))
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _grouped(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v in the layout and the wide dtype that forward and backward compute in."""
    wide = torch.promote_types(q.dtype, torch.float32)
    num_kv_heads = k.shape[2]
    q, k, v = (group_heads(x.to(wide), num_kv_heads) for x in (q, k, v))
    return q, k.squeeze(1), v.squeeze(1)
