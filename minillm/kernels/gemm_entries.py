"""The matrix products in the registry."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from minillm.kernels import gemm_builds as builds
from minillm.kernels.dispatch import matmul
from minillm.kernels.few_rows import few_row_matmul
from minillm.kernels.gates import KernelEntry, Problem
from minillm.kernels.gemm import tile_matmul
from minillm.kernels.gemm_persistent import persistent_matmul
from minillm.kernels.gemm_problems import (
    described_problems,
    exact_matmul,
    matmul_bound,
    matmul_problems,
    simt_problems,
)
from minillm.kernels.gemm_tiles import FEW_ROWS
from minillm.kernels.simt import SIMT_LADDER, simt_matmul


def square(size: int, dtype: torch.dtype) -> Problem:
    """Two random matrices on the GPU, for timing."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.float32).to(dtype) for _ in range(2))
    return Problem(f"{size}³", (a, b))


def one_row(dtype: torch.dtype) -> Problem:
    x, weight = (torch.randn(rows, 8192, device="cuda").to(dtype) for rows in (1, 8192))
    return Problem("1×8192×8192", (x, weight.T))


def entries() -> Sequence[KernelEntry]:
    """The Triton products, then the rungs of the thread-level ladder."""
    product = partial(KernelEntry, oracle=exact_matmul, bound=matmul_bound, vendor=torch.mm)
    triton_entries = [
        product("matmul", matmul, problems=matmul_problems, speed_problem=partial(square, 8192)),
        product(
            "tile_matmul",
            tile_matmul,
            problems=matmul_problems,
            builds=builds.tile_builds,
            all_builds=builds.all_tile_builds,
            speed_problem=partial(square, 4096),
        ),
        product(
            "persistent_matmul",
            persistent_matmul,
            problems=described_problems,
            builds=builds.persistent_builds,
            all_builds=builds.all_persistent_builds,
            speed_problem=partial(square, 8192),
        ),
        product(
            "few_row_matmul",
            few_row_matmul,
            problems=partial(matmul_problems, max_rows=FEW_ROWS),
            builds=builds.few_row_builds,
            all_builds=builds.few_row_builds,
            speed_problem=one_row,
        ),
    ]
    simt_entries = [
        product(
            f"simt_{name}",
            partial(simt_matmul, name),
            problems=simt_problems,
            dtypes=(torch.float32,),
            speed_problem=partial(square, 4096),
            mode="numba",
        )
        for name in SIMT_LADDER
    ]
    return triton_entries + simt_entries
