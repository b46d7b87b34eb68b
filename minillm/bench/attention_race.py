"""A race of attentions on one problem: how their times are taken, and what the machine allows.

prepare     a candidate for this problem, on the spot; one that refuses is left out, with its reason
watch       the most memory that a call holds
compare     all of them and the probes in turn
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from minillm.bench.attention_check import Absence, Maker, attempt, prepared
from minillm.bench.attention_shape import AttentionShape
from minillm.bench.compare import Comparison, Spread, compare
from minillm.perf.device_probe import DeviceReadProbe, MatmulProbe, device_cache_bytes, synchronize
from minillm.perf.fma_probe import FmaProbe
from minillm.perf.peak_memory import peak_extra_bytes
from minillm.perf.probe import ReadProbe

READ, COMPUTE = "read probe", "compute probe"
MOST_CALLS = 1000  # within one timing
LONGEST_S = 3.0  # a call that takes longer isn't timed: twelve rounds of it are a minute


class ReadingProbe(Protocol):
    """`ReadProbe` or `DeviceReadProbe`."""

    numbers: Tensor

    def bytes_per_s(self, *, repeats: int = 3) -> float: ...


class ComputingProbe(Protocol):
    """`FmaProbe` or `MatmulProbe`."""

    flops: int

    def flops_per_s(self, *, repeats: int = 3) -> float: ...


@dataclass(frozen=True)
class Probes:
    """The machine's limits. compute is None on a CPU without numba."""

    read: ReadingProbe
    compute: ComputingProbe | None


def make_probes(
    device: torch.device, dtype: torch.dtype, *, probe_bytes: int, probe_s: float, probe_size: int
) -> Probes:
    """The probes of a device, on torch's number of threads. Without numba a CPU has no compute probe."""
    if device.type == "cuda":
        return Probes(DeviceReadProbe(device, probe_bytes), MatmulProbe(device, dtype, size=probe_size))
    has_numba = importlib.util.find_spec("numba") is not None
    return Probes(ReadProbe(probe_bytes), FmaProbe(seconds=probe_s) if has_numba else None)


@dataclass(frozen=True)
class Race:
    """Times of one problem. Keys of `comparison` are candidates, READ, and COMPUTE where there is such a probe.

    dtype, device   names, as "float32" and "cpu"
    backward        whether a call is forward and backward
    read_bytes      read by a call of the read probe; compute_flops likewise, None without such a probe
    peak_bytes      the most that a call held beyond its inputs; {} where nobody watched
    absent          who wasn't timed, and why
    """

    shape: AttentionShape
    dtype: str
    device: str
    backward: bool
    comparison: Comparison
    read_bytes: int
    compute_flops: int | None
    peak_bytes: dict[str, int] = field(default_factory=dict)
    absent: dict[str, Absence] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The candidates that were timed."""
        return [name for name in self.comparison.seconds if name not in (READ, COMPUTE)]

    @property
    def bytes_per_number(self) -> int:
        """Of q, k, v and out."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype.itemsize

    @property
    def flops(self) -> int:
        """FLOPs of a call, see `AttentionShape.flops`."""
        return self.shape.flops(backward=self.backward)

    @property
    def read_rate(self) -> float:
        """Bytes a second of the read probe, median."""
        return self.read_bytes / self.comparison.time(READ).median

    @property
    def compute_rate(self) -> float | None:
        """FLOPs a second of the compute probe, median."""
        return None if self.compute_flops is None else self.compute_flops / self.comparison.time(COMPUTE).median

    def compute_s(self) -> float | None:
        """Seconds that the FLOPs take at the compute probe's speed."""
        return None if self.compute_rate is None else self.flops / self.compute_rate

    def move_s(self) -> float | None:
        """Seconds that q, k, v, out (and gradients) take at the read probe's speed; None if the cache holds them."""
        least = self.shape.least_bytes(self.bytes_per_number, backward=self.backward)
        return least / self.read_rate if least > device_cache_bytes(torch.device(self.device)) else None

    def limit_s(self) -> float:
        """Nothing is faster: the longer of computing and moving; 0 where neither is known."""
        return max(self.compute_s() or 0.0, self.move_s() or 0.0)

    def compute_share(self, name: str) -> Spread | None:
        """Share of the compute probe's speed, from pairs of the same round."""
        if self.compute_flops is None:
            return None
        return _scaled(self.comparison.speedup(name, over=COMPUTE), self.flops / self.compute_flops)

    def read_share(self, name: str) -> Spread:
        """Share of the read probe's speed at which keys and values were consumed, from pairs of the same round."""
        num_bytes = self.shape.kv_bytes(self.bytes_per_number)
        return _scaled(self.comparison.speedup(name, over=READ), num_bytes / self.read_bytes)


def race(
    makers: Mapping[str, Maker],
    shape: AttentionShape,
    dtype: torch.dtype,
    device: torch.device,
    probes: Probes,
    *,
    rounds: int,
    block_s: float,
    backward: bool = False,
    watch_memory: bool = False,
    bound_by_compute: bool = True,
    absent: Mapping[str, Absence] | None = None,
    on_round: Callable[[], object] = lambda: None,
) -> Race:
    """Time all candidates that aren't `absent` already.

    block_s           a short call is repeated within one timing until it lasts about this long
    bound_by_compute  which probe tells disturbed rounds; without a compute probe the other one does
    """
    inputs = shape.tensors(dtype, device)
    left = dict(absent or {})
    calls: dict[str, Callable[[], object]] = {}
    counts: dict[str, int] = {}
    peaks: dict[str, int] = {}
    for name, make in makers.items():
        if name in left:
            continue
        call, reason = attempt(lambda make=make: prepared(make(shape, device), inputs, backward=backward))  # type: ignore[misc]
        if call is None:
            left[name] = Absence(reason)
            continue
        seconds = _seconds(call, device)
        if seconds > LONGEST_S:
            left[name] = Absence(f"a call takes {seconds:.0f} s")
            continue
        counts[name] = max(1, min(MOST_CALLS, round(block_s / max(seconds, 1e-9))))
        calls[name] = partial(_repeat, call, counts[name], device)
        if watch_memory:
            peaks[name] = peak_extra_bytes(call, device)
    calls[READ] = partial(probes.read.bytes_per_s, repeats=1)
    probe: Callable[[], float] = probes.read.bytes_per_s
    if probes.compute is not None:
        calls[COMPUTE] = partial(probes.compute.flops_per_s, repeats=1)
        probe = probes.compute.flops_per_s if bound_by_compute else probe
    blocks = compare(calls, rounds=rounds, probe=probe, on_round=on_round)
    times = {name: [block / counts.get(name, 1) for block in of_name] for name, of_name in blocks.seconds.items()}
    return Race(
        shape=shape,
        dtype=str(dtype).removeprefix("torch."),
        device=device.type,
        backward=backward,
        comparison=Comparison(times, blocks.probes, blocks.num_discarded),
        read_bytes=probes.read.numbers.nbytes,
        compute_flops=None if probes.compute is None else probes.compute.flops,
        peak_bytes=peaks,
        absent=left,
    )


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    _repeat(call, 1, device)
    return time.perf_counter() - started


def _repeat(call: Callable[[], object], count: int, device: torch.device) -> None:
    for _ in range(count):
        call()
    synchronize(device)


def _scaled(spread: Spread, factor: float) -> Spread:
    return Spread(spread.median * factor, spread.low * factor, spread.high * factor)
