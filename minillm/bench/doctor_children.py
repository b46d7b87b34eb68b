"""Doctor, what runs in child processes: each function there is asked for by name and answers with plain values.

Triton's and numba's modes are fixed when they are imported (see `minillm.kernels.processes`), and a kernel that crashes
or hangs takes its process along and not the doctor.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from minillm.kernels import gates
from minillm.kernels.gates import KernelEntry, NumberCheck, Problem, Speed

T = TypeVar("T")
MADE_FOR_HOPPER = {"persistent_matmul"}  # what it can choose there doesn't all fit older GPUs; a few builds must


@dataclass(frozen=True)
class KernelInfo:
    """What the parent must know of a registered kernel without importing it."""

    name: str
    mode: str
    dtypes: tuple[torch.dtype, ...]
    has_builds: bool
    has_vendor: bool


@dataclass(frozen=True)
class BuildCheck:
    """One way to compile a kernel for one compute capability, and why it wouldn't run; empty if it would."""

    label: str
    capability: int
    problem: str


def start() -> None:
    """Import what every check needs, so that it isn't counted as the first one's time."""
    import minillm.kernels.registry  # noqa: F401


def list_kernels() -> list[KernelInfo]:
    """The registry."""
    from minillm.kernels.registry import KERNELS

    return [
        KernelInfo(entry.name, entry.mode, entry.dtypes, bool(entry.builds()), entry.speed_problem is not None)
        for entry in KERNELS.values()
    ]


def check_numbers(
    name: str, dtypes: Sequence[torch.dtype], device: str, most: int | None, large: bool
) -> tuple[list[NumberCheck], int]:
    """The outcome of at most `most` problems a dtype (None = all), and how many problems there are in all."""
    from minillm.kernels.registry import KERNELS

    entry, where = KERNELS[name], torch.device(device)
    checks: list[NumberCheck] = []
    total = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the interpreter's NumPy meets the overflows asked of it
        for dtype in dtypes:
            problems = list(entry.problems(dtype, where, large))
            total += len(problems)
            checks += gates.check_numbers(with_problems(entry, sample(problems, most)), dtype, where, large=large)
    return checks, total


def with_problems(entry: KernelEntry, problems: list[Problem]) -> KernelEntry:
    """The entry with these problems, whatever it is asked for."""
    return replace(entry, problems=lambda *_: problems)


def check_builds(name: str, capabilities: Sequence[int], most: int | None) -> tuple[list[BuildCheck], int]:
    """The outcome of at most `most` builds a capability (None = every one that can be chosen), and their number."""
    from minillm.kernels.build import build
    from minillm.kernels.registry import KERNELS

    entry = KERNELS[name]
    found, total = [], 0
    for capability in capabilities:
        every = most is None and (capability >= 90 or name not in MADE_FOR_HOPPER)
        builds = list(entry.all_builds() if every else entry.builds())
        total += len(builds)
        for wanted in sample(builds, most):
            try:
                problem = build(wanted, capability).problem
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            found.append(BuildCheck(wanted.label, capability, problem))
    return found, total


def measure_speed(name: str, dtype: torch.dtype, rounds: int) -> Speed:
    """Ours and the vendor's on the GPU."""
    from minillm.kernels.registry import KERNELS

    return gates.measure_speed(KERNELS[name], dtype, rounds=rounds)


def sample(items: Sequence[T], most: int | None) -> list[T]:
    """At most `most` of them, evenly spread, the first and the last among them; None = all."""
    if most is None or len(items) <= most:
        return list(items)
    if most == 1:
        return [items[0]]
    return [items[i * (len(items) - 1) // (most - 1)] for i in range(most)]
