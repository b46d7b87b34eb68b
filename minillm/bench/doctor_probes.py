"""Doctor, part 3: what memory and arithmetic units deliver now, beside the data sheet where the table has one."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from minillm.bench.doctor_environment import installed
from minillm.bench.doctor_section import (
    FAILED,
    NOT_CHECKED,
    OK,
    Check,
    Section,
    Settings,
    brief,
    columns,
    explained,
    paragraph,
)
from minillm.perf.hardware import Hardware, find_hardware

MIB, GIGA = 2**20, 1e9
LOW_SHARE = 0.5  # of the data sheet's figure, below which something else is likely to be at work

Probe = Callable[[], float]


def examine(settings: Settings) -> Section:
    """Read bandwidth and multiply-adds of the CPU; copies and products of each GPU."""
    probes = cpu_probes(settings.quick)
    for index in range(torch.cuda.device_count()):
        probes += gpu_probes(torch.device("cuda", index), find_sheet(torch.cuda.get_device_name(index)), settings.quick)
    checks: list[Check] = []
    for number, (name, unit, run, sheet) in enumerate(probes):
        settings.on_step(name, number, len(probes))
        checks.append(measure(name, unit, run, sheet))
    if not installed("numba"):
        advice = "pip install 'minillm[fast]' brings numba"
        checks.append(Check("CPU multiply-adds", NOT_CHECKED, "the FMA probe needs numba", advice))
    lines = columns([["", "measured", "data sheet", "share"], *map(_row, checks)], right=(1, 2, 3))
    lines += ["", *paragraph(_remark(checks))]
    return Section("probes", "Speed of this machine, now", (*lines, *explained(checks)), tuple(checks))


def cpu_probes(quick: bool) -> list[tuple[str, str, Probe, float | None]]:
    """(name, unit, measurement, figure of the data sheet). CPUs have no data sheet in the table."""
    num_bytes = (32 if quick else 256) * MIB
    found: list[tuple[str, str, Probe, float | None]] = [("CPU reading", "GB/s", partial(read_cpu, num_bytes), None)]
    if installed("numba"):
        found.append(("CPU multiply-adds", "GFLOP/s", multiply_add_on_cpu, None))
    return found


def gpu_probes(device: torch.device, sheet: Hardware | None, quick: bool) -> list[tuple[str, str, Probe, float | None]]:
    """Copies within the device's memory, and products of large matrices in bfloat16."""
    num_bytes, size = (64 * MIB, 2048) if quick else (1024 * MIB, 8192)
    bandwidth, peak = (sheet.bytes_per_s, sheet.peaks.bf16) if sheet else (None, None)
    return [
        (f"{device} copying", "GB/s", partial(copy_bytes_per_s, device, num_bytes), bandwidth),
        (f"{device} products, bf16", "GFLOP/s", partial(product_flops_per_s, device, size), peak),
    ]


def find_sheet(name: str) -> Hardware | None:
    """The GPU's line of the hardware table, if it is there."""
    try:
        return find_hardware(name)
    except ValueError:
        return None


def measure(name: str, unit: str, run: Probe, sheet: float | None) -> Check:
    """A check that passes if there is a figure; low ones come with advice, since they are no error."""
    try:
        rate = run()
    except Exception as error:
        return Check(name, FAILED, brief(error), f"close other programs and try again; {name} measures nothing else")
    numbers = {"measured": rate, "data_sheet": sheet, "unit": unit.replace("G", "", 1)}
    is_low = sheet is not None and rate < LOW_SHARE * sheet
    advice = f"{name} is far below the data sheet: is another program using the GPU?" if is_low else ""
    return Check(name, OK, f"{rate / GIGA:,.4g} {unit}", advice, numbers)


def read_cpu(num_bytes: int) -> float:
    """Bytes a second that the cores read from memory."""
    from minillm.perf.probe import ReadProbe

    return ReadProbe(num_bytes).bytes_per_s()


def multiply_add_on_cpu() -> float:
    """FLOPs a second in float32, all threads together."""
    from minillm.perf.fma_probe import FmaProbe

    return FmaProbe().flops_per_s()


def copy_bytes_per_s(device: torch.device, num_bytes: int, *, repeats: int = 5) -> float:
    """Bytes a second read and written while an array of `num_bytes` is copied within the device's memory."""
    from minillm.perf.device_probe import synchronize

    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(repeats + 1):  # the first touches the pages
        synchronize(device)
        started = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * num_bytes / best


def product_flops_per_s(device: torch.device, size: int) -> float:
    """FLOPs a second of the vendor's matrix product in bfloat16."""
    from minillm.perf.device_probe import MatmulProbe

    return MatmulProbe(device, torch.bfloat16, size=size).flops_per_s(repeats=10)


def _row(check: Check) -> list[str]:
    if check.verdict != OK:
        return [check.name, check.verdict, "", ""]
    numbers: dict[str, Any] = check.numbers
    sheet = numbers["data_sheet"]
    if sheet is None:
        return [check.name, check.found, "none known", ""]
    return [check.name, check.found, f"{sheet / GIGA:,.4g}", f"{numbers['measured'] / sheet:.0%}"]


def _remark(checks: list[Check]) -> str:
    rates = {check.name: check.numbers["measured"] for check in checks if check.verdict == OK}
    read, flops = rates.get("CPU reading"), rates.get("CPU multiply-adds")
    threads = f"With {torch.get_num_threads()} threads, on a machine as busy as it is now."
    if not read or not flops:
        return threads
    return f"{threads} For each byte that is read, the cores could do {flops / read:.1f} FLOPs."
