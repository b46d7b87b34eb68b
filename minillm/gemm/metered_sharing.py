"""Rungs that order and share out the tiles of a product, on the memory-hierarchy meter."""

from __future__ import annotations

from itertools import product

from minillm.gemm.metered_tile import BLOCKS, Blocks, Moved, make_tile, shared_tile_moved, tiles_of
from minillm.perf.meter import HbmTensor, Meter


def split_k(
    meter: Meter, a: HbmTensor, b: HbmTensor, c: HbmTensor, *, blocks: Blocks = BLOCKS, num_splits: int = 4
) -> None:
    """More programs for a small c: each adds up a part of k, and a second kernel adds up the parts.

    The order of the sums is fixed, so the result is the same each time; atomic additions would promise less.
    """
    (m, k), n = a.shape, b.shape[1]
    depth = split_depth(k, blocks, num_splits)
    parts = meter.empty("partial sums", (-(-k // depth), m, n))
    with meter.kernel("split-K") as kernel:
        for split, (i, j) in product(range(parts.shape[0]), tiles_of(c, blocks)):
            with kernel.program(split, i, j) as sram:
                out = parts[split, i : i + blocks.m, j : j + blocks.n]
                depths = range(split * depth, min((split + 1) * depth, k))
                make_tile(sram, a, b, out, blocks=blocks, depths=depths)
    with meter.kernel("add up") as kernel:
        for i, j in tiles_of(c, blocks):
            with kernel.program(i, j) as sram:
                rows, columns = slice(i, i + blocks.m), slice(j, j + blocks.n)
                acc = sram.load(parts[0, rows, columns])
                for split in range(1, parts.shape[0]):
                    with sram.scope():
                        acc += sram.load(parts[split, rows, columns])
                sram.store(acc, c[rows, columns])
    meter.free(parts)


def split_k_moved(m: int, n: int, k: int, *, blocks: Blocks = BLOCKS, num_splits: int = 4) -> Moved:
    """As a shared tile, and c once for each split in both directions."""
    splits = -(-k // split_depth(k, blocks, num_splits))
    return Moved(shared_tile_moved(m, n, k, blocks=blocks).read + splits * m * n, (splits + 1) * m * n)


def split_depth(k: int, blocks: Blocks, num_splits: int) -> int:
    """How much of k one split adds up: whole tiles, as even as they go; there may be fewer splits than asked for."""
    return -(-k // (blocks.k * num_splits)) * blocks.k


def persistent(
    meter: Meter, a: HbmTensor, b: HbmTensor, c: HbmTensor, *, blocks: Blocks = BLOCKS, num_programs: int = 4
) -> None:
    """As many programs as the machine has multiprocessors, each makes tile after tile: the same bytes, fewer starts."""
    tiles = list(tiles_of(c, blocks))
    with meter.kernel("persistent") as kernel:
        for first in range(min(num_programs, len(tiles))):
            with kernel.program(first) as sram:
                for i, j in tiles[first::num_programs]:
                    with sram.scope():
                        make_tile(sram, a, b, c[i : i + blocks.m, j : j + blocks.n], blocks=blocks)


def grouped(meter: Meter, a: HbmTensor, b: HbmTensor, c: HbmTensor, *, blocks: Blocks = BLOCKS, group: int = 4) -> None:
    """Down the columns of a band of `group` rows of tiles, so that a cache keeps the band's part of a, and each part
    of b for a whole band. group = 1 is the order of a page, row after row. Without a cache the order moves nothing.
    """
    with meter.kernel("grouped") as kernel:
        for band in range(0, c.shape[0], group * blocks.m):
            rows = range(band, min(band + group * blocks.m, c.shape[0]), blocks.m)
            for j, i in product(range(0, c.shape[1], blocks.n), rows):
                with kernel.program(i, j) as sram:
                    make_tile(sram, a, b, c[i : i + blocks.m, j : j + blocks.n], blocks=blocks)


def grouped_moved(m: int, n: int, k: int, *, blocks: Blocks = BLOCKS, group: int = 4) -> Moved:
    """a once and b once for each band, as long as the cache holds the parts of a band, `grouped_working_set`, and
    fewer numbers than b has.
    """
    return Moved(m * k + k * n * -(-m // (group * blocks.m)), m * n)


def grouped_working_set(k: int, *, blocks: Blocks = BLOCKS, group: int = 4) -> int:
    """Numbers that a least-recently-used cache must hold for `grouped_moved`: the band of a, two columns of b (the
    last and the next), and the tiles of c that pass through.
    """
    return (group * blocks.m + 2 * blocks.n) * k + group * blocks.m * blocks.n
