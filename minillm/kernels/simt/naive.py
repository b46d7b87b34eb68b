"""Rung 1: one thread for each number of C, neighbouring threads in neighbouring rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from minillm.perf.warp import cuda

BLOCK_M, BLOCK_N = 32, 32  # of C, made by one block of as many threads


def naive(a: Any, b: Any, c: Any) -> None:
    """C = A B: each thread walks along a row of A and down a column of B.

    The warp's lanes stand in 32 different rows, so that in each step

        a[row, k]      32 lanes, 32 rows        32 sectors of 32 bytes for 128 bytes of numbers
        b[k, column]   the same for all lanes    1 sector
        c[row, column] 32 rows again            32 sectors

    and the kernel waits for memory nearly all the time. Reference: 1.3 % of cuBLAS on an A6000.
    """
    row, column = cuda.grid(2)  # threadIdx.x, which counts the lanes of a warp, runs over the rows
    if row < c.shape[0] and column < c.shape[1]:
        total = np.float32(0)
        for k in range(a.shape[1]):
            total += a[row, k] * b[k, column]
        c[row, column] = total
