"""The merge of two results: equal to attention over all keys, and a commutative monoid."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.attention import merge_many, merge_states, naive_attention
from tests.attention.problems import make_problem, random_tensor

State = tuple[Tensor, Tensor]


@st.composite
def states(draw: st.DrawFn, count: int) -> list[State]:
    """Results of 4 rows; some without keys, some with an lse far from the others."""
    seed = draw(st.integers(0, 2**16))
    offsets = draw(st.lists(st.sampled_from([-math.inf, -1e4, -3.0, 0.0, 3.0, 1e4]), min_size=4, max_size=4 * count))
    results = []
    for i in range(count):
        out, lse = random_tensor(seed + i, 4, 3), random_tensor(seed + 50 + i, 4)
        lse = lse + torch.tensor([offsets[(4 * i + row) % len(offsets)] for row in range(4)], dtype=torch.float64)
        results.append((out.masked_fill((lse == -math.inf)[:, None], 0.0), lse))
    return results


def assert_same(a: State, b: State) -> None:
    for ours, expected in zip(a, b, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-11, rtol=0)


@given(states(2))
@settings(max_examples=60, deadline=None)
def test_commutes(pair: list[State]) -> None:
    a, b = pair
    assert_same(merge_states(*a, *b), merge_states(*b, *a))


@given(states(3))
@settings(max_examples=60, deadline=None)
def test_associates(triple: list[State]) -> None:
    a, b, c = triple
    left = merge_states(*merge_states(*a, *b), *c)
    assert_same(left, merge_states(*a, *merge_states(*b, *c)))
    assert_same(left, merge_many(*(torch.stack(parts) for parts in zip(a, b, c, strict=True))))


@given(states(1))
@settings(max_examples=30, deadline=None)
def test_a_part_without_keys_changes_nothing(single: list[State]) -> None:
    (state,) = single
    nothing = torch.zeros(4, 3, dtype=torch.float64), torch.full((4,), -math.inf, dtype=torch.float64)
    assert_same(merge_states(*state, *nothing), state)
    assert_same(merge_states(*nothing, *state), state)
    assert_same(merge_many(*(x.unsqueeze(0) for x in state)), state)


@pytest.mark.parametrize("cut", [0, 1, 4, 9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_attention_over_parts_is_attention_over_all(cut: int, dtype: torch.dtype) -> None:
    problem = make_problem(q_len=3, k_len=9, dtype=dtype)
    q, k, v = problem.q, problem.k, problem.v
    whole = naive_attention(q, k, v, causal=False)
    left = naive_attention(q, k[:, :cut], v[:, :cut], causal=False)
    merged = merge_states(*left, *naive_attention(q, k[:, cut:], v[:, cut:], causal=False))
    for ours, expected in zip(merged, whole, strict=True):
        assert ours.dtype == expected.dtype
        torch.testing.assert_close(ours, expected, atol=1e-12 if dtype == torch.float64 else 1e-5, rtol=0)


def test_half_precision_out_stays_so() -> None:
    out, lse = torch.ones(2, 3, dtype=torch.bfloat16), torch.zeros(2)
    merged, merged_lse = merge_states(out, lse, 3 * out, lse)
    assert merged.dtype == torch.bfloat16 and torch.all(merged == 2.0)
    assert merged_lse.dtype == torch.float32
    torch.testing.assert_close(merged_lse, torch.full((2,), math.log(2)))


def test_gradients_by_finite_differences() -> None:
    inputs = [random_tensor(i, *shape).requires_grad_() for i, shape in enumerate([(4, 3), (4,), (4, 3), (4,)])]
    assert torch.autograd.gradcheck(merge_states, inputs)


@pytest.mark.parametrize("empty", ["a", "b", "both"])
def test_gradients_with_empty_parts_are_finite(empty: str) -> None:
    out_a, out_b = (random_tensor(i, 4, 3).requires_grad_() for i in (0, 1))
    lse_a, lse_b = (random_tensor(i, 4) for i in (2, 3))
    for name, lse in (("a", lse_a), ("b", lse_b)):
        if empty in (name, "both"):
            lse.fill_(-math.inf)
        lse.requires_grad_()
    out, lse = merge_states(out_a, lse_a, out_b, lse_b)
    (out.square().sum() + lse.exp().sum()).backward()
    assert all(x.grad.isfinite().all() for x in (out_a, lse_a, out_b, lse_b))
    if empty == "a":
        assert torch.all(out_a.grad == 0) and torch.all(lse_a.grad == 0) and torch.all(out_b.grad == 2 * out)


@pytest.mark.parametrize(
    "shapes", [[(4, 3), (4,), (4, 2), (4,)], [(4, 3), (3,), (4, 3), (3,)], [(4, 3), (4,), (4, 3), (4, 1)]]
)
def test_refuses_shapes_that_do_not_fit(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="of the same shape, got"):
        merge_states(*(torch.zeros(shape) for shape in shapes))
    with pytest.raises(ValueError, match="at least one part"):
        merge_many(torch.zeros(0, 4, 3), torch.zeros(0, 4))
