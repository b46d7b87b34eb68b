"""The rungs in order, and three ways to run one: counted here, in numba's simulator, on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from minillm.kernels.simt import coalesced, naive, register_column, register_tile, shared_tile
from minillm.perf.warp import Run, bind, simulate
from minillm.perf.warp_source import Kernel


@dataclass(frozen=True)
class SimtRung:
    """One kernel of the ladder.

    what_changed       since the rung before
    constants          the sizes that its source reads: BLOCK_M, BLOCK_N (the tile of C of a block), THREAD_M, THREAD_N
                       (that of a thread, 1 where missing), BLOCK_K
    rows_first         threadIdx.x and blockIdx.x run over the rows of C, and not over its columns
    reference_percent  of cuBLAS in float32 on an RTX A6000, measured by S. Boehm for kernels of this kind in CUDA C++
                       (https://github.com/siboehm/SGEMM_CUDA): what to expect, no result of ours
    """

    name: str
    kernel: Kernel
    what_changed: str
    reference_percent: float
    constants: Mapping[str, int] = field(default_factory=dict)
    rows_first: bool = False

    def launch_sizes(
        self, m: int, n: int, constants: Mapping[str, int] | None = None
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """(grid, block) for C (m, n), with these constants in the place of the rung's own."""
        sizes = {"THREAD_M": 1, "THREAD_N": 1, **self.constants, **(constants or {})}
        block_m, block_n = sizes["BLOCK_M"], sizes["BLOCK_N"]
        if block_m % sizes["THREAD_M"] or block_n % sizes["THREAD_N"]:
            raise ValueError(f"{self.name}: a block's tile is no whole number of threads' tiles in {sizes}")
        if self.name == "shared_tile" and not block_m == block_n == sizes["BLOCK_K"]:
            raise ValueError(f"{self.name}: BLOCK_M, BLOCK_N and BLOCK_K: the three are equal, got {sizes}")
        grid, block = (-(-n // block_n), -(-m // block_m)), (block_n // sizes["THREAD_N"], block_m // sizes["THREAD_M"])
        return (grid[::-1], block[::-1]) if self.rows_first else (grid, block)


def _rung(module: Any, what_changed: str, reference_percent: float, *, rows_first: bool = False) -> SimtRung:
    """The kernel has its module's name; its constants are the module's."""
    name = module.__name__.rpartition(".")[2]
    constants = {key: value for key, value in vars(module).items() if key.startswith(("BLOCK_", "THREAD_"))}
    return SimtRung(name, getattr(module, name), what_changed, reference_percent, constants, rows_first)


SIMT_LADDER: dict[str, SimtRung] = {
    rung.name: rung
    for rung in (
        _rung(naive, "one thread a number of C", 1.3, rows_first=True),
        _rung(coalesced, "neighbouring threads read neighbouring columns", 8.5),
        _rung(shared_tile, "tiles of A and B in shared memory", 12.8),
        _rung(register_column, "8 numbers of C a thread, in registers", 36.5),
        _rung(register_tile, "8 × 8 numbers of C a thread, in registers", 68.7),
    )
}


def simulate_matmul(name: str, a: Tensor, b: Tensor, **constants: int) -> tuple[Tensor, Run]:
    """A rung counted thread by thread: (C, what its warps did). For small problems.

    a (m, k), b (k, n)  float32 CPU tensors, of any strides
    constants           other sizes than the rung's own, BLOCK_M=16 say

    Raises ValueError for an unknown rung or unfit tensors and sizes.
    """
    rung = _checked(name, a, b)
    if unknown := constants.keys() - rung.constants.keys():
        raise ValueError(f"{name} has the constants {', '.join(rung.constants)}; got {', '.join(sorted(unknown))}")
    c = a.new_full((a.shape[0], b.shape[1]), float("nan"))
    if c.numel() == 0:
        raise ValueError(f"expected a C that isn't empty, got {tuple(c.shape)}: nothing to count")
    grid, block = rung.launch_sizes(c.shape[0], c.shape[1], constants)
    return c, simulate(bind(rung.kernel, **constants), grid=grid, block=block, args=(a, b, c))


def simt_matmul(name: str, a: Tensor, b: Tensor) -> Tensor:
    """A rung compiled by numba and run on the GPU: C (m, n) of float32 CUDA tensors a (m, k) and b (k, n).

    CPU tensors are taken where numba simulates CUDA (NUMBA_ENABLE_CUDASIM=1 before its import). Raises ValueError for
    an unknown rung, unfit tensors, or without numba's CUDA target (`pip install minillm[fast] numba-cuda`).
    """
    rung = _checked(name, a, b)
    numba_cuda = _numba_cuda()
    c = a.new_empty((a.shape[0], b.shape[1]))
    if c.numel() == 0:
        return c
    grid, block = rung.launch_sizes(c.shape[0], c.shape[1])
    if a.is_cuda and b.device == a.device:
        with torch.cuda.device(a.device):
            stream = numba_cuda.external_stream(torch.cuda.current_stream().cuda_stream)
            arrays = [numba_cuda.as_cuda_array(tensor.detach(), sync=False) for tensor in (a, b, c)]
            _compiled(name)[grid, block, stream](*arrays)
    elif is_simulated() and a.is_cpu and b.is_cpu:
        _compiled(name)[grid, block](a.numpy(), b.numpy(), c.numpy())
    else:
        raise ValueError(
            f"expected CUDA tensors on one device, got {a.device} and {b.device}; simulate_matmul counts on a CPU"
        )
    return c


def is_simulated() -> bool:
    """Whether numba simulates CUDA in this process."""
    from numba import config

    return bool(getattr(config, "ENABLE_CUDASIM", False))


@cache
def _compiled(name: str) -> Any:
    numba_cuda = _numba_cuda()
    return numba_cuda.jit(bind(SIMT_LADDER[name].kernel, cuda=numba_cuda))


def _numba_cuda() -> Any:
    try:
        from numba import cuda
    except ImportError as error:
        raise ValueError("thread-level kernels on a GPU need numba: pip install 'minillm[fast]' numba-cuda") from error
    return cuda


def _checked(name: str, a: Tensor, b: Tensor) -> SimtRung:
    if name not in SIMT_LADDER:
        raise ValueError(f"no rung {name!r}; there are {', '.join(SIMT_LADDER)}")
    fit = a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0] and a.dtype == b.dtype == torch.float32
    if not fit:
        shapes = f"{a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
        raise ValueError(f"expected float32 a (m, k) and b (k, n), got {shapes}")
    return SIMT_LADDER[name]
