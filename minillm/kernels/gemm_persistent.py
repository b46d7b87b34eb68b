"""C = A B by programs that stay: as many as there are SMs, each making one tile of C after the other (Triton).

      one program a tile                          persistent
      SM 0  ▒ load ███ compute ▒ store │ ▒ load    ▒ load ████ compute ████ compute ████ …
      SM 1  ▒ load ███ compute ▒ store │ ▒ load    ▒ load ████ compute ████ compute ████ …
                                                      the next tile's loads run during this tile's compute and store

The operands come as tensor descriptors: the kernel says "the tile at (row, k)" and computes no address. On Hopper
(sm_90) the copy engine, TMA, then fetches whole tiles into shared memory, with zeros beyond the edges, and the tensor
cores (wgmma) read from there. For Ampere (sm_80) the compiler turns the same descriptors into pointers and masks, right
but not pipelined: `dispatch` leaves those GPUs to `gemm`. Warp specialisation, warps that only load, is left out:
Triton 3.7's `tl.range(warp_specialize=True)` is for Blackwell.

Reference, by others: on a Hopper GPU, making a warp-specialised kernel persistent took it from 86 to 97 % of torch's
matmul, measured at one shape, 65536 × 1024 × 1024 (facebookexperimental/triton#1038).
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.gemm import check_matmul, launch_options, tile_of_program
from minillm.kernels.gemm_tiles import INTERPRETER_TILE, Tile, fitting_persistent_tiles
from minillm.kernels.launch import capability, is_interpreting, num_sms, on_device


@triton.jit
def matmul_persistent_kernel(  # type: ignore[no-untyped-def]
    a_desc,
    b_desc,
    c_desc,
    m,
    n,
    k,
    num_programs,
    A_BY_COLUMNS: tl.constexpr,
    B_BY_COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Tiles program, program + num_programs, … of C. Grid: (num_programs,).

    A descriptor's last axis is contiguous: an operand stored by columns is described as its transpose, and its tile is
    turned after loading, which costs nothing: the tensor cores read shared memory in either direction.
    """
    num_tiles = tl.cdiv(m, BLOCK_M) * tl.cdiv(n, BLOCK_N)
    for program in tl.range(tl.program_id(0), num_tiles, num_programs, flatten=True):
        tile_m, tile_n = tile_of_program(program, m, n, BLOCK_M, BLOCK_N, GROUP_M)
        row, column = tile_m * BLOCK_M, tile_n * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for step_k in range(0, k, BLOCK_K):
            if A_BY_COLUMNS:
                a = a_desc.load([step_k, row]).T
            else:
                a = a_desc.load([row, step_k])
            if B_BY_COLUMNS:
                b = b_desc.load([column, step_k]).T
            else:
                b = b_desc.load([step_k, column])
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
        c_desc.store([row, column], acc.to(c_desc.dtype))


def persistent_matmul(a: Tensor, b: Tensor, *, precision: str = "ieee", tile: Tile | None = None) -> Tensor:
    """C (m, n) = A B by the kernel of this file; arguments and errors as `gemm.tile_matmul`.

    Needs Triton 3.4 or later; both operands must be `can_describe`. `tile=None` takes the first of
    `gemm_tiles.PERSISTENT_TILES` that fits.
    """
    check_matmul(a, b, precision)
    (m, k), n = a.shape, b.shape[1]
    if k == 0 or not (can_describe(a) and can_describe(b) and m > 0 and n > 0 and n * a.element_size() % 16 == 0):
        raise ValueError(
            "tensor descriptors want matrices that aren't empty, with rows or columns contiguous, the other stride "
            f"and n a multiple of 16 bytes, aligned to 16 bytes; got a {tuple(a.shape)} strides {a.stride()}, "
            f"b {tuple(b.shape)} strides {b.stride()}, {a.dtype}"
        )
    c = a.new_empty((m, n))
    if tile is None:
        fitting = fitting_persistent_tiles(itemsize=a.element_size(), capability=capability(a.device))
        if not fitting and not is_interpreting():
            raise ValueError(f"no persistent tile fits into the shared memory of sm_{capability(a.device)}")
        tile = INTERPRETER_TILE if is_interpreting() else fitting[0]
    num_tiles = triton.cdiv(m, tile.block_m) * triton.cdiv(n, tile.block_n)
    num_programs = min(num_sms(a.device), num_tiles)
    a_by_columns, b_by_columns = a.stride(1) != 1, b.stride(1) != 1
    with on_device(a):
        matmul_persistent_kernel[(num_programs,)](
            _describe(a, tile.block_m, tile.block_k, a_by_columns),
            _describe(b, tile.block_k, tile.block_n, b_by_columns),
            _describe(c, tile.block_m, tile.block_n, False),
            m,
            n,
            k,
            num_programs,
            A_BY_COLUMNS=a_by_columns,
            B_BY_COLUMNS=b_by_columns,
            PRECISION=precision,
            **launch_options(tile),
        )
    return c


def can_describe(matrix: Tensor) -> bool:
    """Whether the copy engine can address this matrix, or its transpose."""
    if matrix.dim() != 2 or matrix.numel() == 0 or matrix.data_ptr() % 16:
        return False
    step = matrix.stride(0) if matrix.stride(1) == 1 else matrix.stride(1)
    return 1 in matrix.stride() and step > 0 and step * matrix.element_size() % 16 == 0


def _describe(matrix: Tensor, block_rows: int, block_columns: int, by_columns: bool) -> Any:
    from triton.tools.tensor_descriptor import TensorDescriptor

    if by_columns:
        return TensorDescriptor.from_tensor(matrix.T, [block_columns, block_rows])
    return TensorDescriptor.from_tensor(matrix, [block_rows, block_columns])
