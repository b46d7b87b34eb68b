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
# # 01 · The whole system on one page
#
# *Follow four words through a language model and back, see every tensor on the way, and predict how fast the answer
# comes before it does.*
#
# Needs: Python and a little torch  ·  Time: 60 minutes to read, 75 to solve

# %% [markdown]
# ## Why
#
# Somebody types four words and presses Enter. Nothing happens for a moment. Then a word appears, and another, at a
# steady pace, until the story is told. Two waits, one before the first word and one between words, are all that the
# reader knows of the machine behind it. This chapter opens the machine.
#
# Here is the number that hurts. A model of eight billion parameters, on an H100 that does 989 trillion operations a
# second, tells its story to one reader with **0.34 %** of that arithmetic. The other 99.66 % stands idle, and is paid
# for. You will derive that number on a napkin in a minute. Most of this course is about getting it up.

# %%
import random
import statistics
import textwrap
import time
from dataclasses import replace

import torch
from matplotlib.patches import Rectangle
from torch.utils._python_dispatch import TorchDispatchMode

import minillm
import minillm.data.stream
from minillm import plots
from minillm.bench.recorded import recorded
from minillm.bench.show import source
from minillm.config import PRESETS, ModelConfig
from minillm.data.bpe import apply_merges
from minillm.data.pretokenize import bytes_to_chars, chars_to_bytes
from minillm.data.stories import sample_story
from minillm.data.stream import StreamDecoder
from minillm.generation.generate import decode_steps, generate_uncached, last_logits, make_cache
from minillm.model import Transformer
from minillm.perf.probe import ReadProbe

PROMPT = "Once upon a time"
model, tokenizer = minillm.load_model(), minillm.load_tokenizer()

params = minillm.SamplingParams(max_new_tokens=400, temperature=0.8)
story = "".join(minillm.stream(model, tokenizer, PROMPT, params, generator=torch.Generator().manual_seed(1)))
for paragraph in (PROMPT + story).split("\n\n"):
    print(textwrap.fill(paragraph, 100), end="\n\n")

# %% [markdown]
# That was the model that comes with this course: five million parameters, trained on made-up children's stories. But it
# is a Llama in every detail, and what follows holds for its relatives that are a thousand times larger.

# %% [markdown]
# ## Napkin
#
# A model reads and writes **tokens** (词元): pieces of text, each with a number, its id. Given some tokens, it computes
# one score for each token of its vocabulary: the **logits** (未归一化得分). The larger the score, the likelier that token
# comes next. One token is chosen, appended, and the model is run again. A run is called a **forward** (前向计算).
#
# What does a forward for one token cost? Nearly all parameters are matrices that the token's vector is multiplied
# with. Each **weight** (权重), that is each number in them, is fetched from memory once, multiplied once, and added once:
#
# $$\text{bytes read} = P \cdot s, \qquad \text{operations} = 2P$$
#
# with $P$ weights of $s$ bytes. Operations on floating-point numbers are counted in **FLOPs** (浮点运算次数), their rate
# in FLOP/s. If memory delivers $B$ bytes a second, there are at most
#
# $$\text{tokens per second} \le \frac{B}{P \cdot s}.$$
#
# By hand, for the bundled model: 4.95 million weights of 4 bytes are 19.8 MB. A laptop with two channels of DDR4-3200
# moves 2 · 8 bytes · 3.2 billion a second = 51.2 GB/s. That is at most 51.2 / 0.0198 = 2,585 tokens/s. And for
# Llama-3.1-8B in bf16, two bytes a weight, on an H100 (SXM: 3.35 TB/s, 989 TFLOP/s in bf16 without sparsity)?

# %%
llama_8b = ModelConfig(
    vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_layers=32, num_heads=32, num_kv_heads=8,
    head_dim=128, max_seq_len=131_072,
)  # fmt: skip


def num_weights_read(config):
    """Weights that a forward for one token multiplies with: all but the input embedding, of which it reads one row."""
    attention = 2 * config.hidden_size * config.head_dim * (config.num_heads + config.num_kv_heads)  # q and o, k and v
    ffn = 3 * config.hidden_size * config.intermediate_size
    norms = 2 * config.hidden_size
    head = config.vocab_size * config.hidden_size + config.hidden_size  # logits, and the last norm
    return config.num_layers * (attention + ffn + norms) + head


assert num_weights_read(PRESETS["stories-5m"]) == sum(p.numel() for p in model.parameters())
# (This model uses one table both as input embedding and for the logits, so it is counted as the head.)

LAPTOP, A10, A100, H100 = 51.2e9, 600e9, 2.039e12, 3.35e12  # bytes/s, from the datasheets
H100_FLOPS = 989e12
weight_bytes = 2 * num_weights_read(llama_8b)
read_s, compute_s = weight_bytes / H100, 2 * num_weights_read(llama_8b) / H100_FLOPS
print(f"Llama-3.1-8B reads {weight_bytes / 1e9:.1f} GB a token: at most {1 / read_s:.0f} tokens/s on an H100")
print(f"predicted: reading takes {read_s * 1e3:.2f} ms, computing {compute_s * 1e6:.1f} µs: busy {compute_s / read_s:.2%} of the time")

# %% [markdown]
# There it is: 0.34 %. The arithmetic units finish in 15 µs and then wait 4.5 ms for the next weights.
#
# Why 15.0 GB, when 8 billion parameters of 2 bytes are 16.1 GB? Of the input embedding, 1.05 GB, a token reads one row.
# And in bf16 the $2P$ operations happen to be the same number as the $2P$ bytes: 15.0 GFLOP.
#
# The same division, for other models and machines (the lines ignore whether the weights fit):

# %% tags=["hide-input"]
fig, ax = plots.figure(7.2, 4.2)
sizes = [1e7, 3e11]
for machine_name, bandwidth, color in (
    ("laptop, 2 × DDR4-3200", LAPTOP, plots.GREY),
    ("A10", A10, plots.SKY),
    ("A100 80 GB", A100, plots.PURPLE),
    ("H100 SXM", H100, plots.BLUE),
):
    ax.loglog(sizes, [bandwidth / size for size in sizes], color=color, label=f"{machine_name}: {bandwidth / 1e9:,.0f} GB/s")
