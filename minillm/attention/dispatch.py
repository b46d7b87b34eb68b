"""Choose the implementation an attend calls. The only module that knows all of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.attention.naive import check_shapes, visible_keys

# Keys of a layer from which on one new token is attended by `decode_on_cpu`: less stays in a processor's caches, where
# torch is as fast and starts sooner.
LARGE_BYTES = 8 * 2**20


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    softmax_scale: float | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """`naive_attention(...)[0]` by torch's fused `scaled_dot_product_attention`. Shapes and meaning as there.

    The fused kernel never stores the score matrix. It knows causal attention of a square (q_len = k_len) only; every
    other pattern is handed over as a boolean mask. One token that sees all of many keys goes to `decode_on_cpu` where
    numba is installed.
    """
    check_shapes(q, k, v, causal=causal, window=window, mask=mask)
    q_len, num_heads = q.shape[1:3]
    k_len, num_kv_heads = k.shape[1:3]
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    if scale <= 0.0:  # the fused kernel scales what it has masked: −inf times 0 is NaN, times −1 it is +inf
        q, scale = q * scale, 1.0

    causal_hides_nothing = not causal or q_len == 1
    window_hides_nothing = window is None or window >= k_len
    keep = None if mask is None else torch.atleast_2d(mask)  # the fused kernel wants (…, q_len, k_len)
    is_square = causal and window_hides_nothing and mask is None and q_len == k_len
    if not is_square and not (causal_hides_nothing and window_hides_nothing):
        visible = visible_keys(q_len, k_len, causal=causal, window=window, device=q.device)
        keep = visible if mask is None else visible & mask

    if keep is None and q_len == 1 and is_large_decode(q, k, v):
        from minillm.attention.cpu_decoding import decode_on_cpu

        return decode_on_cpu(q, k, v, softmax_scale=scale)[0]

    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (batch, heads, seq_len, head_dim)
    folded = q_len == 1 and num_heads != num_kv_heads and (keep is None or keep.dim() < 3 or keep.shape[-3] == 1)
    if folded:
        # One token: the heads of a group are just several queries to the same keys, read once.
        q = q.reshape(q.shape[0], num_kv_heads, num_heads // num_kv_heads, q.shape[-1])
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=keep, is_causal=is_square, scale=scale, enable_gqa=q.shape[1] != num_kv_heads
    )
    if keep is not None:
        out = out.masked_fill(~keep.any(dim=-1, keepdim=True), 0.0)
    return out.reshape(out.shape[0], num_heads, q_len, v.shape[-1]).transpose(1, 2)


def is_large_decode(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether one token a sequence (q_len 1, all keys visible) is work for `decode_on_cpu`, and can be done there."""
    return (
        k.nbytes >= LARGE_BYTES
        and all(x.is_cpu and x.dtype == q.dtype in (torch.float32, torch.bfloat16) for x in (q, k, v))
        and k[0, 0].is_contiguous()
        and v[0, 0].is_contiguous()
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)))
        and not torch.compiler.is_compiling()
        and importlib.util.find_spec("numba") is not None
    )


def gpu_kernel(name: str, q: Tensor) -> Callable[..., Any] | None:
    """`minillm.kernels.<name>` for CUDA tensors, where Triton is installed and the kernel exists; None otherwise.

    float64 stays with torch: the kernels know float32, float16 and bfloat16.
    """
    if not q.is_cuda or q.dtype == torch.float64 or importlib.util.find_spec("triton") is None:
        return None
    from minillm import kernels

    kernel: Callable[..., Any] | None = getattr(kernels, name, None)
    return kernel
