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
# # 02 · Building the model
#
# A Llama is six ideas and about sixty lines: the residual stream, RMSNorm, RoPE, causal attention, shared KV heads and
# SwiGLU. This chapter builds each of them, and you leave with a model of your own that reads a Hugging Face checkpoint and
# gives the same logits as the library.
#
# Needs: [chapter 01](01_whole_system.ipynb) · Time: 60 minutes to read, 60 to solve

# %% [markdown]
# ## Why
#
# A checkpoint is a folder with a `config.json` and a heap of named matrices. Nothing in it says what to do with them:
# which pairs of numbers to rotate, which head reads which key, where the norms stand. That knowledge lives in code, and
# code that gets it wrong doesn't crash. The shapes still fit. The model just talks nonsense.
#
# Here is one such mistake, committed on purpose. The bundled model wants dimension 0 of a head rotated together with
# dimension 16. We shuffle the rows of two matrices so that 0 is rotated with 1. It is the mirror image of a well-known bug:
# in the weights that Meta published 0 belongs with 1, and a loader that forgets to convert them rotates it with 16 (for heads
# of 32). No error, no warning, no missing number.

# %%
import copy
import math
from itertools import islice

import torch
import torch.nn.functional as F

from minillm import SamplingParams, generate_text, load_model, load_tokenizer, plots
from minillm.attention.full import FullAttend
from minillm.bench.show import source
from minillm.data.stories import stories

torch.set_grad_enabled(False)
model, tokenizer = load_model(), load_tokenizer()
held_out = [story.text for story in islice(stories(seed=77), 4)]  # not among the stories it was trained on
encoded = [torch.tensor(tokenizer.encode(text)) for text in held_out]


def logits_of(some_model, attend=None, positions_of=torch.arange):
    """The logits for three held-out stories, each (seq_len, vocab_size). Attention and positions can be exchanged."""
    attend = attend or FullAttend([None] * 6)  # the library's attention; None: no layer limits how far back it looks
    return [some_model(tokens[:-1], positions_of(len(tokens) - 1), attend) for tokens in encoded[:3]]


def nats_per_token(logits_of_stories):
    """How surprised a model is: the mean of -log p of each token, given those before it."""
    pairs = zip(logits_of_stories, encoded)
    return float(torch.cat([F.cross_entropy(logits, tokens[1:], reduction="none") for logits, tokens in pairs]).mean())


# The mistake: rows 0, 2, 4 … of each head first, then 1, 3, 5 …, so that the old 0 and 1 end up 16 apart.
neighbours = torch.cat((torch.arange(0, 32, 2), torch.arange(1, 32, 2)))
wrong_pairs = copy.deepcopy(model)
for block in wrong_pairs.blocks:
    for linear in (block.attention.wq, block.attention.wk):
        linear.weight.data = linear.weight.data.unflatten(0, (-1, 32))[:, neighbours].flatten(0, 1)

prompt = "Once upon a time, there was a young girl named Ivy who"
for name, some_model in (("right", model), ("wrong pairs", wrong_pairs)):
    text = generate_text(some_model, tokenizer, prompt, SamplingParams(max_new_tokens=45, temperature=0))
    nats = nats_per_token(logits_of(some_model))
    print(f"{name}: {nats:.2f} nats a token, perplexity {math.exp(nats):.1f}\n   {prompt}{text}\n")

# %% [markdown]
# The surprise per token, in **nats** (奈特: the unit of information of natural logarithms, 1.44 bits), is several times what it
# was. Put as perplexity ($e^{\text{nats}}$): the right model hesitates between two words, as it were, the wrong one between
# a dozen. Near the end of the chapter stands a price list of fourteen changes. Some of them cost *nothing* that a
# loss can see, and those are the dangerous ones.

# %% [markdown]
# ## Napkin
#
# Before building anything: how large will it be? What each part does comes below; here only the sizes count. Every
# **parameter** (参数) is an entry of a matrix whose sides are in `config.json`. With vocabulary $V$, `hidden_size` $h$,
# `intermediate_size` $m$, $L$ layers, $H$ query heads and $G$ KV heads of `head_dim` $d$:
#
# | part | shape | count | stories-5m | Llama 3 8B |
# |---|---|---|---|---|
# | embedding | $(V, h)$ | $Vh$ | 2,048 · 256 | 128,256 · 4,096 |
# | `wq`, `wo` | $(Hd, h)$, $(h, Hd)$ | $2hHd$ | 2 · 256 · 8 · 32 | 2 · 4,096 · 32 · 128 |
# | `wk`, `wv` | $(Gd, h)$ twice | $2hGd$ | 2 · 256 · 4 · 32 | 2 · 4,096 · 8 · 128 |
# | `w_gate`, `w_up`, `w_down` | $(m, h)$ twice, $(h, m)$ | $3hm$ | 3 · 256 · 704 | 3 · 4,096 · 14,336 |
# | norms | $(h)$ | $2h$ a layer, $h$ at the end | 512 | 8,192 |
# | output head | $(V, h)$ | $Vh$, or 0 if tied | 0 | 128,256 · 4,096 |
#
# **Tied** (权重共享) means that the last matrix, which turns a state into scores for words, is the embedding used again. By
# hand for ours:
#
# $$524{,}288 + 6 \cdot (196{,}608 + 540{,}672 + 512) + 256 = 4{,}951{,}296,$$
#
# so in bfloat16, at 2 bytes each, 9,902,592 bytes. Llama 3 8B comes to 8,030,261,248 parameters and 16.06 GB (14.96 GiB).
# All but the embedding, from which one row is read, passes the chip for every token: 16.06 − 1.05 = 15.0 GB, or 4.5 ms at
# the 3.35 TB/s of an H100. Chapter 05 is about that sentence.

# %%
shapes = {
    "stories-5m": {"V": 2048, "h": 256, "m": 704, "L": 6, "H": 8, "G": 4, "d": 32, "embeddings": 1},
    "Llama 3.2 1B": {"V": 128_256, "h": 2048, "m": 8192, "L": 16, "H": 32, "G": 8, "d": 64, "embeddings": 1},
    "Llama 2 7B": {"V": 32_000, "h": 4096, "m": 11_008, "L": 32, "H": 32, "G": 32, "d": 128, "embeddings": 2},
    "Llama 3 8B": {"V": 128_256, "h": 4096, "m": 14_336, "L": 32, "H": 32, "G": 8, "d": 128, "embeddings": 2},
}
parts = {
    "embedding, head": (plots.GREY, lambda s: s["embeddings"] * s["V"] * s["h"]),
    "attention": (plots.ORANGE, lambda s: s["L"] * 2 * s["h"] * s["d"] * (s["H"] + s["G"])),
    "feed-forward": (plots.BLUE, lambda s: s["L"] * 3 * s["h"] * s["m"]),
    "norms": (plots.RED, lambda s: (2 * s["L"] + 1) * s["h"]),
}
totals = {name: sum(count(s) for _, count in parts.values()) for name, s in shapes.items()}
for name, total in totals.items():
    print(f"{name:13s}{total:>14,} parameters {2 * total / 2**30:8.3f} GiB in bfloat16")

