"""Every attention against the oracle: any shapes and patterns, and the inputs that break naive versions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from minillm.attention import naive_attention
from tests.attention.implementations import DIFFERENTIABLE, IMPLEMENTATIONS, assert_equals_oracle
from tests.attention.problems import Problem, by_definition, make_problem, problems, random_tensor


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@given(problem=problems())
@settings(max_examples=40, deadline=None)
def test_equals_the_oracle(name: str, problem: Problem) -> None:
    assert_equals_oracle(name, problem)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("q_len, k_len", [(1, 1), (1, 9), (9, 9), (4, 9), (9, 4), (9, 1), (0, 4), (4, 0), (0, 0)])
def test_lengths_and_windows(name: str, q_len: int, k_len: int) -> None:
    windows = (None, 1, 2, 3, 8, 9, 100) if "window" in IMPLEMENTATIONS[name].supports else (None,)
    for window in windows:
        assert_equals_oracle(name, make_problem(q_len=q_len, k_len=k_len, v_head_dim=3, window=window))


@pytest.mark.parametrize("name", ["v1", "v2", "flash", "decoding", "unified"])
@pytest.mark.parametrize("length", [63, 64, 65, 127, 128, 129])
@pytest.mark.parametrize("options", [{}, {"window": 64}, {"window": 65}, {"causal": False}])
def test_lengths_around_multiples_of_the_default_blocks(name: str, length: int, options: dict[str, Any]) -> None:
    for q_len, k_len in ((length, length), (64, length), (length, 64)):
        assert_equals_oracle(name, make_problem(batch=1, q_len=q_len, k_len=k_len, dtype=torch.float32, **options))


def test_flash_attention_over_several_of_its_blocks() -> None:
    for length, window in ((257, None), (600, None), (600, 300)):
        problem = make_problem(batch=1, q_len=length, k_len=length + 40, window=window, num_heads=2, num_kv_heads=1)
        assert_equals_oracle("flash", problem)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_no_sequences(name: str) -> None:
    assert_equals_oracle(name, make_problem(batch=0))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("num_heads, num_kv_heads", [(6, 1), (6, 2), (6, 3), (6, 6)])
def test_query_heads_of_a_group_are_neighbours(name: str, num_heads: int, num_kv_heads: int) -> None:
    problem = make_problem(num_heads=num_heads, num_kv_heads=num_kv_heads, q_len=3, k_len=7)
    assert_equals_oracle(name, problem)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_rows_without_keys_give_zero_and_minus_infinity(name: str) -> None:
    problem = IMPLEMENTATIONS[name].fit(make_problem(q_len=7, k_len=3))
    out, lse = IMPLEMENTATIONS[name](problem.q, problem.k, problem.v, **problem.options)
    assert torch.all(out[:, :4] == 0) and torch.all(lse[:, :4] == -math.inf)
    assert torch.all(out[:, 4:] != 0) and torch.all(lse[:, 4:].isfinite())


@pytest.mark.parametrize("name", [name for name in IMPLEMENTATIONS if name.startswith("v")])
@pytest.mark.parametrize("mask_shape", [(1, 9), (9, 1), (2, 1, 9, 1), (4, 9, 9), (1, 4, 1, 9), (2, 4, 9, 9), ()])
def test_masks_of_every_shape(name: str, mask_shape: tuple[int, ...]) -> None:
    for options in ({}, {"causal": False}, {"window": 4}):
        mask = random_tensor(3, *(mask_shape or (1,))).reshape(mask_shape) > 0.3
        assert_equals_oracle(name, make_problem(q_len=9, k_len=9, mask=mask, **options))


@pytest.mark.parametrize("name", [name for name in IMPLEMENTATIONS if name.startswith("v")])
def test_keys_hidden_first_and_seen_later(name: str) -> None:
    """The first tiles of a row hold nothing visible: the running maximum is still −inf when the next one comes."""
    mask = torch.zeros(9, 9, dtype=torch.bool)
    mask[:, 6:] = True
    mask[2] = False
    assert_equals_oracle(name, make_problem(q_len=9, k_len=9, causal=False, mask=mask))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("offset", [0.0, -1e4, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_scores(name: str, offset: float, dtype: torch.dtype) -> None:
    problem = make_problem(q_len=5, k_len=9, k_head_dim=8, softmax_scale=1.0)
    q, k = problem.q * 50, problem.k * 50
    if offset:
        q, k = problem.q * 0.01, problem.k * 0.01
        q[..., 0], k[..., 0] = 100.0, offset / 100.0
    problem = IMPLEMENTATIONS[name].fit(Problem(q.to(dtype), k.to(dtype), problem.v.to(dtype), problem.options))
    expected_out, expected_lse = by_definition(problem.q, problem.k, problem.v, **problem.options)
    out, lse = IMPLEMENTATIONS[name](problem.q, problem.k, problem.v, **problem.options)
    largest = expected_lse.abs().max().item()
    assert largest > 5e3
    tolerance = 1e-10 if dtype == torch.float64 else largest * 2**-22 * 4  # |v| is up to 4
    torch.testing.assert_close(out.double(), expected_out, atol=tolerance, rtol=0)
    torch.testing.assert_close(lse.double(), expected_lse, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_scores_that_grow_from_tile_to_tile(name: str) -> None:
    """Every tile raises the maximum by more than exp can hold: what came before must vanish, not overflow."""
    problem = make_problem(q_len=4, k_len=12, num_kv_heads=1, k_head_dim=1, softmax_scale=1.0, dtype=torch.float32)
    rising = torch.arange(12.0).reshape(1, 12, 1, 1).expand(2, 12, 1, 1) * 200
    for k in (rising, rising.flip(1), -rising):
        q = torch.ones_like(problem.q)
        assert_equals_oracle(name, Problem(q, k.contiguous(), problem.v, problem.options), tolerance=2e-3)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_close_as_torch(name: str, dtype: torch.dtype) -> None:
    length = 17 if "×" in name else 150
    problem = make_problem(q_len=length, k_len=length, num_kv_heads=4, k_head_dim=32, v_head_dim=32)
    q, k, v = (x.to(dtype) for x in (problem.q, problem.k, problem.v))
    out, lse = IMPLEMENTATIONS[name](q, k, v)
    assert out.dtype == dtype and lse.dtype == torch.float32
    exact, exact_lse = naive_attention(q.double(), k.double(), v.double())
    by_torch = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True)
    limit = 2 * (by_torch.transpose(1, 2).double() - exact).abs().max() + 1e-5
    assert (out.double() - exact).abs().max() <= limit
    torch.testing.assert_close(lse.double(), exact_lse, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_strided_inputs_are_read_and_left_alone(name: str) -> None:
    slab = random_tensor(0, 2, 16, 8, 6)
    q, k, v = slab[:, 4:9, :4], slab[:, 3:12, 4:6], slab[:, 3:12, 6:, :5]
    before = slab.clone()
    assert_equals_oracle(name, Problem(q, k, v))
    assert torch.equal(slab, before)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_what_is_not_a_number_shows(name: str) -> None:
    problem = make_problem(q_len=3, k_len=9)
    problem.k[0, 2, 0, 0] = math.nan
    out, lse = IMPLEMENTATIONS[name](problem.q, problem.k, problem.v)
    expected, _ = naive_attention(problem.q, problem.k, problem.v)
    assert torch.equal(out.isnan(), expected.isnan()) and out.isnan().any() and lse[0, :, :2].isnan().all()


GRADIENT_CASES: dict[str, dict[str, Any]] = {
    "causal": {},
    "bidirectional": {"causal": False},
    "window": {"window": 2, "k_len": 6},
    "window beyond the length": {"window": 50},
    "more keys": {"q_len": 2, "k_len": 7, "softmax_scale": 0.7},
    "more queries": {"q_len": 6, "k_len": 4},
    "values of another size": {"v_head_dim": 2, "num_kv_heads": 1},
    "mask": {"mask": random_tensor(5, 1, 5, 5) > 0},
    "one token": {"q_len": 1, "k_len": 1},
}
SMALL = {"batch": 1, "num_heads": 2, "num_kv_heads": 1, "k_head_dim": 3, "v_head_dim": 3}


def gradients(function: Any, problem: Problem) -> list[Tensor]:
    """Of a sum that out and lse both enter with weights of their own, those of rows without keys left out."""
    inputs = [x.clone().requires_grad_() for x in (problem.q, problem.k, problem.v)]
    out, lse = function(*inputs, **problem.options)
    seen = lse.masked_fill(lse == -math.inf, 0.0)
    loss = (out * random_tensor(7, *out.shape)).sum() + (seen.square() * random_tensor(8, *lse.shape)).sum()
    return list(torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize("case", GRADIENT_CASES)
def test_gradients_through_out_and_lse_equal_the_oracles(name: str, case: str) -> None:
    problem = IMPLEMENTATIONS[name].fit(make_problem(**GRADIENT_CASES[case]))
    for ours, expected in zip(
        gradients(IMPLEMENTATIONS[name], problem), gradients(naive_attention, problem), strict=True
    ):
        torch.testing.assert_close(ours, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", ["v1 2×3", "v2 3×2", "flash", "decoding, 3 splits"])
@pytest.mark.parametrize("case", ["causal", "window", "mask", "values of another size"])
def test_gradients_by_finite_differences(name: str, case: str) -> None:
    problem = IMPLEMENTATIONS[name].fit(make_problem(**(SMALL | GRADIENT_CASES[case])))
    inputs = [x.clone().requires_grad_() for x in (problem.q, problem.k, problem.v)]

    def finite_results(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = IMPLEMENTATIONS[name](q, k, v, **problem.options)
        return out, lse.masked_fill(lse == -math.inf, 0.0)

    assert torch.autograd.gradcheck(finite_results, inputs)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_of_rows_without_keys_are_zero(name: str) -> None:
    """Even where infinities arrive at the lse of such rows."""
    problem = make_problem(q_len=6, k_len=4)
    inputs = [x.clone().requires_grad_() for x in (problem.q, problem.k, problem.v)]
    out, lse = IMPLEMENTATIONS[name](*inputs)
    (out.square().sum() + lse[:, 2:].sum() + lse[:, :2].square().sum()).backward()
    assert all(x.grad.isfinite().all() for x in inputs)
    assert torch.all(inputs[0].grad[:, :2] == 0)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_of_huge_scores_are_finite(name: str) -> None:
    problem = make_problem(q_len=4, k_len=9, softmax_scale=1.0, dtype=torch.float32)
    problem = IMPLEMENTATIONS[name].fit(Problem(problem.q * 70, problem.k * 70, problem.v, problem.options))
    for ours, expected in zip(
        gradients(IMPLEMENTATIONS[name], problem), gradients(naive_attention, problem), strict=True
    ):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, expected, atol=1.0, rtol=1e-3)


@pytest.mark.parametrize("name", ["v1", "v2", "flash", "decoding"])
def test_gradients_keep_the_dtype_of_the_inputs(name: str) -> None:
    problem = make_problem(q_len=9, k_len=9, k_head_dim=16, v_head_dim=16)
    inputs = [x.to(torch.bfloat16).requires_grad_() for x in (problem.q, problem.k, problem.v)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    naive_attention(*exact)[0].square().sum().backward()
    IMPLEMENTATIONS[name](*inputs)[0].square().sum().backward()
    for ours, expected in zip(inputs, exact, strict=True):
        assert ours.grad.dtype == torch.bfloat16
        torch.testing.assert_close(ours.grad.double(), expected.grad, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_refuses_what_the_oracle_refuses(name: str) -> None:
    implementation, problem = IMPLEMENTATIONS[name], make_problem()
    with pytest.raises(ValueError, match=r"q \(2, 5, 4, 6\), k \(2, 5, 2, 6\), v \(2, 4, 2, 6\)"):
        implementation(problem.q, problem.k, problem.v[:, :4])
    with pytest.raises(ValueError, match="multiple"):
        implementation(problem.q[:, :, :3], problem.k, problem.v)
    if "window" in implementation.supports:
        with pytest.raises(ValueError, match="window=2 requires causal"):
            implementation(problem.q, problem.k, problem.v, causal=False, window=2)
    if "mask" in implementation.supports:
        with pytest.raises(ValueError, match="boolean mask"):
            implementation(problem.q, problem.k, problem.v, mask=torch.zeros(5, 5))


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_refuses_blocks_below_one(name: str) -> None:
    problem = make_problem()
    for options in ({"block_q": 0}, {"block_k": -1}):
        with pytest.raises(ValueError, match="blocks of at least 1"):
            IMPLEMENTATIONS[name].call(problem.q, problem.k, problem.v, **options)
