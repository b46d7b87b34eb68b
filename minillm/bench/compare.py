"""Compare callables on a machine that is never quite idle.

Speeds drift by tens of percent within minutes, ratios of neighbours do not: so the candidates take turns,
each round gives one time to each, and a ratio is the median over rounds of (time of A) / (time of B) in
the same round. A probe runs at the start of each round; a round whose probe is below 90 % of the best was
disturbed, and is discarded.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

PROBE_SHARE = 0.9


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a list of numbers."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: list[float]) -> Spread:
        if len(numbers) == 1:
            return cls(numbers[0], numbers[0], numbers[0])
        low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
        return cls(median, low, high)


class Parts(dict[str, float]):
    """Seconds of a candidate's parts by name: what a candidate returns that holds the clock itself."""


@dataclass(frozen=True)
class Comparison:
    """Times of the rounds that were kept: `seconds[name][i]` and `probes[i]` belong to the same round. Probes are
    rates, bytes/s or FLOP/s.
    """

    seconds: dict[str, list[float]]
    probes: list[float]
    num_discarded: int

    def time(self, name: str) -> Spread:
        """Seconds of one call."""
        return Spread.of(self.seconds[name])

    def speedup(self, name: str, over: str) -> Spread:
        """How many times as fast `name` is as `over`, from pairs of the same round."""
        pairs = zip(self.seconds[over], self.seconds[name], strict=True)
        return Spread.of([other / own for other, own in pairs])

    def probe_share(self, name: str, work: float) -> Spread | None:
        """Share of the probe's rate at which a call ran that does `work`, in the probe's unit: bytes or FLOPs. None
        without a probe.
        """
        if not self.probes:
            return None
        pairs = zip(self.seconds[name], self.probes, strict=True)
        return Spread.of([work / seconds / probe for seconds, probe in pairs])

    def bandwidth_share(self, name: str, num_bytes: float) -> Spread | None:
        """`probe_share` for a probe of bytes/s: a call that must move `num_bytes`."""
        return self.probe_share(name, num_bytes)


def compare(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 20,
    probe: Callable[[], float] | None = None,
    on_round: Callable[[], object] = lambda: None,
) -> Comparison:
    """Time every candidate once a round until `rounds` undisturbed rounds are there, or twice that many
    are done.

    probe: a rate reached now, bytes/s or FLOP/s; None = keep every round. Each candidate is called once
    beforehand, off the clock. The order rotates, so that none always follows the same neighbour. The seconds of `Parts`
    that a candidate returns stand beside its own. Raises ValueError without candidates or rounds.
    """
    if not candidates or rounds < 1:
        raise ValueError(f"expected candidates and at least 1 round, got {list(candidates)} and {rounds}")
    for call in candidates.values():
        call()
    names = list(candidates)
    times: list[dict[str, float]] = []
    probes: list[float] = []
    kept: list[int] = []
    while len(kept) < rounds and len(times) < 2 * rounds:
        if probe is not None:
            probes.append(probe())
        first = len(times) % len(names)
        times.append({})
        for name in names[first:] + names[:first]:
            times[-1] |= _seconds(name, candidates[name])
        kept = [i for i in range(len(times)) if not probes or probes[i] >= PROBE_SHARE * max(probes)]
        on_round()
    return Comparison(
        seconds={name: [times[i][name] for i in kept] for name in times[0]},
        probes=[probes[i] for i in kept] if probes else [],
        num_discarded=len(times) - len(kept),
    )


def _seconds(name: str, call: Callable[[], object]) -> dict[str, float]:
    started = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - started
    return {name: seconds} | (result if isinstance(result, Parts) else {})
