"""numba's threads, started once and without disturbing torch's."""

from __future__ import annotations

from functools import cache

import numba
import torch
from numba import njit, prange


@cache
def threading_layer() -> str:
    """Start numba's threads if they aren't yet; returns the layer it chose: "omp", "tbb" or "workqueue".

    Where torch and numba share an OpenMP runtime, numba's start sets the number of threads of both to all cores, so
    torch's is put back here. Call it before the first parallel function of the process.
    """
    num_threads = torch.get_num_threads()
    _start_threads(2)
    torch.set_num_threads(num_threads)
    return numba.threading_layer()


@njit(parallel=True, cache=True)
def _start_threads(count: int) -> int:  # pragma: no cover (compiled)
    total = 0
    for thread in prange(count):
        total += thread
    return total
