# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 · Matrix products
#
# *The same multiplications, the same result, hundreds of times apart: what decides is where the numbers come from.*
#
# Needs: chapters [01](01_whole_system.ipynb), [02](02_building_the_model.ipynb) and [05](05_cost_model.ipynb) · Time: 75
# minutes to read, 60 to solve

# %% [markdown]
# ## Why
#
# Every linear layer of a model is a matrix product, and so are the scores of attention. A model is as fast as its matrix
# products, and the definition of a matrix product has three lines. How much can there be to gain?
#
# Here is the number that hurts. Two 512 × 512 matrices of float32 are 2 MiB. The three lines, compiled, load **1 GiB** to
# multiply them: each number 512 times.

# %% tags=["hide-input"]
import inspect
import os
from collections import OrderedDict
from importlib.util import find_spec

import numpy as np
import torch
from IPython.display import Markdown
from matplotlib.patches import Rectangle

from minillm import plots
from minillm.bench.compare import Spread
from minillm.bench.gemm import READ, TORCH, Plan, measure_flat, measure_ladder
from minillm.bench.recorded import recorded
from minillm.bench.show import source
from minillm.gemm import LADDER
from minillm.gemm.tile import host_vector_unit
from minillm.perf.probe import ReadProbe

plan = Plan(rounds=7)


def source_between(function, first: str, last: str) -> None:
    """`source`, from the line that begins with `first` to the next one that begins with `last`."""
    lines = [line.strip() for line in inspect.getsource(function).splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith(first))
    stop = next(i for i, line in enumerate(lines) if i > start and line.startswith(last))
    source(function, lines=(start + 1, stop + 1))


def measure_products() -> dict:
    """FLOPs a second of every rung and of torch, beside the FMA probe; all of them take turns."""
    read_probe = ReadProbe(plan.probe_bytes)
    found = {"vectors": host_vector_unit().name}
    for size in (512, 2048):
        result = measure_ladder(size, plan, read_probe)
        one, every = result.one_thread, result.all_threads
        found[size] = {
            "rungs": {name: result.flops_per_s(name) for name in LADDER},
            "torch": [result.torch_flops_per_s(one), result.torch_flops_per_s(every)],
            "fma probe": [Spread.of(one.probes).median, Spread.of(every.probes).median],
            "read": result.read_bytes / every.time(READ).median,
            "threads": result.num_threads,
        }
    return found


ladder_record = recorded("06_ladder", measure_products)
timed = ladder_record.values["512"]
naive_share = timed["rungs"]["naive ijk"] / timed["fma probe"][0]
fig, ax = plots.figure(height=1.7)
ax.barh([1, 0], [1, naive_share], color=[plots.GREEN, plots.ORANGE])
ax.set_yticks([1, 0], ["what one core can do", "three loops, 512 × 512"])
ax.text(naive_share + 0.01, 0, f"{naive_share:.1%} of it", va="center")
ax.set(xlim=(0, 1.02), xlabel="multiply-adds a second, as a share of the FMA probe")
ax.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
plots.show(fig, alt="Two bars: the multiply-adds that one core can do, and the sliver of them that the compiled naive loop reaches.", record=ladder_record)

# %% [markdown]
# The **FMA probe** (浮点算力探针) in green is a loop of *fused multiply-adds*, $x \cdot y + z$ in one instruction, on numbers that
# never leave the core: a ceiling that no product can pass. `recorded` measures on your machine when you run the notebook;
# what is printed here was measured on the machine named under the figure. (The loops need numba: `pip install
# minillm[fast]`.) This chapter climbs from the orange bar to the green one, on a CPU and on a GPU, and counts bytes at each
# rung.

# %% [markdown]
# ## Napkin
#
# **GEMM** (矩阵乘, *general matrix multiply*): $C = A B$ with $A$ of shape $(M, K)$, $B$ of $(K, N)$ and $C$ of $(M, N)$. For a
# linear layer $M$ counts tokens, $K$ and $N$ are its widths. Each of the $MN$ results is a sum of $K$ products:
#
# $$\text{FLOPs} = 2\,MNK, \qquad \text{bytes at least} = s\,(MK + KN + MN),$$
#
# with $s$ bytes a number. For $M = N = K = n = 512$ in float32 that is 268 million FLOPs and 3 MiB: an intensity (chapter 05)
# of $2n^3 / 12n^2 = n/6 = 85$ FLOPs a byte. Most machines need 10 to 300 to be bound by arithmetic. A square product could
# run at peak, if each number came once.
#
# The definition loads, for each multiply-add, one number of $A$ and one of $B$: 8 bytes for 2 FLOPs, **0.25 FLOPs a byte**. A
# memory of 50 GB/s then allows 12 GFLOP/s, whatever the arithmetic units can do.
#
# Everything that follows is one idea: *a number that was expensive to get is used as often as possible before it goes.* The
# bookkeeping, for a *tile* of $C$, $b_m$ rows and $b_n$ columns that are made in one go (**tiling**, 分块). It needs $b_m$ rows
# of $A$ and $b_n$ columns of $B$, each $K$ long:
#
# $$\frac{\text{FLOPs}}{\text{numbers loaded}} = \frac{2\, b_m b_n K}{(b_m + b_n)\, K} = \frac{2\, b_m b_n}{b_m + b_n}.$$
#
# A tile of 1 × 1 gives 1 FLOP a number, one of 128 × 128 gives 128. The whole product moves
#
# $$MNK\left(\frac{1}{b_m} + \frac{1}{b_n}\right) + MN \text{ numbers.}$$

# %% [markdown]
# ## The naive version
#
# The definition in Python. It stays the oracle of everything below.

