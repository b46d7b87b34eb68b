"""Interleaved rounds: order, discarding, and ratios, with clocks that are made up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from minillm.bench import compare as module
from minillm.bench.compare import Comparison, Parts, Spread, compare


def test_candidates_take_turns_and_the_order_rotates() -> None:
    calls: list[str] = []
    rounds: list[int] = []
    candidates: dict[str, Callable[[], object]] = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    result = compare(candidates, rounds=4, on_round=lambda: rounds.append(len(calls)))
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab" + "abc"  # a warm-up first
    assert rounds == [6, 9, 12, 15]
    assert list(result.seconds) == list("abc") and {len(times) for times in result.seconds.values()} == {4}
    assert result.num_discarded == 0 and result.probes == []


def test_disturbed_rounds_are_discarded(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = iter([80.0, 100.0, 89.0, 91.0, 95.0])
    durations = iter([1.0, 2.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr(module, "_seconds", lambda name, call: {name: next(durations)})
    result = compare({"a": lambda: None}, rounds=3, probe=lambda: next(probes))
    # 80 stood until 100 came; 89 is below 90 % of it.
    assert result.probes == [100.0, 91.0, 95.0]
    assert result.seconds["a"] == [2.0, 4.0, 5.0] and result.num_discarded == 2


def test_a_candidate_with_a_clock_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = iter([80.0, 100.0, 91.0])
    parts = iter([9.0, 1.0, 2.0, 3.0])
    result = compare(
        {"a": lambda: Parts({"left": next(parts), "right": 0.5}), "b": lambda: {"left": 7.0}},
        rounds=2,
        probe=lambda: next(probes),
    )
    assert result.seconds["left"] == [2.0, 3.0] and result.seconds["right"] == [0.5, 0.5]  # rounds that were kept
    assert set(result.seconds) == {"a", "b", "left", "right"} and len(result.seconds["a"]) == 2


def test_a_restless_machine_ends_too() -> None:
    probes = iter([100.0 * 2**n for n in range(50)])
    result = compare({"a": lambda: None}, rounds=3, probe=lambda: next(probes))
    assert len(result.probes) == 1 and result.num_discarded == 5


def test_ratios_are_paired() -> None:
    comparison = Comparison({"ours": [1.0, 10.0, 2.0], "peer": [3.0, 20.0, 8.0]}, [100.0, 10.0, 50.0], 0)
    assert comparison.speedup("ours", over="peer") == Spread(3.0, 2.5, 3.5)  # of 3, 2 and 4
    assert comparison.time("ours").median == 2.0
    share = comparison.bandwidth_share("ours", 90.0)
    assert share is not None and share.median == pytest.approx(0.9)
    assert Comparison({"a": [1.0]}, [], 0).bandwidth_share("a", 1.0) is None
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="candidates"):
        compare({})
    with pytest.raises(ValueError, match="round"):
        compare({"a": lambda: None}, rounds=0)
