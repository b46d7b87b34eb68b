"""Products with one row or a few: what decoding multiplies (Triton).

Every weight is read once for 2 · m operations, so that bandwidth decides, and tensor cores only have to not be in the
way. One row needs none of them: `gemv_kernel` multiplies and adds elementwise.

      x  ▬▬▬▬▬▬▬▬▬▬▬▬▬▬▬▬▬▬▬▬ k ►        one program: BLOCK_N columns of B; each step multiplies a tile by a piece of
      Bᵀ ┌─────┬─────┬────────┐           x and adds into a tile of partial sums in registers; the sums along k are
         │ ▓▓▓ │ ▓▓▓ │  …     │ BLOCK_N   taken once, at the end
         └─────┴─────┴────────┘

Two to 16 rows are a "flat" product. Tensor cores multiply 16 × 8 × 16: as rows of A, m rows would fill up to 16, as
columns of Bᵀ Aᵀ only to 8. So Cᵀ = Bᵀ Aᵀ is made by the tile kernel, with BLOCK_N = 8 or 16 and K split over the SMs.
Source: FlashDecoding++ (https://arxiv.org/abs/2311.01282), section 4, which pads to 8 where libraries pad to 64.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.gemm import check_matmul, multiply_into
from minillm.kernels.gemm_tiles import FEW_ROWS, few_rows_tile
from minillm.kernels.launch import on_device

# (BLOCK_N, BLOCK_K): long in the direction in which B is contiguous. 4096 numbers are 32 a thread.
K_CONTIGUOUS, N_CONTIGUOUS = (8, 512), (128, 32)


@triton.jit
def gemv_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    b_ptr,
    y_ptr,
    n,
    k,
    stride_xk,
    stride_bk,
    stride_bn,
    stride_yn,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y (n) = x (k) B (k, n). Grid: (blocks of columns,)."""
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    b_columns = (columns % n).to(tl.int64)
    ks = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    for step_k in range(0, k, BLOCK_K):
        inside = step_k + ks < k
        x = tl.load(x_ptr + (step_k + ks).to(tl.int64) * stride_xk, mask=inside, other=0.0)
        b_tile_ptr = b_ptr + b_columns[:, None] * stride_bn + (step_k + ks)[None, :].to(tl.int64) * stride_bk
        b = tl.load(b_tile_ptr, mask=inside[None, :], other=0.0)
        acc += x[None, :].to(tl.float32) * b.to(tl.float32)
    y = tl.sum(acc, axis=1)
    tl.store(y_ptr + columns.to(tl.int64) * stride_yn, y.to(y_ptr.dtype.element_ty), mask=columns < n)


def few_row_matmul(a: Tensor, b: Tensor, *, precision: str = "ieee") -> Tensor:
    """C (m, n) = A B for m of 16 at most; arguments and errors as `gemm.tile_matmul`.

    Fastest with `b = weight.T` of a weight (out_features, in_features), the layout of a linear layer.
    """
    check_matmul(a, b, precision)
    m = a.shape[0]
    if m > FEW_ROWS:
        raise ValueError(f"expected at most {FEW_ROWS} rows, got {m}")
    c = a.new_empty((m, b.shape[1]))
    if m == 1:
        _gemv(a, b, c)
    else:
        multiply_into(c.T, b.T, a.T, precision=precision, tile=few_rows_tile(m, a.element_size()))
    return c


def _gemv(x: Tensor, b: Tensor, y: Tensor) -> None:
    k, n = b.shape
    if n == 0:
        return
    block_n, block_k = K_CONTIGUOUS if b.stride(0) == 1 else N_CONTIGUOUS
    with on_device(b):
        gemv_kernel[(triton.cdiv(n, block_n),)](
            x, b, y, n, k, x.stride(1), *b.stride(), y.stride(1), BLOCK_N=block_n, BLOCK_K=block_k, num_warps=4
        )
