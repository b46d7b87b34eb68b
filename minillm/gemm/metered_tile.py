"""What the metered rungs share: the sizes of their tiles, and one tile of a product made by one program."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from minillm.perf.meter import HbmTensor, Program, Region, Tile


class Blocks(NamedTuple):
    """Rows and columns of a tile of c, and the depth of the tiles of a and b that are multiplied for it at a time."""

    m: int = 32
    n: int = 32
    k: int = 32


class Moved(NamedTuple):
    """Numbers that cross the border of HBM; times their size in bytes, what the meter counts."""

    read: int
    written: int


BLOCKS = Blocks()
REGISTERS = (8, 8)  # rows and columns of a register tile


def tiles_of(c: HbmTensor, blocks: Blocks) -> Iterator[tuple[int, int]]:
    """First row and first column of each tile of c, row after row."""
    m, n = c.shape[-2:]
    return product(range(0, m, blocks.m), range(0, n, blocks.n))


def make_tile(
    sram: Program,
    a: HbmTensor,
    b: HbmTensor,
    out: Region,
    *,
    blocks: Blocks,
    registers: tuple[int, int] = REGISTERS,
    depths: range | None = None,
) -> None:
    """The tile `out` of a product, its sum kept in registers until it is stored.

    out     the last two of its bounds say which rows of a and columns of b it needs
    depths  the part of k to add up, from its start to its stop; None = all of it
    """
    depths = range(a.shape[1]) if depths is None else depths
    rows, columns = (slice(*bounds) for bounds in out.bounds[-2:])
    acc = sram.zeros(out.shape, name="acc", in_registers=True)
    for depth in range(depths.start, depths.stop, blocks.k):
        between = slice(depth, min(depth + blocks.k, depths.stop))
        with sram.scope():
            sram.matmul(sram.load(a[rows, between]), sram.load(b[between, columns]), into=acc, register_tile=registers)
    sram.store(acc, out)


def load_pair(sram: Program, a: HbmTensor, b: HbmTensor, out: Region, depth: int, blocks: Blocks) -> tuple[Tile, Tile]:
    """The tiles of a and b at `depth` that a tile of c needs."""
    rows, columns = (slice(*bounds) for bounds in out.bounds)
    return sram.load(a[rows, depth : depth + blocks.k]), sram.load(b[depth : depth + blocks.k, columns])


def shared_tile_moved(m: int, n: int, k: int, *, blocks: Blocks = BLOCKS) -> Moved:
    """a is read once for each column of tiles, b once for each row of tiles: blocks.m-fold and blocks.n-fold less."""
    return Moved(m * k * -(-n // blocks.n) + k * n * -(-m // blocks.m), m * n)
