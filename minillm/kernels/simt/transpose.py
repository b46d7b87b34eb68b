"""A detour, bank conflicts: a matrix transposed through a tile of shared memory.

Reading and writing global memory along rows needs a tile that is written by rows and read by columns. With 32 words a
row, a column lies in one bank and its 32 words come one after the other; one unused word at the end of each row
shifts the next row by a bank:

        32 words a row                     33 words a row
        bank 0 1 2 … 31                    bank 0 1 2 … 31
        row 0  █ . . … .                   row 0  █ . . … .
        row 1  █ . . … .                   row 1  . █ . … .      (its first word is in bank 1)
        row 2  █ . . … .   32 passes       row 2  . . █ … .      1 pass
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minillm.perf.warp import cuda

TILE = 32
ROW_WORDS = 33  # the last one unused; 32 shows the conflict


def transpose(source: Any, target: Any) -> None:
    """target = sourceᵀ in blocks of TILE × TILE threads."""
    tile = cuda.shared.array((TILE, ROW_WORDS), np.float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    row, column = cuda.blockIdx.y * TILE + y, cuda.blockIdx.x * TILE + x
    if row < source.shape[0] and column < source.shape[1]:
        tile[y, x] = source[row, column]
    cuda.syncthreads()
    row, column = cuda.blockIdx.x * TILE + y, cuda.blockIdx.y * TILE + x  # of the target
    if row < target.shape[0] and column < target.shape[1]:
        target[row, column] = tile[x, y]
