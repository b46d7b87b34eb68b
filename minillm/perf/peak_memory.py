"""The most memory that a call holds at a time, beyond what was there before: what O(N) and O(N²) are about.

On a GPU torch's caching allocator keeps the peak itself. On a CPU it keeps none, but reports every allocation and
release to a profiler; added up in order they give it:

    call          a = x @ y        b = a.exp()      del a        return b
    reported          +4 MiB           +4 MiB      −4 MiB
    held               4                8            4             peak 8 MiB

Scratch space inside a fused operator or a compiled kernel is seen, since it comes from the same allocator; a tensor
made by watching operators alone would miss it. What numba or NumPy allocate is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate

import torch


def peak_extra_bytes(call: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Run `call` once; the most bytes that it held at a time on the device, less what was held before.

    Its result counts. Tensors that it frees though it didn't make them lower the figure. Call it once beforehand, so
    that nothing is compiled or tuned while it is watched. On a GPU, other threads' tensors count too.
    Raises ValueError for devices other than a CPU or a CUDA GPU, and whatever the call raises.
    """
    where = torch.device(device)
    if where.type == "cuda":
        return _peak_on_gpu(call, where)
    if where.type != "cpu":
        raise ValueError(f"memory is watched on a CPU or a CUDA GPU, got the device {str(where)!r}")
    return peak_of(_reported(call))


def peak_of(changes: Iterable[int]) -> int:
    """The highest of the running sums of +allocated and −released bytes, 0 if none is above it."""
    return max(accumulate(changes, initial=0))


def _peak_on_gpu(call: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    del result
    return max(0, torch.cuda.max_memory_allocated(device) - before)


def _reported(call: Callable[[], object]) -> list[int]:
    """Bytes allocated (+) and released (−) by torch on the CPU during the call, in the order of time."""
    # The newer torch.profiler sees the same events, but writes lines of its own to stderr each time.
    from torch.autograd import _disable_profiler_legacy, _enable_profiler_legacy
    from torch.autograd.profiler_legacy import profile

    _enable_profiler_legacy(profile(profile_memory=True).config())
    try:
        result = call()
    finally:
        threads = _disable_profiler_legacy()
    del result
    events = [event for thread in threads for event in thread]
    start = next(event for event in events if event.name() == "__start_profile")
    events = [event for event in events if event.kind() == "memory_alloc"]
    if len(threads) > 1:
        events.sort(key=start.cpu_elapsed_us)  # a thread's own events are in order already
    return [event.cpu_memory_usage() for event in events]
