"""The read-bandwidth probe: how fast this machine, as busy as it is now, brings memory to its cores.

A share of bandwidth is honest only against a probe taken at the same time with the same threads: on a
shared machine the same array is read at 60 % of its best speed a minute later.
"""

from __future__ import annotations

import importlib.util
import time

import torch

MIB = 2**20


class ReadProbe:
    """An array of `num_bytes` (float32, zeros written once), read from end to end by `bytes_per_s`.

    It must be much larger than the last cache: 512 MiB by default. Reads with numba where installed,
    which is what the fast linears do; with torch's sum otherwise. `num_threads=None` means torch's number
    of threads.
    """

    def __init__(self, num_bytes: int = 512 * MIB, *, num_threads: int | None = None) -> None:
        if num_bytes < 4096:
            raise ValueError(f"a probe needs at least 4096 bytes, got {num_bytes}")
        self.num_threads = torch.get_num_threads() if num_threads is None else num_threads
        self.numbers = torch.zeros(num_bytes // 4)
        self.numbers.fill_(1.0)  # pages are handed out when they are written
        self.uses_numba = importlib.util.find_spec("numba") is not None
        if self.uses_numba:
            from minillm.gemm.threads import threading_layer

            threading_layer()
        self._read()  # compile outside the clock

    def bytes_per_s(self, *, repeats: int = 3) -> float:
        """Bytes read per second, the best of `repeats` readings."""
        best = float("inf")
        for _ in range(repeats):
            started = time.perf_counter()
            self._read()
            best = min(best, time.perf_counter() - started)
        return self.numbers.nbytes / best

    def _read(self) -> float:
        if not self.uses_numba:
            return float(self.numbers.sum())
        from minillm.perf.read_kernel import parallel_sum

        return float(parallel_sum(self.numbers.numpy(), self.num_threads))
