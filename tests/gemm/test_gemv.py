"""`few_row_linear` against float64, with the bound |C - C64| <= K · 2⁻²⁴ · |A| |B| of verification.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("numba")

from minillm.gemm.gemv import can_multiply, few_row_linear, threads_for


def check(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor) -> None:
    x64, weight64 = x.double(), weight.double()
    exact, magnitude = x64 @ weight64.T, x64.abs() @ weight64.abs().T
    if bias is not None:
        exact, magnitude = exact + bias.double(), magnitude + bias.double().abs()
    bound = (weight.shape[1] + 1) * 2.0**-24 * magnitude
    if x.dtype == torch.bfloat16:
        bound = bound + 2.0**-8 * exact.abs()  # half a unit in the last of 8 bits
    assert y.dtype == x.dtype and y.shape == exact.shape
    assert bool(((y.double() - exact).abs() <= bound).all())


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    in_features=st.integers(1, 70),
    out_features=st.integers(1, 40),
    with_bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    num_threads=st.sampled_from([0, 1, 2, 3]),
    seed=st.integers(0, 2**16),
)
def test_equals_float64(
    rows: int,
    in_features: int,
    out_features: int,
    with_bias: bool,
    dtype: torch.dtype,
    num_threads: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, in_features, generator=generator).to(dtype)
    weight = torch.randn(out_features, in_features, generator=generator).to(dtype)
    bias = torch.randn(out_features, generator=generator).to(dtype) if with_bias else None
    check(x, weight, bias, few_row_linear(x, weight, bias, num_threads=num_threads))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("out_features", "in_features"), [(513, 777), (64, 2944), (1, 5000)])
def test_larger_and_threaded(out_features: int, in_features: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, in_features).to(dtype)
    weight, bias = torch.randn(out_features, in_features).to(dtype), torch.randn(out_features).to(dtype)
    check(x, weight, bias, few_row_linear(x, weight, bias, num_threads=2))


@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (2, 1, 2)])
def test_leading_axes(leading: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(*leading, 33), torch.randn(21, 33)
    y = few_row_linear(x, weight)
    assert y.shape == (*leading, 21)
    torch.testing.assert_close(y, x @ weight.T, rtol=1e-5, atol=1e-5)


def test_rows_need_not_be_contiguous() -> None:
    torch.manual_seed(2)
    wide, weight = torch.randn(33, 6), torch.randn(8, 33)
    for x in (
        wide.T,
        torch.randn(4, 66)[:, ::2],
        torch.randn(33)[None].expand(3, 33),
        torch.randn(2, 7, 33)[:, -1],
    ):
        check(x, weight, None, few_row_linear(x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 4, 5])
def test_nan_and_infinity_pass_through(rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    x, weight = torch.rand(rows, 19).to(dtype) + 0.5, torch.rand(6, 19).to(dtype) + 0.5
    weight[1, 18] = float("nan")
    weight[2, 0] = float("inf")
    weight[3, 7], weight[3, 9] = float("inf"), float("-inf")
    weight[4, 3] = float("-inf")
    y = few_row_linear(x, weight)
    assert y[:, 0].isfinite().all() and y[:, 5].isfinite().all()
    assert y[:, 1].isnan().all() and y[:, 3].isnan().all()
    assert (y[:, 2] == float("inf")).all() and (y[:, 4] == float("-inf")).all()
    x[-1, 5] = float("nan")
    assert few_row_linear(x, weight)[-1].isnan().all()


def test_bfloat16_rounds_to_nearest_even() -> None:
    """With one input of 1 and the bias as a second addend, the result is a sum rounded once."""
    torch.manual_seed(4)
    weight = torch.randn(4096, 1).to(torch.bfloat16)
    bias = torch.randn(4096).to(torch.bfloat16)
    y = few_row_linear(torch.ones(1, 1, dtype=torch.bfloat16), weight, bias)
    expected = (weight.float()[:, 0] + bias.float()).to(torch.bfloat16)
    assert torch.equal(y[0], expected)


def test_bfloat16_overflow_and_quiet_nan() -> None:
    largest = torch.finfo(torch.bfloat16).max
    one = torch.ones(1, 2, dtype=torch.bfloat16)
    assert few_row_linear(one, torch.full((1, 2), largest, dtype=torch.bfloat16)).item() == float("inf")
    noisy_nan = torch.tensor([[0x7FFF, 0]], dtype=torch.int16).view(torch.bfloat16)
    assert few_row_linear(one, noisy_nan).isnan().all()


def test_no_rows() -> None:
    assert few_row_linear(torch.empty(0, 5), torch.randn(3, 5)).shape == (0, 3)


def test_threads_follow_the_size() -> None:
    assert threads_for(8 * 8 * 4) == 1
    assert threads_for(8 * 2**20) == torch.get_num_threads()


def test_refuses_what_it_cannot_multiply() -> None:
    x, weight = torch.randn(2, 6), torch.randn(4, 6)
    for bad_x, bad_weight, bad_bias in [
        (torch.randn(2, 5), weight, None),
        (x.double(), weight, None),
        (x.double(), weight.double(), None),
        (x, weight.bfloat16(), None),
        (x, torch.randn(6, 4).T, None),
        (x, torch.randn(6), None),
        (x, weight, torch.randn(5)),
        (x, weight, torch.randn(4).double()),
        (x, weight, torch.randn(8)[::2]),
        (x.to("meta"), weight, None),
        (torch.tensor(1.0), weight, None),
    ]:
        assert not can_multiply(bad_x, bad_weight, bad_bias)
        with pytest.raises(ValueError, match=r"expected float32 or bfloat16"):
            few_row_linear(bad_x, bad_weight, bad_bias)


def test_starting_numba_leaves_torch_its_threads() -> None:
    """In a process of its own: numba's threads start once."""
    code = (
        "import torch; torch.set_num_threads(1); from minillm.gemm.gemv import few_row_linear as f; "
        "f(torch.ones(1, 3), torch.ones(2, 3), num_threads=2); assert torch.get_num_threads() == 1"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=100)
