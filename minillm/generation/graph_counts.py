"""What a step costs the host: calls of Python functions, operations that reach torch, launches on a GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minillm.generation.tape import decomposed, names_memory_only

LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpyAsync", "cudaMemsetAsync", "cudaGraphLaunch")


@dataclass(frozen=True)
class StepCounts:
    """One call of a step.

    python_calls   Python functions entered, those of libraries included
    torch_ops      operations that reach torch's dispatcher from Python
    computing_ops  those of them that compute: each is one launch or more on a GPU; the others name memory (views)
    """

    python_calls: int
    torch_ops: int
    computing_ops: int


@torch.inference_mode()
def count_step(step: Callable[[], Any]) -> StepCounts:
    """Counts of one call of `step`, which is called three times: the first warms up.

    A replay of a CUDA graph reaches neither Python nor the dispatcher, and counts as what surrounds it.
    """
    step()
    calls = _CountCalls()
    previous = sys.getprofile()
    sys.setprofile(calls)
    try:
        step()
    finally:
        sys.setprofile(previous)
    with _CountOps() as ops:
        step()
    return StepCounts(calls.count, ops.num_ops, ops.num_computing)


@torch.inference_mode()
def count_launches(step: Callable[[], Any]) -> dict[str, int]:
    """Calls of the CUDA driver and runtime that start work, by name, in one call of `step` (called twice).

    Raises ValueError without a CUDA device.
    """
    if not torch.cuda.is_available():
        raise ValueError("counting launches needs a CUDA device")
    step()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    counts = {event.key: event.count for event in profile.key_averages()}
    return {key: count for key, count in counts.items() if key.startswith(LAUNCHES)}


class _CountCalls:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        self.count += event == "call"


class _CountOps(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.num_ops = self.num_computing = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (outputs := decomposed(self, func, args, kwargs)) is not NotImplemented:
            return outputs
        outputs = func(*args, **kwargs)
        self.num_ops += 1
        self.num_computing += not names_memory_only(func, (args, kwargs), outputs)
        return outputs
