"""Attention by the book: the oracle that every faster version is compared with.

Scaled dot-product attention (Vaswani et al. 2017, eq. 1) with grouped KV heads (Ainslie et al. 2023), causal and
sliding-window masks. It builds the whole score matrix, which is what the fast versions avoid.
"""

from __future__ import annotations

import torch
from torch import Tensor


def naive_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    softmax_scale: float | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ · softmax_scale) v, and the log-sum-exp of each row of scores.

    q              (batch, q_len, num_heads, k_head_dim)
    k, v           (batch, k_len, num_kv_heads, k_head_dim), (batch, k_len, num_kv_heads, v_head_dim); query head h
                   reads KV head h // (num_heads / num_kv_heads)
    causal         query i sees keys up to i + k_len - q_len: aligned bottom-right, so that the last query sees all
    window         a query sees at most this many keys, the one at its own place included; needs `causal`
    softmax_scale  default 1 / sqrt(k_head_dim)
    mask           boolean, True = attend, broadcastable to (batch, num_heads, q_len, k_len), ANDed with the others

    Returns out (batch, q_len, num_heads, v_head_dim) in the dtype of q, and lse (batch, q_len, num_heads), natural
    log, float32 (float64 for float64 inputs). Scores and softmax are computed in that wider dtype. A row with no
    visible key gives out = 0 and lse = -inf. Both results are differentiable. Raises ValueError for shapes that don't
    fit, a mask that isn't boolean, a window without causal.
    """
    check_shapes(q, k, v, causal=causal, window=window, mask=mask)
    q_len, num_heads, k_head_dim = q.shape[1:]
    k_len, num_kv_heads = k.shape[1:3]
    scale = k_head_dim**-0.5 if softmax_scale is None else softmax_scale
    wide = torch.promote_types(q.dtype, torch.float32)

    k = k.repeat_interleave(num_heads // num_kv_heads, dim=2)  # (batch, k_len, num_heads, k_head_dim)
    v = v.repeat_interleave(num_heads // num_kv_heads, dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q.to(wide), k.to(wide)) * scale

    visible = visible_keys(q_len, k_len, causal=causal, window=window, device=q.device)
    visible = visible if mask is None else visible & mask
    scores = scores.masked_fill(~visible, float("-inf"))

    row_is_empty = ~visible.any(dim=-1).expand(scores.shape[:-1])  # (batch, num_heads, q_len)
    lse = torch.logsumexp(scores, dim=-1)
    # Subtracting lse = -inf from -inf would give NaN, in the gradients too; an empty row subtracts 0.
    weights = torch.exp(scores - lse.masked_fill(row_is_empty, 0.0).unsqueeze(-1))
    out = torch.einsum("bhqk,bkhd->bqhd", weights, v.to(wide))
    return out.to(q.dtype), lse.transpose(1, 2)


def visible_keys(
    q_len: int, k_len: int, *, causal: bool, window: int | None, device: torch.device | None = None
) -> Tensor:
    """Boolean (q_len, k_len), True where a query may look: the bottom-right causal triangle, cut to the window."""
    query_slot = torch.arange(q_len, device=device)[:, None] + (k_len - q_len)
    key_slot = torch.arange(k_len, device=device)[None, :]
    if not causal:
        return torch.ones(q_len, k_len, dtype=torch.bool, device=device)
    visible = key_slot <= query_slot
    return visible if window is None else visible & (key_slot > query_slot - window)


def check_shapes(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window: int | None, mask: Tensor | None = None
) -> None:
    """Raise ValueError, with the shapes, unless q, k, v and mask fit together as in `naive_attention`."""
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        raise ValueError(f"expected q, k, v of shape (batch, seq_len, heads, head_dim), got {_shapes(q, k, v)}")
    if q.shape[0] != k.shape[0] or k.shape[:3] != v.shape[:3] or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"batch, key length, KV heads or head_dim of q, k, v don't fit: {_shapes(q, k, v)}")
    if k.shape[2] == 0 or q.shape[2] % k.shape[2]:
        raise ValueError(f"the query heads must be a multiple of the KV heads: {_shapes(q, k, v)}")
    if window is not None and not causal:
        raise ValueError(f"window={window} requires causal=True")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 key, got {window}")
    if mask is not None:
        scores_shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
        trailing = scores_shape[len(scores_shape) - mask.dim() :]
        fits = mask.dim() <= 4 and all(m in (1, n) for m, n in zip(mask.shape, trailing, strict=True))
        if mask.dtype != torch.bool or not fits:
            raise ValueError(
                f"expected a boolean mask broadcastable to (batch, num_heads, q_len, k_len) = {scores_shape}, got "
                f"{mask.dtype} {tuple(mask.shape)}"
            )


def _shapes(q: Tensor, k: Tensor, v: Tensor) -> str:
    return f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
