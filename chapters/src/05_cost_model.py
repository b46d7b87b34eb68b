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
# # 05 · Cost model and roofline
#
# *Will this model run on that card, and how fast? Answer on a napkin, before you rent the card, and know how far off the
# napkin is.*
#
# Needs: chapters [01](01_whole_system.ipynb) and [02](02_building_the_model.ipynb)  ·  Time: 75 minutes to read, 75 to solve

# %% [markdown]
# ## Why
#
# "Can we serve a 70B model on our A100s?" asks somebody who has to sign for them. The data sheet says 312 trillion
# operations a second a card, and Llama 2 70B does two operations with each of its 69 billion parameters for a token. Two
# cards, one division, and the answer is 4,500 tokens a second. Everybody is delighted.
#
# The gpt-fast project measured it, with two cards and one user: **21 tokens a second**. The sheet was off by a factor
# of 212. And that was careful work: nothing they could have done with 16-bit weights on those two cards would have
# brought 30. By the end of this chapter you can say why before anybody signs, for any model and any card.

# %% tags=["hide-input"]
from minillm.perf.hardware import find_hardware
from minillm.perf.model_shape import read_shape


def llama(name, num_layers, hidden_size, num_heads, num_kv_heads, intermediate_size, vocab_size, max_len, **more):
    """A config.json as on huggingface.co, cut down to what costs something."""
    return {
        "_name_or_path": name, "model_type": "llama", "num_hidden_layers": num_layers, "hidden_size": hidden_size,
        "num_attention_heads": num_heads, "num_key_value_heads": num_kv_heads,
        "intermediate_size": intermediate_size, "vocab_size": vocab_size, "max_position_embeddings": max_len,
    } | more  # fmt: skip


