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
# # 10 · Online softmax and FlashAttention
#
# *The same attention to the last digit, without ever writing the score matrix down.*
#
# Needs: chapters [01](01_whole_system.ipynb), [02](02_building_the_model.ipynb), [03](03_training.ipynb), [05](05_cost_model.ipynb), [06](06_gemm.ipynb) ·
# Time: 75 minutes to read, 90 to solve

# %% [markdown]
# ## Why
#
# Somebody pastes a document of 32,768 tokens into a chat. In each layer, the attention of chapter 02 makes a score for each
# pair of tokens, in each head. Llama 3 8B has 32 query heads; at 2 bytes a number that is $32{,}768^2 \cdot 32 \cdot 2$ bytes:
# **64 GiB for one layer**. The whole GPU, an H100, has 80 GB, and 16 of them are weights.
#
# And keeping them is the smaller problem. The scores $S$ are written, read by the softmax, written again as weights $P$, and
# read by the product with $V$: 256 GiB of traffic for a layer whose inputs and outputs together are 640 MiB. Below are one
# head's scores, and what they are made of and for, to scale.

# %% tags=["hide-input"]
import inspect
import io
import math
import os
import random
import time
from importlib.util import find_spec

import torch
from IPython.display import Markdown
from matplotlib.patches import Rectangle
from PIL import Image
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import minillm
from minillm import plots
from minillm.attention import flash_attention, flash_attention_v1, flash_attention_v2, merge_states, naive_attention
from minillm.attention.flash_v2 import flash_forward_v2
from minillm.attention.metered import default_blocks, moved, naive, run
from minillm.attention.metered_flash import Blocks, Problem, v2
from minillm.attention.sram_budget import sram_budget
from minillm.attention.tiles import Tiles
from minillm.bench.compare import compare
from minillm.bench.recorded import recorded
from minillm.bench.show import source
from minillm.data.stories import sample_story
from minillm.perf.meter import Meter
from minillm.perf.meter.beats import beats
from minillm.perf.meter.film import animation, show_animation

generator = torch.Generator().manual_seed(10)


def one_head(length: int, head_dim: int) -> list[torch.Tensor]:
    """Random q, k and v (length, head_dim)."""
    return [torch.randn(length, head_dim, generator=generator) for _ in range(3)]


fig, ax = plots.diagram(height=3.2)
side, strip = 5.0, 5.0 * 128 / 32768
ax.add_patch(Rectangle((0, 0), side, side, facecolor=plots.tint(plots.GREY, 0.55)))
ax.text(side / 2, side / 2, "S, the scores of one head\n32,768 × 32,768\n2 GiB", ha="center", va="center", size=12)
for place, (name, color) in enumerate((("Q", plots.BLUE), ("K", plots.ORANGE), ("V", plots.PURPLE), ("O", plots.GREEN))):
    x = side + 1.0 + 1.1 * place
    ax.add_patch(Rectangle((x, 0), strip, side, facecolor=color, linewidth=0))
    ax.text(x, side + 0.15, name, ha="center", size=12, color=color)
ax.text(side + 4.9, side / 2, "32,768 × 128\n8 MiB each", ha="left", va="center", size=11)
ax.set(xlim=(-0.3, 12.6), ylim=(-0.2, side + 0.6))
plots.show(fig, alt="A large square, the scores of one head, 2 GiB, beside four hairlines to the same scale: Q, K, V and O of 8 MiB each.")

# %% [markdown]
# The hairlines are what attention is given and what it returns. The square is scratch paper.

# %% [markdown]
# ## Napkin
#
# For each of $H$ heads, $Q$, $K$, $V$ and $O$ are $(N, d)$ matrices, $S = QK^\top\!/\sqrt d$ and $P$ are $(N, N)$. The products
# $QK^\top$ and $PV$ take $2N^2d$ FLOPs each, and the scratch paper moves four times, at $b$ bytes a number. Put an H100's data
# sheet (989 TFLOP/s in bf16, 3.35 TB/s) behind it:
#
# | for one layer, $N$ = 32,768, $H$ = 32, $d$ = 128, $b$ = 2 | | at best |
# |---|---:|---:|
# | arithmetic, $4N^2dH$ | 17.6 TFLOP | 18 ms |
# | traffic of $S$ and $P$, $4N^2Hb$ | 256 GiB | 82 ms |
# | traffic of $Q$, $K$, $V$, $O$ alone (8 KV heads) | 640 MiB | 0.2 ms |
#
# The intensity of chapter 05 is $4N^2d / 4N^2b = d/b = 64$ FLOPs a byte, whatever the length. The H100 needs 295. So
# attention by the book waits for memory, with arithmetic for 18 ms and no need to wait for more than 0.2.
#
# The obvious cure is chapter 06's: make a tile of $S$ in the fast memory, use it there, forget it. Here is the obstacle: a
# weight is $e^{s_{ij}} / \sum_k e^{s_{ik}}$, so the *first* weight of a row needs the *last* score of the row.

# %% [markdown]
# ## The naive version
#
# Chapter 06's memory-hierarchy meter simulates a GPU's memories: tensors lie in a large HBM, a program loads tiles into its
# own small SRAM, computes only there, and stores results. Every byte that crosses the border of HBM is counted. Attention by
# the book is three kernels on it; `source` shows the library's own code.

# %%
source(naive)

# %%
length, head_dim = 512, 64
q, k, v = one_head(length, head_dim)
by_the_book = run("naive", q, k, v, sram_bytes=96 * 1024)
print(by_the_book.meter.report())

# %% [markdown]
# $S$ and $P$ are 1 MiB each. Together they move 4 MiB, of 6.9 MiB; a single copy of $Q$, $K$, $V$ and $O$ would be half a
# MiB. At twice the length the 4 MiB will be 16.

