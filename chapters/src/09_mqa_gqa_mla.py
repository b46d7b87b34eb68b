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
# # 09 · MQA, GQA, MLA
#
# *Three ways to make a token's share of the cache smaller: share heads, share them all, or keep one small vector that every
# head can be made from, and then not make them.*
#
# Needs: chapters [01](01_whole_system.ipynb), [02](02_building_the_model.ipynb), [03](03_training.ipynb), [05](05_cost_model.ipynb), [08](08_kv_cache.ipynb) ·
# Time: 60 minutes to read, 75 to solve

# %% [markdown]
# ## Why
#
# Chapter 08 bought speed with memory. Here is the bill for a large model. DeepSeek-V3 has 61 layers with 128 attention heads
# of 128 numbers. If it kept a key and a value for every head, one token would occupy 3.8 MiB. A single conversation of 32,768
# tokens would need **122 GiB** of cache: one user, more than one and a half H100s of 80 GB, and the weights aren't loaded yet.
#
# DeepSeek-V3 exists, and serves many users at once. It keeps 68.6 KiB a token, and the same conversation takes 2.1 GiB. No
# number is quantized, no token is forgotten. Where did the other 98 percent go?

# %%
import copy
import time
from random import Random

import torch
from IPython.display import Markdown

import minillm
from minillm import plots
from minillm.bench.recorded import recorded
from minillm.bench.show import source
from minillm.cache import ContiguousCache
from minillm.config import MLAConfig, ModelConfig
from minillm.data.stories import sample_story
from minillm.model import Transformer
from minillm.model.convert_heads import pool_kv_heads
from minillm.model.mla import FORMS, MultiHeadLatentAttention, attend_naive, use_latent_form
from minillm.model.rope import Rope
from minillm.perf.flops import count_flops
from minillm.perf.hardware import find_hardware
from minillm.perf.model_shape import read_shape
from minillm.perf.probe import ReadProbe
from minillm.perf.roofline import attainable_flops_per_s
from minillm.training import document_nats, evaluate_documents
from minillm.training.corpus import held_out_stories

torch.set_num_threads(1)  # the bundled model is too small to share, and one thread is measured more steadily
KIB, GIB = 2**10, 2**30
model = minillm.load_model().requires_grad_(False)
tokenizer = minillm.load_tokenizer()
h100 = find_hardware("H100")
per_token = {"every head kept": 2 * 128 * 128 * 61 * 2, "as it is": (512 + 64) * 61 * 2}  # bytes, bf16
for name, num_bytes in per_token.items():
    print(f"{name:16} {num_bytes / KIB:7,.1f} KiB a token, {32_768 * num_bytes / GIB:6.2f} GiB for 32,768 tokens")

# %% [markdown]
# ## Napkin
#
# $H$ query heads and $H_\text{kv}$ KV heads, each $d$ numbers wide. What a token leaves in one layer:
#
# | | keeps | numbers | with $H = 128$, $d = 128$ |
# |---|---|--:|--:|
# | **multi-head attention** (MHA, 多头注意力) | K and V of each head | $2Hd$ | 32,768 |
# | **grouped-query attention** (GQA, 分组查询注意力) | K and V of each *group* of heads | $2H_\text{kv}d$ | 2,048 with 8 groups |
# | **multi-query attention** (MQA, 多查询注意力) | one K, one V | $2d$ | 256 |
# | **multi-head latent attention** (MLA, 多头潜在注意力) | a latent and one rotated key | $d_c + d_R$ | 512 + 64 = 576 |
#
# The last row is this chapter's goal; what $d_c$ and $d_R$ are comes later. Real models, from the `config.json` of each,
# cut down to what matters here (in the folded cell; `read_shape` is chapter 05's). The last column takes 64 GiB, for example:

# %% tags=["hide-input"]
def config(name, num_layers, hidden_size, num_heads, num_kv_heads, intermediate_size, vocab_size, **more):
    return {
        "_name_or_path": name, "model_type": "llama", "num_hidden_layers": num_layers, "hidden_size": hidden_size,
        "num_attention_heads": num_heads, "num_key_value_heads": num_kv_heads,
        "intermediate_size": intermediate_size, "vocab_size": vocab_size,
    } | more  # fmt: skip


def deepseek(num_experts, chosen, expert_size, num_shared, dense_layers, q_lora_rank, model_type):
    return {
        "model_type": model_type, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "v_head_dim": 128, "q_lora_rank": q_lora_rank, "n_routed_experts": num_experts, "n_shared_experts": num_shared,
        "moe_intermediate_size": expert_size, "num_experts_per_tok": chosen, "first_k_dense_replace": dense_layers,
    }  # fmt: skip