# %%
def product_by_definition(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(m, k) · (k, n) -> (m, n), one multiply-add at a time."""
    c = torch.zeros(a.shape[0], b.shape[1], dtype=a.dtype)
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            for k in range(a.shape[1]):
                c[i, j] += a[i, k] * b[k, j]
    return c


generator = torch.Generator().manual_seed(6)
a, b = torch.randn(7, 5, generator=generator), torch.randn(5, 6, generator=generator)
torch.testing.assert_close(product_by_definition(a, b), a @ b)
for name, rung in LADDER.items():  # the library's ladder: each rung is called as rung(a, b)
    torch.testing.assert_close(rung(a, b), product_by_definition(a, b))
print("six rungs, one result:", ", ".join(LADDER))

# %% [markdown]
# The first rung of the library's ladder is the same loops compiled. That is the orange bar. What does it wait for?
#
# For two things. Its sum is a chain: each multiply-add waits some 4 cycles for the one before, a single number at a time.
# Half a FLOP a cycle, where a core with wide vectors can do 64: the chain alone allows about 1 % of the peak. And each number
# of $B$ comes from a cache line of its own. Bytes first; the chain in "The register tile".

# %% [markdown]
# ## The idea
#
# ### Memory comes in lines
#
# A processor doesn't fetch numbers. It fetches **cache lines** (缓存行) of 64 bytes, 16 float32 numbers that lie side by side,
# and keeps the lines used last in its caches: some 32 KiB that answer at once, a megabyte a little later, some megabytes
# shared by all cores. Matrices lie row after row. So the innermost loop decides what a line is worth:

# %% tags=["hide-input"]
fig, axes = plots.figure(height=3.5, ncols=2)
for ax, title, touched, walk in (
    (axes[0], "k innermost: down a column", [(r, 0) for r in range(32)], [(r, 5) for r in range(32)]),
    (axes[1], "j innermost: along a row", [(9, 0), (9, 1)], [(9, c) for c in range(32)]),
):
    for r in range(32):
        for line in range(2):
            color = plots.tint(plots.ORANGE, 0.45) if (r, line) in touched else plots.tint(plots.MUTED, 0.1)
            ax.add_patch(Rectangle((16 * line + 0.15, r + 0.12), 15.7, 0.76, facecolor=color))
    for r, c in walk:
        ax.add_patch(Rectangle((c + 0.15, r + 0.12), 0.7, 0.76, facecolor=plots.BLUE))
    share = 32 / (16 * len(touched))
    ax.set(xlim=(-0.5, 32.5), ylim=(32.5, -0.5), aspect="equal", xticks=[], yticks=[])
    ax.set_title(title, fontsize=11.5)
    ax.set_xlabel(f"{len(touched)} lines for 32 numbers: {share:.0%} used")
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
axes[0].set_ylabel("B, 32 × 32")
plots.show(fig, alt="32 numbers of B read down a column touch 32 cache lines and use a sixteenth of each; read along a row they touch two lines and use all of them.")

# %% [markdown]
# Down a column of $B$, 64 bytes come for every 4 that are wanted. The next columns want the rest. But a column of 512 rows
# brings in 512 lines, 32 KiB, which fills the nearest cache to the brim. With a row of $A$ beside it, its beginning is gone
# before the next column asks. Exchange two loops, $i, k, j$ for $i, j, k$, and row $i$ of $C$ becomes a sum of rows of $B$:
# all is read from left to right. Let us count, with a cache that holds so many lines and throws out the one not used for
# longest.

# %%
LINE = 16  # float32 numbers in 64 bytes


def walk_ijk(n):
    """Lines touched, in order: ("A", row, line) and so on. A sum stays in a register, so C is touched once."""
    for i in range(n):
        for j in range(n):
            for k in range(n):
                yield "A", i, k // LINE
                yield "B", k, j // LINE
            yield "C", i, j // LINE


def walk_ikj(n, block_k=None, block_n=None):
    """The same for i, k, j; with blocks, all rows i use a block of B before the next one comes."""
    block_k, block_n = block_k or n, block_n or n
    for k0 in range(0, n, block_k):
        for j0 in range(0, n, block_n):
            for i in range(n):
                for k in range(k0, k0 + block_k):
                    yield "A", i, k // LINE
                    for line in range(j0 // LINE, (j0 + block_n) // LINE):
                        yield "B", k, line
                        yield "C", i, line


def lines_fetched(walk, num_lines: int) -> int:
    """How often a cache that keeps the `num_lines` lines used last has to ask memory."""
    cache, fetched = OrderedDict(), 0
    for line in walk:
        if line in cache:
            cache.move_to_end(line)
            continue
        fetched += 1
        cache[line] = None
        if len(cache) > num_lines:
            cache.popitem(last=False)
    return fetched


n = 64
cache_lines = [8, 16, 20, 40, 62, 72, 128, 256, 300, 600, 1024]
walks = {
    "ijk": (plots.ORANGE, 5, lambda: walk_ijk(n)),
    "ikj": (plots.BLUE, 2, lambda: walk_ikj(n)),
    "ikj in blocks of 16 × 16": (plots.PURPLE, 2, lambda: walk_ikj(n, 16, 16)),
}
fig, ax = plots.figure(height=3.5)
for name, (color, width, walk) in walks.items():
    fetched = [64 * lines_fetched(walk(), size) / 2**10 for size in cache_lines]
    ax.plot(cache_lines, fetched, "o-", color=color, label=name, linewidth=width, markersize=width + 3)
least = 3 * n * n * 4 / 2**10
ax.axhline(least, color=plots.GREEN, linestyle="--", label=f"every line once: {least:.0f} KiB")
ax.set(xscale="log", yscale="log", xlabel="cache (lines of 64 bytes)", ylabel="fetched from memory (KiB)")
ax.set_xticks([8, 20, 64, 256, 1024])
ax.minorticks_off()
ax.set_title(f"Three matrices of {n} × {n}, 16 KiB each", fontsize=11.5)
ax.xaxis.set_major_formatter("{x:g}")
ax.yaxis.set_major_formatter("{x:,g}")
ax.legend(loc="upper right")
plots.show(fig, alt="Kilobytes fetched against cache size: ijk fetches a line for every multiply-add until the cache holds a column, ikj sixteen times less, and the blocked order only three times the minimum with a fifteenth of the cache that the others need for the minimum.")

# %% [markdown]
# Three walks, three cliffs. Until the cache holds a line for each row of a column, ijk pays 64 bytes for each multiply-add:
# more than 16 MiB for matrices of 48 KiB in all. ikj uses whole lines, but reads all of $B$ for each row of $A$ until the
# cache holds $B$. The blocked walk is content with twenty lines. Once the cache holds $B$ anyway, blocks cost more than they
# save.
#
# ### Count it: tiles on a meter
#
# A CPU's cache guesses. A GPU's *shared memory*, its **SRAM** (片上存储), is told: a program copies a tile there, works, and
# writes the result back to the big slow memory, **HBM** (高带宽显存). So it can be counted to the byte. The library's
# *memory-hierarchy meter* is such a machine, simulated. For $y = x + x$:
#
# ```python
# meter = Meter(sram_bytes=48 * 1024)                  # each program has so much SRAM
# x, y = meter.hbm("x", data), meter.empty("y", data.shape)
# with meter.kernel("twice") as kernel:                # a launch: a grid of programs
#     for i in range(0, x.shape[0], 32):
#         with kernel.program(i) as sram:
#             tile = sram.load(x[i : i + 32])          # counted; the last may be smaller
#             with sram.scope():                       # what is made inside is freed at its end
#                 sram.store(tile + tile, y[i : i + 32])  # w[p:q, r:s] is a part of a matrix
# meter.total.bytes_read, meter.total.hbm_bytes, meter.total.peak_sram_bytes, y.result()
# ```
#
# Products: `acc = sram.zeros(rows, columns)`, then `sram.matmul(a_tile, b_tile, into=acc)`; `tile.T` and `tile[:, p:q]` are
# views and move nothing. Computing with what wasn't loaded, or loading more than fits, raises an error. `Blocks(block_m,
# block_n, block_k)` are a tile's sizes. (A *block of threads*, below, is another thing.)
#
# A product of 96 × 96 matrices in tiles of 32 × 32, as the meter traced it. A frame is a step of one program. Blue and
# orange: what it loads. Dashed: where its result will go; dark green: written in this step; light: done. `acc` is the sum.
# The formula above gives 64,512 numbers, 252 KiB, and so does the last frame.

# %%
from minillm.gemm.metered import RUNGS, Blocks, run
from minillm.perf.meter import Meter
from minillm.perf.meter.film import animation, film_strip, show_animation

generator = torch.Generator().manual_seed(0)
a, b = torch.randn(96, 96, generator=generator), torch.randn(96, 96, generator=generator)
traced = run("shared_tile", a, b, meter=Meter(16 * 1024, trace=True))
places = {"A": (1, 0), "B": (0, 1), "C": (1, 1)}
fig = film_strip(traced, ("A", "B", "C"), places=places, frames=[0, 1, 2, 3, 14, 26])
plots.show(fig, alt="Six frames of a tiled product: a tile of A and a tile of B come to SRAM, walk along k, and a tile of C is written after three steps; bytes moved add up below.")

# %% [markdown]
# And in motion:

# %% tags=["hide-input"]
show_animation(animation(traced, ("A", "B", "C"), places=places, frames_per_s=3, width=3.2), alt="Animation: tiles of A move right, tiles of B move down, and the tiles of C fill up one after another.")

# %% [markdown]
# Now every rung on the meter, the formula beside the count. No tile divides 100 × 90 × 110.

# %%
m, n, k = 100, 90, 110
a, b = torch.randn(m, k, generator=generator), torch.randn(k, n, generator=generator)
rows = ["| rung | bytes predicted | bytes counted | FLOPs a byte | SRAM read, bytes a FLOP |", "|---|---:|---:|---:|---:|"]
hbm_per_flop, sram_per_flop = {}, {}  # for the figure that sums the ladder up
for name in ("naive ijk", "reordered ikj", "tiled", "shared_tile", "register tile", "packed"):
    meter = run(name, a, b)
    moved, total = RUNGS[name].moved(m, n, k), meter.total
    torch.testing.assert_close(meter.tensors["C"].result(), a @ b, rtol=1e-4, atol=1e-4)
    assert 4 * sum(moved) == total.hbm_bytes
    hbm_per_flop[name] = total.hbm_bytes / total.matmul_flops
    sram_per_flop[name] = total.sram_bytes_read / total.matmul_flops
    in_sram = "" if name == "naive ijk" else f"{sram_per_flop[name]:.2f}"
    rows.append(f"| {name} | {4 * sum(moved):,} | {total.hbm_bytes:,} | {total.matmul_flops / total.hbm_bytes:.2f} | {in_sram} |")
Markdown("\n".join(rows))

# %% [markdown]
# They agree to the byte. Tiles are 32 × 32, and with edges the formula for `shared_tile` reads
#
# $$MK \lceil N/b_n \rceil + KN \lceil M/b_m \rceil + MN \text{ numbers:}$$
#
# a row of $A$ is read once for each *column of tiles*, a column of $B$ once for each *row of tiles*, and the tile at the edge
# reads only what exists. The naive 0.25 is the napkin's. ikj keeps a row of $C$: $MK + MNK + MN$. *Which matrix stays* is a
# choice. In `tiled`, the CPU's rung, a block of $B$ stays, and $C$ is read back for every block of $k$ after the first; in
# `shared_tile`, drawn above, the tile of $C$ stays. `packed` adds copies, $2(MK + KN)$, explained below.
#
# The last column: tiles save traffic from HBM and none from SRAM. There, each multiply-add still reads its two numbers, 4
# bytes a FLOP. The `register tile` doesn't: the next idea but one. (The naive loop keeps one sum, and nothing in SRAM.)
#
# ### How large a tile?
#
# As large as fits, and square. With $S$ numbers of SRAM, a square tile has about $b = \sqrt{S}$, and the product moves about
# $2\,MNK/\sqrt{S}$ numbers. Up to a constant nothing does better: Hong and Kung proved in 1981 that *any* order of the
# multiplications moves $\Omega(MNK/\sqrt{S})$. Four times the SRAM halves the traffic. Small tiles lie above the line: the
# pieces of $A$ and $B$, 4 deep here, take room too.

# %%
size = 128
a, b = torch.randn(size, size, generator=generator), torch.randn(size, size, generator=generator)
tiles = [4, 8, 16, 32, 64]
counted, peaks = [], []
for edge in tiles:
    meter = run("register tile", a, b, blocks=Blocks(edge, edge, 4))
    counted.append(meter.total.bytes_read)
    peaks.append(meter.total.peak_sram_bytes + 4 * edge * edge)  # the sums lie in registers: they count as well
fig, ax = plots.figure(height=3.0)
sram = np.geomspace(min(peaks) / 1.3, max(peaks) * 1.3)
ax.plot(sram / 2**10, 4 * 2 * size**3 / np.sqrt(sram / 4) / 2**10, color=plots.GREEN, linestyle="--", label="$2\\,MNK/\\sqrt{S}$ numbers")
ax.plot([p / 2**10 for p in peaks], [c / 2**10 for c in counted], "o", color=plots.BLUE, label="counted")
for edge, peak, count in zip(tiles, peaks, counted, strict=True):
    ax.annotate(f"{edge} × {edge}", (peak / 2**10, count / 2**10), (6, 5), textcoords="offset points")
ax.set(xscale="log", yscale="log", xlabel="held on the chip, sums included (KiB)", ylabel="read from HBM (KiB)", xlim=(0.09, 40), ylim=(90, 9000))
ax.minorticks_off()
ax.xaxis.set_major_formatter("{x:g}")
ax.yaxis.set_major_formatter("{x:,g}")
ax.legend()
plots.show(fig, alt="Bytes read against on-chip memory held: five tile sizes fall with the square root of the memory; the large ones lie on the line, the small ones up to 1.7 times above it.")

# %% [markdown]
# What must fit at once: the tile of $C$, $b_m b_n$ numbers, and the tiles of $A$ and $B$ for a step of $b_k$ along $K$,
# $(b_m + b_n)\, b_k$ numbers. A deeper step saves no traffic. **Double buffering** (双缓冲) holds that second part twice, so
# that the next pair of tiles is on its way while this one is multiplied. The price is SRAM.
#
# ### The register tile
#
# One level down the story repeats, in a core's *registers*. With AVX-512, the widest on x86 processors, there are 32, each a
# vector of 16 float32 numbers, its *lanes*: one instruction multiplies and adds all 16. That is **SIMD** (单指令多数据), single
# instruction, multiple data.
#
# Keep a tile of $C$ there, and walk along $k$. For each $k$, load a piece of a row of $B$ as vectors, and the numbers of a
# column of $A$ one by one, each copied into all lanes of a register. Column times row: an **outer product** (外积), added to
# the tile.
#
# $$C_\text{tile} \mathrel{+}= a_{:,k}\; b_{k,:} \qquad \text{for } k = 0, 1, \ldots, K - 1$$
#
# A tile of $r$ rows and $v$ vectors needs $r v$ registers for its sums, $v$ for the row of $B$, 1 for a number of $A$. How
# many FLOPs does each number loaded feed, if all must fit into 32?

# %% tags=["hide-input"]
from minillm.gemm.tile import Tile

LANES, REGISTERS = 16, 32
fig, (ax, heat_ax) = plots.figure(height=4.6, ncols=2, width_ratios=[1.05, 1])
ax.axis("off")
for y, x, width, label, color in [
    *[(12.3, 1.3 + 2.1 * v, 2.0, f"b {16 * v}…{16 * v + 15}", plots.ORANGE) for v in range(2)],
    *[(11 - i, 0, 1.1, f"a {i}", plots.PURPLE) for i in range(12)],
    *[(11 - i, 1.3 + 2.1 * v, 2.0, f"sum {i}, {v}", plots.BLUE) for i in range(12) for v in range(2)],
]:
    ax.add_patch(Rectangle((x, y), width, 0.86, facecolor=plots.tint(color, 0.22), edgecolor=color, linewidth=1))
    ax.text(x + width / 2, y + 0.42, label, ha="center", va="center", fontsize=9)
ax.set(xlim=(-0.1, 5.6), ylim=(-1.1, 13.4))
ax.set_title("12 rows × 2 vectors = 12 × 32", fontsize=11.5)
ax.text(0, -0.4, "24 sums + 2 of B + 1 of A: 27 of 32", fontsize=10.5, va="top")
heights = range(2, 31, 2)
for place, rows in enumerate(heights):
    for vectors in range(1, 5):
        tile = Tile(rows, vectors, LANES)
        if tile.registers <= REGISTERS:
            color = plots.tint(plots.BLUE, tile.flops_per_load / 22)
            heat_ax.add_patch(Rectangle((vectors - 0.47, place - 0.46), 0.94, 0.92, facecolor=color))
            ink = plots.ink_on(color)
            heat_ax.text(vectors, place, f"{tile.flops_per_load:.1f}", ha="center", va="center", fontsize=9.5, color=ink)
chosen = heights.index(12)
heat_ax.add_patch(Rectangle((1.53, chosen - 0.46), 0.94, 0.92, fill=False, edgecolor=plots.ORANGE, linewidth=2.5, zorder=5))
heat_ax.set(xlim=(0.4, 4.6), ylim=(14.6, -0.6), xticks=range(1, 5), xlabel="vectors of 16 numbers", ylabel="rows (every second height)")
heat_ax.set_yticks(range(15), heights)
heat_ax.tick_params(labelsize=9.5)
heat_ax.grid(False)
heat_ax.set_title("FLOPs for a number loaded", fontsize=11.5)
plots.show(fig, alt="Left: a register tile of 12 rows and 2 vectors, 24 registers of sums, 2 for a row of B, 1 for a number of A. Right: FLOPs per number loaded for tile shapes that fit 32 registers, every second height; 12 by 2 gives 17.5, 14 by 2 gives 19.5, the tallest of one vector 20.9.")

# %% [markdown]
# Nearly all registers in use: 12 × 32, a shape that BLIS uses for these processors too, feeds 17.5 FLOPs with each number,
# 4.4 FLOPs a byte; ikj, which loads a number of $B$, loads one of $C$ and stores it for each multiply-add, has 0.17. Tall
# tiles of one vector reach 20.9, but each of their multiply-adds needs a load instruction; 12 × 2 makes 24 with 14. (14 × 32
# would fit, 12 % better, and leave one register to spare.)
#
# Now the chain. A multiply-add takes about 4 cycles, and a core starts up to 2 each cycle: at least 8 sums have to be on
# their way side by side. The naive loop has one. Here there are 24.
#
# ### Packing
#
# The tile walks along 12 rows of $A$ at once, and from row to row of $B$. Rows lie far apart. So copy them first, in the
# order in which they will be read. **Packing** (数据打包) cuts the matrices into *panels* as wide as the tile; in a panel $k$
# runs slowest, and what one step needs lies side by side: 32 numbers of a row of $B$, 12 of a column of $A$. So $A$ is packed
# transposed. The last panel is filled up with zeros, so that the innermost loop, the **micro-kernel** (微内核), knows one shape
# only. Where $C$ ends in the middle of a tile, the whole tile is summed elsewhere, and the part that exists is added to $C$.
#
# A 2 × 3 example: $\begin{pmatrix}1&2&3\\4&5&6\end{pmatrix}$ as $B$, in panels of two columns, is stored as 1 2 4 5 and 3 0 6 0.

# %% tags=["hide-input"]
row_bytes, steps, page = 2048 * 4, 24, 4096
k_steps = np.repeat(np.arange(steps), 12)
a_plain = np.tile(np.arange(12), steps) * row_bytes + 4 * k_steps
a_packed = 4 * np.arange(12 * steps)
b_plain, b_packed = np.arange(steps) * row_bytes, np.arange(steps) * 128
fig, axes = plots.figure(height=3.3, ncols=2)
for ax, title, a_bytes, b_bytes in ((axes[0], "as the matrices lie", a_plain, b_plain), (axes[1], "packed", a_packed, b_packed)):
    pages = len(set(a_bytes // page)) + len(set(b_bytes // page))
    ax.scatter(k_steps, a_bytes / 2**10, s=7, color=plots.PURPLE, label="12 numbers of A", zorder=4)
    ax.scatter(np.arange(steps), b_bytes / 2**10, s=22, marker="D", color=plots.ORANGE, label="32 numbers of B")
    ax.set(xlabel="step k")
    ax.set_title(f"{title}: {pages} pages", fontsize=11.5)
axes[1].set_ylim(-0.1, 3.2)
axes[0].set_ylabel("distance from the start (KiB)")
axes[0].legend(loc="upper left")
plots.show(fig, alt="Addresses read by the micro-kernel over 24 steps: in 2048-wide matrices they are scattered over 184 KiB and 36 pages, packed they lie in two consecutive runs of 1.1 and 2.9 KiB.")

# %% [markdown]
# Left, the innermost loop meets a new page (4 KiB, the unit in which addresses are looked up) with every step. A line may lie
# only in a few places of a cache, chosen by its address; rows 8 KiB apart compete for the same ones. Right, on an axis 60
# times finer, it walks.
#
# Around the micro-kernel lie blocks: a panel of $B$ for the first cache, a block of $A$ for the second, a block of $B$ for
# the third. That is the scheme of Goto and van de Geijn, 2008, with the third cache as in BLIS.

# %% [markdown]
# ## The real version
#
# ### The CPU ladder
#
# `source` shows the library's own code. Rung 2 is rung 1 with two loops exchanged:

# %%
from minillm.gemm import reordered

source(reordered.multiply)

# %% [markdown]
# Rung 3, *tiled*, runs `k` and `j` over a block of $B$ before `i` moves on: `for each block of B: for i: for k: for j`.
#
# The compiler makes vector instructions of the inner loop, but doesn't find the register tile by itself. So rung 4 has its
# micro-kernel [written out](../minillm/gemm/micro_kernel.py), instruction by instruction. What it says, with `b0`, `b1`, `x`
# and 24 sums in registers:
#
# ```python
# for k in range(depth):
#     b0, b1 = b[k, 0:16], b[k, 16:32]      # two vectors
#     for i in range(12):                   # no loop in the machine code: 12 times the same lines
#         x = broadcast(a[k, i])            # one number, in all lanes
#         sum[i][0] += x * b0               # one instruction each
#         sum[i][1] += x * b1
# ```
#
# Rung 5 [packs](../minillm/gemm/packed.py) first. Rung 6, *threads*, gives each core a part of $C$: `for part in
# prange(num_threads): pack and multiply what this part needs`.
#
# ### Thread by thread: the GPU's ladder
#
# A GPU spells SIMD differently. One writes the program of a single *thread*. The hardware runs threads in **warps** (线程束) of
# 32, its *lanes*, that take each step together: **SIMT** (单指令多线程), single instruction, multiple threads.
#
# | | SIMD, a CPU core | SIMT, a GPU's multiprocessor (SM) |
# |---|---|---|
# | what you write | vectors of a fixed width, or loops that a compiler can turn into them | one thread; 32 of them share each instruction |
# | addresses | 16 neighbours in one load | each lane its own, and the memory sorts it out |
# | tails and branches | masks, or filling up with zeros | lanes sit out; both sides of a branch take their turn |
# | waiting for memory | caches, fetching ahead | another warp takes over: tens of them are resident |
#
# How? Global memory delivers **sectors** (扇区) of 32 bytes. A load costs as many as its 32 lanes touch; a number that
# straddles two needs both. Lanes that read neighbouring numbers share them: **coalescing** (合并访存).
#
# The library's simulator runs the kernels' own source thread by thread and notes the address of every lane. This is the naive
# kernel; the next rung differs in one line, `column, row` for `row, column`.

# %%
from minillm.kernels.simt import SIMT_LADDER, naive, simulate_matmul, transpose

source(naive.naive)

# %% tags=["hide-input"]
from minillm.perf.warp_plot import draw_request

shapes = {  # whole tiles of each rung, as small as they come
    "naive": (32, 32, 8),
    "coalesced": (32, 32, 8),
    "shared_tile": (32, 32, 32),
    "register_column": (64, 64, 8),
    "register_tile": (128, 128, 8),
}
runs = {}
for name, (m, n, k) in shapes.items():
    a, b = torch.randn(m, k, generator=generator), torch.randn(k, n, generator=generator)
    c, runs[name] = simulate_matmul(name, a, b)
    torch.testing.assert_close(c, a @ b, rtol=1e-4, atol=1e-4)
fig, ax = plots.diagram(width=6.4, height=6)
draw_request(ax, runs["naive"].select("global", "load", "a")[0], color=plots.ORANGE)
plots.show(fig, alt="Naive kernel: the 32 lanes of a warp read a column of A, each from a sector of its own, 128 of 1024 bytes used.")
fig, ax = plots.diagram(width=6.4, height=2)
draw_request(ax, runs["coalesced"].select("global", "load", "b")[0], color=plots.BLUE)
plots.show(fig, alt="Coalesced kernel: the 32 lanes read 32 neighbouring numbers of B, 4 sectors, every byte used.")

# %% [markdown]
# 32 numbers each, in 32 sectors or 4. ($A$ has 8 columns here, so each sector is a whole row; in a real $A$ they lie far
# apart.) The grey rest of each sector belongs to the *next* seven steps, if a cache still has it then.
#
# Rung 3 fetches tiles into the SM's **shared memory** (共享内存), SRAM that a *block* of threads, some hundreds that run on one
# SM, has in common. That is the meter's tile, with a trap of its own. Shared memory has 32 **banks** (存储体), one word of 4
# bytes each in turn. Lanes that want different words of the same bank wait for one another: a **bank conflict** (bank 冲突).
# Reading a column of a tile 32 words wide is the worst case; one unused word a row cures it. Below, cells are lanes, and a
# *pass* serves each bank once.

# %% tags=["hide-input"]
from minillm.perf.warp import bind, simulate

x = np.arange(1024, dtype=np.float32).reshape(32, 32)
for row_words, color, title in ((32, plots.ORANGE, "all 32 lanes want bank 0, 32 passes"), (33, plots.BLUE, "32 banks, 1 pass")):
    turned = simulate(bind(transpose, ROW_WORDS=row_words), grid=(1, 1), block=(32, 32), args=(x, np.empty_like(x)))
    fig, ax = plots.diagram(height=3.4)
    draw_request(ax, turned.select("shared", "load")[0], color=color)
    ax.texts[-1].set_text(f"rows of {row_words} words: {title}")
    plots.show(fig, alt=f"A column of a shared tile with {row_words} words a row: {turned.select('shared', 'load')[0].passes} passes over the banks.")

# %% [markdown]
# Rungs 4 and 5 are the register tile again: a thread makes 8 numbers of $C$ from 8 + 1 loads of shared memory, then 8 × 8
# from 8 + 8. All five, counted. The last column is cited: S. Boehm's CUDA kernels of these kinds on an RTX A6000, as shares
# of cuBLAS.

# %% tags=["hide-input"]
rows = ["| rung | what changed | FLOPs a byte of global memory | shared loads a multiply-add | of cuBLAS (cited) |", "|---|---|---:|---:|---:|"]
intensity = {}
for name, rung in SIMT_LADDER.items():
    m, n, k = shapes[name]
    flops = 2 * m * n * k
    intensity[name] = flops / runs[name].traffic("global", "load").bytes_moved
    lanes = 32 * runs[name].traffic("shared", "load").requests / (m * n * k)
    shared = f"{lanes:g}" if lanes else ""
    rows.append(f"| {name} | {rung.what_changed} | {intensity[name]:.3g} | {shared} | {rung.reference_percent} % |")
Markdown("\n".join(rows))

# %% [markdown]
# ### Block by block: Triton
#
# Above this ladder stand **tensor cores** (张量核心), units that multiply whole small tiles in one instruction, 16-bit numbers at
# about 15 times the speed of ordinary float32 arithmetic on an A100 or H100. Triton programs are written like the meter's:
# one program makes one tile, and the compiler shares it out to warps and places tiles in shared memory. The heart of the
# library's kernel:

# %%
if find_spec("triton"):
    os.environ["TRITON_INTERPRET"] = "1"  # before the import: kernels then run on CPU tensors, slowly
    from minillm.kernels import gemm as triton_gemm

    source_between(triton_gemm.matmul_kernel.fn, "rows = ", "tl.store")
    a, b = torch.randn(70, 50, generator=generator), torch.randn(50, 90, generator=generator)
    torch.testing.assert_close(triton_gemm.tile_matmul(a, b), a @ b, rtol=1e-4, atol=1e-4)
    print("run by Triton's interpreter, equal to torch's product")
else:
    print("Triton exists for Linux only: see minillm/kernels/gemm.py")

# %% [markdown]
# `tl.dot` goes to the tensor cores for 16-bit inputs, and for float32 only if `PRECISION` allows TF32, a float32 shortened to
# 19 bits; the sums are float32. Rows beyond the edge are folded back by `% m`: they load something that exists, and are never
# stored. How a program's number becomes `tile_m`, `tile_n` is left out: it is your bug hunt.
#
# **Which tile?** Large ones reuse more, small ones give every SM something to do. **Autotuning** (自动调优) tries a
# [list](../minillm/kernels/gemm_tiles.py) at the first product of each shape, and keeps the fastest.
#
# **In which order?** Programs start in the order of their numbers, and share what they load through the L2 cache. Row by row,
# nine programs read one strip of $A$ (the rows of one tile) and nine of $B$ (the columns of one tile each): 10. In groups of
# three rows, *down* the group first, then to the right, they read 3 + 3. Where the rows don't divide evenly, the last group
# is lower; forget that, and some tiles are made twice, others never.

# %% tags=["hide-input"]
from minillm.gemm.metered import grouped_moved
from minillm.gemm.metered_sharing import grouped_working_set
from minillm.kernels.order import grouped_order, strips_read

fig, axes = plots.figure(height=3.3, ncols=3, width_ratios=[1, 1, 1.25])
for ax, group in ((axes[0], 1), (axes[1], 3)):
    order = grouped_order(9, 9, group)
    numbers = np.zeros((9, 9))
    for program, place in enumerate(order):
        numbers[place] = program
        ax.add_patch(Rectangle((place[1] + 0.06, place[0] + 0.06), 0.88, 0.88, facecolor=plots.BLUE if program < 9 else plots.tint(plots.MUTED, 0.12)))
        ink = plots.PAPER if program < 9 else plots.MUTED
        ax.text(place[1] + 0.5, place[0] + 0.52, str(program), ha="center", va="center", fontsize=7, color=ink)
    ax.set(xlim=(0, 9), ylim=(9, 0), aspect="equal", xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_title("row by row\n(groups of 1)" if group == 1 else f"in groups of {group}", fontsize=10.5)
    ax.set_xlabel(f"programs 0–8: {strips_read(order[:9], 9)} strips", fontsize=10.5)
size, depth, blocks = 144, 64, Blocks(16, 16, 16)
a, b = torch.randn(size, depth, generator=generator), torch.randn(depth, size, generator=generator)
cache_bytes = 4 * grouped_working_set(depth, blocks=blocks, group=3)
groups = [1, 2, 3, 4, 5, 9]
read = [run("grouped", a, b, meter=Meter(16 * 1024, cache_bytes=cache_bytes), blocks=blocks, group=g).total.bytes_read for g in groups]
assert read[:3] == [4 * grouped_moved(size, size, depth, blocks=blocks, group=g).read for g in groups[:3]]
for part, color, label in ((slice(1), plots.ORANGE, "row by row"), (slice(1, 3), plots.BLUE, "the group fits into L2"), (slice(3, 6), plots.GREY, "it doesn't")):
    axes[2].bar([str(g) for g in groups[part]], [r / 2**10 for r in read[part]], color=color, label=label)
axes[2].axhline(4 * 2 * size * depth / 2**10, color=plots.GREEN, linestyle="--", label="A and B once")
axes[2].set(xlabel="rows in a group", ylabel="read from HBM (KiB)", ylim=(0, 860), yticks=range(0, 401, 100))
axes[2].legend(loc="upper left", fontsize=9)
axes[2].set_title(f"an L2 of {cache_bytes / 2**10:.0f} KiB", fontsize=10.5)
plots.show(fig, alt="Order of programs on 9 by 9 tiles, row by row and in groups of 3, and bytes read from HBM with a small L2: least with groups of three rows, more again when the group outgrows the cache.")

# %% [markdown]
# The bars are counted, with a cache between the meter's HBM and its programs.
#
# **Enough programs?** A decode step has few rows, and $C$ few tiles: 16 tokens through a layer of 4096 columns make 32 tiles
# of 128 columns, and 100 of an H100's 132 SMs watch. **Split-K** cuts the sum over $k$ into parts that run side by side, and
# adds them up in a second kernel. **Persistent kernels** (持久化内核) go the other way: as many programs as SMs, each makes tile
# after tile and loads the next one while it stores the last.

# %%
m, n, k = 16, 4096, 512  # an eighth of the depth, so that the meter is quick
a, b = torch.randn(m, k, generator=generator), torch.randn(k, n, generator=generator)
blocks = Blocks(16, 128, 32)
rows = ["| | launches | programs | of 132 SMs | HBM bytes | SRAM at most |", "|---|---:|---:|---:|---:|---:|"]
for name, options in (("register tile", {}), ("double buffered", {}), ("split-K", {"num_splits": 4})):
    meter = run(name, a, b, blocks=blocks, **options)
    moved, total = RUNGS[name].moved(m, n, k, blocks=blocks, **options), meter.total
    assert 4 * sum(moved) == total.hbm_bytes
    first = next(iter(meter.kernels.values())).programs
    rows.append(
        f"| {name} | {total.launches} | {first} | {min(first, 132) / 132:.0%} | {total.hbm_bytes:,} | {total.peak_sram_bytes:,} |"
    )
Markdown("\n".join(rows))

# %% [markdown]
# Double buffering costs SRAM and no bytes. Split-K costs bytes, the parts of $C$ there and back, and buys programs.
#
# ### Few rows: GEMV and flat GEMM
#
# With one token, $M = 1$, the product is a matrix and a vector: **GEMV** (矩阵向量乘). Each weight is read for one multiply-add,
# and no tile helps. A good kernel is one that reads well: [`gemv.py`](../minillm/gemm/gemv.py), the *fast linears* that
# chapter 08 measures.
#
# Between the two lies decoding with a small batch, a **flat GEMM** (扁平矩阵乘), $M$ from 2 to 16 or so. Filled up to a tile of
# 64, 8 tokens waste 7/8 of the arithmetic on zeros. FlashDecoding++ (Hong et al. 2023, §4) fills up to 8, the least that a
# tensor core's instruction takes on one side, and double-buffers. It measures, for each layer's shape, from which $M$ on
# which kernel is fastest, and looks that up when it runs.

# %% [markdown]
# ## Measured
#
# **The CPU ladder** once more, beside the meter's counts: one core and then all, at two sizes. Dashed is the FMA probe on as
# many threads.

# %% tags=["hide-input"]
rungs = list(LADDER)
names = [*rungs[:5], "torch, 1 thread", rungs[5], "torch, all threads"]
fig, axes = plots.figure(height=4.2, ncols=3, sharey=True, width_ratios=[0.8, 1, 1])
for values, color, marker, label in (
    (hbm_per_flop, plots.PURPLE, "o", "HBM"),
    ({name: value for name, value in sram_per_flop.items() if value}, plots.SKY, "D", "SRAM"),
):
    known = [(values[name], place) for place, name in enumerate(names) if name in values]
    axes[0].plot(*zip(*known, strict=True), marker, color=color, label=label, markersize=7)
axes[0].set(xscale="log", xlim=(0.08, 20), xlabel="bytes a FLOP")
axes[0].set_title("counted,\n100 × 90 × 110", fontsize=10.5)
axes[0].legend(loc="lower right", fontsize=10)
for ax, size in zip(axes[1:], ("512", "2048"), strict=True):
    timed = ladder_record.values[size]
    one_core, all_cores = timed["torch"]
    speeds = {**timed["rungs"], "torch, 1 thread": one_core, "torch, all threads": all_cores}
    one, every = (probe / 1e9 for probe in timed["fma probe"])
    ax.plot([one, one], [-0.5, 5.5], "--", color=plots.GREEN)
    ax.plot([every, every], [5.5, 7.5], "--", color=plots.GREEN)
    for place, name in enumerate(names):
        speed = speeds[name] / 1e9
        color = plots.ORANGE if name == rungs[0] else plots.GREY if "torch" in name else plots.BLUE
        ax.plot(speed, place, "o", color=color, markersize=7)
        is_slow = speed < one / 10  # the number stands where there is room
        ax.text(speed * (1.4 if is_slow else 0.7), place, f"{speed:.3g}", va="center", ha="left" if is_slow else "right", fontsize=10)
    ax.set(xscale="log", xlim=(min(speeds.values()) / 2e9, 3 * max(one, every)), xlabel="GFLOP/s", ylim=(7.6, -0.7))
    ax.set_title(f"timed,\n{size} × {size} × {size}", fontsize=10.5)
for ax in axes:
    ax.xaxis.set_major_formatter("{x:,g}")
labels = {"register tile": f"register tile ({ladder_record.values['vectors']})", rungs[5]: "packed, all threads"}
axes[0].set_yticks(range(8), [labels.get(name, name) for name in names])
plots.show(fig, alt="For each rung the bytes a FLOP counted on the meter, from HBM and from SRAM, and GFLOP/s at sizes 512 and 2048 beside torch, with the FMA probe for one thread and all threads as dashed lines.", record=ladder_record)

# %% [markdown]
# * **ijk → ikj** is the great leap: independent sums, and so vectors, and whole lines.
# * **Tiling alone** is the rung that saves most on the meter, and the least dependable one here. As long as ikj finds $B$ in
#   a cache anyway, blocks only cost more passes over $C$. The meter counts what would happen *without* caches.
# * **The register tile** attacks loads and stores that hit the cache and still take an instruction each.
# * **Packing** is for sizes like 2048, where rows lie 8 KiB apart. At 512 the copies have to earn their cost.
# * **Threads** can at best multiply by the number of cores. They share the clock, the last cache and memory.
#
# On the roofline of chapter 05, a ladder moves right and up. Across, the FLOPs a byte of global memory that our simulator
# counted, without any cache; up, the speeds that Boehm measured on an A6000 (4092 × 4092 × 4092), whose data sheet says 768
# GB/s and 38.7 TFLOP/s.

# %% tags=["hide-input"]
cited = {"naive": 309.0, "coalesced": 1986.5, "shared_tile": 2980.3, "register_column": 8474.7, "register_tile": 15971.7}  # GFLOP/s
CUBLAS, BANDWIDTH, PEAK = 23249.6, 768.0, 38_700.0
fig, ax = plots.figure(height=4.2)
ax.plot([0.03, PEAK / BANDWIDTH, 300], [0.03 * BANDWIDTH, PEAK, PEAK], color=plots.GREEN)
ax.axhline(CUBLAS, color=plots.GREY, linestyle=":")
ax.text(0.034, CUBLAS * 1.08, "cuBLAS", color=plots.MUTED, va="bottom")
ax.text(280, PEAK * 1.1, "38.7 TFLOP/s", color=plots.GREEN, va="bottom", ha="right")
slope = np.degrees(np.arctan(BANDWIDTH))  # in the numbers of the axes; turned with them
ax.text(1.15, 768 * 1.15 * 0.75, "768 GB/s", color=plots.GREEN, rotation=slope, transform_rotates_text=True, rotation_mode="anchor", va="top")
ax.plot([intensity[name] for name in cited], list(cited.values()), "-", color=plots.tint(plots.BLUE, 0.5), linewidth=1.2)
ax.plot([intensity[name] for name in cited], list(cited.values()), "o", color=plots.BLUE, markersize=8)
for name, speed in cited.items():
    x, y, side = (-6, 11, "right") if name == "coalesced" else (9, -11, "left")  # clear of the slope
    ax.annotate(name, (intensity[name], speed), (x, y), textcoords="offset points", va="center", ha=side)
ax.set(xscale="log", yscale="log", xlim=(0.03, 300), ylim=(100, 90_000), xlabel="FLOPs a byte of global memory (counted, no cache)", ylabel="GFLOP/s (cited, A6000)")
ax.xaxis.set_major_formatter("{x:g}")
ax.yaxis.set_major_formatter("{x:,g}")
plots.show(fig, alt="Roofline of an A6000 with five kernels as dots: naive and coalesced lie above the slope thanks to caches, the tiled ones below it, climbing toward the roof.")

# %% [markdown]
# The first two dots float *above* the slope: the L1 and L2 caches serve much of what we counted as traffic, as on the CPU.
# From the shared tile on, the kernel itself says what stays on the chip, and the dots lie below the roof. Loads of shared
# memory fall too, from 2 a multiply-add to 1/4.
#
# **Flat products**, on our CPU again, with all threads: $M$ rows times a 4096 × 4096 matrix of 64 MiB. `gemv` is made for few
# rows, and measured up to 16. The dashed roof is made of two probes: reading all of $B$ once, and multiply-adds.
#
# $$\text{FLOP/s} \le \min\left(\text{FMA probe},\; \frac{2MNK}{4NK}\cdot \text{read probe}\right) = \min\left(\text{FMA probe},\; \frac{M}{2} \cdot \text{read probe}\right).$$

# %% tags=["hide-input"]
def measure_few_rows() -> dict:
    """Seconds of (rows, 4096) · (4096, 4096) by each kernel, in turns, and the two probes."""
    read_probe = ReadProbe(plan.probe_bytes)
    result = measure_flat(plan, read_probe)
    seconds = {name: [result.seconds(name, rows) for rows in result.counts] for name in result.names}
    return {
        "counts": result.counts,
        "size": result.size,
        "seconds": seconds,
        "read_s": result.read_s(),
        "fma": Spread.of(result.comparison.probes).median,
    }


flat_record = recorded("06_flat", measure_few_rows)
flat = flat_record.values
counts, size = np.array(flat["counts"]), flat["size"]
flops = 2 * counts * size**2
fig, (ax, pad_ax) = plots.figure(height=3.9, ncols=2, width_ratios=[1.7, 1])
ax.plot(counts, np.minimum(flat["fma"], flops / flat["read_s"]) / 1e9, "--", color=plots.GREEN, label="at most")
styles = {"gemv": plots.PURPLE, "flat": plots.BLUE, "packed": plots.SKY, TORCH: plots.GREY}
for name, times in flat["seconds"].items():
    known = [(c, f / t / 1e9) for c, f, t in zip(counts, flops, times, strict=True) if t is not None]
    label = {"packed": "packed, threads", "flat": "flat, rows to 8", TORCH: "torch"}.get(name, name)
    ax.plot(*zip(*known, strict=True), "o-", color=styles[name], label=label, linewidth=1.8)
ax.set(xscale="log", yscale="log", xlabel="rows M", ylabel="GFLOP/s", xticks=counts)
ax.minorticks_off()
ax.xaxis.set_major_formatter("{x:g}")
ax.yaxis.set_major_formatter("{x:,g}")
ax.legend(fontsize=9.5)
rows = np.arange(1, 65)
for multiple, color in ((64, plots.ORANGE), (8, plots.BLUE)):
    pad_ax.plot(rows, 100 * rows / (np.ceil(rows / multiple) * multiple), color=color, linewidth=1.8)
threads = ladder_record.values["512"]["threads"]
ax.set_title(f"(M, 4096) · (4096, 4096), {threads} threads", fontsize=10.5)
pad_ax.text(2, 105, "filled up to 8", color=plots.BLUE)
pad_ax.text(34, 36, "to 64", color=plots.ORANGE)
pad_ax.set(xlabel="rows M", ylabel="% of the arithmetic in use", ylim=(0, 114), yticks=range(0, 101, 20), xlim=(0, 65))
plots.show(fig, alt="Left: GFLOP/s against the number of rows for gemv, flat, packed and torch kernels under a roofline of the read and FMA probes. Right: share of arithmetic in use when rows are filled up to 8 or to 64.", record=flat_record)

# %% [markdown]
# Which kernel to take depends on $M$, and on the machine: that is the table that FlashDecoding++ looks up. At one row packing
# copies 64 MiB to use each number once, three passes over $B$ where one would do.

# %% [markdown]
# ## In production
#
# * **CPU libraries** such as [BLIS](https://github.com/flame/blis) have a micro-kernel for each processor. llama.cpp's
#   [`sgemm.cpp`](https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-cpu/llamafile/sgemm.cpp), is a family of
#   register tiles for prompts.
# * **cuBLAS** chooses among compiled kernels by shape; [CUTLASS](https://github.com/NVIDIA/cutlass) is NVIDIA's open library
#   of the building blocks.
# * **vLLM** hands 16-bit linear layers to torch's `linear`, and so to cuBLAS. On AMD GPUs
#   [it looks at the shape first](https://github.com/vllm-project/vllm/blob/main/vllm/model_executor/layers/utils.py): a few
#   tokens go to *skinny* kernels of its own.
# * **torch.compile** with [`mode="max-autotune"`](https://docs.pytorch.org/docs/stable/generated/torch.compile.html) times
#   Triton templates against the library's product and keeps the winner (chapter 07).

# %% [markdown]
# ## Exercises
#
# In [`exercises/ch06_gemm.py`](../exercises/ch06_gemm.py); `python3 tasks.py grade ch06` grades them and names what went
# wrong.
#
# | task | points | prepared by |
# |---|---|---|
# | `bytes_moved`: predict a tiled product's traffic, to the byte | 3 | Napkin; Count it |
# | `count_sectors`: what one load of a warp costs | 3 | Thread by thread |
# | `choose_tile`: the best tile for so much SRAM | 3 | How large a tile? |
# | `linear_on_meter`: a linear layer that reads its input once | 6 | Count it; How large a tile? |
# | `tile_of_program`: a bug hunt in the grouped order | 4 | Block by block |
# | `packed_matmul`: pack, multiply by outer products, mind the tails | 9 | The register tile; Packing |

# %% [markdown]
# ## Check yourself
#
# <details><summary>A product of 4096 × 4096 × 4096 in float16 is made in tiles of 128 × 256. How many bytes does it load, and how many FLOPs is that a byte?</summary>
#
# MNK (1/128 + 1/256) = 2³⁶ · 3/256 = 805 million numbers, 1.6 GB at 2 bytes. FLOPs: 2 · 2³⁶ = 1.37 · 10¹¹, so 85 a byte: 2 ·
# 128 · 256 / 384 = 171 for a number. The matrices themselves are 67 MB for A and B.
# </details>
#
# <details><summary>With AVX2 there are 16 registers of 8 float32 numbers. Does a tile of 6 × 16 fit, and how many FLOPs does a number loaded feed?</summary>
#
# 6 rows of 2 vectors: 12 sums + 2 + 1 = 15 registers, it fits. 2 · 6 · 16 / 22 = 8.7 FLOPs, half of AVX-512's 17.5.
# </details>
#
# <details><summary>A warp's lanes read every second float32 of a row, starting at a multiple of 32 bytes. How many sectors, and what share of their bytes is used?</summary>
#
# 32 lanes · 8 bytes = 256 bytes from first to last, 8 sectors. 128 of 256 bytes are used, half.
# </details>

# %% [markdown]
# ## Sources
#
# * Goto, van de Geijn 2008, [*Anatomy of High-Performance Matrix Multiplication*](../book/bibliography.md#goto2008): §4
#   blocks for caches, packing; §6 the tile in registers.
# * Van Zee, van de Geijn 2015, [*BLIS*](../book/bibliography.md#vanzee2015): one micro-kernel, and portable loops around it.
# * Hong, Kung 1981, [*I/O Complexity: The Red-Blue Pebble Game*](../book/bibliography.md#hong1981): the $\sqrt{S}$ bound.
# * S. Boehm 2022, *How to Optimize a CUDA Matmul Kernel for cuBLAS-like Performance*,
#   [siboehm.com](https://siboehm.com/articles/22/CUDA-MMM), and the table in
#   [SGEMM_CUDA](https://github.com/siboehm/SGEMM_CUDA), the source of all GPU figures here.
# * Tillet, Kung, Cox 2019, [*Triton*](../book/bibliography.md#tillet2019), and Triton's matrix-multiplication tutorial, "L2
#   Cache Optimizations".
# * Hong et al. 2023, [*FlashDecoding++*](../book/bibliography.md#hong2023), §4 and §5: flat GEMM, and the choice of a kernel
#   by shape.
#
# Next: [chapter 07](07_fusion.ipynb) asks what the operations between the products cost.
