"""What every Triton kernel asks before it starts: where the tensors are, whether Triton compiles or interprets.

Triton decides when `@triton.jit` runs, once for the process: with TRITON_INTERPRET=1 in the environment kernels run on
CPU tensors as NumPy programs, otherwise they are compiled for the GPU that the tensors are on.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def _probe() -> None:
    pass


def is_interpreting() -> bool:
    """Whether Triton interprets kernels in this process, on CPU tensors."""
    return not isinstance(_probe, triton.runtime.JITFunction)


def check_tensors(**tensors: Tensor) -> None:
    """Raise ValueError, saying what to do, unless a kernel of this process can take these tensors together."""
    first = next(iter(tensors.values()))
    described = ", ".join(f"{name}: {tensor.dtype} on {tensor.device}" for name, tensor in tensors.items())
    if any(tensor.device != first.device or tensor.dtype != first.dtype for tensor in tensors.values()):
        raise ValueError(f"expected tensors of one dtype on one device, got {described}")
    if first.dtype not in KERNEL_DTYPES:
        raise ValueError(f"expected float32, float16 or bfloat16, got {described}")
    if is_interpreting():
        if not first.is_cpu:
            raise ValueError(f"Triton interprets in this process: expected CPU tensors, got {described}")
        if first.dtype == torch.bfloat16:
            raise ValueError("Triton's interpreter gets bfloat16 wrong: use float32 or float16, or a GPU")
    elif not first.is_cuda:
        raise ValueError(
            f"expected CUDA tensors, got {described}. Without a GPU the kernels run in Triton's interpreter: "
            "set TRITON_INTERPRET=1 before Triton is imported"
        )


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Kernels started inside run on the tensor's GPU, whichever is the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@cache
def num_sms(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 4 where Triton interprets, so that small problems still share them out."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


@cache
def capability(device: torch.device) -> int:
    """80 for an A100, 90 for an H100; 80 where Triton interprets."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
