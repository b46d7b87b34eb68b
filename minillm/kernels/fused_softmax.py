"""Softmax over rows in one launch, and its gradient (Triton).

    a row that fits a block                         a longer one, BLOCK numbers at a time
    ┌──────────────────────┐                        ┌───────┬───────┬───────┬───┐
    │ ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓ │                        │ ▓▓▓ ► │       │       │   │  1: top, total, online
    └──────────────────────┘                        │ ▓▓▓ ► │       │       │   │  2: exp(x − top) / total
    loaded once, kept in registers                  └───────┴───────┴───────┴───┘

                                    launches    numbers read + written, for N of x
    written out in eager torch          5        8 N    maximum 1, difference 2, exp 2, sum 1, quotient 2
    a row in a block                    1        2 N
    a longer row                        1        3 N    the second reading may still find it in L2
    backward: one block / longer        1        3 N / 5 N

Whatever the length, the state of a row is two numbers: the largest so far and the sum of exponentials against it, which
is repaired when the largest grows. Milakov and Gimelshein 2018 (arXiv:1805.02867), algorithm 3. A row of −inf alone
gives 0, as everywhere in this course; torch gives NaN. With +inf or NaN in it a row is NaN, as in torch.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from minillm.kernels.fused_rows import as_rows, row_block, warps_for
from minillm.kernels.launch import check_tensors, on_device

LARGEST_BLOCK = 16384  # of a row in one piece
BLOCK_OF_LONG_ROW = 4096


@triton.jit
def add_to_total(top, total, x):  # type: ignore[no-untyped-def]
    """(top, total) of a row after the block x: total = sum(exp(x − top)), against 0 while all numbers are −inf."""
    new_top = tl.maximum(top, tl.max(x, axis=0))
    safe_top = tl.where(new_top == float("-inf"), 0.0, new_top)  # −inf − (−inf) would be NaN
    return new_top, total * tl.exp(top - safe_top) + tl.sum(tl.exp(x - safe_top), axis=0)


@triton.jit
def softmax_kernel(  # type: ignore[no-untyped-def]
    x_ptr, y_ptr, n, stride_xr, stride_xc, IN_ONE_BLOCK: tl.constexpr, BLOCK: tl.constexpr
):
    """One row of y, contiguous. Grid: (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * stride_xr
    y_ptr += row * n
    columns = tl.arange(0, BLOCK).to(tl.int64)
    top = tl.full((), float("-inf"), dtype=tl.float32)
    total = tl.full((), 0.0, dtype=tl.float32)
    if IN_ONE_BLOCK:
        x = tl.load(x_ptr + columns * stride_xc, mask=columns < n, other=float("-inf")).to(tl.float32)
        top, total = add_to_total(top, total, x)
        store_weights(y_ptr + columns, x, top, total, columns < n)
    else:
        for first in range(0, n, BLOCK):
            inside = first + columns < n
            x = tl.load(x_ptr + (first + columns) * stride_xc, mask=inside, other=float("-inf")).to(tl.float32)
            top, total = add_to_total(top, total, x)
        for first in range(0, n, BLOCK):
            inside = first + columns < n
            x = tl.load(x_ptr + (first + columns) * stride_xc, mask=inside, other=float("-inf")).to(tl.float32)
            store_weights(y_ptr + first + columns, x, top, total, inside)


@triton.jit
def store_weights(y_ptrs, x, top, total, inside):  # type: ignore[no-untyped-def]
    safe_top = tl.where(top == float("-inf"), 0.0, top)
    y = tl.exp(x - safe_top) / tl.where(total == 0.0, 1.0, total)
    tl.store(y_ptrs, y.to(y_ptrs.dtype.element_ty), mask=inside)


@triton.jit
def softmax_backward_kernel(  # type: ignore[no-untyped-def]
    y_ptr, dy_ptr, dx_ptr, n, stride_gr, stride_gc, IN_ONE_BLOCK: tl.constexpr, BLOCK: tl.constexpr
):
    """One row of dx = y · (dy − sum(dy · y)); y and dx contiguous, dy of any strides (g). Grid: (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    y_ptr += row * n
    dx_ptr += row * n
    dy_ptr += row * stride_gr
    columns = tl.arange(0, BLOCK).to(tl.int64)
    if IN_ONE_BLOCK:
        inside = columns < n
        y = tl.load(y_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + columns * stride_gc, mask=inside, other=0.0).to(tl.float32)
        dx = y * (dy - tl.sum(dy * y, axis=0))
        tl.store(dx_ptr + columns, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    else:
        acc = tl.zeros((BLOCK,), dtype=tl.float32)
        for first in range(0, n, BLOCK):
            inside = first + columns < n
            y = tl.load(y_ptr + first + columns, mask=inside, other=0.0).to(tl.float32)
            acc += y * tl.load(dy_ptr + (first + columns) * stride_gc, mask=inside, other=0.0).to(tl.float32)
        total = tl.sum(acc, axis=0)
        for first in range(0, n, BLOCK):
            inside = first + columns < n
            y = tl.load(y_ptr + first + columns, mask=inside, other=0.0).to(tl.float32)
            dy = tl.load(dy_ptr + (first + columns) * stride_gc, mask=inside, other=0.0).to(tl.float32)
            tl.store(dx_ptr + first + columns, (y * (dy - total)).to(dx_ptr.dtype.element_ty), mask=inside)


def softmax(x: Tensor) -> Tensor:
    """exp(x) / sum(exp(x)) over the last axis, of any length, in one launch; differentiable once.

    x (..., n)  float32, float16 or bfloat16 on one GPU (or the CPU where Triton interprets), of any strides

    Computed in float32 and rounded once. Returns a contiguous tensor of x's dtype; a row of −inf alone gives 0 (torch:
    NaN), and so does its gradient. Reads and writes 2 · numel · itemsize bytes (3 for rows of more than 16384 numbers)
    against 8 in five launches where it is written out; torch's own softmax is fused as well. Limited by memory. Raises
    ValueError for other dtypes and devices, and for a tensor without axes.
    """
    if x.dim() == 0:
        raise ValueError("expected x (..., n), got a tensor without axes")
    check_tensors(x=x)
    y: Tensor = _Softmax.apply(x, LARGEST_BLOCK)
    return y


def softmax_forward(x: Tensor, largest: int = LARGEST_BLOCK) -> Tensor:
    """`softmax_kernel` without checks; rows of more than `largest` numbers go in blocks."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel():
        rows, n = as_rows(x), x.shape[-1]
        block, in_one_block = _block(n, largest)
        with on_device(x):
            softmax_kernel[(rows.shape[0],)](
                rows, y, n, *rows.stride(), IN_ONE_BLOCK=in_one_block, BLOCK=block, num_warps=warps_for(block)
            )
    return y


def softmax_backward(y: Tensor, dy: Tensor, largest: int = LARGEST_BLOCK) -> Tensor:
    """`softmax_backward_kernel` without checks; y as `softmax_forward` returned it."""
    dx = torch.empty_like(y)
    if y.numel():
        rows, n = as_rows(dy), y.shape[-1]
        block, in_one_block = _block(n, largest)
        with on_device(y):
            softmax_backward_kernel[(rows.shape[0],)](
                y, rows, dx, n, *rows.stride(), IN_ONE_BLOCK=in_one_block, BLOCK=block, num_warps=warps_for(block)
            )
    return dx


def _block(n: int, largest: int) -> tuple[int, bool]:
    """(block, whether it holds the row)."""
    return (row_block(n, largest=largest), True) if n <= largest else (min(BLOCK_OF_LONG_ROW, largest), False)


class _Softmax(torch.autograd.Function):
    """Keeps its result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, largest: int) -> Tensor:
        y = softmax_forward(x, largest)
        ctx.save_for_backward(y)
        ctx.largest = largest
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return softmax_backward(y, dy, ctx.largest), None
