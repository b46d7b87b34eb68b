"""SwiGLU and RoPE on the meter: what is computed number by number gains most, for nothing but traffic was there.

N numbers of b bytes; for RoPE N of q and k together, and C = tokens · head_dim numbers of each table, cos and sin.

                   launches   reads               writes     FLOPs
    SwiGLU  eager  2          b·3N                b·2N       2N, and N of sigmoid
            fused  1          b·2N                b·N        2N, and N of sigmoid
    RoPE    eager  5 + 5      b·(5.5N + 4C)       b·4.5N     3.5N
            fused  1          b·(N + 2C)          b·N        3N (nothing is negated and copied)
"""

from __future__ import annotations

from minillm.fusion.costs import Blocks, Cost, Widths, launch, load_rows, row_blocks, rows_of
from minillm.perf.meter import HbmTensor, Meter, Program, Tile


def eager_swiglu(meter: Meter, gate: HbmTensor, up: HbmTensor, blocks: Blocks, *, name: str = "") -> list[HbmTensor]:
    """gate and up (rows, size) -> [silu(gate) · up], silu(g) = g · sigmoid(g): two launches."""
    activated, out = meter.empty(name + "silu(gate)", gate.shape), meter.empty(name + "silu(gate)·up", gate.shape)
    launch(meter, name + "silu", silu, [gate], activated, blocks.rows)
    return [launch(meter, name + "mul", lambda a, b: a * b, [activated, up], out, blocks.rows)]


def fused_swiglu(meter: Meter, gate: HbmTensor, up: HbmTensor, blocks: Blocks, *, name: str = "") -> list[HbmTensor]:
    out = meter.empty(name + "silu(gate)·up", gate.shape)

    def compute(gate_tile: Tile, up_tile: Tile) -> Tile:
        tile = silu(gate_tile)
        tile *= up_tile
        return tile

    return [launch(meter, name + "swiglu", compute, [gate, up], out, blocks.rows)]


def swiglu_cost(version: str, rows: int, size: int, blocks: Blocks, widths: Widths) -> Cost:
    """The closed form above."""
    n, own = rows * size, widths.own
    if version == "fused":
        return Cost(1, 2 * own * n, own * n, 2 * n, n)
    return Cost(2, 3 * own * n, 2 * own * n, 2 * n, n)


def silu(tile: Tile) -> Tile:
    gate = tile.sigmoid()
    gate *= tile
    return gate


def eager_rope(
    meter: Meter, q: HbmTensor, k: HbmTensor, cos: HbmTensor, sin: HbmTensor, blocks: Blocks, *, name: str = ""
) -> list[HbmTensor]:
    """q and k (heads, tokens, head_dim), cos and sin (tokens, head_dim) -> [q, k] turned: mul, neg, cat, mul, add each.

    Cutting into halves is a view and costs nothing; `cat` copies.
    """
    return [_eager_rotate(meter, x, cos, sin, blocks, name + label) for x, label in ((q, "q "), (k, "k "))]


def _eager_rotate(meter: Meter, x: HbmTensor, cos: HbmTensor, sin: HbmTensor, blocks: Blocks, name: str) -> HbmTensor:
    heads, tokens, head_dim = x.shape
    half, rows = head_dim // 2, blocks.rows
    turned = meter.empty(name + "x·cos", x.shape)
    launch(meter, name + "mul cos", lambda a, b: a * b, [x, cos], turned, rows)
    negated = meter.empty(name + "−second", (heads, tokens, half))
    with meter.kernel(name + "neg") as kernel:
        for number, block in enumerate(row_blocks(tokens, rows)):
            with kernel.program(number) as sram:
                sram.store(-sram.load(x[:, block, half:]), rows_of(negated, block))
    swapped = meter.empty(name + "cat", x.shape)
    with meter.kernel(name + "cat") as kernel:
        for number, block in enumerate(row_blocks(tokens, rows)):
            with kernel.program(number) as sram:
                sram.store(load_rows(sram, negated, block), swapped[:, block, :half])
                sram.store(sram.load(x[:, block, :half]), swapped[:, block, half:])
    other = meter.empty(name + "cat·sin", x.shape)
    launch(meter, name + "mul sin", lambda a, b: a * b, [swapped, sin], other, rows)
    return launch(meter, name + "add", lambda a, b: a + b, [turned, other], meter.empty(name + "out", x.shape), rows)


def fused_rope(
    meter: Meter, q: HbmTensor, k: HbmTensor, cos: HbmTensor, sin: HbmTensor, blocks: Blocks, *, name: str = ""
) -> list[HbmTensor]:
    """One launch for q and k: a program turns all heads of its tokens, with their part of the tables loaded once."""
    outs = [meter.empty(name + "q out", q.shape), meter.empty(name + "k out", k.shape)]
    with meter.kernel(name + "rope") as kernel:
        for number, block in enumerate(row_blocks(q.shape[1], blocks.rows)):
            with kernel.program(number) as sram:
                tables = load_rows(sram, cos, block), load_rows(sram, sin, block)
                for x, out in zip((q, k), outs, strict=True):
                    with sram.scope():
                        _rotate_and_store(sram, load_rows(sram, x, block), *tables, out, block)
    return outs


def _rotate_and_store(sram: Program, x: Tile, cos: Tile, sin: Tile, out: HbmTensor, block: slice) -> None:
    half = x.shape[-1] // 2
    first, second = x[:, :, :half], x[:, :, half:]
    upper = first * cos[:, :half]
    upper -= second * sin[:, :half]
    lower = second * cos[:, half:]
    lower += first * sin[:, half:]
    sram.store(upper, out[:, block, :half])
    sram.store(lower, out[:, block, half:])


def rope_cost(version: str, tokens: int, heads: int, head_dim: int, blocks: Blocks, widths: Widths) -> Cost:
    """The closed form above; `heads` are those of q and of k together."""
    table, own = tokens * head_dim, widths.own
    n = heads * table
    if version == "fused":
        return Cost(1, own * (n + 2 * table), own * n, 3 * n, 0)
    return Cost(10, own * (11 * n // 2 + 4 * table), own * (9 * n // 2), 7 * n // 2, 0)
