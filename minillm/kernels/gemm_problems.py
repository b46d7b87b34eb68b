"""Matrix products that break kernels, their oracle, and the error that is allowed."""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.kernels.gates import Problem
from minillm.kernels.gemm_persistent import can_describe

ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # relative, of one rounding
SMALLEST = {torch.float32: 2.0**-149, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}  # numbers there are
TF32_ROUNDING = 2.0**-9  # of a product of factors of 10 bits, cut off rather than rounded


def exact_matmul(a: Tensor, b: Tensor, **_: object) -> Tensor:
    """The oracle: float64 on the CPU."""
    return a.cpu() @ b.cpu()


def matmul_bound(problem: Problem, exact: Tensor) -> Tensor:
    """|C − C64| ≤ 2 · (K + 1) · 2⁻²⁴ · |A| |B|, and one rounding of the result.

    The first factor is twice the textbook's: tensor cores cut off bits of the sum where an adder would round.
    """
    a, b = (arg.double().cpu().nan_to_num() for arg in problem.args[:2])
    dtype = problem.args[0].dtype
    share = 2 * (a.shape[1] + 1) * 2.0**-24 + (TF32_ROUNDING if problem.options.get("precision") == "tf32" else 0.0)
    return share * (a.abs() @ b.abs()) + ROUNDING[dtype] * exact.abs() + SMALLEST[dtype]


def matmul_problems(
    dtype: torch.dtype, device: torch.device, large: bool, *, max_rows: int | None = None
) -> list[Problem]:
    """Tails, single rows and columns, nothing at all, any strides, long sums, NaN and infinity."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).to(device)

    shapes = [
        (64, 64, 64),
        (100, 72, 40),
        (65, 129, 33),
        (17, 1, 50),
        (1, 1, 1),
        (5, 40, 1),
        (1, 200, 130),
        (7, 96, 256),
    ]
    shapes += [(16, 72, 100), (2, 70, 600), (48, 40, 2048), (0, 8, 8), (8, 0, 8), (8, 8, 0), (330, 200, 16)]
    if large:
        shapes += [
            (1000, 1111, 999),
            (1024, 1024, 1024),
            (1, 4096, 4096),
            (8, 4096, 4096),
            (4096, 2048, 512),
            (16, 512, 8192),
        ]
    problems = [Problem(f"{m}×{n}×{k}", (normal(m, k), normal(k, n))) for m, n, k in shapes]
    rows = 40 if max_rows is None else max_rows
    problems += [
        Problem("a by columns", (normal(72, rows).T, normal(72, 64))),
        Problem("b by columns", (normal(rows, 72), normal(64, 72).T)),
        Problem("both by columns", (normal(72, rows).T, normal(64, 72).T)),
        Problem("every second", (normal(2 * rows, 90)[::2, ::2], normal(45, 140)[:, ::2])),
        Problem("one row repeated", (normal(1, 48).expand(rows, 48), normal(48, 40))),
        Problem("large numbers", (200 * normal(rows, 64), 200 * normal(64, 48))),
        Problem("small numbers", (1e-4 * normal(rows, 64), 1e-3 * normal(64, 48))),
    ]
    a, b = normal(rows, 70), normal(70, 80)
    a[0, 3], b[2, 5], b[4, 7] = float("nan"), float("inf"), float("-inf")
    problems.append(Problem("NaN and infinity", (a, b)))
    if dtype == torch.float32:
        problems.append(Problem("tf32", (normal(rows, 96), normal(96, 64)), {"precision": "tf32"}))
    return [problem for problem in problems if max_rows is None or problem.args[0].shape[0] <= max_rows]


def described_problems(dtype: torch.dtype, device: torch.device, large: bool) -> list[Problem]:
    """Those that the copy engine can address."""
    step = 16 // dtype.itemsize
    return [
        problem
        for problem in matmul_problems(dtype, device, large)
        if can_describe(problem.args[0]) and can_describe(problem.args[1]) and problem.args[1].shape[1] % step == 0
    ]


def simt_problems(dtype: torch.dtype, device: torch.device, large: bool) -> list[Problem]:
    """Fewer and smaller: numba's simulator starts a thread for each of the GPU's."""
    problems = [problem for problem in matmul_problems(dtype, device, large) if not problem.options]
    if device.type == "cuda":
        return problems
    generator = torch.Generator().manual_seed(0)
    return [Problem("35×18×9", (torch.randn(35, 9, generator=generator), torch.randn(18, 9, generator=generator).T))]
