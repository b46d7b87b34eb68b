"""What the fused kernels share: tensors as rows, the block that holds a row, and how many warps work on it.

    x (…, n)  ->  rows (num_rows, n)      ┌──────────────────────┬──────┐
                                          │ ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓ │░░░░░░│  one program a row: n numbers, masked up to
                                          ├──────────────────────┼──────┤  BLOCK, the next power of two, of which every
                                          │                      │      │  thread holds 8 to 32
                                          n                      BLOCK

None of these kernels multiplies matrices: each number that is loaded takes part in a handful of operations, so the
memory decides. What fusing saves is in the bytes; `time = bytes / bandwidth` is the limit of every one of them.
"""

from __future__ import annotations

import triton
from torch import Tensor

NUMBERS_A_WARP = 512  # 16 a thread: several loads of 16 bytes in flight
LARGEST_SPAN = 2**31 - 1  # numbers from one end of a row to the other


def as_rows(x: Tensor) -> Tensor:
    """x (..., n) as (rows, n): a view, or a copy (one more pass over it) where the strides allow none.

    Also a copy where a row spans more memory than the 32-bit offsets of the kernels reach.
    """
    rows = x if x.dim() == 2 else x.reshape(x.shape[:-1].numel(), x.shape[-1])
    return rows if rows.shape[1] * rows.stride(1) <= LARGEST_SPAN else rows.contiguous()


def row_block(n: int, *, largest: int) -> int:
    """The power of two that holds a row of n numbers, `largest` at most."""
    return min(max(triton.next_power_of_2(n), 16), largest)


def warps_for(block: int, *, most: int = 32) -> int:
    """How many warps share a block of numbers."""
    return min(max(block // NUMBERS_A_WARP, 1), most)
