"""Rung 1: the definition, written down (needs numba).

for i:  for j:  for k:      c[i, j] += a[i, k] · b[k, j]

A  i ─►  ────────── k      B     │ k      Inside the loop A is walked along a row, B down a column. Memory comes
         ──────────              │        in lines of 64 bytes, 16 numbers; of each line of B one is used before
         ──────────              ▼ j      the next is fetched, and the lines are gone before j + 1 wants them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, fastmath={"contract"})
def multiply(a: Any, b: Any, c: Any) -> None:  # pragma: no cover (compiled)
    """c (M, N) = a (M, K) · b (K, N), one number of C after the other.

    What it costs: every multiply-add loads one number of A and one of B, 8 bytes for 2 FLOPs, and B's come from a new
    cache line each. The additions to one sum wait for each other, about 4 cycles each, and a column can't be loaded as
    a vector. All three keep the arithmetic units idle.
    """
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            total = np.float32(0)
            for k in range(a.shape[1]):
                total += a[i, k] * b[k, j]
            c[i, j] = total
