"""Processes for the kernels. Triton and numba have one mode a process: each mode gets a child, started when needed.

The process that pytest runs in keeps whatever mode its environment says: nothing here depends on it, on the order of
the tests, or on how many workers share them out.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from minillm.kernels import processes
from minillm.kernels.processes import Worker

ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Worker]:
    """Triton's interpreter: `interpreter.call(function, *args)` on CPU tensors."""
    with processes.interpreter(**ONE_THREAD) as worker:
        yield worker


@pytest.fixture(scope="session")
def compiler() -> Iterator[Worker]:
    """Triton's compiler, for builds ahead of time."""
    with processes.compiler(**ONE_THREAD) as worker:
        yield worker


@pytest.fixture(scope="session")
def cuda_simulator() -> Iterator[Worker]:
    """numba's simulator of CUDA."""
    with processes.cuda_simulator(**ONE_THREAD) as worker:
        yield worker


@pytest.fixture(scope="session")
def gpu() -> Iterator[Worker]:
    """Kernels on the GPU of this machine; skips without one."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here: kernels are not run on a GPU")
    with processes.compiler() as worker:
        yield worker
