"""A GPU beside the CPU: its probes, its memory, its last cache.

The probes are what its tensor cores multiply and its memory delivers, as busy and as cool as it is now: the measures
that `fma_probe` and `probe` take of a CPU. A large matrix product by the vendor's library is the most
that programs reach, not the peak of the datasheet: clocks fall under load. Both work on a CPU, too, for tests.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from minillm.perf.machine import last_cache_bytes, memory_bytes


class MatmulProbe:
    """Square matrix products of `size` in `dtype` on `device`; a multiplication and its addition count as two FLOPs."""

    def __init__(self, device: torch.device | str, dtype: torch.dtype, *, size: int = 8192) -> None:
        if size < 1:
            raise ValueError(f"expected a size of at least 1, got {size}")
        self.a, self.b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        self.out = torch.empty_like(self.a)
        self.flops = 2 * size**3
        self._multiply()  # the library chooses its kernel

    def flops_per_s(self, *, repeats: int = 3) -> float:
        """FLOPs a second, the best of `repeats` products."""
        return self.flops / _best_seconds(self._multiply, self.a.device, repeats)

    def _multiply(self) -> None:
        torch.mm(self.a, self.b, out=self.out)


class DeviceReadProbe:
    """`num_bytes` in the memory of `device`, read from end to end. Must be much larger than the last cache."""

    def __init__(self, device: torch.device | str, num_bytes: int = 2 * 2**30) -> None:
        if num_bytes < 4096:
            raise ValueError(f"a probe needs at least 4096 bytes, got {num_bytes}")
        self.numbers = torch.ones(num_bytes // 4, device=device)
        self._read()

    def bytes_per_s(self, *, repeats: int = 3) -> float:
        """Bytes read per second, the best of `repeats` readings."""
        return self.numbers.nbytes / _best_seconds(self._read, self.numbers.device, repeats)

    def _read(self) -> None:
        self.numbers.amax()  # one pass that only reads; sums are pairwise and cost more


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_memory_bytes(device: torch.device) -> int:
    """All memory of a GPU or of the machine; 8 GiB where the system doesn't tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return memory_bytes() or 8 * 2**30


def device_cache_bytes(device: torch.device) -> int:
    """The last cache, L2 of a GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    return last_cache_bytes()


def _best_seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    if repeats < 1:
        raise ValueError(f"expected at least 1 repeat, got {repeats}")
    best = float("inf")
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best
