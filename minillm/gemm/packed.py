"""Rung 5: blocks copied into the order in which the micro-kernel reads them (needs numba).

    for blocks of B, BLOCK_K × BLOCK_N:    copy into panels of the tile's width      stays in the third cache
        for blocks of A, BLOCK_M × BLOCK_K:    copy into panels of the tile's height     stays in the second
            for panels of B:                                                             stays in the first
                for panels of A:
                    micro-kernel: a tile of C in registers

    A block of B        panel 0      panel 1        A panel holds, for each k in turn, the numbers of one row of the
    ┌────┬────┐         k=0 ────     k=0 ────       tile side by side: the micro-kernel walks through memory from
    │ ──►│ ──►│   ──►   k=1 ────     k=1 ────       left to right and uses every byte it meets. Panels at the edge
    │ ──►│ ──►│         k=2 ────     k=2 ────       are filled up with zeros.
    └────┴────┘

The scheme of Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008), sections 4 and 6, with
the loops of BLIS around its micro-kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from minillm.gemm.micro_kernel import make_micro_kernel
from minillm.gemm.registers import COLUMNS, ROWS, TILE

# In numbers of float32. With tiles of 12 × 32 a panel of B takes 48 KiB, about a first cache; a block of A 144 KiB,
# well within a second; a block of B 3 MiB, within a core's share of the third.
BLOCK_K = 384
BLOCK_M = 8 * ROWS
BLOCK_N = 64 * COLUMNS

_multiply_tile = make_micro_kernel(TILE)


@njit(cache=True, nogil=True)
def multiply(a: Any, b: Any, c: Any) -> None:  # pragma: no cover (compiled)
    """c (M, N) = a (M, K) · b (K, N), from packed panels.

    What changed: A and B are copied, block by block, before they are multiplied. What it gains: the inner loop meets
    no new page and no two lines that want one place, and each block is the size of the cache that it is to stay in,
    so that the multiply-adds never wait. The copies cost (M·K·N/BLOCK_N + K·N) numbers, against M·N·K multiply-adds:
    a few parts in a hundred.
    """
    multiply_part(a, b, c, 0, a.shape[0], 0, b.shape[1])


@njit(cache=True, nogil=True)
def multiply_part(
    a: Any, b: Any, c: Any, first_row: int, last_row: int, first_column: int, last_column: int
) -> None:  # pragma: no cover (compiled)
    """Those rows and columns of C alone; the rest of C is left as it is."""
    depth = a.shape[1]
    block_k = min(BLOCK_K, depth)
    packed_a = np.empty(_filled_up(min(BLOCK_M, last_row - first_row), ROWS) * block_k, np.float32)
    packed_b = np.empty(_filled_up(min(BLOCK_N, last_column - first_column), COLUMNS) * block_k, np.float32)
    c[first_row:last_row, first_column:last_column] = 0
    for j in range(first_column, last_column, BLOCK_N):
        columns = min(BLOCK_N, last_column - j)
        for k in range(0, depth, BLOCK_K):
            num_k = min(BLOCK_K, depth - k)
            _pack_b(b[k : k + num_k, j : j + columns], packed_b)
            for i in range(first_row, last_row, BLOCK_M):
                rows = min(BLOCK_M, last_row - i)
                _pack_a(a[i : i + rows, k : k + num_k], packed_a)
                _multiply_blocks(packed_a, packed_b, c, i, rows, j, columns, num_k)


@njit(cache=True, nogil=True)
def _multiply_blocks(
    packed_a: Any, packed_b: Any, c: Any, first_row: int, rows: int, first_column: int, columns: int, depth: int
) -> None:  # pragma: no cover (compiled)
    """Add the product of a packed block of A and one of B to C, from (first_row, first_column) on."""
    flat_c, c_row = c.reshape(-1), c.shape[1]
    edge = np.empty(ROWS * COLUMNS, np.float32)  # a tile that C has no room for is summed here
    for j in range(0, columns, COLUMNS):
        for i in range(0, rows, ROWS):
            start = (first_row + i) * c_row + first_column + j
            if i + ROWS <= rows and j + COLUMNS <= columns:
                _multiply_tile(depth, packed_a, i * depth, 1, ROWS, packed_b, j * depth, COLUMNS, flat_c, start, c_row)
                continue
            edge[:] = 0
            _multiply_tile(depth, packed_a, i * depth, 1, ROWS, packed_b, j * depth, COLUMNS, edge, 0, COLUMNS)
            for r in range(min(ROWS, rows - i)):
                for q in range(min(COLUMNS, columns - j)):
                    flat_c[start + r * c_row + q] += edge[r * COLUMNS + q]


@njit(cache=True, nogil=True)
def _pack_a(block: Any, packed: Any) -> None:  # pragma: no cover (compiled)
    """block (rows, depth) -> panels of ROWS rows; in a panel k runs slowest."""
    rows, depth = block.shape
    for first in range(0, rows, ROWS):
        panel = packed[first * depth : (first + ROWS) * depth]
        if first + ROWS <= rows:
            for k in range(depth):
                for r in range(ROWS):
                    panel[k * ROWS + r] = block[first + r, k]
        else:
            panel[:] = 0
            for k in range(depth):
                for r in range(rows - first):
                    panel[k * ROWS + r] = block[first + r, k]


@njit(cache=True, nogil=True)
def _pack_b(block: Any, packed: Any) -> None:  # pragma: no cover (compiled)
    """block (depth, columns) -> panels of COLUMNS columns; in a panel k runs slowest."""
    depth, columns = block.shape
    for first in range(0, columns, COLUMNS):
        panel = packed[first * depth : (first + COLUMNS) * depth]
        if first + COLUMNS <= columns:
            for k in range(depth):
                for q in range(COLUMNS):
                    panel[k * COLUMNS + q] = block[k, first + q]
        else:
            panel[:] = 0
            for k in range(depth):
                for q in range(columns - first):
                    panel[k * COLUMNS + q] = block[k, first + q]


@njit(cache=True, nogil=True)
def _filled_up(count: int, step: int) -> int:  # pragma: no cover (compiled)
    return (count + step - 1) // step * step
