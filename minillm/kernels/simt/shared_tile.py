"""Rung 3: the block fetches square tiles into shared memory and reads each number 32 times from there.

  k ─►            B ┌────┬────┐
                    │    │ ▓▓ │ │        for each step along k:
                    ├────┼────┤ │ k        every thread fetches one number of both tiles
                    │    │ ▓▓ │ ▼          barrier: the tiles are there
A ┌────┬────┐     C ┌────┬────┐            every thread adds its 32 products
  │ ▓▓ │ ▓▓ │       │    │ ██ │            barrier: nobody reads any more
  └────┴────┘       └────┴────┘
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minillm.perf.warp import cuda

BLOCK_M = BLOCK_N = BLOCK_K = 32  # the tiles are squares: the three are equal


def shared_tile(a: Any, b: Any, c: Any) -> None:
    """C = A B. Changed: numbers of A and B that the threads of a block share are fetched from global memory once.

    Global memory moves 2·M·N·K / 32 numbers and not 2·M·N·K. What is left: two loads of shared memory for each
    multiply-add, and a thread waits for those. Reference: 12.8 % of cuBLAS on an A6000 (the rung before already had
    part of the reuse from the L1 cache).
    """
    a_tile = cuda.shared.array((BLOCK_M, BLOCK_K), np.float32)
    b_tile = cuda.shared.array((BLOCK_K, BLOCK_N), np.float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    row, column = cuda.blockIdx.y * BLOCK_M + y, cuda.blockIdx.x * BLOCK_N + x

    total = np.float32(0)
    for first_k in range(0, a.shape[1], BLOCK_K):
        a_tile[y, x] = a[row, first_k + x] if row < a.shape[0] and first_k + x < a.shape[1] else np.float32(0)
        b_tile[y, x] = b[first_k + y, column] if first_k + y < b.shape[0] and column < b.shape[1] else np.float32(0)
        cuda.syncthreads()
        for k in range(BLOCK_K):
            total += a_tile[y, k] * b_tile[k, x]  # one word for all lanes of a row; 32 words of 32 banks
        cuda.syncthreads()
    if row < c.shape[0] and column < c.shape[1]:
        c[row, column] = total
