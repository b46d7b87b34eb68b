"""`minillm.attention.flash_attention` on a GPU: FlashAttention-2 with its gradients, in Triton.

The kernels are in `flash_forward` and, for the gradients, `flash_backward`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minillm.attention.naive import check_shapes
from minillm.kernels.flash_backward import flash_backward
from minillm.kernels.flash_forward import flash_forward
from minillm.kernels.flash_tiles import forward_tiles
from minillm.kernels.launch import check_tensors

LARGEST_STRIDE = 2**21  # numbers: times a row of the tallest tile it still fits into 32 bits


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    softmax_scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`minillm.attention.naive_attention` in O(N) memory, forward and backward: same arguments and results.

    q (batch, q_len, num_heads, k_head_dim), k and v (batch, k_len, num_kv_heads, …): float32, float16 or bfloat16 on
    one GPU (or the CPU where Triton interprets), of any strides, head dims up to 256. Products are of the inputs' dtype
    (float32: exact ones, no tf32) with float32 sums. Returns out (batch, q_len, num_heads, v_head_dim) in that dtype
    and lse (batch, q_len, num_heads), natural log, float32; a row without keys gives 0 and −inf. Differentiable once,
    in out and lse. The first call of a kind times several tiles (`flash_tiles`): do it before a CUDA graph is captured.

    Raises ValueError for what `naive_attention` refuses, and for other dtypes, devices and head dims.
    """
    check_shapes(q, k, v, causal=causal, window=window)
    check_tensors(q=q, k=k, v=v)
    forward_tiles(q.shape[-1], v.shape[-1], itemsize=q.element_size(), capability=80)  # refuses what is too wide
    q, scale = with_positive_scale(q, softmax_scale)
    q, k, v = (addressable(x) for x in (q, k, v))
    out: tuple[Tensor, Tensor] = _FlashAttention.apply(q, k, v, causal, window, scale)
    return out


def with_positive_scale(q: Tensor, softmax_scale: float | None) -> tuple[Tensor, float]:
    """q and a scale above 0 with the same scores, exactly. The kernels take the maximum before they scale."""
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    if scale > 0.0:
        return q, scale
    return (-q, -scale) if scale < 0.0 else (q * 0.0, 1.0)


def addressable(x: Tensor) -> Tensor:
    """x, or a copy where a tile of it spans more than the 32-bit offsets inside a tile can reach."""
    return x if max(x.stride(), default=0) <= LARGEST_STRIDE else x.contiguous()


class _FlashAttention(torch.autograd.Function):
    """Keeps q, k, v, out and lse; the weights are computed again."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, softmax_scale: float
    ) -> tuple[Tensor, Tensor]:
        out, lse = flash_forward(q, k, v, causal=causal, window=window, softmax_scale=softmax_scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.options = {"causal": causal, "window": window, "softmax_scale": softmax_scale}
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_lse: Tensor) -> Any:
        q, k, v, out, lse = ctx.saved_tensors
        grads = flash_backward(q, k, v, out, lse, addressable(d_out), d_lse, **ctx.options)
        return *grads, None, None, None