# %% tags=["hide-input"]
fig, ax = plots.figure(height=2.7)
for row, (name, s) in enumerate(shapes.items()):
    left = 0
    for part, (color, count) in parts.items():
        share = 100 * count(s) / totals[name]
        ax.barh(row, share, left=left, height=0.62, color=color, label=part if row == 0 else None)
        if share > 2.5:
            ax.text(left + share / 2, row, f"{share:.0f}", ha="center", va="center", color=plots.ink_on(color))
        left += share
ax.set_yticks(range(len(shapes)), shapes)
ax.set(xlim=(0, 100), xlabel="share of the parameters (%)")
ax.invert_yaxis()
ax.grid(axis="y", visible=False)
ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=4, columnspacing=1)
plots.show(fig, alt="Shares of embedding, attention, feed-forward and norms in four models: the feed-forward is most of each.")

# %% [markdown]
# Two thirds or so of a Llama are feed-forward, and the norms, which we will spend a while on, hardly show. Few numbers can
# still be in a position to ruin everything.

# %% [markdown]
# ## The naive version
#
# One part of the model lets tokens see one another, and it is the one to write out first. In **attention** (注意力) every
# token has a *query* (what am I looking for?), a *key* (what do I offer?) and a *value* (what do I hand over?). They are
# three products with the token's normed state $x$: $q = W_q x$, $k = W_k x$, $v = W_v x$.
#
# A model does this several times side by side, with other rows of the matrices. Each copy is a **head** (注意力头), with a
# query, key and value of `head_dim` numbers of its own. The outputs of all heads are laid end to end, and one more matrix,
# $W_o$, mixes them back into `hidden_size` numbers.
#
# Within a head, a token compares its query with the keys of all tokens up to itself and takes a weighted mean of their
# values. As it is read:


# %%
def attend_in_loops(q, k, v, softmax_scale):
    """One head: q, k, v as lists of rows. Returns the rows of the output, and how many products were computed."""
    rows, products = [], 0
    for i in range(len(q)):
        scores = []
        for j in range(i + 1):  # the tokens up to and including i: nobody sees the future
            scores.append(softmax_scale * sum(a * b for a, b in zip(q[i], k[j])))
            products += len(q[i])
        exponentials = [math.exp(score) for score in scores]
        weights = [e / sum(exponentials) for e in exponentials]
        rows.append([sum(w * v[j][d] for j, w in enumerate(weights)) for d in range(len(v[0]))])
        products += len(weights) * len(v[0])
    return rows, products


log2 = math.log(2)
rows, products = attend_in_loops(q=[[0, 0], [0, 0], [1, 0]], k=[[0, 1], [log2, 0], [0, 0]], v=[[4], [8], [0]], softmax_scale=1)
print("three tokens:", rows, f"from {products} products")

# %% [markdown]
# Check it by hand. The third query is (1, 0); its scores with the three keys are 0, ln 2 and 0; the exponentials are 1,
# 2, 1; the weights ¼, ½, ¼; the output ¼·4 + ½·8 + ¼·0 = 5. Queries of zeros weigh alike: 4, then 6.
#
# The number of products is $\tfrac{n(n+1)}{2} \cdot 2d$ for $n$ tokens: it grows with the square, which chapters 08 to 12 are
# about. A story of 256 tokens takes this model 101 million, each of them a step of Python here.

# %%
from minillm.attention import naive_attention

n, d = 40, 32
q, k, v = torch.randn(3, n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
rows, products = attend_in_loops(q.tolist(), k.tolist(), v.tolist(), d**-0.5)
oracle, _ = naive_attention(q[None, :, None], k[None, :, None], v[None, :, None])
print(f"{products:,} products, predicted {n * (n + 1) // 2 * 2 * d:,}")
print("equal to the library's oracle:", torch.allclose(torch.tensor(rows, dtype=torch.float64), oracle[0, :, 0]))

# %% [markdown]
# ## The idea
#
# ### The residual stream
#
# A token enters as a row of the **embedding** (嵌入), a table of $V$ rows: $x = E[\text{token}]$, of `hidden_size` numbers.
# That vector is the token's **residual stream** (残差流). It is never replaced. Each layer reads it, normed, and adds to it:
#
# $$x \leftarrow x + \text{attention}(\text{norm}_1(x)), \qquad x \leftarrow x + \text{feed-forward}(\text{norm}_2(x)).$$
#
# At the end one more norm, and a product with every row of the output head (LM head): the **logits** (未归一化得分), a score for
# each token of the vocabulary. Because a layer only adds, what it leaves alone passes through, and so do gradients. The norm
# stands in the branch and not in the stream (**pre-norm**, 前置归一化), so nothing keeps the stream small. We watch it in a story.

# %%
config = model.config
tokens = encoded[0]
streams = []  # the stream before each of the 13 norms; (seq_len, hidden_size) each
norms = [norm for block in model.blocks for norm in (block.attention_norm, block.ffn_norm)] + [model.norm]
hooks = [norm.register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0])) for norm in norms]
logits = model(tokens)
for hook in hooks:
    hook.remove()

streams = torch.stack(streams)  # (13, seq_len, hidden_size)
rms = streams.square().mean(-1).sqrt()[:, 1:]  # without the first token
added = (streams[1:] - streams[:-1]).square().mean(-1).sqrt()[:, 1:].median(-1).values  # by each half of a block
low, middle, high = rms.quantile(torch.tensor([0.05, 0.5, 0.95]), dim=1)
print(f"rms of the median token: {middle[0]:.2f} as a row of the embedding, {middle[-1]:.1f} before the last norm")

# %% tags=["hide-input"]
fig, (ax, below) = plots.figure(height=4.8, nrows=2, sharex=True)
places = torch.arange(13)
ax.fill_between(places, low, high, color=plots.tint(plots.BLUE, 0.25), label="90 % of all tokens")
ax.plot(places, middle, color=plots.BLUE, marker="o", label="median token")
ax.set(ylabel="rms", ylim=(0, None), title="the stream")
ax.legend(loc="upper left")
below.bar(places[1::2], added[::2], width=0.62, color=plots.ORANGE, label="by attention")
below.bar(places[2::2], added[1::2], width=0.62, color=plots.SKY, label="by the feed-forward")
below.set_xticks([0, *range(2, 13, 2)], ["embedding", *(f"after\nlayer {i}" for i in range(6))])
below.set(ylabel="rms", ylim=(0, None), title="what is added to it (median token)")
below.legend(loc="upper left")
for one in (ax, below):
    one.grid(axis="x", visible=False)
plots.show(fig, alt="The residual stream grows from layer to layer, because every half of a block adds to it.")

# %% [markdown]
# A row of the embedding is small, and the first feed-forward drowns it out. The later layers add much more than the middle
# ones: to matter in a large sum, a term must be large. What a layer *reads* is of about the same size everywhere: one after
# the division, then times the norm's weight. (The first token is left out: with no past to look at, it is a special case, and
# its stream is several times as large.)
#
# ### RMSNorm
#
# Normalising means: subtract a mean, divide by a spread. Three kinds differ in what they average over. Take the stream of a
# batch, a block of numbers:
#
# * **BatchNorm** (批归一化) takes one feature over all tokens of all texts. One text's output then depends on its neighbours
#   in the batch.
# * **LayerNorm** (层归一化) takes one token, over its features: $(x - \mu) / \sigma$, with weight and bias.
# * **RMSNorm** (均方根归一化) does so too, and leaves out the mean:
#
# $$y = w \odot \frac{x}{\sqrt{\text{mean}(x^2) + \varepsilon}}, \qquad x, w, y \text{ of } h \text{ numbers each}.$$

