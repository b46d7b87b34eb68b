"""What `minillm bench gemm` measures: the ladder of matrix products against torch and the FMA probe, and flat products.

One size at a time: first every rung on one thread with torch on one thread, then the best of them and torch with all
threads. Flat products (few rows) follow, for a growing number of rows. Within each of these everything takes turns (see
`compare`), and a round starts with a reading of the FMA probe on as many threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from minillm.bench.compare import Comparison, Spread, compare
from minillm.gemm import LADDER
from minillm.perf.fma_probe import FmaProbe
from minillm.perf.probe import ReadProbe

NAIVE, PACKED, THREADS = "naive ijk", "packed", "threads"
TORCH, READ = "torch.mm", "read probe"
ONE_THREAD = tuple(name for name in LADDER if name != THREADS)


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    sizes         of the square products
    flat_counts   rows of A in the flat products, (rows, flat_size) · (flat_size, flat_size)
    naive_flops   the naive loop multiplies only as many rows of A as make about this many FLOPs; since it walks
                  through all of B for each row, its speed is that of the whole product
    probe_bytes   read by the read probe; `probe_s` is the length of a reading of the FMA probe
    """

    sizes: tuple[int, ...] = (512, 1024, 2048)
    rounds: int = 20
    flat_size: int = 4096
    flat_counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    naive_flops: int = 2**28
    probe_bytes: int = 512 * 2**20
    probe_s: float = 0.01


QUICK = Plan(
    sizes=(96,),
    rounds=2,
    flat_size=160,
    flat_counts=(1, 8, 9),
    naive_flops=2**20,
    probe_bytes=4 * 2**20,
    probe_s=0.001,
)


@dataclass(frozen=True)
class LadderResult:
    """Times of the products of size × size matrices. Keys are names of rungs, TORCH, and in `all_threads` READ too."""

    size: int
    num_threads: int
    naive_rows: int  # rows of A that the naive loop multiplied
    read_bytes: int
    one_thread: Comparison
    all_threads: Comparison

    def comparison(self, name: str) -> Comparison:
        """Where a rung was measured: THREADS with all threads, the others on one."""
        return self.all_threads if name == THREADS else self.one_thread

    def flops(self, name: str) -> int:
        """FLOPs of one timed call."""
        rows = self.naive_rows if name == NAIVE else self.size
        return 2 * rows * self.size**2

    def flops_per_s(self, name: str) -> float:
        """Median speed of a rung."""
        return self.flops(name) / self.comparison(name).time(name).median

    def torch_flops_per_s(self, comparison: Comparison) -> float:
        """Median speed of torch on that comparison's threads."""
        return self.flops(TORCH) / comparison.time(TORCH).median

    def gain(self, name: str, over: str) -> Spread:
        """How many times the speed of `over` a rung reached, both measured on the threads of `name`."""
        spread, scale = self.comparison(name).speedup(name, over), self.flops(name) / self.flops(over)
        return Spread(spread.median * scale, spread.low * scale, spread.high * scale)

    def fma_share(self, name: str) -> Spread:
        """Share of the FMA probe's speed on as many threads."""
        share = self.comparison(name).probe_share(name, self.flops(name))
        assert share is not None, "every round starts with a probe"
        return share


@dataclass(frozen=True)
class FlatResult:
    """Times of (rows, size) · (size, size) for each of `counts` rows, with keys as "flat 8"."""

    size: int
    num_threads: int
    counts: tuple[int, ...]
    read_bytes: int
    comparison: Comparison

    @property
    def names(self) -> list[str]:
        """Who multiplied: "flat", PACKED, TORCH, and "gemv" for the rows that it is made for."""
        return list(dict.fromkeys(key.rpartition(" ")[0] for key in self.comparison.seconds if key != READ))

    def seconds(self, name: str, rows: int) -> float | None:
        """Median time of a product; None where it wasn't measured."""
        key = f"{name} {rows}"
        return self.comparison.time(key).median if key in self.comparison.seconds else None

    def fastest(self, rows: int) -> str:
        """Who was fastest for that many rows."""
        times = {name: self.seconds(name, rows) for name in self.names}
        return min((name for name in times if times[name] is not None), key=lambda name: times[name] or 0.0)

    def read_s(self) -> float:
        """Seconds that reading B takes at the speed of the read probe: no product of it from memory is faster."""
        bytes_per_s = self.read_bytes / self.comparison.time(READ).median
        return 4 * self.size**2 / bytes_per_s


def measure_ladder(
    size: int, plan: Plan, read_probe: ReadProbe, on_round: Callable[[], object] = lambda: None
) -> LadderResult:
    """Measure the rungs at one size, with torch's number of threads where there are several. Raises ValueError
    without numba.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(size, size, generator=generator), torch.randn(size, size, generator=generator)
    num_threads = torch.get_num_threads()
    naive_rows = max(1, min(size, plan.naive_flops // (2 * size**2)))
    candidates: dict[str, Callable[[], object]] = {name: partial(LADDER[name], a, b) for name in ONE_THREAD}
    candidates[NAIVE] = partial(LADDER[NAIVE], a[:naive_rows], b)
    candidates[TORCH] = partial(torch.mm, a, b)
    with torch_threads(1):
        probe = FmaProbe(1, seconds=plan.probe_s)
        one_thread = compare(candidates, rounds=plan.rounds, probe=probe.flops_per_s, on_round=on_round)
    probe = FmaProbe(num_threads, seconds=plan.probe_s)
    candidates = {name: partial(LADDER[name], a, b) for name in (PACKED, THREADS)}
    candidates[TORCH] = partial(torch.mm, a, b)
    candidates[READ] = partial(read_probe.bytes_per_s, repeats=1)
    all_threads = compare(candidates, rounds=plan.rounds, probe=probe.flops_per_s, on_round=on_round)
    return LadderResult(size, num_threads, naive_rows, read_probe.numbers.nbytes, one_thread, all_threads)


def measure_flat(plan: Plan, read_probe: ReadProbe, on_round: Callable[[], object] = lambda: None) -> FlatResult:
    """Measure products with few rows, on torch's number of threads. Raises ValueError without numba."""
    num_threads = torch.get_num_threads()
    probe = FmaProbe(num_threads, seconds=plan.probe_s)
    from minillm.gemm.flat import flat_matmul
    from minillm.gemm.gemv import few_row_linear

    generator = torch.Generator().manual_seed(0)
    b = torch.randn(plan.flat_size, plan.flat_size, generator=generator)
    transposed = b.T.contiguous()  # the layout of a linear layer's weight, which a matrix–vector product wants
    candidates: dict[str, Callable[[], object]] = {}
    for rows in plan.flat_counts:
        a = torch.randn(rows, plan.flat_size, generator=generator)
        if rows <= 16:
            candidates[f"gemv {rows}"] = partial(few_row_linear, a, transposed, num_threads=num_threads)
        candidates[f"flat {rows}"] = partial(flat_matmul, a, b, num_threads=num_threads)
        candidates[f"{PACKED} {rows}"] = partial(LADDER[THREADS], a, b)
        candidates[f"{TORCH} {rows}"] = partial(torch.mm, a, b)
    candidates[READ] = partial(read_probe.bytes_per_s, repeats=1)
    comparison = compare(candidates, rounds=plan.rounds, probe=probe.flops_per_s, on_round=on_round)
    return FlatResult(plan.flat_size, num_threads, plan.flat_counts, read_probe.numbers.nbytes, comparison)


@contextmanager
def torch_threads(num_threads: int) -> Iterator[None]:
    """Let torch use that many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
