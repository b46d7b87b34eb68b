"""A description of the machine that a measurement was made on, as a dictionary for JSON."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "numba", "transformers", "tokenizers")


def describe_machine() -> dict[str, Any]:
    """CPU, cores, threads, caches, memory, system and versions. What can't be found out is None or left
    out.
    """
    return {
        "cpu": cpu_name(),
        "architecture": platform.machine(),
        "logical_cpus": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cache_bytes": cache_bytes(),
        "memory_bytes": memory_bytes(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
    }


def cpu_name() -> str | None:
    """The processor's name as the system tells it."""
    if platform.system() == "Linux":
        match = re.search(r"^model name\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
        return match.group(1) if match else platform.processor() or None
    if platform.system() == "Darwin":
        return _sysctl("machdep.cpu.brand_string")
    return platform.processor() or None


def cache_bytes() -> dict[str, int]:
    """Sizes of the first core's data caches by level, {"L1": …, "L2": …, "L3": …}; {} where unknown."""
    if platform.system() == "Darwin":
        names = {"L1": "hw.l1dcachesize", "L2": "hw.l2cachesize", "L3": "hw.l3cachesize"}
        return {level: int(value) for level, name in names.items() if (value := _sysctl(name))}
    units = {"K": 2**10, "M": 2**20, "": 1}
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        size = re.fullmatch(r"(\d+)([KM]?)\s*", _text(folder / "size"))
        if size and _text(folder / "type").strip() != "Instruction":
            found[f"L{_text(folder / 'level').strip()}"] = int(size.group(1)) * units[size.group(2)]
    return found


def last_cache_bytes() -> int:
    """Size of the largest cache; 32 MiB, a common size, where the system doesn't tell."""
    return max(cache_bytes().values(), default=32 * 2**20)


def memory_bytes() -> int | None:
    """Physical memory in bytes."""
    if platform.system() == "Darwin":
        value = _sysctl("hw.memsize")
        return int(value) if value else None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _sysctl(name: str) -> str | None:
    try:
        result = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
