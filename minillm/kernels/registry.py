"""The list of all kernels: what the tests run and `minillm doctor` reports on. Needs Triton; imported by name.

A new kernel adds its `entries` function here, and passes through every gate from then on.
"""

from __future__ import annotations

import torch

from minillm.kernels import flash_entries, fused_entries, gates, gemm_entries
from minillm.kernels.build import Built
from minillm.kernels.gates import KernelEntry, NumberCheck, Speed

KERNELS: dict[str, KernelEntry] = {
    entry.name: entry
    for entry in (
        *gemm_entries.entries(),
        *flash_entries.entries(),
        *fused_entries.entries(),
    )
}


def check_numbers(
    name: str, dtype: torch.dtype, device: torch.device | str = "cpu", *, large: bool = False
) -> list[NumberCheck]:
    """`gates.check_numbers` of a kernel by name, which a child process can be asked for (`processes.interpreter`)."""
    return gates.check_numbers(KERNELS[name], dtype, device, large=large)


def check_builds(name: str, capability: int, *, every: bool = False) -> list[Built]:
    """`gates.check_builds` of a kernel by name, for `processes.compiler`."""
    return gates.check_builds(KERNELS[name], capability, every=every)


def measure_speed(name: str, dtype: torch.dtype, *, rounds: int = 20) -> Speed:
    """`gates.measure_speed` of a kernel by name."""
    return gates.measure_speed(KERNELS[name], dtype, rounds=rounds)
