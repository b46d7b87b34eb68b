"""The oracle itself, against its definition in scalar loops, against torch, and by finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from minillm.attention import naive_attention
from tests.attention.problems import Problem, by_definition, make_problem, problems, random_tensor


@given(problems())
@settings(max_examples=150, deadline=None)
def test_equals_the_definition(problem: Problem) -> None:
    out, lse = naive_attention(problem.q, problem.k, problem.v, **problem.options)
    expected_out, expected_lse = by_definition(problem.q, problem.k, problem.v, **problem.options)
    assert out.dtype == lse.dtype == torch.float64
    torch.testing.assert_close(out, expected_out, atol=1e-12, rtol=0)
    torch.testing.assert_close(lse, expected_lse, atol=1e-12, rtol=0)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("v_head_dim", [6, 3])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("with_mask", [True, False])
def test_equals_torch_sdpa(num_kv_heads: int, v_head_dim: int, causal: bool, with_mask: bool) -> None:
    problem = make_problem(num_kv_heads=num_kv_heads, v_head_dim=v_head_dim)
    mask = random_tensor(9, 2, 4, 5, 5) > -0.5
    mask |= torch.eye(5, dtype=torch.bool)  # torch's rule for empty rows differs between versions
    q, k, v = (x.transpose(1, 2) for x in (problem.q, problem.k, problem.v))
    if with_mask:
        torch_options = {"attn_mask": mask & torch.ones(5, 5, dtype=torch.bool).tril() if causal else mask}
    else:
        torch_options = {"is_causal": causal}
    expected = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **torch_options).transpose(1, 2)
    out, _ = naive_attention(problem.q, problem.k, problem.v, causal=causal, mask=mask if with_mask else None)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lse_is_the_natural_logsumexp_of_the_scaled_scores(dtype: torch.dtype) -> None:
    problem = make_problem(num_kv_heads=4, q_len=3, k_len=7, dtype=dtype)
    scores = torch.einsum("bqhd,bkhd->bqhk", problem.q, problem.k) / math.sqrt(6)
    _, lse = naive_attention(problem.q, problem.k, problem.v, causal=False)
    assert lse.dtype == dtype and lse.shape == (2, 3, 4)
    torch.testing.assert_close(lse, torch.logsumexp(scores, dim=-1))


def test_query_heads_of_a_group_are_neighbours() -> None:
    problem = make_problem(num_heads=6, num_kv_heads=2)
    out, lse = naive_attention(problem.q, problem.k, problem.v)
    for head, kv_head in enumerate([0, 0, 0, 1, 1, 1]):
        alone = (problem.q[:, :, [head]], problem.k[:, :, [kv_head]], problem.v[:, :, [kv_head]])
        out_alone, lse_alone = naive_attention(*alone)
        torch.testing.assert_close(out[:, :, [head]], out_alone, atol=1e-14, rtol=0)
        torch.testing.assert_close(lse[:, :, [head]], lse_alone, atol=1e-14, rtol=0)


def test_the_last_query_sees_every_key_and_surplus_queries_see_none() -> None:
    short = make_problem(q_len=2, k_len=5)
    whole = naive_attention(short.q[:, 1:], short.k, short.v, causal=False)
    for part, expected in zip(naive_attention(short.q, short.k, short.v), whole, strict=True):
        torch.testing.assert_close(part[:, 1:], expected)

    long = make_problem(q_len=5, k_len=2)
    out, lse = naive_attention(long.q, long.k, long.v)
    assert torch.all(out[:, :3] == 0) and torch.all(lse[:, :3] == -math.inf)
    assert torch.all(out[:, 3:] != 0) and torch.all(lse[:, 3:].isfinite())
    square = naive_attention(long.q[:, 3:], long.k, long.v)
    torch.testing.assert_close(out[:, 3:], square[0])


def test_a_window_counts_the_query_itself() -> None:
    problem = make_problem(num_kv_heads=4)
    q, k, v = problem.q, problem.k, problem.v
    out, lse = naive_attention(q, k, v, window=1)
    torch.testing.assert_close(out, v)
    torch.testing.assert_close(lse, (q * k).sum(-1) / math.sqrt(6))
    unlimited = naive_attention(q, k, v)
    for window in (5, 6, 1000):
        assert all(map(torch.equal, naive_attention(q, k, v, window=window), unlimited))
    assert not torch.equal(naive_attention(q, k, v, window=4)[0], unlimited[0])


def test_softmax_scale_replaces_the_default() -> None:
    problem = make_problem(num_kv_heads=4, v_head_dim=3)
    q, k, v = problem.q, problem.k, problem.v
    default, explicit = naive_attention(q, k, v), naive_attention(q, k, v, softmax_scale=6**-0.5)
    assert all(map(torch.equal, default, explicit))
    mean, lse = naive_attention(q, k, v, causal=False, softmax_scale=0.0)
    torch.testing.assert_close(mean, v.mean(dim=1, keepdim=True).expand_as(mean))
    torch.testing.assert_close(lse, torch.full_like(lse, math.log(5)))


GRADIENT_CASES = {
    "causal": {},
    "bidirectional": {"causal": False},
    "window": {"window": 2, "k_len": 6},
    "more keys": {"q_len": 2, "softmax_scale": 0.7},
    "values of another size": {"v_head_dim": 2, "num_kv_heads": 1},
    "mask": {"mask": (random_tensor(5, 2, 1, 5, 5) > 0) | torch.eye(5, dtype=torch.bool)},
}


@pytest.mark.parametrize("case", GRADIENT_CASES)
def test_gradients_of_out_and_lse_by_finite_differences(case: str) -> None:
    problem = make_problem(**({"batch": 2, "k_head_dim": 3, "v_head_dim": 3} | GRADIENT_CASES[case]))
    inputs = [x.clone().requires_grad_() for x in (problem.q, problem.k, problem.v)]
    # gradcheck passes over an output that carries no gradient at all.
    assert all(output.requires_grad for output in naive_attention(*inputs, **problem.options))
    assert torch.autograd.gradcheck(lambda q, k, v: naive_attention(q, k, v, **problem.options), inputs)


@pytest.mark.parametrize("hidden_by", ["length", "mask"])
def test_gradients_ignore_rows_without_keys(hidden_by: str) -> None:
    problem = make_problem(q_len=5, k_len=2 if hidden_by == "length" else 5)
    if hidden_by == "mask":
        problem.options.update(causal=False, mask=torch.tensor([[[False], [False], [False], [True], [True]]]))
    inputs = [x.clone().requires_grad_() for x in (problem.q, problem.k, problem.v)]
    out, lse = naive_attention(*inputs, **problem.options)
    (out.square().sum() + lse.square()[:, 3:].sum() + lse[:, :3].sum()).backward()

    rest = [x.clone().requires_grad_() for x in (problem.q[:, 3:], problem.k, problem.v)]
    out, lse = naive_attention(*rest, causal=hidden_by == "length")
    (out.square().sum() + lse.square().sum()).backward()
    assert torch.all(inputs[0].grad[:, :3] == 0)
    torch.testing.assert_close(inputs[0].grad[:, 3:], rest[0].grad)
    torch.testing.assert_close(inputs[1].grad, rest[1].grad)
    torch.testing.assert_close(inputs[2].grad, rest[2].grad)


@pytest.mark.parametrize("offset", [0.0, -1e4, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_scores_neither_overflow_nor_vanish(offset: float, dtype: torch.dtype) -> None:
    problem = make_problem(k_len=6, k_head_dim=8, softmax_scale=1.0)
    q, k = problem.q * 50, problem.k * 50
    if offset:  # every score near ±1e4: exp overflows or vanishes unless a maximum is subtracted
        q, k = problem.q * 0.01, problem.k * 0.01
        q[..., 0], k[..., 0] = 100.0, offset / 100.0
    q, k, v = q.to(dtype), k.to(dtype), problem.v.to(dtype)
    out, lse = naive_attention(q, k, v, **problem.options)
    expected_out, expected_lse = by_definition(q, k, v, **problem.options)
    largest = expected_lse.abs().max().item()
    assert largest > 5e3
    tolerance = 1e-10 if dtype == torch.float64 else largest * 2**-22 * 4  # |v| is up to 4
    torch.testing.assert_close(out.double(), expected_out, atol=tolerance, rtol=0)
    torch.testing.assert_close(lse.double(), expected_lse, atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale_up", [1.0, 20.0])
def test_half_precision_is_as_close_as_torch(dtype: torch.dtype, scale_up: float) -> None:
    problem = make_problem(q_len=17, k_len=17, num_kv_heads=4, k_head_dim=32, v_head_dim=32)
    q, k, v = ((x * scale_up).to(dtype) for x in (problem.q, problem.k, problem.v))
    out, lse = naive_attention(q, k, v)
    assert out.dtype == dtype and lse.dtype == torch.float32
    exact, exact_lse = naive_attention(q.double(), k.double(), v.double())
    by_torch = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True)
    error = (out.double() - exact).abs().max()
    assert error <= 2 * (by_torch.transpose(1, 2).double() - exact).abs().max() + 1e-5
    torch.testing.assert_close(lse.double(), exact_lse, atol=1e-5 * scale_up**2, rtol=0)


def test_strided_inputs_are_read_and_left_alone() -> None:
    problem = make_problem()
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (problem.q, problem.k, problem.v))
    mask = torch.ones(5, 5, dtype=torch.bool)
    assert not q.is_contiguous()
    out, _ = naive_attention(q, k, v, mask=mask)
    torch.testing.assert_close(out, naive_attention(problem.q, problem.k, problem.v)[0])
    assert torch.equal(q, problem.q) and torch.equal(k, problem.k) and torch.equal(v, problem.v) and mask.all()


BAD_INPUTS = {
    "three axes": ({"q": (5, 4, 6)}, {}, r"\(batch, seq_len, heads, head_dim\).*q \(5, 4, 6\)"),
    "batches": ({"q": (3, 5, 4, 6)}, {}, r"q \(3, 5, 4, 6\), k \(2, 5, 2, 6\)"),
    "key length": ({"v": (2, 4, 2, 6)}, {}, r"v \(2, 4, 2, 6\)"),
    "kv heads of v": ({"v": (2, 5, 1, 6)}, {}, r"v \(2, 5, 1, 6\)"),
    "head_dim": ({"k": (2, 5, 2, 7)}, {}, r"k \(2, 5, 2, 7\)"),
    "heads": ({"q": (2, 5, 3, 6)}, {}, r"multiple.*q \(2, 5, 3, 6\)"),
    "no kv heads": ({"k": (2, 5, 0, 6), "v": (2, 5, 0, 6)}, {}, "multiple"),
    "window alone": ({}, {"causal": False, "window": 2}, "window=2 requires causal"),
    "window 0": ({}, {"window": 0}, "at least 1 key, got 0"),
    "float mask": (
        {},
        {"mask": torch.zeros(5, 5)},
        r"boolean.*\(2, 4, 5, 5\), got torch.float32 \(5, 5\)",
    ),
    "mask shape": ({}, {"mask": torch.ones(2, 5, 5, dtype=torch.bool)}, r"\(2, 4, 5, 5\).*\(2, 5, 5\)"),
    "mask axes": ({}, {"mask": torch.ones(1, 2, 4, 5, 5, dtype=torch.bool)}, r"\(1, 2, 4, 5, 5\)"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_errors_name_the_shapes(case: str) -> None:
    shapes, options, message = BAD_INPUTS[case]
    shapes = {"q": (2, 5, 4, 6), "k": (2, 5, 2, 6), "v": (2, 5, 2, 6)} | shapes
    q, k, v = (torch.zeros(shapes[name]) for name in "qkv")
    with pytest.raises(ValueError, match=message):
        naive_attention(q, k, v, **options)