# %% tags=["hide-input"]
batch = torch.stack([tokens_of_one[:24] for tokens_of_one in encoded])
captured = []
hook = model.blocks[3].attention_norm.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
model(batch)
hook.remove()
block_of_numbers = captured[0][:, 8:14, 40:48]  # 4 texts, 6 tokens, 8 features: (batch, token, feature)


def draw_block(ax, values, chosen, title, note):
    """A block of batch × token × feature in oblique view; chosen(b, t, f) marks the cells that are averaged."""
    num_texts, num_tokens, num_features = values.shape
    size = values.abs() / values.abs().max()
    back_x, back_y = 0.52, 0.34  # one step into the depth: from text to text

    def corner(f, t, b):
        return f + back_x * b, -t + back_y * b

    def side(b, t, f, corners):
        color = plots.BLUE if chosen(b, t, f) else plots.GREY
        strength = 0.9 if chosen(b, t, f) else 0.06 + 0.5 * float(size[b, t, f])
        ax.fill(*zip(*(corner(*c) for c in corners)), facecolor=plots.tint(color, strength), edgecolor=plots.PAPER, lw=1)

    for t in range(num_tokens):
        for f in range(num_features):
            side(0, t, f, [(f, t, 0), (f + 1, t, 0), (f + 1, t + 1, 0), (f, t + 1, 0)])
    for b in range(num_texts):
        for f in range(num_features):
            side(b, 0, f, [(f, 0, b), (f + 1, 0, b), (f + 1, 0, b + 1), (f, 0, b + 1)])
        for t in range(num_tokens):
            right = num_features
            side(b, t, right - 1, [(right, t, b), (right, t, b + 1), (right, t + 1, b + 1), (right, t + 1, b)])
    ax.set(aspect="equal", title=title)
    ax.axis("off")
    ax.text(num_features / 2, -num_tokens - 0.3, note, ha="center", va="top", size=10.5)
    ax.text(-0.3, -num_tokens / 2, "tokens", rotation=90, ha="right", va="center", size=10, color=plots.MUTED)


column, row = block_of_numbers[:, :, 3], block_of_numbers[0, 2]
fig, axes = plots.figure(height=3.3, ncols=3)
draw_block(axes[0], block_of_numbers, lambda b, t, f: f == 3, "BatchNorm",
           f"24 numbers of feature 3\nmean {column.mean():.2f}, spread {column.std(correction=0):.2f}".replace("-", "−"))
draw_block(axes[1], block_of_numbers, lambda b, t, f: b == 0 and t == 2, "LayerNorm",
           f"8 numbers of token 2\nmean {row.mean():.2f}, spread {row.std(correction=0):.2f}".replace("-", "−"))
draw_block(axes[2], block_of_numbers, lambda b, t, f: b == 0 and t == 2, "RMSNorm",
           f"the same 8 numbers\nno mean, rms {row.square().mean().sqrt():.2f}")
plots.show(fig, alt="Three blocks of real activations: BatchNorm averages a slab of one feature, LayerNorm and RMSNorm a row of one token.")

# %%
mean_share = (streams.mean(-1).square() / streams.square().mean(-1)).mean(-1)
print("share of the mean in the mean square:", " ".join(f"{share:.4f}" for share in mean_share[::2]))

# %% [markdown]
# *Features run to the right, tokens down, texts into the depth. Grey: the magnitude of the stream before layer 3. Blue: what
# is averaged to norm one number.*
#
# What does leaving out the mean save? One of two reductions over the vector, a subtraction for each number, and the bias.
# Its paper reports 7 to 64 % less running time. And what does it lose? The printed shares run from the embedding to the
# last norm. For 256 independent numbers around zero one expects 1/256 = 0.0039: the mean is about what chance makes of it.
# Removing it still moves every number by $\sqrt{1/256}$, a sixteenth of the rms, and thirteen norms add that up: see the
# price list.
#
# Two details matter. First, $\varepsilon$ stands *under the root*. For $x = 10^{-3}$ and $\varepsilon = 10^{-6}$ the divisor
# is $\sqrt{2} \cdot 10^{-3}$; outside of the root, $\varepsilon$ would change it by a thousandth. Second, the statistics are
# taken in float32 whatever the input: bfloat16 keeps 8 significant bits and rounds at every step, and in float16
# 300² = 90,000 is already infinity.
#
# ### RoPE
#
# Attention as we wrote it doesn't know where a token stands: shuffle the past, and the mean is the same. **RoPE**
# (旋转位置编码, rotary position embedding) turns queries and keys by an angle that grows with the position, and nothing else.
#
# Split a head of $d$ numbers into $d/2$ pairs and read each pair as a complex number $z$. At position $p$, pair $j$ is
# multiplied by $e^{\mathrm{i} p \omega_j}$: its length stays, and it turns by $p\,\omega_j$ **radians** (弧度). The speeds fall
# geometrically, from 1 radian a token to nearly $1/\theta$:
#
# $$\omega_j = \theta^{-2j/d}, \qquad j = 0, \dots, d/2 - 1, \qquad \theta = 10{,}000 \text{ here}, 500{,}000 \text{ in Llama 3.}$$

# %%
attention = model.blocks[2].attention
h = model.blocks[2].attention_norm(streams[4])
q_real = attention.wq(h).unflatten(-1, (8, 32))[30, 5]  # token 30, head 5: (head_dim,)
k_real = attention.wk(h).unflatten(-1, (4, 32))[20, 2]  # token 20, the KV head that head 5 reads
speeds = 10_000.0 ** (-torch.arange(0, 32, 2) / 32)  # of the 16 pairs, radians a token

# %% tags=["hide-input"]
fig, axes = plots.figure(height=2.5, ncols=4)
for ax, i in zip(axes, (0, 2, 4, 8)):
    start = complex(q_real[i], q_real[i + 16])
    turned = [start * complex(math.cos(p * speeds[i]), math.sin(p * speeds[i])) for p in range(13)]
    radius = abs(start)
    circle = torch.linspace(0, 2 * math.pi, 100)
    ax.plot(radius * circle.cos(), radius * circle.sin(), color=plots.GRID, lw=1.5)
    for p, z in enumerate(turned):
        ax.plot([0, z.real], [0, z.imag], color=plots.tint(plots.BLUE, 0.15 + 0.07 * p), lw=1.2)
        ax.plot(z.real, z.imag, "o", color=plots.tint(plots.BLUE, 0.25 + 0.0625 * p), ms=6)
    ax.plot(start.real, start.imag, "o", color=plots.ORANGE, ms=8)
    ax.set(xlim=(-1.15 * radius, 1.15 * radius), ylim=(-1.15 * radius, 1.15 * radius), aspect="equal")
    ax.set_title(f"pair {i}", pad=4)
    ax.set_xlabel(f"{float(speeds[i]):.2g} rad a token", size=10.5)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
