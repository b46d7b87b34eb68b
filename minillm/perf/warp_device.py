"""The simulated GPU while a kernel runs: whose turn it is, where threads wait, what the warps ask for."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from itertools import product
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from minillm.perf.warp_memory import KernelError, LocalArray, Place, TracedArray, Who
from minillm.perf.warp_requests import WARP_SIZE, Request

MAX_THREADS_PER_BLOCK = 1024
SHARED_BYTES = 48 * 1024  # of a block, as CUDA grants it to every kernel without asking


class Dim3(NamedTuple):
    x: int
    y: int
    z: int


class Device:
    """The state of a launch: the thread that runs now, and what the warps have asked for."""

    def __init__(self, grid: Dim3, block: Dim3) -> None:
        self.grid, self.block = grid, block
        self.operations = [0]
        self.barriers = self.shared_bytes = self.epoch = self.thread = 0
        self.block_index = Dim3(0, 0, 0)
        self.lanes: dict[tuple[Any, ...], list[int | None]] = {}
        self.visits: dict[tuple[Any, ...], int] = {}
        self.shared_arrays: list[TracedArray] = []
        self.names = SimpleNamespace(
            threadIdx=Dim3(0, 0, 0),
            blockIdx=Dim3(0, 0, 0),
            blockDim=block,
            gridDim=grid,
            grid=self._grid,
            syncthreads=_stray_barrier,
            shared=SimpleNamespace(array=self._shared_array),
            local=SimpleNamespace(array=lambda shape, dtype: LocalArray(shape, _dtype(dtype), self.operations)),
        )

    def run_block(self, run_thread: Callable[..., Any], values: Sequence[Any], block_index: Dim3) -> None:
        """All threads of a block to their first barrier, then all to their second, until they have ended."""
        self.block_index = self.names.blockIdx = block_index
        self.epoch, self.shared_arrays = 0, []
        self.visits.clear()
        threads = list(enumerate(product(range(self.block.z), range(self.block.y), range(self.block.x))))
        waiting: list[Generator[int, None, None] | None] = [None] * len(threads)
        while True:
            stopped_in: dict[int, int] = {}  # thread: line of the barrier
            for thread, (z, y, x) in threads:
                self.thread, self.names.threadIdx = thread, Dim3(x, y, z)
                self.num_shared = 0 if self.epoch == 0 else len(self.shared_arrays)
                if waiting[thread] is None:
                    waiting[thread] = run_thread(*values)
                    if waiting[thread] is None:  # a kernel without barriers has run to its end
                        continue
                if (line := next(waiting[thread], None)) is not None:  # type: ignore[arg-type]
                    stopped_in[thread] = line
            if not stopped_in:
                return
            if len(stopped_in) < len(threads) or len(set(stopped_in.values())) > 1:
                lines = ", ".join(map(str, sorted(set(stopped_in.values()))))
                raise KernelError(
                    f"line {lines}: a barrier must be reached by all threads of the block together; thread "
                    f"{min(stopped_in)} waits, {len(threads) - len(stopped_in)} of {len(threads)} threads have ended"
                )
            self.epoch += 1
            self.barriers += 1
            self.visits.clear()

    def requests(self) -> list[Request]:
        """What the warps have asked for so far."""
        return [
            Request(array.space, kind, array.name, place[0], block, warp, tuple(addresses), array.dtype.itemsize)
            for (block, warp, _, place, _, array, kind), addresses in self.lanes.items()
        ]

    def global_array(self, name: str, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            value = value.detach().numpy()
        if not isinstance(value, np.ndarray):
            return value
        if any(stride < 0 for stride in value.strides):
            raise ValueError(f"{name}: an array that runs backwards can't lie in global memory")
        return TracedArray(name, "global", value, 0, self.who, self._note, self.operations)

    def who(self) -> Who:
        return self.block_index, self.epoch, self.thread

    def _note(self, array: TracedArray, kind: str, address: int, place: Place) -> None:
        """Put a thread's access together with those of the other lanes of its warp."""
        visit = (self.thread, place, kind)
        nth = self.visits[visit] = self.visits.get(visit, -1) + 1
        warp, lane = divmod(self.thread, WARP_SIZE)
        key = (self.block_index, warp, self.epoch, place, nth, array, kind)
        if (addresses := self.lanes.get(key)) is None:
            addresses = self.lanes[key] = [None] * WARP_SIZE
        addresses[lane] = address

    def _grid(self, axes: int) -> Any:
        places = [
            block * size + thread
            for block, size, thread in zip(self.block_index, self.block, self.names.threadIdx, strict=True)
        ]
        return places[0] if axes == 1 else tuple(places[:axes])

    def _shared_array(self, shape: Any, dtype: Any) -> TracedArray:
        """The first thread allocates; the same call of the others finds the array."""
        if self.num_shared == len(self.shared_arrays):
            values = np.zeros(shape, _dtype(dtype))
            used = sum(array.values.nbytes for array in self.shared_arrays)
            if used + values.nbytes > SHARED_BYTES:
                raise KernelError(
                    f"shared memory: {used} bytes taken, {values.nbytes} more asked for, {SHARED_BYTES} there"
                )
            name = f"shared {self.num_shared}"
            self.shared_arrays.append(TracedArray(name, "shared", values, used, self.who, self._note, self.operations))
            self.shared_bytes = max(self.shared_bytes, used + values.nbytes)
        self.num_shared += 1
        return self.shared_arrays[self.num_shared - 1]


def _stray_barrier() -> None:
    raise KernelError("cuda.syncthreads() must be a statement of the kernel itself, not of a function that it calls")


def _dtype(dtype: Any) -> np.dtype:
    """A NumPy dtype of what a kernel writes: np.float32, "float32" or numba.float32."""
    return np.dtype(dtype if isinstance(dtype, str | type | np.dtype) else str(dtype))
