"""Chapter 06: matrix products.

Complete the functions below, then run `python3 tasks.py grade ch06`. The chapter is `chapters/06_gemm.ipynb`;
each task names the section that prepares it. Matrices are torch tensors; everything runs on a CPU, and nothing is
timed: bytes, sectors and tiles are counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minillm.perf.meter import Counts, HbmTensor, Meter

# ---- Task 1 (prediction): how many bytes does a tiled product move? Prepared by "Napkin" and "Count it".


def bytes_moved(m: int, n: int, k: int, *, block_m: int, block_n: int, bytes_per_number: int = 4) -> int:
    """Bytes that C (m, n) = A (m, k) · B (k, n) moves between slow memory and the chip when it is made tile by tile.

    C is cut into tiles of block_m × block_n numbers; the tiles at the bottom and on the right are smaller where
    block_m or block_n doesn't divide. For each tile of C the rows of A and the columns of B that it needs are read
    once, only those and whatever their number; then the tile is written. Nothing is kept from one tile to the next.

    Example: m=4, n=4, k=10, tiles of 2 × 2. Four tiles, each reads 2 · 10 numbers of A and 10 · 2 of B and writes 4:
    4 · (20 + 20 + 4) = 176 numbers, 704 bytes at 4 bytes a number. Tiles of 1 × 1 are the naive product:
    16 · (10 + 10 + 1) = 336 numbers.
    """
    # BEGIN SOLUTION
    tile_rows, tile_columns = -(-m // block_m), -(-n // block_n)
    read_a = m * k * tile_columns
    read_b = k * n * tile_rows
    return (read_a + read_b + m * n) * bytes_per_number
    # END SOLUTION


# ---- Task 2: what does a warp's load cost? Prepared by "Thread by thread".

SECTOR_BYTES = 32


def count_sectors(addresses: Sequence[int | None], itemsize: int) -> int:
    """Sectors of 32 bytes that global memory delivers for one load of one warp.

    addresses  one a lane: the address of the first byte that it wants; None for a lane that takes no part
    itemsize   bytes of the number that each lane loads, from its address on

    Sector s holds the bytes 32·s to 32·s + 31. A sector that several lanes need is delivered once, in whichever order
    the lanes ask; a number that begins in one sector and ends in the next needs both.

    Examples: lanes at 0, 4, 8, … 124 with 4 bytes each: 4 sectors. The same, all shifted by 4 bytes: 5. All 32 lanes at
    address 64: 1. Lanes at 0, 256, 512, …: a sector each, 32.
    """
    # BEGIN SOLUTION
    touched = set()
    for address in addresses:
        if address is not None:
            last_byte = address + itemsize - 1
            touched.update(range(address // SECTOR_BYTES, last_byte // SECTOR_BYTES + 1))
    return len(touched)
    # END SOLUTION


# ---- Task 3: the best tile for a memory of a given size. Prepared by "How large a tile?".


def choose_tile(
    sram_bytes: int, sizes: Sequence[int], *, block_k: int, num_stages: int = 1, bytes_per_number: int = 4
) -> tuple[int, int]:
    """(block_m, block_n), each one of `sizes`, that does the most FLOPs for each byte it loads.

    What a program holds in its SRAM at the same time: one tile of C, block_m × block_n numbers, and `num_stages` pairs
    of tiles of A (block_m × block_k) and B (block_k × block_n); two stages are double buffering. It must fit: no more
    than `sram_bytes`. What counts is the FLOPs for each number of A and B loaded; C's own bytes are left out. Of
    equally good tiles take the one with the smaller block_m.

    Raises ValueError if no tile fits.

    Example: sram_bytes=4096, sizes=(8, 16, 32), block_k=8: 16 × 32 holds 512 + 128 + 256 = 896 numbers, 3584 bytes, and
    fits; 32 × 32 would need 6144 bytes. 16 × 32 and 32 × 16 are equally good, and better than 16 × 16: the
    answer is (16, 32). With num_stages=2 they would need 5120 bytes, and the answer is (16, 16).
    """
    # BEGIN SOLUTION
    best, best_reuse = None, 0.0
    for block_m in sorted(sizes):
        for block_n in sizes:
            loaded = (block_m + block_n) * block_k
            held = block_m * block_n + num_stages * loaded
            reuse = 2 * block_m * block_n * block_k / loaded
            if held * bytes_per_number <= sram_bytes and reuse > best_reuse:
                best, best_reuse = (block_m, block_n), reuse
    if best is None:
        raise ValueError(f"no tile of {tuple(sizes)} fits into {sram_bytes} bytes")
    return best
    # END SOLUTION


# ---- Task 4: a linear layer on the meter. Prepared by "Count it" and "How large a tile?".


def linear_on_meter(
    meter: Meter, x: HbmTensor, weight: HbmTensor, y: HbmTensor, *, block_m: int, block_n: int, block_k: int
) -> Counts:
    """y = x · weightᵀ in one launch, reading x from HBM once. Returns `meter.total`, what all of it moved.

    x (m, k), weight (n, k) and y (m, n) lie in the meter's HBM; y is empty. A linear layer keeps its weight as
    (out_features, in_features): a tile of it is loaded as it lies, and `.T` of the tile turns it for nothing.

    One program for each `block_m` rows of y. It loads its rows of x, all k columns of them, and keeps them while it
    makes one tile of `block_n` columns of y after the other, each as a sum over pieces of k of `block_k`. So each
    number of x is read once, each number of weight ceil(m / block_m) times, and each number of y is written once.

    m, n and k need not be multiples of the block sizes. A program holds its rows of x, one tile of weight and one tile
    of y, and no more: the tests' meters have room for block_m · k + block_n · block_k + block_m · block_n numbers.

    Example: m=3, n=2, k=4 with block_m=2: two programs, which load 2 · 4 and 1 · 4 numbers of x. Both load the 8
    numbers of weight: 12 + 16 numbers read, 6 written; at 4 bytes each, the result's bytes_read is 112 and its
    bytes_written 24.
    """
    # BEGIN SOLUTION
    (m, k), n = x.shape, weight.shape[0]
    with meter.kernel("linear") as kernel:
        for i in range(0, m, block_m):
            with kernel.program(i) as sram:
                rows = sram.load(x[i : i + block_m])
                for j in range(0, n, block_n):
                    with sram.scope():
                        out = y[i : i + block_m, j : j + block_n]
                        acc = sram.zeros(out.shape)
                        for depth in range(0, k, block_k):
                            with sram.scope():
                                tile = sram.load(weight[j : j + block_n, depth : depth + block_k])
                                sram.matmul(rows[:, depth : depth + block_k], tile.T, into=acc)
                        sram.store(acc, out)
    return meter.total
    # END SOLUTION


# ---- Task 5 (bug hunt): the grouped order, broken at the edge. Prepared by "Block by block".


def hasty_tile_of_program(program: int, tiles_m: int, tiles_n: int, group_m: int) -> tuple[int, int]:
    """Somebody's draft of the grouped order. Right for 8 × 8 tiles in groups of 4, and its tests had no others."""
    programs_in_group = group_m * tiles_m
    group = program // programs_in_group
    tile_m = group * group_m + program % group_m
    tile_n = program % programs_in_group // group_m
    return tile_m, tile_n


