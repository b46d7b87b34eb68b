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
# # 11 · FlashDecoding and FlashDecoding++
#
# *One query, sixty thousand keys, and a hundred processors that would like to help.*
#
# Needs: chapters [01](01_whole_system.ipynb), [02](02_building_the_model.ipynb), [03](03_training.ipynb), [05](05_cost_model.ipynb), [06](06_gemm.ipynb), [08](08_kv_cache.ipynb), [10](10_flash_attention.ipynb) ·
# Time: 60 minutes to read, 75 to solve

# %% [markdown]
# ## Why
#
# One user has pasted a small book, 65,536 tokens, and asks about it. The prompt has been read. Now the answer comes token by
# token, and for each token every layer of the model has to read every key and value once more. There is one query a head,
# and FlashAttention-2 makes one program for each block of a head's *queries*.
#
# On Llama 3 8B these are 32 programs, or 8 if the four query heads that share a KV head go into one, so that its keys are read
# once. An H100 has 132 processors, its **streaming multiprocessors** (流式多处理器), SMs for short. **124 of 132 have nothing
# to do: 94 %** of the machine idles for as long as the other eight need to read 256 MiB. Here is that launch, and what this
# chapter makes of it.

# %% tags=["hide-input"]
import inspect
import math
import os
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
from IPython.display import Markdown
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator

import minillm
from minillm import plots
from minillm.attention import (
    assign_units,
    choose_num_splits,
    choose_phi,
    flash_decoding,
    flash_decoding_unified,
    merge_many,
    naive_attention,
    safe_band,
    share_in_band,
    split_keys,
)
from minillm.attention.flash_decoding import attend_to_part, decode_sequence, split_scores
from minillm.attention.metered_decoding import decoding_moved, run_decoding
from minillm.bench.recorded import recorded
from minillm.bench.show import source
from minillm.data.stories import sample_story
from minillm.perf.meter import Meter
from minillm.perf.probe import ReadProbe

generator = torch.Generator().manual_seed(11)

num_sms, k_len, num_kv_heads = 132, 65536, 8
fig, axes = plots.figure(height=3.7, ncols=2, sharey=True)
for ax, splits in zip(axes, (1, choose_num_splits(1, num_kv_heads, k_len, num_sms)), strict=True):
    spans = assign_units([k_len / splits] * (num_kv_heads * splits), num_sms)
    bars = [Rectangle((span.start, span.sm), span.stop - span.start, 1) for span in spans]
    color = plots.ORANGE if splits == 1 else plots.BLUE
    ax.add_collection(PatchCollection(bars, facecolor=color, edgecolor=plots.PAPER, linewidth=0.2))
    ax.set(xlim=(0, 1.02 * k_len), ylim=(132, 0), xlabel="time, in keys that one SM reads")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_xticks([0, 20000, 40000, 60000])
    ax.set_yticks([0, 33, 66, 99, 132])
    ax.grid(axis="y", visible=False)
    ax.set_title("8 programs" if splits == 1 else f"keys in {splits} splits: {len(spans)} programs", size=11.5)
axes[0].set_ylabel("SM")
axes[0].text(33000, 70, "124 SMs idle", ha="center", color=plots.MUTED, size=12)
axes[1].text(8000, 70, f"done after {k_len / splits:,.0f}", color=plots.INK, size=12)
plots.show(fig, alt="Left: 8 of 132 lanes are busy for the time of 65,536 keys, the others are empty. Right: 120 lanes are busy for a fifteenth of that time.")

# %% [markdown]
# ## Napkin
#
# In this chapter one layer is the unit; the model has 32. Bytes first: $65{,}536$ tokens, 8 KV heads, keys and values of 128
# numbers, 2 bytes each, are 256 MiB. The data sheet's 3.35 TB/s read them in
#
# $$268 \text{ MB} / 3.35 \text{ TB/s} = 80\ \mu\text{s},$$
#
# if all SMs pull. All layers together: 2.6 ms a token, half of what reading the 16 GB of weights takes (chapter 05). Can eight
# SMs pull as hard? If each gets about its fair share of the bandwidth, $1/132$, they need $132 / 8 = 16.5$ times as long: 1.3
# ms a layer, **42 ms a token** spent on attention. A single SM can draw more than its fair share while the others are silent,
# so the factor is an upper estimate, and the direction is not in doubt.
#
# Arithmetic is no help. Four query heads share a KV head, so a number of 2 bytes serves four multiply-adds, 8 FLOPs: 4 FLOPs a
# byte, where an H100 wants 295. This is reading, and nothing but reading.

# %% [markdown]
# ## The naive version
#
# Chapter 10's meter again: a simulated HBM, programs with a small SRAM, every byte counted. One program for a KV head
# walks over all keys. It leaves out the maximum, which chapter 10 put in: scores are small here.

# %%
rows, head_dim = 4, 128  # the four query heads of a KV head
query = torch.randn(rows, head_dim, generator=generator)
keys, values = (torch.randn(1024, head_dim, generator=generator) for _ in range(2))


def one_program(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, Meter]:
    """Decode attention of one KV head by one program: out (rows, head_dim), and the meter that counted."""
    meter = Meter(sram_bytes=128 * 1024)
    q_hbm, k_hbm, v_hbm = meter.hbm("q", query), meter.hbm("K", keys), meter.hbm("V", values)
    out = meter.empty("out", query.shape)
    with meter.kernel("decode") as kernel, kernel.program(0) as p:
        q = p.load(q_hbm)
        acc, row_sum = p.zeros(*query.shape), p.zeros(query.shape[0], 1)
        for start in range(0, keys.shape[0], 64):
            tile = slice(start, min(start + 64, keys.shape[0]))
            with p.scope():
                weights = q @ p.load(k_hbm[tile]).T  # (rows, 64)
                weights *= 1 / math.sqrt(head_dim)
                weights.exp_()
                row_sum += weights.row_sum()
                p.matmul(weights, p.load(v_hbm[tile]), into=acc)
        acc /= row_sum
        p.store(acc, out)
    return out.result(), meter


