"""RMSNorm in one launch, with or without the addition before it, and its gradients (Triton).

    x (rows, n)         a program a row                                        everything else stays on the chip:
    residual            ┌──────────────────────┐
                        │ ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓ │ ──► h = x + residual          rounded, written: the new residual
                        │                      │     r = rsqrt(mean(h²) + eps) float32, one number a row, kept
                        └──────────────────────┘     y = round(h · r) · weight

Written out in eager torch, a row's numbers go to memory and back at every step. In 16 bits, for N numbers:

                                      launches    bytes, read + written (small terms left out)
    rms_norm, eager                       8       36 N    widen 6, square 8, mean 4, · r 8, round 6, · weight 4
    rms_norm, fused                       1        4 N
    add_rms_norm, eager                   9       42 N    add 6, and the norm
    add_rms_norm, fused                   1        8 N
    gradients of rms_norm, fused          2        6 N    + 8 · parts · n for the parts of dweight

In float32 eager torch needs neither widening nor rounding: 6 launches and 28 N bytes, against 8 N. Zhang and Sennrich
2019 (arXiv:1910.07467); the gradient follows from it by the chain rule.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from minillm.kernels.fused_norm_backward import LARGEST_SIZE, norm_backward
from minillm.kernels.fused_rows import as_rows, row_block, warps_for
from minillm.kernels.launch import check_tensors, on_device


@triton.jit
def norm_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    new_residual_ptr,
    inv_rms_ptr,
    eps,
    n,
    stride_xr,
    stride_xc,
    stride_rr,
    stride_rc,
    stride_w,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: y and new_residual contiguous, inv_rms (rows,) = 1 / sqrt(mean + eps). Grid: (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < n
    h = tl.load(x_ptr + row * stride_xr + columns * stride_xc, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + row * stride_rr + columns * stride_rc, mask=inside, other=0.0)
        added = (h + residual.to(tl.float32)).to(new_residual_ptr.dtype.element_ty)
        tl.store(new_residual_ptr + row * n + columns, added, mask=inside)
        h = added.to(tl.float32)  # what a later layer will read, not the sum before rounding
    inv_rms = tl.rsqrt(tl.sum(h * h, axis=0) / n + eps)
    tl.store(inv_rms_ptr + row, inv_rms)
    weight = tl.load(weight_ptr + columns * stride_w, mask=inside, other=0.0).to(tl.float32)
    normed = (h * inv_rms).to(y_ptr.dtype.element_ty).to(tl.float32)
    tl.store(y_ptr + row * n + columns, (normed * weight).to(y_ptr.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last axis, in one launch; differentiable once in x and weight.

    x (..., size)  float32, float16 or bfloat16 on one GPU (or the CPU where Triton interprets), of any strides
    weight (size,) of the dtype of x

    Statistics are float32; what is normed is rounded to the dtype of x before it is multiplied, as `model.RMSNorm`
    does. Returns a contiguous tensor of x's dtype. Reads and writes 2 · numel · itemsize bytes against 9 times as many
    (16 bits) in eager torch, 1 launch against 8: limited by memory. Squares that overflow float32 (|x| > 1.8e19) give
    0, as they do in eager torch. Raises ValueError for other shapes, dtypes or devices, and for rows of more than 16384
    numbers.
    """
    _check_norm(weight, x=x)
    y: Tensor = _RmsNorm.apply(x, weight, eps)
    return y


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(`rms_norm` of the sum, the sum), in one launch; differentiable once in x, residual and weight.

    x, residual (..., size), one shape; weight (size,). The sum is rounded to their dtype, as eager torch rounds it, and
    the rounded one is normed: the numbers of `x + residual` and an eager norm, for 8 bytes a number in 16 bits instead
    of 42, in 1 launch instead of 9. Limited by memory. Raises ValueError as `rms_norm` does.
    """
    if x.shape != residual.shape:
        raise ValueError(f"expected x and residual of one shape, got {tuple(x.shape)} and {tuple(residual.shape)}")
    _check_norm(weight, x=x, residual=residual)
    y, new_residual = _AddRmsNorm.apply(x, residual, weight, eps)
    return y, new_residual


def norm_forward(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(y, the sum or x itself, inv_rms (rows,)): `norm_kernel` without checks."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    new_residual = x if residual is None else torch.empty_like(y)
    rows, n = as_rows(x), x.shape[-1]
    added = rows if residual is None else as_rows(residual)
    inv_rms = torch.empty(rows.shape[0], dtype=torch.float32, device=x.device)
    if x.numel():
        block = row_block(n, largest=LARGEST_SIZE)
        with on_device(x):
            norm_kernel[(rows.shape[0],)](
                rows, added, weight, y, new_residual, inv_rms, eps, n, *rows.stride(), *added.stride(),
                weight.stride(0), HAS_RESIDUAL=residual is not None, BLOCK=block, num_warps=warps_for(block),
            )  # fmt: skip
    return y, new_residual, inv_rms


class _RmsNorm(torch.autograd.Function):
    """Keeps x, weight and a number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, _, inv_rms = norm_forward(x, None, weight, eps)
        ctx.save_for_backward(x, weight, inv_rms)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight, inv_rms = ctx.saved_tensors
        return *norm_backward(x, weight, inv_rms, dy, None), None


class _AddRmsNorm(torch.autograd.Function):
    """Keeps the sum, which the residual stream keeps anyway, weight and a number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        y, new_residual, inv_rms = norm_forward(x, residual, weight, eps)
        ctx.save_for_backward(new_residual, weight, inv_rms)
        return y, new_residual

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, d_residual: Tensor) -> Any:
        h, weight, inv_rms = ctx.saved_tensors
        dh, d_weight = norm_backward(h, weight, inv_rms, dy, d_residual)
        return dh, dh, d_weight, None


def _check_norm(weight: Tensor, **tensors: Tensor) -> None:
    x = next(iter(tensors.values()))
    if x.dim() == 0 or weight.shape != x.shape[-1:]:
        raise ValueError(f"expected x (..., size) and weight (size,), got {tuple(x.shape)} and {tuple(weight.shape)}")
    if x.shape[-1] > LARGEST_SIZE:
        raise ValueError(f"expected rows of at most {LARGEST_SIZE} numbers, got {x.shape[-1]}")
    check_tensors(**tensors, weight=weight)