# %% [markdown]
# ## The idea
#
# ### A maximum that may still grow
#
# First a complication. Nobody computes $e^{s}$ as it stands: in float32 it overflows at $s = 89$, in float16 at 12. The **safe
# softmax** (安全 softmax) subtracts the row's maximum $m$ first, which cancels:
#
# $$p_j = \frac{e^{s_j - m}}{l}, \qquad m = \max_j s_j, \qquad l = \sum_j e^{s_j - m}.$$
#
# Three passes over the row: one for $m$, one for $l$, one to divide. With the row spread over many tiles, three loads.
#
# The **online softmax** (在线 softmax) of Milakov and Gimelshein takes $m$ and $l$ in one. Sum relative to the largest score
# *so far*. When a larger one arrives, all that was summed is too large by a known factor:
#
# $$m' = \max(m, s), \qquad l' = l \cdot \underbrace{e^{m - m'}}_{\text{repair}} + e^{s - m'} .$$
#
# And the output is a sum of the same weights, $a = \sum_j e^{s_j - m}\, v_j$, so the same factor repairs it:
#
# $$a' = a \cdot e^{m - m'} + e^{s - m'}\, v, \qquad o = a / l \text{ at the end.}$$
#
# One pass, and a state $(m, l, a)$ that doesn't grow with the row. By hand, with scores $\ln 2, \ln 8, \ln 4$ and
# values 7, 0, 14; the result must be $(2 \cdot 7 + 8 \cdot 0 + 4 \cdot 14) / 14 = 5$:
#
# | arrives | $m$ | repair | $l$ | $a$ |
# |---|---|---|---|---|
# | $\ln 2$, 7 | $\ln 2$ | 0 | 1 | 7 |
# | $\ln 8$, 0 | $\ln 8$ | 2/8 | 1 · ¼ + 1 = 1.25 | 7 · ¼ + 0 = 1.75 |
# | $\ln 4$, 14 | $\ln 8$ | 1 | 1.25 + ½ = 1.75 | 1.75 + ½ · 14 = 8.75 |
#
# $8.75 / 1.75 = 5$. With a tile of keys at a time, $m'$ takes in the largest of their scores, the sums run over all of them,
# and the last term becomes a product, $e^{S - m'}\, V$. Now a real row, one key at a time: the last token of a story, one of
# the bundled model's heads.

# %%
def one_pass(scores: list[float]) -> list[tuple[float, float, float]]:
    """(m, l, repair) after each score."""
    row_max, row_sum, states = -math.inf, 0.0, []
    for score in scores:
        new_max = max(row_max, score)
        repair = math.exp(row_max - new_max)
        row_sum = row_sum * repair + math.exp(score - new_max)
        row_max = new_max
        states.append((row_max, row_sum, repair))
    return states


model, tokenizer = minillm.load_model(), minillm.load_tokenizer()
story_ids = torch.tensor(tokenizer.encode(sample_story(random.Random("chapter 10")).text))[:120]
seen = {}


def watching_attend(layer_idx, q, k, v, softmax_scale):
    seen[layer_idx] = q, k, v, softmax_scale
    return naive_attention(q[None], k[None], v[None], softmax_scale=softmax_scale)[0][0]


with torch.inference_mode():
    model(story_ids, torch.arange(len(story_ids)), watching_attend)
