"""Flat products: a few rows times a matrix, what a batch of 2 to 16 decoding sequences needs (needs numba).

Between one row (a matrix–vector product, bound by reading B) and hundreds (bound by arithmetic) neither kernel fits.
Tiles made for large products are mostly padding: 2 rows in a tile of 64 waste 62 of it. And packing B copies every
number of it, only to use each copy once. So here a tile is 8 rows high, few rows are padded to 8 and no further, and
B is read where it lies, once, from memory to registers:

    A (M, K), padded to 8 rows      B (K, N)   ┌──────┬──────┬──────┬──        a tile of B, BLOCK_K × 48, is multiplied
    ┌──────────┐                       BLOCK_K │ now  │ next │      │          with all rows of A while the tile to the
    │          │                               ├──────┼──────┼──────┼──        right is on its way to the cache (double
    └──────────┘                               │      │      │      │          buffering)

The shape and its reasons: FlashDecoding++ (Hong et al. 2023), section 4, "Flat GEMM optimization with double
buffering". There the two buffers are halves of a GPU's shared memory; here the cache holds both tiles, and a prefetch
instruction beside the multiply-adds starts the next one's journey.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from minillm.gemm.matrices import multiply_with
from minillm.gemm.micro_kernel import UNIT, make_micro_kernel
from minillm.gemm.threads import threading_layer

TILE = UNIT.flat_tile(rows=8)
ROWS, COLUMNS = TILE.rows, TILE.columns
BLOCK_K = 16

_multiply_tile = make_micro_kernel(TILE, ahead=1)


def flat_matmul(a: Tensor, b: Tensor, *, num_threads: int | None = None) -> Tensor:
    """a (M, K) · b (K, N) -> (M, N) in float32, made for M from 2 to 16; right for any M.

    num_threads  None = torch's number. Each thread takes some of the columns.

    Inputs may have any strides; those that aren't contiguous are copied, which costs more than the product itself for
    a large b. No autograd. Raises ValueError for other shapes, dtypes or devices, or for fewer than one thread.
    """
    threads = torch.get_num_threads() if num_threads is None else num_threads
    if threads < 1:
        raise ValueError(f"expected at least 1 thread, got {threads}")
    return multiply_with(partial(_multiply, num_threads=threads), a, b)


def _multiply(a: Any, b: Any, c: Any, num_threads: int) -> None:
    packed_a = _pack_rows(a)
    if num_threads == 1:
        _multiply_columns(packed_a, b, c, 0, b.shape[1])
    else:
        threading_layer()
        _share_out(packed_a, b, c, num_threads)


@njit(cache=True, nogil=True)
def _pack_rows(a: Any) -> Any:  # pragma: no cover (compiled)
    """a (M, K) -> panels of ROWS rows, the last one filled up with zeros; in a panel k runs slowest."""
    rows, depth = a.shape
    packed = np.zeros((rows + ROWS - 1) // ROWS * ROWS * depth, np.float32)
    for i in range(rows):
        panel, r = i // ROWS * ROWS * depth, i % ROWS
        for k in range(depth):
            packed[panel + k * ROWS + r] = a[i, k]
    return packed


@njit(cache=True, nogil=True, parallel=True)
def _share_out(packed_a: Any, b: Any, c: Any, num_threads: int) -> None:  # pragma: no cover (compiled)
    tiles = (b.shape[1] + COLUMNS - 1) // COLUMNS
    for thread in prange(num_threads):
        first, last = tiles * thread // num_threads * COLUMNS, tiles * (thread + 1) // num_threads * COLUMNS
        _multiply_columns(packed_a, b, c, first, min(last, b.shape[1]))


@njit(cache=True, nogil=True)
def _multiply_columns(packed_a: Any, b: Any, c: Any, first: int, last: int) -> None:  # pragma: no cover (compiled)
    """Columns `first` to `last` of C."""
    depth, b_row = b.shape
    width = (last - first + COLUMNS - 1) // COLUMNS * COLUMNS
    padded_rows = packed_a.size // depth
    sums = np.zeros(padded_rows * width, np.float32)  # C with its padding; it stays in the second cache
    flat_b, rest = b.reshape(-1), np.zeros(BLOCK_K * COLUMNS, np.float32)
    for k in range(0, depth, BLOCK_K):
        num_k = min(BLOCK_K, depth - k)
        for j in range(first, last, COLUMNS):
            tile_of_b, b_start, b_step = flat_b, k * b_row + j, b_row
            if j + COLUMNS > last:  # the last columns are copied to a tile of full width
                for i in range(num_k):
                    for q in range(last - j):
                        rest[i * COLUMNS + q] = b[k + i, j + q]
                tile_of_b, b_start, b_step = rest, 0, COLUMNS
            for i in range(0, padded_rows, ROWS):
                a_start = i * depth + k * ROWS
                c_start = i * width + j - first
                _multiply_tile(num_k, packed_a, a_start, 1, ROWS, tile_of_b, b_start, b_step, sums, c_start, width)
    for i in range(c.shape[0]):
        for j in range(first, last):
            c[i, j] = sums[i * width + j - first]
