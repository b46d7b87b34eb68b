"""Softmax in fewer passes, and the state of a tile of rows, against torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.attention import OnlineSoftmax, online_attention, online_softmax, safe_softmax
from tests.attention.problems import random_tensor

SCORES = st.lists(st.just(-math.inf) | st.floats(-1e4, 1e4), min_size=1, max_size=12)


@pytest.mark.parametrize("softmax", [safe_softmax, online_softmax])
@given(numbers=SCORES)
@settings(max_examples=100, deadline=None)
def test_one_row_equals_torch(softmax: Callable[[Tensor], Tensor], numbers: list[float]) -> None:
    scores = torch.tensor(numbers, dtype=torch.float64)
    expected = torch.softmax(scores, dim=0).nan_to_num()  # a row without visible keys weighs nothing
    torch.testing.assert_close(softmax(scores), expected, atol=1e-14, rtol=1e-11)


@given(numbers=SCORES)
@settings(max_examples=100, deadline=None)
def test_one_pass_attention_equals_torch(numbers: list[float]) -> None:
    scores, values = torch.tensor(numbers, dtype=torch.float64), random_tensor(0, len(numbers), 3)
    out, lse = online_attention(scores, values)
    torch.testing.assert_close(out, torch.softmax(scores, dim=0).nan_to_num() @ values, atol=1e-11, rtol=0)
    assert lse == pytest.approx(torch.logsumexp(scores, dim=0).item(), abs=1e-11)


@pytest.mark.parametrize("softmax", [safe_softmax, online_softmax])
def test_one_row_keeps_the_dtype_and_refuses_others(softmax: Callable[[Tensor], Tensor]) -> None:
    assert softmax(torch.zeros(3)).dtype == torch.float32
    for shape in ((0,), (2, 3)):
        with pytest.raises(ValueError, match="one row of scores"):
            softmax(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"values \(3, v_head_dim\).*\(2, 4\)"):
        online_attention(torch.zeros(3), torch.zeros(2, 4))


@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=6), seed=st.integers(0, 99), scale=st.just(300.0))
@settings(max_examples=60, deadline=None)
def test_state_after_any_tiles_equals_softmax_of_all(lengths: list[int], seed: int, scale: float) -> None:
    scores, values = random_tensor(seed, 2, 3, sum(lengths)) * scale, random_tensor(seed + 1, 2, sum(lengths), 5)
    scores[0, 1] = -math.inf
    scores[1, 0, : lengths[0]] = -math.inf
    state = OnlineSoftmax((2, 3), 5, like=values)
    for tile_scores, tile_values in zip(
        scores.clone().split(lengths, dim=-1), values.split(lengths, dim=1), strict=True
    ):
        state.update(tile_scores.clone(), tile_values)
    out, lse = state.result()
    expected = torch.softmax(scores, dim=-1).nan_to_num() @ values
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(lse, torch.logsumexp(scores, dim=-1), atol=1e-11, rtol=0)


def test_state_before_any_tile_is_empty() -> None:
    out, lse = OnlineSoftmax((2, 3), 5, like=torch.zeros(1)).result()
    assert torch.all(out == 0) and out.shape == (2, 3, 5) and torch.all(lse == -math.inf) and lse.shape == (2, 3)
