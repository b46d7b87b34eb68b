"""Doctor, part 2: the devices that torch can compute on."""

from __future__ import annotations

from typing import Any

import torch

from minillm.bench.doctor_section import FAILED, NOT_CHECKED, OK, Check, Section, Settings, brief, columns, explained

CPU_ONLY = (
    "everything runs here except what needs a GPU: kernels are checked in an interpreter instead, and their speed not"
)


def examine(settings: Settings) -> Section:
    """One line a device. Having none but the CPU is fine; one that can't add two numbers is a failure."""
    gpus = [describe_gpu(index) for index in range(torch.cuda.device_count())]
    checks = [check_device(f"cuda:{index}") for index in range(len(gpus))]
    rows = [[check.name, check.verdict, gpu["name"], gpu_text(gpu)] for check, gpu in zip(checks, gpus, strict=True)]
    if torch.backends.mps.is_available():
        checks.append(check_device("mps"))
        rows.append(["mps", checks[-1].verdict, "Apple GPU", "shares the CPU's memory"])
    if not rows:
        found = f"torch {torch.__version__} sees none, so that the speed of kernels and their bfloat16 are unknown"
        checks.append(Check("GPU", NOT_CHECKED, found))
        rows = [["cpu", OK, "no GPU", CPU_ONLY]]
    lines = (*columns(rows), *explained(checks))
    return Section("devices", "Devices", lines, tuple(checks), {"gpus": gpus, "driver": driver()})


def describe_gpu(index: int) -> dict[str, Any]:
    """Name, bytes of memory, streaming multiprocessors, and compute capability, "9.0"."""
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "num_sms": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
    }


def gpu_text(gpu: dict[str, Any]) -> str:
    """What follows a GPU's name in the table."""
    version = driver()
    return (
        f"{gpu['memory_bytes'] / 2**30:.1f} GiB, {gpu['num_sms']} SMs, capability {gpu['capability']}, "
        f"CUDA {torch.version.cuda or torch.version.hip}" + (f", driver {version}" if version else "")
    )


def driver() -> str | None:
    """The version of NVIDIA's driver; None where there is none to ask."""
    import subprocess

    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip().partition("\n")[0] or None


def check_device(name: str) -> Check:
    """Whether the device computes at all: sums of small whole numbers, exact in every format."""
    try:
        x = torch.arange(64, device=name, dtype=torch.float32)
        found = float((x + x).sum().item())
    except Exception as error:
        return Check(name, FAILED, brief(error), "torch finds the device but can't use it: do driver and torch fit?")
    if found != 64 * 63:
        return Check(name, FAILED, f"0 + 2 + … + 126 is 4032, the device says {found:g}", "the device is broken")
    return Check(name, OK, "computes")
