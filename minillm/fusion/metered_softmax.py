"""Softmax by rows on the meter: the safe one as five launches, as one, and online where a row doesn't fit the chip.

N = rows · size numbers of b bytes, T = ceil(size / block_columns) blocks in a row.

               launches   reads              writes             FLOPs                 special
    eager      5          b·(5N + 2·rows)    b·(3N + 2·rows)    4N − 2·rows           N
    fused      1          b·N                b·N                4N − 2·rows           N
    online     1          b·2N               b·N                5N + 2·T·rows         2N + T·rows

Eager: max, sub, exp, sum, div. Fused: a program holds whole rows. Online (Milakov and Gimelshein 2018, algorithm 3):
one pass finds maximum and sum together, block after block, and repairs the sum when a larger maximum comes; a second
pass reads the row again and writes. It trades a read of N for rows of any length.
"""

from __future__ import annotations

import math

from minillm.fusion.costs import Blocks, Cost, Widths, launch, load_rows, row_blocks
from minillm.perf.meter import HbmTensor, Meter, Program, Tile


def eager_softmax(meter: Meter, x: HbmTensor, blocks: Blocks, *, name: str = "") -> list[HbmTensor]:
    """x (rows, size) -> [exp(x − max) / sum by rows]. A row that is −inf all over gives NaN, as torch does."""
    rows, column = blocks.rows, (x.shape[0], 1)
    largest = launch(meter, name + "max", lambda t: t.row_max(), [x], meter.empty(name + "m", column), rows)
    shifted = launch(meter, name + "sub", lambda a, b: a - b, [x, largest], meter.empty(name + "x − m", x.shape), rows)
    weights = launch(meter, name + "exp", lambda t: t.exp(), [shifted], meter.empty(name + "exp", x.shape), rows)
    total = launch(meter, name + "sum", lambda t: t.row_sum(), [weights], meter.empty(name + "l", column), rows)
    out = meter.empty(name + "y", x.shape)
    return [launch(meter, name + "div", lambda a, b: a / b, [weights, total], out, rows)]


def fused_softmax(meter: Meter, x: HbmTensor, blocks: Blocks, *, name: str = "") -> list[HbmTensor]:
    """One launch, whole rows on the chip. ValueError where they don't fit."""

    def compute(tile: Tile) -> Tile:
        tile -= tile.row_max()
        tile.exp_()
        tile /= tile.row_sum()
        return tile

    return [launch(meter, name + "softmax", compute, [x], meter.empty(name + "y", x.shape), blocks.rows)]


def online_softmax(meter: Meter, x: HbmTensor, blocks: Blocks, *, name: str = "") -> list[HbmTensor]:
    """One launch, `blocks.columns` of a row at a time."""
    out = meter.empty(name + "y", x.shape)
    with meter.kernel(name + "online softmax") as kernel:
        for number, rows in enumerate(row_blocks(x.shape[0], blocks.rows)):
            with kernel.program(number) as sram:
                largest, total = maximum_and_sum(sram, x, rows, blocks.columns)
                for columns in row_blocks(x.shape[1], blocks.columns):
                    with sram.scope():
                        tile = sram.load(x[rows, columns])
                        tile -= largest
                        tile.exp_()
                        tile /= total
                        sram.store(tile, out[rows, columns])
    return [out]


def maximum_and_sum(sram: Program, x: HbmTensor, rows: slice, block_columns: int) -> tuple[Tile, Tile]:
    """m = max(x) and l = Σ exp(x − m) of some rows in one pass over them; (rows, 1) each."""
    height = rows.stop - rows.start
    largest = sram.full((height, 1), -math.inf, name="m")
    total = sram.zeros(height, 1, name="l")
    for columns in row_blocks(x.shape[1], block_columns):
        with sram.scope():
            tile = load_rows(sram, x, rows) if block_columns >= x.shape[1] else sram.load(x[rows, columns])
            new = tile.row_max()
            new.maximum_(largest)
            largest -= new  # how much too large the old weights are: the factor takes the maximum's place
            total *= largest.exp_()
            largest.copy_(new)
            tile -= new
            total += tile.exp_().row_sum()
    return largest, total


def one_pass_cost(rows: int, size: int, blocks: Blocks, widths: Widths) -> Cost:
    """`maximum_and_sum` of all rows: 3·size + 2T FLOPs a row, size + T of exp; launches nothing by itself."""
    n, repairs = rows * size, rows * math.ceil(size / blocks.columns)
    return Cost(0, widths.own * n, 0, 3 * n + 2 * repairs, n + repairs)


def softmax_cost(version: str, rows: int, size: int, blocks: Blocks, widths: Widths) -> Cost:
    """The closed form above; `version` is "eager", "fused" or "online"."""
    n, own = rows * size, widths.own
    if version == "online":
        return one_pass_cost(rows, size, blocks, widths) + Cost(1, own * n, own * n, 2 * n, n)
    if version == "fused":
        return Cost(1, own * n, own * n, 4 * n - 2 * rows, n)
    return Cost(5, own * (5 * n + 2 * rows), own * (3 * n + 2 * rows), 4 * n - 2 * rows, n)
