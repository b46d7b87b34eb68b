"""silu(gate) · up in one launch, and its gradients (Triton).

      gate  ┌────────┬────────┬──────┐        a program a block of one row: 3 numbers pass through memory for each
            │        │ ▓▓▓▓▓▓ │      │  ─┐    result, in eager torch 5, since silu(gate) is written and read again
      up    ├────────┼────────┼──────┤   ├──►  y = gate · sigmoid(gate) · up
            │        │ ▓▓▓▓▓▓ │      │  ─┘
            └────────┴────────┴──────┘
              BLOCK

                                      launches    numbers read + written, for N results
    forward, eager                        2        5 N    silu 2, product 3
    forward, fused                        1        3 N
    backward, eager                       3        9 N    two products 6, silu's gradient 3; silu(gate) is kept
    backward, fused                       1        5 N    the sigmoid is computed again, nothing is kept but inputs

Shazeer 2020 (arXiv:2002.05202), eq. 6. Gate and up may be views: of one matrix made by a product with both weights
side by side they are halves, and `swiglu_halves` returns the gradient of that matrix in one piece.
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

LARGEST_BLOCK = 2048


@triton.jit
def swiglu_kernel(  # type: ignore[no-untyped-def]
    gate_ptr, up_ptr, y_ptr, n, stride_gr, stride_gc, stride_ur, stride_uc, stride_yr, BLOCK: tl.constexpr
):
    """y (rows, n), rows of any stride, from gate and up of any strides. Grid: (rows · blocks of a row,)."""
    row, columns, inside = block_of_row(n, BLOCK)
    gate = tl.load(gate_ptr + row * stride_gr + columns * stride_gc, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * stride_ur + columns * stride_uc, mask=inside, other=0.0).to(tl.float32)
    y = gate * sigmoid(gate) * up
    tl.store(y_ptr + row * stride_yr + columns, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward_kernel(  # type: ignore[no-untyped-def]
    gate_ptr,
    up_ptr,
    dy_ptr,
    d_gate_ptr,
    d_up_ptr,
    n,
    stride_gr,
    stride_gc,
    stride_ur,
    stride_uc,
    stride_yr,
    stride_yc,
    stride_dr,
    BLOCK: tl.constexpr,
):
    """d_gate and d_up, both with rows `stride_dr` apart. Grid: (rows · blocks of a row,)."""
    row, columns, inside = block_of_row(n, BLOCK)
    gate = tl.load(gate_ptr + row * stride_gr + columns * stride_gc, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * stride_ur + columns * stride_uc, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + row * stride_yr + columns * stride_yc, mask=inside, other=0.0).to(tl.float32)
    s = sigmoid(gate)
    silu = gate * s
    d_gate = dy * up * (s + silu * (1.0 - s))
    d_up = dy * silu
    places = row * stride_dr + columns
    tl.store(d_gate_ptr + places, d_gate.to(d_gate_ptr.dtype.element_ty), mask=inside)
    tl.store(d_up_ptr + places, d_up.to(d_up_ptr.dtype.element_ty), mask=inside)


@triton.jit
def block_of_row(n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """(row, columns, which of them exist) of this program: blocks of a row stand together."""
    blocks = tl.cdiv(n, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    columns = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    return row, columns.to(tl.int64), columns < n


@triton.jit
def sigmoid(x):  # type: ignore[no-untyped-def]
    """1 / (1 + exp(−x)): 0 where exp overflows, since 1 / ∞ is."""
    return 1.0 / (1.0 + tl.exp(-x))


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, elementwise, in one launch; differentiable once in both.

    gate, up (..., n)  one shape; float32, float16 or bfloat16 on one GPU (or the CPU where Triton interprets), of any
                       strides

    Computed in float32 and rounded once (eager torch rounds silu(gate), too). Returns a contiguous tensor of the same
    dtype. Reads and writes 3 · numel · itemsize bytes against 5, 1 launch against 2; 5 against 9 and 1 against 3
    backward: limited by memory. Raises ValueError for tensors that don't fit together.
    """
    if gate.shape != up.shape or gate.dim() == 0:
        raise ValueError(f"expected gate and up (..., n) of one shape, got {tuple(gate.shape)} and {tuple(up.shape)}")
    check_tensors(gate=gate, up=up)
    y: Tensor = _SwiGlu.apply(gate, up)
    return y


def swiglu_halves(gate_up: Tensor) -> Tensor:
    """`swiglu(*gate_up.chunk(2, dim=-1))`: gate_up (..., 2 · n) -> (..., n).

    Its gradient is one contiguous matrix, written once; autograd would pad that of each half with zeros and add them,
    5 N numbers more. Same traffic, launches and limits as `swiglu` otherwise. Raises ValueError for an odd last axis.
    """
    if gate_up.dim() == 0 or gate_up.shape[-1] % 2:
        raise ValueError(f"expected gate_up (..., 2 · n), got {tuple(gate_up.shape)}")
    check_tensors(gate_up=gate_up)
    y: Tensor = _SwiGluHalves.apply(gate_up)
    return y


def swiglu_forward(gate: Tensor, up: Tensor) -> Tensor:
    """`swiglu_kernel` without checks."""
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if y.numel() == 0:
        return y
    gate, up = as_rows(gate), as_rows(up)
    rows, n = gate.shape
    block = row_block(n, largest=LARGEST_BLOCK)
    with on_device(y):
        swiglu_kernel[(rows * triton.cdiv(n, block),)](
            gate, up, y, n, *gate.stride(), *up.stride(), n, BLOCK=block, num_warps=warps_for(block)
        )
    return y


def swiglu_backward(gate: Tensor, up: Tensor, dy: Tensor, d_gate: Tensor, d_up: Tensor) -> None:
    """`swiglu_backward_kernel` into d_gate and d_up (rows, n), whose rows are equally far apart and dense."""
    if d_gate.numel() == 0:
        return
    gate, up, dy = as_rows(gate), as_rows(up), as_rows(dy)
    rows, n = gate.shape
    block = row_block(n, largest=LARGEST_BLOCK)
    with on_device(dy):
        swiglu_backward_kernel[(rows * triton.cdiv(n, block),)](
            gate, up, dy, d_gate, d_up, n, *gate.stride(), *up.stride(), *dy.stride(), d_gate.stride(0),
            BLOCK=block, num_warps=warps_for(block),
        )  # fmt: skip


class _SwiGlu(torch.autograd.Function):
    """Keeps its inputs, which the products before it made."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return swiglu_forward(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        d_gate, d_up = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (gate, up))
        swiglu_backward(gate, up, dy, as_rows(d_gate), as_rows(d_up))
        return d_gate, d_up


class _SwiGluHalves(torch.autograd.Function):
    """Keeps its input."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return swiglu_forward(*gate_up.chunk(2, dim=-1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        (gate_up,) = ctx.saved_tensors
        d_gate_up = torch.empty(gate_up.shape, dtype=gate_up.dtype, device=gate_up.device)
        (gate, up), (d_gate, d_up) = gate_up.chunk(2, dim=-1), as_rows(d_gate_up).chunk(2, dim=-1)
        swiglu_backward(gate, up, dy, d_gate, d_up)
        return d_gate_up
