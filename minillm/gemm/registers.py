"""Rung 4: a tile of C that stays in registers while k runs (needs numba; `tile` draws it).

              B   ┌──┐              for each tile of C:
                  │  │ ▼ k              for k:
A ┌────────┐    C ┌──┐                      tile += (a column of A's rows) × (a row of B's columns)
  └────────┘      └──┘                  store the tile
   ► k
"""

from __future__ import annotations

from typing import Any

from numba import njit

from minillm.gemm.micro_kernel import UNIT, make_micro_kernel

TILE = UNIT.packed_tile()
ROWS, COLUMNS = TILE.rows, TILE.columns

_multiply_tile = make_micro_kernel(TILE)


@njit(cache=True, nogil=True, fastmath={"contract"})
def multiply(a: Any, b: Any, c: Any) -> None:  # pragma: no cover (compiled)
    """c (M, N) = a (M, K) · b (K, N), by tiles of C that vector registers hold.

    What changed: not a row of C but a tile of it is summed at once, and in registers. What it gains: C is read and
    written once and not K times, and a number loaded feeds a whole row or column of the tile: with 12 × 32, 44 numbers
    loaded for 768 FLOPs, 0.23 bytes a FLOP where ikj moves 6. What is left: A's rows and B's rows lie a whole matrix
    row apart. A tile touches another page of memory with every k, and where the row length is a power of two the
    lines that it needs fall into the same few places of the cache and push each other out.
    """
    rows, depth = a.shape
    columns = b.shape[1]
    whole_rows, whole_columns = rows // ROWS * ROWS, columns // COLUMNS * COLUMNS
    flat_a, flat_b, flat_c = a.reshape(-1), b.reshape(-1), c.reshape(-1)
    a_row, a_step = a.strides[0] // a.itemsize, a.strides[1] // a.itemsize
    c[:, :] = 0
    for j in range(0, whole_columns, COLUMNS):
        for i in range(0, whole_rows, ROWS):
            _multiply_tile(
                depth, flat_a, i * a_row, a_row, a_step, flat_b, j, columns, flat_c, i * columns + j, columns
            )
    # What doesn't fill a tile goes the way of rung 2: the columns on the right, then the rows below.
    _by_rows(a, b, c, 0, whole_rows, whole_columns)
    _by_rows(a, b, c, whole_rows, rows, 0)


@njit(cache=True, nogil=True, fastmath={"contract"})
def _by_rows(
    a: Any, b: Any, c: Any, first_row: int, last_row: int, first_column: int
) -> None:  # pragma: no cover (compiled)
    for i in range(first_row, last_row):
        c_piece = c[i, first_column:]
        for k in range(a.shape[1]):
            factor, b_piece = a[i, k], b[k, first_column:]
            for j in range(c_piece.size):
                c_piece[j] += factor * b_piece[j]