naive_out, naive_meter = one_program(query, keys, values)
expected = torch.softmax(query @ keys.T / math.sqrt(head_dim), dim=-1) @ values
torch.testing.assert_close(naive_out, expected)
print(naive_meter.report())

# %% [markdown]
# A launch is `meter.kernel(name)`, a program `kernel.program(i)`. Tiles made in a `scope` are freed at its end; `*=` and
# methods that end in `_` work in place; `matmul(a, b, into=c)` adds to c.
#
# Keys and values are read once. On the meter, this is a perfect kernel. What it doesn't count is who reads, and that is the
# whole problem.

# %% [markdown]
# ## The idea
#
# ### Any set of keys will do
#
# Chapter 10 found that attention over a set of keys is two things: an output $o$ and a log-sum-exp, $\mathrm{lse} = \ln \sum_j
# e^{s_j}$. Results over different keys merge, in any order, each weighed by $e^{\mathrm{lse}}$; there the sets were tiles, one
# after the other. But nobody said that they must come one after the other.
#
# **FlashDecoding** (Dao, Haziza, Massa and Sizov 2023) gives the sets to different SMs. Cut the $n$ keys into $S$
# **splits** (切分). One launch computes $(o_s, \mathrm{lse}_s)$ of each split, side by side. A second, small launch merges them:
#
# $$\mathrm{lse} = \ln \sum_{s=1}^{S} e^{\mathrm{lse}_s}, \qquad o = \sum_{s=1}^{S} e^{\mathrm{lse}_s - \mathrm{lse}}\; o_s .$$
#
# By hand: four keys with scores $\ln 1, \ln 3, \ln 2, \ln 2$ and values 4, 8, 1, 3, cut in the middle. The first split gives
# $(1 \cdot 4 + 3 \cdot 8)/4 = 7$ with $\mathrm{lse} = \ln 4$, the second $(2 \cdot 1 + 2 \cdot 3)/4 = 2$, also with $\ln 4$.
# Merged: $(4 \cdot 7 + 4 \cdot 2)/8 = 4.5$, and $\mathrm{lse} = \ln 8$. All at once: $(4 + 24 + 2 + 6)/8 = 4.5$.
#
# Three things to mind, all of which have been got wrong:
#
# * The sum of $e^{\mathrm{lse}_s}$ overflows exactly when the sum of $e^{s_j}$ does. The largest $\mathrm{lse}_s$ is subtracted
#   first.
# * A split may have no key (more splits than keys), or none that a query may see. It is $(0, -\infty)$ and must change nothing;
#   $-\infty - (-\infty)$ is NaN, here as in chapter 10.
# * GPU kernels work in base 2, since the hardware has $2^x$. A log-sum-exp in base 2 isn't one in base $e$: the result must say
#   which.
#
# Here is a real row at the end of a story, its keys in four splits. Of the bundled model's heads it is the one that uses its
# splits most evenly.

# %% tags=["hide-input"]
model, tokenizer = minillm.load_model(), minillm.load_tokenizer()
story_ids = torch.tensor(tokenizer.encode(sample_story(random.Random("chapter 11")).text))[:240]
seen = {}


def watching_attend(layer_idx, q, k, v, softmax_scale):
    seen[layer_idx] = q, k, v, softmax_scale
    return naive_attention(q[None], k[None], v[None], softmax_scale=softmax_scale)[0][0]


with torch.inference_mode():
    model(story_ids, torch.arange(len(story_ids)), watching_attend)
