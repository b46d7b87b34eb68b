"""Rung 3: a block of B that stays in the cache while all rows of A use it (needs numba).

for each block of B:              B ┌────┬────┐      A row of A's block, times the block of B, is added to a piece
    for i:  for k:  for j:          │████│    │      of C's row. The block is read M times, the first time from
                                    ├────┼────┤      memory, then from the cache.
                                    │    │    │
                                    └────┴────┘
"""

from __future__ import annotations

from typing import Any

from numba import njit

# 64 × 512 numbers are 128 KiB: they fit the second cache of any current processor (256 KiB and more), and the pieces
# of the rows of B and C in the inner loop, 2 KiB each, fit the first. Long rows keep the vectors busy.
BLOCK_K, BLOCK_N = 64, 512


@njit(cache=True, nogil=True, fastmath={"contract"})
def multiply(a: Any, b: Any, c: Any) -> None:  # pragma: no cover (compiled)
    """c (M, N) = a (M, K) · b (K, N), by blocks of B.

    What changed: k and j run over a block before i moves on. What it gains: B comes from memory once and not M times,
    so that its bytes fall from 4·M·K·N to 4·K·N; C is now read and written once for each block of k, 8·M·N·K/BLOCK_K
    bytes. On a CPU this matters only once B outgrows the caches, since below that ikj already reads it from there.
    What is left: within the cache each multiply-add still loads two numbers and stores one.
    """
    rows, depth = a.shape
    columns = b.shape[1]
    c[:, :] = 0
    for first_k in range(0, depth, BLOCK_K):
        last_k = min(first_k + BLOCK_K, depth)
        for first_j in range(0, columns, BLOCK_N):
            last_j = min(first_j + BLOCK_N, columns)
            for i in range(rows):
                c_piece = c[i, first_j:last_j]
                for k in range(first_k, last_k):
                    factor, b_piece = a[i, k], b[k, first_j:last_j]
                    for j in range(c_piece.size):
                        c_piece[j] += factor * b_piece[j]
