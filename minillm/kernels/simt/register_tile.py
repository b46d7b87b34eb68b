"""Rung 5: each thread makes 8 × 8 numbers of C out of 8 numbers of A and 8 of B in registers.

               b_tile[k, :]   x x+16 x+32 …        The eight columns of a thread stand 16 apart, so that
                              ▓   ▓   ▓            neighbouring threads read neighbouring words: 16 banks,
a_tile[:, k]   y      ▓  ►    █   █   █            no conflict, and their stores to C are coalesced.
               y+16   ▓  ►    █   █   █            Eight columns side by side would put four lanes on
               y+32   ▓  ►    █   █   █            each of four banks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minillm.perf.warp import cuda

BLOCK_M, BLOCK_N, BLOCK_K = 128, 128, 8
THREAD_M, THREAD_N = 8, 8


def register_tile(a: Any, b: Any, c: Any) -> None:
    """C = A B. Changed: a thread's outer product, 64 multiply-adds for 16 loads of shared memory.

    Loads of shared memory for a multiply-add: (8 + 8) / 64 = 1/4. Global memory moves M·N·K · (1/128 + 1/128) numbers.
    Now arithmetic is what takes the time. Reference: 68.7 % of cuBLAS on an A6000. The step after it, loads of
    16 bytes a lane (78.4 %), has no plain spelling in CUDA-Python and is left out.
    """
    a_tile = cuda.shared.array((BLOCK_M, BLOCK_K), np.float32)
    b_tile = cuda.shared.array((BLOCK_K, BLOCK_N), np.float32)
    totals = cuda.local.array((THREAD_M, THREAD_N), np.float32)
    a_numbers = cuda.local.array(THREAD_M, np.float32)
    b_numbers = cuda.local.array(THREAD_N, np.float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    thread, num_threads = y * cuda.blockDim.x + x, cuda.blockDim.x * cuda.blockDim.y
    first_row, first_column = cuda.blockIdx.y * BLOCK_M, cuda.blockIdx.x * BLOCK_N

    for i in range(THREAD_M):
        for j in range(THREAD_N):
            totals[i, j] = np.float32(0)
    for first_k in range(0, a.shape[1], BLOCK_K):
        for element in range(thread, BLOCK_M * BLOCK_K, num_threads):
            i, k = element // BLOCK_K, element % BLOCK_K
            inside = first_row + i < a.shape[0] and first_k + k < a.shape[1]
            a_tile[i, k] = a[first_row + i, first_k + k] if inside else np.float32(0)
        for element in range(thread, BLOCK_K * BLOCK_N, num_threads):
            k, j = element // BLOCK_N, element % BLOCK_N
            inside = first_k + k < b.shape[0] and first_column + j < b.shape[1]
            b_tile[k, j] = b[first_k + k, first_column + j] if inside else np.float32(0)
        cuda.syncthreads()
        for k in range(BLOCK_K):
            for i in range(THREAD_M):
                a_numbers[i] = a_tile[y + i * cuda.blockDim.y, k]
            for j in range(THREAD_N):
                b_numbers[j] = b_tile[k, x + j * cuda.blockDim.x]
            for i in range(THREAD_M):
                for j in range(THREAD_N):
                    totals[i, j] += a_numbers[i] * b_numbers[j]
        cuda.syncthreads()
    for i in range(THREAD_M):
        for j in range(THREAD_N):
            row, column = first_row + y + i * cuda.blockDim.y, first_column + x + j * cuda.blockDim.x
            if row < c.shape[0] and column < c.shape[1]:
                c[row, column] = totals[i, j]
