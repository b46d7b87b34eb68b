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
# # 08 · KV cache
#
# *A model reads its own output again for every word it writes. This chapter makes it remember instead.*
#
# Needs: chapters [01](01_whole_system.ipynb) and [02](02_building_the_model.ipynb)  ·  Time: 60 minutes to read, 60 to solve

# %% [markdown]
# ## Why
#
# A chat that answers quickly at first and slows down with every sentence is a chat without a cache. To choose one more token, the
# loop of chapter 01 runs the *whole* text through the model: the prompt, and everything the model has said so far. Of the
# numbers that come out it uses one row, the logits after the last token, and throws the others away. A moment later it
# computes all of them again, with one token more.
#
# Here is the number that hurts. The forward that reads token 512 of a text computes 511 tokens that it had computed before. Over
# those 512 tokens, the loop of the bundled model does **268 times** the arithmetic that it needs to. This chapter gets the factor
# back, pays for it in memory, and ends up owing so much memory that chapter 13 has to be about nothing else.

# %%
import copy
import random
import time

import torch
from IPython.display import Markdown

import minillm
from minillm import plots
from minillm.attention import naive_attention
from minillm.bench.recorded import recorded
from minillm.bench.show import source
from minillm.cache import ContiguousCache
from minillm.data.stories import sample_story
from minillm.perf.flops import count_flops

model = minillm.load_model()
tokenizer = minillm.load_tokenizer()
story = sample_story(random.Random("chapter 08"))
story_ids = torch.tensor(tokenizer.encode(story.text))  # (num_tokens,)
print(f"{len(story_ids)} tokens: {story.text[:150]} ...")

# %% [markdown]
# ## Napkin
#
# **How much arithmetic?** A linear layer does two floating-point operations (FLOPs) per weight and token: one multiplication,
# one addition. Attention multiplies each query with each key (`head_dim` terms) and mixes as many values: $4 \cdot d$ FLOPs for a
# pair, in each of $H$ heads of each of $L$ layers. Pairs that the causal mask hides are computed too and thrown away, so all $n^2$
# count (chapter 10 stops that). For a forward over $n$ tokens,
#
# $$C_\text{whole}(n) = a\,n + b\,n^2, \qquad a = 2\,N_\text{weights}, \qquad b = 4\,L\,H\,d .$$
#
# If instead only the newest token went through the layers and met the $n$ keys, remembered from before,
#
# $$C_\text{newest}(n) = a + b\,n .$$
#
# The bundled model has $L = 6$, $H = 8$, $d = 32$ and 4.95 million weights in its matrices (the embedding counts: it is also the
# output matrix). So $a \approx 9.9$ million and $b = 6144$. The $n^2$ overtakes the $n$ only at $n = a/b \approx 1600$, three times the
# longest text that this model can read; for Llama 2 7B at 26,000. That is worth remembering whenever somebody says that attention is
# quadratic. What makes the loop slow is not the square. It is the recomputation: summed over a text, $a\,n$ becomes $a\,n^2/2$.
#
# **How many bytes?** To remember, we must store. Each token leaves one key and one value in every layer, for every KV
# head (the grouped heads of [chapter 02](02_building_the_model.ipynb)):
#
# $$\text{bytes per token} = 2 \cdot L \cdot H_\text{kv} \cdot d \cdot (\text{bytes per number}).$$

# %%
shapes = {
    # name: layers, KV heads, head_dim, bytes per number, weights (parameters)
    "stories-5m, fp32": (6, 4, 32, 4, 4.95e6),
    "Llama 2 7B, fp16": (32, 32, 128, 2, 6.74e9),
    "Llama 2 13B, fp16": (40, 40, 128, 2, 13.0e9),
    "Llama 3 8B, bf16": (32, 8, 128, 2, 8.03e9),
    "OPT-66B, fp16": (64, 72, 128, 2, 65.7e9),
}
rows = ["| model | KV cache per token | 2,048 tokens |", "|---|---|---|"]
for name, (num_layers, num_kv_heads, head_dim, bytes_per_number, _) in shapes.items():
    per_token = 2 * num_layers * num_kv_heads * head_dim * bytes_per_number
    rows.append(f"| {name} | {per_token / 2**10:,.0f} KiB | {2048 * per_token / 2**20:,.0f} MiB |")
Markdown("\n".join(rows))

# %% [markdown]
# One conversation of 2,048 tokens with Llama 2 7B takes 1 GiB beside 12.6 GiB of weights. OPT-66B needs 2.25 MiB a token: 512 tokens
# take 1.125 GiB, and 109 users of that length more than the 122 GiB of weights. Llama 3 8B shares each KV head among four query heads and
# needs a quarter of what Llama 2 7B needs: that is chapter 09.
#
# **How fast, then?** With a cache, choosing one user's next token reads every weight and every cached key and value once, and does two
# FLOPs with each weight: one FLOP for every two bytes in float32. An H100 could do about 300 FLOPs in the time it reads one byte. So
# reading is what takes the time:
#
# $$\text{tokens/s} \le \frac{\text{memory bandwidth}}{\text{bytes of weights} + n \cdot \text{bytes per token}} .$$
#
# We will hold a measurement against this line before the chapter ends.

