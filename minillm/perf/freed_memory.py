"""Keep freed memory in the process, so that a step doesn't fetch the same pages from the system again and again.

Activations of a few MiB live for microseconds. By default the C library on Linux gives freed blocks back to the system
when a few MiB of them lie together, and the next operators get fresh pages: each of 4 KiB is filled with zeros and
mapped at its first touch, a page fault. In a prefill of a few hundred tokens these are thousands. The commands begin
with this call; a program that imports `minillm` decides for itself.
"""

from __future__ import annotations

import ctypes
import sys

# <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory(largest_block: int = 64 * 2**20, kept_bytes: int = 2**30) -> bool:
    """Blocks up to `largest_block` bytes come from the heap, and up to `kept_bytes` free at its end stay there.

    For the whole process, from now on; its memory then stays near its peak. Returns whether the C library could be
    told: True with glibc (most of Linux), False elsewhere, where nothing changes. Raises ValueError for less than a
    page.

    Source: mallopt(3).
    """
    if min(largest_block, kept_bytes) < 4096:
        raise ValueError(f"expected at least a page of 4096 bytes, got {largest_block} and {kept_bytes}")
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, largest_block) and mallopt(M_TRIM_THRESHOLD, kept_bytes))