rows = []
for story_q, story_k, _, scale in seen.values():
    group = story_q.shape[1] // story_k.shape[1]
    rows += [(story_q[-1, h] @ story_k[:, h // group].T * scale).tolist() for h in range(story_q.shape[1])]
row = max(rows, key=lambda scores: sum(repair < 0.9 for _, _, repair in one_pass(scores)[4:]))  # one that shows the jumps
states = one_pass(row)
assert abs(states[-1][0] + math.log(states[-1][1]) - torch.logsumexp(torch.tensor(row), 0)) < 1e-4

# %% tags=["hide-input"]
fig, (top_ax, sum_ax) = plots.figure(height=4.6, nrows=2, sharex=True, height_ratios=[1.2, 1])
places = range(len(row))
top_ax.vlines(places, min(row) - 0.3, row, color=plots.tint(plots.MUTED, 0.55), linewidth=2)
top_ax.step(places, [m for m, _, _ in states], where="post", color=plots.BLUE, linewidth=2)
top_ax.set(ylabel="score", ylim=(min(row) - 0.3, max(row) + 0.28 * (max(row) - min(row))))
top_ax.text(len(row) - 1, max(row) + 0.04 * (max(row) - min(row)), "largest so far, m", ha="right", va="bottom", color=plots.BLUE)
sum_ax.plot(places, [l for _, l, _ in states], color=plots.PURPLE, linewidth=2)
jumps = [i for i in places if 0 < states[i][2] < 1]
for i in jumps:
    for ax in (top_ax, sum_ax):
        ax.axvline(i, color=plots.RED, linestyle=":", linewidth=1.2, zorder=0)
behind = {"facecolor": plots.PAPER, "edgecolor": "none", "pad": 0.6}
for number, i in enumerate(jumps):
    height = (0.98, 0.85, 0.72)[number % 3]
    sum_ax.text(i + 0.7, height, f"× {states[i][2]:.2f}", color=plots.RED, va="top", transform=sum_ax.get_xaxis_transform(), size=9.5, bbox=behind)
sum_ax.set(xlabel="keys seen", ylabel="sum l", xlim=(-3, len(row) + 9), ylim=(0, 1.7 * max(l for _, l, _ in states)))
plots.show(fig, alt="Scores of one row of a real attention matrix with their running maximum as a staircase, and the running sum, which is cut by the repair factor wherever the maximum jumps.")

# %% [markdown]
# At each red line the maximum jumps: what was summed is cut by the factor beside it, and the new key adds its 1. (With a
# factor near 1 the sum still grows.) In between every repair is 1.
#
# Three traps. Hidden keys, behind a mask or mere padding, score $-\infty$ and weigh $e^{-\infty} = 0$. (A score of 0 would
# weigh $e^0$, as much as any.) A tile may hide all its keys from a row. If no key came before, $m'$ is still $-\infty$, and
# $-\infty - (-\infty)$ is NaN. So while $m' = -\infty$, put 0 in its place in *both* exponents: $e^{m - 0}$ and $e^{s - 0}$ are
# 0, and nothing is added. The stored maximum stays $-\infty$.
#
# A row that never sees a key ends with $l = 0$; its output is 0 by convention, and not $0/0$. And a weight of 0 silences any
# number in $V$ but inf and NaN: where padding may hold those, put 0 there.
#
# ### States add up
#
# A state can be written without $m$: the output $o = a/l$ and the **log-sum-exp** (对数求和指数), one natural logarithm a row,
# $\mathrm{lse} = m + \ln l = \ln \sum_j e^{s_j}$. Then $e^{\mathrm{lse}}$ is the sum of the *unnormalised* weights $e^{s_j}$
# and $e^{\mathrm{lse}}\, o$ that of the values they weigh: plain sums over keys. So if the keys of set $A$ gave
# $(o_A, \mathrm{lse}_A)$ and those of set $B$ gave $(o_B, \mathrm{lse}_B)$,
#
# $$\mathrm{lse} = \ln\!\left(e^{\mathrm{lse}_A} + e^{\mathrm{lse}_B}\right), \qquad
# o = \frac{e^{\mathrm{lse}_A} o_A + e^{\mathrm{lse}_B} o_B}{e^{\mathrm{lse}_A} + e^{\mathrm{lse}_B}},$$
#
# computed relative to the larger lse, again. Sums don't care for order or grouping, and a set without keys, $(0, -\infty)$,
# adds nothing. Mathematicians call that a commutative **monoid** (幺半群). It is why keys can be cut anywhere:

# %%
q, k, v = (x[None, :, None] for x in one_head(64, 16))  # (batch, length, heads, head_dim)
parts = [naive_attention(q, k[:, cut], v[:, cut], causal=False) for cut in (slice(0, 5), slice(5, 40), slice(40, 64))]
whole_out, whole_lse = naive_attention(q, k, v, causal=False)
for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
    merged = parts[order[0]]
    for i in order[1:]:
        merged = merge_states(*merged, *parts[i])
    torch.testing.assert_close(merged[0], whole_out)
    torch.testing.assert_close(merged[1], whole_lse)
print("three parts of the keys, merged in three orders: the same attention")

# %% [markdown]
# FlashDecoding (chapter 11) is this cell on more machinery. Here the parts are tiles.
#
# ### Version 1
#
# **FlashAttention** (FlashAttention, Dao et al. 2022) cuts $Q$ into blocks of $B_r$ rows and $K$, $V$ into blocks of $B_c$, and
# walks over all tiles of the scores:
#
# ```
# O, l, m = 0, 0, -inf                              in HBM
# for each block j of K, V:          load K_j, V_j
#     for each block i of Q:         load Q_i, O_i, l_i, m_i
#         S = Q_i K_jᵀ               on the chip, and forgotten
#         one step of the online softmax
#         O_i = (O_i · l_i · repair + weights · V_j) / new l
#                                    store O_i, l_i, m_i
# ```
#
# $K$ and $V$ are loaded once. $O$ isn't finished before the last block of keys, so it travels: to the chip and back in each
# step, divided by $l$ when it leaves and multiplied by it when it returns.
#
# ### Version 2
#
# FlashAttention-2 (Dao 2023) exchanges the loops:
#
# ```
# for each block i of Q:             load Q_i;  a, l, m = 0, 0, -inf    on the chip
#     for each block j of K, V:      load K_j, V_j
#         S = Q_i K_jᵀ
#         one step of the online softmax on (m, l, a)
#     O_i = a / l                    store O_i and lse_i = m + ln l
# ```
#
# Now the state of a block of queries stays on the chip until it is finished, is divided once and written once. Both as the
# meter traced them, 64 tokens in blocks of 16: filled is what comes or goes in a step, framed what is still there,
# pale what was written before. On the right the SRAM: `matmul` is the tile of scores, `acc` is $a$, the thin strips are $m$,
# $l$ and other columns.

# %% tags=["hide-input"]
def traced(name: str, sram_bytes: int) -> Meter:
    q, k, v = one_head(64, 16)
    return run(name, q, k, v, sram_bytes=sram_bytes, blocks=Blocks(16, 16), trace=True).meter


def side_by_side(left: bytes, right: bytes) -> bytes:
    """Two animated PNGs of as many frames as one."""
    films = [Image.open(io.BytesIO(film)) for film in (left, right)]
    frames = []
    for number in range(films[0].n_frames):
        for film in films:
            film.seek(number)
        pair = [film.convert("RGB") for film in films]
        frame = Image.new("RGB", (sum(f.width for f in pair), max(f.height for f in pair)), plots.PAPER)
        frame.paste(pair[0], (0, 0))
        frame.paste(pair[1], (pair[0].width, 0))
        frames.append(frame)
    palette = frames[-1].quantize(64)
    still, *moving = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    timing = {"duration": [500] * (len(moving) - 1) + [1500], "loop": 0}
    buffer = io.BytesIO()
    still.save(buffer, "PNG", save_all=True, default_image=True, append_images=moving, optimize=True, **timing)
    return buffer.getvalue()


meters = {name: traced(name, sram_bytes) for name, sram_bytes in (("v1", 5800), ("v2", 5800))}
films = [animation(meter, ("Q", "K", "V", "O"), kernel=f"flash {name}", width=3.5) for name, meter in meters.items()]
show_animation(side_by_side(*films), alt="Two animations side by side. Version 1, left: K and V stay while Q and O run past, O written in every step. Version 2, right: Q stays while K and V run past, and O is written four times in all.")

# %% [markdown]
# The same traces as a timetable. Each row of cells is a block of 16 rows of a tensor, each column a step. The sums include
# what the left film leaves out: setting $O$, $l$ and $m$ to their first values, 4.5 KiB.

# %% tags=["hide-input"]
def draw_timetable(ax, film, tensor: str) -> None:
    """A cell for each step and block: loaded, stored, or kept on the chip."""
    for step, beat in enumerate(film):
        for regions, color, low, high in (
            (beat.kept, plots.tint(plots.BLUE, 0.25), 0.0, 1.0),
            (beat.loaded, plots.BLUE, 0.0, 1.0),
            (beat.stored, plots.RED, 0.5 if tensor == "O" and any(n == "O" for n, _ in beat.loaded) else 0.0, 1.0),
        ):
            for name, bounds in regions:
                if name == tensor:
                    block = bounds[0][0] // 16
                    ax.add_patch(Rectangle((step + 0.06, block + low + 0.06), 0.88, high - low - 0.12, facecolor=color))


fig, axes = plots.figure(height=4.6, nrows=4, ncols=2, sharex=True, sharey=True)
for column, (name, meter) in enumerate(meters.items()):
    film = beats([event for event in meter.trace if event.kernel == f"flash {name}"])
    for line, tensor in enumerate("QKVO"):
        ax = axes[line, column]
        draw_timetable(ax, film, tensor)
        ax.set(xlim=(0, 16), ylim=(4, 0), yticks=[])
        ax.grid(False)
        if column == 0:
            ax.set_ylabel(tensor, rotation=0, ha="right", va="center", size=12)
        moved_kib = (meter.tensors[tensor].bytes_read + meter.tensors[tensor].bytes_written) / 2**10
        ax.text(16.15, 2, f"{moved_kib:g}\nKiB", va="center", size=9.5)
    axes[0, column].set_title(f"version {name[1]}: {meter.total.hbm_bytes / 2**10:g} KiB with {'l, m' if name == 'v1' else 'lse'}", size=11.5)
    axes[3, column].set_xlabel("step")
handles = [Rectangle((0, 0), 1, 1, facecolor=c) for c in (plots.BLUE, plots.tint(plots.BLUE, 0.25), plots.RED)]
fig.legend(handles, ["loaded", "kept on the chip", "stored"], loc="outside lower center", ncols=3)
plots.show(fig, alt="Timetables of Q, K, V and O. In version 1 K and V are loaded four times and O is loaded and stored in each of 16 steps; in version 2 Q is loaded four times, K and V in each step, and O is stored four times.")

# %% [markdown]
# Look at the lowest row. In version 1, $O$ moves 9 times its size: 4 times in, 4 times out, and once to be set to zero. In
# version 2 it leaves once. The price is in the middle: $K$ and $V$ now come once for each block of queries.
#
# ### How large a tile?
#
# In version 1 a block of $K$ and $V$ costs one trip of $Q$ and $O$ ($Q$ in, $O$ in and out): $3Nd$ numbers, and a little for
# $l$ and $m$. There are $N / B_c$ blocks. So $B_c$ should be as large as the SRAM of $M$ numbers allows, and the paper takes
# $B_c = M/4d$ and $B_r = \min(B_c, d)$. Then
#
# $$\text{numbers moved} \approx \frac{N}{B_c} \cdot 3Nd = \frac{12\, N^2 d^2}{M} = \Theta\!\left(\frac{N^2 d^2}{M}\right).$$
#
# Against the $4N^2$ of $S$ and $P$ that is less by a factor of $M / 3d^2$. The $d^2$ is worth a second look: at twice the head
# dimension a quarter of the saving is left.
#
# Why a *quarter* of $M$? Count what is on the chip in one pass of the inner loop: $K$, $V$ and the scores are three tiles of at
# most $B_c \times d$, and the small things need room as well. The library's `sram_budget` keeps the books, step by step; the
# orange variant frees $K$ early to keep $P$ beside $S$. ($M$ is 384 KiB here, more than the 228 of an H100's SM.)

# %%
head_dim = 64
sram_numbers = 24 * head_dim**2  # M
blocks = default_blocks("v1", sram_numbers, head_dim)
print(f"M = {sram_numbers:,} numbers, so Bc = M/4d = {blocks.k} keys, Br = min(Bc, d) = {blocks.q} queries")
q, k, v = one_head(2 * blocks.k, head_dim)
for keep_k in (True, False):
    books = sram_budget(blocks, head_dim, keep_k=keep_k)
    meter = run("v1", q, k, v, sram_bytes=4 * sram_numbers, blocks=blocks, keep_k=keep_k).meter
    peak = max(step.held for step in books)
    assert 4 * peak == meter.total.peak_sram_bytes
    print(f"keep_k={keep_k}: peak {peak:,} numbers in the books and on the meter; K is read {meter.tensors['K'].bytes_read // (4 * k.numel())} times")

# %% tags=["hide-input"]
fig, ax = plots.figure(height=5)
books = {keep_k: sram_budget(blocks, head_dim, keep_k=keep_k) for keep_k in (True, False)}
for keep_k, color, offset in ((True, plots.BLUE, -0.2), (False, plots.ORANGE, 0.2)):
    held = [step.held / 1000 for step in books[keep_k]]
    ax.barh([i + offset for i in range(len(held))], held, height=0.36, color=color, label="K stays" if keep_k else "K is freed in step 4")
    changes = ["+ 2 Bc d", "+ 2 Br d + 2 Br", "+ Br Bc", "− Br d", "+ Br", "", "+ Br", "+ 2 Br", "− Br d", "− 2 Br", "− Br Bc − 4 Br"]
    if not keep_k:
        changes[3:6] = ["− Br d − Bc d", "+ Br + Br Bc", "− Br Bc"]
    for i, change in enumerate(changes):
        ax.text(held[i] + 0.8, i + offset, change, va="center", size=8.5, color=plots.INK)
ax.axvline(sram_numbers / 1000, color=plots.RED, linestyle="--")
ax.text(sram_numbers / 1000 - 0.8, -0.55, "M", color=plots.RED, ha="right", va="center")
names = [f"{a.number}  {a.what}" if a.what == b.what else f"{a.number}  {a.what}\nor {b.what}" for a, b in zip(books[True], books[False], strict=True)]
ax.set_yticks(range(len(names)), names, size=9)
ax.set(xlabel="thousands of numbers held after the step", ylim=(12.4, -0.9), xlim=(0, sram_numbers / 1000 * 1.04))
ax.grid(axis="y", visible=False)
ax.legend(loc="lower left", ncols=2, fontsize=10)
plots.show(fig, alt="Bars of the numbers held in SRAM after each of eleven steps of the inner loop of version 1, with K kept or freed; the peak of the first is in step 3, below the limit M.")

# %% [markdown]
# The peak, $3B_cd + 2d(d+1)$, comes in step 3; it fits into $M = 4B_cd$ once $M \ge 8d(d+1)$. What the meter counts is the same
# to the number. The orange variant wins nothing: its peak is the same, since that comes before $K$ goes, and $K_j$ has to be
# loaded afresh for each block of $Q$.
#
# In version 2 the outer loop runs over $Q$, so there the roles are exchanged: a large block of queries, small blocks of keys. A
# block of queries costs one trip of $K$ and $V$, $2Nd$ numbers instead of $3Nd$: with $B_r = M/4d$ that is $8N^2d^2/M$. Put
# differently, each number of $K$ or $V$ that is loaded serves $2B_r$ FLOPs: chapter 06's law of tiles, with the edge $B_r$.

# %% [markdown]
# ## The real version
#
# The library's version 2 in torch. `OnlineSoftmax` keeps $(m, l, a)$; what its `update` does is the first exercise. The lines
# in comments are those of the paper's algorithm 1. All heads go at once, query heads that share a KV head stand in the rows of
# one tile, and the loops are Python's. [`flash_v1.py`](../minillm/attention/flash_v1.py) has the other loop order.

# %%
source(flash_forward_v2)

# %%
q = torch.randn(2, 100, 8, 32, generator=generator)  # 8 query heads
k, v = (torch.randn(2, 130, 2, 32, generator=generator) for _ in range(2))  # 2 KV heads, 30 keys more
for causal in (False, True):
    expected = naive_attention(q, k, v, causal=causal)
    for flash in (flash_attention_v1, flash_attention_v2):
        for block_q, block_k in ((64, 64), (7, 13)):
            found = flash(q, k, v, causal=causal, block_q=block_q, block_k=block_k)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
print("v1 and v2, two sizes of blocks, ragged ends, causal or not: out and lse equal the oracle's")

# %% [markdown]
# ### What version 2 wins, counted
#
# One head, 1,024 tokens, $d$ = 64, the same SRAM for all: each version with its own best blocks, and with the other's.

# %% tags=["hide-input"]
length = 1024
q, k, v = one_head(length, head_dim)
wide, tall = Blocks(64, 384), Blocks(384, 64)
table = ["| | blocks Br × Bc | HBM, MiB | of it written | programs | FLOPs outside products, millions |", "|---|---|---:|---:|---:|---:|"]
for name, cut in (("v1", wide), ("v1", tall), ("v2", wide), ("v2", tall)):
    meter = run(name, q, k, v, sram_bytes=4 * sram_numbers, blocks=cut).meter
    assert 4 * sum(moved(name, length, length, head_dim, cut)) == meter.total.hbm_bytes
    total = meter.total
    table.append(
        f"| {name} | {cut.q} × {cut.k} | {total.hbm_bytes / 2**20:.2f} | {total.bytes_written / 2**20:.2f} | "
        f"{meter.kernels[f'flash {name}'].programs} | {total.non_matmul_flops / 1e6:.2f} |"
    )
Markdown("\n".join(table))

# %% [markdown]
# Version 2 **doesn't simply move less**. With the blocks of the first paper (the wide ones) it moves almost three times as
# much as version 1; with its own, a third less. Loop order and block shape belong together. What else is
# won is this:
#
# * **No rewriting.** Version 1 writes $O$ for every block of keys, version 2 once. The rest of its traffic is reading, and what
#   many programs read, a cache can serve.
# * **Fewer operations outside products.** No division and multiplication by $l$ in each step. An A100 does 312 TFLOP/s in
#   tensor cores and 19.5 in ordinary float32 arithmetic, so each of these FLOPs costs as much as 16 (Dao 2023, §3.1). In
#   64 × 384 tiles version 1's weigh as much as 107 million in products, version 2's as 88, beside 268 million real ones.
# * **Programs.** In version 1, one head is one program, since the blocks of keys take turns at $O$. One prompt with 32 heads
#   keeps 32 of an H100's 132 SMs busy. In version 2 every block of queries is a program, which waits for nobody: 32,768
#   tokens in blocks of 128 make 256 for each head. (Too tall a block has few: bytes and parallelism pull in opposite
#   directions.)
#
# About that cache: here is version 2 with square tiles of 64 and an L2 between HBM and the SRAMs.

# %%
for cache_kib in (0, 256, 640):
    meter = Meter(4 * sram_numbers, cache_bytes=cache_kib * 1024)
    tensors = [meter.hbm(name, x) for name, x in zip("QKV", (q, k, v), strict=True)]
    problem = Problem(
        *tensors, meter.empty("O", q.shape), meter.empty("lse", (length, 1)), 1 / 8, Tiles(length, length, 64, 64, causal=False)
    )
    v2(meter, problem)
    print(f"L2 of {cache_kib} KiB: {meter.total.hbm_bytes / 2**20:.2f} MiB from and to HBM")

# %% [markdown]
# $K$ and $V$ of this head are 512 KiB. Once the cache holds them, HBM sees each number once. (A cache that is too small and
# walked in circles saves nothing: what it throws out is what comes next.) An H100's L2 of 50 MB holds the 16 MiB of keys and
# values of our head with 32,768 tokens. That is how tiles of 128 queries, 128 FLOPs a byte, keep a GPU busy that asks for 295.
#
# ### Tiles that nobody sees
#
# Under a causal mask half of the scores are thrown away. A tile whose first key lies beyond its last query's place has nothing
# to show: it is **skipped**, neither loaded nor computed. Only tiles on the boundary need a mask; the full ones run without.
# Queries and keys are aligned at their ends, since the last query sees all: query `i` stands at the place of key
# `i + k_len - q_len`, and the two lengths differ wherever a cache holds older keys. With a window of $w$, a query sees the last
# $w$ keys up to its place, its own included, and tiles left of the window are skipped as well.

# %% tags=["hide-input"]
cases = [
    ("prompt of 1,024", Tiles(1024, 1024, 64, 64)),
    ("last 384 of 1,024", Tiles(384, 1024, 64, 64)),
    ("window of 300", Tiles(1024, 1024, 64, 64, window=300)),
]
fig, axes = plots.figure(height=3.3, ncols=3)
for ax, (title, tiles) in zip(axes, cases, strict=True):
    num_full = num_boundary = 0
    for i, queries in enumerate(tiles.query_blocks()):
        for j, keys in enumerate(tiles.key_blocks()):
            visible, full = tiles.is_visible(queries, keys), tiles.is_full(queries, keys)
            color = plots.BLUE if visible and full else plots.YELLOW if visible else plots.tint(plots.MUTED, 0.1)
            ax.add_patch(Rectangle((j + 0.06, i + 0.06), 0.88, 0.88, facecolor=color))
            num_full += visible and full
            num_boundary += visible and not full
    every = math.ceil(tiles.q_len / 64) * 16
    ax.set(xlim=(0, 16), ylim=(16, 0), aspect="equal", xticks=[], yticks=[])
    ax.set_title(title, size=11.5)
    ax.set_xlabel(f"{num_full} + {num_boundary} of {every} tiles", size=10.5)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
axes[0].set_ylabel("queries")
handles = [Rectangle((0, 0), 1, 1, facecolor=c) for c in (plots.BLUE, plots.YELLOW, plots.tint(plots.MUTED, 0.1))]
fig.legend(handles, ["full", "boundary: masked", "skipped"], loc="outside lower center", ncols=3)
plots.show(fig, alt="Tiles of three score matrices: a causal triangle with a masked diagonal, the last rows of one, and a band below the diagonal; the rest is skipped.")

# %% [markdown]
# For a long prompt about half is skipped, and the mask is paid on one tile in a row of many. The paper reports 1.7 to 1.8
# times the speed of attention without a mask (Dao 2023, §3.1). A window makes the work grow with $N w$ instead of $N^2$.
#
# ### Backward: compute it again
#
# Training needs the weights $P$ a second time. $dX$ is the gradient of the loss with respect to $X$, $\circ$ multiplies number
# by number, and $\delta$, one number for each row, is subtracted from all of it:
#
# $$dV = P^\top dO, \qquad dP = dO\, V^\top, \qquad dS = P \circ (dP - \delta), \qquad dQ = dS\, K\, c, \qquad dK = dS^\top Q\, c,$$
#
# with $c = 1/\sqrt d$, which $S$ already has. Where does $\delta$ come from? A softmax sums to 1, so raising one
# score lowers all other weights of the row (chapter 03): $dS_{ij} = P_{ij}\,(dP_{ij} - \sum_k P_{ik}\, dP_{ik})$. That sum runs
# over all keys, which no tile has. But $dP_{ik} = dO_i \cdot v_k$, so
#
# $$\delta_i = \sum_k P_{ik}\, (dO_i \cdot v_k) = dO_i \cdot \sum_k P_{ik}\, v_k = dO_i \cdot o_i .$$
#
# It was there all along. And $P$ itself? Keeping it means the 64 GiB again. The forward pass leaves $\mathrm{lse}$, one
# number a row, and with it each tile of weights comes back without maximum, sum or repair: $P = e^{S - \mathrm{lse}}$. This
# **recomputation** (重计算) costs one product more, five instead of four. Is that cheaper than reading? On the H100, a weight
# read in 2 bytes takes the time of $2 \cdot 295 = 590$ FLOPs. Computing it takes $2d = 256$, on tiles of $Q$ and $K$ that
# have to be there anyway. So yes, even before anybody asks where 64 GiB should have been kept.
#
# What autograd keeps for the backward pass, counted:

# %%
def kept_bytes(attention, length: int) -> int:
    """Bytes that autograd keeps from a forward pass, 4 heads of 64, float32."""
    q, k, v = (torch.randn(1, length, 4, 64, generator=generator).requires_grad_() for _ in range(3))
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        results = attention(q, k, v)  # held until everything is counted
    return sum(kept.values()) * bool(results)


table = ["| tokens | naive keeps, MiB | flash keeps, MiB |", "|---:|---:|---:|"]
for length in (256, 512, 1024, 2048):
    naive_kept, flash_kept = (kept_bytes(attention, length) / 2**20 for attention in (naive_attention, flash_attention))
    table.append(f"| {length:,} | {naive_kept:.1f} | {flash_kept:.2f} |")
Markdown("\n".join(table))

# %% [markdown]
# The naive version keeps the masked scores and the weights, 64 MiB each at 2,048 tokens, beside $Q$, $K$, $V$ and a mask. Flash
# keeps $Q$, $K$, $V$, $O$ and lse. The loops of the backward pass
# ([`flash_backward.py`](../minillm/attention/flash_backward.py)) put $K$ and $V$ outside: $dK$ and $dV$ stay in place, $dQ$ is
# added up across blocks.
#
# ### The kernel
#
# [`flash_forward.py`](../minillm/kernels/flash_forward.py) is version 2 in Triton: a program for each block of queries and
# head. Skipped tiles lie outside its loop's bounds. The others are three runs of the loop: the window's edge, the full tiles,
# the diagonal with the tail. The middle one is compiled without a mask. Here is its step of the online softmax: $e^x$ is
# $2^{x \log_2 e}$, because the hardware has that, and the factor hides in the scale.

# %%
if find_spec("triton"):
    os.environ["TRITON_INTERPRET"] = "1"  # before the import: kernels then run on CPU tensors, slowly
    from minillm.kernels import flash_forward as triton_flash

    step = triton_flash.attend_to_keys.fn
    first, last = (
        next(i for i, line in enumerate(inspect.getsource(step).splitlines(), 1) if text in line)
        for text in ("new_top = tl.maximum", "total += tl.sum")
    )
    source(step, lines=(first, last - 1))
    q, k, v = (torch.randn(1, n, 2, 32, generator=generator) for n in (40, 70, 70))
    found = triton_flash.flash_forward(q, k, v, causal=True, window=None, softmax_scale=32**-0.5)
    torch.testing.assert_close(found, naive_attention(q, k, v), atol=1e-4, rtol=1e-4)
    print("run by Triton's interpreter: out and lse equal the oracle's")
else:
    print("Triton exists for Linux only: see minillm/kernels/flash_forward.py")

# %% [markdown]
# No GPU time in this chapter is ours. Cited: for GPT-2 medium at 1,024 tokens on an A100, attention forward and backward
# moved 40.3 GB by the book and 4.4 GB with version 1, in 41.7 and 7.3 ms, although it did *more* FLOPs, 75.2 G instead of
# 66.6 (Dao et al. 2022, Figure 2). Version 2 is about twice as fast again, 50 to 73 % of an A100's peak (Dao 2023). On the
# H100 it reaches about 35 %, and version 3, which overlaps the softmax of one tile with the products of another, 75 % (Shah
# et al. 2024).

# %% [markdown]
# ## Measured
#
# **Bytes.** Dots are counted on the meter, lines are closed forms (`moved`): $d$ = 64, numbers of 2 bytes, each version with its
# own blocks. Dotted are the laws $12 N^2 d^2 / M$ and $8 N^2 d^2 / M$, without the small terms.

# %% tags=["hide-input"]
def counted(name: str, length: int, sram_numbers: int) -> float:
    """MiB of one head on the meter."""
    cut = default_blocks(name, sram_numbers, head_dim)
    result = run(name, *one_head(length, head_dim), sram_bytes=2 * sram_numbers, blocks=cut, stored_as=torch.bfloat16)
    return result.meter.total.hbm_bytes / 2**20


def predicted(name: str, length: int, sram_numbers: int) -> float:
    """MiB by the closed form."""
    return 2 * sum(moved(name, length, length, head_dim, default_blocks(name, sram_numbers, head_dim))) / 2**20


num_threads = torch.get_num_threads()
torch.set_num_threads(1)  # tiles are too small for more
colors = {"naive": plots.ORANGE, "v1": plots.PURPLE, "v2": plots.BLUE}
fig, (n_ax, m_ax) = plots.figure(height=3.8, ncols=2, sharey=True)
lengths, srams = [256, 512, 1024, 2048], [factor * head_dim**2 for factor in (10, 16, 24, 48, 96)]
for ax, settings, xs in (
    (n_ax, [(length, 24 * head_dim**2) for length in lengths], lengths),
    (m_ax, [(2048, sram) for sram in srams], [2 * sram / 2**10 for sram in srams]),
):
    for name, color in colors.items():
        ax.plot(xs, [predicted(name, *setting) for setting in settings], color=color, linewidth=1.5)
        some = slice(None, None, 4 if name == "naive" and ax is m_ax else 1)
        found = [counted(name, *setting) for setting in settings[some]]
        assert found == [predicted(name, *setting) for setting in settings[some]]
        ax.plot(xs[some], found, "o", color=color, label=name)
    for factor, name in ((12, "v1"), (8, "v2")):
        law = [2 * factor * length**2 * head_dim**2 / sram / 2**20 for length, sram in settings]
        ax.plot(xs, law, ":", color=colors[name], linewidth=1.5, label=f"law of {name}, ${factor}N^2d^2/M$")
    ax.set(xscale="log", yscale="log")
    ax.set_xticks(xs, [f"{x:,.0f}" for x in xs])
    ax.minorticks_off()
    ax.yaxis.set_major_formatter("{x:g}")
n_ax.set(xlabel="tokens N, with an SRAM of 192 KiB", ylabel="MiB from and to HBM")
m_ax.set(xlabel="SRAM (KiB), with 2,048 tokens")
m_ax.legend(loc="lower left", fontsize=9.5)
torch.set_num_threads(num_threads)
plots.show(fig, alt="MiB moved against the number of tokens and against the size of SRAM, for naive attention, version 1 and version 2: all grow with N squared, the flash versions fall with M, and the counts lie on the closed forms.")

# %% [markdown]
# The counts approach the laws from above: at 2,048 tokens and 192 KiB, five blocks and a bit, both still move about a third
# more, since everything is moved once in any case. For long $N$ all three grow with $N^2$: FlashAttention is linear in
# *memory*, not in traffic or time. What falls with $M$ is the constant. Naive attention has little use for a larger SRAM: $S$
# and $P$ go to HBM in any case.
#
# **Memory and time** in torch on a CPU, 4 heads of 64, causal. Left, the bytes of all tensors alive at once, tracked
# operation by operation, without $q$, $k$, $v$. Right, the time beside PyTorch's own fused kernel. `recorded` measures on
# your machine when you run the notebook; what is printed here was measured on the machine named under the figure.

# %% tags=["hide-input"]
class PeakBytes(TorchDispatchMode):
    """The most bytes that new tensors held at a time."""

    def __init__(self, given) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.alive, self.peak = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.alive = [(ref, place, size) for ref, place, size in self.alive if not ref.expired()]
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.known | {place for _, place, _ in self.alive}:
                    self.alive.append((StorageWeakRef(storage), storage.data_ptr(), storage.nbytes()))
        self.peak = max(self.peak, sum(size for _, _, size in self.alive))
        return result


def heads(length: int) -> list[torch.Tensor]:
    return [torch.randn(1, length, 4, 64, generator=generator) for _ in range(3)]


def peak_mib(attention, length: int, *, backward: bool) -> float:
    leaves = [x.requires_grad_(backward) for x in heads(length)]
    with PeakBytes(leaves) as tracked:
        out, _ = attention(*leaves)
        if backward:
            out.sum().backward()
    return tracked.peak / 2**20


def torch_attention(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def measure_times() -> dict:
    """Milliseconds of one call, medians of interleaved rounds."""
    times = {}
    with torch.inference_mode():
        for length in (256, 512, 1024, 2048):
            inputs = heads(length)
            result = compare(
                {
                    "naive": lambda: naive_attention(*inputs),  # noqa: B023
                    "flash, ours": lambda: flash_attention(*inputs),  # noqa: B023
                    "torch SDPA": lambda: torch_attention(*inputs),  # noqa: B023
                },
                rounds=7,
            )
            times[length] = {name: 1e3 * result.time(name).median for name in result.seconds}
    return times


record = recorded("10_seconds", measure_times)
fig, (memory_ax, time_ax) = plots.figure(height=3.7, ncols=2)
lengths = [256, 512, 1024, 2048]
for attention, name, color in ((naive_attention, "naive", plots.ORANGE), (flash_attention, "flash", plots.BLUE)):
    for backward, style in ((False, "o-"), (True, "s--")):
        label = f"{name}, with backward" if backward else name
        memory_ax.plot(lengths, [peak_mib(attention, n, backward=backward) for n in lengths], style, color=color, label=label, linewidth=1.6)
styles = {"naive": plots.ORANGE, "flash, ours": plots.BLUE, "torch SDPA": plots.GREY}
for name, color in styles.items():
    time_ax.plot(lengths, [record.values[str(n)][name] for n in lengths], "o-", color=color, label=name, linewidth=1.6)
for ax in (memory_ax, time_ax):
    ax.set(xscale="log", yscale="log", xlabel="tokens")
    ax.set_xticks(lengths, [f"{n:,}" for n in lengths])
    ax.minorticks_off()
    ax.yaxis.set_major_formatter("{x:g}")
    ax.legend(fontsize=9.5)
memory_ax.set(ylabel="peak of new tensors (MiB)", ylim=(None, 3000))
time_ax.set(ylabel="ms a call")
plots.show(fig, alt="Left: peak memory of naive attention grows with the square of the tokens, that of flash attention linearly, forward and with backward. Right: milliseconds of naive, flash and torch's attention.", record=record)

# %% [markdown]
# The left panel is the promise kept: for twice the tokens four times the memory, against twice at most. On the right, a CPU's
# caches do by themselves part of what FlashAttention arranges, and our loops are Python's; torch has the same loops in C++.

# %% [markdown]
# ## In production
#
# * **PyTorch**'s `scaled_dot_product_attention` chooses among backends: FlashAttention-2, a memory-efficient kernel, cuDNN, and
#   `MATH`, which does what our naive version does. `torch.nn.attention.sdpa_kernel` pins one.
# * **vLLM** and **SGLang** take an `--attention-backend`: FlashAttention, FlashInfer, Triton and others, chosen by GPU and model
#   if none is given. Their kernels read paged K and V (chapter 13).
# * **TensorRT-LLM** uses FlashAttention for the context phase, its name for prefill, and other kernels for generation.
# * **llama.cpp** has `--flash-attn on|off|auto`, on CPUs too.
#
# What is the same everywhere: the online softmax, tiles, and an lse that is handed out for merging. What differs is how the
# hardware is fed. One decode step has a single query, $B_r = 1$, and version 2 has one program a head left; chapter 11 is
# about that.

# %% [markdown]
# ## Exercises
#
# In [`exercises/ch10_flash_attention.py`](../exercises/ch10_flash_attention.py); `python3 tasks.py grade ch10` grades them
# and names what went wrong.
#
# | task | points | prepared by |
# |---|---|---|
# | `online_step`: one more tile of keys | 4 | A maximum that may still grow |
# | `merge_two`: attention over two sets of keys | 3 | States add up |
# | `visited_tiles`: predict what a causal kernel visits | 4 | Tiles that nobody sees |
# | `padded_flash`: a bug hunt in version 1 | 6 | Version 1; A maximum that may still grow |
# | `flash_on_meter`: version 2 within a budget of SRAM and bytes | 7 | Version 2; How large a tile?; chapter 06 |
# | `flash_backward`: gradients from lse, five products a tile | 6 | Backward: compute it again |

# %% [markdown]
# ## Check yourself
#
# <details><summary>A row's scores are ln 4, ln 1, ln 16, its values 1, 2, 3. What are (m, l, a) after each, and the output?</summary>
#
# (ln 4, 1, 1). Then weight 1/4: (ln 4, 1.25, 1.5). Then repair 4/16: (ln 16, 1.25/4 + 1 = 1.3125, 1.5/4 + 3 = 3.375). Output
# 3.375 / 1.3125 = 2.571 = (4 + 2 + 48) / 21.
# </details>
#
# <details><summary>By how much does version 1 reduce the traffic of S and P for d = 64 and for d = 128, with an SRAM of 150,000 numbers and no cache?</summary>
#
# M / 3d²: 150,000 / 12,288 = 12.2 and 150,000 / 49,152 = 3.1. A large head dimension spoils much of it; an L2 gives it back.
# </details>
#
# <details><summary>FlashAttention needs O(N) memory. Why does its time still grow with N²?</summary>
#
# Each query still meets each key: 4N²d FLOPs, half of it with a causal mask. Nothing is approximated; only the scratch paper
# is gone.
# </details>
#
# <details><summary>Why doesn't the backward pass need an online softmax?</summary>
#
# lse is known: a weight is exp(score − lse), finished, in whichever tile it stands. And δ, the other sum over a row, is dO · o.
# </details>

# %% [markdown]
# ## Sources
#
# * Milakov, Gimelshein 2018, [*Online normalizer calculation for softmax*](../book/bibliography.md#milakov2018): algorithm 3.
# * Rabe, Staats 2021, [*Self-attention Does Not Need O(n²) Memory*](../book/bibliography.md#rabe2021): the same state, for
#   memory's sake.
# * Dao, Fu, Ermon, Rudra, Ré 2022, [*FlashAttention*](../book/bibliography.md#dao2022): algorithm 1, and §3.2 for Θ(N²d²/M)
#   and why no exact algorithm does better for all M.
# * Dao 2023, [*FlashAttention-2*](../book/bibliography.md#dao2023): §3.1 the algorithm, §3.2 parallelism, §3.3 how warps share a tile.
# * Shah et al. 2024, [*FlashAttention-3*](../book/bibliography.md#shah2024): what Hopper offers beyond this chapter.
#
# Next: [chapter 11](../README.md#the-course), where there is one query and the keys are split instead.