llama_70b = ModelConfig(
    vocab_size=128_256, hidden_size=8192, intermediate_size=28_672, num_layers=80, num_heads=64, num_kv_heads=8,
    head_dim=128, max_seq_len=131_072,
)  # fmt: skip
for name, size in (
    ("bundled\nfp32", 4 * num_weights_read(PRESETS["stories-5m"])),
    ("8B\n4 bits", num_weights_read(llama_8b) / 2),
    ("8B\nbf16", weight_bytes),
    ("70B\nbf16", 2 * num_weights_read(llama_70b)),
):
    ax.vlines(size, 0.1, 6e6, color=plots.MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
    ax.text(size * 1.08, 4e6, name, size=10.5, va="top")
ax.axhspan(3, 8, color=plots.YELLOW, alpha=0.18)
ax.text(1.15e7, 4.9, "about as fast as people read", size=10.5, va="center")
ax.set(xlabel="bytes of weights read for one token", ylabel="tokens/s, at most", ylim=(0.1, 6e6), xlim=(1e7, 3e11))
ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, columnspacing=1.2, borderaxespad=0.2)
plots.show(fig, alt="Upper bounds of tokens per second fall as one over the bytes of weights, one line for each machine.")

# %% [markdown]
# A 70B model in bf16 misses reading speed on a laptop by a factor of ten, and no cleverness in the arithmetic helps:
# one has to read fewer bytes, or share each reading among more tokens.
#
# The chart is a *bound*: it ignores everything but the weights, and assumes that they come from memory each time. The
# bundled model is so small that it stays in a processor's last cache. "Measured" comes back to that.

# %% [markdown]
# ## The naive version
#
# Here is a language model at work, all of it:

# %%
@torch.inference_mode()
def naive_continuation(prompt, num_new_tokens):
    token_ids = tokenizer.encode(prompt)
    for _ in range(num_new_tokens):
        logits = model(torch.tensor([token_ids]))[0, -1]  # (vocab_size,): the scores after the last token
        token_ids.append(int(logits.argmax()))  # the likeliest token
    return token_ids


NUM_STEPS = 9
prompt_ids = tokenizer.encode(PROMPT)
naive_ids = naive_continuation(PROMPT, NUM_STEPS)
print(repr(tokenizer.decode(naive_ids)))

# %% [markdown]
# Always taking the likeliest token is **greedy decoding** (贪心解码); [chapter 04](04_next_token.ipynb) is about the
# alternatives. The loop is right, but it never stops by itself: a trained model announces the end with a token of its
# own, **EOS** (end of sequence, 结束符), and task 3 has to look for it.
#
# And the loop is wasteful. Look at what the model is fed in each step. The tokenizer puts a token of its own in front of
# every text, `<bos>` (beginning of sequence), so our four words are $n = 5$ tokens.

# %% tags=["hide-input"]
def token_name(token_id):
    return plots.visible(tokenizer.decode([token_id])) or "⟨bos⟩"


fig, ax = plots.diagram(7.2, 4.6)
prompt_len = len(prompt_ids)
for step in range(NUM_STEPS):
    fed = naive_ids[: prompt_len + step]
    num_new = prompt_len if step == 0 else 1
    colors = [plots.ORANGE] * (len(fed) - num_new) + [plots.BLUE] * num_new
    names = [token_name(token_id) for token_id in fed]
    plots.cells(ax, 0, -step, names, colors=colors, width=plots.text_widths(names), size=9)
    ax.text(-0.3, -step + 0.5, f"step {step + 1}", ha="right", va="center", size=10.5, color=plots.MUTED)
plots.show(fig, alt="Nine steps, each fed the whole sequence: a triangle of repeated tokens, with one new token a row.")
fed_naive = sum(prompt_len + step for step in range(NUM_STEPS))
print(f"fed: {fed_naive} tokens, of which new (blue): {prompt_len + NUM_STEPS - 1}")

# %% [markdown]
# With a prompt of $n$ tokens and $m$ new ones the loop feeds
# $n + (n+1) + \dots + (n+m-1) = m\,n + m\,(m-1)/2$ tokens, where $n + m - 1$ are new. For a story of 240 tokens
# ($n = 5$, $m = 240$) it feeds 29,880 tokens, of which 244 are new: a ratio of 122. And the cost of a token grows with
# the text before it.
#
# That can be measured, with `recorded`. It measures on your machine when you run the notebook; what is printed here was
# measured on the machine named under the figure.

# %%
long_story_ids = tokenizer.encode(sample_story(random.Random("chapter 01")).text)


def seconds_for(run):
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


@torch.inference_mode()
def measure_growth():
    """Milliseconds of one step after n tokens: everything again, against the new token only."""
    lens = [16, 64, 128, 192, 256, 384]
    ids = (long_story_ids * 4)[: max(lens) + 1]
    growth = {"lens": lens, "again": [], "kept": []}
    for n in lens:
        cache = make_cache(model, batch_size=1, max_seq_len=n + 30)
        last_logits(model, cache, [ids[:n]])
        last_logits(model, cache, [ids[n : n + 1]])
        tokens = torch.tensor([ids[: n + 1]])
        growth["again"].append(1e3 * statistics.median(seconds_for(lambda: model(tokens)) for _ in range(7)))
        step = lambda: last_logits(model, cache, [ids[n : n + 1]])  # noqa: E731
        growth["kept"].append(1e3 * statistics.median(seconds_for(step) for _ in range(15)))
    return growth


growth = recorded("01_growth", measure_growth)

# %% tags=["hide-input"]
fig, ax = plots.figure(7.2, 3.3)
ax.plot(growth.values["lens"], growth.values["again"], "o-", color=plots.ORANGE, label="feed everything again")
ax.plot(growth.values["lens"], growth.values["kept"], "o-", color=plots.BLUE, label="feed the new token only")
ax.set(xlabel="tokens so far", ylabel="time of one step (ms)", ylim=(0, None), xlim=(0, None))
ax.legend()
plots.show(fig, alt="The naive step's time grows with the text; a step that is fed one token hardly changes.", record=growth)

# %% [markdown]
# The blue line feeds the new token alone. That is allowed because nothing inside the model looks ahead: what a token
# has become in there doesn't change when more text follows. For every token of its past the model keeps some numbers,
# called its *keys and values*. They are what the **KV cache** (KV 缓存) holds. Here it is a black box that remembers;
# [chapter 08](08_kv_cache.ipynb) opens it.

