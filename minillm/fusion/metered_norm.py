"""RMSNorm on the meter, with and without the residual sum in front: six or seven launches, or one.

N = rows · size numbers, P = ceil(rows / block_rows) programs, each of which reads the weight. A number of x takes b
bytes, one of the statistics w bytes (4, or 8 for float64). Where b < w eager torch casts x first and the result last.

                        launches    reads                                    writes
    eager               6           w·(3N + 3·rows) + b·(N + P·size)         w·(2N + 3·rows) + b·N
    … with casts        8           w·(4N + 3·rows) + b·(2N + P·size)        w·(3N + 3·rows) + b·2N
    fused               1           b·(N + P·size)                           b·N
    sum in front        + 1 eager   + b·2N eager, + b·N fused                + b·N

The FLOPs are the same: 4N + rows, and rows of rsqrt; with the sum 5N + rows.
"""

from __future__ import annotations

import math

import torch

from minillm.fusion.costs import Blocks, Cost, Widths, launch, load_rows, row_blocks, rows_of
from minillm.perf.meter import HbmTensor, Meter, Program, Tile

EPS = 1e-6


def eager_rms_norm(meter: Meter, x: HbmTensor, weight: HbmTensor, blocks: Blocks, *, name: str = "") -> list[HbmTensor]:
    """x (rows, size), weight (1, size) -> [x / sqrt(mean(x²) + eps) · weight], a launch for each call of the module."""
    (num_rows, size), rows = x.shape, blocks.rows
    statistics = wide_dtype(meter, x)
    casts = statistics.itemsize != x.bytes_per_number

    def empty(what: str, shape: tuple[int, ...], *, wide: bool = True) -> HbmTensor:
        return meter.empty(name + what, shape, stored_as=statistics if wide else meter.stored_as)

    if casts:
        x = launch(meter, name + "to float32", same, [x], empty("wide", x.shape), rows)
    square = launch(meter, name + "square", lambda t: t * t, [x], empty("x²", x.shape), rows)
    mean = launch(meter, name + "mean", lambda t: mean_of(t, size), [square], empty("mean", (num_rows, 1)), rows)
    plus = launch(meter, name + "add eps", lambda t: t + EPS, [mean], empty("+ eps", (num_rows, 1)), rows)
    root = launch(meter, name + "rsqrt", lambda t: t.rsqrt(), [plus], empty("rsqrt", (num_rows, 1)), rows)
    normed = launch(meter, name + "mul", lambda a, b: a * b, [x, root], empty("normed", x.shape), rows)
    if casts:
        normed = launch(meter, name + "to own", same, [normed], empty("narrow", x.shape, wide=False), rows)
    out = empty("y", x.shape, wide=False)
    return [launch(meter, name + "mul weight", lambda a, b: a * b, [normed, weight], out, rows)]


def eager_add_rms_norm(
    meter: Meter, x: HbmTensor, residual: HbmTensor, weight: HbmTensor, blocks: Blocks, *, name: str = ""
) -> list[HbmTensor]:
    """[rms_norm(x + residual), x + residual], with a launch more for the sum."""
    total = meter.empty(name + "sum", x.shape)
    launch(meter, name + "add", lambda a, b: a + b, [x, residual], total, blocks.rows)
    return [*eager_rms_norm(meter, total, weight, blocks, name=name), total]


def fused_rms_norm(meter: Meter, x: HbmTensor, weight: HbmTensor, blocks: Blocks, *, name: str = "") -> list[HbmTensor]:
    """One launch: a program loads its rows, keeps their statistics on the chip, and stores what is normed."""
    out = meter.empty(name + "y", x.shape)
    with meter.kernel(name + "rms_norm") as kernel:
        for number, rows in enumerate(row_blocks(x.shape[0], blocks.rows)):
            with kernel.program(number) as sram:
                tile = load_rows(sram, x, rows)
                _norm(sram, tile, weight)
                sram.store(tile, rows_of(out, rows))
    return [out]


def fused_add_rms_norm(
    meter: Meter, x: HbmTensor, residual: HbmTensor, weight: HbmTensor, blocks: Blocks, *, name: str = ""
) -> list[HbmTensor]:
    """One launch; the sum is stored on the way, since the residual stream goes on."""
    out, total = meter.empty(name + "y", x.shape), meter.empty(name + "sum", x.shape)
    with meter.kernel(name + "add_rms_norm") as kernel:
        for number, rows in enumerate(row_blocks(x.shape[0], blocks.rows)):
            with kernel.program(number) as sram:
                tile = load_rows(sram, x, rows)
                with sram.scope():
                    tile += load_rows(sram, residual, rows)
                sram.store(tile, rows_of(total, rows))
                _norm(sram, tile, weight)
                sram.store(tile, rows_of(out, rows))
    return [out, total]


def rms_norm_cost(version: str, rows: int, size: int, blocks: Blocks, widths: Widths) -> Cost:
    """The closed form above; `version` is "eager" or "fused"."""
    n, weights = rows * size, math.ceil(rows / blocks.rows) * size
    own, wide = widths.own, widths.wide
    if version == "fused":
        return Cost(1, own * (n + weights), own * n, 4 * n + rows, rows)
    read, written = wide * (3 * n + 3 * rows) + own * (n + weights), wide * (2 * n + 3 * rows) + own * n
    if widths.casts:
        read, written = read + (own + wide) * n, written + (own + wide) * n
    return Cost(8 if widths.casts else 6, read, written, 4 * n + rows, rows)


def add_rms_norm_cost(version: str, rows: int, size: int, blocks: Blocks, widths: Widths) -> Cost:
    """RMSNorm, and the sum: fused it costs only to read the other operand and to write the sum."""
    n, own = rows * size, widths.own
    extra = Cost(0, own * n, own * n, n, 0) if version == "fused" else Cost(1, 2 * own * n, own * n, n, 0)
    return rms_norm_cost(version, rows, size, blocks, widths) + extra


def wide_dtype(meter: Meter, x: HbmTensor) -> torch.dtype:
    """The dtype that statistics of x are stored in: float32, or the meter's where that is wider."""
    return meter.stored_as if x.bytes_per_number >= 4 else torch.float32


def same(tile: Tile) -> Tile:
    """A cast moves numbers from one width to another and computes nothing."""
    return tile


def mean_of(tile: Tile, size: int) -> Tile:
    mean = tile.row_sum()
    mean *= 1 / size
    return mean


def _norm(sram: Program, tile: Tile, weight: HbmTensor) -> None:
    """Norm a tile of rows in place."""
    with sram.scope():
        root = mean_of(tile * tile, tile.shape[-1])
        root += EPS
        tile *= root.rsqrt()
    with sram.scope():
        tile *= sram.load(weight)