story_q, story_k, story_v, scale = seen[3]
group = story_q.shape[1] // story_k.shape[1]  # query heads of a KV head
heads = [(story_q[-1, h] @ story_k[:, h // group].T * scale).double() for h in range(story_q.shape[1])]
parts = split_keys(len(story_ids), 4)


def shares(row: torch.Tensor) -> torch.Tensor:
    """e^(lse_s − lse): what each split counts for."""
    return torch.softmax(torch.stack([row[part].logsumexp(0) for part in parts]), 0)


head = max(range(len(heads)), key=lambda h: shares(heads[h]).min().item())
row, row_values = heads[head], story_v[:, head // group].double()  # (240,), (240, head_dim)
inside = torch.cat([row[part].softmax(0) for part in parts])
whole = row.softmax(0)
fig, (inside_ax, whole_ax) = plots.figure(height=4.0, nrows=2, sharex=True)
colors = (plots.BLUE, plots.PURPLE, plots.SKY, plots.GREEN)
for s, (part, share, color) in enumerate(zip(parts, shares(row).tolist(), colors, strict=True)):
    places = range(part.start, part.stop)
    inside_ax.bar(places, 100 * inside[part], color=color, width=1.0)
    whole_ax.bar(places, 100 * whole[part], color=color, width=1.0)
    middle = (part.start + part.stop) / 2
    inside_ax.text(middle, 0.96, f"lse {row[part].logsumexp(0):.2f}", ha="center", va="top", color=color, transform=inside_ax.get_xaxis_transform())
    whole_ax.text(middle, 0.96, f"× {share:.2f}", ha="center", va="top", color=color, transform=whole_ax.get_xaxis_transform())
    for ax in (inside_ax, whole_ax):
        if s:
            ax.axvline(part.start - 0.5, color=plots.MUTED, linestyle=":", linewidth=1)
inside_ax.set(ylabel="% of its split", ylim=(0, 125 * inside.max()), title="four programs, each with a softmax of its own")
whole_ax.set(ylabel="% of the whole", xlabel="key", ylim=(0, 125 * whole.max()), title="merged (another scale)")
plots.show(fig, alt="Attention weights of one query over 240 keys in four colours. Above, each quarter sums to 100 percent; below, each quarter is scaled by its share, and together they are the row's softmax.")

# %% [markdown]
# Above, each split sums to 100 %; each program believes that its keys are all there is. Below, each is scaled by
# $e^{\mathrm{lse}_s - \mathrm{lse}}$. No program had to know about another.
#
# How exact? As exact as addition. In float64, for every number of splits from 1 to more than there are keys, with empty ones
# thrown in:

# %%
whole_out = whole @ row_values
largest_error = 0.0
for num_splits in (1, 2, 3, 7, 50, 240, 300):
    edges = [min(i * math.ceil(240 / num_splits), 240) for i in range(num_splits + 1)]  # the last splits may be empty
    outs, lses = [], []
    for start, stop in zip(edges, edges[1:], strict=False):
        part_row = row[start:stop]
        outs.append(part_row.softmax(0) @ row_values[start:stop])  # (head_dim,); no keys: 0
        lses.append(part_row.logsumexp(0))  # no keys: −inf
    out, lse = merge_many(torch.stack(outs), torch.stack(lses))
    largest_error = max(largest_error, (out - whole_out).abs().max().item(), abs(lse - row.logsumexp(0)).item())
print("largest difference below 1e-14:", largest_error < 1e-14)

# %% [markdown]
# Not equal to the last bit, since sums were grouped differently. A server that changes the number of splits when another user
# arrives may round differently, and greedy decoding may then choose another token.
#
# ### Rows of a tile
#
# With grouped queries (chapter 09) several query heads want the same keys. Given a program each, they read them once each: from
# HBM or, if they run at the same time, perhaps from the L2 cache. So the query heads of a group, and all new tokens if there are
# several, become *rows* of one tile. On the meter, for 1,024 keys:

# %%
packed = naive_meter.total.hbm_bytes
apart = sum(one_program(query[h : h + 1], keys, values)[1].total.hbm_bytes for h in range(rows))
print(f"one tile of four heads: {packed / 2**20:.2f} MiB; a program for each head: {apart / 2**20:.2f} MiB")

# %% [markdown]
# Packing makes four times fewer programs, of course: 8 busy SMs and not 32. Splitting makes up for it. New tokens in a tile need
# care with the mask: token $i$ of $q$ new ones stands at place $n - q + i$ and sees the keys up to there. So its row has keys to
# hide in the last split, and in earlier ones if the last is shorter than $q - 1$ keys. Which row is which token depends on how
# they were packed.
#
# ### How many splits?
#
# Let $u$ be the **work units** (工作单元), pairs of a sequence and a KV head, and $P$ the SMs. With $S$ splits a launch has $u S$
# programs of $\lceil n/S \rceil$ keys. They run in **waves** (波次) of $P$. Assume that each SM reads at its own steady pace; then
# a wave that is not full takes as long as a full one. (Where HBM is the limit, an SM of a half-empty wave gets more of it.)
#
# Each program also writes a **partial result** (部分结果), $r$ rows of $d + 1$ numbers of 4 bytes, and the second launch reads
# them. A key with its value is $2d$ numbers of 2 bytes. So writing a partial result costs as much as
#
# $$c = \frac{r (d+1) \cdot 4 \text{ bytes}}{2d \cdot 2 \text{ bytes}} = r\, \frac{d+1}{d} \approx r$$
#
# keys, four for Llama's four rows, and reading it as much again. The step takes, in keys,
#
# $$T(1) = \left\lceil \frac{u}{P} \right\rceil n, \qquad
# T(S) = \underbrace{\left\lceil \frac{u S}{P} \right\rceil \left( \left\lceil \frac{n}{S} \right\rceil + c \right)}_{\text{splits}}
# + \underbrace{\left\lceil \frac{u}{P} \right\rceil S\, c}_{\text{merge}} .$$
#
# (Nothing for the launches themselves; on a GPU a kernel costs some microseconds, which is why short texts shouldn't be split
# at all.)

# %% tags=["hide-input"]
def predicted(units: int, length: int, splits: int, part: int = 4) -> int:
    """T(S) on an H100."""
    if splits == 1:
        return math.ceil(units / 132) * length
    return math.ceil(units * splits / 132) * (math.ceil(length / splits) + part) + math.ceil(units / 132) * splits * part


counts = list(range(1, 67))
fig, (wave_ax, time_ax) = plots.figure(height=3.7, ncols=2)
efficiency = [8 * s / 132 / math.ceil(8 * s / 132) for s in counts]
wave_ax.plot(counts, [100 * e for e in efficiency], color=plots.BLUE, linewidth=1.6)
chosen = choose_num_splits(1, 8, 65536, 132)
wave_ax.axhline(85, color=plots.MUTED, linestyle=":")
wave_ax.plot([chosen], [100 * efficiency[chosen - 1]], "o", color=plots.RED, zorder=3)
wave_ax.set(xlabel="splits", ylabel="% of SMs with work, on average", ylim=(0, 108))
wave_ax.set_title(f"dotted 85 %; chosen: {chosen}", size=11)
for length, color in ((65536, plots.BLUE), (4096, plots.PURPLE), (512, plots.SKY)):
    speedups = [length / predicted(8, length, s) for s in counts]
    best = max(counts, key=lambda s: speedups[s - 1])  # noqa: B023
    time_ax.plot(counts, speedups, color=color, linewidth=1.6)
    time_ax.text(68, min(speedups[-1], 14.2), f"{length:,}\nkeys", color=color, va="center", size=10)
    time_ax.plot([best], [speedups[best - 1]], "o", color=color)
time_ax.axhline(16.5, color=plots.GREEN, linestyle="--")
time_ax.text(2, 17, "132 SMs / 8 programs", color=plots.GREEN, size=10)
time_ax.set(xlabel="splits", ylabel="times as fast as unsplit", ylim=(0, 19.5), xlim=(-2, 88), xticks=[0, 20, 40, 60])
time_ax.set_title("predicted", size=11)
plots.show(fig, alt="Left: the share of SMs with work against the number of splits is a sawtooth that first reaches 85 percent at 15 splits. Right: predicted speedup for three lengths; for 65,536 keys it stays near 16, for 512 keys it peaks near 5 and falls.")

# %% [markdown]
# The teeth are the waves. 16 splits fill 128 SMs; 17 need a second wave for four programs. At 33 splits two waves are exactly
# full. The circles on the right are the best numbers: for 65,536 keys that is 33, but 16 is within 2 % and half the programs.
#
# So heuristics don't look for the best. The library's `choose_num_splits` takes the *smallest* number whose efficiency reaches
# 85 % of the best one, and no split at all if 80 % of the SMs have work anyway. That is 15 here, at 91 %: good enough comes first,
# although 16 would fill 97 %. It is the
# [rule of FlashAttention-3](https://github.com/Dao-AILab/flash-attention/blob/main/hopper/heuristics.h), which has exceptions of
# its own: it doesn't split four blocks of keys or fewer, ours keeps at least 128 keys in a split. FlashAttention-2 counts each SM
# twice and would take 29.
#
# Short texts pay for many splits: at 512 keys the merge soon costs as much as the keys.
#
# ### What splitting costs
#
# The same in bytes, on the meter. Each program of the first launch loads the queries, $r d$ numbers; each split's partial
# result crosses the border of HBM twice. For $S > 1$:
#
# $$\text{read} = S\, r\, d + 2 n d + S\, r\, (d+1), \qquad \text{written} = S\, r\, (d+1) + r\, d .$$
#
# (The library also writes each row's lse at the end, $r$ numbers more.) Four rows, $d$ = 128, 1,024 keys, all in float32:

# %% tags=["hide-input"]
table = ["| splits | programs | KiB read and written | more than unsplit | fp32 result equals the oracle's |", "|---:|---:|---:|---:|---|"]
unsplit = sum(decoding_moved(rows, 1024, head_dim, 1)) * 4
for splits in (1, 2, 4, 8, 16, 64):
    result = run_decoding(query, keys, values, num_splits=splits, sram_bytes=128 * 1024)
    assert result.meter.total.hbm_bytes == 4 * sum(decoding_moved(rows, 1024, head_dim, splits))
    programs = sum(kernel.programs for kernel in result.meter.kernels.values())
    good = torch.allclose(result.out, expected, atol=1e-5)
    table.append(
        f"| {splits} | {programs} | {result.meter.total.hbm_bytes / 1024:,.0f} | "
        f"{result.meter.total.hbm_bytes / unsplit - 1:.1%} | {'yes' if good else 'no'} |"
    )
Markdown("\n".join(table))

# %% [markdown]
# Sixty-four splits of 16 keys move 37 % more, sixteen of 64 keys 9 %. With 4,096 keys of 2-byte numbers in a split, as in our
# case, it is a quarter of a percent.

# %% [markdown]
# ## The real version
#
# [`flash_decoding.py`](../minillm/attention/flash_decoding.py): a sequence at a time, all KV heads of a split in one product.
# `source` shows the library's own code.

# %%
source(decode_sequence)
source(split_scores)
source(attend_to_part)

# %% [markdown]
# `rows` are the packed queries, in float32 or wider. A row of a split without visible keys is $(0, -\infty)$: a 0 is subtracted
# where lse is $-\infty$. `merge_many` is the formula above, with the largest lse subtracted and the same care.
#
# Sequences of a batch have different lengths, and the cache's slab is longer than most of them. What stands behind a sequence's
# end may be an earlier user's keys or NaN. It must not be *read*: a weight of 0 doesn't help, since $0 \cdot \mathrm{NaN}$ is
# NaN.

# %%
lengths = [60, 7, 0]
q = torch.randn(3, 2, 8, 32, generator=generator)  # 3 users, 2 new tokens each, 8 query heads
k, v = (torch.randn(3, 64, 2, 32, generator=generator) for _ in range(2))  # 2 KV heads
for b, length in enumerate(lengths):
    k[b, length:], v[b, length:] = float("nan"), float("nan")
for num_splits in (1, 3, 16, 100):
    out, lse = flash_decoding(q, k, v, num_splits=num_splits, seq_lens=lengths)
    for b, length in enumerate(lengths):
        found = out[b : b + 1], lse[b : b + 1]
        torch.testing.assert_close(found, naive_attention(q[b : b + 1], k[b : b + 1, :length], v[b : b + 1, :length]))
print("ragged lengths, NaN in the slab, up to 100 splits: out and lse equal the oracle's")

# %% [markdown]
# Different lengths are also a scheduling problem. Three users with 6,000, 2,000 and 1,000 tokens, 2 KV heads, a GPU of 7 SMs;
# programs start in order on the SM that is free first:

# %% tags=["hide-input"]
users = ((6000, "A", plots.BLUE), (2000, "B", plots.PURPLE), (1000, "C", plots.GREEN))
fig, axes = plots.figure(height=5.4, nrows=2, sharex=True)
for ax, splits in zip(axes, (1, 4), strict=True):
    work = [(length / splits, name, color) for length, name, color in users for _ in range(2 * splits)]
    spans = sorted(assign_units([cost for cost, _, _ in work], 7), key=lambda span: span.sm)
    lanes = {f"SM {span.sm}" for span in spans}
    bars = [(f"SM {span.sm}", span.start, span.stop, work[span.unit][1], work[span.unit][2]) for span in spans]
    bars += [(f"SM {sm}", 0, 0, "", plots.GREY) for sm in range(7) if f"SM {sm}" not in lanes]
    plots.timeline(ax, bars, xlabel="time, in keys" if splits == 4 else "")
    end = max(span.stop for span in spans)
    busy = sum(cost for cost, _, _ in work) / (7 * end)
    ax.set_title(f"{splits} split{'s' if splits > 1 else ''} a sequence: done after {end:,.0f} keys, SMs busy {busy:.0%} of the time", size=11)
axes[1].set_xlim(0, 6100)
axes[1].xaxis.set_major_formatter("{x:,.0f}")
plots.show(fig, alt="Timelines of seven SMs. Unsplit, user A's two programs run three times as long as anything else. In four splits each the launch is done in half the time, and one program of A ends alone.")

# %% [markdown]
# Much better, and not yet even: the eighth program of A starts second on its SM and ends alone, while C was cut into crumbs.
# The alternative is to lay all keys end to end and cut *that* into equal shares, one for each SM, wherever sequences begin and
# end. The library's CPU version does so ([`cpu_decoding.py`](../minillm/attention/cpu_decoding.py)), with threads for SMs.
#
# ### The kernel
#
# In Triton ([`flash_split_kernels.py`](../minillm/kernels/flash_split_kernels.py)) the number of a program says which tile of
# rows, of which split, of which KV head it is: $(\text{head} \cdot \text{splits} + \text{split}) \cdot \text{tiles} +
# \text{tile}$. After these lines comes the loop of chapter 10. Splits are whole tiles of keys, and the length is read on the
# device, so the last programs may find no key at all. (`ONLY_REDO` belongs to the fallback of the next section.)

# %%
if find_spec("triton"):
    os.environ["TRITON_INTERPRET"] = "1"  # before the import: no GPU is needed to look at the code
    from minillm.kernels import flash_split_kernels

    kernel = flash_split_kernels.decode_split_kernel.fn
    code = [line.strip() for line in inspect.getsource(kernel).splitlines()]
    first = next(i for i, line in enumerate(code) if line.startswith("program = "))
    last = next(i for i, line in enumerate(code) if line.startswith("stop = "))
    source(kernel, lines=(first + 1, last + 1))
else:
    print("Triton exists for Linux only: see minillm/kernels/flash_split_kernels.py")

# %% [markdown]
# ### One number for every maximum
#
# FlashDecoding++ (Hong et al. 2023) asks what all the maxima are for. Each tile searches its largest score, waits for it, and
# repairs what was summed before. This **synchronized update** (同步更新) takes 18.8 % of the attention time of Llama-2-7B at
# 1,024 tokens on an A100, the paper measured. And the maximum cancels: for *any* number $\varphi$,
#
# $$o = \frac{\sum_j e^{s_j - \varphi}\, v_j}{\sum_j e^{s_j - \varphi}}, \qquad \mathrm{lse} = \varphi + \ln \sum_j e^{s_j - \varphi} .$$
#
# With one $\varphi$ for all splits, agreed on in advance, both sums simply add up. That is the **unified maximum** (统一最大值). It
# isn't a maximum; it is a constant that one hopes is near enough. On the meter, the same walk over 1,024 keys:

# %%
for constant in (None, 0.0):
    total = run_decoding(query, keys, values, num_splits=4, phi=constant, sram_bytes=128 * 1024).meter.total
    print(f"phi={constant}: {total.hbm_bytes / 1024:,.0f} KiB, {total.non_matmul_flops:,} FLOPs outside of products")

# %% [markdown]
# Not a byte less, and 15 thousand FLOPs beside two million of the products: on the roofline nothing changes. What is saved is
# waiting. A maximum needs *all* scores of a tile before the first exponential can start, and the repair has to be finished before
# the next tile is added. The meter counts work, not waiting; so take the 18.8 % as the paper's measurement.
#
# How near is near enough? In float32, $e^x$ overflows at 89 and loses its last digits below about $-87$. What decides is one
# number, $\ln \sum_j e^{s_j - \varphi} = \mathrm{lse} - \varphi$. `safe_band` works out the ends of the **safe band**
# (安全区间):
#
# * $\text{high} = \ln(\text{largest} / 2^{20})$ leaves room for values up to a million. In float32: $88.7 - 13.9 = 74.9$.
# * $\text{low} = \ln(2^{20} \cdot \text{tiny} / \varepsilon)$: a million weights that are each just too small for a normal number
#   (tiny) make together no more than the last digit ($\varepsilon$) of the sum. In float32: $13.9 - 87.3 + 15.9 = -57.5$.
#
# The type is that in which the sums are kept.

# %%
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    low, high = safe_band(dtype)
    print(f"{str(dtype)[6:]:>9}: low {low:6.1f}, high {high:5.1f}" + ("   no such band" if low > high else ""))

# %% [markdown]
# Sums in float16 have no safe band. (Kernels accumulate in float32.)
#
# Where do real rows lie? These are all rows of all layers and heads of the bundled model over the story, 11,520 of them.

# %% tags=["hide-input"]
observed = []
for layer_idx in sorted(seen):
    layer_q, layer_k, layer_v, layer_scale = seen[layer_idx]
    observed.append(naive_attention(layer_q[None], layer_k[None], layer_v[None], softmax_scale=layer_scale)[1].flatten())
low, high = safe_band(torch.float32)
fig, ax = plots.figure(height=3.4)
bins = torch.arange(-70, 91).numpy()
ax.hist(torch.cat(observed).numpy(), bins=bins, color=plots.BLUE)
ax.axvspan(low, high, color=plots.tint(plots.GREEN, 0.15), zorder=0)
for edge, name in ((low, "digits may be lost"), (high, "may overflow")):
    ax.axvline(edge, color=plots.RED, linestyle="--", linewidth=1.4)
    ax.text(edge + (-1.5 if edge < 0 else 1.5), 0.5, name, rotation=90, va="center", ha="right" if edge < 0 else "left", color=plots.RED, transform=ax.get_xaxis_transform())
ax.text(-30, 0.86, "the safe band, φ = 0", ha="center", color=plots.MUTED, transform=ax.get_xaxis_transform())
ax.set(xlabel="lse − φ of a row", ylabel="rows", xlim=(-70, 90))
plots.show(fig, alt="Histogram of the log-sum-exps of all attention rows of a story: a narrow hill between about 0 and 20, far inside the safe band from minus 57 to 75.")

# %%
observed = torch.cat(observed)
phi = choose_phi(observed)
print(f"{len(observed):,} rows from {observed.min():.1f} to {observed.max():.1f}")
print(f"in the band: {share_in_band(observed, 0.0):.0%} with φ = 0, {share_in_band(observed, phi):.0%} with φ = {phi:.1f}")
print(f"median {observed.median():.1f}, middle of the band {(low + high) / 2:.1f}")

# %% [markdown]
# `choose_phi` puts the median row into the middle of the band: $\varphi$ is the difference of the two. But all rows fit with
# $\varphi = 0$ and room to spare: nobody has to choose anything. That is a small model with well-behaved
# scores. The paper shows narrow distributions for Llama-2-7B, and a wide one for OPT-6.7B, where it doesn't apply the method
# (§3).
#
# A hope needs a plan for when it fails. It is the **fallback** (回退): rows outside the band are computed again with maxima. A
# sum of $\infty$ has the logarithm $\infty$, a sum of 0 has $-\infty$, and a comparison with NaN is false: `low < x < high` is
# false for all three. The sum of weights isn't everything, though. Times a value of $10^9$, a sum of $e^{74}$ overflows in the
# *weighted* sum, so that is looked at, too.
#
# We plant an outlier: one key that agrees with query head 0 so well that its score is 120.

# %%
last_q, story_values = story_q[-1:][None], story_v[None]
direction = last_q[0, 0, 0] / last_q[0, 0, 0].square().sum() / scale  # a key of this has the score 1 with head 0
planted = story_k[None].clone()
planted[0, 100, 0] = 120.0 * direction
result = flash_decoding_unified(last_q, planted, story_values, phi=0.0, num_splits=4, softmax_scale=scale)
oracle = naive_attention(last_q, planted, story_values, softmax_scale=scale)
torch.testing.assert_close((result.out, result.lse), oracle)
print("fell back:", result.fell_back[0, 0].tolist(), "; all rows equal the oracle's")

# %% [markdown]
# Now let all scores of a row drift from $\varphi$, in both directions, and look at the error against float64: of the two sums
# as they come, and of the library's function.

# %%
def sums_as_they_come(scores: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """out (head_dim,) with φ = 0 and no questions asked; scores (keys,), values (keys, head_dim), float32."""
    weights = torch.exp(scores)
    return weights @ values / weights.sum()


drifts = [x / 2 for x in range(-240, 241)]
raw_errors, errors, fell_back = [], [], []
for drift in drifts:
    drifted = story_k[None] + drift * direction
    truth = naive_attention(last_q.double(), drifted.double(), story_values.double(), softmax_scale=scale)[0][0, 0, 0]
    scores = drifted[0, :, 0] @ last_q[0, 0, 0] * scale
    result = flash_decoding_unified(last_q, drifted, story_values, phi=0.0, num_splits=4, softmax_scale=scale)
    raw_errors.append((sums_as_they_come(scores, story_values[0, :, 0]) - truth).abs().max().item())
    errors.append((result.out[0, 0, 0] - truth).abs().max().item())
    fell_back.append(bool(result.fell_back[0, 0, 0]))
assert all(error < 1e-4 for error in errors)

# %% tags=["hide-input"]
offset = naive_attention(last_q, story_k[None], story_values, softmax_scale=scale)[1][0, 0, 0].item()  # lse without drift
xs = [drift + offset for drift in drifts]
fig, (ax, strip) = plots.figure(height=4.2, nrows=2, sharex=True, height_ratios=[4, 1])
for panel in (ax, strip):
    panel.axvspan(low, high, color=plots.tint(plots.GREEN, 0.15), zorder=0)
ax.plot(xs, raw_errors, color=plots.ORANGE, linewidth=2.2, label="sums as they come")
ax.plot(xs, errors, color=plots.BLUE, linewidth=1.4, label="with the fallback")
ax.text((low + high) / 2, 3, "safe band", ha="center", va="center", color=plots.MUTED)
ax.set(yscale="log", ylabel="largest error of out", ylim=(1e-8, 20))
ax.legend(loc="center", bbox_to_anchor=(0.5, 0.62))
broken = [x for x, error in zip(xs, raw_errors, strict=True) if not math.isfinite(error)]
again = [x for x, redone in zip(xs, fell_back, strict=True) if redone]
strip.plot(broken, [1.0] * len(broken), "|", color=plots.RED, markersize=9)
strip.plot(again, [0.0] * len(again), "|", color=plots.BLUE, markersize=9)
strip.set(xlabel="lse − φ of the row", ylim=(-0.6, 1.6), yticks=[0, 1], yticklabels=["second run", "NaN"])
strip.grid(False)
plots.show(fig, alt="Error of the output against lse minus phi. Sums as they come are exact inside the safe band, lose digits below about minus 87 and are NaN below minus 100 and above 88; with the fallback the error stays near 1e-6 everywhere. A strip below marks the NaN and where a second run was made, which is everywhere outside of the band.")

# %% [markdown]
# On the right the failure is loud, on the left it is quiet: digits vanish long before the NaN. That is why the band has two ends.
# It stops 30 before the damage on the left and 14 on the right, the reserves for many keys and for large values. (Both lines rise
# to the sides because scores of 100 carry fewer digits after the point.)
#
# Rows that fall back are read twice: beyond some share of misfits the method loses. (Our Triton kernel still merges its few parts
# by a maximum; what it saves is in the loop over the keys.)
#
# ### A table of kernels
#
# FlashDecoding++ has another idea. A decode step isn't only attention: the linear layers multiply $M$ rows, one a user, and
# chapter 06 built three kernels for that. `gemv` reads weights for a row or a few, `flat` fills rows up to 8 and no further,
# `packed` pays for copies that only many rows earn back. Which one to call changes with $M$, with the shape of the matrix, and
# with the machine. So the paper measures: for each shape of the model, once, the $M$ at which the second kernel overtakes the
# first, and the third the second (§5). Then a **dispatch table** (调度表) is looked up at every call.
#
# Between two measured $M$ one has to decide. A product doesn't get slower by losing a row, so a kernel's time at the next
# *larger* measured $M$ is what it takes at most. Compare these, without the kernels that weren't measured at that many rows.
# Beyond the table the last column has to do.

# %% [markdown]
# ## Measured
#
# **The table**, on our CPU for two shapes of weight: 1 MiB, which lies in a cache, and 64 MiB, which doesn't. Each call follows
# one like it that isn't timed, in random order: otherwise the first number of rows would pay for cold caches and sleeping threads.
# `recorded` measures on your machine when you run the notebook; what is printed here was measured on the machine named below.

# %% tags=["hide-input"]
row_counts = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def median_seconds(calls: dict[str, Callable[[], object]], rounds: int, repeats: int = 1) -> dict[str, float]:
    """Of each call: `repeats` of it are timed right after one that isn't, in an order that every round draws anew."""
    order, times = random.Random(11), {name: [] for name in calls}
    for name in order.sample(sorted(calls), len(calls)) * 2:
        calls[name]()  # compiled, and its memory handed out
    for _ in range(rounds):
        for name in order.sample(sorted(calls), len(calls)):
            calls[name]()
            started = time.perf_counter()
            for _ in range(repeats):
                calls[name]()
            times[name].append((time.perf_counter() - started) / repeats)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def measure_kernels() -> dict:
    """Seconds by size and kernel for each of `row_counts`; None where a kernel isn't made for that many."""
    from minillm.gemm import LADDER
    from minillm.gemm.flat import flat_matmul
    from minillm.gemm.gemv import few_row_linear

    threads, seconds = torch.get_num_threads(), {}
    for size in (512, 4096):
        weight = torch.randn(size, size)
        transposed = weight.T.contiguous()  # as gemv wants it
        calls = {}
        for m in row_counts:
            x = torch.randn(m, size)
            if m <= 16:
                calls[f"gemv {m}"] = partial(few_row_linear, x, transposed, num_threads=threads)
            calls[f"flat {m}"] = partial(flat_matmul, x, weight, num_threads=threads)
            calls[f"packed {m}"] = partial(LADDER["threads"], x, weight)
        found = median_seconds(calls, rounds=11, repeats=max(1, 4096 // size))
        seconds[str(size)] = {name: [found.get(f"{name} {m}") for m in row_counts] for name in ("gemv", "flat", "packed")}
    return seconds


record = recorded("11_kernels", measure_kernels)
colors = {"gemv": plots.PURPLE, "flat": plots.BLUE, "packed": plots.SKY}
fig, axes = plots.figure(height=3.7, ncols=2, nrows=2, sharex=True, height_ratios=[4, 1])
for (ax, strip), (size, seconds) in zip(axes.T, record.values.items(), strict=True):
    for name, times in seconds.items():
        known = [(m, 1e6 * t / m) for m, t in zip(row_counts, times, strict=True) if t is not None]
        ax.plot(*zip(*known, strict=True), "o-", color=colors[name], label=name, linewidth=1.8)
    for i, m in enumerate(row_counts):
        fastest = min((name for name in seconds if seconds[name][i] is not None), key=lambda name: seconds[name][i])  # noqa: B023
        strip.add_patch(Rectangle((m / 2**0.46, 0.1), m * (2**0.46 - 2**-0.46), 0.8, facecolor=colors[fastest]))
    ax.set(xscale="log", yscale="log", xticks=row_counts)
    ax.set_title(f"(M, {size}) · ({size}, {size})", size=11)
    ax.minorticks_off()
    strip.set(xlabel="rows M", ylim=(0, 1), yticks=[])
    strip.grid(False)
    strip.xaxis.set_major_formatter("{x:g}")
    strip.tick_params(axis="x", labelsize=8.5)
axes[0, 0].set_ylabel("µs a row")
for ax in axes[0]:
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    ax.yaxis.set_major_formatter("{x:,g}")
axes[1, 0].set_ylabel("fastest", rotation=0, ha="right", va="center")
axes[0, 0].legend(fontsize=9.5)
plots.show(fig, alt="Microseconds for each row against the number of rows for three kernels and two sizes of the weight; under each panel a strip whose colour is the fastest kernel for that number of rows.", record=record)

# %% [markdown]
# The strips are the tables. They needn't agree with one another, nor with those of your machine, which is the paper's point: only
# the procedure is general. `gemv` stops at 16 rows, as it isn't made for more. A measured table isn't perfectly monotone, and a few
# per cent between two kernels are no reason to prefer one.
#
# **Splits over cores.** A CPU with two cores is a GPU with two SMs. One user, 16,384 tokens, 8 KV heads of 64 with four query
# heads each, float32: 64 MiB of keys and values. The prediction: a step reads them once, so it can't be faster than the read
# probe (chapter 06) reads 64 MiB. Each thread takes half of the keys.

# %% tags=["hide-input"]
def measure_decoding() -> dict:
    """GB/s at which keys and values are consumed, and the read probe's; medians of rounds."""
    from minillm.attention.cpu_decoding import decode_on_cpu
    from minillm.attention.dispatch import attention

    q = torch.randn(1, 1, 32, 64, generator=generator)
    k, v = (torch.randn(1, 16384, 8, 64, generator=generator) for _ in range(2))
    num_bytes = 2 * 4 * k.numel()
    probe = ReadProbe(num_bytes)
    threads = torch.get_num_threads()
    calls = {
        "naive attention": lambda: naive_attention(q, k, v),
        "torch SDPA": lambda: attention(q, k, v),
        "one thread": lambda: decode_on_cpu(q, k, v, num_threads=1),
        f"split over {threads} threads": lambda: decode_on_cpu(q, k, v, num_threads=threads),
        "read probe": lambda: probe.bytes_per_s(repeats=1),
    }
    with torch.inference_mode():
        seconds = median_seconds(calls, rounds=11)
    return {name: num_bytes / seconds[name] / 1e9 for name in calls}


record = recorded("11_cpu_decoding", measure_decoding)
names, rates = list(record.values), list(record.values.values())
fig, ax = plots.figure(height=2.7)
colors = [plots.ORANGE, plots.GREY, plots.SKY, plots.BLUE, plots.GREEN]
ax.barh(names, rates, color=colors[: len(names)])
ax.bar_label(ax.containers[0], labels=[f"{rate:.1f}" for rate in rates], padding=3)
ax.invert_yaxis()
ax.set(xlabel="GB of keys and values a second", xlim=(0, 1.15 * max(rates)))
plots.show(fig, alt="GB of keys and values consumed a second by naive attention, torch, one thread, splits over all threads, and the read probe as the upper bound.", record=record)

# %% [markdown]
# Two threads read faster than one. What they lack to the probe is what stands between two reads, 8 FLOPs a number and the softmax,
# whereas the probe only adds up. Naive attention copies keys and values for each query head before it multiplies, and spends most
# of its time on that. Two cores can gain a factor of 2 at most; for 8 programs on 132 SMs it is 16.5.
#
# FlashDecoding's authors report attention up to 50 times as fast as FlashAttention's for long texts, and up to 8 times the tokens
# a second for the whole model. No GPU time in this chapter is ours.

# %% [markdown]
# ## In production
#
# * The **flash-attention** library splits inside `flash_attn_with_kvcache`; `num_splits=0` means its
#   [heuristic](https://github.com/Dao-AILab/flash-attention/blob/main/hopper/heuristics.h), described above.
# * **vLLM**: a CUDA graph, launches recorded once, can't change its number of programs while texts grow. With FlashAttention 3
#   it reserves [a largest number of splits](https://github.com/vllm-project/vllm/pull/25495), 32 by default, for the graph.
# * **FlashInfer** *plans* before the layers run: lengths in, a list of chunks out; one plan serves all layers of a step.
# * **SGLang**'s Triton backend has the option `--triton-attention-num-kv-splits`, 8 by default.
# * **TensorRT-LLM** calls it [multi-block mode](https://nvidia.github.io/TensorRT-LLM/advanced/gpt-attention.html).
# * **llama.cpp**'s CUDA kernels compute parallel blocks of keys and merge them in a second kernel,
#   [`flash_attn_combine_results`](https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-cuda/fattn-common.cuh).
#
# Splitting the keys is everywhere. The unified maximum is rarer, as it depends on the model's scores. FlashDecoding++'s other
# idea, kernels chosen by measured shape, is what every autotuner does.

# %% [markdown]
# ## Exercises
#
# In [`exercises/ch11_flash_decoding.py`](../exercises/ch11_flash_decoding.py); `python3 tasks.py grade ch11` grades them and
# names what went wrong.
#
# | task | points | prepared by |
# |---|---|---|
# | `choose_splits`: predict the fastest number of splits | 4 | How many splits? |
# | `decode_on_meter`: split and merge, to the byte | 6 | The naive version; Any set of keys will do; What splitting costs |
# | `split_decode`: a bug hunt with several tokens and a padded cache | 6 | Any set of keys will do; Rows of a tile |
# | `unified_decode`: one φ, detection and fallback | 6 | One number for every maximum |
# | `pick_kernel`: look up a dispatch table | 3 | A table of kernels |

# %% [markdown]
# ## Check yourself
#
# <details><summary>Thirty-two users with 4,096 tokens each, 8 KV heads, an H100. How many splits?</summary>
#
# There are 256 units on 132 SMs: 1.94 waves, 97 % full. One split is enough. Splitting helps when there are few users, not when
# there are many.
# </details>
#
# <details><summary>A split of 4,000 keys gives out 2 with lse 7, another one of 10 keys gives out 5 with lse 7. What is the
# merged result?</summary>
#
# Equal lse, equal weight: 3.5, with lse 7 + ln 2 = 7.69. The number of keys doesn't matter; the sum of their weights does.
# </details>
#
# <details><summary>Absorbed MLA (chapter 09): 128 query heads share one key of 576 numbers, and the value is its first 512.
# What is c?</summary>
#
# A partial result has 128 rows of 513 numbers of 4 bytes, 262,656 bytes. A key takes 576 · 2 = 1,152 bytes, the value comes
# with it. So c is 228 keys, written and then read again: a split should have thousands of keys, or the merge becomes the work.
# </details>
#
# <details><summary>In float32 with φ = 0, a row has one score of 95 and 1,000 scores near 0. And if φ is 60?</summary>
#
# With φ = 0 lse − φ is 95: outside of the band, and e⁹⁵ overflows. With φ = 60 it is 35, inside. The scores near 0 become e⁻⁶⁰,
# still ordinary numbers, and weigh nothing beside e³⁵ either way.
# </details>

# %% [markdown]
# ## Sources
#
# * Dao, Haziza, Massa, Sizov 2023, [*Flash-Decoding for long-context inference*](../book/bibliography.md#dao2023decoding): the
#   splits, the merge, the measurements cited.
# * Hong et al. 2023, [*FlashDecoding++*](../book/bibliography.md#hong2023), §3 and §5: the unified maximum; the choice of a
#   kernel.
# * Dao 2023, [*FlashAttention-2*](../book/bibliography.md#dao2023), §3.2: what a program is given.
#
# Next: [chapter 12](../README.md#the-course) asks what happens when the keys never end.
