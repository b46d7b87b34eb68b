"""The gradients of RMSNorm: the rows' own in one launch, the weight's by a sum in two stages (Triton).

    ┌──────────────────────┐  a program: several rows, one after the other
    │ ▓▓▓ ▼                │  program 0   dh = r · (g − ĥ · mean(g · ĥ)),   g = dy · weight,  ĥ = h · r
    │ ▓▓▓ ▼                │              part[0] += dy · ĥ                 in registers
    ├──────────────────────┤
    │ ▓▓▓ ▼                │  program 1   part[1] += dy · ĥ
    └──────────────────────┘
      dweight = part[0] + part[1] + …     in a second launch

h is what was normed, r = 1 / sqrt(mean(h²) + eps) a number a row that the forward pass kept. Every row adds to dweight:
with atomics the order of the additions, and so the last bits, would change from run to run. Here each sum is taken by
one program in a fixed order; on one GPU the same bits every time (how many parts there are follows from its SMs).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.fused_rows import as_rows, row_block, warps_for
from minillm.kernels.launch import num_sms, on_device

LARGEST_SIZE = 16384  # numbers of a row: more would not fit into the registers of a program
PROGRAMS_PER_SM = 4  # each ends with a row of partial sums that must be written and added up
PART_ROWS, PART_COLUMNS = 32, 64  # a step of the final sum


@triton.jit
def norm_backward_kernel(  # type: ignore[no-untyped-def]
    h_ptr,
    weight_ptr,
    inv_rms_ptr,
    dy_ptr,
    d_residual_ptr,
    dh_ptr,
    parts_ptr,
    num_rows,
    rows_each,
    n,
    stride_hr,
    stride_hc,
    stride_w,
    stride_yr,
    stride_yc,
    stride_rr,
    stride_rc,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dh of `rows_each` rows, contiguous, and their sum of dy · ĥ: parts (programs, n) float32.

    With HAS_RESIDUAL the gradient that arrives at the sum itself is added to dh. Grid: (programs,).
    """
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < n
    part = tl.zeros((BLOCK,), dtype=tl.float32)
    first = program * rows_each
    for row_number in range(first, min(first + rows_each, num_rows)):
        row = tl.full((), row_number, dtype=tl.int64)
        h = tl.load(h_ptr + row * stride_hr + columns * stride_hc, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row * stride_yr + columns * stride_yc, mask=inside, other=0.0).to(tl.float32)
        inv_rms = tl.load(inv_rms_ptr + row)
        normed = h * inv_rms
        part += dy * normed
        # Again for every row, from L1: kept in registers, it would push other numbers out of them.
        weight = tl.load(weight_ptr + columns * stride_w, mask=inside, other=0.0)
        g = dy * weight.to(tl.float32)
        dh = inv_rms * (g - normed * (tl.sum(g * normed, axis=0) / n))
        if HAS_RESIDUAL:
            d_residual = tl.load(d_residual_ptr + row * stride_rr + columns * stride_rc, mask=inside, other=0.0)
            dh += d_residual.to(tl.float32)
        tl.store(dh_ptr + row * n + columns, dh.to(dh_ptr.dtype.element_ty), mask=inside)
    tl.store(parts_ptr + program.to(tl.int64) * n + columns, part, mask=inside)


@triton.jit
def sum_parts_kernel(  # type: ignore[no-untyped-def]
    parts_ptr, d_weight_ptr, num_parts, n, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """d_weight (n,) = the sum of parts (num_parts, n), BLOCK_R rows at a time. Grid: (blocks of columns,)."""
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    rows = tl.arange(0, BLOCK_R)
    acc = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for first in range(0, num_parts, BLOCK_R):
        places = (first + rows)[:, None].to(tl.int64) * n + columns[None, :]
        inside = (first + rows < num_parts)[:, None] & (columns < n)[None, :]
        acc += tl.load(parts_ptr + places, mask=inside, other=0.0)
    d_weight = tl.sum(acc, axis=0)
    tl.store(d_weight_ptr + columns, d_weight.to(d_weight_ptr.dtype.element_ty), mask=columns < n)


def norm_backward(
    h: Tensor, weight: Tensor, inv_rms: Tensor, dy: Tensor, d_residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(dh, d_weight), contiguous: `norm_backward_kernel` and the sum of its parts. h is what was normed."""
    dh = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    rows, n = as_rows(h), h.shape[-1]
    if h.numel() == 0:
        return dh, torch.zeros_like(weight, memory_format=torch.contiguous_format)
    d_weight = torch.empty(n, dtype=weight.dtype, device=weight.device)
    dy_rows = as_rows(dy)
    added = dy_rows if d_residual is None else as_rows(d_residual)
    rows_each = triton.cdiv(rows.shape[0], PROGRAMS_PER_SM * num_sms(h.device))
    num_parts = triton.cdiv(rows.shape[0], rows_each)
    parts = torch.empty((num_parts, n), dtype=torch.float32, device=h.device)
    block = row_block(n, largest=LARGEST_SIZE)
    with on_device(h):
        norm_backward_kernel[(num_parts,)](
            rows, weight, inv_rms, dy_rows, added, dh, parts, rows.shape[0], rows_each, n, *rows.stride(),
            weight.stride(0), *dy_rows.stride(), *added.stride(),
            HAS_RESIDUAL=d_residual is not None, BLOCK=block, num_warps=warps_for(block),
        )  # fmt: skip
        sum_parts_kernel[(triton.cdiv(n, PART_COLUMNS),)](
            parts, d_weight, num_parts, n, BLOCK_R=PART_ROWS, BLOCK_C=PART_COLUMNS
        )
    return dh, d_weight