# %% [markdown]
# ## The naive version
#
# The loop of chapter 01, once more. It is short and obviously right, and it stays in the library as the oracle of every
# faster loop (`generate_uncached`).

# %%
@torch.inference_mode()
def tell_naively(token_ids: list[int], num_new_tokens: int) -> list[int]:
    """Greedy decoding that runs the whole text through the model for every token."""
    for _ in range(num_new_tokens):
        logits = model(torch.tensor(token_ids))  # (len(token_ids), vocab_size): all rows but the last are thrown away
        token_ids = [*token_ids, int(logits[-1].argmax())]
    return token_ids


prompt_ids = tokenizer.encode("Once upon a time, there was a clever fox named Olive who")
told_naively = tell_naively(prompt_ids, 40)
print(tokenizer.decode(told_naively))

# %% [markdown]
# Count what it computes. `count_flops` watches the matrix products that torch executes, so nothing below is taken from the
# formula: the dots are counted, the lines are predicted. (The cache is explained below; for now, `begin` … `commit` puts $n - 1$ tokens
# into it, and the count is of one more.)

# %%
counted_lens = [1, 32, 64, 128, 192, 256, 384, 512]
any_ids = torch.randint(model.config.vocab_size, (512,), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def flops_of_whole(n: int) -> int:
    return count_flops(lambda: model(any_ids[:n]))


@torch.inference_mode()
def flops_of_newest(n: int) -> int:
    """The last of n tokens, with the others in a cache."""
    cache = ContiguousCache(model.layer_specs, batch_size=1, max_seq_len=n)
    if n > 1:
        attend = cache.begin([n - 1])
        model(any_ids[None, : n - 1], attend.positions, attend)
        cache.commit()
    attend = cache.begin([1])
    return count_flops(lambda: model(any_ids[None, n - 1 : n], attend.positions, attend))


whole = [flops_of_whole(n) for n in counted_lens]
newest = [flops_of_newest(n) for n in counted_lens]
a = 2 * sum(p.numel() for p in model.parameters() if p.ndim == 2)
b = sum(4 * spec.num_heads * spec.k_head_dim for spec in model.layer_specs)
assert whole == [a * n + b * n**2 for n in counted_lens] and newest == [a + b * n for n in counted_lens]
lens = torch.arange(1, 513)
print(f"summed over 512 tokens: {float((a * lens + b * lens**2).sum() / (a + b * lens).sum()):.0f} times the arithmetic")

fig, (ax, share_ax) = plots.figure(ncols=2, height=3.4, width_ratios=[3, 2])
ax.plot(lens, (a * lens + b * lens**2) / 1e9, color=plots.ORANGE)
ax.plot(lens, (a + b * lens) / 1e9, color=plots.BLUE)
ax.plot(counted_lens, [f / 1e9 for f in whole], "o", color=plots.ORANGE)
ax.plot(counted_lens, [f / 1e9 for f in newest], "o", color=plots.BLUE)
ax.set(yscale="log", xlabel="tokens in the text, n", ylabel="GFLOP for one more token", title="Counted (dots), predicted (lines)", ylim=(0.005, 30))
ax.text(120, 7, "whole text: $an + bn^2$")
ax.text(120, 0.02, "newest token only: $a + bn$")
ax.plot([512, 512], [newest[-1] / 1e9, whole[-1] / 1e9], ":", color=plots.INK)
ax.text(495, 0.3, f"{whole[-1] / newest[-1]:.0f}×", ha="right", fontsize=14)
share_ax.plot(lens, 100 * b * lens / (a + b * lens), color=plots.PURPLE)
share_ax.axvline(512, color=plots.MUTED, linestyle=":")
share_ax.text(500, 46, "longest text", ha="right", color=plots.MUTED)
share_ax.set(xlabel="n", ylabel="% of the FLOPs", title="The share of the $n^2$ part", ylim=(0, 50))
plots.show(fig, alt="FLOPs for one more token against text length: recomputing everything grows to 512 times the cost of computing only the newest token; the quadratic part reaches 24 percent at 512 tokens.")

# %% [markdown]
# The counts and the formula agree to the last FLOP, and the quotient at $n = 512$ is exactly 512: it costs $n$ times too much
# to compute $n$ tokens when one was asked for. The right panel is the warning from the napkin: at the end of the longest text that the
# model can read, three quarters of the bill are still linear.

# %% [markdown]
# ## The idea
#
# Why may we keep anything? Because of the causal mask. In layer $\ell$ the key of token $j$ is computed from the
# state of token $j$, and that state has seen tokens $0 \ldots j$ and nothing later. Appending a token at the end changes
# nothing that lies before it:
#
# $$k_j^{(\ell)} = R(j)\, W_K\, \mathrm{norm}\big(x_j^{(\ell)}\big), \qquad x_j^{(\ell)} \text{ depends on tokens } 0 \ldots j \text{ only,}$$
#
# with $k_j$ of shape (`num_kv_heads`, `head_dim`) and $R(j)$ the rotation of RoPE by position $j$. In a model without the mask (BERT)
# every state depends on every token, and there is nothing to keep.
#
# And what must we keep? The newest token, at position $t = n - 1$, needs its own query and *everybody's* keys and values. For one head
# (a query head reads the KV head of its group):
#
# $$o_t = \sum_{j \le t} \frac{\exp(q_t \cdot k_j / \sqrt d)}{\sum_{i \le t} \exp(q_t \cdot k_i / \sqrt d)}\; v_j .$$
#
# Old queries appear nowhere. Their rows of the attention matrix were finished when their tokens were new. So: keep K and V,
# forget Q. That is why it is called a **KV cache** (KV 缓存).
#
# Do not take the argument's word for it. An attend can look at the keys as they pass by (chapter 02 gave it its name); here
# is one that writes them down, for a text and for the same text with one more token. We don't ask for a difference of exactly 0: a product of
# another shape may add its terms in another order.

# %%
def keys_and_weights(token_ids: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What passes through one layer: keys (num_tokens, num_kv_heads, head_dim), attention weights (num_heads, n, n)."""
    seen = {}

    def curious_attend(layer_idx, q, k, v, softmax_scale):
        if layer_idx == layer:
            group = q.shape[1] // k.shape[1]
            scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(group, dim=1)) * softmax_scale
            hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
            seen["k"], seen["weights"] = k, scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return naive_attention(q[None], k[None], v[None], softmax_scale=softmax_scale)[0][0]

    with torch.inference_mode():
        model(token_ids, torch.arange(len(token_ids)), curious_attend)
    return seen["k"], seen["weights"]


shorter, _ = keys_and_weights(story_ids[:30], layer=5)
longer, weights = keys_and_weights(story_ids[:31], layer=5)
largest_change = (longer[:30] - shorter).abs().max()
print("keys of the first 30 tokens, last layer:", tuple(shorter.shape))
print("largest change when token 31 arrives is below 1e-5:", bool(largest_change < 1e-5))

# %% [markdown]
# Below is the attention that one head of layer 3 really paid to the beginning of our story, a row for each token. The grey rows were
# finished in earlier steps; the blue row is the only one that the newest token adds. Computing the grey ones again is what the naive
# loop does.

# %% tags=["hide-input"]
num_shown = 14
_, weights = keys_and_weights(story_ids[:num_shown], layer=3)
head = int(weights[:, -1].max(-1).values.argmin())  # the head whose last row is spread most evenly
shown = weights[head].masked_fill(torch.ones(num_shown, num_shown, dtype=torch.bool).triu(1), float("-inf"))
labels = [plots.visible(tokenizer.decode([i], skip_special_tokens=False)) for i in story_ids[:num_shown].tolist()]
labels[0] = "begin"
fig, ax = plots.figure(width=6.4, height=5.4)
for query, row in enumerate(shown.tolist()):
    color = plots.BLUE if query == num_shown - 1 else plots.MUTED
    for key, weight in enumerate(row[: query + 1]):
        shade = plots.tint(color, 0.06 + 0.94 * min(1, weight / 0.6))
        plots.box(ax, key - 0.5, query - 0.5, 1, 1, color=shade, filled=True)
ax.set_yticks(range(num_shown), [*labels[:-1], "new: " + labels[-1]])
ax.set_xticks(range(num_shown), labels, rotation=45, ha="right", rotation_mode="anchor")
ax.set(xlabel="keys and values, kept in the cache", ylabel="queries", xlim=(-0.6, num_shown - 0.4), ylim=(num_shown - 0.4, -0.6), aspect="equal")
ax.grid(False)
plots.show(fig, alt="Lower-triangular attention matrix of fourteen tokens in grey, with one blue row at the bottom, the newest token's, which alone has to be computed.")

# %% [markdown]
# A generation now has two phases that a computer experiences very differently.
#
# * **Prefill** (预填充): the whole prompt goes through at once. Each weight that is read from memory serves every token of the prompt: many
#   FLOPs for a byte, and the arithmetic units are busy.
# * **Decode** (解码): one token goes through. Each weight that is read serves one token, two FLOPs, and the arithmetic units wait for
#   memory. The cache has taken away so much arithmetic that what is left is bound by reading.
#
# Every later part of the course is about one of the two.

# %% [markdown]
# ## The real version
#
# The model must not know about any of this. It hands q, k and v to its attend and takes back an output (chapter 02's
# *seam*). So the cache is an attend, with some bookkeeping around it. In the library a forward takes three lines:
#
# ```python
# attend = cache.begin([num_new_tokens])             # reserves slots, says which positions they are
# logits = model(tokens, attend.positions, attend)   # each layer stores its k and v, and attends to all so far
# cache.commit()                                     # now the tokens count
# ```
#
# Why both `begin` and `commit`? Because a forward can turn out to be unwanted: it may fail, or the tokens in it may be guesses
# of which only some are accepted (chapter 18). Until `commit` nothing has happened, and the slots are simply written again.
#
# Storage is one **slab** a layer, `(batch, capacity, num_kv_heads, head_dim)`, filled from the left. Here is the attend,
# from the library's own source:

# %%
from minillm.cache.contiguous import ContiguousAttend

source(ContiguousAttend.__call__)
source(ContiguousAttend._store)

# %% [markdown]
# Store the new, look at everything so far, attend. `keys` is a *view* of the slab, not a copy: copying it would move the whole cache for
# every layer of every token. `in_step` is the common case in which all sequences of a batch have the same length; a layer without a `slab_v`
# belongs to chapter 09, a `window` to chapter 12.
#
# The bookkeeping is small. `begin(n)` refuses if `seq_len + n` exceeds the capacity, and says that the new tokens stand at positions `seq_len`
# to `seq_len + n - 1`. `commit()` adds `n` to `seq_len`. `crop(m)` sets `seq_len` to `m`. Nobody else moves `seq_len`: while a forward
# runs, each of its layers writes at the same place.
#
# ### Which keys may a new token see?
#
# With one new token there is nothing to mask: it sees all. With a whole prompt it is the triangle you know. Between the two lies the
# case that people get wrong: a few new tokens after many old ones, as when a prompt is fed in chunks. The queries are the *last* `q_len` of
# `k_len` tokens, so the triangle must sit in the bottom **right** corner. `torch.ones(q_len, k_len).tril()` puts it in
# the top left.

# %%
from minillm.attention.naive import visible_keys

q_len, k_len = 3, 9
right = visible_keys(q_len, k_len, causal=True, window=None)
wrong = torch.ones(q_len, k_len, dtype=torch.bool).tril()
fig, axes = plots.figure(ncols=2, height=2.3)
for ax, mask, title in zip(axes, (right, wrong), ("Right: aligned with the end", "Wrong: aligned with the start")):
    plots.matrix(ax, mask, row_labels=[f"query {i}" for i in range(k_len - q_len, k_len)], column_labels=range(k_len), xlabel="key")
    ax.set_title(title)
plots.show(fig, alt="Two masks for three queries and nine keys: the right one lets queries 6, 7, 8 see keys up to their own position, the wrong one shows them only the first three keys.")

# %% [markdown]
# The wrong mask raises no error. Its three queries each see a piece of the beginning and nothing of what was just said.
#
# ### Sequences of different lengths
#
# A server holds many conversations, and no two are equally long. The cache keeps a length for each row; row $b$ writes behind its own
# `seq_lens[b]`, and its positions start there. What pads the shorter rows is never stored, and its outputs are never read. The picture is a trace: three prompts go in, two tokens are decoded, the second
# conversation ends and leaves, the last one takes back three tokens. A slot is coloured if its key in layer 0 is not zero.

# %%
prompts = [tokenizer.encode(text) for text in ("Once upon a time, there lived a", "The end.", "One morning, Anna")]
cache = ContiguousCache(model.layer_specs, batch_size=3, max_seq_len=12)
snapshots = []


def snapshot(title: str) -> None:
    written = cache.k[0].abs().sum((2, 3)) > 0  # (batch, capacity)
    snapshots.append((title, written.tolist(), list(cache.seq_lens)))


@torch.inference_mode()
def feed(new_ids: list[list[int]]) -> torch.Tensor:
    """One forward: row b gets the tokens new_ids[b]. Returns the logits after the last token of each row."""
    width = max(map(len, new_ids))
    tokens = torch.tensor([ids + [0] * (width - len(ids)) for ids in new_ids])  # padded on the right
    attend = cache.begin([len(ids) for ids in new_ids])
    logits = model(tokens, attend.positions, attend)
    cache.commit()
    return logits[range(len(new_ids)), [len(ids) - 1 for ids in new_ids]]  # (batch, vocab_size)


logits = feed(prompts)
snapshot("prefill: three prompts in one forward")
for _ in range(2):
    logits = feed(logits.argmax(-1, keepdim=True).tolist())
snapshot("decode: two forwards, one token a row")
cache.reorder([0, 2])
snapshot("the second sequence leaves (reorder)")
cache.crop([cache.seq_lens[0], cache.seq_lens[1] - 3])
snapshot("the last one takes back three tokens (crop)")

fig, ax = plots.diagram(5.6, 4.4)
y = 0.0
for title, written, seq_lens in snapshots:
    ax.text(0, y, title, va="bottom", fontweight="bold")
    for slots, seq_len in zip(written, seq_lens):
        y -= 1
        colors = [plots.BLUE if i < seq_len else plots.GREY if is_written else plots.PAPER for i, is_written in enumerate(slots)]
        labels = [i if is_written else "" for i, is_written in enumerate(slots)]
        plots.cells(ax, 0, y, labels, colors=colors, width=1.5)
    y -= 1.3
plots.show(fig, alt="Slots of a contiguous cache after prefill, decode, reorder and crop; blue slots belong to a sequence, grey ones hold forgotten keys, empty ones are reserved.")

# %% [markdown]
# Blue slots belong to a sequence, white ones are reserved and empty. The grey slots in the last panel still hold keys, but nobody will look at them:
# `crop` moves a number and touches no memory. The next tokens overwrite them.
#
# ### Right for every way of feeding
#
# The test that matters: feed a text in any pieces you like, and the logits must be those of one forward. The library's own tests do this
# with random pieces, ragged batches, crops and reorders, against a second implementation. Here are a few.

# %%
@torch.inference_mode()
def logits_in_pieces(token_ids: torch.Tensor, piece_len: int) -> torch.Tensor:
    cache = ContiguousCache(model.layer_specs, batch_size=1)
    pieces = []
    for piece in token_ids.split(piece_len):
        attend = cache.begin([len(piece)])
        pieces.append(model(piece[None], attend.positions, attend)[0])
        cache.commit()
    return torch.cat(pieces)  # (num_tokens, vocab_size)


with torch.inference_mode():
    expected = model(story_ids)
for piece_len in (1, 2, 7, 64, len(story_ids)):
    difference = (logits_in_pieces(story_ids, piece_len) - expected).abs().max()
    print(f"pieces of {piece_len:3d}: largest difference below 1e-3: {bool(difference < 1e-3)}")

assert minillm.generate(model, prompt_ids, minillm.SamplingParams(max_new_tokens=40, temperature=0)) == told_naively[len(prompt_ids) :]
print("greedy decoding chooses the same 40 tokens as the naive loop")

# %% [markdown]
# ### Four ways to get it wrong
#
# None of these crashes. Each takes a few lines around the right attend. The score is how much the true story surprises the model, in
# nats per token: the average of $-\ln p(\text{next token})$, as in chapter 02. A model that has understood nothing pays $\ln 2048 = 7.6$. The
# story is fed four tokens at a time.

# %%
from minillm.model.rope import Rope

rope: Rope = model.layer_specs[0].rope


def zero_positions(attend):
    """The new tokens count from 0 again."""
    return torch.zeros_like(attend.positions) + torch.arange(attend.positions.shape[1]), attend


def rotated_twice(attend):
    """Keys are rotated by the model, and again on their way into the cache."""
    return attend.positions, lambda layer, q, k, v, scale: attend(layer, q, rope.rotate(k, attend.positions), v, scale)


def mask_at_the_start(attend):
    """The triangle sits in the top left corner."""

    def wrong_attend(layer, q, k, v, scale):
        attend(layer, q, k, v, scale)  # stores k and v
        keys, values = (slab[:, : attend.k_len] for slab in (attend.cache.k[layer], attend.cache.v[layer]))
        mask = torch.ones(q.shape[1], attend.k_len, dtype=torch.bool).tril()
        return naive_attention(q, keys, values, causal=False, softmax_scale=scale, mask=mask)[0]

    return attend.positions, wrong_attend


def new_tokens_only(attend):
    """Attends to k and v as they came in, and not to what the cache returned."""
    return attend.positions, lambda layer, q, k, v, scale: (
        attend(layer, q, k, v, scale), naive_attention(q, k, v, softmax_scale=scale)[0]
    )[1]


@torch.inference_mode()
def surprise(tamper, piece_len: int = 4) -> float:
    """Nats per token of the story, fed in pieces through a tampered cache."""
    cache, log_probs = ContiguousCache(model.layer_specs, batch_size=1), []
    for piece in story_ids.split(piece_len):
        attend = cache.begin([len(piece)])
        positions, tampered = tamper(attend)
        log_probs.append(model(piece[None], positions, tampered)[0].log_softmax(-1))
        cache.commit()
    return -torch.cat(log_probs)[:-1].gather(1, story_ids[1:, None]).mean().item()


bugs = {
    "none": lambda attend: (attend.positions, attend),
    "positions start at 0\nin every forward": zero_positions,
    "keys rotated twice": rotated_twice,
    "mask aligned\nwith the start": mask_at_the_start,
    "attends to the\nnew tokens only": new_tokens_only,
}
surprises = {name: surprise(tamper) for name, tamper in bugs.items()}
fig, ax = plots.figure(height=3.2)
ax.barh(list(surprises), list(surprises.values()), color=[plots.BLUE] + [plots.RED] * 4)
ax.bar_label(ax.containers[0], fmt="%.2f", padding=3)
nothing = torch.tensor(model.config.vocab_size).log().item()
ax.axvline(nothing, color=plots.MUTED, linestyle=":")
ax.text(nothing - 0.1, -0.1, "knows nothing: ln 2048", ha="right", color=plots.MUTED)
ax.invert_yaxis()
ax.set(xlabel="surprise of a true story, nats per token (lower is better)", xlim=(0, 1.12 * max(*surprises.values(), nothing)))
plots.show(fig, alt="Bar chart of the model's surprise at a true story with a correct cache and with four bugs, each of which makes the surprise several times larger.")

# %% [markdown]
# The mask at the wrong end can be worse than knowing nothing: the model is confidently wrong. And now feed the story in one piece:

# %%
for name, tamper in bugs.items():
    print(f"{' '.join(name.split()):40} {surprise(tamper, len(story_ids)):.2f}")

# %% [markdown]
# Three of the four bugs have vanished. A test that only prefills cannot find them; that is why the check above used pieces of many lengths.
#
# A fifth bug hides longer, since every single conversation is right: two sequences that *share memory*. Fork a story after its first
# sentences, let both branches go on, and the shallow copy writes into the other branch's slots.

# %%
@torch.inference_mode()
def fork_and_continue(copier) -> list[torch.Tensor]:
    """Two branches from one beginning; what each holds, in the end, where its own first words should be."""
    start = ContiguousCache(model.layer_specs, batch_size=1, max_seq_len=64)
    attend = start.begin([40])
    model(story_ids[None, :40], attend.positions, attend)
    start.commit()
    branches = [copier(start), copier(start)]
    openings = [tokenizer.encode(" The dog", add_special_tokens=False), tokenizer.encode(" It rained", add_special_tokens=False)]
    for branch, opening in zip(branches, openings):  # both branches take their first step ...
        attend = branch.begin([len(opening)])
        model(torch.tensor([opening]), attend.positions, attend)
        branch.commit()
    return [branch.k[0][0, 40 : 40 + len(openings[0])].clone() for branch in branches]  # ... and are read afterwards


shallow, deep = fork_and_continue(copy.copy), fork_and_continue(copy.deepcopy)
print("shallow copy: do both branches now hold the same keys?", torch.equal(*shallow))
print("deep copy:    do both branches now hold the same keys?", torch.equal(*deep))

# %% [markdown]
# A deep copy is right and expensive: the shared beginning now exists twice. Beam search and several answers to one prompt want to share it
# safely. Chapter 13 does that with blocks and reference counts, chapter 15 for whole trees of conversations.

# %% [markdown]
# ## Measured
#
# **Seconds for one more token.** The prediction takes a single measurement, the whole text at $n = 256$, for the speed of the machine and
# lets $a\,n + b\,n^2$ do the rest. For the newest token there is no such line: the formula says 1/256 of the time, and that is far below
# the fixed cost of some hundred small operations.

# %%
@torch.inference_mode()
def measure_seconds() -> dict:
    """Seconds for one more token at several text lengths: medians of 5 for the whole text, of 3 runs for the newest."""
    lens = [8, 32, 64, 128, 192, 256, 320, 384, 448, 510]

    def seconds(call) -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    for n in (8, 510):
        model(any_ids[:n])  # warm up
    whole = [sorted(seconds(lambda: model(any_ids[:n])) for _ in range(5))[2] for n in lens]  # noqa: B023
    runs = []
    for _ in range(3):
        cache, times = ContiguousCache(model.layer_specs, batch_size=1, max_seq_len=512), []
        for token_id in any_ids:

            def step():
                attend = cache.begin([1])
                model(token_id[None, None], attend.positions, attend)
                cache.commit()

            times.append(seconds(step))
        runs.append(times)
    newest = torch.tensor(runs).median(0).values
    return {"lens": lens, "whole_s": whole, "newest_s": [newest[n - 4 : n + 1].median().item() for n in lens]}


record = recorded("08_seconds_per_token", measure_seconds)
seconds = record.values
lens = torch.tensor(seconds["lens"])
anchor = seconds["lens"].index(256)
predicted = seconds["whole_s"][anchor] * (a * lens + b * lens**2) / (a * 256 + b * 256**2)
fig, ax = plots.figure(height=3.4)
ax.plot(lens, 1e3 * predicted, color=plots.GREEN, linestyle="--", label="predicted from n = 256")
ax.plot(lens, [1e3 * s for s in seconds["whole_s"]], "o-", color=plots.ORANGE, label="whole text, measured")
ax.plot(lens, [1e3 * s for s in seconds["newest_s"]], "o-", color=plots.BLUE, label="newest token, measured")
ax.set(xlabel="tokens in the text, n", ylabel="milliseconds for one more token", ylim=(0, None))
ax.plot([lens[-1]] * 2, [1e3 * seconds["newest_s"][-1], 1e3 * seconds["whole_s"][-1]], ":", color=plots.INK)
ax.text(lens[-1], 500 * (seconds["whole_s"][-1] + seconds["newest_s"][-1]), f"{seconds['whole_s'][-1] / seconds['newest_s'][-1]:.0f}× ", ha="right", fontsize=14)
ax.legend()
plots.show(fig, alt="Milliseconds for one more token against text length: recomputing the whole text grows with the predicted line, the cached newest token stays flat.", record=record)

# %% [markdown]
# The orange line climbs as predicted; the blue one is flat. But the factor in time is far below the 512 in FLOPs. Look where the blue line
# lies, and at the left end of the orange one: there is a fixed cost, Python and torch starting some hundred small operations, and a cached step
# of a model of five million parameters is almost nothing else. It shows the *shape* of the saving and hides its size.
#
# `recorded` measures on your machine when you run this notebook; what is printed here was measured on the machine named under the figure.
#
# **Tokens per second, bounded by bandwidth.** The library's `llama-70m` has 67 million weights (random ones: speed does not depend on their
# values), 267 MiB in float32, too many for a processor's cache. Each decoded token must read them all. A **read probe**, a sum over 512 MiB in
# the same minute with the same threads, says how fast this machine reads. The quotient is a bound that no program on this machine exceeds.

# %%
from minillm.bench.decode import fast_copy, random_model
from minillm.config import PRESETS
from minillm.fast_linears import can_use_fast_linears
from minillm.perf.probe import ReadProbe
from minillm.perf.traffic import decode_bytes_per_step


@torch.inference_mode()
def measure_decode() -> dict:
    """Tokens a second of llama-70m at 128 tokens of context, interleaved with the probe; medians of 7 rounds."""
    big = random_model(PRESETS["llama-70m"], torch.float32)
    candidates = {"plain torch": big}
    if can_use_fast_linears():
        candidates["fast linears"] = fast_copy(big)
    probe = ReadProbe()
    found = {name: [] for name in ["bound", *candidates]}
    for round_ in range(8):
        bound = probe.bytes_per_s(repeats=1) / decode_bytes_per_step(big, 128)
        times = {}
        for name, candidate in candidates.items():
            cache = ContiguousCache(candidate.layer_specs, batch_size=1, max_seq_len=160)
            attend = cache.begin([127])
            candidate.hidden(candidate.embed(any_ids[None, :127]), attend.positions, attend)
            cache.commit()
            started = time.perf_counter()
            for token_id in any_ids[:4]:
                attend = cache.begin([1])
                candidate(token_id[None, None], attend.positions, attend)
                cache.commit()
            times[name] = 4 / (time.perf_counter() - started)
        if round_:  # the first round warms up
            found["bound"].append(bound)
            for name, rate in times.items():
                found[name].append(rate)
    return {name: torch.tensor(rates).median().item() for name, rates in found.items()}


record = recorded("08_decode_against_bandwidth", measure_decode)
rates = record.values
fig, ax = plots.figure(height=2.4)
names = list(rates)
ax.barh(names, [rates[name] for name in names], color=[plots.GREEN, plots.ORANGE, plots.BLUE][: len(names)])
ax.bar_label(ax.containers[0], labels=[f"{rates[n]:.0f}   ({rates[n] / rates['bound']:.0%} of the bound)" if n != "bound" else f"{rates[n]:.0f}   upper bound" for n in names], padding=3, fontsize=9)
ax.invert_yaxis()
ax.set(xlabel="tokens per second, llama-70m, float32, batch 1", xlim=(0, max(rates.values()) * 1.45))
plots.show(fig, alt="Tokens per second of a 70-million-parameter model: the bound from read bandwidth, plain torch, and the fast linears.", record=record)

# %% [markdown]
# The bound holds, and it is of the right size: a division told us, before anything ran, what to expect at most. How near one comes to it is a
# question of how well a matrix–vector product reads memory. Plain torch wastes a good part; the library's *fast linears*, a replacement for
# `nn.Linear`, get nearer. They are the subject of chapter 06.
#
# **Bytes: when the cache outgrows the weights.** For each model of the table, all cached tokens of all users together:

# %% tags=["hide-input"]
large = {name: shape for name, shape in shapes.items() if not name.startswith("stories")}  # 2 bytes a number, all of them
crossings = {
    name: 2 * weights / (2 * num_layers * num_kv_heads * head_dim * bytes_per_number)
    for name, (num_layers, num_kv_heads, head_dim, bytes_per_number, weights) in large.items()
}
fig, ax = plots.figure(height=2.6)
bars = ax.barh(list(crossings), list(crossings.values()), color=plots.BLUE)
ax.bar_label(bars, fmt="{:,.0f}", padding=4)
ax.invert_yaxis()
ax.set(xlabel="cached tokens that take as many bytes as the weights", xlim=(0, 145_000))
ax.xaxis.set_major_formatter("{x:,.0f}")
plots.show(fig, alt="For four models, the number of cached tokens at which the KV cache takes as many bytes as the weights: from 26 thousand to 123 thousand.")

# %% [markdown]
# Twenty-five thousand tokens are six chats of 4,096. Every serving system is, sooner or later, a system that manages this memory.
#
# **The waste.** Our slabs reserve `max_seq_len` slots a sequence, since nobody knows how long an answer will get. The stories of the
# corpus say how long texts really are.

# %%
lengths = [len(tokenizer.encode(sample_story(random.Random(f"waste {i}")).text)) + 1 for i in range(300)]
used = sum(lengths) / (len(lengths) * model.config.max_seq_len)
fig, ax = plots.figure(height=2.8)
ax.hist(lengths, bins=range(0, 521, 20), color=plots.BLUE, label="slots used")
ax.axvline(model.config.max_seq_len, color=plots.RED, label="slots reserved for each")
ax.set(xlabel="tokens in a finished story", ylabel="stories of 300", title=f"{used:.0%} of the reserved slots are ever used")
ax.legend()
plots.show(fig, alt="Histogram of story lengths between 150 and 350 tokens, against 512 reserved slots for each.")

# %% [markdown]
# More than half of the slab is never written, although this model's limit of 512 is tiny. With a limit of 8,192 and the same stories, 97 % would be waste. Growing by
# doubling (the library does it when `max_seq_len` is left out) bounds the waste and pays with copies of the whole cache. Neither is good enough for a
# server, and chapter 13 replaces both.

# %% [markdown]
# ## In production
#
# * **Hugging Face transformers** has this chapter's choice as classes: `DynamicCache`, the default, grows as tokens arrive; `StaticCache`
#   reserves a maximum so that shapes never change, which `torch.compile` needs.
# * **llama.cpp** reserves the cache for `--ctx-size` tokens when it starts, and can store it quantized (`--cache-type-k q8_0`).
# * **vLLM** cuts the slab into blocks of a few tokens and gives a sequence blocks as it grows: chapter 13.
# * **SGLang** keeps finished prefixes in a radix tree, so that the next conversation with the same beginning skips its prefill: chapter 15.
# * **TensorRT-LLM** also uses a pool of blocks with reuse between requests, sized at start as a fraction of the free GPU memory (`free_gpu_memory_fraction`, 0.9 by
#   default), in FP16, BF16, FP8 and others.
#
# What differs from ours is where the slots lie and how many bytes a number has. What is the same everywhere is this chapter: store K and V after rotation, forget Q,
# align the mask with the end, count positions from the sequence's own length.

# %% [markdown]
# ## Exercises
#
# In [`exercises/ch08_kv_cache.py`](../exercises/ch08_kv_cache.py); `python3 tasks.py grade ch08` grades them and names what went wrong.
#
# | task | points | prepared by |
# |---|---|---|
# | `kv_bytes`: predict the size of a cache | 2 | Napkin |
# | `flops_to_generate`: predict the work with and without | 4 | Napkin |
# | `append`: put new keys where they belong | 3 | The real version |
# | `attend_to_cache`: new queries, old keys, the right mask | 5 | The idea; Which keys may a new token see? |
# | `KVCache`: a cache that runs the bundled model | 7 | The real version |
# | `greedy_generate`: a bug hunt in a loop that talks nonsense | 3 | The real version |

# %% [markdown]
# ## Check yourself
#
# <details><summary>A server holds 40 conversations of 1,500 tokens with Llama 3 8B in bf16. How large is the cache, and how does it compare with the weights?</summary>
#
# 40 · 1,500 = 60,000 tokens. Each takes 2 · 32 · 8 · 128 · 2 bytes = 128 KiB, together 7.3 GiB. The weights are 8.03 · 10⁹ · 2 bytes = 15 GiB: the cache is half as large.
# </details>
#
# <details><summary>Why is there no Q cache?</summary>
#
# The query of token j is used in row j of the attention matrix only. That row was finished when token j was new, and the causal mask forbids that it ever changes.
# </details>
#
# <details><summary>For a prompt of 1,000 tokens and an answer of 10, how much arithmetic does the cache save? Take a = 10⁷ and b = 6,000 FLOPs.</summary>
#
# Without: ten forwards over about 1,000 tokens, each 10⁷ · 1,000 + 6,000 · 10⁶ = 1.6 · 10¹⁰, together 1.6 · 10¹¹. With: one such forward and nine steps of
# 10⁷ + 6 · 10⁶ = 1.6 · 10⁷, together 1.6 · 10¹⁰. Ten times less. The prompt itself costs the same: for long prompts and short answers the prefill is the bill.
# </details>
#
# <details><summary>Keys are cached after rotation. What would change if they were cached before it?</summary>
#
# Every step would have to rotate all cached keys again: more arithmetic, and the same result. It has one use: when cached tokens are to change their
# positions, as in StreamingLLM's rolling cache (chapter 12).
# </details>
#
# <details><summary>A cached decode step of a large model does about two FLOPs for each weight. Why does batching 16 users hardly slow it down?</summary>
#
# The step is bound by reading weights, and the weights are read once for all 16. Only the caches are read for each user. The arithmetic grows sixteenfold, but it was idle before.
# </details>

# %% [markdown]
# ## Sources
#
# * Vaswani et al. 2017, *Attention Is All You Need*, [arXiv:1706.03762](https://arxiv.org/abs/1706.03762): §3.2, attention and the mask that makes caching possible.
# * Shazeer 2019, *Fast Transformer Decoding: One Write-Head is All You Need*, [arXiv:1911.02150](https://arxiv.org/abs/1911.02150): incremental decoding, and why its cost is memory traffic.
# * Pope et al. 2022, *Efficiently Scaling Transformer Inference*, [arXiv:2211.05102](https://arxiv.org/abs/2211.05102): prefill and decode as different regimes; the KV cache in the cost model.
# * Kwon et al. 2023, *Efficient Memory Management for Large Language Model Serving with PagedAttention*, [arXiv:2309.06180](https://arxiv.org/abs/2309.06180): how much of a reserved cache is wasted.
#
# Next: [chapter 09](09_mqa_gqa_mla.ipynb) makes each token's share smaller; chapter 13 stops reserving what is not used.