SHAPES = [read_shape(entry) for entry in (
    config("Llama 2 7B", 32, 4096, 32, 32, 11_008, 32_000),
    config("Llama 2 13B", 40, 5120, 40, 40, 13_824, 32_000),
    config("Llama 2 70B", 80, 8192, 64, 8, 28_672, 32_000),
    config("Llama 3 8B", 32, 4096, 32, 8, 14_336, 128_256),
    config("Mistral 7B", 32, 4096, 32, 8, 14_336, 32_000, model_type="mistral"),
    config("Qwen2.5 7B", 28, 3584, 28, 4, 18_944, 152_064, model_type="qwen2"),
    config("Qwen3 32B", 64, 5120, 64, 8, 25_600, 151_936, model_type="qwen3", head_dim=128),
    # Falcon's network has two matrices of width 4h: as many weights as three of 8h/3.
    config("Falcon 7B", 32, 4544, 71, 1, 8 * 4544 // 3, 65_024, model_type="falcon", tie_word_embeddings=True),
    config("DeepSeek-V2-Lite", 27, 2048, 16, 16, 10_944, 102_400, **deepseek(64, 6, 1408, 2, 1, None, "deepseek_v2")),
    config("DeepSeek-V2", 60, 5120, 128, 128, 12_288, 102_400, **deepseek(160, 6, 1536, 2, 1, 1536, "deepseek_v2")),
    config("DeepSeek-V3", 61, 7168, 128, 128, 18_432, 129_280, **deepseek(256, 8, 2048, 1, 3, 1536, "deepseek_v3")),
)]  # fmt: skip


def scheme(shape) -> str:
    attention = shape.layers[0].attention
    if attention.latent is not None:
        return "MLA"
    return {attention.num_heads: "MHA", 1: "MQA"}.get(attention.num_kv_heads, "GQA")


def kib_a_token(shape) -> float:
    return shape.kv_numbers_per_token * 2 / KIB


def kib_with_all_heads(shape) -> float:
    """K and V as wide as this model's values, for every query head."""
    return sum(2 * layer.attention.num_heads * layer.attention.v_head_dim for layer in shape.layers) * 2 / KIB


SHAPES.sort(key=lambda shape: shape.num_parameters)
rows = ["| model | | query heads | KV heads | KiB a token | conversations of 32,768 tokens in 64 GiB |", "|---|---|--:|--:|--:|--:|"]
for shape in SHAPES:
    attention = shape.layers[0].attention
    kv_heads = "a latent" if attention.latent else attention.num_kv_heads
    rows.append(
        f"| {shape.name}, {shape.num_parameters / 1e9:,.1f} B | {scheme(shape)} | {attention.num_heads} | {kv_heads} | {kib_a_token(shape):,.1f} "
        f"| {64 * GIB / (32_768 * kib_a_token(shape) * KIB):,.0f} |"
    )
Markdown("\n".join(rows))

# %% tags=["hide-input"]
colors = {"MHA": plots.ORANGE, "GQA": plots.BLUE, "MQA": plots.SKY, "MLA": plots.PURPLE}
fig, ax = plots.figure(height=4.5)
for row, shape in enumerate(SHAPES):
    kept, all_heads = kib_a_token(shape), kib_with_all_heads(shape)
    if scheme(shape) != "MHA":
        ax.annotate("", (kept, row), (all_heads, row), arrowprops={"arrowstyle": "-|>", "color": plots.MUTED, "lw": 1.3, "shrinkA": 6, "shrinkB": 6})
        ax.plot(all_heads, row, "o", color=plots.PAPER, markeredgecolor=plots.ORANGE, markeredgewidth=1.6, markersize=7.5)
        ax.text((kept * all_heads) ** 0.5, row - 0.12, f"{all_heads / kept:.0f}×", ha="center", va="bottom", fontsize=9, color=plots.MUTED)
    ax.plot(kept, row, "o", color=colors[scheme(shape)], markersize=9, zorder=3)
for name, color in colors.items():
    ax.plot([], [], "o", color=color, markersize=9, label=name)
ax.plot([], [], "o", color=plots.PAPER, markeredgecolor=plots.ORANGE, markeredgewidth=1.6, label="if every head were kept")
ax.set(xscale="log", xlim=(5, 6000), ylim=(len(SHAPES) - 0.4, -0.8), xlabel="KV cache of one token (KiB, 16 bits)")
ax.set_yticks(range(len(SHAPES)), [f"{shape.name}  ({shape.num_parameters / 1e9:,.0f} B)" for shape in SHAPES])
ax.set_xticks([10, 100, 1000], ["10", "100", "1000"])
ax.legend(loc="upper center", bbox_to_anchor=(0.35, 1.14), fontsize=9.5, ncols=5, columnspacing=1.0, handletextpad=0.2)
plots.show(fig, alt="For eleven models in the order of their size, the cache of one token if all heads were kept and as it is: from 71 times less for Falcon 7B and 57 times less for DeepSeek-V3 down to none for Llama 2 7B; DeepSeek-V3, with 671 billion parameters, keeps less than Llama 3 8B.")

# %% [markdown]
# DeepSeek-V3, the last row, has 671 billion parameters and keeps *less* for a token than Llama 3 with 8 billion.

# %% [markdown]
# ## The naive version
#
# One new token, multi-head attention, everything cached. A loop over the heads, so that one sees who reads what:

# %%
def decode_multi_head(q, k, v, softmax_scale):
    """q (num_heads, head_dim); k, v (num_keys, num_heads, head_dim) -> (num_heads, head_dim). Each head reads its own."""
    outs = []
    for head in range(len(q)):
        weights = torch.softmax(q[head : head + 1] @ k[:, head].T * softmax_scale, dim=-1)  # (1, num_keys)
        outs.append(weights @ v[:, head])
    return torch.cat(outs)


num_keys, num_heads, num_kv_heads, head_dim = 1000, 32, 8, 128
q = torch.zeros(num_heads, head_dim)
cached = torch.zeros(num_keys, num_heads, head_dim)
flops = count_flops(lambda: decode_multi_head(q, cached, cached, 1.0))
numbers = 2 * cached.numel()  # K and V
print(f"{flops / num_keys:,.0f} FLOPs and {numbers / num_keys:,.0f} numbers read for each key")
print(f"in 16 bits: {flops / (2 * numbers):.1f} FLOP a byte; an H100 balances at {h100.ridge('bf16'):.0f}")

# %% [markdown]
# Every cached number takes part in one multiplication and one addition, and is dropped: 2 FLOPs for 2 bytes. The quotient is
# chapter 05's arithmetic intensity, and at 1 an H100 uses a third of a percent of its arithmetic. Batching, the cure for
# weights, doesn't help: each user brings a cache of his own. The cure that is left at 16 bits is that a number, once read,
# serves several queries. Let $H/H_\text{kv}$ query heads share a KV head, and the intensity becomes $H/H_\text{kv}$ FLOPs a byte.
#
# The naive way to share is to copy: give each query head its own copy of the shared key, then proceed as before.

# %%
shared = torch.zeros(num_keys, num_kv_heads, head_dim)
copied = shared.repeat_interleave(num_heads // num_kv_heads, dim=1)  # heads 0 0 0 0 1 1 1 1 ...
print(f"kept: {shared.nbytes / 2**20:.1f} MiB of keys; written and read again in every step: {copied.nbytes / 2**20:.1f} MiB")

# %% [markdown]
# Right numbers, and the advantage is gone: the copy is as large as the cache that we didn't want. The heads of a group are
# *several queries to the same keys*: a small matrix product where there was a matrix–vector product. Task 3 says so in code.

# %% [markdown]
# ## The idea
#
# ### Shared heads
#
# Shazeer (2019) shared one K and one V among all query heads: MQA. It is as small as sharing can be, and quality
# suffers. Ainslie et al. (2023) share within groups of neighbours: GQA. Query head $h$ reads KV head
# $\lfloor h / (H/H_\text{kv}) \rfloor$, and $H_\text{kv}$ slides between the two ends, $H$ (MHA) and 1 (MQA).

# %% tags=["hide-input"]
fig, ax = plots.diagram(7.2, 4.6)
palette = [plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE, plots.SKY, plots.YELLOW, plots.RED, plots.GREY]
for row, (name, kv) in enumerate((("MHA: 8 KV heads", 8), ("GQA: 4 KV heads", 4), ("MQA: 1 KV head,\nheld twice", 1))):
    y = -3.5 * row
    ax.text(-0.5, y + 0.9, name, ha="right", va="center", fontweight="bold")
    group = 8 // kv
    tops = plots.cells(ax, 0, y + 1.4, [f"q{h}" for h in range(8)], colors=[palette[h // group] for h in range(8)], width=1.1)
    centres = [1.1 * (g * group + (group - 1) / 2) + 0.55 for g in range(kv)]
    if kv == 1:
        centres = [2.2, 6.6]  # a copy on each device
    for g, centre in enumerate(centres):
        g %= kv
        plots.cells(ax, centre - 0.55, y - 0.6, [f"kv{g}"], colors=palette[g], width=1.1, filled=True)
    for h in range(8):
        ax.plot([tops[h][0], centres[h // group if kv > 1 else h // 4]], [y + 1.42, y + 0.38], color=palette[h // group], lw=1.4, zorder=1)
ax.plot([4.4, 4.4], [-7.9, 2.8], color=plots.INK, lw=1.2, ls=(0, (4, 3)), zorder=0)
ax.text(2.2, 3.0, "device 0", ha="center")
ax.text(6.6, 3.0, "device 1", ha="center")
ax.set_xlim(-5.6, 9.2)
plots.show(fig, alt="Eight query heads and the KV heads that they read: eight of them, four shared by two each, one shared by all; a dashed line cuts the row of heads into two devices, and each device holds its own copy of the one.")

# %% [markdown]
# The dashed line is what happens on several devices. Tensor parallelism (chapter 26) deals out the heads of a layer; each
# device keeps the cache of its own KV heads. In the middle row, 8 heads and 4 KV heads on 2 devices leave 4 query heads and
# 2 KV heads on each: the *group* of 2 (in code often `n_rep`) doesn't change, since both counts are halved. In the last row
# both devices need `kv0`, so both keep it. When devices outnumber KV heads, KV heads are replicated: 64 heads and 8 KV heads
# on 16 devices leave 4 query heads and 1 KV head on each, every KV head lives on two devices, and from here on more devices
# make the cache of a device no smaller.

# %% [markdown]
# ### Which heads may share?
#
# A finished model can be given fewer KV heads: **mean pooling** (平均池化) replaces the rows of $W_K$ and $W_V$ that belong to a
# group by their average. (A cheaper way, for comparison: keep the group's *first* head and drop the others.) If the heads of
# a group were equal, nothing would be lost. Are they? Here are the four KV heads of the bundled model, compared as vectors.

# %%
largest = 0.0
for block in model.blocks:
    for weight in (block.attention.wk.weight, block.attention.wv.weight):  # (4 · 32, 256)
        heads = torch.nn.functional.normalize(weight.unflatten(0, (4, 32)).flatten(1), dim=1)
        cosines = heads @ heads.T
        largest = max(largest, cosines.fill_diagonal_(0).abs().max().item())
print(f"largest |cosine| between two heads of a layer, K or V: {largest:.2f}")

# %% [markdown]
# As vectors they are strangers. Averaging two of them keeps half of each, the query heads of both must now read the mean,
# and the model is broken until it has been trained a little more (we will). Before that, a better question: do the heads
# need all of their numbers?
#
# ### What the heads have in common
#
# In each layer the four heads' keys (before rotation) and values are 256 numbers, $y = [W_K; W_V]\,x$ of the normalised state
# $x$. Collect $y$ for real tokens, one a row, and take the **singular value decomposition** (奇异值分解): it finds the $r$
# directions $U_r$ (256 × $r$) that keep the largest possible part of the energy $\sum |y|^2$. Then $c = U_r^\top y$ is $r$
# numbers, and $U_r c$ is the best copy of all keys and values that $r$ numbers can give. ($y$ are rows: in the code
# these are *right* singular vectors.) Loss is in nats a token (chapter 03); the floor is the entropy of the grammar that
# tells the stories.

# %%
def encode(texts):
    return [[*tokenizer.encode(text), *model.config.eos_token_ids] for text in texts]


held_out, source_nats = held_out_stories(seed=9, num_stories=8)
documents = encode(held_out)


@torch.inference_mode()
def states_before_attention(token_ids) -> list[torch.Tensor]:
    """x of every layer, (num_tokens, hidden_size): what wk and wv multiply."""
    seen = []
    hooks = [b.attention.wk.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0])) for b in model.blocks]
    model(torch.tensor(token_ids))
    for hook in hooks:
        hook.remove()
    return seen


rng = Random("chapter 09")
calibration = [states_before_attention(ids) for ids in encode(sample_story(rng).text for _ in range(12))]
directions, energies = [], []
for layer, block in enumerate(model.blocks):
    both = torch.cat((block.attention.wk.weight, block.attention.wv.weight))  # (256, 256): rows are keys, then values
    y = torch.cat([states[layer] for states in calibration]) @ both.T  # (num_tokens, 256)
    _, singular_values, vectors = torch.linalg.svd(y.double(), full_matrices=False)
    directions.append(vectors.T.float())  # (256, 256), the most important direction first
    energies.append((singular_values**2).cumsum(0) / (singular_values**2).sum())


def with_latent(num_kept: int) -> Transformer:
    """The bundled model, whose keys and values pass through `num_kept` numbers a token and layer."""
    changed = copy.deepcopy(model)
    for block, basis in zip(changed.blocks, directions):
        u = basis[:, :num_kept]
        both = u @ (u.T @ torch.cat((block.attention.wk.weight, block.attention.wv.weight)))
        block.attention.wk.weight.copy_(both[:128])
        block.attention.wv.weight.copy_(both[128:])
    return changed


def nats_per_token(candidate) -> float:
    return evaluate_documents(candidate, documents, source_nats).model_nats_per_token


floor = evaluate_documents(model, documents, source_nats)
as_trained = floor.model_nats_per_token
kept_numbers = [32, 48, 64, 96, 128, 256]
latent_nats = [*(nats_per_token(with_latent(r)) for r in kept_numbers[:-1]), as_trained]
pooled_nats = {p: [nats_per_token(pool_kv_heads(model, n, pooling=p)) for n in (1, 2)] for p in ("mean", "first")}

# %% tags=["hide-input"]
fig, (energy_ax, ax) = plots.figure(ncols=2, height=3.7, width_ratios=[2, 3])
for energy in energies:
    energy_ax.plot(range(1, 257), 100 * energy, color=plots.BLUE, alpha=0.55, lw=1.6)
energy_ax.axvline(128, color=plots.MUTED, linestyle=":")
energy_ax.set(xlabel="numbers kept, r", ylabel="% of Σ|y|² kept", xlim=(0, 256), ylim=(0, 103), title="Each layer's K and V")
energy_ax.set_xticks([0, 64, 128, 192, 256])
ax.plot([64, 128, 256], [*pooled_nats["first"], as_trained], "s--", color=plots.YELLOW, label="heads pooled: first")
ax.plot([64, 128, 256], [*pooled_nats["mean"], as_trained], "o-", color=plots.ORANGE, label="heads pooled: mean")
ax.plot(kept_numbers, latent_nats, "o-", color=plots.BLUE, label="all heads from a latent")
ax.axhline(floor.source_nats_per_token, color=plots.GREEN, linestyle="--", lw=1.4)
ax.text(250, floor.source_nats_per_token - 0.12, "entropy of the stories", ha="right", va="top", fontsize=9.5, color=plots.GREEN)
ax.set(xlabel="numbers kept a token and layer", ylabel="nats per token", title="No training in between", xlim=(20, 262), ylim=(0, 7.4))
ax.set_xticks([32, 64, 128, 192, 256])
ax.legend(fontsize=9.5)
plots.show(fig, alt="Left: the energy of keys and values against the numbers kept, 98 to 99 percent at half of them. Right: the loss against the numbers kept: a latent of 128 loses nothing, pooled heads of the same size lose more than two nats.")

# %%
for r in (64, 128):
    shares = [100 * energy[r - 1] for energy in energies]
    print(f"energy in {r} of 256 numbers: {min(shares):.1f} to {max(shares):.1f} %, by layer")
print(f"as trained (256 numbers): {as_trained:.3f} nats a token; the stories' own entropy: {floor.source_nats_per_token:.3f}")
for index, r in enumerate(kept_numbers[:-1]):
    print(f"latent of {r:3d}: {latent_nats[index]:.3f}")
for pooling, (one, two) in pooled_nats.items():
    print(f"pooled, {pooling:5}: {two:.3f} with 2 KV heads (128 numbers), {one:.3f} with 1 (64)")

# %% [markdown]
# Read it honestly. 64 of the 256 directions leave 5 to 12 percent of the energy behind, and that costs a third of a nat. But
# 128 numbers cost *nothing* one can measure, and 128 numbers as two pooled heads cost more than two nats. (The latent was
# fitted to twelve stories, pooling to none: part of the gap is that.)
#
# So the heads are redundant *together*, without any two of them being alike. Don't share heads. Share what they are made of.
# (Here the cached 128 numbers must be expanded to all keys before RoPE can rotate them. The next sections fight that.)

# %% [markdown]
# ### Latent attention
#
# DeepSeek-V2 builds the small vector into the model, so that training fits it. In each layer, with the widths of DeepSeek-V3:
#
# $$c = \mathrm{RMSNorm}(W_{DKV}\, x), \qquad k_h = W_{UK}^{(h)} c, \qquad v_h = W_{UV}^{(h)} c .$$
#
# $x$ is the state (7168 numbers), $c$ the **latent** (潜在向量, $d_c = 512$), $W_{DKV}$ (512 × 7168) compresses it,
# $W_{UK}^{(h)}$ and $W_{UV}^{(h)}$ (128 × 512, for each of 128 heads) expand it again. The cache keeps $c$, 1.6 percent of
# the 32,768 numbers that the heads hold. Queries don't matter to the cache; $q_h = W_Q^{(h)} x$ as always. (DeepSeek
# compresses queries as well, which saves memory in training; that width is `q_lora_rank` in code.)
#
# Expanding is the *naive form*, and for decoding a bad deal: for one new query, all keys and values of all heads are
# computed again, $2 \cdot 512 \cdot 128 \cdot (128 + 128)$ = 34 million FLOPs for each cached token and layer. Or one caches
# the expanded ones, and is back at the beginning.
#
# ### Absorption
#
# The trick is a pair of brackets. Take one head, a query $q$ and the latents $c_j$ with attention weights $a_j$:
#
# $$q^\top (W_{UK}\, c_j) = (W_{UK}^\top q)^\top c_j = \tilde q^\top c_j, \qquad \sum_j a_j (W_{UV}\, c_j) = W_{UV} \Big(\sum_j a_j c_j\Big).$$
#
# $\tilde q = W_{UK}^\top q$ has 512 numbers and is computed once for the new token. Then it meets the *latents themselves*.
# The attention weights $a_j$ mix the latents, and $W_{UV}$ is applied to the one mixture. No key, no value is ever made.
# This is **absorption** (矩阵吸收): $W_{UK}$ goes into the query's projection, $W_{UV}$ into the output's (one could
# multiply the matrices beforehand; the two factors are smaller).
#
# By hand, with all widths 2. Let $W_{UK}$ have the rows $(1, 2)$ and $(0, 1)$, $W_{UV}$ the rows $(2, 0)$ and $(1, 1)$, and
# $q = (1, 3)$, $c_1 = (1, 1)$, $c_2 = (3, -1)$.
#
# * Expanded: $k_1 = (3, 1)$, so $q \cdot k_1 = 3 + 3 = 6$. Absorbed: $\tilde q = W_{UK}^\top q = (1, 5)$, and
#   $\tilde q \cdot c_1 = 1 + 5 = 6$.
# * With weights $a = (\tfrac34, \tfrac14)$. Expanded: $v_1 = (2, 2)$, $v_2 = (6, 2)$, their mixture $(3, 2)$. Absorbed: the
#   latents mix to $(\tfrac32, \tfrac12)$, and $W_{UV}$ makes $(3, 2)$ of it.
#
# Now count heads. All 128 absorbed queries read the *same* vector $c_j$. An absorbed MLA is multi-query attention with one
# wide head, whose key serves as its value. MLA is cached like MQA, and yet every head has keys and values of its own.

# %% tags=["hide-input"]
fig, ax = plots.diagram(7.2, 6.4)
heads_shown = ["1", "2", "…", "128"]


def row_of(x, y, labels, **style):
    """Cells, with formulas written over them."""
    centres = plots.cells(ax, x, y, ["" if "$" in label else label for label in labels], **style)
    for centre, label in zip(centres, labels):
        if "$" in label:
            ax.text(*centre, label, ha="center", va="center", fontsize=12, zorder=5)


def cached_row(y):
    row_of(0, y, ["c", "$k_R$"], colors=[plots.BLUE, plots.PURPLE], width=[3.2, 1.2], filled=True, height=1.2)
    ax.text(2.2, y - 0.3, "cached: 512 + 64", ha="center", va="top", color=plots.MUTED, fontsize=10)


ax.text(-0.1, 6.3, "Naive: expand for every head", fontweight="bold", va="bottom")
cached_row(2.6)
plots.arrow(ax, (4.5, 3.2), (7.0, 3.2))
ax.text(5.75, 3.4, "$W_{UK}, W_{UV}$", ha="center", va="bottom", color=plots.MUTED, fontsize=10)
for row, head in enumerate(heads_shown):
    y = 5 - 1.35 * row
    if head == "…":
        ax.text(9.5, y + 0.5, "⋮", ha="center", va="center")
        ax.text(15.2, y + 0.5, "⋮", ha="center", va="center")
        continue
    row_of(7.1, y, [f"v{head}", f"k{head}", "$k_R$"], colors=[plots.ORANGE, plots.ORANGE, plots.PURPLE], width=[1.9, 1.9, 1.2])
    row_of(13.6, y, [f"q{head}", "$q_R$"], colors=[plots.SKY, plots.PURPLE], width=[1.9, 1.2])
    plots.arrow(ax, (13.5, y + 0.5), (12.2, y + 0.5), width=1.2)
ax.text(9.6, 0.65, "40,960 numbers a token", ha="center", va="top", color=plots.MUTED, fontsize=10)
ax.text(-0.1, -1.0, "Absorbed: move the query instead", fontweight="bold", va="bottom")
cached_row(-4.7)
for row, head in enumerate(heads_shown):
    y = -2.3 - 1.35 * row
    if head == "…":
        ax.text(9.5, y + 0.5, "⋮", ha="center", va="center")
        ax.text(15.2, y + 0.5, "⋮", ha="center", va="center")
        continue
    row_of(7.1, y, [f"q̃{head}", "$q_R$"], colors=[plots.SKY, plots.PURPLE], width=[3.2, 1.2])
    row_of(13.6, y, [f"q{head}", "$q_R$"], colors=[plots.SKY, plots.PURPLE], width=[1.9, 1.2])
    plots.arrow(ax, (13.5, y + 0.5), (11.6, y + 0.5), "$W_{UK}^T$" if head == "1" else None, width=1.2)
    plots.arrow(ax, (7.0, y + 0.5), (4.5, -4.1), width=1.2)
ax.text(12.0, -6.65, "one new token", ha="center", va="top", color=plots.MUTED, fontsize=10)
plots.arrow(ax, (1.6, -5.7), (1.6, -7.0), width=1.2)
ax.text(1.9, -6.35, "mix the c's,\nonce for each head", va="center", color=plots.MUTED, fontsize=10)
plots.cells(ax, 0, -8.3, ["Σ aⱼcⱼ"], colors=plots.BLUE, width=3.2)
plots.arrow(ax, (3.4, -7.8), (6.9, -7.8), "$W_{UV}$", width=1.2)
plots.cells(ax, 7.1, -8.3, ["output"], colors=plots.ORANGE, width=1.9)
ax.text(9.3, -7.8, "of each of 128 heads", va="center", color=plots.MUTED, fontsize=10)
plots.show(fig, alt="Two data flows of latent attention: the naive form expands the cached latent to keys and values of 128 heads, the absorbed form turns the 128 queries into the latent's coordinates and lets all of them read the one cached row, mixes the latents, and expands one mixture for each head.")

# %% [markdown]
# ### Why rotation is in the way
#
# The figure shows a second piece, $k_R$. It is there because of RoPE. Rotate the expanded keys, as every model since chapter
# 02 does, and the score of a query at position $t$ with a key at position $j$ becomes
#
# $$\big(R(t)\,q\big)^\top R(j)\, W_{UK}\, c_j = q^\top R(j - t)\, W_{UK}\, c_j, \qquad \tilde q = W_{UK}^\top R(t - j)\, q .$$
#
# The query to absorb into is a *different one for each distance*. Take the example and a rotation of 90° a position:
# $\tilde q$ is $(1, 5)$ at distance 0, $W_{UK}^\top(-3, 1) = (-3, -5)$ at distance 1, $(-1, -5)$ at distance 2. With a
# thousand keys one would absorb a thousand times, which is exactly the expansion that we wanted to avoid. Could one
# rotate $c$ and $\tilde q$ instead? Then the cached row is no longer what the values are made of: $W_{UV}$ needs $c$
# unrotated, one would keep both, and the latent would be cached twice.
#
# The bundled model's own matrices show it. $M(\Delta) = W_K^\top R(\Delta)\, W_Q$ is all that a head does with two states,
# and absorption needs it to be one matrix.

# %%
def absorbed_matrices(layer: int, head: int, distances) -> torch.Tensor:
    """W_Kᵀ R(Δ) W_Q for each distance Δ, (len(distances), hidden_size, hidden_size)."""
    attention = model.blocks[layer].attention
    wq = attention.wq.weight.unflatten(0, (8, 32))[head]  # (32, 256)
    wk = attention.wk.weight.unflatten(0, (4, 32))[head // 2]
    # Rotating the columns of W_Q by Δ: a query Δ positions behind its key.
    turned = model.rope.rotate(wq.T.expand(len(distances), -1, -1), distances)  # (distances, 256, 32)
    return torch.einsum("dk,nqd->nkq", wk, turned)


distances = torch.arange(0, 65)
changes = []
for head in range(8):
    matrices = absorbed_matrices(3, head, distances)
    changes.append((matrices - matrices[0]).flatten(1).norm(dim=1) / matrices[0].norm())
    if head == 0:
        corner = matrices[:, :6, :6] / matrices[0, :6, :6].abs().max()

# %% tags=["hide-input"]
fig, axes = plots.figure(ncols=4, height=2.7, width_ratios=[1, 1, 1, 1.9])
for ax, distance in zip(axes, (0, 4, 16)):
    plots.matrix(ax, corner[distance], vmin=-1.2, vmax=1.2)
    ax.set_title(f"M({distance})")
    ax.set_xticks([])
    ax.set_yticks([])
for change in changes:
    axes[3].plot(distances, change, color=plots.PURPLE, alpha=0.6, lw=1.5)
axes[3].axhline(2**0.5, color=plots.MUTED, linestyle=":")
axes[3].text(63, 2**0.5 + 0.03, "unrelated", ha="right", va="bottom", fontsize=9.5, color=plots.MUTED)
axes[3].set(xlabel="distance Δ", title="How far from M(0)", ylim=(0, 1.65), xlim=(0, 64))
plots.show(fig, alt="A corner of one head's matrix at distances 0, 4 and 16 looks different each time; the relative change of the whole matrix rises to about 0.7 within four positions and to about one within sixteen, for all eight heads; an unrelated matrix would be at 1.41.")

# %% [markdown]
# The right panel is $\lVert M(\Delta) - M(0) \rVert / \lVert M(0) \rVert$: 0 would be the same matrix, $\sqrt 2$ an
# unrelated one of the same size. After four positions it is about 0.7, after sixteen about 1: the fast pairs of RoPE have
# turned away, the slow ones hardly. One $M$ for all distances doesn't exist.
#
# The way out is to keep position apart, **decoupled RoPE** (解耦 RoPE). Every query head gets $d_R = 64$ more numbers,
# $q_R^{(h)} = R(t)\,W_{QR}^{(h)}\,x_t$, and the token *one* key $k_R = R(j)\,W_{KR}\,x_j$ of 64 numbers, which all heads share.
# Only these are rotated; $k_R$ is cached after its rotation, like any key, and needs no $W_{UK}$:
#
# $$\text{score}_h = \big(\tilde q_h^\top c_j + q_R^{(h)\top} k_{R,j}\big) \cdot \frac{1}{\sqrt{128 + 64}} .$$
#
# The scale is that of the expanded head, 128 + 64 wide, absorbed or not: it is the same function. The cache keeps 512 + 64 =
# 576 numbers. (Stored are $W_{DKV}$ over $W_{KR}$ as one matrix, and $W_{UK}$ over $W_{UV}$ of each head as another: tasks 5
# and 6 use these.)

# %% [markdown]
# ### What it costs
#
# Absorbed heads are wider: a pair of query and key takes 576 + 512 multiply-adds a head in place of (128 + 64) + 128. That
# is 3.4 times the arithmetic, for 1/71 of the bytes: expanded, a token takes 128 · (192 + 128) = 40,960 numbers, 8,192 more
# than in the Napkin (hence 57 there), since these keys are 64 wider. Three ways to decode one token against 32,768, in one
# layer, on paper:

# %%
heads, latent, nope, rotated, value = 128, 512, 128, 64, 128
n = 32_768
ways = {
    "cache expanded heads": (2 * n * heads * (nope + rotated + value), 2 * n * heads * (nope + rotated + value)),
    "cache latents, expand every step": (
        2 * n * heads * (nope + rotated + value) + 2 * n * latent * heads * (nope + value), 2 * n * (latent + rotated)
    ),
    "cache latents, absorbed": (2 * n * heads * (latent + rotated + latent), 2 * n * (latent + rotated)),
}  # fmt: skip
rows = ["| | GFLOP | MiB of cache read | FLOPs a byte | at least, on an H100 |", "|---|--:|--:|--:|--:|"]
for name, (flops, num_bytes) in ways.items():
    least = max(flops / h100.peak("bf16"), num_bytes / h100.bytes_per_s)
    rows.append(f"| {name} | {flops / 1e9:,.1f} | {num_bytes / 2**20:,.0f} | {flops / num_bytes:,.0f} | {1e6 * least:,.0f} µs |")
Markdown("\n".join(rows))

# %% [markdown]
# 242 FLOPs a byte, where the H100 balances at 295: memory and arithmetic are both nearly busy. (Left out: the absorbing
# itself, 0.4 percent. And expanding every step reads so little only if the expanded heads never leave the chip.)

# %% tags=["hide-input"]
points = [
    (1, "MHA", plots.ORANGE), (4, "Llama 3 8B: GQA, 4 heads a group", plots.BLUE), (8, "Llama 2 70B: GQA, 8", plots.BLUE),
    (2 * 16 * 1088 / (2 * 576), "DeepSeek-V2-Lite: absorbed, 16 heads", plots.PURPLE), (71, "Falcon 7B: MQA, 71 heads", plots.SKY),
    (2 * 128 * 1088 / (2 * 576), "DeepSeek-V3: absorbed, 128 heads", plots.PURPLE),
]  # fmt: skip
fig, ax = plots.figure(height=4.0)
xs = [0.5, h100.ridge("bf16"), 1500]
ax.plot(xs, [attainable_flops_per_s(x, h100) / 1e12 for x in xs], color=plots.INK, lw=1.6)
for intensity, name, color in points:
    height = attainable_flops_per_s(intensity, h100) / 1e12
    ax.plot(intensity, height, "o", color=color, markersize=9)
    offset, side = ((-10, 2), "right") if intensity > 200 else ((9, -13), "left")
    ax.annotate(name, (intensity, height), offset, textcoords="offset points", ha=side, fontsize=9.5)
ax.set(xscale="log", yscale="log", xlim=(0.5, 1500), ylim=(1.2, 2500), xlabel="FLOPs for each byte of cache", ylabel="at most, TFLOP/s")
ax.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
ax.set_yticks([10, 100, 1000], ["10", "100", "1000"])
ax.grid(False)
ax.annotate("H100, bf16", (1500, 989), (0, 7), textcoords="offset points", ha="right", fontsize=9.5)
plots.show(fig, alt="Roofline of an H100 with decode attention on it: multi-head at 1 FLOP a byte, grouped at 4 and 8, multi-query at 71, absorbed latent attention of DeepSeek-V3 at 242, just left of the ridge.")

# %% [markdown]
# With many new tokens at once the account turns. $m$ tokens of a prompt that meet $n$ keys need the keys expanded only
# once, and then every pair is 3.4 times cheaper. Multiply-adds a head, with $n$ keys in all, the new ones included (every
# pair counted; a causal mask takes off half when $m = n$):
#
# $$\text{naive: } n \cdot 512 \cdot 256 + m\,n \cdot 320, \qquad \text{absorbed: } m \cdot 512 \cdot 256 + m\,n \cdot 1088 .$$
#
# They cross at $m = 131072\,n\,/\,(131072 + 768\,n)$, about 171 tokens when $n$ is large. Below, decoding: absorb. Above,
# prefill: expand.

# %% tags=["hide-input"]
n = 8192
new = torch.logspace(0, 12, 60, base=2)
naive_flops = 2 * heads * (n * latent * (nope + value) + new * n * (nope + rotated + value))
absorbed_flops = 2 * heads * (new * latent * (nope + value) + new * n * (2 * latent + rotated))
crossing = 131_072 * n / (131_072 + 768 * n)
fig, ax = plots.figure(height=3.3)
ax.plot(new, naive_flops / 1e9, color=plots.ORANGE, label="naive: expand, then 320 a pair")
ax.plot(new, absorbed_flops / 1e9, color=plots.PURPLE, label="absorbed: 1088 a pair")
ax.axvline(crossing, color=plots.MUTED, linestyle=":")
ax.text(crossing * 1.1, 3, f"{crossing:.0f} tokens")
ax.set(xscale="log", yscale="log", xlabel="new tokens at once, m (8,192 keys in all)", ylabel="GFLOP, one layer")
ax.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
ax.legend(fontsize=9.5)
plots.show(fig, alt="FLOPs of both forms of latent attention against the number of new tokens: absorbed is cheaper below about 167 tokens, naive above.")

# %% [markdown]
# ## The real version
#
# `source` shows the library's own code. The forward makes the pieces; a form decides what is done with them.

# %%
source(MultiHeadLatentAttention.forward)
source(attend_naive)

# %% [markdown]
# `wkv_a` makes latent and rotated key in one product; `kv_norm` touches the latent alone; `wkv_b` holds $W_{UK}$ over
# $W_{UV}$ of each head in turn. The absorbed form is as long: read it in [mla.py](../minillm/model/mla.py) *after* Task 6.
# What a cache must know is in the layer's spec (chapter 08), and here the forms differ. A tiny model with the layout of
# DeepSeek-V3, random weights, float64:

# %%
tiny = Transformer(ModelConfig(
    vocab_size=100, hidden_size=48, intermediate_size=64, num_layers=2, num_heads=6, num_kv_heads=6, head_dim=8,
    max_seq_len=64, model_type="deepseek_v3",
    mla=MLAConfig(q_lora_rank=20, kv_lora_rank=24, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12),
)).double().requires_grad_(False)  # fmt: skip
generator = torch.Generator().manual_seed(9)
for parameter in tiny.parameters():
    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
ids = torch.randint(100, (1, 20), generator=generator)
whole, by_cache = {}, {}
for form in FORMS:
    use_latent_form(tiny, form)
    whole[form] = tiny(ids)
    cache = ContiguousCache(tiny.layer_specs, batch_size=1, dtype=torch.float64)
    outs = []
    for piece in ids.split(3, dim=1):
        attend = cache.begin([piece.shape[1]])
        outs.append(tiny(piece, attend.positions, attend))
        cache.commit()
    by_cache[form] = torch.cat(outs, dim=1)
    spec = tiny.layer_specs[0]
    print(f"{form:9} {spec.num_kv_heads} KV head(s), k {spec.k_head_dim}, v {spec.v_head_dim}, v_from_k {spec.v_from_k}: "
          f"{cache.bytes_per_token // 8 // 2} numbers a token and layer")  # fmt: skip
print("absorbed = expanded: ", torch.allclose(whole["absorbed"], whole["naive"], rtol=0, atol=1e-12))
print("cached = all at once:", all(torch.allclose(whole[f], by_cache[f], rtol=0, atol=1e-12) for f in FORMS))

# %% [markdown]
# `v_from_k` is the cache's side of absorption: the value is the first 24 numbers of the key, so the slab for V doesn't
# exist. The claim of the first page, on the cache itself:

# %%
widths = MLAConfig(q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
v3_layer = ModelConfig(
    vocab_size=8, hidden_size=256, intermediate_size=8, num_layers=1, num_heads=128, num_kv_heads=128, head_dim=64,
    max_seq_len=4096, mla=widths, model_type="deepseek_v3",
)  # fmt: skip
with torch.device("meta"):  # shapes without numbers
    v3_attention = Transformer(v3_layer)
for form, expected in (("naive", 40_960), ("absorbed", 576)):
    use_latent_form(v3_attention, form)
    cache = ContiguousCache(v3_attention.layer_specs, batch_size=1, max_seq_len=1, dtype=torch.bfloat16)
    assert cache.bytes_per_token == 2 * expected
    print(f"{form:9} {cache.bytes_per_token // 2:,} numbers a token and layer")

# %% [markdown]
# The library loads checkpoints of DeepSeek-V2 and V3 (dense blocks; experts come in chapter 24) and is tested against
# `transformers`, cached decoding included. DeepSeek stores rotated dimensions as neighbouring pairs, the library rotates
# halves: [rope_layout.py](../minillm/model/rope_layout.py).

# %% [markdown]
# ## Measured
#
# **How fast do pooled heads recover?** The two KV heads that cost more than two nats get a very short training on fresh
# stories. `recorded` measures on your machine when you run the notebook; what is printed here was measured on the machine
# named under the figure.

# %%
def measure_recovery() -> dict:
    """Nats a token on stories never seen before, after each training step, for the two ways to pool 4 heads to 2."""
    rng = Random("recovery")
    batches = [encode(sample_story(rng).text for _ in range(6)) for _ in range(12)]
    found = {"tokens": [0]}
    for batch in batches:
        found["tokens"].append(found["tokens"][-1] + sum(len(ids) - 1 for ids in batch))
    for pooling in ("mean", "first"):
        pooled = pool_kv_heads(model, 2, pooling=pooling).requires_grad_(True)
        optimizer = torch.optim.AdamW(pooled.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
        losses = []
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * min(1, (step + 1) / 3) * (1 - step / len(batches))
            width = max(map(len, batch))
            inputs = torch.tensor([ids + [0] * (width - len(ids)) for ids in batch])
            targets = torch.tensor([ids[1:] + [-100] * (width - len(ids)) for ids in batch])
            loss = torch.nn.functional.cross_entropy(pooled(inputs[:, :-1]).flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())  # before the step: the batch was never seen
        found[pooling] = losses
        found[f"{pooling}, a story"] = sum(document_nats(pooled, documents)) / len(documents)
    return found


record = recorded("09_recovery", measure_recovery)
recovery = record.values
fig, (ax, story_ax) = plots.figure(ncols=2, height=3.6, width_ratios=[3, 2])
for pooling, color, marker in (("mean", plots.ORANGE, "o-"), ("first", plots.YELLOW, "s--")):
    ax.plot([t / 1000 for t in recovery["tokens"][:-1]], recovery[pooling], marker, color=color, label=f"pooled by {pooling}")
ax.axhline(as_trained, color=plots.BLUE, lw=1.6)
ax.text(0.2, as_trained + 0.07, "4 KV heads, as trained", color=plots.BLUE, fontsize=9.5, va="bottom")
ax.set(xlabel="thousand tokens of training", ylabel="nats per token, next batch", title="Before each step", ylim=(0, 4.6))
ax.legend(fontsize=9.5)
story_names = ["4 heads", "mean", "first"]
tokens_a_story = floor.num_tokens / floor.num_stories
after = [as_trained, recovery["mean, a story"] / tokens_a_story, recovery["first, a story"] / tokens_a_story]
story_ax.bar(story_names, after, color=[plots.BLUE, plots.ORANGE, plots.YELLOW])
story_ax.bar_label(story_ax.containers[0], fmt="%.2f", padding=2)
story_ax.axhline(floor.source_nats_per_token, color=plots.GREEN, linestyle="--", lw=1.4, label="entropy of the stories")
story_ax.set(ylabel="nats per token, held-out stories", title="After the last step", ylim=(0, 1.4 * max(after)))
story_ax.legend(fontsize=9.5, loc="upper left")
plots.show(fig, alt="Loss of the model with two pooled KV heads during twelve steps of training: it falls quickly, for mean pooling faster than for keeping the first head, towards the loss of the original; bars of nats per token on held-out stories after the last step, against the entropy of the stories.", record=record)

# %% [markdown]
# Left, each point is the loss on a new batch before the model learns from it (other stories than above, hence another
# start); right, the stories from above. Twelve steps, 17,000 tokens, bring back about four fifths of what pooling broke for
# the mean, two thirds for the first head; one seed, one learning rate. The bundled model was trained on 22 million tokens.
# Ainslie et al. spent 5 percent of the pre-training, and ended close to the original (they call it *uptraining*). So does
# ours: after 500 steps and 2 million tokens, two heads have 131.5 nats a story, four have 130.2
# ([log](../book/results/two-kv-heads/log.jsonl); commands in [convert_heads.py](../minillm/model/convert_heads.py)).
#
# **How fast is a step?** One layer of DeepSeek-V3's attention (hidden size cut to 256, float32), one thread, one new token,
# both forms on the library's cache. The lower bound is the bytes that must be read, weights and cache, over what a read
# probe (chapter 08) reaches in the same minute. The products are written out: torch's fused attention wants keys as wide as
# values. Given 192 and 128 it falls back to `_scaled_dot_product_attention_math`, which first writes a scaled copy of all
# keys.

# %%
rope = Rope(v3_layer.rope, widths.qk_rope_head_dim)


def two_products(cache, slot):
    """An attend of one token over a cache of one sequence: stores the row in its slot, and copies nothing."""

    def attend(layer_idx, q, k, v, softmax_scale):
        spec = cache.layer_specs[layer_idx]
        keys = cache.k[layer_idx][0, : slot + 1]  # (num_keys, num_kv_heads, k_head_dim)
        keys[slot] = k[0, 0]
        if spec.v_from_k:
            values = keys[..., : spec.v_head_dim]
        else:
            values = cache.v[layer_idx][0, : slot + 1]
            values[slot] = v[0, 0]
        grouped = q[0, 0].unflatten(0, (spec.num_kv_heads, -1)) * softmax_scale  # (num_kv_heads, group, k_head_dim)
        weights = (grouped @ keys.permute(1, 2, 0)).softmax(dim=-1)
        return (weights @ values.transpose(0, 1)).flatten(0, 1)[None, None]

    return attend


@torch.inference_mode()
def measure_steps() -> dict:
    """Milliseconds of one decode step by form and number of cached tokens, medians of 5, and the bound from bytes."""
    layer = MultiHeadLatentAttention(v3_layer, 0).requires_grad_(False)
    weight_bytes = sum(parameter.nbytes for parameter in layer.parameters())
    bytes_per_s = ReadProbe().bytes_per_s()
    lens = [128, 256, 512, 1024, 1536]
    found = {"lens": lens}
    x = torch.randn(1, 1, v3_layer.hidden_size, generator=torch.Generator().manual_seed(0))
    for form in FORMS:
        layer.form = form
        times, bounds = [], []
        for n in lens:
            cache = ContiguousCache([layer.layer_spec(rope)], batch_size=1, max_seq_len=n)
            for slab in (*cache.k, *cache.v):
                if slab is not None:
                    slab.normal_()
            runs = []
            for _ in range(6):
                started = time.perf_counter()
                layer(x, rope.cos_sin(torch.tensor([[n - 1]]), torch.float32), two_products(cache, n - 1))
                runs.append(time.perf_counter() - started)
            times.append(1e3 * sorted(runs[1:])[2])
            bounds.append(1e3 * (weight_bytes + n * cache.bytes_per_token) / bytes_per_s)
        found[form], found[f"{form}, at least"] = times, bounds
    return found


record = recorded("09_decode_step", measure_steps)
steps = record.values
fig, ax = plots.figure(height=3.6)
for form, color, name in (("naive", plots.ORANGE, "expanded heads cached"), ("absorbed", plots.PURPLE, "latents cached, absorbed")):
    ax.plot(steps["lens"], steps[form], "o-", color=color, label=name)
    ax.plot(steps["lens"], steps[f"{form}, at least"], "--", color=color, alpha=0.7, lw=1.5, label="at least, from bytes")
ax.set(xlabel="tokens in the cache", ylabel="milliseconds a step, one layer", ylim=(0, 1.35 * max(steps["naive"])))
ax.legend(fontsize=9.5, ncols=2, loc="upper left")
plots.show(fig, alt="Milliseconds of a decode step of one DeepSeek-V3 attention layer: with expanded heads it grows steeply with the cache, absorbed it hardly grows.", record=record)

# %% [markdown]
# The bytes alone predict that absorbing makes a step with 1,536 tokens 2 times faster. Both lines lie above their bounds:
# products with one vector don't read as fast as the probe. Believe the direction: expanded, the line climbs with every
# cached token; absorbed, the step is mostly the weights (237 MB), read once for any length.
#
# What does grow there is arithmetic: the ridge of a CPU (chapter 05) lies at a few FLOPs a byte, not at 295, so here
# absorbed attention is bound by *computing*. The trade of bytes against FLOPs is a bet on hardware that has FLOPs to spare.

# %% [markdown]
# ## In production
#
# * **vLLM** runs MLA in two ways, as here: "compute friendly", expanded, for prefill, and "data-movement friendly", absorbed,
#   for decode. Long contexts are expanded piecewise, so that the expanded keys don't need their full memory, and merged by
#   chapter 10's arithmetic.
# * **SGLang** adds *data-parallel attention* for such models: an MLA cache has one head, so tensor parallelism would keep a
#   whole copy on each device. Instead each device attends for its own requests.
# * **FlashMLA** is DeepSeek's own library. Its decoding kernel for Hopper GPUs: key width 576, value width 512, one KV head. On
#   an H800 its authors count 128 or more query heads · new tokens as compute-bound, and report up to 660 TFLOP/s there.
# * **llama.cpp** stores $W_{UK}$ and $W_{UV}$ as two tensors and caches only the K side for MLA: `v_from_k` by another name.
# * **Kernels for GQA** must load a KV head once for its *group*. One that gives each query head its own block of threads
#   reads the same K from the L2 cache $H/H_\text{kv}$ times: memory is saved, and time is bound by L2. Chapter 11 packs a
#   group into one tile.

# %% [markdown]
# ## Exercises
#
# In [`exercises/ch09_mqa_gqa_mla.py`](../exercises/ch09_mqa_gqa_mla.py); `python3 tasks.py grade ch09` grades them and names
# what went wrong.
#
# | task | points | prepared by |
# |---|---|---|
# | `decode_cost`: predict FLOPs and bytes of a step | 3 | The naive version; What it costs; The real version |
# | `heads_of_rank`: who holds which heads | 4 | Shared heads |
# | `grouped_decode`: share without copying | 4 | The naive version |
# | `pool_heads`: fewer heads for a finished model | 4 | Which heads may share? |
# | `latent_step`: a bug hunt in latent attention | 5 | Latent attention; Why rotation is in the way; The real version |
# | `absorbed_attention`: 128 heads, one key, and a budget | 6 | Absorption |

# %% [markdown]
# ## Check yourself
#
# <details><summary>Llama 3 70B has 80 layers, 64 query heads, 8 KV heads of 128 numbers. KiB a token in bf16, on one device and on each of 16?</summary>
#
# 2 · 80 · 8 · 128 · 2 bytes = 320 KiB. On 8 devices each keeps one KV head, 40 KiB. On 16 as well: every KV head lives twice,
# and a device keeps 40 KiB still.
# </details>
#
# <details><summary>GQA divides the cache by 8. By how much does it divide the FLOPs of attention?</summary>
#
# By 1. Each query head multiplies with as many keys as before. That is why the intensity rises, and why it helps only where
# bytes are the limit.
# </details>
#
# <details><summary>Somebody caches absorbed latents, but also a separate V slab. How much is lost with DeepSeek-V3's widths?</summary>
#
# 576 + 512 = 1,088 numbers instead of 576: 1.9 times. The value is the first 512 numbers of the key and is there already.
# </details>
#
# <details><summary>A server decodes with speculation: 8 drafted tokens a step are checked at once, against 4,096 cached. Absorb or expand?</summary>
#
# Absorb: the crossing lies at 131,072 · 4,096 / (131,072 + 768 · 4,096) = 164 new tokens.
# </details>
#
# <details><summary>Why doesn't the latent need one W_UK for all heads, if all heads read the same c?</summary>
#
# Because W_UK was moved into the queries, and each head has its own. The 128 absorbed queries are different vectors of 512
# numbers; only what they are multiplied with is shared.
# </details>

# %% [markdown]
# ## Sources
#
# * Shazeer 2019, *Fast Transformer Decoding: One Write-Head is All You Need*,
#   [arXiv:1911.02150](https://arxiv.org/abs/1911.02150): MQA, and why decoding is bound by memory.
# * Ainslie et al. 2023, *GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints*,
#   [arXiv:2305.13245](https://arxiv.org/abs/2305.13245): §2.1 mean pooling and uptraining, §2.2 groups.
# * DeepSeek-AI 2024, *DeepSeek-V2*, [arXiv:2405.04434](https://arxiv.org/abs/2405.04434): §2.1.2 the joint compression,
#   §2.1.3 decoupled RoPE.
# * DeepSeek-AI 2024, *DeepSeek-V3 Technical Report*, [arXiv:2412.19437](https://arxiv.org/abs/2412.19437): §2.1.1 the same
#   again, §4.2 the widths used here.
# * Meng et al. 2025, *TransMLA: Multi-Head Latent Attention Is All You Need*,
#   [arXiv:2502.07864](https://arxiv.org/abs/2502.07864): from GQA to MLA without training anew.
#
# Next: chapter 10 computes attention without ever writing the scores down.
