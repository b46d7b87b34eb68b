"""The memory-hierarchy meter: a simulated GPU memory that counts what an algorithm moves.

A CPU's time says nothing about tiles and fusion on a GPU; bytes do. Here an algorithm is written as on a GPU, in
kernels made of programs. Tensors lie in HBM. A program has an SRAM of its own, small: it loads tiles, computes with
them, stores results. Nothing else is possible, and everything is counted.

    import torch
    from minillm.perf.meter import Meter

    meter = Meter(sram_bytes=12 * 1024)
    a, b = meter.hbm("A", torch.randn(70, 50)), meter.hbm("B", torch.randn(50, 90))
    c = meter.empty("C", (70, 90))
    with meter.kernel("matmul") as kernel:
        for i in range(0, 70, 32):
            for j in range(0, 90, 32):
                with kernel.program(i, j) as sram:
                    out = c[i : i + 32, j : j + 32]  # a region; ends at the edge, moves nothing
                    acc = sram.zeros(out.shape)
                    for k in range(0, 50, 32):
                        with sram.scope():  # what is made inside is freed at its end
                            a_tile, b_tile = sram.load(a[i : i + 32, k : k + 32]), sram.load(b[k : k + 32, j : j + 32])
                            sram.matmul(a_tile, b_tile, into=acc)
                    sram.store(acc, out)
    print(meter.report())
    print(meter.total.hbm_bytes, c.bytes_written, c.result())

Tiles compute as torch tensors do: `+ - * /` with broadcasting, `@`, `exp()`, `row_max()`, `row_sum()`, views `tile.T`
and `tile[:, :8]` (see `Tile`). Every result takes new SRAM; `+=` and methods that end in `_`, as `exp_()`, write in
place. `sram.free(tile)` gives room back before a scope ends, `sram.atomic_add` lets programs add to the same place. A
meter can also count registers, a cache and narrower storage, and keep a trace for pictures (see `Meter`).

What is refused, with a ValueError that says why: computing with what lies in HBM, a tile that doesn't fit (who holds
the SRAM is listed), a freed tile, a tile of another program, a store of another shape, reading HBM that nobody wrote,
a race between two programs of one launch. A program's tiles are gone when its `with` block ends.

What is counted, as exact integers: `meter.total` and `meter.kernels[name]` are `Counts`; `tensor.bytes_read` and
`tensor.bytes_written` belong to one tensor. Numbers are computed by torch, so results can be compared with it.

Reading order: `machine` (Meter and Kernel), `hbm` (tensors and regions), `sram` (a program), `tile` (computing),
`onchip` (capacity), `races`, `cache` (an L2), `counts` (what is counted), `trace` (events), `beats` (a trace cut into
steps), `film` and `frame` (its pictures, with matplotlib; imported by name only).
"""

from minillm.perf.meter.cache import TileCache
from minillm.perf.meter.counts import Counts
from minillm.perf.meter.hbm import HbmTensor, Region
from minillm.perf.meter.machine import Kernel, Meter
from minillm.perf.meter.sram import Program
from minillm.perf.meter.tile import Tile
from minillm.perf.meter.trace import Event

__all__ = ["Counts", "Event", "HbmTensor", "Kernel", "Meter", "Program", "Region", "Tile", "TileCache"]
