"""What the attention kernels share: which tiles they walk, how one is loaded, what is hidden in it (Triton).

Queries and keys are aligned bottom-right: query i stands at place i + k_len − q_len among the keys, sees the keys up to
its place, and with a window of W keys none before place − W + 1. So the tiles of a block of queries fall into runs:

               first      full_first      full_stop     stop
    keys   ─────┬─────────────┬───────────────┬───────────┬──────
     skipped    │  window's   │  all pairs    │ diagonal, │  skipped
                │  edge: mask │  visible      │ tail: mask│
    ────────────┴─────────────┴───────────────┴───────────┴──────

Without a window the first run is empty, without causality the last one holds the tail only. What is skipped is
neither loaded nor computed. The same holds for the queries that a block of keys is seen by.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def key_runs(  # type: ignore[no-untyped-def]
    first_row,
    q_len,
    k_len,
    window,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(first, full_first, full_stop, stop) of the keys that queries first_row … first_row + BLOCK_Q − 1 see.

    All but `stop` are multiples of BLOCK_K. The runs [first, full_first), [full_first, full_stop), [full_stop, stop)
    may be empty, and hold every key that one of the queries sees exactly once.
    """
    shift = k_len - q_len
    last_row = min(first_row + BLOCK_Q, q_len) - 1
    first = 0 * k_len
    stop = k_len
    full_stop = k_len // BLOCK_K * BLOCK_K
    if CAUSAL:
        stop = min(max(last_row + shift + 1, 0), k_len)
        full_stop = max(first_row + shift + 1, 0) // BLOCK_K * BLOCK_K  # the first query sees all keys before it
    full_first = first
    if HAS_WINDOW:
        first = max(first_row + shift - window + 1, 0) // BLOCK_K * BLOCK_K
        full_first = tl.cdiv(max(last_row + shift - window + 1, 0), BLOCK_K) * BLOCK_K  # the last query's first key
    # Where no tile is full, the two masked runs meet somewhere.
    full_first = min(full_first, tl.cdiv(stop, BLOCK_K) * BLOCK_K)
    full_stop = max(full_stop, full_first)
    return first, full_first, full_stop, stop


@triton.jit
def query_runs(  # type: ignore[no-untyped-def]
    first_key,
    q_len,
    k_len,
    window,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(first, full_first, full_stop, stop) of the queries that see keys first_key … first_key + BLOCK_K − 1.

    As `key_runs`, with multiples of BLOCK_Q; without a window the tail of the queries is among the full tiles, and
    keys beyond k_len count as visible, since their gradients are never stored.
    """
    shift = k_len - q_len
    last_key = first_key + BLOCK_K - 1
    first = 0 * q_len
    full_first = first
    if CAUSAL:
        first = max(first_key - shift, 0) // BLOCK_Q * BLOCK_Q
        full_first = tl.cdiv(max(last_key - shift, 0), BLOCK_Q) * BLOCK_Q  # its first query sees the last key
    stop = q_len
    full_stop = q_len
    if HAS_WINDOW:
        stop = min(max(last_key + window - shift, 0), q_len)
        full_stop = min(max(first_key + window - shift, 0), q_len) // BLOCK_Q * BLOCK_Q
    full_first = min(full_first, tl.cdiv(stop, BLOCK_Q) * BLOCK_Q)
    full_stop = max(full_stop, full_first)
    return first, full_first, full_stop, stop


@triton.jit
def is_visible(places, keys, k_len, window, CAUSAL: tl.constexpr, HAS_WINDOW: tl.constexpr):  # type: ignore[no-untyped-def]
    """Whether a query at one of `places` sees one of `keys`: two integer tensors that broadcast."""
    visible = keys < k_len
    if CAUSAL:
        visible = visible & (keys <= places)
    if HAS_WINDOW:
        visible = visible & (keys > places - window)
    return visible


@triton.jit
def tile_offsets(stride_row, stride_dim, BLOCK: tl.constexpr, BLOCK_DIM: tl.constexpr):  # type: ignore[no-untyped-def]
    """Offsets of a (BLOCK, BLOCK_DIM) tile from its first number: 32 bits, half the registers of pointers."""
    return tl.arange(0, BLOCK)[:, None] * stride_row + tl.arange(0, BLOCK_DIM)[None, :] * stride_dim


@triton.jit
def load_tile(  # type: ignore[no-untyped-def]
    tile_ptr, num_rows, DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_DIM: tl.constexpr, CHECK_ROWS: tl.constexpr
):
    """A (BLOCK, BLOCK_DIM) tile with zeros beyond its first `num_rows` rows, if CHECK_ROWS, and DIM columns."""
    rows, dims = tl.arange(0, BLOCK), tl.arange(0, BLOCK_DIM)
    if CHECK_ROWS:
        tile = tl.load(tile_ptr, mask=(rows[:, None] < num_rows) & (dims[None, :] < DIM), other=0.0)
    elif DIM < BLOCK_DIM:
        tile = tl.load(tile_ptr, mask=dims[None, :] < DIM, other=0.0)
    else:
        tile = tl.load(tile_ptr)
    return tile


@triton.jit
def store_tile(  # type: ignore[no-untyped-def]
    tile_ptr, tile, num_rows, DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_DIM: tl.constexpr
):
    """Store the first `num_rows` rows and DIM columns of a tile, rounded to the dtype of the memory."""
    rows, dims = tl.arange(0, BLOCK), tl.arange(0, BLOCK_DIM)
    inside = (rows[:, None] < num_rows) & (dims[None, :] < DIM)
    tl.store(tile_ptr, tile.to(tile_ptr.dtype.element_ty), mask=inside)