def tile_of_program(program: int, tiles_m: int, tiles_n: int, group_m: int) -> tuple[int, int]:
    """`hasty_tile_of_program`, repaired: the tile (tile_m, tile_n) of C that program number `program` makes.

    C is tiles_m tiles high and tiles_n wide. Programs go down `group_m` rows of tiles, then the next column of the
    same rows, and so on to the right edge; then the next group of rows begins. The last group has the rows that are
    left, which may be fewer. All numbers count from 0; 0 <= program < tiles_m · tiles_n.

    Example, tiles_m=3, tiles_n=2, group_m=2: programs 0 … 5 make (0, 0) (1, 0) (0, 1) (1, 1) | (2, 0) (2, 1).
    """
    # BEGIN SOLUTION
    programs_in_group = group_m * tiles_n
    first_m = program // programs_in_group * group_m
    rows = min(group_m, tiles_m - first_m)
    place = program % programs_in_group
    return first_m + place % rows, place // rows
    # END SOLUTION


# ---- Task 6: the packed product, in three parts. Prepared by "The register tile" and "Packing".


def pack_panels(matrix: Tensor, width: int) -> Tensor:
    """The columns of a matrix in panels of `width`, each stored in the order in which a micro-kernel reads it.

    matrix (depth, columns) -> (num_panels, depth, width), contiguous: panel p holds the columns p·width to
    p·width + width − 1, row after row. The last panel is filled up with zeros. The dtype stays, and the matrix is not
    changed.

    B is packed as it is. A, whose rows are to lie side by side, is packed as `pack_panels(a.T, tile_rows)`.

    Example: [[1, 2, 3], [4, 5, 6]] with width 2 -> [[[1, 2], [4, 5]], [[3, 0], [6, 0]]].
    """
    # BEGIN SOLUTION
    depth, columns = matrix.shape
    num_panels = -(-columns // width)
    filled_up = torch.zeros(depth, num_panels * width, dtype=matrix.dtype)
    filled_up[:, :columns] = matrix
    return filled_up.reshape(depth, num_panels, width).transpose(0, 1).contiguous()
    # END SOLUTION


def micro_kernel(a_panel: Tensor, b_panel: Tensor, tile: Tensor) -> None:
    """Adds the product of two panels to `tile` (tile_rows, tile_columns), in place, one outer product for each k.

    a_panel (depth, tile_rows), b_panel (depth, tile_columns). For each k in turn, a column of A times a row of B:
    tile[i, j] += a_panel[k, i] · b_panel[k, j] for all i and j at once. No matrix product of the library is used.
    """
    # BEGIN SOLUTION
    for a_column, b_row in zip(a_panel, b_panel, strict=True):
        tile += a_column[:, None] * b_row[None, :]
    # END SOLUTION


def packed_matmul(a: Tensor, b: Tensor, *, tile_rows: int, tile_columns: int, block_k: int) -> Tensor:
    """a (m, k) · b (k, n) -> a new tensor (m, n), from packed panels and register tiles.

    For each piece of k of `block_k` (the last may be smaller): pack the rows of b and the columns of a that belong to
    it, each once, with `pack_panels`; then add the product of each panel of a and each panel of b to its tile of C
    with `micro_kernel`. A micro-kernel knows one shape only, tile_rows × tile_columns. Where C has no room for a whole
    tile, sum it beside C and add the part that exists.

    m, n and k may be anything from 1 on. The dtype is a's and b's. Neither of them is changed.
    """
    # BEGIN SOLUTION
    (m, k), n = a.shape, b.shape[1]
    c = a.new_zeros(m, n)
    for depth in range(0, k, block_k):
        a_panels = pack_panels(a[:, depth : depth + block_k].T, tile_rows)
        b_panels = pack_panels(b[depth : depth + block_k], tile_columns)
        for p, a_panel in enumerate(a_panels):
            for q, b_panel in enumerate(b_panels):
                i, j = p * tile_rows, q * tile_columns
                part = c[i : i + tile_rows, j : j + tile_columns]
                tile = c.new_zeros(tile_rows, tile_columns)
                micro_kernel(a_panel, b_panel, tile)
                part += tile[: part.shape[0], : part.shape[1]]
    return c
    # END SOLUTION
