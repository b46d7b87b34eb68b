"""Rung 6: every core takes a part of C (needs numba).

C  ┌─────────┬─────────┐       Parts need nothing of one another: each thread packs what its own part reads,
   │ thread 0│ thread 1│       and nobody waits. The price is that A is packed once for each column of parts,
   ├─────────┼─────────┤       B once for each row of them; parts near square keep it lowest.
   │ thread 2│ thread 3│
   └─────────┴─────────┘
"""

from __future__ import annotations

from typing import Any

import torch
from numba import njit, prange

from minillm.gemm.packed import multiply_part
from minillm.gemm.registers import COLUMNS, ROWS
from minillm.gemm.threads import threading_layer


def multiply(a: Any, b: Any, c: Any, num_threads: int | None = None) -> None:
    """c (M, N) = a (M, K) · b (K, N), a part of C on each of `num_threads` threads (None = torch's number).

    What changed: the packed product runs on as many parts of C as there are threads. What it gains: the number of
    cores, less the repeated packing and what the cores share (the clock, the third cache, memory).
    """
    threading_layer()
    num_threads = torch.get_num_threads() if num_threads is None else num_threads
    down, across = part_grid(a.shape[0], b.shape[1], num_threads)
    _multiply_parts(a, b, c, down, across)


def part_grid(rows: int, columns: int, num_parts: int) -> tuple[int, int]:
    """Parts of C below and beside one another, `num_parts` in all, so that the least is packed: rows of A plus
    columns of B that one part reads.
    """
    grids = [(down, num_parts // down) for down in range(1, num_parts + 1) if num_parts % down == 0]
    return min(grids, key=lambda grid: rows / grid[0] + columns / grid[1])


@njit(cache=True, nogil=True, parallel=True)
def _multiply_parts(a: Any, b: Any, c: Any, down: int, across: int) -> None:  # pragma: no cover (compiled)
    # Parts begin where tiles do, so that only the last ones have tiles at the edge.
    row_tiles, column_tiles = -(-a.shape[0] // ROWS), -(-b.shape[1] // COLUMNS)
    for part in prange(down * across):
        y, x = part // across, part % across
        first_row, last_row = row_tiles * y // down * ROWS, min(row_tiles * (y + 1) // down * ROWS, a.shape[0])
        first_column = column_tiles * x // across * COLUMNS
        last_column = min(column_tiles * (x + 1) // across * COLUMNS, b.shape[1])
        if first_row < last_row and first_column < last_column:
            multiply_part(a, b, c, first_row, last_row, first_column, last_column)
