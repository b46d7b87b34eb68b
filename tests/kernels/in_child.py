"""What the tests ask child processes to run: it must be importable there."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import torch
import triton
import triton.language as tl

from minillm.kernels import gemm
from minillm.kernels.build import Built, build
from minillm.kernels.few_rows import gemv_kernel
from minillm.kernels.gemm import tile_of_program
from minillm.kernels.gemm_builds import tile_build
from minillm.kernels.gemm_tiles import Tile


@triton.jit
def _order_kernel(  # type: ignore[no-untyped-def]
    out_ptr, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr
):
    program = tl.program_id(0)
    tile_m, tile_n = tile_of_program(program, m, n, BLOCK_M, BLOCK_N, GROUP_M)
    tl.store(out_ptr + 2 * program, tile_m)
    tl.store(out_ptr + 2 * program + 1, tile_n)


def order_of_programs(m: int, n: int, block_m: int, block_n: int, group_m: int) -> list[tuple[int, int]]:
    """(tile_m, tile_n) of programs 0, 1, 2 … for C (m, n)."""
    out = torch.full((triton.cdiv(m, block_m) * triton.cdiv(n, block_n), 2), -1, dtype=torch.int32)
    _order_kernel[(out.shape[0],)](out, m, n, BLOCK_M=block_m, BLOCK_N=block_n, GROUP_M=group_m)
    return [(i, j) for i, j in out.tolist()]


def build_tile(tile: Tile, dtype: str, capability: int, **changes: Any) -> Built:
    """`matmul_kernel` built with this tile, and with other fields of its `Build`."""
    return build(dataclasses.replace(tile_build(tile, dtype), **changes), capability)


def tuned_matmul(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, int]:
    """`tile_matmul` through the autotuner as on a GPU, and how many tiles were tried. The clock prefers the last."""
    tried = 0

    def clock(call: Any, quantiles: Any) -> list[float]:
        nonlocal tried
        call()
        tried += 1
        return [1.0 / tried] * 3

    tuned = gemm._tuned_kernel()
    tuned._do_bench = clock
    with mock.patch.object(gemm, "is_interpreting", lambda: False):
        return gemm.tile_matmul(a, b), tried


def gemv_beside_a_guard(n: int, k: int) -> bool:
    """Whether `gemv_kernel` leaves alone what lies behind its result."""
    guarded = torch.full((n + 200,), 7.0)
    x, b = torch.ones(k), torch.ones(k, n)
    gemv_kernel[(triton.cdiv(n, 32),)](x, b, guarded, n, k, 1, n, 1, 1, BLOCK_N=32, BLOCK_K=16)
    return bool((guarded[:n] == k).all() and (guarded[n:] == 7.0).all())