# %% [markdown]
# ## The idea
#
# ### Text becomes ids
#
# A tokenizer has learned a list of **merges** (合并规则) from a text: the pair of neighbours that occurred most often
# became a token, then the next most frequent pair, and so on. A merge's place in that list is its **rank** (秩). To cut a
# word, **byte-pair encoding** (BPE, 字节对编码) starts from single characters and repeats one step: of all neighbours
# that are in the list, join those of the *lowest rank*.
#
# By hand, with the merges (l, o), (lo, w), (e, r), (o, w) in this order: `l o w e r` has four pairs of neighbours, and
# three of them are in the list: (l, o) at rank 0, (o, w) at rank 3 and (e, r) at rank 2. Rank 0 wins: `lo w e r`. Now
# (o, w) is gone; (lo, w) at rank 1 beats (e, r): `low e r`, then `low er`. No pair left, done.
#
# Here is the bundled tokenizer at work. `·` is a space, which belongs to the word after it.

# %% tags=["hide-input"]
vocab, merge_list = tokenizer.settings.vocab, tokenizer.settings.merges  # token -> id; pairs of ids by rank


def merge_ladder(word):
    """[(rank, tokens so far)]: what the word looks like whenever one more merge of the list has changed it."""
    tokens_of = {token_id: token for token, token_id in vocab.items()}
    word_ids, known = [vocab[char] for char in bytes_to_chars(word.encode())], {}
    rungs = [(None, word_ids)]
    for rank, (left, right) in enumerate(merge_list):
        known[left, right] = (rank, vocab[tokens_of[left] + tokens_of[right]])
        if (word_ids := apply_merges(word_ids, known)) != rungs[-1][1]:
            rungs.append((rank, word_ids))
    return [(rank, [chars_to_bytes(tokens_of[i]).decode() for i in ids]) for rank, ids in rungs]


fig, axes = plots.figure(7.2, 3.5, 1, 2)
for ax, word, remark in zip(axes, (" dragon", " laptop"), ("a word of the stories", "a word it has never seen"), strict=True):
    for row, (rank, tokens) in enumerate(merge_ladder(word)):
        widths = [len(token) for token in tokens]
        plots.cells(ax, 0, -row, [plots.visible(token) for token in tokens], width=widths, height=0.9,
                    colors=[plots.BLUE if len(token) > 1 else plots.GREY for token in tokens])  # fmt: skip
        ax.text(-0.3, -row + 0.45, "characters" if rank is None else f"rank {rank}", ha="right", va="center", size=10)
    ax.set_title(f"{remark}", fontsize=11.5)
    ax.set(xlim=(-3.4, 7.2), ylim=(-6.1, 1.1))
plots.show(fig, alt="Two words joined step by step from characters to tokens, each step labelled with its merge's rank.")

# %% [markdown]
# The picture hands out the list rank by rank and watches; a real encoder (task 2) has all of it from the start, and
# picks. For a list that was learned, both end with the same tokens. A word of the stories becomes one token; an unknown
# word stays in pieces, but can always be written. That holds for any script: the "characters" at the top are in truth
# the 256 bytes, each of which goes by the name of a printable character (`bytes_to_chars` names them).
#
# ### Ids become a distribution
#
# Now the same four words, all the way down. Nothing below is a sketch: each strip is a tensor of this very forward. Of 256
# numbers a row, the first 48 are shown; blue is positive, orange negative, each strip on a colour scale of its own. In
# the titles, → points to the shape of what comes out.

# %%
@torch.inference_mode()
def watch(token_ids):
    """One forward with its intermediate tensors, under the names of the picture."""
    seen = {}
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: seen.update({name: output[0]}))
        for name, module in (("embedding", model.embed_tokens), ("blocks", model.blocks[-1]), ("norm", model.norm))
    ]
    seen["logits"] = model(torch.tensor([token_ids]))[0]
    for hook in hooks:
        hook.remove()
    return seen


seen = watch(prompt_ids)
print({name: tuple(tensor.shape) for name, tensor in seen.items()})
config = model.config
probs = seen["logits"][-1].softmax(dim=-1)
top = probs.topk(5)

# %% tags=["hide-input"]
fig, axes = plots.figure(7.2, 8.6, 6, 1, height_ratios=[0.9, 1.2, 1.2, 0.4, 1.1, 2.1])
plots.cells(axes[0], 0, 0, [f"{token_name(i)}\n{i}" for i in prompt_ids], width=2, height=1, colors=plots.BLUE)
axes[0].set(xlim=(0, 2 * prompt_len), ylim=(0, 1))
axes[0].set_title("1  tokenizer: text → ids (5,)", fontsize=11.5)
colormap = plots.ramp(plots.ORANGE, plots.BLUE)
for ax, title, tensor in (
    (axes[1], "2  embedding: look up one row of the table for each id → (5, 256)", seen["embedding"]),
    (axes[2], "3  six blocks: each row learns from itself and those above → (5, 256)", seen["blocks"]),
    (axes[3], "4  keep the last row, norm it → (256,)", seen["norm"][-1:]),
):
    scale = tensor.abs().quantile(0.98).item()
    ax.imshow(tensor[:, :48], aspect="auto", interpolation="nearest", cmap=colormap, vmin=-scale, vmax=scale)
    ax.set_title(title, fontsize=11.5)
    ax.set(yticks=range(len(tensor)), xticks=[])
    ax.set_yticklabels([token_name(i) for i in prompt_ids[-len(tensor):]], fontsize=8.5)
    ax.grid(False)
axes[4].plot(seen["logits"][-1], color=plots.BLUE, linewidth=0.6, antialiased=False)
axes[4].set(xlim=(0, config.vocab_size), ylabel="logit", xlabel="token id")
axes[4].set_title(f"5  multiply with the embedding table → logits ({config.vocab_size:,},)", fontsize=11.5)
axes[5].scatter(top.values, range(5), color=[plots.BLUE] + [plots.GREY] * 4, s=55, zorder=3)
axes[5].set(yticks=range(5), xscale="log", xlim=(1e-8, 3), xlabel="probability of the next token (logarithmic)")
axes[5].set_yticklabels([token_name(i) for i in top.indices.tolist()])
axes[5].set_ylim(4.6, -0.6)
axes[5].grid(axis="y", visible=False)
axes[5].set_title("6  softmax, choose one, append its id, go back to 2", fontsize=11.5)
plots.show(fig, alt="Six stages of one forward: ids, embeddings, hidden states, the last row, logits, and five likeliest tokens.")

