"""The reading loop of the bandwidth probe (needs numba): each thread sums its own part of a large array."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange


@njit(fastmath={"reassoc", "contract"}, cache=True)
def _sum(numbers: Any) -> Any:  # pragma: no cover (compiled)
    total = np.float32(0)
    for i in range(numbers.size):
        total += numbers[i]
    return total


@njit(parallel=True, cache=True)
def parallel_sum(numbers: Any, num_threads: int) -> float:  # pragma: no cover (compiled)
    """The sum of a contiguous float32 array, read once by `num_threads` threads side by side."""
    total = 0.0
    for thread in prange(num_threads):
        first, last = numbers.size * thread // num_threads, numbers.size * (thread + 1) // num_threads
        total += _sum(numbers[first:last])
    return total
