"""A GPU at the level of threads, simulated to be counted: which bytes each warp asks for, and what that costs.

    from minillm.perf.warp import cuda, simulate

    def transpose(source, target):                     # written as for numba.cuda, without its decorator
        row, column = cuda.blockIdx.x, cuda.threadIdx.x
        target[column, row] = source[row, column]      # reads along a row, writes along a column

    x, y = np.arange(1024, dtype=np.float32).reshape(32, 32), np.empty((32, 32), np.float32)
    run = simulate(transpose, grid=32, block=32, args=(x, y))
    run.traffic("global", "load").sectors_per_request      # 4.0: 32 neighbouring floats
    run.traffic("global", "store").sectors_per_request     # 32.0: every lane has a sector of its own
    print(run.report())                                    # line by line

The kernel's own source runs, one thread after the other, each from barrier to barrier. Accesses are put together again
into those of a warp: the n-th time that its lanes reach one place of the source between two barriers is one request.
Nothing is cached and nothing is timed. What the simulator refuses, with the line: an index out of range, shared memory
read before it is written, a race, a barrier that not all threads of a block reach. Made for problems of some ten
thousand accesses (a few a microsecond).

Reading order: this file, `warp_requests` (sectors and banks), `warp_memory` (arrays, races), `warp_device` (blocks,
threads, barriers), `warp_source` (the kernel's source), `warp_plot` (a picture).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from types import FunctionType
from typing import Any

import numpy as np

from minillm.perf.warp_device import MAX_THREADS_PER_BLOCK, Device, Dim3
from minillm.perf.warp_memory import KernelError
from minillm.perf.warp_requests import Request, Traffic, total
from minillm.perf.warp_source import Kernel, bind, cuda, resumable

__all__ = ["KernelError", "Request", "Run", "Traffic", "bind", "cuda", "simulate"]

Size = int | Sequence[int]


@dataclass(frozen=True)
class Run:
    """What a simulated launch did. The results are in the arrays that it was given.

    requests      every load and store of every warp, in the order in which their first lanes came by
    flops         additions, subtractions, multiplications and divisions of floating-point numbers that were loaded
    barriers      `cuda.syncthreads` passed, summed over the blocks
    shared_bytes  of the block that asked for most
    """

    requests: tuple[Request, ...]
    flops: int
    barriers: int
    shared_bytes: int
    num_blocks: int
    threads_per_block: int

    def select(self, space: str | None = None, kind: str | None = None, array: str | None = None) -> list[Request]:
        """The requests to "global" or "shared" memory, of kind "load" or "store", to one array; None means any."""
        return [
            request
            for request in self.requests
            if space in (None, request.space) and kind in (None, request.kind) and array in (None, request.array)
        ]

    def traffic(self, space: str | None = None, kind: str | None = None, array: str | None = None) -> Traffic:
        """Sums over `select(space, kind, array)`."""
        return total(self.select(space, kind, array))

    def report(self) -> str:
        """A table: one line for each place in the source that reads or writes memory, then the sums."""
        places: dict[tuple[int, str, str, str], list[Request]] = {}
        for request in self.requests:
            places.setdefault((request.line, request.space, request.array, request.kind), []).append(request)
        rows = [("line", "array", "access", "requests", "sectors/req.", "passes/req.", "bytes moved")]
        for (line, space, array, kind), requests in sorted(places.items()):
            sums = total(requests)
            in_sectors, in_passes = f"{sums.sectors_per_request:.2f}", f"{sums.passes / sums.requests:.2f}"
            cost = (in_sectors, "", f"{sums.bytes_moved:,}") if space == "global" else ("", in_passes, "")
            rows.append((str(line), array, f"{space} {kind}", f"{sums.requests:,}", *cost))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if i in (1, 2) else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        moved = self.traffic("global").bytes_moved
        ratio = f", {self.flops / moved:.2f} FLOP a byte" if moved else ""
        lines.append(
            f"{moved:,} bytes of global memory moved, {self.flops:,} FLOPs{ratio}; {self.barriers:,} barriers, "
            f"{self.shared_bytes:,} bytes of shared memory a block, {self.num_blocks:,} blocks of "
            f"{self.threads_per_block:,} threads"
        )
        return "\n".join(lines)


def simulate(kernel: Kernel, *, grid: Size, block: Size, args: Sequence[Any]) -> Run:
    """Run a kernel thread by thread and count.

    kernel  a Python function over the names of numba.cuda: threadIdx, blockIdx, blockDim, gridDim, grid, syncthreads,
            shared.array, local.array. Its source must be readable (a file or a notebook cell)
    grid    blocks, 1 to 3 numbers (x, y, z); `block` likewise the threads of one, 1024 at most
    args    NumPy arrays and CPU tensors stand for arrays in global memory, written in place; the rest is passed on

    Shapes of shared arrays are (rows, columns), C order, one after the other from 0. Raises KernelError, a ValueError,
    where the kernel is wrong, and ValueError for what can't be simulated.
    """
    grid3, block3 = _dim3("grid", grid), _dim3("block", block)
    if block3.x * block3.y * block3.z > MAX_THREADS_PER_BLOCK:
        raise ValueError(f"a block has {MAX_THREADS_PER_BLOCK} threads at most, got {tuple(block3)}")
    body, names = resumable(kernel)
    device = Device(grid3, block3)
    run_thread = FunctionType(body, {**names, "cuda": device.names}, argdefs=getattr(kernel, "__defaults__", None))
    parameters = list(inspect.signature(kernel).parameters)
    if len(args) > len(parameters):
        raise ValueError(f"the kernel takes {len(parameters)} arguments, got {len(args)}")
    values = [device.global_array(name, value) for name, value in zip(parameters, args, strict=False)]
    with np.errstate(all="ignore"):  # a GPU makes NaN and infinity without a word
        for z, y, x in product(range(grid3.z), range(grid3.y), range(grid3.x)):
            device.run_block(run_thread, values, Dim3(x, y, z))
    return Run(
        tuple(device.requests()),
        device.operations[0],
        device.barriers,
        device.shared_bytes,
        grid3.x * grid3.y * grid3.z,
        block3.x * block3.y * block3.z,
    )


def _dim3(name: str, size: Size) -> Dim3:
    sizes = (size,) if isinstance(size, int) else tuple(size)
    if not 1 <= len(sizes) <= 3 or any(number < 1 for number in sizes):
        raise ValueError(f"expected 1 to 3 sizes of at least 1 for {name}, got {size}")
    return Dim3(*sizes, *(1,) * (3 - len(sizes)))
