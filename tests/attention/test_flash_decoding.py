"""FlashDecoding and its unified maximum: ragged caches, splits, the fallback."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.attention import (
    choose_phi,
    flash_decoding,
    flash_decoding_unified,
    naive_attention,
    safe_band,
    share_in_band,
)
from minillm.attention import flash_decoding as flash_decoding_function
from tests.attention.problems import make_problem, random_tensor


def one_by_one(q: Tensor, k: Tensor, v: Tensor, seq_lens: list[int], **options: Any) -> tuple[Tensor, Tensor]:
    """The oracle on each sequence alone, cut to its length."""
    rows = [naive_attention(q[[b]], k[[b], :n], v[[b], :n], **options) for b, n in enumerate(seq_lens)]
    outs, lses = zip(*rows, strict=True)
    return torch.cat(outs), torch.cat(lses)


def assert_close(ours: Any, expected: Any, tolerance: float = 1e-12) -> None:
    for a, b in zip(ours[:2], expected, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


DECODERS = [flash_decoding_function, flash_decoding_unified]


@pytest.mark.parametrize("decode", DECODERS)
@given(
    q_len=st.integers(1, 4),
    seq_lens=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    num_splits=st.none() | st.integers(1, 15),
    as_tensor=st.booleans(),
    phi=st.sampled_from([0.0, 2.0, 900.0]),
)
@settings(max_examples=80, deadline=None)
def test_ragged_sequences_equal_one_at_a_time(
    decode: Any, q_len: int, seq_lens: list[int], num_splits: int | None, as_tensor: bool, phi: float
) -> None:
    problem = make_problem(batch=len(seq_lens), q_len=q_len, k_len=12, v_head_dim=3)
    k, v = problem.k.clone(), problem.v.clone()
    for b, n in enumerate(seq_lens):
        k[b, n:], v[b, n:] = math.nan, math.nan  # padding is never read
    given_lens = torch.tensor(seq_lens, dtype=torch.int32) if as_tensor else seq_lens
    extra = {"phi": phi} if decode is flash_decoding_unified else {}
    result = decode(problem.q, k, v, num_splits=num_splits, seq_lens=given_lens, softmax_scale=0.7, **extra)
    assert_close(result, one_by_one(problem.q, problem.k, problem.v, seq_lens, softmax_scale=0.7))


@pytest.mark.parametrize("num_splits", [1, 2, 5, 64, 100])
def test_the_number_of_splits_changes_nothing_but_rounding(num_splits: int) -> None:
    problem = make_problem(q_len=2, k_len=64, num_heads=8, dtype=torch.float32)
    whole = flash_decoding(problem.q, problem.k, problem.v, num_splits=1)
    parts = flash_decoding(problem.q, problem.k, problem.v, num_splits=num_splits)
    assert_close(parts, whole, 1e-6)


def test_gradients_with_ragged_sequences() -> None:
    problem, seq_lens = make_problem(q_len=2, k_len=9, v_head_dim=3), [9, 4]
    results = []
    for decode in (
        lambda q, k, v: flash_decoding(q, k, v, num_splits=3, seq_lens=seq_lens),
        lambda q, k, v: one_by_one(q, k, v, seq_lens),
    ):
        inputs = [x.clone().requires_grad_() for x in (problem.q, problem.k, problem.v)]
        out, lse = decode(*inputs)
        results.append(torch.autograd.grad(out.sin().sum() + lse.sin().sum(), inputs))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-10, rtol=0)
    assert torch.all(results[0][1][1, 4:] == 0)


BAD_ARGUMENTS = [
    ({"num_splits": 0}, "at least 1 split"),
    ({"seq_lens": [5]}, r"2 sequences, each from 0 to k_len = 5, got \[5\]"),
    ({"seq_lens": [5, 6]}, r"got \[5, 6\]"),
    ({"seq_lens": torch.tensor([-1, 3])}, r"got \[-1, 3\]"),
]


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("options, message", BAD_ARGUMENTS)
def test_refuses_bad_arguments(decode: Any, options: dict[str, Any], message: str) -> None:
    problem = make_problem(q_len=1)
    with pytest.raises(ValueError, match=message):
        decode(problem.q, problem.k, problem.v, **options)


# ---- the unified maximum


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the rows that were computed a second time."""
    from minillm.attention import unified_max

    calls: list[tuple[int, ...]] = []
    decode_sequence = unified_max.decode_sequence

    def recording(rows: Tensor, *args: Any) -> Any:
        calls.append(tuple(rows.shape))
        return decode_sequence(rows, *args)

    monkeypatch.setattr(unified_max, "decode_sequence", recording)
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ordinary_scores_need_no_second_run(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    problem = make_problem(q_len=3, k_len=40, k_head_dim=16, dtype=dtype)
    result = flash_decoding_unified(problem.q, problem.k, problem.v, num_splits=4)
    assert not result.fell_back.any() and calls == []
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    assert_close(result, naive_attention(problem.q, problem.k, problem.v), tolerance)


@pytest.mark.parametrize("offset", [200.0, -200.0])
def test_only_the_rows_out_of_range_are_computed_again(offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One query head of one sequence meets scores far above or below φ; its KV head runs again, no other."""
    calls = counted(monkeypatch)
    problem = make_problem(q_len=2, k_len=30, k_head_dim=8, softmax_scale=1.0, dtype=torch.float32)
    q, k = problem.q * 0.1, problem.k.clone()
    k[..., 0] = 1.0
    q[1, :, 3, 0] = offset
    result = flash_decoding_unified(q, k, problem.v, num_splits=3, softmax_scale=1.0)
    expected = torch.zeros(2, 2, 4, dtype=torch.bool)
    expected[1, :, 3] = True
    assert torch.equal(result.fell_back, expected)
    assert calls == [(1, 4, 8)]  # 1 KV head; 2 query heads · 2 tokens
    assert_close(result, naive_attention(q, k, problem.v, softmax_scale=1.0), 2e-4)


def test_one_split_out_of_range_is_enough() -> None:
    problem = make_problem(batch=1, q_len=1, k_len=30, num_heads=1, num_kv_heads=1, k_head_dim=1, dtype=torch.float32)
    k = problem.k.clone()
    k[0, 17] = 150.0
    q = torch.ones_like(problem.q)
    result = flash_decoding_unified(q, k, problem.v, num_splits=5, softmax_scale=1.0)
    assert result.fell_back.all()
    assert_close(result, naive_attention(q, k, problem.v, softmax_scale=1.0))


def test_scores_far_below_the_others_need_no_second_run() -> None:
    """A key that nobody looks at is −inf in effect, whatever φ; the row's sum is what has to fit."""
    problem = make_problem(batch=1, q_len=1, k_len=30, num_heads=1, num_kv_heads=1, k_head_dim=1, dtype=torch.float32)
    k = problem.k.clone()
    k[0, :20] = -1e4
    q = torch.ones_like(problem.q)
    result = flash_decoding_unified(q, k, problem.v, num_splits=5, softmax_scale=1.0)
    assert not result.fell_back.any()
    assert_close(result, naive_attention(q, k, problem.v, softmax_scale=1.0), 1e-5)


def test_rows_without_keys_need_no_second_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    problem = make_problem(q_len=4, k_len=6)
    result = flash_decoding_unified(problem.q, problem.k, problem.v, seq_lens=[2, 0])
    assert not result.fell_back.any() and calls == []
    assert torch.all(result.lse[0, :2] == -math.inf) and torch.all(result.lse[1] == -math.inf)


def test_values_too_large_for_their_weights_fall_back() -> None:
    problem = make_problem(batch=1, q_len=1, k_len=9, num_heads=1, num_kv_heads=1, dtype=torch.float32)
    v = problem.v.abs() * 1e30
    result = flash_decoding_unified(problem.q, problem.k, v, phi=-50.0)
    assert result.fell_back.all() and result.out.isfinite().all()
    torch.testing.assert_close(result.out, naive_attention(problem.q, problem.k, v)[0])


@pytest.mark.parametrize("edge", ["low", "high"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_just_inside_the_band_are_exact(edge: str, dtype: torch.dtype) -> None:
    """With many keys spread below the maximum, at either edge of the band the digits are all there."""
    low, high = safe_band(dtype)
    problem = make_problem(batch=1, q_len=1, k_len=4000, num_heads=1, num_kv_heads=1, k_head_dim=1, dtype=dtype)
    k = -20 * torch.rand(1, 4000, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    q = torch.ones_like(problem.q)
    expected = naive_attention(q, k, problem.v, softmax_scale=1.0)
    phi = expected[1].item() - (low + 0.01 if edge == "low" else high - 0.01)
    result = flash_decoding_unified(q, k, problem.v, phi=phi, num_splits=3, softmax_scale=1.0)
    assert not result.fell_back.any()
    assert_close(result, expected, 5e-5 if dtype == torch.float32 else 1e-12)
    beyond = phi + (0.02 if edge == "low" else -0.02)
    assert flash_decoding_unified(q, k, problem.v, phi=beyond, softmax_scale=1.0).fell_back.all()


def test_a_narrower_band_falls_back_more() -> None:
    problem = make_problem(q_len=4, k_len=60)
    lse = naive_attention(problem.q, problem.k, problem.v)[1]
    phi = choose_phi(lse, band=(-0.2, 0.2))
    result = flash_decoding_unified(problem.q, problem.k, problem.v, phi=phi, band=(-0.2, 0.2))
    assert torch.equal(result.fell_back, (lse - phi).abs() >= 0.2) and result.fell_back.any()
    assert not result.fell_back.all()
    share = share_in_band(lse, phi, band=(-0.2, 0.2))
    assert share == pytest.approx(1 - result.fell_back.double().mean().item())
    assert_close(result, naive_attention(problem.q, problem.k, problem.v))


def test_phi_puts_the_observed_rows_into_the_middle_of_the_band() -> None:
    low, high = safe_band(torch.float32)
    assert -60 < low < -50 and 70 < high < 80
    observed = torch.cat([random_tensor(0, 1001).float() + 300, torch.tensor([-math.inf] * 50 + [1e6])])
    phi = choose_phi(observed)
    assert phi == pytest.approx(300 - (low + high) / 2, abs=0.3)
    assert share_in_band(observed, phi) == pytest.approx(1001 / 1002)
    assert choose_phi(torch.full((3,), -math.inf)) == 0.0 and share_in_band(torch.full((3,), -math.inf), 0.0) == 1.0


@pytest.mark.parametrize("options", [{"phi": math.nan}, {"band": (3.0, -3.0)}, {"band": (-3.0, 1e4)}])
def test_refuses_a_band_that_is_not_safe(options: dict[str, Any]) -> None:
    problem = make_problem(q_len=1)
    with pytest.raises(ValueError, match="finite phi and a band within"):
        flash_decoding_unified(problem.q, problem.k, problem.v, **options)


def test_the_unified_maximum_is_for_inference() -> None:
    problem = make_problem(q_len=1)
    q = problem.q.requires_grad_()
    with pytest.raises(ValueError, match="for inference"):
        flash_decoding_unified(q, problem.k, problem.v)
    with torch.no_grad():
        flash_decoding_unified(q, problem.k, problem.v)