mixtral = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
deepseek = {
    "model_type": "deepseek_v3", "n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1,
    "moe_intermediate_size": 2048, "first_k_dense_replace": 3, "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip
SHAPES = {
    shape.name: shape
    for shape in map(read_shape, (
        llama("Llama 2 7B", 32, 4096, 32, 32, 11_008, 32_000, 4_096),
        llama("Llama 2 13B", 40, 5120, 40, 40, 13_824, 32_000, 4_096),
        llama("Llama 2 70B", 80, 8192, 64, 8, 28_672, 32_000, 4_096),
        llama("Llama 3 8B", 32, 4096, 32, 8, 14_336, 128_256, 8_192),
        llama("Mixtral 8x7B", 32, 4096, 32, 8, 14_336, 32_000, 32_768, **mixtral),
        llama("DeepSeek-V3", 61, 7168, 128, 128, 18_432, 129_280, 163_840, **deepseek),
    ))
}  # fmt: skip

# %%
big, a100 = SHAPES["Llama 2 70B"], find_hardware("A100 SXM 80GB")
promised = 2 * a100.peak("bf16") / (2 * big.num_parameters)
print(f"predicted by the sheet: {promised:,.0f} tokens/s, {promised / 21.32:.0f} times too many")

# %% [markdown]
# ## Napkin
#
# ### Does it fit?
#
# Two things fill a card: weights, and the KV cache of chapter 01, the keys and values of all tokens so far. For a block
# of the GPT-3 kind, with $L$ layers, hidden size $h$ and a feed-forward network of two matrices, $h \times m$ and
# $m \times h$: attention has four $h \times h$ matrices. At 2 bytes a weight,
#
# $$\text{weights} = L\,(8h^2 + 4hm)\ \text{bytes}, \qquad \text{KV} = 4 \cdot b \cdot L \cdot h \cdot (s + n)\ \text{bytes}$$
#
# for $b$ sequences of $s$ prompt and $n$ output tokens. The 4 is K and V, two bytes each. (Embeddings are left out.)
# OPT-175B has $L = 96$, $h = 12288$, $m = 4h$; take 512 sequences of 512 + 32 tokens:

# %%
from minillm.perf import formulas

GIB, TIB = 2**30, 2**40
weights, cache = formulas.block_weight_bytes(96, 12_288, 4 * 12_288), formulas.kv_cache_bytes(512, 96, 12_288, 512, 32)
print(f"OPT-175B: weights {weights / GIB:.0f} GiB, KV cache {cache / TIB:.3f} TiB: {cache / weights:.1f} times the weights")
assert (weights, cache) == (324 * GIB, 1224 * GIB)
assert formulas.kv_cache_bytes(1, 64, 9216, 512, 0) == 1.125 * GIB  # OPT-66B, one prompt of 512 tokens

# %% [markdown]
# Mind the unit. A GiB is $2^{30}$ bytes, 7 % more than a GB of $10^9$. Cards are sold in "GB" and built in GiB.
#
# Newer models need three more rules (the names are those of a `config.json`).
#
# * There may be fewer KV heads (`num_key_value_heads`, $H_\text{kv}$) than query heads ($H$), each shared by a group;
#   their width $d$ need not be $h/H$ (`head_dim`). A token then leaves $2 \cdot L \cdot H_\text{kv} \cdot d$ numbers.
# * **Latent attention** (MLA, chapter 09) keeps neither: one vector of `kv_lora_rank` numbers, of which K and V are made
#   when needed, and one key of `qk_rope_head_dim` that carries the position. DeepSeek-V3: 512 + 64 = 576 a layer.
# * A **mixture of experts** (MoE, chapter 24) has many feed-forward networks a layer and sends each token through a
#   few. All must be stored; only the *active* ones are computed with.

# %% tags=["hide-input"]
from IPython.display import Markdown

from minillm.perf.precision import Precision, kv_cache_bytes_per_token, stored_weight_bytes

rows = ["| | parameters | active for a token | weights | KV cache a token |", "|---|--:|--:|--:|--:|"]
for name, shape in SHAPES.items():
    stored, per_token = stored_weight_bytes(shape, Precision()), kv_cache_bytes_per_token(shape, Precision())
    rows.append(
        f"| {name} | {shape.num_parameters / 1e9:.2f} B | {shape.num_active_parameters / 1e9:.1f} B "
        f"| {stored / GIB:,.1f} GiB | {per_token / 1024:,.1f} KiB |"
    )
Markdown("\n".join(rows))

# %% [markdown]
# Check the weights and the price of a token against somebody who has no reason to flatter us. [A log of
# vLLM](https://github.com/vllm-project/vllm/issues/12330) that loads Llama 3 8B reports 14.96 GiB of weights, and 11.12
# GiB of cache cut into 5,691 blocks of 16 tokens. Ours: 14.96 GiB, and 5,691 · 16 · 128 KiB = 11.12 GiB.
#
# ### How fast is a card?
#
# Two numbers. A core does one **fused multiply-add** (乘加) a clock, which counts 2 FLOPs. Memory chips move two bits a
# clock on every wire of the bus ("double data rate"):
#
# $$F = \text{FLOPs per clock} \cdot \text{cores} \cdot \text{clock}, \qquad B = 2 \cdot \text{clock} \cdot \text{wires} / 8 .$$

# %%
from minillm.perf.hardware import peak_bytes_per_s, peak_flops_per_s

flops_per_s, bytes_per_s = peak_flops_per_s(2, 9216, 1.695e9), peak_bytes_per_s(6.251e9, 384)
print(f"A10: 9,216 cores at 1.695 GHz do {flops_per_s / 1e12:.1f} TFLOP/s at most, in fp32")
print(f"     384 wires at 6.251 GHz bring {bytes_per_s / 1e9:.0f} GB/s at most")

# %% [markdown]
# In bf16 the A10's **tensor cores** (张量核心), units that multiply whole small matrices, do 125 TFLOP/s. (Sheets like to
# print twice as much, "with sparsity".)
#
# And now the 70B. Its weights take 128.5 GiB, so two cards of 80. For each token of one user every weight is read once,
# except for the embedding table, of which a token reads one row: 137.4 GB at 2 · 2.04 TB/s take 33.7 ms. **At most 29.7
# tokens a second.** No FLOP was counted, and we are within 40 % of the truth.

# %% [markdown]
# ## The naive version
#
# The spec-sheet method, to watch it fail here as well. `FmaProbe` finds the peak of this machine with nothing but
# multiply-adds in registers. The library's `llama-70m`, 67 million random weights in fp32, plays the 70B.
#
# `recorded` measures on your machine when you run the notebook; what is printed here was measured on the machine named
# under the figure.

# %%
from importlib.util import find_spec
from time import perf_counter

import torch

from minillm import plots
from minillm.bench.decode import fast_copy, load_size
from minillm.bench.pieces import whole_step
from minillm.bench.recorded import recorded
from minillm.perf.cost import Phase, operations, total
from minillm.perf.fma_probe import FmaProbe
from minillm.perf.probe import ReadProbe


def peak_here() -> float:
    """FLOP/s of multiply-adds in registers, or of a product of large matrices where numba isn't installed."""
    if find_spec("numba"):
        return FmaProbe().flops_per_s()
    x, times = torch.ones(1024, 1024), []
    for _ in range(5):
        started = perf_counter()
        x @ x
        times.append(perf_counter() - started)
    return 2 * 1024**3 / min(times)


@torch.inference_mode()
def measure_naively() -> dict:
    """Seconds of two decode steps and a prefill: by FLOPs alone, by bytes alone, and on the clock."""
    some_model = fast_copy(load_size("llama-70m", torch.float32)[0])  # linears of chapter 06, if numba is installed
    shape, found = read_shape("llama-70m"), {}
    flops_per_s, bytes_per_s = peak_here(), ReadProbe(256 * 2**20).bytes_per_s()
    phases = {"decode, 1 user": (1, 1, 128), "decode, 4 users": (4, 1, 128), "prefill, 256": (1, 256, 256)}
    for name, (batch_size, query_len, seq_len) in phases.items():
        parts = operations(shape, Phase(batch_size, query_len, seq_len), Precision(bits=32))
        step, times = whole_step(some_model, batch_size, query_len, seq_len), []
        for _ in range(8):
            started = perf_counter()
            step()
            times.append(perf_counter() - started)
        everything = total(parts)
        num_bytes = everything.weight_bytes + everything.kv_bytes
        found[name] = [everything.flops / flops_per_s, num_bytes / bytes_per_s, sorted(times[1:])[3]]
    return {"ridge": flops_per_s / bytes_per_s, "steps": found}


naive = recorded("05_naive", measure_naively)

# %% tags=["hide-input"]
fig, axes = plots.figure(7.2, 2.6, 1, 3)
for ax, (name, times) in zip(axes, naive.values["steps"].items(), strict=True):
    ax.barh(["FLOPs ÷ peak", "bytes ÷ bandwidth", "measured"], [1e3 * t for t in times], height=0.6, color=[plots.ORANGE, plots.GREEN, plots.BLUE])
    for row, seconds in enumerate(times):
        ax.text(1e3 * seconds, row, f" {1e3 * seconds:,.1f}" if seconds < 0.01 else f" {1e3 * seconds:,.0f}", va="center", size=10.5)
    ax.set(xlim=(0, 1.5e3 * max(times)), xlabel="ms")
    ax.set_title(name, fontsize=11.5)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    if ax is not axes[0]:
        ax.set_yticklabels([])
plots.show(fig, alt="Time of two decode steps and a prefill: predicted from FLOPs, predicted from bytes, and measured.", record=naive)

# %% [markdown]
# For the prefill the sheet is off by a factor of about two. For decode it promises many times too much, and the bytes
# are the better prophet. Something decides which one to believe.

# %% [markdown]
# ## The idea
#
# ### Intensity
#
# An operation has to do $f$ FLOPs and to move $q$ bytes. A card does both at the same time, so it takes as long as the
# slower:
#
# $$t = \max\Big(\frac{f}{F},\ \frac{q}{B}\Big), \qquad\text{that is, at a speed of}\qquad \frac{f}{t} = \min(F,\ I \cdot B), \quad I = \frac{f}{q} .$$
#
# $I$ is the arithmetic intensity of chapter 01, FLOPs a byte. Drawn over $I$, the speed is a slope that ends under a
# flat roof: the **roofline** (屋顶线模型). The corner is the **ridge point** (屋脊点), $I^* = F/B$. Left of it memory is the
# limit, right of it arithmetic. Of your program, only $I$ appears in it.
#
# For a product of $M$ rows with a matrix of $K \times N$ weights, inputs, weights and results cross the bus once:
#
# $$I = \frac{2MNK}{w\,(MK + KN + MN)}, \qquad w\ \text{bytes a number.}$$
#
# By hand, in bf16 ($w = 2$), for $K = N = 4096$. One row: 33.6 million FLOPs, 33.6 million bytes, $I = 1$. With
# $M = 64$: 64 times the FLOPs, and the bytes grow from 33.6 to 34.6 million, $I = 62$. So as long as $M$ is small,
# **intensity is the number of rows** in 16 bits, $2M/w$ in general. A row is a user in decode, a token in prefill.

# %%
for num_rows in (1, 64, 4096):
    print(f"{num_rows:5} rows: {formulas.gemm_intensity(num_rows, 4096, 4096):7.1f} FLOPs a byte; the A100 has its ridge at {a100.ridge():.0f}")

# %% [markdown]
# Here is Llama 2 70B under the roof of an A100, each dot computed from its `config.json`. Sequences hold 2,048 tokens.

# %% tags=["hide-input"]
from matplotlib.patches import FancyArrowPatch

from minillm.perf.roofline import attainable_flops_per_s

batches = (1, 4, 16, 64, 256)
steps = {b: operations(big, Phase.decode(b, 2048)) for b in batches}


def products_of(parts):
    return total(part for part in parts if part.kind == "linear")


def attention_of(parts):
    return next(part for part in parts if part.kind == "attention")


h100 = find_hardware("H100 SXM")
fig, ax = plots.figure(7.2, 5.4)
xs = [0.4 * 1.02**i for i in range(500)]
roof = [attainable_flops_per_s(x, a100) / 1e12 for x in xs]
ax.loglog(xs, roof, color=plots.INK, linewidth=3, zorder=2)
under = plots.tint(plots.YELLOW, 0.12)
ax.fill_between(xs, 0.1, roof, color=under, linewidth=0)
ax.axvline(a100.ridge(), color=plots.MUTED, linestyle=(0, (2, 3)), linewidth=1.2)
ax.text(a100.ridge() * 1.06, 0.62, f"ridge\n{a100.ridge():.0f} FLOPs/byte", size=10, color=plots.MUTED, va="bottom")
ax.text(1.1, 0.62, "waits for memory", size=11, color=plots.MUTED, style="italic")
ax.text(3900, 1.9, "waits for\narithmetic", size=11, color=plots.MUTED, style="italic", ha="right")
ax.text(3900, 262, "roof: 312 TFLOP/s", size=10.5, ha="right", va="top")
ax.text(0.5, 1.5, "the slope: 2.04 TB/s", size=10.5, rotation=38, rotation_mode="anchor", va="bottom")
slide = [(1.7, 8.5), (62, 310)]
ax.add_patch(FancyArrowPatch(*slide, arrowstyle="-|>", mutation_scale=22, color=plots.BLUE, linewidth=2.4))
ax.text(7.6, 78, "more users: each weight\nserves more rows", size=11, color=plots.BLUE, ha="right")
for b in batches:
    spot = products_of(steps[b]).intensity
    height = attainable_flops_per_s(spot, a100) / 1e12
    ax.plot(spot, height, "o", color=plots.BLUE, markersize=11, zorder=5, markeredgecolor=plots.PAPER)
    label = f"1 user: {height / 312:.2%} of the peak" if b == 1 else f"{b} users"
    offset, side = {64: ((12, -22), "center"), 256: ((10, -22), "center")}.get(b, ((9, -11), "left"))
    ax.annotate(label, (spot, height), offset, textcoords="offset points", ha=side, size=10.5, color=plots.BLUE)
still = attention_of(steps[1]).intensity
for b, size in ((1, 7), (16, 14), (256, 21)):
    spot = attention_of(steps[b]).intensity
    ax.plot(spot, attainable_flops_per_s(spot, a100) / 1e12, "o", markersize=size, markerfacecolor="none", markeredgecolor=plots.ORANGE, markeredgewidth=1.5, zorder=6)
ax.plot([still * 1.15, 16], [still * a100.bytes_per_s / 1e12 * 0.7, 7], color=plots.ORANGE, linewidth=1.2, zorder=3)
ax.text(12, 6.4, "attention in decode:\n1, 16 and 256 users,\nall in one place", color=plots.ORANGE, size=10.5, va="top")
prefill = operations(big, Phase.prefill(1, 2048))
for name, part, side in (("products", products_of(prefill), "left"), ("attention", attention_of(prefill), "right")):
    ax.annotate(f"prefill,\n{name}", (part.intensity, 312), (-8 if side == "left" else 8, 9), textcoords="offset points", ha=side, size=10.5, color=plots.PURPLE)
    ax.plot(part.intensity, 312, "s", color=plots.PURPLE, markersize=10, zorder=5, markeredgecolor=plots.PAPER)
ax.set(xlim=(0.4, 4200), ylim=(0.5, 700), xlabel="intensity: FLOPs for each byte moved", ylabel="TFLOP/s at most")
ax.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
ax.set_yticks([1, 10, 100], ["1", "10", "100"])
plots.show(fig, alt="Roofline of an A100: the matrix products of decode climb the slope as the batch grows from 1 to 256, attention stays at 8 FLOPs a byte, prefill is on the flat roof.")

# %% [markdown]
# The blue dot slides up as users are added: that is all that batching does, and it is a lot. At one user the card runs
# at 0.65 % of its peak, which is one over the ridge. And the factor of 212 is 153 · 1.39: the ridge, times 29.7 / 21.3,
# since gpt-fast reaches 72 % of the bandwidth.
#
# Attention, in orange, stays where it is. That is why the rest of the course is long.
#
# ### Attention doesn't move
#
# In decode, each number of a user's K or V is read for one token: the user's newest. It meets one number of each query
# head that shares it, $H / H_\text{kv}$ of them, at 2 FLOPs. With $w$ bytes a number
#
# $$I_\text{attention} = \frac{2H}{w\,H_\text{kv}} :$$
#
# 1 in bf16 when no head shares, 8 for the 70B with 64 heads on 8. More users bring more queries *and* more keys.
# Neither batch nor text length is in the formula. Latent attention goes furthest: 128 heads share one vector, and it
# serves as K and as V. (Scores use all 576 numbers, values 512 of them, so 242; queries and
# results bring it to 216 at 2,048 tokens.) What moves a dot, and where to?

# %% tags=["hide-input"]
def product_intensity(bits=16, rows=16):
    w_up = next(part for part in operations(big, Phase.decode(rows, 2048), Precision(bits=bits)) if part.name == "w_up")
    return w_up.intensity


def named(shape, batch_size, name, **numbers):
    return next(part for part in operations(shape, Phase.decode(batch_size, 2048), Precision(**numbers)) if part.name == name).intensity


v3 = SHAPES["DeepSeek-V3"]
lanes = [
    ("products: from 1 to 256 users", product_intensity(rows=1), product_intensity(rows=256), plots.BLUE),
    ("products, 16 users: 4-bit weights", product_intensity(), product_intensity(bits=4), plots.BLUE),
    ("products, 256 users: 8 of 256 experts", named(v3, 256, "w_up"), named(v3, 256, "experts.w_up"), plots.BLUE),
    ("attention: from 1 to 256 users", still, still, plots.ORANGE),
    ("attention: a cache of 8 bits", still, named(big, 16, "attention", kv_bits=8), plots.ORANGE),
    ("attention: 8 heads share K and V", named(SHAPES["Llama 2 7B"], 16, "attention"), still, plots.ORANGE),
    ("attention: 128 heads share a latent", named(SHAPES["Llama 2 7B"], 16, "attention"), named(v3, 16, "attention"), plots.ORANGE),
]
fig, ax = plots.figure(7.2, 4.0)
for row, (name, start, end, color) in enumerate(lanes):
    ax.plot(start, row, "o", color=plots.PAPER, markeredgecolor=color, markeredgewidth=1.8, markersize=9, zorder=4)
    if start != end:
        ax.add_patch(FancyArrowPatch((start, row), (end, row), arrowstyle="-|>", mutation_scale=15, color=color, linewidth=2.2, shrinkA=6, shrinkB=5, zorder=3))
    ax.plot(end, row, "o", color=color, markersize=9, zorder=5)
    ax.text(2600, row, f"{start:.0f} → {end:.0f}" if start != end else f"stays at {start:.0f}", va="center", ha="right", size=10, color=color)
for card, words, side in ((a100, "A100 ", "right"), (h100, " H100", "left")):
    ax.axvline(card.ridge(), color=plots.MUTED, linestyle=(0, (2, 3)), linewidth=1.2)
    ax.text(card.ridge(), -0.75, words, ha=side, size=10, color=plots.MUTED)
ax.set(xscale="log", xlim=(0.7, 3000), ylim=(6.6, -1.0), xlabel="intensity (FLOPs a byte); dashed: ridges", yticks=range(len(lanes)))
ax.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
ax.set_yticklabels([lane[0] for lane in lanes])
ax.grid(axis="y", visible=False)
plots.show(fig, alt="Arrows show how batching, fewer bits, experts, shared KV heads and latent attention move operations along the intensity axis.")

# %% [markdown]
# Six arrows and a dot that stays. Most chapters from 09 to 24 are one of these arrows. (The last two start at Llama 2
# 7B, that of the experts at DeepSeek-V3's first layers, which have none.)
#
# ### The ridge moves, too
#
# From A100 to H100 arithmetic grew 3.2 times and bandwidth 1.6 times, so the ridge went up. The H200 is an H100 with
# faster memory, which is to say, a card for decoding.

# %% tags=["hide-input"]
from minillm.perf.gpus import GPUS

fig, ax = plots.figure(7.2, 3.9)
span = [0.2, 11]
for ridge in (100, 200, 400):
    ax.loglog(span, [ridge * x for x in span], color=plots.GRID, linewidth=1.4, zorder=1)
    x = {100: 4.5, 200: 1.35, 400: 0.85}[ridge]
    ax.text(x, ridge * x * 1.04, f"ridge {ridge}", size=9.5, color=plots.MUTED, rotation=30, rotation_mode="anchor")
seen = {}
for card in GPUS:
    name = card.name.rsplit(" ", 1)[0]
    if name in ("A10", "L4", "RTX 4090", "A100 SXM", "H100 SXM", "H200 SXM") and name not in seen:
        seen[name] = (card.bytes_per_s / 1e12, card.peak("bf16") / 1e12)
        main = name.endswith("SXM")
        ax.plot(*seen[name], "o", markersize=10, color=plots.BLUE if main else plots.GREY, zorder=4)
        side = {"A10": (9, -4), "L4": (9, -4), "RTX 4090": (9, -4), "A100 SXM": (10, -6), "H100 SXM": (-8, 9), "H200 SXM": (9, 6)}[name]
        words = f"{name.removesuffix(' SXM')}: {card.ridge():.0f}"
        ax.annotate(words, seen[name], side, textcoords="offset points", size=11, ha="right" if name == "H100 SXM" else "left")
for start, end in (("A100 SXM", "H100 SXM"), ("H100 SXM", "H200 SXM")):
    ax.add_patch(FancyArrowPatch(seen[start], seen[end], arrowstyle="-|>", mutation_scale=16, color=plots.BLUE, linewidth=1.6, shrinkA=7, shrinkB=7, zorder=3))
ax.set(xlim=span, ylim=(70, 1700), xlabel="bandwidth (TB/s)", ylabel="bf16, dense (TFLOP/s)")
ax.set_xticks([0.3, 0.6, 1, 2, 4, 8], ["0.3", "0.6", "1", "2", "4", "8"])
ax.set_yticks([100, 200, 400, 1000], ["100", "200", "400", "1,000"])
ax.set_xticks([], minor=True)
ax.set_yticks([], minor=True)
plots.show(fig, alt="Cards by bandwidth and bf16 peak with diagonals of equal ridge: A100 to H100 goes steeply up, H100 to H200 goes right.")

# %% [markdown]
# ### The ridge is not the batch
#
# How many rows $M$ does a product need to be bound by compute? Not $I^*$, since inputs and results move as well. With $w$
# bytes a weight and 2 bytes an input or result, set $2MNK = I^* (w\,KN + 2M(K+N))$:
#
# $$M^* = \frac{w}{2} \cdot \frac{I^*}{1 - I^*\,(1/K + 1/N)} .$$
#
# For the 70B's $8192 \times 28672$ on an A100: 157 rows in bf16, 40 with weights of 4 bits. For a matrix of 256 × 256
# the denominator is negative: with any number of rows its intensity stays below $KN/(K+N) = 128$. However many users
# come, a small model never leaves the slope.

# %% [markdown]
# ## The real version
#
# ### What a block costs
#
# The cost model reads a `config.json` into matrices and heads (a `ModelShape`), takes a phase, and lists what runs. A
# phase says that each of `batch_size` sequences brings `query_len` new tokens and then holds `seq_len`: prefill brings
# all of them, decode one. `source` shows the library's own code; here are the two entries that matter:

# %%
from minillm.bench.show import source
from minillm.perf import cost

source(cost._linear)
source(cost._attention)

# %% [markdown]
# A linear layer's FLOPs grow with tokens; its weights don't. (`copies` are the experts of a mixture; other matrices have
# one.) Attention is the operation that knows `seq_len`. A query and a key that it may see cost $2d$ FLOPs for the score
# and $2d$ for adding up the value, in each *query* head. A new token sees everything up to itself. If 3 of 5 tokens are
# new, they see 3 + 4 + 5 = 12: `num_pairs`. A whole prompt of $s$ has $s(s+1)/2$ pairs, a decode step $s$.
#
# Attention moves queries, results, the new K and V on their way into the cache, and all K and V of its sequence on their
# way out, once, for *KV* heads only. Scores never leave the chip in this model: that is FlashAttention (chapter 10). The
# naive attention of chapter 02 writes and reads every score and every probability, 8 bytes for the $4d = 512$ FLOPs of
# a pair: 64 at most, left of the ridge.
#
# Is the list right? Let it predict the products that torch really runs in our bundled model. (`count_flops` counts
# masked pairs as well, so we add them.)

# %%
import minillm
from minillm.perf.flops import count_flops

small, num_tokens = read_shape("stories-5m"), 100
model = minillm.load_model()
with torch.inference_mode():
    counted = count_flops(lambda: model(torch.arange(num_tokens)))
listed = operations(small, Phase(1, num_tokens, num_tokens, num_logits=num_tokens))
masked_pairs = num_tokens * (num_tokens - 1) // 2
spec = model.layer_specs[0]
print(f"{counted:,} FLOPs counted, as many as predicted")
assert counted == total(listed).flops + 4 * masked_pairs * spec.num_heads * spec.k_head_dim * len(model.layer_specs)

# %% [markdown]
# Now the times. For Llama 3 8B and sequences of 4,096 tokens, how long would an A100 compute, and how long move bytes?
# The later dot is the time that counts.

# %% tags=["hide-input"]
from minillm.perf.roofline import operation_seconds

eight = SHAPES["Llama 3 8B"]
names = ["wq", "wk", "wv", "attention", "wo", "w_gate", "w_up", "w_down", "lm_head"]
fig, axes = plots.figure(7.2, 4.2, 1, 2, sharey=True)
for ax, title, phase in ((axes[0], "decode, 16 users", Phase.decode(16, 4096)), (axes[1], "prefill, one prompt", Phase.prefill(1, 4096))):
    parts = {part.name: part for part in operations(eight, phase)}
    for row, name in enumerate(names):
        computing, moving = (1e3 * x for x in (parts[name].flops / a100.peak(), parts[name].num_bytes / a100.bytes_per_s))
        color = plots.ORANGE if computing > moving else plots.BLUE
        ax.plot([computing, moving], [row, row], color=plots.tint(color, 0.6), linewidth=3.5, zorder=2)
        ax.plot(computing, row, "o", color=plots.ORANGE, markersize=9, zorder=3, label="computing" if row == 0 else None)
        ax.plot(moving, row, "o", color=plots.BLUE, markersize=9, zorder=3, label="moving bytes" if row == 0 else None)
    seconds = sum(operation_seconds(parts[name], a100) for name in names)
    ax.set_title(f"{title}: {1e3 * seconds:,.0f} ms", fontsize=11.5)
    ax.set(xscale="log", xlabel="ms in the whole forward", yticks=range(len(names)), xlim=(2e-3, 300))
    ax.set_xticks([0.01, 0.1, 1, 10, 100], ["0.01", "0.1", "1", "10", "100"])
    ax.grid(axis="y", visible=False)
axes[0].set_yticklabels(names)
axes[0].set_ylim(8.6, -0.6)
axes[0].legend(loc="upper right", fontsize=9.5, handletextpad=0.3, borderaxespad=0.0)
plots.show(fig, alt="Time for computing and time for moving bytes of each operation: in decode moving is far later for all, in prefill computing is, except for the last product.")

# %% [markdown]
# The two halves of one request are mirror images. The exception: in prefill `lm_head` waits for memory, because only
# the last token meets the vocabulary, one row. And with 16 users attention is the longest single operation of decode.
#
# ### A square and a straight line: prompts and caches
#
# In a prefill of $s$ tokens the products do $2Ps$ FLOPs with the $P$ weights of the blocks, and attention $2 L H
# d\,s(s+1)$. The second overtakes at $s \approx P / (L H d)$. The right picture is about space: at 4,096 tokens each,
# where does a card of 80 GiB end?

# %% tags=["hide-input"]
lens = [256 * 1.02**i for i in range(316)]
fig, (left, right) = plots.figure(7.2, 3.7, 1, 2, width_ratios=[4, 5])
marks = {"Llama 3 8B": plots.BLUE, "Llama 2 70B": plots.PURPLE}
for name, color in marks.items():
    shares = []
    for n in lens:
        parts = operations(SHAPES[name], Phase.prefill(1, int(n)))
        shares.append(100 * attention_of(parts).flops / total(parts).flops)
    left.semilogx(lens, shares, color=color, label=name)
    crossing = next(n for n, share in zip(lens, shares) if share >= 50)
    left.plot(crossing, 50, "o", color=color, zorder=4)
left.axhline(50, color=plots.MUTED, linestyle=(0, (2, 3)), linewidth=1.2)
left.set(xlabel="prompt (tokens)", ylabel="% of prefill FLOPs", ylim=(0, 80), xlim=(256, 131_072))
left.set_xticks([256, 2048, 16_384, 131_072], ["256", "2k", "16k", "128k"])
left.set_xticks([], minor=True)
left.set_title("Attention's share", fontsize=11.5)
left.legend(loc="upper left", fontsize=9.5)
users = [1, 4, 16, 64]
for offset, name, color in ((-0.2, "Llama 2 7B", plots.ORANGE), (0.2, "Llama 3 8B", plots.BLUE)):
    shape = SHAPES[name]
    stored = stored_weight_bytes(shape, Precision()) / GIB
    for place, count in enumerate(users):
        cached = count * 4096 * kv_cache_bytes_per_token(shape, Precision()) / GIB
        right.bar(place + offset, stored, width=0.36, color=plots.tint(plots.GREY, 0.6), label="weights" if place == 0 and offset < 0 else None)
        right.bar(place + offset, cached, bottom=stored, width=0.36, color=color, label=f"KV, {name}" if place == 0 else None)
        if stored + cached > 110:
            for height in (92, 94.5):  # the bar is cut
                right.plot([place + offset - 0.21, place + offset + 0.21], [height - 1.5, height + 1.5], color=plots.PAPER, linewidth=2)
            right.text(place + offset, 103, f"{stored + cached:.0f}", ha="center", va="top", size=10, color=plots.PAPER)
right.axhline(80, color=plots.RED, linewidth=1.6)
right.text(-0.42, 82, "the card", color=plots.RED, size=10, va="bottom")
right.set(ylim=(0, 104), xlabel="users of 4,096 tokens each", ylabel="GiB", xticks=range(len(users)))
right.set_xticklabels(users)
right.legend(loc="center left", fontsize=9, bbox_to_anchor=(0.0, 0.62))
right.set_title("Filling 80 GiB", fontsize=11.5)
plots.show(fig, alt="Left: attention's share of prefill FLOPs reaches half beyond fifty thousand tokens. Right: weights and KV cache against an 80 GiB card for 1 to 64 users.")
print(f"attention overtakes the products at {(eight.num_parameters - 2 * 128_256 * 4096) / (32 * 4096):,.0f} tokens in Llama 3 8B")

# %% [markdown]
# Prompts have to be long before the famous square matters. The straight line matters at once: 33 users of 4,096 tokens
# fill what Llama 2 7B leaves of the card. Llama 3 8B, with four query heads on each KV head, admits 130.
#
# ### Experts
#
# Which weights does a mixture read? If a token chooses $k$ of $E$ experts, all alike and independently, one expert
# stays unvisited by $T$ tokens with probability $(1 - k/E)^T$. It wakes with the rest of the probability, and averages
# of single experts add up, so on average
#
# $$E \cdot \big(1 - (1 - k/E)^T\big)$$
#
# experts wake: `experts_touched` above. Real routers have favourites; a task asks what becomes of it then.

# %% tags=["hide-input"]
rows = ["| tokens in a step | Mixtral wakes, of 8 | rows for each | DeepSeek-V3 wakes, of 256 | rows for each |", "|--:|--:|--:|--:|--:|"]
for tokens in (1, 4, 16, 64, 256):
    eighth, thirtysecond = formulas.experts_touched(8, 2, tokens), formulas.experts_touched(256, 8, tokens)
    rows.append(f"| {tokens} | {eighth:.1f} | {2 * tokens / eighth:.1f} | {thirtysecond:.0f} | {8 * tokens / thirtysecond:.1f} |")
Markdown("\n".join(rows))

# %% [markdown]
# A batch of 64 reads 87 % of DeepSeek-V3's experts and gives each 2.3 rows: the weights of a huge model, the intensity
# of two users. "Only 37 B active" is a statement about FLOPs. Mixtures want batches of thousands: chapter 27.
#
# ### Several cards
#
# **Tensor parallelism** (chapter 26) gives each of $p$ cards $1/p$ of every matrix and of the heads. A KV head can't be
# cut: with more cards than KV heads, every card holds a copy of one. Twice a layer the cards sum up what they have, an
# *all-reduce*: each sends $2(p-1)/p$ times the $h$ numbers of every new token.
#
# The **computation-to-communication ratio** (CCR, 计算通信比) is the FLOPs a card does for each byte that it sends. Peak over
# CCR is the link that a busy card needs. For one prompt of 2,048 tokens:

# %%
from minillm.perf.sharding import communication, shard

rows = ["| cards | weights each | KV heads each | CCR | needs a link of at least | all-reduces a step |", "|--:|--:|--:|--:|--:|--:|"]
for tp_size in (2, 4, 8, 16):
    part, phase = shard(big, tp_size), Phase.prefill(1, 2048)
    sent = communication(big, phase, Precision(), tp_size)
    ccr = formulas.compute_to_communication_ratio(total(operations(part, phase)).flops, sent.num_bytes)
    link = formulas.required_link_bytes_per_s(a100.peak(), ccr)
    rows.append(
        f"| {tp_size} | {stored_weight_bytes(part, Precision()) / GIB:.1f} GiB | {part.layers[0].attention.num_kv_heads} "
        f"| {ccr:,.0f} | {link / 1e9:.0f} GB/s | {sent.count} |"
    )
Markdown("\n".join(rows))

# %% [markdown]
# NVLink gives an A100 300 GB/s in each direction, PCI Express 32. So eight cards prefill well over the first and starve
# over the second. In decode with one user the same 160 all-reduces carry 28 kB each, and latency is the price: at 20 µs
# each (fitted to gpt-fast below), 3.2 ms a token, however wide the link. With 64 users they carry 1.8 MB, and a slow
# link counts again.
#
# ### Inside the card
#
# Main memory (**HBM**, 高带宽显存) is not the only slope. The **L2 cache** (二级缓存) between HBM and cores delivers 5,120
# bytes a clock on an A100: at 1.41 GHz, 7.2 TB/s. If each *query* head of a decode kernel loads its K and V, heads that
# share a KV head load the same bytes again, from L2:

# %% tags=["hide-input"]
rows = ["| 64 users, 4,096 tokens, one layer | from HBM | through L2 | HBM: at least | L2: at least | speedup |", "|---|--:|--:|--:|--:|--:|"]
for name, num_kv_heads in (("32 KV heads (MHA)", 32), ("8 KV heads (GQA)", 8), ("1 KV head (MQA)", 1)):
    loaded = formulas.kv_bytes_loaded_by_head(64, 4096, 32, 128)
    from_hbm = loaded * num_kv_heads // 32
    hbm_s, l2_s = from_hbm / a100.bytes_per_s, loaded / a100.l2_bytes_per_s
    speedup = (loaded / a100.bytes_per_s) / max(hbm_s, l2_s)
    rows.append(f"| {name} | {from_hbm / GIB:.2f} GiB | {loaded / GIB:.0f} GiB | {1e3 * hbm_s:.2f} ms | {1e3 * l2_s:.2f} ms | {speedup:.1f}× |")
Markdown("\n".join(rows))

# %% [markdown]
# Eight KV heads should be four times as fast as 32, and one head 32 times. Both end at 3.5, bound by L2, until a kernel
# loads a KV head once and serves the whole group from it: chapter 11.
#
# ### The planner
#
# All of it together is `minillm plan`. Operations run one after another: each takes the time of its own slower side, then
# they are summed. (Sums first give a bound: one operation may then read while another computes.)

# %%
source(operation_seconds)

# %% [markdown]
# The shares have names. **MFU**, model FLOPs utilization, is the FLOPs that had to be done, over peak times time; chapter
# 03 measures it. **Model bandwidth utilization** (MBU, 带宽利用率) is the bytes that had to be moved, over bandwidth times
# time. By default MFU is 0.6, from TensorRT-LLM's prefill on A100s, and MBU 0.7, fitted to gpt-fast below (sources:
# [`Assumptions`](../minillm/perf/deployment.py)).
#
# How many users at most? Memory says so by a division: 0.9 of the card (the rest is the runtime's), less weights, over
# the cache of one user at the *end* of the answer. If users are promised a time between tokens as well, a larger batch
# never takes less, so bisection finds the largest that keeps the promise.
#
# Now ask the question of the first paragraph:

# %%
from minillm.perf.plan import plan
from minillm.perf.plan_report import report

print("predicted:\n\n" + report(plan(big, a100, prompt_len=1024, output_len=256)).split("\n\nIf it did")[0])

# %% [markdown]
# It doesn't fit; the last line says what would. With 4-bit weights (`minillm plan config.json --gpu A100 --bits 4
# --batch 16 --prompt 1024 --output 256` prints the same). TTFT is the time to the first token, ITL (inter-token latency)
# the time between two:

# %%
print("predicted:\n\n" + report(plan(big, a100, batch_size=16, prompt_len=1024, output_len=256, bits=4)))

# %% [markdown]
# The products reach the ridge at 42 users and not at 40: with scales and zero points these weights have 4.16 bits, and
# the narrow `wk` and `wv` need more rows. The whole step crosses at 75 although attention never does, since that line
# sums first. And norms, whose FLOPs we don't count, still move 28 GiB in prefill: nothing is fused here.
#
# ## Measured
#
# ### Somebody else's cards
#
# [gpt-fast](https://github.com/pytorch-labs/gpt-fast) publishes 13 rates for Llama 2 on A100s, at batch 1. Our bound
# must lie above each of them; the estimate should be near. (Three rows chose its share of bandwidth and its latency of
# an all-reduce: the 7B in 16 bits on 1, 2 and 8 cards. The others are predictions.)

# %%
published = [  # model, bits, cards, tokens/s
    ("Llama 2 7B", 16, 1, 104.9), ("Llama 2 7B", 8, 1, 155.58), ("Llama 2 7B", 4, 1, 196.8),
    ("Llama 2 7B", 16, 2, 168.84), ("Llama 2 7B", 16, 4, 254.02), ("Llama 2 7B", 16, 8, 328.43),
    ("Llama 2 70B", 8, 1, 19.13), ("Llama 2 70B", 4, 1, 25.25), ("Llama 2 70B", 16, 2, 21.32),
    ("Llama 2 70B", 16, 4, 38.01), ("Llama 2 70B", 16, 8, 62.5), ("Llama 2 70B", 8, 8, 80.44), ("Llama 2 70B", 4, 8, 90.77),
]  # fmt: skip
predicted = []
for name, bits, cards, rate in published:
    answer = plan(SHAPES[name], a100, prompt_len=5, output_len=200, bits=bits, group_size=32 if bits == 4 else None, tp_size=cards)
    predicted.append((1 / answer.least_itl_mean_s, answer.decode_tokens_per_s))
    assert rate < 1 / answer.least_itl_mean_s, "faster than possible"
for words, wanted in (("16 bits", {16}), ("fewer bits", {8, 4})):
    ratios = [estimate / row[3] for row, (_, estimate) in zip(published, predicted, strict=True) if row[1] in wanted]
    print(f"{words}: predicted ÷ published from {min(ratios):.2f} to {max(ratios):.2f}")

# %% tags=["hide-input"]
fig, ax = plots.figure(7.2, 4.8)
for row, ((name, bits, cards, rate), (bound_rate, estimate)) in enumerate(zip(published, predicted, strict=True)):
    ax.plot([rate, bound_rate], [row, row], color=plots.GRID, linewidth=2, zorder=1)
    ax.plot(bound_rate, row, "|", color=plots.GREEN, markersize=15, markeredgewidth=3, zorder=3, label="bound" if row == 0 else None)
    ax.plot(estimate, row, "D", markerfacecolor=plots.PAPER, markeredgecolor=plots.GREEN, markersize=8, markeredgewidth=1.8, zorder=4, label="estimate" if row == 0 else None)
    ax.plot(rate, row, "o", color=plots.BLUE, markersize=8, zorder=5, label="published" if row == 0 else None)
ax.set(xscale="log", xlim=(12, 1800), ylim=(12.6, -0.6), xlabel="tokens/s, one user, A100 80GB", yticks=range(len(published)))
ax.set_yticklabels([f"{name.removeprefix('Llama 2 ')}, {bits} bits, {cards} card{'s' if cards > 1 else ''}" for name, bits, cards, _ in published], fontsize=10)
ax.set_xticks([20, 50, 100, 200, 500, 1000], ["20", "50", "100", "200", "500", "1,000"])
ax.set_xticks([], minor=True)
ax.grid(axis="y", visible=False)
ax.legend(loc="upper left", ncols=3, bbox_to_anchor=(0, 1.12), fontsize=10)
plots.show(fig, alt="Thirteen published token rates with the bound and the estimate of the cost model: all lie below the bound, most near the estimate.")

# %% [markdown]
# No dot beats its bound. So this is how far off the napkin is: a quarter at most in 16 bits, and that for a row it was
# fitted to, the 7B on eight cards. With fewer bits it promises up to 1.8 times what comes: it takes unpacking for free.
#
# ### This machine
#
# At home we needn't assume 0.7. We measure the *pieces*: products, attention, and everything else, in turn as a step
# runs them, each on a clock of its own. (Products alone, again and again, would find weights in the nearest cache and
# threads awake.) None is fitted to a whole step. Their sum predicts steps that were not measured yet.

# %%
from minillm.bench import predict


def measure_pieces() -> list:
    """[step, products, attention, the rest, measured, bytes ÷ bandwidth] of llama-70m, in seconds."""
    settings = predict.Plan(
        rounds=4, rows=(1, 2, 4, 8, 16, 64, 192), batch_sizes=(1, 2, 4, 8, 16), decode_len=128, decode_lens=(64, 192),
        prompt_lens=(64, 192), least_s=0.0,
    )  # fmt: skip
    result = predict.measure("llama-70m", settings, ReadProbe(256 * 2**20))
    return [
        [[f.step.batch_size, f.step.query_len], f.products_s, f.attention_s, f.rest_s, f.measured_s, f.read_s]
        for f in result.forecasts
    ]


pieces = recorded("05_pieces", measure_pieces)

# %% tags=["hide-input"]
llama_70m, one_user = read_shape("llama-70m"), naive.values["steps"]["decode, 1 user"]
peak = total(operations(llama_70m, Phase.decode(1, 128), Precision(bits=32))).flops / one_user[0]
fig, (left, right) = plots.figure(7.2, 4.2, 1, 2, width_ratios=[5, 3])
decoded, prefilled = ([row for row in pieces.values if (row[0][1] == 1) == is_decode] for is_decode in (True, False))
for ax, wanted, title, xlabel in ((left, decoded, "decode", "users"), (right, prefilled, "prefill", "tokens")):
    for place, (step, products_s, attention_s, rest_s, measured_s, read_s) in enumerate(wanted):
        bottom = 0
        for name, seconds, color in (("products", products_s, plots.GREEN), ("attention", attention_s, plots.ORANGE), ("the rest", rest_s, plots.GREY)):
            ax.bar(place - 0.2, 1e3 * seconds, bottom=1e3 * bottom, width=0.36, color=color, label=name if place == 0 else None)
            bottom += seconds
        ax.bar(place + 0.2, 1e3 * measured_s, width=0.36, color=plots.BLUE, label="measured" if place == 0 else None)
        batch_size, query_len = step
        phase = Phase(batch_size, query_len, 128 if query_len == 1 else query_len)
        computing = total(operations(llama_70m, phase, Precision(bits=32))).flops / peak
        for seconds, style, name in ((read_s, "-", "bytes ÷ bandwidth"), (computing, (0, (2, 1)), "FLOPs ÷ peak")):
            if seconds is not None:
                ax.plot([place - 0.42, place + 0.42], [1e3 * seconds] * 2, color=plots.INK, linewidth=1.8, linestyle=style, label=name if place == 0 else None)
    ax.set(xticks=range(len(wanted)), xlabel=xlabel, ylabel="ms a step" if ax is left else "")
    ax.set_xticklabels([str(row[0][0] * row[0][1]) for row in wanted])
    ax.set_title(title, fontsize=11.5)
    ax.set_ylim(0, None)
left.set_xlim(-0.6, 4.6)
left.legend(loc="upper left", fontsize=9.5)
plots.show(fig, alt="Predicted sums of products, attention and the rest beside measured steps, for decode with 1 to 16 users and prefill of two lengths.", record=pieces)

# %% [markdown]
# The stacks and the blue bars belong together: pieces add up. The black lines are the two sides of the roof. Bytes over
# bandwidth hardly rises with the users, FLOPs over peak grows with them, and where they meet is the ridge: at tens of
# rows, where a GPU needs hundreds.
#
# Now look at 16 users. Both lines are low, and the step takes several times as long. **A roof says what is possible, not
# what this code does.** A product of a few rows is harder to write than one of one row. Chapter 06 tries.

# %% [markdown]
# ## In production
#
# * **vLLM** doesn't trust napkins. It loads the weights, runs one large forward to see what activations take, and cuts
#   what is left of `gpu_memory_utilization` (0.92 by default at the time of writing) into cache blocks.
# * **SGLang** sets aside `--mem-fraction-static` for weights and cache together, **TensorRT-LLM** a
#   `free_gpu_memory_fraction` of what is free after loading.
# * NVIDIA's **Nsight Compute** draws this chapter's picture from hardware counters, a dot for each kernel.
# * This model leaves out queues and arrivals. Chapters 14 and 29 add them.
#
# ## Exercises
#
# In [`exercises/ch05_cost_model.py`](../exercises/ch05_cost_model.py); `python3 tasks.py grade ch05` grades them and
# names what went wrong.
#
# | task | points | prepared by |
# |---|---|---|
# | `cache_bytes`: from a config.json to the cache | 4 | Does it fit? |
# | `product_on_roof`: intensity, speed, and what it waits for | 4 | Intensity · The ridge is not the batch |
# | `block_costs`: FLOPs and bytes of a block in any phase | 6 | What a block costs |
# | `expected_experts`: with favourites | 3 | Experts |
# | `cost_sheet`: a bug hunt, six mistakes that sold the wrong hardware | 5 | Napkin · Several cards |
# | `plan_decode`: the largest batch that fits and is fast enough | 6 | What a block costs · The planner |
#
# ## Check yourself
#
# A deployment by hand. Llama 2 70B (69.0 B parameters, 80 layers, 8 KV heads of 128) with 4-bit weights (4.16 bits with
# scales and zero points) on one H200 (141 GiB, 4.8 TB/s, 989 TFLOP/s); 64 users, prompts of 3,500 tokens, answers of
# 500. Take 70 % of bandwidth and 60 % of the peak.
#
# <details><summary>1. Does it fit?</summary>
#
# Weights: 69.0 · 10⁹ · 4.16 / 8 = 35.9 GB or 33.4 GiB (the two vocabulary tables stay in 16 bits: 0.7 GiB more). A
# token keeps 2 · 80 · 8 · 128 · 2 bytes = 320 KiB; 64 users of 4,000: 78.1 GiB. Together 112 GiB, of the 127 GiB that
# we allow ourselves (0.9). It fits.
# </details>
#
# <details><summary>2. How long is a decode step in the middle of the answers, and what bounds it?</summary>
#
# Attention reads 64 · 3,750 · 327,680 B = 78.6 GB of cache: at 0.7 · 4.8 TB/s, 23.4 ms. The products read 36.6 GB in
# 10.9 ms, but do 64 · 2 · 69 · 10⁹ = 8.8 TFLOP, at 0.6 · 989 TFLOP/s in 14.9 ms: with 4 bits, 64 users are beyond
# *their* ridge. Together 38.3 ms, 61 % of it for memory. 64 / 0.0383 = 1,670 tokens/s.
# </details>
#
# <details><summary>3. How long does one user wait for the first token, if nobody else is there?</summary>
#
# 2 · 69 · 10⁹ · 3,500 = 483 TFLOP for the products. Attention: 2 · 80 · 64 · 128 · 3,500² = 16 TFLOP, 3 %. At 593
# TFLOP/s: 0.84 s.
# </details>
#
# <details><summary>4. Would 128 users double the throughput? What would an 8-bit cache bring?</summary>
#
# 128 users need 156 GiB of cache: they don't fit. With 8 bits a number their cache takes what that of 64 takes now, and
# is read in the same 23.4 ms. The products, bound by compute, take twice as long, 29.8 ms. Together 53 ms, 2,400
# tokens/s: 1.4 times as many.
# </details>
#
# <details><summary>5. Somebody offers eight A10s (24 GiB, 600 GB/s each, PCI Express) for less money. The same total bandwidth! Do you take them?</summary>
#
# 192 GiB and 4.8 TB/s, indeed. But each layer needs two all-reduces over PCI Express, 32 GB/s. In prefill each card
# sends 16 GB. That takes half a second beside the arithmetic's 0.96: 1.46 s to the first token instead of 0.87. A
# decode step sends 64 rows: 2 · 7/8 · 8192 · 2 B · 64 = 1.8 MB an all-reduce, 57 µs; with 20 µs of latency, 160 of them
# take 12 ms. 53 ms a step instead of 39: it works, a third slower. Now compare prices.
# </details>
#
# Then let the planner check your arithmetic:

# %%
h200 = find_hardware("H200")
answer = plan(big, h200, batch_size=64, prompt_len=3500, output_len=500, bits=4)
print(f"memory: {(answer.memory.weights + answer.memory.kv_cache) / GIB:.0f} of {answer.memory.budget / GIB:.0f} GiB, fits: {answer.memory.fits}")
print(f"predicted: {answer.middle.seconds * 1e3:.1f} ms a step, bound by {answer.middle.bound}; first token after {answer.ttft_s:.2f} s")
answer = plan(big, h200, batch_size=128, prompt_len=3500, output_len=500, bits=4, kv_bits=8)
print(f"predicted for 128 users with a cache of 8 bits: {answer.middle.seconds * 1e3:.1f} ms a step, fits: {answer.memory.fits}")
answer = plan(big, find_hardware("A10"), batch_size=64, prompt_len=3500, output_len=500, bits=4, tp_size=8)
print(f"predicted for eight A10s: {answer.middle.seconds * 1e3:.1f} ms a step, first token after {answer.ttft_s:.2f} s, fits: {answer.memory.fits}")

# %% [markdown]
# ## Sources
#
# * S. Williams, A. Waterman, D. Patterson: *Roofline: an insightful visual performance model for multicore
#   architectures*, Communications of the ACM 52(4), 2009.
# * Y. Sheng et al.: *FlexGen*, 2023, [arXiv:2303.06865](https://arxiv.org/abs/2303.06865), section 3: the formulas for
#   weights and KV, and OPT-175B.
# * R. Pope et al.: *Efficiently Scaling Transformer Inference*, 2022,
#   [arXiv:2211.05102](https://arxiv.org/abs/2211.05102): this cost model on many chips.
# * DeepSeek-AI: *DeepSeek-V3 Technical Report*, 2024, [arXiv:2412.19437](https://arxiv.org/abs/2412.19437), and A. Q.
#   Jiang et al.: *Mixtral of Experts*, 2024, [arXiv:2401.04088](https://arxiv.org/abs/2401.04088): total and active
#   parameters.
# * NVIDIA's data sheets and whitepapers: the source of every figure is in [gpus.py](../minillm/perf/gpus.py).
# * Measurements by others: the README of [gpt-fast](https://github.com/pytorch-labs/gpt-fast) and
#   [vLLM issue 12330](https://github.com/vllm-project/vllm/issues/12330).
#
# Next: [chapter 06](06_gemm.ipynb) takes one product and brings it to the roof.
