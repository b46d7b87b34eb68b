"""Decoding in numba against the oracle: shares of threads that cut sequences anywhere, caches read in place."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.attention import flash_decoding, naive_attention
from tests.attention.implementations import TOLERANCE
from tests.attention.problems import by_definition, make_problem, random_tensor

pytest.importorskip("numba", reason="decoding on CPU cores needs numba")

from minillm.attention.cpu_decoding import TILE, _exp, decode_on_cpu  # noqa: E402


def assert_close(ours: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float) -> None:
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


@given(
    seq_lens=st.lists(st.integers(0, 3 * TILE), min_size=1, max_size=4),
    num_kv_heads=st.integers(1, 3),
    group=st.integers(1, 9),
    dims=st.sampled_from([(1, 1), (5, 3), (16, 16), (24, 40), (64, 128), (100, 90)]),
    num_threads=st.integers(1, 7),
    bfloat16=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_equals_flash_decoding(
    seq_lens: list[int], num_kv_heads: int, group: int, dims: tuple[int, int], num_threads: int, bfloat16: bool
) -> None:
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    problem = make_problem(
        batch=len(seq_lens),
        q_len=1,
        k_len=3 * TILE,
        num_heads=num_kv_heads * group,
        num_kv_heads=num_kv_heads,
        k_head_dim=dims[0],
        v_head_dim=dims[1],
        dtype=dtype,
    )
    k, v = problem.k.clone(), problem.v.clone()
    for b, n in enumerate(seq_lens):
        k[b, n:], v[b, n:] = math.nan, math.nan  # padding is never read
    ours = decode_on_cpu(problem.q, k, v, seq_lens=seq_lens, softmax_scale=0.4, num_threads=num_threads)
    exact = flash_decoding(
        *(x.double() for x in (problem.q, problem.k, problem.v)), seq_lens=seq_lens, softmax_scale=0.4
    )
    assert ours[0].dtype == dtype and ours[1].dtype == torch.float32
    limit = 2e-2 if bfloat16 else TOLERANCE[torch.float32]
    torch.testing.assert_close(ours[0].double(), exact[0], atol=limit, rtol=0)
    torch.testing.assert_close(ours[1].double(), exact[1], atol=1e-5, rtol=0)


def test_slices_of_a_cache_are_read_in_place() -> None:
    slab_k, slab_v = random_tensor(0, 4, 40, 2, 8, dtype=torch.float32), random_tensor(1, 4, 50, 2, 4).float()
    q = random_tensor(2, 2, 1, 6, 8, dtype=torch.float32)
    k, v = slab_k[1:3, 5:35], slab_v[1:3, 3:33]
    assert_close(decode_on_cpu(q, k, v, num_threads=3), naive_attention(q, k, v), 1e-5)
    every_other = slab_k[::2, ::2], slab_v[:2, :20]
    assert_close(decode_on_cpu(q, *every_other, num_threads=3), naive_attention(q, *every_other), 1e-5)


@pytest.mark.parametrize("num_heads", [1, 16])
def test_values_that_are_a_slice_of_the_keys(num_heads: int) -> None:
    slab = random_tensor(0, 2, 70, 1, 24, dtype=torch.float32)  # absorbed MLA: latent and rotated part
    q = random_tensor(1, 2, 1, num_heads, 24, dtype=torch.float32)
    k, v = slab[:, :67], slab[:, :67, :, :16]
    assert_close(decode_on_cpu(q, k, v, num_threads=2), naive_attention(q, k, v), 1e-5)


@pytest.mark.parametrize("offset", [0.0, -1e4, 1e4])
def test_huge_scores(offset: float) -> None:
    problem = make_problem(q_len=1, k_len=3 * TILE, k_head_dim=8, dtype=torch.float32)
    q, k = problem.q * 50, problem.k * 50
    if offset:
        q, k = problem.q * 0.01, problem.k * 0.01
        q[..., 0], k[..., 0] = 100.0, offset / 100.0
    out, lse = decode_on_cpu(q, k, problem.v, softmax_scale=1.0, num_threads=2)
    expected_out, expected_lse = by_definition(q, k, problem.v, softmax_scale=1.0)
    tolerance = expected_lse.abs().max().item() * 2**-22 * 4
    torch.testing.assert_close(out.double(), expected_out, atol=tolerance, rtol=0)
    torch.testing.assert_close(lse.double(), expected_lse, atol=tolerance, rtol=0)


def test_what_is_not_a_number_shows() -> None:
    problem = make_problem(q_len=1, k_len=9, dtype=torch.float32)
    problem.k[0, 2, 0, 0] = math.nan
    out, lse = decode_on_cpu(problem.q, problem.k, problem.v, num_threads=2)
    expected, _ = naive_attention(problem.q, problem.k, problem.v)
    assert torch.equal(out.isnan(), expected.isnan()) and lse[0, 0, :2].isnan().all() and out[1].isfinite().all()


def test_its_own_exp_is_as_good_as_the_library() -> None:
    numbers = torch.cat([torch.linspace(-87, 0, 2001), torch.tensor([-0.0, -1e-30, -200.0, -math.inf])])
    ours = torch.tensor([_exp(x) for x in numbers.numpy()], dtype=torch.float64)
    expected = numbers.double().exp()
    torch.testing.assert_close(ours[:-2], expected[:-2], atol=0, rtol=4e-7)
    assert ours[-2:].max() < 2e-38
    assert math.isnan(_exp(torch.tensor(math.nan).numpy()[()]))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"q_len": 2}, r"\(batch, 1, num_heads, dim\).*\(2, 2, 4, 6\)"),
        ({"dtype": torch.float64}, "float32 or bfloat16"),
        ({"k_head_dim": 6, "seq_lens": [9, 1]}, r"from 0 to k_len = 5, got \[9, 1\]"),
        ({"strided": True}, "whole rows of heads"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    changes = dict(changes)
    strided, seq_lens = changes.pop("strided", False), changes.pop("seq_lens", None)
    problem = make_problem(**({"q_len": 1, "dtype": torch.float32} | changes))
    k = problem.k.transpose(1, 2).contiguous().transpose(1, 2) if strided else problem.k
    with pytest.raises(ValueError, match=message):
        decode_on_cpu(problem.q, k, problem.v, seq_lens=seq_lens)