# %% [markdown]
# The steps in words. The **embedding** (嵌入) turns each id into a row of `hidden_size` = 256 numbers: a row of a table,
# nothing is computed. Six **blocks** (层) then let each row collect from itself and the rows above it (attention) and think
# about what it has (feed-forward); [chapter 02](02_building_the_model.ipynb) builds them. The last row now describes what
# should come next. The norm brings it to a standard length. Its dot product with every row of the table is that token's
# logit: 2,048 of them. The **softmax** (归一化指数函数) makes them a distribution:
# $p_i = e^{\ell_i} / \sum_j e^{\ell_j}$. A **sampler** (采样器) picks from it.
#
# After these four words the model has hardly any choice. A few tokens later it has. Each column shows the likeliest next
# tokens; the outlined one was drawn. (Where it is not among the first five, it stands in the fifth place.)

# %%
chance = torch.Generator().manual_seed(11)
start_ids = tokenizer.encode(PROMPT + ", there was a")
drawn = minillm.generate(model, start_ids, minillm.SamplingParams(max_new_tokens=9), generator=chance)
with torch.inference_mode():
    probs_after = model(torch.tensor([start_ids + drawn]))[0, len(start_ids) - 1 : -1].softmax(dim=-1)  # (9, vocab_size)

# %% tags=["hide-input"]
def percent(prob):
    return f"{prob:.0%}" if prob >= 0.005 else "< 1%"


fig, ax = plots.diagram(7.2, 3.6)
for column, (token_id, row) in enumerate(zip(drawn, probs_after, strict=True)):
    likeliest = row.topk(5).indices.tolist()
    if token_id not in likeliest:
        likeliest[-1] = token_id
    plots.cells(ax, 2.1 * column, 0, [f"{token_name(i)}\n{percent(row[i].item())}" for i in likeliest], width=2, height=1.15, size=10,
                colors=[plots.tint(plots.BLUE, 0.08 + 0.92 * row[i].item()) for i in likeliest],
                vertical=True, filled=True)  # fmt: skip
    corner = (2.1 * column + 0.02, -1.15 * likeliest.index(token_id) + 0.02)
    ax.add_patch(Rectangle(corner, 1.96, 1.11, fill=False, edgecolor=plots.ORANGE, linewidth=2.4, zorder=5))
plots.show(fig, alt="Nine columns of five candidate tokens shaded by probability; the drawn one is outlined in each.")

# %% [markdown]
# This is what "the model writes" means: one draw a column, from left to right. No column can be computed before the one on
# its left has been drawn. That is why writing is slow.
#
# ### One request on a clock
#
# Reading, however, is not. The tokens of the prompt are all known, so one forward takes them together: the **prefill**
# (预填充). It fills the cache, and its last row gives the first new token. After that comes **decode** (解码): one forward
# for each further token, fed with the token just chosen. Here is one real request, with a prompt as long as a story:

# %%
request_ids, num_answered = long_story_ids[:200], 12
answer = minillm.generate(model, request_ids, minillm.SamplingParams(max_new_tokens=num_answered, temperature=0))


def measure_request():
    """When each token of the answer came, in seconds after the arrival: the median of five requests, by total time."""
    params = minillm.SamplingParams(max_new_tokens=num_answered, temperature=0, ignore_eos=True)
    runs = []
    for _ in range(6):
        arrival = time.perf_counter()
        runs.append([time.perf_counter() - arrival for _ in decode_steps(model, request_ids, params)])
    return sorted(runs[1:], key=lambda times: times[-1])[2]


request = recorded("01_request", measure_request)
times_s = request.values