plots.show(fig, alt="Four pairs of a real query in the complex plane at positions 0 to 12: the first goes round twice, the last hardly moves.")

# %% [markdown]
# *A real query at positions 0 (orange) to 12 (darkest). Fast pairs tell neighbours apart, slow ones paragraphs.*
#
# Why rotate? The scalar product of two pairs is the real part of $z_q \overline{z_k}$. Turn the query to position $p$
# and the key to position $p'$, and
#
# $$\mathrm{Re}\left(z_q e^{\mathrm{i} p\omega} \cdot \overline{z_k e^{\mathrm{i} p'\omega}}\right)
# = \mathrm{Re}\left(z_q \overline{z_k}\, e^{\mathrm{i}(p-p')\omega}\right).$$
#
# The absolute positions are gone; the distance is left. With $R(p)$ for the rotation of a whole head to position $p$, that is
# $\langle R(p)q, R(p')k \rangle = \langle q, R(p'-p)k \rangle$. Three consequences: values must *not* be rotated (they aren't
# compared with anything); rotating a whole text further by the same amount changes nothing; and a rotated key can be
# kept, which makes the cache of chapter 08 possible.
#
# How much do far tokens lose? Take a query equal to its key, all ones. The score at distance $\Delta$, divided by the score at
# distance 0, is the mean of $\cos(\Delta\,\omega_j)$. Pairs that have turned by less than a radian contribute about 1, those
# that have gone round many times cancel to about 0. $\Delta\,\omega_j < 1$ means $2j/d > \ln \Delta / \ln\theta$, so a share of
# $1 - \ln \Delta / \ln\theta$ is left; more carefully, $1 - (\ln \Delta + 0.577)/\ln\theta$. This **long-range decay** (远程衰减)
# is a straight line over the logarithm of the distance, and a larger $\theta$ makes it flatter. It holds for equal $q$ and $k$;
# a trained head may prefer any distance.
#
# <details><summary>More carefully?</summary>
#
# The mean of $\cos(\Delta\,\theta^{-u})$ over $u$ from 0 to 1 is
# $[\mathrm{Ci}(\Delta) - \mathrm{Ci}(\Delta/\theta)] / \ln\theta$, with the cosine integral $\mathrm{Ci}$. For $1 \ll \Delta \ll \theta$, $\mathrm{Ci}(\Delta) \approx 0$ and
# $\mathrm{Ci}(\Delta/\theta) \approx 0.577 + \ln(\Delta/\theta)$, where 0.577 is Euler's constant.
#
# </details>

# %%
from minillm.model.rope import rotate as library_rotate

positions = torch.arange(8)
cos, sin = model.rope.cos_sin(positions, torch.float32)
q_turned = library_rotate(q_real.expand(8, 1, 32), cos, sin)[:, 0]
k_turned = library_rotate(k_real.expand(8, 1, 32), cos, sin)[:, 0]
scores = q_turned @ k_turned.T  # <R(p) q, R(p') k>
k_by_distance = [model.rope.rotate(k_real.expand(8, 1, 32), positions - i)[:, 0] for i in range(8)]
by_distance = torch.stack([q_real @ keys.T for keys in k_by_distance])
print("<R(p)q, R(p')k> = <q, R(p'-p)k>, all 64 pairs of positions:", torch.allclose(scores, by_distance, atol=1e-4))

# %% tags=["hide-input"]
fig, (left, right) = plots.figure(7.0, 3.2, ncols=2, width_ratios=(1, 1.25))
plots.matrix(left, scores, fmt=".1f", xlabel="position of the key", ylabel="position of the query",
             row_labels=range(8), column_labels=range(8), vmin=float(scores.min()) - 1)
distance = torch.logspace(0, 5, 100)
for theta, color in ((10_000.0, plots.ORANGE), (500_000.0, plots.BLUE)):
    omega = theta ** (-torch.arange(0, 128, 2) / 128)
    right.plot(distance, torch.cos(distance[:, None] * omega).mean(-1), color=color, lw=1.3, label=f"θ = {theta:,.0f}")
    straight = 1 - (distance.log() + 0.5772) / math.log(theta)
    right.plot(distance[straight > 0], straight[straight > 0], "--", color=plots.GREEN, lw=1.4)
right.plot([], [], "--", color=plots.GREEN, lw=1.4, label="1 − (ln Δ + 0.577) / ln θ")
right.set(xscale="log", xlabel="distance Δ (tokens)", ylabel="score, of that at distance 0", ylim=(-0.85, 1.05), xlim=(1, 1e5))
right.legend(loc="lower left", handlelength=1.3)
plots.show(fig, alt="Left: scores of a query and key at eight positions each are constant along diagonals. "
           "Right: the score decays with the logarithm of the distance.")

# %% [markdown]
# *Left: one real query and key placed at eight positions each. Each diagonal is one distance and one number.*
#
# #### Which two numbers form a pair?
#
# The mathematics doesn't care; checkpoints do. The paper and Meta's own weights pair neighbours (**interleaved**,
# 交错). Hugging Face pairs dimension $j$ with $j + d/2$ (**halves**, 对半), which needs no strided access. Conversion is a
# permutation of the rows of `wq` and `wk`, head by head; scores don't notice, since both sides are permuted alike.

# %%
to_halves = [0, 2, 4, 6, 1, 3, 5, 7]  # row i of the halves is row to_halves[i] of the neighbours
x = torch.randn(8, generator=torch.Generator().manual_seed(1))
angles = 3 * 10_000.0 ** (-torch.arange(0, 8, 2) / 8)  # position 3
as_neighbours = torch.view_as_real(torch.view_as_complex(x.reshape(4, 2)) * torch.polar(torch.ones(4), angles)).flatten()
first, second = x[to_halves].chunk(2)
as_halves = torch.cat((first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()))
print("permute, then rotate halves = rotate neighbours, then permute:", torch.allclose(as_halves, as_neighbours[to_halves]))

