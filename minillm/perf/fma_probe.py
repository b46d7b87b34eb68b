"""The FMA probe: how many floating-point operations a second this machine's cores can do, as busy as they are now.

A share of peak is honest only against a peak measured at the same time with the same threads: clocks fall when many
cores or wide vectors are busy, and a shared machine gives what is left. The probe is a ceiling by construction. It
runs multiply-adds on registers at the widest vectors, enough of them side by side to keep every unit busy, and
touches no memory; a program that also has to load its numbers can at best hide that.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch


class FmaProbe:
    """Multiply-adds in float32, run by `flops_per_s` on `num_threads` threads (None = torch's number of threads).

    A multiply-add counts as two FLOPs. One reading takes about `seconds`. Raises ValueError without numba, or for
    fewer than one thread.
    """

    def __init__(self, num_threads: int | None = None, *, seconds: float = 0.01) -> None:
        if importlib.util.find_spec("numba") is None:
            raise ValueError("the FMA probe needs numba: pip install minillm[fast]")
        self.num_threads = torch.get_num_threads() if num_threads is None else num_threads
        if self.num_threads < 1:
            raise ValueError(f"expected at least 1 thread, got {self.num_threads}")
        if not seconds > 0:
            raise ValueError(f"expected a positive number of seconds, got {seconds}")
        from minillm.gemm.threads import threading_layer
        from minillm.perf import fma_kernel

        # The chains settle at addend / (1 - factor) = 1.5: numbers of ordinary size, whose speed is that of any other.
        numbers: dict[str, Any] = {"factor": np.float32(0.5), "addend": np.float32(0.75)}
        one_thread: Any = partial(fma_kernel.run_chains, **numbers)
        self._run: Any = one_thread
        if self.num_threads > 1:
            threading_layer()
            self._run = partial(fma_kernel.run_chains_in_parallel, **numbers, num_threads=self.num_threads)
        one_thread(1)
        self._run(1)  # compile outside the clock
        # Every thread turns as often as one does alone, so that starting them has no say in how often.
        self.turns = max(1, round(1000 * seconds / min(_seconds(one_thread, 1000) for _ in range(3))))
        self.flops = self.turns * fma_kernel.STEPS_PER_TURN * fma_kernel.FLOPS_PER_STEP * self.num_threads

    def flops_per_s(self, *, repeats: int = 3) -> float:
        """FLOPs a second, all threads together, the best of `repeats` readings."""
        if repeats < 1:
            raise ValueError(f"expected at least 1 repeat, got {repeats}")
        return self.flops / min(_seconds(self._run, self.turns) for _ in range(repeats))


def _seconds(run: Callable[[int], object], turns: int) -> float:
    started = time.perf_counter()
    run(turns)
    return time.perf_counter() - started
