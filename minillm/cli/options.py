"""Options that several commands share: `--device`, `--dtype`, `--threads`, and what they mean."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """Add `--device`, `--dtype` and `--threads`, to be read with the functions below."""
    group = parser.add_argument_group("machine")
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default cpu)")
    group.add_argument("--dtype", default="fp32", help="fp32, bf16, fp16, or auto = as stored (default fp32)")
    group.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")


def read_device(name: str) -> torch.device:
    """The device of that name. Raises ValueError if there is no such device on this machine."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in {"cpu", "cuda", "mps"}:
        raise ValueError(f"device must be cpu, cuda, cuda:N or mps, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} asked for, but torch sees {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {name!r} asked for, but torch sees no Apple GPU")
    return device


def read_dtype(name: str) -> torch.dtype | str:
    """`fp32`, `bf16`, `fp16` or torch's longer names as a dtype; `auto` as it is. Raises ValueError."""
    import torch

    if name == "auto":
        return name
    long_name = DTYPES.get(name, name)
    if long_name not in DTYPES.values():
        raise ValueError(f"dtype must be {', '.join(DTYPES)} or auto, got {name!r}")
    dtype: torch.dtype = getattr(torch, long_name)
    return dtype


def set_threads(threads: int | None) -> None:
    """Make torch use that many CPU threads in this process; None leaves it alone. ValueError below 1."""
    import torch

    if threads is None:
        return
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    torch.set_num_threads(threads)
