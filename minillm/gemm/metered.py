"""The ladder of matrix products on the memory-hierarchy meter: the bytes of each rung, predicted and counted.

Each rung multiplies a (m, k) by b (k, n) into c (m, n), all in the HBM of a meter, and stands beside its closed form:
the numbers that it reads from HBM and writes to it, exact for ragged edges too. `RUNGS` has the names of the ladders
that are timed, and some more. On a CPU, HBM stands for memory and SRAM for a cache that does as it is told.

Reading order: `metered_tile` (one tile of a product), this file, `metered_sharing` (ways to order and share out tiles).

    meter = run("shared_tile", a, b)
    assert meter.total.bytes_read == 4 * RUNGS["shared_tile"].moved(m, n, k).read
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, NamedTuple

from torch import Tensor

from minillm.gemm.metered_sharing import (
    grouped,
    grouped_moved,
    grouped_working_set,
    persistent,
    split_k,
    split_k_moved,
)
from minillm.gemm.metered_tile import (
    BLOCKS,
    REGISTERS,
    Blocks,
    Moved,
    load_pair,
    make_tile,
    shared_tile_moved,
    tiles_of,
)
from minillm.perf.meter import HbmTensor, Meter

__all__ = [
    "BLOCKS",
    "REGISTERS",
    "RUNGS",
    "Blocks",
    "Moved",
    "Rung",
    "grouped_moved",
    "grouped_working_set",
    "double_buffered_peak",
    "register_sram_read",
    "run",
]

SRAM_BYTES = 48 * 1024  # what one block of a GPU gets without asking for more


def naive(meter: Meter, a: HbmTensor, b: HbmTensor, c: HbmTensor) -> None:
    """One program for each number of c, which reads its row of a and its column of b for itself alone.

    The loop over k is one product here: number after number would move the same bytes.
    """
    with meter.kernel("naive") as kernel:
        for i, j in product(range(c.shape[0]), range(c.shape[1])):
            with kernel.program(i, j) as sram:
                row = sram.load(a[i : i + 1], in_registers=True)
                column = sram.load(b[:, j : j + 1], in_registers=True)
                sram.store(row @ column, c[i : i + 1, j : j + 1])


def naive_moved(m: int, n: int, k: int) -> Moved:
    """Each of the m·n·k multiply-adds brings both its operands: 1 FLOP a number."""
    return Moved(2 * m * n * k, m * n)


def reordered(meter: Meter, a: HbmTensor, b: HbmTensor, c: HbmTensor) -> None:
    """k before j: a number of a stays for a whole row of b, and a row of c stays on the chip until it is done."""
    (m, k), n = a.shape, b.shape[1]
    with meter.kernel("reordered") as kernel:
        for i in range(m):
            with kernel.program(i) as sram:
                row = sram.zeros(1, n, name="row of C")
                for depth in range(k):
                    with sram.scope():
                        number = sram.load(a[i : i + 1, depth : depth + 1], in_registers=True)
                        sram.matmul(number, sram.load(b[depth : depth + 1]), into=row)
                sram.store(row, c[i : i + 1])


def reordered_moved(m: int, n: int, k: int) -> Moved:
    """a once, but all of b for every row: half of the naive traffic."""
    return Moved(m * k + m * n * k, m * n)


def tiled(meter: Meter, a: HbmTensor, b: HbmTensor, c: HbmTensor, *, blocks: Blocks = BLOCKS) -> None:
    """A block of b stays while all rows of a pass by; the rows of c come and go, once for each block of k."""
    (m, k), n = a.shape, b.shape[1]
    with meter.kernel("tiled") as kernel, kernel.program() as sram:
        for j, depth in product(range(0, n, blocks.n), range(0, k, blocks.k)):
            with sram.scope():
                b_tile = sram.load(b[depth : depth + blocks.k, j : j + blocks.n])
                for i in range(0, m, blocks.m):
                    with sram.scope():
                        out = c[i : i + blocks.m, j : j + blocks.n]
                        acc = sram.load(out) if depth else sram.zeros(out.shape, name="acc")
                        sram.matmul(sram.load(a[i : i + blocks.m, depth : depth + blocks.k]), b_tile, into=acc)
                        sram.store(acc, out)


def tiled_moved(m: int, n: int, k: int, *, blocks: Blocks = BLOCKS) -> Moved:
    """b once, a once for each column of blocks, c in both directions for each block of k (but nothing to read yet for
    the first). blocks.m doesn't matter.
    """
    rounds = -(-k // blocks.k)
    return Moved(k * n + m * k * -(-n // blocks.n) + m * n * (rounds - 1), m * n * rounds)


def shared_tile(meter: Meter, a: HbmTensor, b: HbmTensor, c: HbmTensor, *, blocks: Blocks = BLOCKS) -> None:
    """A program makes a tile of c and keeps it until it is done: a number of a or b that comes to the chip serves a
    whole row or column of it.
    """
    with meter.kernel("shared_tile") as kernel:
        for i, j in tiles_of(c, blocks):
            with kernel.program(i, j) as sram:
                out = c[i : i + blocks.m, j : j + blocks.n]
                acc = sram.zeros(out.shape, name="acc")
                for depth in range(0, a.shape[1], blocks.k):
                    with sram.scope():
                        a_tile = sram.load(a[i : i + blocks.m, depth : depth + blocks.k])
                        b_tile = sram.load(b[depth : depth + blocks.k, j : j + blocks.n])
                        sram.matmul(a_tile, b_tile, into=acc)
                sram.store(acc, out)


def register_tile(
    meter: Meter,
    a: HbmTensor,
    b: HbmTensor,
    c: HbmTensor,
    *,
    blocks: Blocks = BLOCKS,
    registers: tuple[int, int] = REGISTERS,
) -> None:
    """The same once more one level down: tiles of `registers` rows and columns of c stay in registers.

    HBM sees no difference. SRAM does: see `register_sram_read`.
    """
    with meter.kernel("register_tile") as kernel:
        for i, j in tiles_of(c, blocks):
            with kernel.program(i, j) as sram:
                out = c[i : i + blocks.m, j : j + blocks.n]
                make_tile(sram, a, b, out, blocks=blocks, registers=registers)


def register_sram_read(
    m: int, n: int, k: int, *, blocks: Blocks = BLOCKS, registers: tuple[int, int] = REGISTERS
) -> int:
    """Numbers that the register tiles read from SRAM: m·n·k (1 / rows + 1 / columns) where nothing is left over."""
    rows, columns = registers
    return k * (m * _passes(n, blocks.n, columns) + n * _passes(m, blocks.m, rows))


def packed(
    meter: Meter,
    a: HbmTensor,
    b: HbmTensor,
    c: HbmTensor,
    *,
    blocks: Blocks = BLOCKS,
    registers: tuple[int, int] = REGISTERS,
) -> None:
    """Both matrices are first copied in the order in which the tiles will be read, then multiplied as before.

    Copying costs each number a round trip; where memory likes runs of neighbours, as a CPU's does, it pays. The meter
    counts bytes and not runs, so here it only shows the price.
    """
    copies = [meter.empty(f"packed {x.name}", x.shape) for x in (a, b)]
    with meter.kernel("pack") as kernel:
        for source, copy in zip((a, b), copies, strict=True):
            for i, j in product(range(0, source.shape[0], blocks.k), range(0, source.shape[1], blocks.k)):
                with kernel.program(i, j) as sram:
                    part = slice(i, i + blocks.k), slice(j, j + blocks.k)
                    sram.store(sram.load(source[part]), copy[part])
    register_tile(meter, copies[0], copies[1], c, blocks=blocks, registers=registers)
    for copy in copies:
        meter.free(copy)


def packed_moved(m: int, n: int, k: int, *, blocks: Blocks = BLOCKS) -> Moved:
    """As a shared tile, and each number of a and b once more in both directions."""
    product_read, product_written = shared_tile_moved(m, n, k, blocks=blocks)
    return Moved(product_read + m * k + k * n, product_written + m * k + k * n)


def double_buffered(meter: Meter, a: HbmTensor, b: HbmTensor, c: HbmTensor, *, blocks: Blocks = BLOCKS) -> None:
    """The next tiles are on their way while these are multiplied: the same bytes, twice the SRAM, no waiting."""
    with meter.kernel("double buffered") as kernel:
        for i, j in tiles_of(c, blocks):
            with kernel.program(i, j) as sram:
                out = c[i : i + blocks.m, j : j + blocks.n]
                acc = sram.zeros(out.shape, name="acc", in_registers=True)
                depths = range(0, a.shape[1], blocks.k)
                pair = load_pair(sram, a, b, out, 0, blocks)
                for depth in depths:
                    following = depth + blocks.k
                    next_pair = load_pair(sram, a, b, out, following, blocks) if following in depths else None
                    sram.matmul(*pair, into=acc)
                    sram.free(*pair)
                    if next_pair is not None:
                        pair = next_pair
                sram.store(acc, out)


def double_buffered_peak(k: int, *, blocks: Blocks = BLOCKS) -> int:
    """Numbers in SRAM at most, for matrices of full tiles: two tiles of a and of b, or one where k is no deeper."""
    return (blocks.m + blocks.n) * min(k, 2 * blocks.k)


class Rung(NamedTuple):
    """A step of the ladder: what runs on the meter, and the numbers that it moves, as functions of its sizes.

    run    (meter, a, b, c, **sizes) launches its kernels
    moved  (m, n, k, **sizes) -> Moved
    """

    run: Callable[..., None]
    moved: Callable[..., Moved]


NAIVE = Rung(naive, naive_moved)
REGISTER_TILE = Rung(register_tile, shared_tile_moved)
PACKED = Rung(packed, packed_moved)

RUNGS = {
    # the names of minillm.gemm.LADDER; threads share the work out and move the same
    "naive ijk": NAIVE,
    "reordered ikj": Rung(reordered, reordered_moved),
    "tiled": Rung(tiled, tiled_moved),
    "register tile": REGISTER_TILE,
    "packed": PACKED,
    "threads": PACKED,
    # the names of the GPU's ladder, thread by thread; coalescing changes transactions and not bytes
    "naive": NAIVE,
    "coalesced": NAIVE,
    "shared_tile": Rung(shared_tile, shared_tile_moved),
    "register_column": Rung(partial(register_tile, registers=(REGISTERS[0], 1)), shared_tile_moved),
    "register_tile": REGISTER_TILE,
    # further on
    "double buffered": Rung(double_buffered, shared_tile_moved),
    "split-K": Rung(split_k, split_k_moved),
    "persistent": Rung(persistent, shared_tile_moved),
    "grouped": Rung(grouped, shared_tile_moved),  # without a cache; `grouped_moved` is with one
}


def run(name: str, a: Tensor, b: Tensor, *, meter: Meter | None = None, **sizes: Any) -> Meter:
    """Multiply two matrices by a rung of RUNGS and return the meter, with the product as its tensor "C".

    a, b   (m, k) and (k, n), of the meter's dtype
    meter  an empty one; None = 48 KiB of SRAM a program, the dtype of a
    sizes  of the rung: blocks, registers, num_splits, num_programs, group

    Raises ValueError for unknown names and for shapes that can't be multiplied.
    """
    if name not in RUNGS:
        raise ValueError(f"expected one of {', '.join(RUNGS)}, got {name!r}")
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0] or 0 in (*a.shape, *b.shape):
        raise ValueError(f"expected matrices (m, k) and (k, n), not empty, got {tuple(a.shape)} and {tuple(b.shape)}")
    meter = meter or Meter(SRAM_BYTES, dtype=a.dtype)
    a_hbm, b_hbm, c = meter.hbm("A", a), meter.hbm("B", b), meter.empty("C", (a.shape[0], b.shape[1]))
    RUNGS[name].run(meter, a_hbm, b_hbm, c, **sizes)
    return meter


def _passes(size: int, block: int, columns: int) -> int:
    """How many register tiles stand side by side in blocks that cover `size`, the narrower last block included."""
    return size // block * -(-block // columns) + -(-(size % block) // columns)
