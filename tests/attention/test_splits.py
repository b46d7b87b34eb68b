"""How keys are split and units handed out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.attention import assign_units, choose_num_splits, split_keys
from minillm.attention.splits import FILLED, MIN_KEYS, NEARLY_BEST


@given(st.integers(0, 300), st.integers(1, 400))
def test_splits_cover_all_keys_evenly(seq_len: int, num_splits: int) -> None:
    parts = split_keys(seq_len, num_splits)
    assert [key for part in parts for key in range(part.start, part.stop)] == list(range(seq_len))
    sizes = [part.stop - part.start for part in parts]
    assert len(parts) == min(num_splits, seq_len)
    assert not sizes or (min(sizes) >= 1 and max(sizes) - min(sizes) <= 1)


@given(st.integers(1, 8), st.integers(1, 4), st.integers(0, 5000), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_the_smallest_number_that_is_nearly_as_good_as_the_best(
    batch: int, num_kv_heads: int, seq_len: int, num_sms: int
) -> None:
    chosen = choose_num_splits(batch, num_kv_heads, seq_len, num_sms)
    units = batch * num_kv_heads
    most = max(1, min(128, num_sms, seq_len // MIN_KEYS))
    assert 1 <= chosen <= most
    if units >= FILLED * num_sms:
        assert chosen == 1
        return

    def busy(splits: int) -> float:
        """Share of the processors' time in which they work, from the schedule itself."""
        spans = assign_units([1.0] * (units * splits), num_sms)
        return len(spans) / (num_sms * max(span.stop for span in spans))

    best = max(busy(splits) for splits in range(1, most + 1))
    assert busy(chosen) >= NEARLY_BEST * best - 1e-9
    assert all(busy(splits) < NEARLY_BEST * best + 1e-9 for splits in range(1, chosen))


@pytest.mark.parametrize(
    "batch, num_kv_heads, seq_len, num_sms, expected",
    [
        (1, 8, 65536, 132, 15),  # H100: 120 of 132 busy; 14 splits would miss 0.85 by a hair
        (1, 8, 100, 132, 1),  # too short to split
        (16, 8, 65536, 132, 1),  # 128 units fill it already
        (1, 1, 65536, 108, 92),  # A100, one head: most SMs get a split
        (1, 8, 512, 132, 4),  # splits of 128 keys
        (1, 4, 4096, 2, 1),  # two cores are busy with four heads
    ],
)
def test_worked_examples(batch: int, num_kv_heads: int, seq_len: int, num_sms: int, expected: int) -> None:
    assert choose_num_splits(batch, num_kv_heads, seq_len, num_sms) == expected


def test_bounds_are_kept() -> None:
    assert choose_num_splits(1, 1, 10**6, 200, max_splits=5) == 5
    assert choose_num_splits(1, 1, 1000, 200, min_keys=400) == 2
    for bad in ((0, 1, 1, 1), (1, 0, 1, 1), (1, 1, -1, 1), (1, 1, 1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            choose_num_splits(*bad)


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=30), st.integers(1, 8))
def test_no_processor_idles_while_units_wait(costs: list[float], num_sms: int) -> None:
    spans = assign_units(costs, num_sms)
    assert [span.unit for span in spans] == list(range(len(costs)))
    for sm in range(num_sms):
        own = [span for span in spans if span.sm == sm]
        edges = [0.0, *(edge for span in own for edge in (span.start, span.stop)), math.inf]
        assert edges == sorted(edges)
        assert all(span.start == before for span, before in zip(own, [0.0, *(s.stop for s in own)], strict=False))
    last_start = max(span.start for span in spans)
    finish = [max((span.stop for span in spans if span.sm == sm), default=0.0) for sm in range(num_sms)]
    assert min(finish) >= last_start - 1e-9
