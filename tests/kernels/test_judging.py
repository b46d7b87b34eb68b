"""The gates can fail: what a wrong kernel or a wrong build looks like to them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
pytest.importorskip("numba")

from minillm.kernels import gates
from minillm.kernels.build import Built
from minillm.kernels.gates import compare
from minillm.kernels.gemm_problems import exact_matmul, matmul_bound, matmul_problems
from minillm.kernels.gemm_tiles import Tile
from minillm.kernels.processes import Worker
from minillm.kernels.registry import KERNELS
from tests.kernels.in_child import build_tile


def entry_for(function: Callable[..., Tensor]) -> gates.KernelEntry:
    return dataclasses.replace(KERNELS["tile_matmul"], function=function)


def torch_matmul(a: Tensor, b: Tensor, precision: str = "ieee") -> Tensor:
    return a @ b


def failures(function: Callable[..., Tensor], dtype: torch.dtype = torch.float32) -> list[str]:
    return [check.problem for check in gates.check_numbers(entry_for(function), dtype) if not check.passed]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_right_product_passes(dtype: torch.dtype) -> None:
    assert failures(torch_matmul, dtype) == []


def with_last_k_dropped(a: Tensor, b: Tensor, precision: str = "ieee") -> Tensor:
    return a[:, : a.shape[1] // 8 * 8] @ b[: b.shape[0] // 8 * 8]


def in_half(a: Tensor, b: Tensor, precision: str = "ieee") -> Tensor:
    return (a.bfloat16() @ b.bfloat16()).float()


def ignoring_strides(a: Tensor, b: Tensor, precision: str = "ieee") -> Tensor:
    flat = a.as_strided(a.shape, (a.shape[1], 1)) if a.numel() and a.is_contiguous() is False else a
    return flat @ b


def in_place(a: Tensor, b: Tensor, precision: str = "ieee") -> Tensor:
    c = a @ b
    a += 1
    return c


def without_nan(a: Tensor, b: Tensor, precision: str = "ieee") -> Tensor:
    return (a @ b).nan_to_num()


def in_double(a: Tensor, b: Tensor, precision: str = "ieee") -> Tensor:
    return a.double() @ b.double()


def transposed(a: Tensor, b: Tensor, precision: str = "ieee") -> Tensor:
    return (a @ b).T


WRONG = [with_last_k_dropped, in_half, in_place, without_nan, in_double, transposed]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_product_fails(wrong: Callable[..., Tensor]) -> None:
    assert failures(wrong)


def test_only_strided_problems_find_ignored_strides() -> None:
    found = [
        check.problem for check in gates.check_numbers(entry_for(ignoring_strides), torch.float32) if not check.passed
    ]
    assert set(found) <= {"a by columns", "both by columns", "every second", "one row repeated"} and found


def test_a_changed_argument_is_found() -> None:
    checks = gates.check_numbers(entry_for(in_place), torch.float32)
    assert "argument 0 was changed" in {check.problem_found for check in checks}


def test_an_exception_is_an_outcome() -> None:
    def broken(a: Tensor, b: Tensor, precision: str = "ieee") -> Tensor:
        raise RuntimeError("no")

    checks = gates.check_numbers(entry_for(broken), torch.float32)
    assert len(checks) > 10 and all(check.problem_found == "RuntimeError: no" for check in checks)


def test_compare_wants_special_values_in_their_places() -> None:
    exact = torch.tensor([1.0, math.nan, math.inf, 1e6], dtype=torch.float64)
    bound = torch.full((4,), 1e-3, dtype=torch.float64)
    half = torch.tensor([1.0, math.nan, math.inf, math.inf], dtype=torch.float16)  # 1e6 overflows
    assert compare(half, exact, bound) == (0.0, 0.0, "")
    assert "nan at [0]" in compare(torch.tensor([math.nan, math.nan, math.inf, 1e6]), exact, bound)[2]
    assert "0.0 at [1]" in compare(torch.tensor([1.0, 0.0, math.inf, 1e6]), exact, bound)[2]
    assert "-inf at [2]" in compare(torch.tensor([1.0, math.nan, -math.inf, 1e6]), exact, bound)[2]
    error, share, found = compare(torch.tensor([1.002, math.nan, math.inf, 1e6]), exact, bound)
    assert error == pytest.approx(0.002, rel=1e-3) and share == pytest.approx(2, rel=1e-3) and not found
    assert "shape (1,)" in compare(torch.ones(1), exact, bound)[2]


def test_a_bound_of_zero_allows_no_error() -> None:
    exact, bound = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert compare(torch.ones(1), exact, bound)[1] == 0
    assert compare(torch.full((1,), 1.1), exact, bound)[1] == math.inf


def test_the_bound_grows_with_the_sum_and_for_tf32() -> None:
    problems = {problem.name: problem for problem in matmul_problems(torch.float32, torch.device("cpu"), False)}
    long = problems["48×40×2048"]
    bound = matmul_bound(long, exact_matmul(*(arg.double() for arg in long.args)))
    magnitude = long.args[0].double().abs() @ long.args[1].double().abs()
    assert bool((bound >= 2048 * 2.0**-24 * magnitude).all()) and bool((bound <= 2100 * 2.0**-23 * magnitude).all())
    tf32 = problems["tf32"]
    exact = exact_matmul(*(arg.double() for arg in tf32.args))
    loose = matmul_bound(tf32, exact)
    assert bool((loose > 10 * matmul_bound(dataclasses.replace(tf32, options={}), exact)).all())


def test_a_build_that_does_not_fit_or_lacks_tensor_cores() -> None:
    good = Built("k", 80, 64, 0, 1000, 163 * 1024, {"mma.sync": 8}, ())
    assert good.passed
    large = dataclasses.replace(good, shared_bytes=163 * 1024 + 1)
    assert not large.passed and "shared memory" in large.problem
    slow = dataclasses.replace(good, missing=("mma.sync",))
    assert not slow.passed and "no mma.sync" in slow.problem


def test_the_build_gate_sees_what_is_missing_and_too_large(compiler: Worker) -> None:
    huge = compiler.call(build_tile, Tile(128, 256, 64, 8, 5), "fp16", 80)
    assert huge.shared_bytes > huge.shared_limit and "shared memory" in huge.problem
    without = compiler.call(build_tile, Tile(64, 64, 32, 4, 3), "fp32", 80, expects={80: ("mma.sync",)})
    assert without.problem == "no mma.sync in its code"
    crowded = compiler.call(build_tile, Tile(64, 64, 16, 1, 2), "fp32", 80)
    assert crowded.spilled_bytes > 0 and crowded.registers == 255
    with pytest.raises(ValueError, match="neither typed nor constant"):
        compiler.call(build_tile, Tile(64, 64, 32, 4, 3), "fp32", 80, signature={"a_ptr": "*fp32"})


def test_an_interpreter_cannot_build(interpreter: Worker) -> None:
    from minillm.kernels import registry

    with pytest.raises(ValueError, match="can't compile"):
        interpreter.call(registry.check_builds, "tile_matmul", 80)


def test_speed_needs_a_gpu_and_a_vendor() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="there is none"):
            gates.measure_speed(KERNELS["matmul"], torch.float16)
    with pytest.raises(ValueError, match="nothing to be compared"):
        gates.measure_speed(dataclasses.replace(KERNELS["matmul"], vendor=None), torch.float16)