# %% tags=["hide-input"]
pair_colors = [plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE]
fig, ax = plots.diagram(7.2, 3.2)
top = plots.cells(ax, 0, 2.4, list(range(8)), colors=[pair_colors[i // 2] for i in range(8)])
below = plots.cells(ax, 0, 0, to_halves, colors=[pair_colors[i % 4] for i in range(8)])
for place, came_from in enumerate(to_halves):
    plots.arrow(ax, (top[came_from][0], 2.4), (below[place][0], 1.0), color=pair_colors[came_from // 2])
ax.text(8.3, 2.9, "neighbours: (0, 1) (2, 3) …", va="center")
ax.text(8.3, 0.5, "halves: place j with j + 4", va="center")
ax.set_xlim(-0.2, 14.2)
plots.show(fig, alt="Eight rows of a head: neighbours in one layout are four places apart in the other, pairs keep their colours.")

# %% [markdown]
# #### Longer contexts than trained for
#
# A pair that turned by at most 1 radian in all of training is at unknown angles in a text eight times as long. Three
# remedies change the speeds, by a `factor` of 8 below. **Linear** interpolation divides all of them: no new angles, but
# neighbours blur. **llama3** (Llama 3.1) divides only pairs that turn less than once over the original length, keeps those
# that turn more than four times, and blends between. **YaRN** blends between 1 and 32 turns, and scales the scores too.

# %% tags=["hide-input"]
from minillm.config import RopeConfig
from minillm.model.rope import frequencies

trained = {"theta": 500_000.0, "original_max_seq_len": 8192}
plain = frequencies(RopeConfig(theta=500_000.0), 128)
fig, ax = plots.figure(height=3.4)
for scaling, color, style in (("linear", plots.ORANGE, "-"), ("yarn", plots.PURPLE, "-"), ("llama3", plots.BLUE, "-")):
    scaled = frequencies(RopeConfig(**trained, scaling=scaling, factor=8.0), 128)
    ax.plot(2 * math.pi / plain, scaled / plain, style, color=color, marker="o", ms=3.5, label=scaling)
ax.axvline(8192, color=plots.GREY, lw=1.2, ls="--")
ax.text(8192 * 1.15, 0.9, "trained\nlength", color=plots.MUTED, va="center")
ax.set(xscale="log", xlabel="wavelength of the pair: tokens for one full turn", ylim=(0, 1.08))
ax.set_ylabel("speed, as a share\nof the original")
ax.set_yticks([0, 1 / 8, 0.5, 1], ["0", "1/8", "1/2", "1"])
ax.legend(loc="center left")
plots.show(fig, alt="Linear scaling slows all pairs to an eighth; llama3 and yarn keep fast pairs and slow down the slow ones.")

# %% [markdown]
# ### Attention
#
# The loops again, as five lines on whole tensors. A lower triangle says who may see whom; forbidden scores become
# $-\infty$, whose exponential is 0. The factor $1/\sqrt{d}$ is there because a sum of $d$ products of unit size has a
# spread of $\sqrt{d}$: without it the softmax of a wide head would be all or nothing.


# %%
def attend_in_five_lines(q, k, v, softmax_scale):
    """q, k, v (num_heads, seq_len, head_dim) -> the same shape."""
    scores = q @ k.transpose(-1, -2) * softmax_scale  # (num_heads, seq_len, seq_len)
    is_future = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool).triu(1)
    weights = scores.masked_fill(is_future, float("-inf")).softmax(dim=-1)
    return weights @ v


in_five_lines = attend_in_five_lines(q[None], k[None], v[None], d**-0.5)[0]
print("equals the loops:", torch.allclose(in_five_lines, torch.tensor(rows, dtype=torch.float64)))

# %% [markdown]
# #### One key for two queries
#
# Keys and values must be remembered, queries not (chapter 08). So let several query heads share one KV head: **grouped-query
# attention** (GQA, 分组查询注意力). Ours has 8 query heads on 4 KV heads, Llama 3 8B 32 on 8. Neighbours share: head $a$
# reads KV head $\lfloor a / (H/G) \rfloor$, which is `repeat_interleave`. PyTorch's `repeat` tiles instead; the shapes
# agree, and six of our eight heads then read a key that was never meant for them.

# %% tags=["hide-input"]
kv_colors = [plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE]
fig, axes = plots.figure(height=2.9, ncols=2)
for ax, title, reads in ((axes[0], "repeated: right", [0, 0, 1, 1, 2, 2, 3, 3]), (axes[1], "tiled: wrong", [0, 1, 2, 3] * 2)):
    queries = plots.cells(ax, 0, 3, [f"q{i}" for i in range(8)], colors=[kv_colors[i] for i in reads])
    keys = plots.cells(ax, 0.5, 0, [f"k{i}" for i in range(4)], colors=kv_colors, width=1.75)
    for head, kv_head in enumerate(reads):
        plots.arrow(ax, (queries[head][0], 3), (keys[kv_head][0], 1), color=kv_colors[kv_head], width=1.2)
    ax.set_title(title)
    ax.set_aspect("equal")
plots.show(fig, alt="Eight query heads and four KV heads: repeated, neighbours share one; tiled, heads four apart share one.")

# %% [markdown]
# ### SwiGLU
#
# After attention has gathered, the **feed-forward network** (前馈网络) works on each token alone. **SwiGLU** has two
# projections up to `intermediate_size`. One of them, sent through $\text{silu}(z) = z \cdot \text{sigmoid}(z)$, acts as a
# gate for the other:
#
# $$\text{SwiGLU}(x) = W_\text{down}\left(\text{silu}(W_\text{gate}\,x) \odot W_\text{up}\,x\right).$$
#
# $\odot$ multiplies number by number. A gate near 0 shuts a feature off, whatever the other branch says. Three matrices
# instead of two: to cost as much as the older feed-forward of two matrices, $h \times 4h$ each, the width becomes
# $\tfrac23 \cdot 4h = 2.67h$. Ours is 704 / 256 = 2.75, rounded to a multiple of 64.
#
# ### Not here: dropout
#
# **Dropout** (随机失活) zeroes each number with some probability during training and divides the rest by the share that is
# kept. So the expected value stays, and at inference there is nothing to do. Large models read most texts once, overfit
# little, and leave it out; so does ours.

# %% [markdown]
# ## The real version
#
# The library's files are in [minillm/model](../minillm/model), one idea a file; `source` shows their code. The norm and SwiGLU
# are yours to write first and come after the exercises. RoPE takes two lines: `(-second, first)` is the pair multiplied by the
# imaginary unit, so the sum is $z\,(\cos + \mathrm{i}\sin)$ for all pairs at once. Here `cos` and `sin` are as wide as the
# head, each angle twice. The angles are made in float32: position 257 doesn't exist in bfloat16.

# %%
from minillm.model.gqa import GroupedQueryAttention
from minillm.model.transformer import Block, Transformer

source(library_rotate)

# %% [markdown]
# Attention makes q, k and v, rotates two of them, and hands all three to something called `attend`. That is the five lines
# from above, given a name and made an argument. The model neither knows nor cares whether keys come from this text, from a
# cache (chapter 08), from blocks (13) or from another machine (28). `q_norm` and `k_norm` do nothing in a Llama; Qwen3 has
# norms there.

# %%
source(GroupedQueryAttention.forward)
source(Block.forward)
source(Transformer.hidden)

# %% [markdown]
# So our own five lines can run the real model: they only need the heads in front, and each KV head repeated.


# %%
def own_attend(layer_idx, q, k, v, softmax_scale):
    group = q.shape[-2] // k.shape[-2]
    k, v = k.repeat_interleave(group, -2), v.repeat_interleave(group, -2)
    q, k, v = (x.transpose(-2, -3) for x in (q, k, v))
    return attend_in_five_lines(q, k, v, softmax_scale).transpose(-2, -3)


own_logits = model(tokens, torch.arange(len(tokens)), own_attend)
close = torch.allclose(own_logits, logits, atol=1e-3)
print(f"{own_logits.numel():,} logits, the largest {logits.abs().max():.1f}, all within 0.001 of the library's: {close}")

# %% [markdown]
# ### The names in a checkpoint
#
# A **checkpoint** (检查点) is a `safetensors` file: a header in JSON with the name, dtype, shape and place of each tensor,
# then the bytes. The names are those of Hugging Face's classes, and the whole format of a Llama is this list:

# %%
from safetensors.torch import load_file

from minillm.hf_config import resolve_model_path
from minillm.model.hf_names import hf_name

file = resolve_model_path("stories-5m") / "model.safetensors"
stored = {name: tensor.float() for name, tensor in load_file(file).items()}
print(f"{len(stored)} tensors\n")
for name, parameter in model.named_parameters():
    if not name.startswith("blocks.") or name.startswith("blocks.0."):
        print(f"{name:32s} {hf_name(name):48s} {tuple(parameter.shape)}")

# %% [markdown]
# A matrix lies as (outputs, inputs), so a product with it is `x @ weight.T`. There is no `lm_head.weight`, because
# `config.json` says `tie_word_embeddings`. Here are the first layer's queries, straight from the file:

# %%
x = stored["model.embed_tokens.weight"][tokens]
h = F.rms_norm(x, (256,), stored["model.layers.0.input_layernorm.weight"], eps=config.norm_eps)
queries = h @ stored["model.layers.0.self_attn.q_proj.weight"].T  # (seq_len, 8 · 32)
block = model.blocks[0]
expected = block.attention.wq(block.attention_norm(x))
print("queries of layer 0 equal the library's:", torch.allclose(queries, expected, atol=1e-5))

# %% [markdown]
# The rest of the forward is Task 6, and it ends where this comparison began: at the logits of `load_model()`. That in turn
# is held against Hugging Face's `transformers` by the project's tests.

# %% [markdown]
# ## Measured
#
# ### The napkin against the file

# %%
built = sum(parameter.numel() for parameter in model.parameters())
header = int.from_bytes(file.read_bytes()[:8], "little") + 8
print(f"parameters: predicted {totals['stories-5m']:,}, built {built:,}, stored {sum(t.numel() for t in stored.values()):,}")
print(f"bytes: predicted {2 * totals['stories-5m']:,} + {header:,} of header, on disk {file.stat().st_size:,}")

# %% [markdown]
# To the byte.
#
# ### The price of a mistake
#
# Thirteen mistakes and one harmless change, each one or two lines around the finished model, and two questions to each. By
# how much does the loss rise? And how far are the logits from the right ones?

# %% tags=["hide-input"]
whole = FullAttend([None] * 6)


def changed(change):
    """A copy of the model, changed by a function of the copy."""
    other = copy.deepcopy(model)
    change(other)
    return other


class OtherNorm(torch.nn.Module):
    def __init__(self, norm, function):
        super().__init__()
        self.norm, self.function = norm, function

    def forward(self, x):
        return self.function(x, self.norm.weight, self.norm.eps)


def each_norm(function):
    def change(other):
        for block in other.blocks:
            block.attention_norm = OtherNorm(block.attention_norm, function)
            block.ffn_norm = OtherNorm(block.ffn_norm, function)
        other.norm = OtherNorm(other.norm, function)

    return change


def each_block(function):
    return lambda other: [function(block) for block in other.blocks]


def exchange_branches(block):
    block.ffn.w_gate, block.ffn.w_up = block.ffn.w_up, block.ffn.w_gate


def exchange_norms(block):
    block.attention_norm, block.ffn_norm = block.ffn_norm, block.attention_norm


def use_gelu(block):
    block.ffn.forward = lambda x, f=block.ffn: f.w_down(F.gelu(f.w_gate(x)) * f.w_up(x))


def at(positions, x):
    return model.rope.rotate(x, positions)


def in_bf16(x, weight, eps):
    narrow = x.bfloat16()
    return (weight.bfloat16() * narrow * torch.rsqrt(narrow.square().mean(-1, keepdim=True) + eps)).float()


def eps_outside(x, weight, eps):
    return weight * x / (x.square().mean(-1, keepdim=True).sqrt() + eps)


def layer_norm(x, weight, eps):
    return F.layer_norm(x, (256,), weight, None, eps)


def late_queries(layer_idx, q, k, v, softmax_scale):
    return whole(layer_idx, at(torch.ones(len(q)).long(), q), k, v, softmax_scale)


def rotated_values(layer_idx, q, k, v, softmax_scale):
    return whole(layer_idx, q, k, at(torch.arange(len(v)), v), softmax_scale)


def tiled_heads(layer_idx, q, k, v, softmax_scale):
    return whole(layer_idx, q, k.repeat(1, 2, 1), v.repeat(1, 2, 1), softmax_scale)


# %%
variants = {  # name: (model, attend, positions)
    "all positions + 100": (model, None, lambda n: torch.arange(n) + 100),
    "eps outside of the root": (changed(each_norm(eps_outside)), None, None),
    "eps 1e-5 and not 1e-6": (changed(each_norm(lambda x, w, eps: F.rms_norm(x, (256,), w, 1e-5))), None, None),
    "norms in bfloat16": (changed(each_norm(in_bf16)), None, None),
    "LayerNorm for RMSNorm": (changed(each_norm(layer_norm)), None, None),
    "GELU for SiLU": (changed(each_block(use_gelu)), None, None),
    "queries one position late": (model, late_queries, None),
    "scale by hidden_size": (model, lambda i, q, k, v, s: whole(i, q, k, v, 256**-0.5), None),
    "values rotated": (model, rotated_values, None),
    "no last norm": (changed(lambda other: setattr(other, "norm", torch.nn.Identity())), None, None),
    "the two norms exchanged": (changed(each_block(exchange_norms)), None, None),
    "KV heads tiled": (model, tiled_heads, None),
    "neighbours rotated, not halves": (wrong_pairs, None, None),
    "gate and up exchanged": (changed(each_block(exchange_branches)), None, None),
}
correct = logits_of(model)
right_nats = nats_per_token(correct)
prices = {}
for name, (some_model, attend, positions_of) in variants.items():
    found = logits_of(some_model, attend, positions_of or torch.arange)
    prices[name] = nats_per_token(found), max(float((a - b).abs().max()) for a, b in zip(found, correct))

# %% tags=["hide-input"]
fig, (left, right) = plots.figure(height=5.0, ncols=2, sharey=True, width_ratios=(1.25, 1))
rows_from_top = sorted(prices, key=lambda name: (prices[name][1] > 1e-3, prices[name]))
for row, name in enumerate(rows_from_top):
    nats, error = prices[name]
    color = plots.BLUE if error < 1e-3 else plots.ORANGE if nats < 1.05 * right_nats else plots.RED
    left.barh(row, nats, height=0.66, color=color)
    left.text(nats + 0.06, row, f"{nats:.3f}", va="center", size=10.5)
    right.plot([1e-6, error], [row, row], color=color, lw=2)
    right.plot(error, row, "o", color=color, ms=8)
left.axvline(right_nats, color=plots.GREEN, lw=1.3, ls="--")
left.set_yticks(range(len(rows_from_top)), rows_from_top)
left.set(xlabel="nats a token (held-out)", xlim=(0, 1.18 * max(nats for nats, _ in prices.values())))
left.set_title(f"loss (correct: {right_nats:.3f})", size=12)
right.set_title("logits", size=12)
right.axvline(1e-3, color=plots.GREEN, lw=1.3, ls="--")
right.set(xscale="log", xlim=(1e-6, 3000), xlabel="largest difference of a logit")
for ax in (left, right):
    ax.grid(axis="y", visible=False)
left.invert_yaxis()
plots.show(fig, alt="Several mistakes hardly move the loss, but all thirteen move the logits by more than one thousandth.")

# %% [markdown]
# *Red: the loss shows it. Orange: it rises by less than 5 %. Blue: not a mistake. Green lines: the correct loss, and the
# tolerance of the project's tests, 10⁻³.*
#
# The blue row is RoPE's promise kept: only distances count, and what differs is rounding. The red rows announce themselves.
# The orange ones are the lesson. A LayerNorm in place of the RMSNorm, a GELU, an eps ten times too large: the model tells
# stories as before, the loss hardly moves, and the logits are wrong, some by whole units. That is why a port of a model is
# checked by *comparing logits with another implementation*, in float32, on weights that have been trained or randomised (a
# norm weight of 1 hides an omission).
#
# ### A head that looks a name up
#
# The model in its finished form can be opened. In a story with two characters, wherever a name is about to be written, which
# head looks back to where *that* character was mentioned, and not the other? We capture all 48 attention matrices, with an
# attend of course, and add up the weight on earlier mentions: the name, or the token right behind it.

# %%
maps = []


def watching_attend(layer_idx, q, k, v, softmax_scale):
    k_repeated = k.repeat_interleave(2, dim=-2)
    is_future = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
    scores = torch.einsum("qhd,khd->hqk", q, k_repeated) * softmax_scale
    maps.append(scores.masked_fill(is_future, float("-inf")).softmax(-1))  # (num_heads, query, key)
    return whole(layer_idx, q, k, v, softmax_scale)


two_names = next(s.text for s in stories(seed=77) if s.text.count(" Max") >= 5 and s.text.count(" Leo") >= 3)
token_ids = tokenizer.encode(two_names)
pieces = [tokenizer.decode([i]) for i in token_ids]
model(torch.tensor(token_ids), torch.arange(len(token_ids)), watching_attend)
weights = torch.stack(maps)  # (layer, head, query, key)

mentions = {name: [i for i, piece in enumerate(pieces) if piece == f" {name}"] for name in ("Max", "Leo")}


def weight_on(name, query):
    """(layer, head): the weight of this query on all mentions of the name before it."""
    return weights[:, :, query, [j for i in mentions[name] for j in (i, i + 1) if j < query]].sum(-1)


lookups = [(name, other, place - 1) for name, other in (("Max", "Leo"), ("Leo", "Max")) for place in mentions[name][1:]]
on_right = torch.stack([weight_on(name, query) for name, _, query in lookups]).mean(0)
on_other = torch.stack([weight_on(other, query) for _, other, query in lookups]).mean(0)
layer, head = divmod(int(on_right.argmax()), 8)
runner_up = on_right.flatten().topk(2).values[1]
print(f"{len(lookups)} lookups. Layer {layer}, head {head}: weight {on_right[layer, head]:.2f} on the character to come, "
      f"{on_other[layer, head]:.2f} on the other. The runner-up: {runner_up:.2f}")

# %% tags=["hide-input"]
paragraphs = two_names.split("\n\n")
skipped = range(len(tokenizer.encode(paragraphs[0])), len(tokenizer.encode("\n\n".join(paragraphs[:3]))))  # the middle
queries = {mentions["Max"][-2] - 1: plots.BLUE, mentions["Leo"][-1] - 1: plots.ORANGE}
fig, ax = plots.figure(width=6.6, height=3.1)
ax.axis("off")
line_width, x, y = 60, 0.0, 0.0
for j in range(1, max(queries) + 2):
    if j in skipped:
        continue
    shown = pieces[j].replace("\n", "")
    if x + len(shown) > line_width and shown[0] not in ".,!?":
        x, y, shown = 0.0, y - 1.9, shown.lstrip()
    right_end = x + len(shown)
    ink, bold = plots.INK, "normal"
    for query, color in queries.items():
        strength = float(weights[layer, head, query, j])
        if j <= query and strength >= 0.1:
            ax.fill([x, right_end, right_end, x], [y - 0.65, y - 0.65, y + 0.65, y + 0.65], color=color)
            ink = plots.ink_on(color)
            seen = f"{strength:.2f} on {pieces[j]!r}, after {pieces[j - 1]!r}"
            print(f"from {pieces[query]!r}, before {pieces[query + 1]!r}: {seen}")
        if j == query:
            ax.plot([right_end - len(shown.strip()), right_end], [y - 0.68, y - 0.68], color=color, lw=2.5)
        if j == query + 1:
            bold = "bold"
    for place, character in enumerate(shown):
        style = {"size": 11.5, "family": "DejaVu Sans Mono", "color": ink, "weight": bold, "in_layout": False}
        ax.text(x + place + 0.5, y, character, ha="center", va="center", **style)
    x = right_end
    if "\n" in pieces[j] or j + 1 == skipped.start:
        x, y = 0.0, y - 2.2
ax.plot([0, line_width], [1.6, y - 1], alpha=0)
ax.set(xlim=(-0.5, line_width + 0.5), ylim=(y - 1, 1.6))
plots.show(fig, alt="A story in which one head, where a name is to come, looks back at where that character was introduced.")

# %% [markdown]
# *Where this head looks from two places (underlined) just before a name (bold). Two paragraphs are left out.*
#
# It goes across the story to where the character came in: to the name, or to the token right behind it. Attention reads
# streams and not words, and this far up a token's stream holds more than the token. Looking is not yet using, so we silence
# the head, then all heads that look there, and for comparison as many others, and ask how likely the right name is then. (We chose the head on this very
# story. A study would test it on others.)


# %%
def silencing(silent_heads):
    """An attend in which these heads, pairs (layer, head), say nothing."""

    def attend(layer_idx, q, k, v, softmax_scale):
        out = whole(layer_idx, q, k, v, softmax_scale)
        for silent_layer, silent_head in silent_heads:
            if layer_idx == silent_layer:
                out[:, silent_head] = 0
        return out

    return attend


def chances(attend):
    likely = model(torch.tensor(token_ids), torch.arange(len(token_ids)), attend).softmax(-1)
    return [float(likely[query, token_ids[query + 1]]) for _, _, query in lookups]


looking = [divmod(i, 8) for i in on_right.flatten().argsort(descending=True).tolist() if on_right.flatten()[i] > 0.5]
others = [(looking_layer, (looking_head + 4) % 8) for looking_layer, looking_head in looking]  # of the same layers
print("heads with most of their weight there, (layer, head):", looking)
series = (
    ("model as it is", plots.BLUE, chances(whole)),
    (f"without {len(others)} other heads", plots.GREY, chances(silencing(others))),
    ("without the strongest", plots.SKY, chances(silencing(looking[:1]))),
    (f"without all {len(looking)} that look", plots.ORANGE, chances(silencing(looking))),
)

# %% tags=["hide-input"]
fig, (bars, names_ax) = plots.figure(height=5.4, nrows=2)
bars.bar(range(48), on_right.flatten(), color=plots.BLUE, width=0.8, label="on the character to come")
bars.bar(range(48), -on_other.flatten(), color=plots.GREY, width=0.8, label="on the other (downward)")
bars.set_xticks([8 * i + 3.5 for i in range(6)], [f"layer {i}" for i in range(6)])
for border in range(1, 6):
    bars.axvline(8 * border - 0.5, color=plots.GRID, lw=1)
bars.set(ylabel="weight", xlim=(-0.7, 47.7), ylim=(-0.3, 1.05), title="where each of the 48 heads looks", yticks=[0, 0.5, 1])
bars.grid(axis="x", visible=False)
bars.legend(loc="upper left")
for i, (label, color, probabilities) in enumerate(series):
    places = [place + 0.21 * (i - 1.5) for place in range(len(lookups))]
    names_ax.bar(places, probabilities, width=0.19, color=color, label=label)
names_ax.set_xticks(range(len(lookups)), [f"{''.join(pieces[q]).strip()}\n{name}" for name, _, q in lookups], size=10)
names_ax.set(ylabel="probability", ylim=(0, 1.55), yticks=[0, 0.5, 1], title="how likely the model finds the name that follows")
names_ax.grid(axis="x", visible=False)
names_ax.legend(loc="upper left", ncols=2, columnspacing=1)
plots.show(fig, alt="One head of 48 looks at the right character; without it the names' probabilities fall, "
           "without all that look they vanish, without others hardly anything changes.")

# %% [markdown]
# Without the strongest head most names survive, though weakened: others look at the same place and step in. Without all of
# them the names are gone. As many other heads of the same layers are hardly missed. Large models keep such spares too; in
# GPT-2 they were named backup heads (Wang et al.).
#
# Nobody programmed this. The stories have names that must be repeated, and this is how the model came to repeat them.

# %% [markdown]
# ## In production
#
# * **Hugging Face `transformers`** writes the same model in `modeling_llama.py`: `rotate_half` for the halves, `repeat_kv` for
#   GQA. The names of the checkpoint are its class names.
# * **vLLM** and **SGLang** load the same names and fuse them: one matrix for q, k, v (`qkv_proj`), one for gate and up
#   (`gate_up_proj`), one kernel that adds to the stream and norms it. The arithmetic is this chapter's; chapter 07 fuses.
# * **llama.cpp** rotates neighbours for Llama. Its converter permutes the rows of `q_proj` and `k_proj` on the way to
#   GGUF, which is the picture above run backwards.

# %% [markdown]
# ## Exercises
#
# In [exercises/ch02_building_the_model.py](../exercises/ch02_building_the_model.py), 30 points:
#
# | task | points | prepared by |
# |---|---|---|
# | `parameter_count`: a prediction, from `config.json` alone | 3 | Napkin |
# | `rms_norm`: float32 inside, any dtype outside | 5 | RMSNorm |
# | `rotate`: positions to angles to turned pairs | 5 | RoPE |
# | `grouped_attention`: shared KV heads, causal | 5 | Attention |
# | `feed_forward`: a bug hunt, three things are wrong, and a fourth lies in wait | 5 | The residual stream, SwiGLU |
# | `forward`: **your own Llama**, with the logits of the library | 7 | The real version |
#
# ```
# python3 tasks.py grade ch02
# ```
#
# When all six are done, `python -m exercises.ch02_building_the_model`, from the repository's folder and with the Python of
# its environment, tells a story with your model.
#
# ### Compare with the library
#
# When your norm and your feed-forward pass, look at the library's. `wide` is float32 at least, and the quotient returns to the
# dtype it came in before the weight is applied.

# %%
from minillm.model.ffn import SwiGLU
from minillm.model.norm import RMSNorm

source(RMSNorm.forward)
source(SwiGLU.forward)

# %% [markdown]
# ## Check yourself
#
# <details><summary>Mistral 7B is shaped like Llama 3 8B, but has a vocabulary of 32,000. How many parameters?</summary>
#
# Embedding and output head shrink: 8,030,261,248 − 2 · (128,256 − 32,000) · 4,096 = 8,030,261,248 − 788,529,152 =
# 7,241,732,096.
#
# </details>
#
# <details><summary>All positions of a text move by 100. What happens to the logits? And if only queries move, by 1?</summary>
#
# Nothing but rounding: scores depend on distances. Queries alone moved by 1 make every key look one token farther away than it
# is; the loss hardly rises, the logits are wrong.
#
# </details>
#
# <details><summary>Our model's slowest pair (head_dim 32, θ = 10,000): how long is a turn, how far does it get in 512?</summary>
#
# Its speed is 10,000^(−30/32) = 1.78 · 10⁻⁴ radians a token: a turn takes 2π / 1.78 · 10⁻⁴ = 35,333 tokens. In 512 it
# turns by 0.091 radians, 5 degrees. It is practically not a position but content.
#
# </details>
#
# <details><summary>Why is a post-norm model, norm(x + f(x)), not the same as pre-norm with other weights?</summary>
#
# Its stream itself is normed after every layer: what early layers wrote is rescaled each time, and no path leads from the
# embedding to the last layer without a norm. In pre-norm the stream is a plain sum, and only its end is normed.
#
# </details>

# %% [markdown]
# ## Sources
#
# * Vaswani et al. 2017, *Attention is all you need*, [arXiv:1706.03762](https://arxiv.org/abs/1706.03762), §3.2.1: scaled
#   dot-product attention.
# * Touvron et al. 2023, *LLaMA*, [arXiv:2302.13971](https://arxiv.org/abs/2302.13971), §2.2: pre-norm, SwiGLU and rotary
#   embeddings in one model. *The Llama 3 herd of models*, 2024, [arXiv:2407.21783](https://arxiv.org/abs/2407.21783).
# * Zhang and Sennrich 2019, *Root mean square layer normalization*, [arXiv:1910.07467](https://arxiv.org/abs/1910.07467).
#   Before it: BatchNorm, Ioffe and Szegedy 2015, [arXiv:1502.03167](https://arxiv.org/abs/1502.03167); LayerNorm, Ba et al.
#   2016, [arXiv:1607.06450](https://arxiv.org/abs/1607.06450). Where the norm stands: Xiong et al. 2020,
#   [arXiv:2002.04745](https://arxiv.org/abs/2002.04745).
# * Su et al. 2021, *RoFormer*, [arXiv:2104.09864](https://arxiv.org/abs/2104.09864): rotary position embedding and its decay.
#   Longer contexts: Chen et al. 2023, position interpolation, [arXiv:2306.15595](https://arxiv.org/abs/2306.15595); Peng et
#   al. 2023, YaRN, [arXiv:2309.00071](https://arxiv.org/abs/2309.00071).
# * Ainslie et al. 2023, *GQA*, [arXiv:2305.13245](https://arxiv.org/abs/2305.13245). Shazeer 2020, *GLU variants improve
#   Transformer*, [arXiv:2002.05202](https://arxiv.org/abs/2002.05202). Srivastava et al. 2014, *Dropout*, JMLR 15.
# * Heads that copy: Olsson et al. 2022, *In-context learning and induction heads*,
#   [arXiv:2209.11895](https://arxiv.org/abs/2209.11895); Wang et al. 2022, *Interpretability in the wild*,
#   [arXiv:2211.00593](https://arxiv.org/abs/2211.00593).
#
# Next: [chapter 03](03_training.ipynb) trains this model, and knows in advance how good it can get.