# %% tags=["hide-input"]
fig, ax = plots.figure(7.2, 2.9)
spans = [("model", 0, times_s[0], f"prefill: {len(request_ids)} tokens", plots.BLUE)]
spans += [("model", start, end, "", plots.SKY) for start, end in zip(times_s, times_s[1:])]
ends = [*times_s[1:], times_s[-1] + (times_s[-1] - times_s[0]) / (len(times_s) - 1)]
spans += [
    ("reader", start, end, token_name(token_id), plots.tint(plots.GREY, 0.35))
    for token_id, start, end in zip(answer, times_s, ends)
]
plots.timeline(ax, spans)
unit = 1e3 if ends[-1] < 1 else 1
ax.set_ylim(1.5, -1.35)
gaps_s = [end - start for start, end in zip(times_s, times_s[1:])]
typical = gaps_s.index(statistics.median_low(gaps_s))
span_arrow = {"arrowstyle": "|-|,widthA=0.25,widthB=0.25", "color": plots.INK, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
for start, end, label in ((0, times_s[0], "TTFT"), (times_s[typical], times_s[typical + 1], "ITL")):
    ax.annotate("", (start * unit, -0.52), (end * unit, -0.52), arrowprops=span_arrow)
    ax.text((start + end) / 2 * unit, -0.68, label, ha="center", va="bottom", size=11)
ax.text((times_s[0] + times_s[-1]) / 2 * unit, -1.02, "decode: one token a step", ha="center", va="bottom", size=11)
plots.show(fig, alt="A request's timeline: one long prefill, then short decode steps, each giving the reader one token.", record=request)

# %% [markdown]
# The reader's two waits have names. **TTFT** (time to first token, 首词延迟) runs from the arrival of the request to its
# first token: waiting in a queue, then prefill. **ITL** (inter-token latency, 词间延迟) is the gap between one token and the
# next, a decode step; its average over a request is also called TPOT, time per output token. The **latency** (延迟) of the
# request is TTFT plus all its gaps, and its *tokens/s* are all its tokens divided by that latency.
#
# Since one slow gap spoils a fluent answer, people watch a high percentile, too: the 99th, *p99*, which only 1 % of the
# gaps exceed. Sort $g$ gaps and number them from 0: it lies at place $0.99\,(g - 1)$. Between two gaps, interpolate: place
# 98.01 is 1 % of the way from gap 98 to gap 99 (task 4).
#
# Look at the widths. The prefill has read 200 tokens in far less than the time of 200 decode steps. On the napkin: a
# forward over $n$ tokens does $2Pn$ FLOPs and reads the same $P \cdot s$ bytes as a forward over one. The FLOPs for each
# byte read are its **arithmetic intensity** (算术强度):
#
# $$I = \frac{2 P n}{P s} = \frac{2n}{s} \qquad\text{in bf16, } s = 2:\quad I = n.$$
#
# A machine has such a number as well: the FLOPs that it *can* do while it reads one byte. For the H100 that is
# 989 · 10¹² / 3.35 · 10¹² = 295. A forward with $n < 295$ waits for memory: it is **memory-bound** (访存受限). One with
# $n > 295$ waits for arithmetic: **compute-bound** (计算受限). Decode has $n = 1$, and 1/295 is the 0.34 % from the beginning.
# Prefill of a thousand tokens keeps the whole chip busy. Two kinds of work with opposite needs, in one request:
# chapters 14 and 16 keep them from hurting one another.
#
# ### Many readers at once
#
# If a forward over one token costs as much as one over a hundred, let it carry the tokens of a hundred readers. Such a
# **batch** (批) of $b$ requests shares each reading of the weights. What it cannot share is the past: each request has keys
# and values of its own. A decode step takes at least
#
# $$t(b) = \max\left(\frac{P s + b\, S\, k}{B},\; \frac{2 P b}{F}\right)$$
#
# Capitals: $P$ weights, $S$ tokens of past, $B$ bytes/s, $F$ FLOP/s at peak. Small: $s$ bytes a weight, $k$ bytes of keys
# and values a token, $b$ requests. The **throughput** (吞吐量), tokens a second of all readers together, is $b / t(b)$; the
# ITL of each is $t(b)$.
#
# For Llama-3.1-8B, $k$ = 2 · 32 layers · 8 heads · 128 numbers · 2 bytes = 131,072 bytes (the 2 in front
# is for keys *and* values; [chapter 08](08_kv_cache.ipynb) derives it). Try $b = 64$, $S = 1000$ by hand: weights 15.0 GB, KV
# 64 · 1000 · 131,072 B = 8.4 GB, together 23.4 GB or 6.98 ms. Compute: 64 · 15.0 GFLOP = 0.96 TFLOP or 1 ms. So 6.98 ms a
# step, and 64 / 0.00698 = 9,170 tokens/s: 41 times the throughput of one reader, at an ITL 1.6 times as long.

# %% tags=["hide-input"]
KV_BYTES = 2 * llama_8b.num_layers * llama_8b.num_kv_heads * llama_8b.head_dim * 2
fig, (left, right) = plots.figure(7.2, 3.9, 1, 2)
batches = [2 ** (i / 4) for i in range(45)]  # 1 … 2048
for seq_len, color in ((100, plots.SKY), (1000, plots.BLUE), (8000, plots.PURPLE)):
    most = (80e9 - 16.1e9) / (seq_len * KV_BYTES)  # what fits beside the 16.1 GB of weights, in 80 GB
    fitting = [b for b in batches if b <= most] + [most]
    step_s = [max((weight_bytes + b * seq_len * KV_BYTES) / H100, b * weight_bytes / H100_FLOPS) for b in fitting]
    left.loglog(fitting, [1e3 * t for t in step_s], color=color, label=f"{seq_len:,} tokens each")
    right.plot([1e3 * t for t in step_s], [b / t for b, t in zip(fitting, step_s)], color=color)
    for ax, x, y in ((left, fitting[-1], 1e3 * step_s[-1]), (right, 1e3 * step_s[-1], fitting[-1] / step_s[-1])):
        ax.plot(x, y, "X", color=color, markersize=9)
left.loglog(batches, [1e3 * b * weight_bytes / H100_FLOPS for b in batches], color=plots.GREEN, linestyle="--", linewidth=1.5, label="arithmetic alone")
left.plot([], [], "X", color=plots.MUTED, markersize=9, label="80 GB are full")
left.set(xlabel="batch size", ylabel="decode step, ITL (ms)", ylim=(1, 900), xlim=(1, 8000))
left.legend(loc="upper left", fontsize=9.5)
right.set(xlabel="ITL (ms)", ylabel="tokens/s of all readers", xscale="log", yscale="log", ylim=(150, 9e4), xlim=(4, 110))
right.set_xticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"])
right.set_xticks([], minor=True)
plots.show(fig, alt="Step time is flat, then rises with the batch; throughput against ITL rises steeply, then bends. Crosses: memory is full.")

# %% [markdown]
# Three regimes, from left to right. While the weights dominate, the step time is flat and throughput grows with $b$: a
# free lunch. Then keys and values dominate: the step grows with $b$, and throughput approaches $B / (S\,k)$ however large
# the batch. With short texts arithmetic takes over, at $F / 2P$. And at the crosses the 80 GB are full: at 8,000
# tokens each, 60 readers are all that fit, long before the arithmetic is busy. That is why so many chapters are about the
# size of the cache.
#
# Where does arithmetic take over? Not at 295: each request also brings memory more to read. The two sides of the maximum
# are equal at $b = P s / (2PB/F - S k)$. For $S = 100$ that is 15.0 GB / (51 MB − 13 MB) = 398. For $S = 1000$ it never
# comes: $S k$ = 131 MB is more than 51 MB.
#
# If $b$ requests start together and get $L$ tokens each, all are ready at the end, and
#
# $$\text{latency} = \frac{b \cdot L}{\text{throughput}}.$$
#
# If throughput grew in proportion to $b$, latency would not depend on the batch. It grows more slowly, so latency grows:
# *batching buys throughput with latency*, cheaply at first, then dearly.

# %% [markdown]
# ## The real version
#
# The library's loop is the naive one, with a cache, a sampler and a stop rule. It is a generator, so that a token can
# be shown as soon as it is chosen. (`source` shows the library's own code.)

# %%
source(decode_steps)

# %% [markdown]
# `new_token_ids` is all the difference between prefill and decode: first the whole prompt, later one token. The limit
# counts new tokens, the ending token belongs to the output, and the context length (`max_seq_len`) bounds prompt and
# output together (in `num_tokens_to_generate`). The forward itself:

# %%
source(last_logits)

# %% [markdown]
# `begin` makes room in the cache for the new tokens and returns what attention needs to look back at the old ones;
# `commit` then counts the new ones among them. Rows may have different numbers of new tokens (`generate_batch` runs this
# same forward for many prompts), so they are padded on the right, and `hidden[rows, places]` picks each row's last real
# token. Only that one meets the vocabulary: logits of a prompt of 200 would be 200 · 2,048 numbers that nobody looks at.
#
# Is it right? The slow loop decides. Greedy decoding with the cache, without it, and in a batch beside strangers must
# choose the same tokens:

# %%
greedy = minillm.SamplingParams(max_new_tokens=60, temperature=0)
prompts = [tokenizer.encode(text) for text in (PROMPT, "One day, Lily", "The dragon", "In a village by the sea there lived")]
alone = [minillm.generate(model, prompt, greedy) for prompt in prompts]
assert alone == [generate_uncached(model, prompt, greedy) for prompt in prompts]
assert alone == minillm.generate_batch(model, prompts, greedy)
print("three ways, same tokens:", [len(token_ids) for token_ids in alone])

# %% [markdown]
# ### Text again, while it is being written
#
# A token is a run of *bytes*, and a character outside of ASCII takes two to four of them in UTF-8. So a token may end in
# the middle of a character: decoded alone, it shows a replacement character. Bytes have to be held back until their
# character is complete:

# %%
text = "Café, 2 €"
text_ids = tokenizer.encode(text)[1:]  # without ⟨bos⟩
decoder = StreamDecoder(tokenizer)
shown = [decoder.push(token_id) for token_id in text_ids]
assert "".join(shown) + decoder.flush() == text

# %% tags=["hide-input"]
byte_lists = [tokenizer.token_bytes(token_id) for token_id in text_ids]
widths = [1.5 * len(token_bytes) for token_bytes in byte_lists]
fig, ax = plots.diagram(7.2, 3.0)
rows = (
    ("tokens", [str(token_id) for token_id in text_ids], plots.GREY),
    ("bytes", [" ".join(f"{byte:02x}" for byte in token_bytes) for token_bytes in byte_lists], plots.GREY),
    ("decoded alone", [plots.visible(tokenizer.decode([token_id])) for token_id in text_ids], plots.ORANGE),
    ("streamed", [plots.visible(piece) for piece in shown], plots.BLUE),
)
for row, (label, labels, color) in enumerate(rows):
    colors = [color if name else plots.PAPER for name in labels]
    plots.cells(ax, 0, -1.15 * row, labels, colors=colors, width=widths, size=11)
    ax.text(-0.3, -1.15 * row + 0.5, label, ha="right", va="center", size=11)
plots.show(fig, alt="Tokens that hold parts of a character decode to replacement signs alone, and to nothing until complete when streamed.")

# %% [markdown]
# Python's incremental UTF-8 decoder keeps the unfinished bytes, so the library needs no more than this:

# %%
source(minillm.data.stream._ByteStream)

# %% [markdown]
# `minillm.stream` puts it together: `decode_steps`, this decoder, and the search for **stop strings** (停止字符串), which
# holds back text that may be the beginning of one. It told the story at the top of this page.
#
# ## Measured
#
# First the bound of the napkin. `ReadProbe` measures how fast this machine brings memory to its cores; divided by the
# bytes of the weights, that is one prediction. The bundled model needs another one: it hardly waits for memory, but Python
# and torch need time to start an operation, however small. How many does a token take?

# %%
class OperationCounter(TorchDispatchMode):
    """Counts the operations that torch starts."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def operations_for_a_token(some_model):
    cache = make_cache(some_model, batch_size=1, max_seq_len=8)
    last_logits(some_model, cache, [[0]])
    with OperationCounter() as counter:
        last_logits(some_model, cache, [[5]])
    return counter.count


print(operations_for_a_token(model), "operations for one token")

# %% [markdown]
# What does it cost to start them? A model of the same layers, but 16 numbers wide, starts the same operations with next to
# nothing in them. Its speed is the second prediction. Beside the bundled model stands one of 70 M parameters with random
# weights: a forward doesn't care what the numbers are.

# %%
def seconds_per_step(some_model, batch_size, repeats):
    """Median seconds of a decode step of `batch_size` requests, after 32 tokens each."""
    cache = make_cache(some_model, batch_size=batch_size, max_seq_len=40 + repeats)
    last_logits(some_model, cache, [[5] * 32] * batch_size)
    times = [seconds_for(lambda: last_logits(some_model, cache, [[5]] * batch_size)) for _ in range(repeats + 3)]
    return statistics.median(times[3:])


@torch.inference_mode()
def measure_bound():
    """[[model, tokens/s that memory allows, tokens/s that starting operations allows, tokens/s]]"""
    probe, rows = ReadProbe(), []
    for name, repeats in (("stories-5m", 30), ("llama-70m", 8)):
        full = model if name == "stories-5m" else Transformer(PRESETS[name]).eval()
        empty = Transformer(replace(full.config, hidden_size=16, intermediate_size=16, head_dim=2, vocab_size=64)).eval()
        assert operations_for_a_token(empty) == operations_for_a_token(full)
        rates = [
            [
                probe.bytes_per_s(repeats=1) / (4 * num_weights_read(full.config)),
                1 / seconds_per_step(empty, 1, repeats),
                1 / seconds_per_step(full, 1, repeats),
            ]
            for _ in range(3)
        ]
        rows.append([name, *map(statistics.median, zip(*rates))])
    return rows


bound = recorded("01_bound", measure_bound)

# %% tags=["hide-input"]
fig, axes = plots.figure(7.2, 2.9, 1, 2)
for ax, (name, *rates), remark in zip(axes, bound.values, ("19 MiB", "267 MiB"), strict=True):
    ax.barh(["memory\nallows", "starting\nallows", "measured"], rates, color=[plots.GREEN, plots.GREEN, plots.BLUE], height=0.6)
    for row, rate in enumerate(rates):
        ax.text(rate, row, f" {rate:,.0f}", va="center", size=11)
    ax.set(xlabel="tokens/s", xlim=(0, 1.3 * max(rates)))
    ax.set_title(f"{name} ({remark})", fontsize=11.5)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
plots.show(fig, alt="Measured tokens/s beside two bounds, for the bundled model and one of 70 million parameters.", record=bound)

# %% [markdown]
# Bounds are not reached for free. The larger model reads its weights from memory, but torch's product of a matrix and one
# vector gets only a part of the bandwidth: chapter 06 writes one that gets most of it. For the bundled model memory allows
# far more than starting does: chapter 07 glues operations together.
#
# What matters now: be it weights to read or operations to start, a step has a *fixed* part $t_0$ that the batch shares and
# a part $t_1$ for each request, $t(b) \approx t_0 + b\,t_1$. Then throughput is $b / (t_0 + b\,t_1)$: it rises like
# $b / t_0$ at first, is at half its limit $1/t_1$ when $b = t_0 / t_1$, and bends there. Two measurements, $b = 1$ and
# $b = 32$, fix a line; see how far the others are from it:

# %%
@torch.inference_mode()
def measure_batches():
    sizes = [1, 2, 4, 8, 16, 32, 64]
    rounds = [[seconds_per_step(model, batch_size, 10) for batch_size in sizes] for _ in range(5)]
    return {"sizes": sizes, "step_s": [statistics.median(times) for times in zip(*rounds)]}


batching = recorded("01_batching", measure_batches)
sizes, step_s = batching.values["sizes"], batching.values["step_s"]
t1 = (step_s[5] - step_s[0]) / (sizes[5] - sizes[0])
t0 = step_s[0] - t1

# %% tags=["hide-input"]
line_sizes = [1 + 63 * i / 99 for i in range(100)]
line = [t0 + size * t1 for size in line_sizes]
fig, (left, right) = plots.figure(7.2, 3.6, 1, 2)
left.plot(line_sizes, [1e3 * t for t in line], "--", color=plots.GREEN, label="line through 1 and 32")
left.plot(sizes, [1e3 * t for t in step_s], "o", color=plots.BLUE, label="measured")
left.set(xlabel="batch size", ylabel="decode step, ITL (ms)", ylim=(0, None), xlim=(0, None))
left.legend(loc="upper left")
right.plot([1e3 * t for t in line], [size / t for size, t in zip(line_sizes, line)], "--", color=plots.GREEN)
right.plot([1e3 * t for t in step_s], [size / t for size, t in zip(sizes, step_s)], "o", color=plots.BLUE)
for size, t in zip(sizes, step_s):
    right.annotate(f"{size}", (1e3 * t, size / t), (7, -3), textcoords="offset points", size=10, va="top")
right.set(xlabel="ITL (ms)", ylabel="tokens/s of all readers", ylim=(0, None), xlim=(0, None))
plots.show(fig, alt="Measured step times against the batch size with the predicted line, and throughput against ITL, which bends.", record=batching)

# %% [markdown]
# The numbers at the points are batch sizes. Points may leave the line: a product with one row, with four and with
# thirty-two are different programs inside torch. The shape stays. Larger batches buy throughput, and pay for it in ITL.
# Where to stop is a business decision; that there is a curve is physics.
#
# One more thing spoils the free lunch: answers differ in length. Here are twelve readers in one batch. Three let the story
# end by itself, the others asked for 30, 90 or 150 tokens:

# %%
limits = [30, 90, 150, 450] * 3
stories = minillm.generate_batch(
    model,
    [prompt_ids] * 12,
    [minillm.SamplingParams(max_new_tokens=limit) for limit in limits],
    generators=[torch.Generator().manual_seed(seed) for seed in range(12)],
)
lengths = [len(token_ids) for token_ids in stories]

# %% tags=["hide-input"]
fig, ax = plots.figure(7.2, 3.6)
spans = []
for row, length in enumerate(sorted(lengths, reverse=True)):
    spans.append((f"{row + 1}", 0, length, "telling a story" if row == 0 else "", plots.BLUE))
    if length < max(lengths):
        label = "told: slot empty" if row == len(lengths) - 1 else ""
        spans.append((f"{row + 1}", length, max(lengths), label, plots.tint(plots.ORANGE, 0.35)))
plots.timeline(ax, spans, xlabel="decode step", legend=False)
ax.set_ylabel("request")
plots.show(fig, alt="Twelve stories of different lengths in one batch: rows end early and wait for the longest.")
share = sum(lengths) / (len(lengths) * max(lengths))
print(f"{sum(lengths)} tokens in {max(lengths)} steps of {len(lengths)} slots: {share:.0%} of the slots were used")

# %% [markdown]
# A **static batch** (静态批处理) is answered when its longest request is done, and nobody can board meanwhile. In task 5
# you will simulate such a server with a queue. Chapter 14 fills the orange slots with waiting requests, and calls it
# continuous batching.
#
# ## In production
#
# Do they want the fastest single answer, or the most answers from the hardware? And which bottleneck did they attack first?
# You need not know these words yet; each has its chapter on the map below. As of November 2026:
#
# | system | optimises | by | today |
# |---|---|---|---|
# | [FasterTransformer](https://github.com/NVIDIA/FasterTransformer) | latency | fused kernels, fp16 and int8, GEMMs chosen by search | historical: its README sends you to TensorRT-LLM |
# | [DeepSpeed inference](https://github.com/deepspeedai/DeepSpeed) | both | tensor and expert parallelism, offloaded weights; FastGen: continuous batching, split prompts | FastGen's last news: January 2024 |
# | [FlexGen](https://github.com/FMInference/FlexLLMGen) | throughput | a linear program places tensors on GPU, CPU and disk; huge batches | archived in December 2024 (as FlexLLMGen) |
# | [llama.cpp](https://github.com/ggml-org/llama.cpp) | latency for one user | plain C/C++, weights of few bits, layers split between CPU and GPU | current |
# | [vLLM](https://github.com/vllm-project/vllm) | throughput | PagedAttention: the KV cache in blocks, hence larger batches | current |
# | [TGI](https://github.com/huggingface/text-generation-inference) | both | continuous batching, tensor parallelism, streaming server | in maintenance mode |
# | [SGLang](https://github.com/sgl-project/sglang) | throughput of related requests | RadixAttention: prefixes shared in a radix tree; structured output | current |
# | [TensorRT-LLM](https://github.com/NVIDIA/TensorRT-LLM) | both | tuned kernels, fp8/fp4, in-flight batching, paged KV, speculation | current |
#
# The two aims have since met: vLLM, SGLang and TensorRT-LLM all do continuous batching over a paged cache.
#
# ### The map
#
# Where in a request's life does each of the thirty chapters act, and by which lever? Nearly all turn the knobs of one
# formula, $t(b) = \max\big((P s + b S k)/B,\ 2Pb/F\big)$: fewer forwards, fewer bytes in each, more readers in each, a
# machine used closer to its limits, more machines. Chapter 07 removes what the formula leaves out, the time to start
# operations.

# %% tags=["hide-input"]
PHASES = {"wait": (0, 2.6), "prefill": (2.6, 7.4), "decode": (7.4, 14.4), "choose": (14.4, 17.2), "text": (17.2, 20)}
LEVERS = (
    ("the system", plots.GREY, ((("01 whole system"), "wait", "text"), ("02 model · 03 training", "prefill", "decode"), ("04 next token", "choose", "choose"))),
    ("fewer\nforwards", plots.BLUE, (("15 prefix cache", "prefill", "prefill"), ("08 KV cache", "decode", "decode"), ("18 speculation · 19 Medusa", "decode", "choose"))),
    ("fewer\nbytes", plots.ORANGE, (("09 MQA, GQA, MLA · 12 windows", "prefill", "decode"), ("20 int8 · 21 int4 · 22 sparsity · 23 distillation · 24 experts", "prefill", "decode"))),
    ("more\nreaders", plots.PURPLE, (("14 continuous batching, chunked prefill", "wait", "decode"), ("13 paged attention · 17 many LoRAs", "prefill", "decode"))),
    ("nearer the\nlimits", plots.GREEN, (("05 roofline · 06 GEMM · 07 fusion", "prefill", "choose"), ("10 FlashAttention", "prefill", "prefill"), ("11 FlashDecoding", "decode", "decode"))),
    ("more\ndevices", plots.SKY, (("25 data · 26 tensor, pipeline · 27 expert", "prefill", "decode"), ("28 long sequences", "prefill", "prefill"), ("16 prefill and decode apart", "prefill", "decode"))),
    ("together", plots.YELLOW, (("29 the serving engine", "wait", "text"), ("30 beyond text and beyond memory", "prefill", "decode"))),
)  # fmt: skip
fig, ax = plots.diagram(7.2, 8.5)
for phase, (start, end) in PHASES.items():
    plots.cells(ax, start, 0, [phase], colors=plots.INK, width=end - start, height=0.9, size=11, filled=True)
    ax.axvline(start, color=plots.GRID, linewidth=0.8, zorder=0)
y = -0.5
for lever, color, chapters in LEVERS:
    top_of_lever, taken = y, []
    for label, first, last in chapters:
        start, end = PHASES[first][0], PHASES[last][1]
        if not taken or start < taken[-1]:  # a new line, unless there is room to the right of the last one
            y -= 0.95
        taken.append(end)
        plots.cells(ax, start, y, [label], colors=color, width=end - start, height=0.85, size=9)
    ax.text(-0.3, (top_of_lever + y) / 2, lever, ha="right", va="center", size=10.5)
    y -= 0.4
plots.show(fig, alt="A map: the thirty chapters as bars over the phases of a request, in rows by the lever that they pull.")

# %% [markdown]
# ## Exercises
#
# In [`exercises/ch01_whole_system.py`](../exercises/ch01_whole_system.py), graded by `python3 tasks.py grade ch01`:
#
# | task | | points | prepared by |
# |---|---|---|---|
# | 1 | `predict_tokens_per_second`: the bound, with weights, KV and arithmetic | 4 | Napkin · Many readers at once |
# | 2 | `bpe_encode`: merges by rank | 5 | Text becomes ids |
# | 3 | `decode_loop`: a bug hunt, six bugs in eight lines | 5 | The naive version · The real version |
# | 4 | `request_metrics`: TTFT, mean and p99 ITL, tokens/s | 4 | One request on a clock |
# | 5 | `simulate_static_batches`: a server with a queue | 7 | Many readers at once · Measured |
#
# Once task 5 works, draw the curve that every operator knows: mean latency against the rate of arrivals, for batch sizes
# 1, 4 and 16, with $t_0$ and $t_1$ from above. The time in the queue will grow past all others.
#
# ## Check yourself
#
# <details><summary>A 70B model in bf16 (140 GB of weights to read) is spread over eight H100s that read in parallel,
# at 3.35 TB/s each. How many tokens a second, at most, for one reader?</summary>
#
# The eight together read 26.8 TB/s: 26.8 / 0.14 = 191 tokens/s. Communication between them only makes it less (chapter 26).
#
# </details>
#
# <details><summary>Quantizing weights from 16 to 4 bits: which of TTFT and ITL does it help more, for a prompt of
# 4,000 tokens and one reader?</summary>
#
# ITL. Decode waits for the bytes of the weights, which become a quarter. A prefill of 4,000 tokens is compute-bound
# (4,000 > 295), and the number of FLOPs stays.
#
# </details>
#
# <details><summary>A server gives 2,000 tokens/s with batches of 32, and answers have 250 tokens. What is the latency
# of a request, without queueing and prefill? What would it be with batches of 64 if throughput became
# 3,000?</summary>
#
# 32 · 250 / 2,000 = 4 s. With 64: 64 · 250 / 3,000 = 5.3 s. Throughput is up by half, and everybody waits a third longer.
#
# </details>
#
# <details><summary>Batch 1 of the formula says 223 tokens/s for the 8B model on an H100. With 8,000 tokens of context
# each, what is the most throughput that any batch size can approach, if memory were unlimited?</summary>
#
# $B / (S k)$ = 3.35 · 10¹² / (8,000 · 131,072) = 3,195 tokens/s: each token must read 1.05 GB of its own past. The
# arithmetic limit, $F / 2P$ = 65,900 tokens/s, is far away.
#
# </details>
#
# ## Sources
#
# - R. Sennrich, B. Haddow, A. Birch: *Neural Machine Translation of Rare Words with Subword Units*, 2016,
#   [arXiv:1508.07909](https://arxiv.org/abs/1508.07909), algorithm 1: byte-pair encoding.
# - S. Williams, A. Waterman, D. Patterson: *Roofline: an insightful visual performance model for multicore
#   architectures*, Communications of the ACM 52(4), 2009: intensity and the two bounds.
# - R. Pope et al.: *Efficiently Scaling Transformer Inference*, 2022,
#   [arXiv:2211.05102](https://arxiv.org/abs/2211.05102): the same cost model at the size of PaLM.
# - G.-I. Yu et al.: *Orca: A Distributed Serving System for Transformer-Based Generative Models*, OSDI 2022: why
#   static batches waste, and what to do.
# - W. Kwon et al.: *Efficient Memory Management for Large Language Model Serving with PagedAttention*, 2023,
#   [arXiv:2309.06180](https://arxiv.org/abs/2309.06180).
# - Y. Sheng et al.: *FlexGen: High-Throughput Generative Inference of Large Language Models with a Single GPU*, 2023,
#   [arXiv:2303.06865](https://arxiv.org/abs/2303.06865).
# - M. Brysbaert: *How many words do we read per minute?*, Journal of Memory and Language 109, 2019: 238 words a
#   minute, about 5 tokens/s.
# - NVIDIA datasheets: A10 (600 GB/s), A100 80 GB SXM (2,039 GB/s), H100 SXM (3.35 TB/s; 1,979 TFLOP/s in bf16 with
#   sparsity, half of it without).
#
# Next: [chapter 02](02_building_the_model.ipynb) builds the six blocks.
