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
# # 04 · Choosing the next token
#
# *The model hands over 2,048 numbers and no decision. This chapter decides: it takes the best, draws, filters, and searches ahead.*
#
# Needs: chapters [01](01_whole_system.ipynb) and [02](02_building_the_model.ipynb)  ·  Time: 60 minutes to read, 90 to solve

# %% [markdown]
# ## Why
#
# A language model does not write. After each token it gives one number for every token of its vocabulary, and something else has to
# pick. Pick the likeliest every time, and everybody who asks for a story gets the same one. Draw from the whole
# distribution, and sooner or later a token comes out that should not have: a rabbit in a story that has none. From then on the
# model takes the rabbit for granted. Nor is the likeliest token always right.
#
# Here is the number that hurts. A chooser that goes wrong **once in a hundred tokens** sounds reliable. It spoils 87 % of all
# texts of 200 tokens. Between "always the same" and "87 % spoiled" lie the knobs of this chapter. Every serving system has them,
# and the order in which a system applies them changes what they mean.

# %%
import itertools
import math

import torch
from IPython.display import Markdown

import minillm
from minillm import SamplingParams, plots
from minillm.bench.show import source
from minillm.data import stories
from minillm.data.stories.chance import Follower, Mismatch
from minillm.data.stories.corpus import tell_story
from minillm.generation import beam_search
from minillm.sampling import (
    ban_repeated_ngrams,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    process_logits,
    sample,
)

model = minillm.load_model()
tokenizer = minillm.load_tokenizer()
vocab_size = model.config.vocab_size


@torch.inference_mode()
def logits_after(text: str) -> torch.Tensor:
    """The model's logits (vocab_size,) for the token after `text`."""
    return model(torch.tensor(tokenizer.encode(text)))[-1]


def show_token(token_id: int) -> str:
    return plots.visible(tokenizer.decode([token_id]))


# %% [markdown]
# **A luxury.** The bundled model learned from stories that a grammar tells ([chapter 03](03_training.ipynb)). So there is a
# judge: for any beginning of a text, the grammar knows whether a story can begin that way, with what probability, and if not, at
# which character it stops being possible. Chat has no such judge. The folded cell builds it out of the grammar's own scoring
# code; how it works doesn't matter here. The next one asks it three questions.


# %% tags=["hide-input"]
class Covered(Exception):
    """The telling has told the whole text that is listened for."""


class Listener(Follower):
    """Follows a text that may be only the beginning of a story. `reach` counts the characters that fitted."""

    reach = 0

    def note(self, piece: str) -> None:
        rest = self._text[self._position :]
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(rest, piece, strict=False))
        self.reach = max(self.reach, self._position + sum(1 for _ in same))

    def emit(self, text: str) -> None:
        self.note(text)
        if text.startswith(self._text[self._position :]):
            raise Covered
        super().emit(text)

    def choose(self, distribution, head) -> int:
        rest_len = len(self._text) - self._position
        heads = [
            head(option) if log_prob > -math.inf else "" for option, log_prob in enumerate(distribution.log_probs)
        ]
        for option_head in heads:
            self.note(option_head)
        # A word that is longer than what is left of the text fits if it begins like the rest.
        return super().choose(distribution, lambda option: heads[option][:rest_len])


def judge(text: str) -> tuple[float, int]:
    """(probability that a story begins with `text`, number of its characters that some story begins with)."""
    prob, reach, untried = 0.0, 0, [()]
    while untried:
        listener = Listener(text, untried.pop())
        try:
            tell_story(listener)
        except Covered:
            prob += math.exp(listener.log_prob)
        except Mismatch:
            pass
        reach = max(reach, listener.reach)
        untried.extend(listener.untried)
    return prob, reach


# %%
for ending in ("", ", there was a little girl", ", there was a little computer"):
    text = "Once upon a time" + ending
    prob, reach = judge(text)
    print(f"{prob:.4f} of all stories begin with {text!r}" + ("" if prob else f"; some do with {text[:reach]!r}"))

# %% [markdown]
# ## Napkin
#
# **Mistakes compound.** If each token is a mistake with probability $\varepsilon$, independently, a text of $n$ tokens survives
# with probability
#
# $$P(\text{no mistake}) = (1-\varepsilon)^n \approx e^{-\varepsilon n}.$$
#
# For $\varepsilon = 0.01$ and $n = 200$ that is 0.134. To keep nine texts in ten, $\varepsilon$ must be below $1 - 0.9^{1/200}$,
# one mistake in 1,900 tokens.
#
# **Choosing costs little, sorting a batch does not.** Llama 3 8B has 16.06 GB of bf16 weights and a vocabulary of 128,256. An
# H100 (SXM) reads 3.35 TB/s, so a decoding step takes at least 4.8 ms. How long does one pass over the logits take?

# %%
bandwidth = 3.35e12  # bytes/s
step_s = 2 * 8.03e9 / bandwidth
rows = ["| batch | logits in fp32 | one pass, at least | ten passes (a sort) | share of a step |"]
rows.append("|---:|---:|---:|---:|---:|")
for batch in (1, 32, 256):
    logit_bytes = 4 * 128_256 * batch
    pass_s = logit_bytes / bandwidth
    sizes = f"{logit_bytes / 2**20:.1f} MiB | {pass_s * 1e6:.2f} µs | {pass_s * 1e4:.3f} ms"
    rows.append(f"| {batch} | {sizes} | {10 * pass_s / step_s:.1%} |")
Markdown("\n".join(rows))

# %% [markdown]
# For one request the choice is free. For 256 a careless one adds up to 8 % to the step: sorting on a GPU moves keys and indices
# through memory several times, say ten passes. Production samplers avoid it ([below](#in-production)).
#
# **Searching costs everything.** All continuations of 20 tokens from a vocabulary of 2,048 are $2048^{20} \approx 10^{66}$.
# Whoever wants the most probable *text* and not the most probable next token has to search, and to search a vanishing part.

# %% [markdown]
# ## The naive version
#
# Two obvious choosers. **Greedy decoding** (贪心解码) takes the largest logit. **Sampling** (采样) draws each token with the
# probability that the model gives it: softmax of the logits.


# %%
def take_the_best(logits: torch.Tensor, generator: torch.Generator) -> int:
    return int(logits.argmax())


def take_your_chance(logits: torch.Tensor, generator: torch.Generator) -> int:
    return int(torch.multinomial(logits.softmax(dim=-1), 1, generator=generator))


def tell(chooser, seed: int, max_tokens: int = 70) -> str:
    """A story of at most `max_tokens` tokens, its beginning included."""
    generator, text = torch.Generator().manual_seed(seed), "Once upon a time"
    token_ids = tokenizer.encode(text)
    with torch.inference_mode():
        while len(token_ids) < max_tokens and token_ids[-1] not in model.config.eos_token_ids:
            token_ids.append(chooser(model(torch.tensor(token_ids))[-1], generator))
    return tokenizer.decode(token_ids[1:])  # without BOS, which `encode` puts first


def struck(text: str) -> str:
    """The text, struck through from where no story goes on that way."""
    reach = judge(text)[1]
    word_start = max(text.rfind(" ", 0, reach), text.rfind("\n", 0, reach)) + 1
    start = reach if reach == len(text) else word_start
    good, bad = text[:start], text[start:].strip()
    return (good + (f"~~{bad}~~" if bad else "")).replace("\n\n", " ¶ ")


rows = ["| chooser, seed | what it tells (struck through: impossible in the grammar) |", "|---|---|"]
for chooser, seed in itertools.product((take_the_best, take_your_chance), (0, 1)):
    rows.append(f"| {chooser.__name__}, {seed} | {struck(tell(chooser, seed))} |")
Markdown("\n".join(rows))

# %% [markdown]
# Greedy tells one story, whatever the seed. Sampling tells a new one each time. Either can leave the grammar: being the model's
# favourite doesn't make a token right. The judge is strict. A word repeated where the grammar would have taken a fresh one is
# enough. The rest of the chapter is about what lies between the two.

# %% [markdown]
# ## The idea
#
# ### Temperature: one number between greedy and random
#
# Write $z \in \mathbb{R}^V$ for the logits, $V$ for the vocabulary's size. **Temperature** (温度) $T$ divides them before the
# softmax:
#
# $$p_i(T) = \frac{e^{z_i/T}}{\sum_j e^{z_j/T}}, \qquad \frac{p_i}{p_j} = e^{(z_i - z_j)/T}.$$
#
# By hand: $z = (0, \ln 2)$ gives $(1/3, 2/3)$ at $T=1$; at $T = 1/2$ the ratio 2 becomes $2^2 = 4$, so $(1/5, 4/5)$; at $T \to 0$
# the ratio grows beyond all bounds, and what is left is greedy. At $T \to \infty$ all tokens are alike. How random a distribution
# is, its **entropy** (熵) says: $H = -\sum_i p_i \ln p_i$ nats, from 0 (certain) to $\ln V$ (uniform). $e^H$ is the number of
# equally likely tokens that would be as uncertain.
#
# Entropy only rises with $T$. Write $\beta = 1/T$, $Z = \sum_j e^{\beta z_j}$ and $\langle z\rangle = \sum_i p_i z_i$, the mean
# logit. Then $\ln p_i = \beta z_i - \ln Z$, so $H = \ln Z - \beta\langle z\rangle$. Differentiating $\ln Z$ by $\beta$ once gives
# $\langle z\rangle$, twice $\mathrm{Var}(z)$, the variance of the logits under $p(T)$. With $d\beta/dT = -1/T^2$:
#
# $$\frac{dH}{d\beta} = \langle z \rangle - \langle z\rangle - \beta\,\mathrm{Var}(z), \qquad
# \frac{dH}{dT} = \frac{\mathrm{Var}(z)}{T^3} \ge 0.$$
#
# **On a computer**, never divide first. $20 / 10^{-40}$ overflows, and the softmax of $(\infty, \infty)$ is NaN. Softmax doesn't
# change when a constant is subtracted, so subtract $z_\max$ first: the largest logit becomes 0 and stays 0, the others go to
# $-\infty$ safely. At exactly $T = 0$, take the argmax.
#
# Now two moments from real stories. One is **flat**: after "there was a", fourteen traits are possible. One is **peaked**: after
# "Ivy and", only her friend's name is, which was said a few sentences before.

# %%
flat_text = "Once upon a time, there was a"
peaked_text = (
    "There lived once a kind hedgehog called Ivy. Her home was a tiny village near the windmill. "
    "She loved jumping in puddles and painting more than anything. Her best friend was the postman's little fox "
    "named Olive, who loved her purple jacket. But the hedgehog had a secret: she was afraid of loud noises. "
    "When the other children called her, she ran home.\n\nOne frosty morning, Ivy and"
)
flat, peaked = "flat: “… there was a”", "peaked: “… Ivy and”"
moments = {flat: logits_after(flat_text).double(), peaked: logits_after(peaked_text).double()}


def entropy(logits: torch.Tensor) -> float:
    """In nats."""
    log_probs = logits.log_softmax(dim=-1)
    return float(-(log_probs.exp() * log_probs).nan_to_num(0.0).sum())


step = 1e-4
for name, logits in moments.items():
    probs = logits.softmax(dim=-1)
    variance = float((probs * logits**2).sum() - (probs * logits).sum() ** 2)
    slope = (entropy(logits / (1 + step)) - entropy(logits / (1 - step))) / (2 * step)
    assert abs(slope - variance) < 1e-4 * max(1, variance), "dH/dT at T = 1 is the variance of the logits"

# %% tags=["hide-input"]
temperatures = torch.logspace(-1, 1.3, 70, dtype=torch.float64)
fig, (left, right) = plots.figure(7.2, 3.5, ncols=2, width_ratios=(1.35, 1))
for (name, logits), color in zip(moments.items(), (plots.BLUE, plots.ORANGE), strict=True):
    left.plot(temperatures, [entropy(logits / t) for t in temperatures], color=color, label=name)
left.axhline(math.log(vocab_size), color=plots.GREY, linestyle="--", linewidth=1.2)
left.text(0.105, math.log(vocab_size) - 0.15, f"ln {vocab_size:,}: uniform", color=plots.MUTED, va="top", size=10)
left.axvline(1, color=plots.GRID, zorder=0)
left.set(xscale="log", xlabel="temperature", ylabel="entropy (nats)", ylim=(-0.2, 10.4))
left.set_xticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
left.minorticks_off()
left.legend(loc="upper left", fontsize=9.5, borderaxespad=0)
best = moments[flat].topk(8)
for temperature, color in ((0.3, plots.SKY), (1.0, plots.BLUE), (2.0, plots.PURPLE)):
    probs = (moments[flat] / temperature).softmax(dim=-1)[best.indices]
    right.plot(range(8), probs, marker="o", color=color, label=f"T = {temperature:g}")
right.set(title=flat, ylabel="probability", ylim=(0, None))
right.set_xticks(
    range(8),
    [show_token(i)[1:] for i in best.indices.tolist()],
    rotation=55,
    ha="right",
    size=9.5,
    rotation_mode="anchor",
)
right.legend()
plots.show(fig, alt="Entropy rises with temperature from 0 to the uniform limit, for a flat and a peaked moment.")

# %% [markdown]
# Look at the cliff beyond $T = 1$. Is it the good tokens becoming more alike? The judge says which tokens can follow at all. Here
# is the probability of all the others together:

# %%
rows = ["| moment | " + " | ".join(f"T = {t:g}" for t in (1, 1.5, 2, 3)) + " |", "|---|" + "---:|" * 4]
for (name, logits), text in zip(moments.items(), (flat_text, peaked_text), strict=True):
    candidates = logits.topk(50).indices.tolist()  # what can follow is among them
    good = [i for i in candidates if judge(text + tokenizer.decode([i]))[0] > 0]
    lost = [1 - float((logits / t).softmax(dim=-1)[good].sum()) for t in (1, 1.5, 2, 3)]
    rows.append(f"| {name} | " + " | ".join(f"{share:.1%}" for share in lost) + " |")
Markdown("\n".join(rows))

# %% [markdown]
# It is the crowd: two thousand hopeless tokens, each of them nothing, whose sum overtakes the few good ones.
#
# Temperature 1 is the one setting at which a perfect model, which had learned the grammar's probabilities exactly, would tell
# stories exactly as the grammar does. Any other says that the model, or the world, is not as it should be.
#
# ### Filters: cut off the tail
#
# A model with 2,048 outputs gives none of them probability 0. A **filter** (过滤器) sets the logits of unwanted tokens to $-\infty$;
# softmax then shares the whole probability among the rest, the filter's **support** (支撑集). Three ways to draw the line:
#
# - **top-k** (Top-k 采样): the $k$ most likely tokens. A fixed number, whatever the distribution looks like.
# - **top-p** or nucleus sampling (Top-p 核采样): the fewest most likely tokens that together reach probability $p$. The token that
#   crosses the line stays, so there is always one.
# - **min-p** (Min-p 采样): the tokens at least $m$ times as likely as the likeliest. A line that moves with the model's confidence.
#
# Here is what they keep at the two moments (a dot before a word is a space). The judge knows the truth (green): which tokens can
# follow, and how often they do.

# %%
filters = {
    "top-k = 5": lambda z: keep_top_k(z, 5),
    "top-k = 20": lambda z: keep_top_k(z, 20),
    "top-p = 0.9": lambda z: keep_top_p(z, 0.9),
    "top-p = 0.5": lambda z: keep_top_p(z, 0.5),
    "min-p = 0.1": lambda z: keep_min_p(z, 0.1),
}

# %% tags=["hide-input"]
num_shown = 24
fig, axes = plots.figure(7.4, 7.6, nrows=4, height_ratios=(1, 0.62, 1, 0.62))
supports = {}
for (name, logits), text, ax, grid in zip(
    moments.items(), (flat_text, peaked_text), axes[::2], axes[1::2], strict=True
):
    order = logits.argsort(descending=True)[:num_shown].tolist()
    probs = logits.softmax(dim=-1)
    base = judge(text)[0]
    true_probs = [judge(text + tokenizer.decode([i]))[0] / base for i in order]
    bar_colors = [plots.BLUE if true > 0 else plots.RED for true in true_probs]
    ax.bar(range(num_shown), probs[order], color=bar_colors, width=0.72)
    for x, true in enumerate(true_probs):
        if true > 0:
            ax.plot([x - 0.45, x + 0.45], [true, true], color=plots.GREEN, linewidth=2.6)
    ax.set(
        yscale="log",
        ylabel="probability",
        xlim=(-0.6, num_shown - 0.4),
        ylim=(max(1e-7, float(probs[order[-1]]) / 3), 2),
    )
    ax.set_title(f"{name}   (entropy {entropy(logits):.2f} nats)", size=11.5)
    ax.set_xticks([])
    kept = {label: keep(logits) > -math.inf for label, keep in filters.items()}
    supports[name] = kept
    for row, (label, mask) in enumerate(kept.items()):
        for x, token_id in enumerate(order):
            color = plots.GRID if not mask[token_id] else plots.BLUE if true_probs[x] > 0 else plots.RED
            grid.fill_between([x - 0.36, x + 0.36], row - 0.36, row + 0.36, color=color, linewidth=0)
    grid.set(xlim=(-0.6, num_shown - 0.4), ylim=(len(filters) - 0.4, -0.6))
    grid.set_yticks(range(len(filters)), list(filters), size=10)
    grid.set_xticks(
        range(num_shown), [show_token(i) for i in order], rotation=60, ha="right", size=9, rotation_mode="anchor"
    )
    grid.grid(visible=False)
    grid.tick_params(length=0)
    for side in grid.spines.values():
        side.set_visible(False)
axes[2].plot([], [], color=plots.GREEN, linewidth=2.6, label="truth: the grammar's probability")
axes[2].bar([0], [0], color=plots.BLUE, label="model, token can follow")
axes[2].bar([0], [0], color=plots.RED, label="model, token can't follow")
axes[2].legend(loc="upper right", fontsize=10)
plots.show(fig, alt="Two next-token distributions and the tokens that five filters keep; red ones can't follow.")

rows = ["| tokens kept: possible + impossible | " + " | ".join(filters) + " |", "|---|" + "---:|" * len(filters)]
for (name, kept), text in zip(supports.items(), (flat_text, peaked_text), strict=True):
    counts = []
    for mask in kept.values():
        can_follow = [judge(text + tokenizer.decode([i]))[0] > 0 for i in mask.nonzero().flatten().tolist()]
        counts.append(f"{sum(can_follow)} + {len(can_follow) - sum(can_follow)}")
    rows.append(f"| {name} | " + " | ".join(counts) + " |")
Markdown("\n".join(rows))

# %% [markdown]
# Read the rows. A small $k$ cuts good traits off at the flat moment and still keeps impossible tokens at the peaked one. No
# single $k$ is right for both: that was the argument for the nucleus (Holtzman et al.). top-p and min-p adapt. They differ in
# what they adapt to: top-p to the shape of the whole sum, so it gives up at most the last $1-p$ of the mass, good or bad; min-p
# to the height of the peak.
#
# The nucleus can be computed in closed form for a **geometric** distribution (with an endless vocabulary). Let each logit be $s$
# below the one before. At temperature $T$ the probabilities shrink by $r = e^{-s/T}$ from rank to rank, and the first $n$ tokens
# weigh $1 - r^n$. That reaches $p$ when $r^n \le 1 - p$. Take logarithms and divide by $\ln r < 0$, which turns the sign:
#
# $$n \ge \frac{\ln(1-p)}{\ln r} = \frac{T}{s}\ln\frac{1}{1-p}.$$
#
# The nucleus grows in proportion to the temperature.
#
# ### Order matters
#
# A filter sees what the steps before it left. Take four tokens with probabilities 0.4, 0.3, 0.2, 0.1. Apply top-k = 2 first: it
# leaves 0.4 and 0.3, which softmax turns into 0.57 and 0.43, so top-p = 0.5 then keeps **one**. Apply top-p = 0.5 first: 0.4 is
# not enough, so two tokens stay, and top-k = 2 keeps **two**. So does temperature, which changes the probabilities that top-p and
# min-p look at. Below, both orders.

# %%
z = moments[flat]
four = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
pairs = [
    ("four tokens", four, "top-k 2 → top-p 0.5", lambda v: keep_top_p(keep_top_k(v, 2), 0.5)),
    ("four tokens", four, "top-p 0.5 → top-k 2", lambda v: keep_top_k(keep_top_p(v, 0.5), 2)),
    ("flat moment", z, "T 2 → top-p 0.9", lambda v: keep_top_p(v / 2, 0.9)),
    ("flat moment", z, "top-p 0.9 → T 2", lambda v: keep_top_p(v, 0.9) / 2),
    ("flat moment", z, "T 0.5 → min-p 0.2", lambda v: keep_min_p(v / 0.5, 0.2)),
    ("flat moment", z, "min-p 0.2 → T 0.5", lambda v: keep_min_p(v, 0.2) / 0.5),
]
rows = ["| distribution | order | tokens kept | probability of the likeliest |", "|---|---|---:|---:|"]
for name, logits, label, chain in pairs:
    result = chain(logits)
    rows.append(
        f"| {name} | {label} | {int((result > -math.inf).sum())} | {float(result.softmax(dim=-1).max()):.3f} |"
    )
Markdown("\n".join(rows))

# %% [markdown]
# "Temperature 2, top-p 0.9" lets a crowd in under the order of `transformers` and vLLM, and is tame under that of llama.cpp,
# which applies the temperature last. The same numbers mean something else on another system.
#
# ### Against loops
#
# Having said something makes it likelier to be said again, and greedy texts end in loops. Two blunt tools exist. The **repetition
# penalty** (重复惩罚) $\theta > 1$ of CTRL weakens every token that prompt and output have already: $z_i \to z_i / \theta$. Try it on
# a *negative* logit: $-2 / 2 = -1$ is larger. The penalty would reward. So implementations multiply where $z_i < 0$. The repair
# has a price: softmax doesn't care about a constant added to all logits, and the penalty does.

# %%
by_hand = torch.tensor([2.0, 1.0, -2.0])
rows = ["| logits | probabilities | after penalty 2 on tokens 0 and 2 |", "|---|---|---|"]
for shift in (0.0, 3.0, -3.0):
    before = by_hand + shift
    after = penalize_repetition(before, [0, 2], 2.0)
    probs = [[round(p, 3) for p in row.softmax(dim=-1).tolist()] for row in (before, after)]
    rows.append(f"| {before.tolist()} | {probs[0]} | {probs[1]} |")
Markdown("\n".join(rows))

# %% [markdown]
# Three times the same distribution, three different results. The penalty also hits what ought to be repeated: commas, "the", and
# names. Here is what it does to Olive, the one right answer at our peaked moment.

# %%
peaked_ids = tokenizer.encode(peaked_text)
olive = tokenizer.encode(" Olive")[-1]
for theta in (1.0, 1.3, 2.0):
    after = penalize_repetition(logits_after(peaked_text), peaked_ids, theta)
    rank = int((after > after[olive]).sum()) + 1
    print(f"penalty {theta}: probability of Olive {float(after.softmax(dim=-1)[olive]):.3f}, rank {rank}")

# %% [markdown]
# The **n-gram ban** (禁止重复 n-gram) is exact instead: with $n = 3$, no three tokens in a row may appear twice. After `… 7 3 … 7`, the
# bigram ban $n=2$ forbids 3. It is right for summaries and wrong for poems. And it may forbid everything: then the row would be all
# $-\infty$, and softmax of that is $0/0$. Something has to come next, so the ban is lifted.

# %%
history = tokenizer.encode("Tom had a red ball. Tom had a red")
before = logits_after("Tom had a red ball. Tom had a red")
after = ban_repeated_ngrams(before, history, 3)
banned = (after.isneginf() & ~before.isneginf()).nonzero().flatten().tolist()
print("n = 3 bans after “Tom had a red ball. Tom had a red”:", [show_token(i) for i in banned])
everything = ban_repeated_ngrams(torch.tensor([0.5, 1.5]), [0, 1], 1)
nothing_left = torch.full((2,), -math.inf).softmax(dim=-1)
print("a ban of the whole vocabulary is lifted:", everything.tolist(), "instead of", nothing_left.tolist())

# %% [markdown]
# ### Drawing: a staircase, or noise
#
# How does a computer draw from $p$? The staircase: add the probabilities up, throw one uniform number $u \in [0, 1)$, and take
# the first token whose cumulative sum exceeds it (**inverse CDF sampling**, 逆变换采样). One random number a token.
#
# The other way looks like magic. Add independent noise $g_i = -\ln(-\ln u_i)$ to each logit (**Gumbel noise**, Gumbel 噪声) and
# take the *argmax*. The winner is an exact sample from the softmax. Why: $-\ln u_i$ is an exponential waiting time with rate 1;
# divided by $e^{z_i}$ it is one with rate $e^{z_i}$. Of independent exponential clocks, clock $i$ rings first with probability
# rate over sum of rates:
#
# $$P\Big(\underset{j}{\arg\min}\; \frac{-\ln u_j}{e^{z_j}} = i\Big) = \frac{e^{z_i}}{\sum_j e^{z_j}}, \qquad
# \underset{j}{\arg\min}\; \frac{-\ln u_j}{e^{z_j}} = \underset{j}{\arg\max}\; \big(z_j - \ln(-\ln u_j)\big).$$
#
# No sum over the vocabulary, no normalisation, no sorting: each processor that holds a slice of the logits finds its own best,
# and the best of the bests wins. Temperature gets a picture, too: $z/T + g$ and $z + T g$ have the same argmax. **Temperature is
# the loudness of the noise**, and at $T=0$ there is silence, which is greedy. In the middle panel the tick is a token's logit,
# the stick its noise, the dot the winner.

# %% tags=["hide-input"]
few = torch.tensor([2.0, 1.3, 0.6, 0.0, -1.0], dtype=torch.float64)
few_probs, few_names = few.softmax(dim=-1), list("ABCDE")
token_colors = [plots.BLUE, plots.SKY, plots.GREEN, plots.ORANGE, plots.PURPLE]
generator = torch.Generator().manual_seed(4)
fig, (left, middle, right) = plots.figure(7.6, 3.7, ncols=3, width_ratios=(1, 1.25, 1))
cumulative = few_probs.cumsum(dim=-1)
for i in range(5):
    bottom = float(cumulative[i] - few_probs[i])
    left.bar(i, float(few_probs[i]), bottom=bottom, color=token_colors[i], width=0.8)
u = 0.73
winner = int(torch.searchsorted(cumulative, u, right=True))
left.plot([-2.6, winner], [u, u], color=plots.INK, linewidth=1.4, linestyle="--")
left.text(-2.5, u + 0.02, f"u = {u}", size=9.5)
left.set(title="staircase", ylabel="cumulative probability", xlim=(-2.6, 4.6), ylim=(0, 1.02))
left.set_xticks(range(5), few_names)
for draw in range(4):
    noise = -torch.log(-torch.log(torch.rand(5, generator=generator, dtype=torch.float64)))
    total = few + noise
    for i in range(5):
        x = draw + (i - 2) * 0.16
        middle.plot([x, x], [few[i], total[i]], color=token_colors[i], linewidth=3, solid_capstyle="butt")
        middle.plot(x, few[i], marker="_", color=token_colors[i], markersize=6)
    best_i = int(total.argmax())
    middle.plot(draw + (best_i - 2) * 0.16, total[best_i], marker="o", color=token_colors[best_i], markersize=8)
    middle.text(
        draw + (best_i - 2) * 0.16,
        float(total[best_i]) + 0.3,
        few_names[best_i],
        ha="center",
        size=11,
        weight="bold",
    )
middle.set(title="logits + noise", xlabel="draw", ylabel="logit")
middle.set_xticks(range(4), ["1", "2", "3", "4"])
middle.margins(y=0.12)
num_draws = 20_000
uniforms = torch.rand(num_draws, 5, generator=generator, dtype=torch.float64)
gumbel_winners = (few - torch.log(-torch.log(uniforms))).argmax(dim=-1)
stair_winners = torch.searchsorted(cumulative, uniforms[:, 0].contiguous(), right=True)
for winners, offset, color, label in (
    (stair_winners, -0.2, plots.GREY, "staircase"),
    (gumbel_winners, 0.2, plots.BLUE, "noise"),
):
    shares = torch.bincount(winners, minlength=5) / num_draws
    right.bar([i + offset for i in range(5)], shares, width=0.38, color=color, label=label)
right.plot(
    range(5),
    few_probs,
    linestyle="none",
    marker="_",
    markersize=17,
    markeredgewidth=2.4,
    color=plots.GREEN,
    label="softmax",
)
right.set(title="20,000 draws", ylabel="share")
right.set_xticks(range(5), few_names)
right.legend(fontsize=9.5)
plots.show(fig, alt="Drawing by staircase and by noise on the logits; both have the softmax's frequencies.")

chi_square = float(
    ((torch.bincount(gumbel_winners, minlength=5) - num_draws * few_probs) ** 2 / (num_draws * few_probs)).sum()
)
print(
    f"noise against softmax: chi-square {chi_square:.1f} with 4 degrees of freedom (above 18.5 once in a thousand)"
)

# %% [markdown]
# ### Search: the best text is not made of best tokens
#
# Greedy maximises each factor of $p(x_1)\,p(x_2 \mid x_1)\cdots$ and not the product. **Beam search** (束搜索) keeps the $B$ best
# beginnings, extends each by every token, and keeps the best $B$ of all. $B = 1$ is greedy; $B = V^{n}$ is brute force; in
# between it is a heuristic. A vocabulary of three and three steps are small enough to see everything.

# %%
table = {
    (): (0.50, 0.30, 0.20),
    ("a",): (0.36, 0.34, 0.30), ("b",): (0.65, 0.20, 0.15), ("c",): (0.02, 0.03, 0.95),
    ("a", "a"): (0.50, 0.30, 0.20), ("b", "a"): (0.60, 0.25, 0.15), ("c", "c"): (0.03, 0.02, 0.95),
}  # fmt: skip


def toy_log_probs(prefix: tuple) -> dict:
    """Token -> log-probability after a prefix of the three-letter language."""
    return {token: math.log(p) for token, p in zip("abc", table.get(prefix, (0.40, 0.35, 0.25)), strict=True)}


def widen(beam: dict, num_beams: int) -> dict:
    """One step: extend every prefix {prefix: log-probability} by every token, keep the best."""
    longer = {
        (*prefix, token): total + lp
        for prefix, total in beam.items()
        for token, lp in toy_log_probs(prefix).items()
    }
    return dict(sorted(longer.items(), key=lambda item: -item[1])[:num_beams])


found, visited = {}, {}
for num_beams in (1, 2, 27):
    beam, seen = {(): 0.0}, {()}
    for _ in range(3):
        beam = widen(beam, num_beams)
        seen |= set(beam)
    found[num_beams], visited[num_beams] = next(iter(beam.items())), seen
    print(f"{num_beams:2} beams find {''.join(found[num_beams][0])}: {math.exp(found[num_beams][1]):.3f}")

# %% tags=["hide-input"]
fig, ax = plots.figure(7.6, 6.4)
ax.axis("off")
leaves = list(itertools.product("abc", repeat=3))


def place(prefix: tuple) -> tuple[float, float]:
    """Depth to the right; the height is the middle of the leaves below the prefix."""
    below = [i for i, leaf in enumerate(leaves) if leaf[: len(prefix)] == prefix]
    return len(prefix) * 2.0, -sum(below) / len(below)


every_prefix = [p for depth in range(4) for p in itertools.product("abc", repeat=depth)]
total_of = {p: sum(toy_log_probs(p[:i])[p[i]] for i in range(len(p))) for p in every_prefix}
best_path = found[27][0]


def color_of(prefix: tuple) -> str:
    """By the narrowest search that saw the prefix; grey for those that no drawn search followed."""
    if prefix in visited[1]:
        return plots.ORANGE
    if prefix in visited[2]:
        return plots.BLUE
    return plots.GREEN if prefix == best_path[: len(prefix)] else plots.tint(plots.GREY, 0.5)


for prefix in every_prefix:
    (x, y), color, depth = place(prefix), color_of(prefix), len(prefix)
    is_followed = color in (plots.ORANGE, plots.BLUE, plots.GREEN)
    if prefix:
        x0, y0 = place(prefix[:-1])
        line = (color, 3.0) if is_followed else (plots.GRID, 1.2)
        ax.plot([x0, x], [y0, y], color=line[0], linewidth=line[1], zorder=1)
        is_falling = y0 > y
    size = (260 if depth < 3 else 130) if is_followed else (60 if depth < 3 else 22)
    ax.scatter([x], [y], s=size, color=color, zorder=2)
    if prefix and is_followed:
        letter_size = 11 if depth < 3 else 9
        ax.text(
            x,
            y,
            prefix[-1],
            ha="center",
            va="center",
            color=plots.PAPER,
            size=letter_size,
            weight="bold",
            zorder=3,
        )
    if prefix and (is_followed or depth < 3):
        dx, dy, side = (0.0, 1.15, "center")
        if depth == 3:
            dx, dy, side = (0.16, 0.0, "left")
        elif is_falling:
            dx, dy, side = (0.1, 1.0, "left")
        ink, lift = (plots.INK, 1.0) if is_followed else (plots.MUTED, 0.75)
        ax.text(
            x + dx, y + lift * dy, f"{math.exp(total_of[prefix]):.3f}", size=9.5, ha=side, va="center", color=ink
        )
for num_beams, label, color in (
    (1, "greedy", plots.ORANGE),
    (2, "beam of 2", plots.BLUE),
    (27, "brute force", plots.GREEN),
):
    path, total = found[num_beams]
    x, y = place(path)
    ax.text(x + 0.75, y, f"{label}: {''.join(path)}", va="center", color=color, weight="bold", size=11)
for depth, label in enumerate(("prompt", "1 token", "2 tokens", "3 tokens")):
    ax.text(2.0 * depth, 1.6, label, ha="center", color=plots.MUTED, size=10.5)
ax.set(xlim=(-0.4, 8.6), ylim=(-27, 2.4))
plots.show(
    fig, alt="All 27 texts of three tokens as a tree: greedy finds 0.09, a beam of two 0.117, brute force 0.18."
)
assert found[1][1] < found[2][1] < found[27][1]

# %% [markdown]
# The numbers at the nodes are probabilities of the whole prefix. Greedy takes *a*, whose continuations are all lukewarm. A beam
# of two also keeps *b*, which pays off. The best text begins with *c*, third at the first step, and no beam of two will ever see
# it: what is pruned doesn't come back. A beam usually beats greedy; not always, since a wider beam may drop a prefix that a
# narrower one kept.
#
# **Endings.** A text that has ended is never extended. It moves to a list of finished texts, if it was among the best $B$
# extensions of its step. The beam is then filled with the best $B$ that have not ended, so endings take no places. At the limit,
# what is among the best $B$ counts as finished too. Two rankings, then: by total while searching, by score at the end.
#
# **Length.** Every further token multiplies by a number below 1, so by total probability short texts win, and the shortest is
# the one that ends at once. The usual repair scores
#
# $$\text{score} = \frac{\sum_{t=1}^{n} \ln p(x_t \mid x_{\lt t})}{n^{\alpha}},$$
#
# with the **length penalty** (长度惩罚) $\alpha$: 0 compares totals, 1 compares means per token, more favours length. Scores are
# negative, so dividing by more is a *gain*, whatever the name suggests. $n$ counts what the sum counts: the ending token yes (its
# log-probability is in the sum; and a text that is nothing but an ending would divide by zero), the prompt no.
#
# Below is a toy language of two words and an ending. Brute force finds the best text of each length from 1 to 8.


# %%
@torch.no_grad()
def word_log_probs(prefix: tuple) -> list[float]:
    """Two words, 0 and 1, and the ending 2, with a distribution that depends on the last three tokens."""
    last = prefix[-3:]
    seed = 66_000 + sum((t + 1) * 4**i for i, t in enumerate(last))
    noise = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (1.6 * noise + torch.tensor([0.9, 0.9, 0.0])).log_softmax(dim=-1).tolist()


best_of_length, pending = {}, [((), 0.0)]
while pending:
    prefix, total = pending.pop()
    log_probs = word_log_probs(prefix)
    length = len(prefix) + 1
    best_of_length[length] = max(best_of_length.get(length, -math.inf), total + log_probs[2])
    if length < 8:
        pending += [((*prefix, word), total + log_probs[word]) for word in (0, 1)]

# %% tags=["hide-input"]
alphas = torch.linspace(0, 2, 81)
scores = {n: [total / n ** float(alpha) for alpha in alphas] for n, total in sorted(best_of_length.items())}
best_score = [max(values) for values in zip(*scores.values(), strict=True)]
winners = [max(scores, key=lambda n: scores[n][i]) for i in range(len(alphas))]
fig, ax = plots.figure(7.2, 3.6)
for n, values in scores.items():
    wins = n in winners
    color, width = (plots.BLUE, 2) if wins else (plots.tint(plots.GREY, 0.45), 1.2)
    ax.plot(alphas, values, color=color, linewidth=width, zorder=width)
    if wins:
        ax.annotate(
            f"n = {n}",
            (0, values[0]),
            xytext=(-6, 0),
            textcoords="offset points",
            size=10,
            va="center",
            ha="right",
        )
ax.plot(alphas, best_score, color=plots.tint(plots.ORANGE, 0.45), linewidth=8, zorder=0.5, label="the winner's score")
ax.plot([], [], color=plots.BLUE, label="a length that wins somewhere")
ax.plot([], [], color=plots.tint(plots.GREY, 0.45), label="a length that never wins")
changes = [0, *(i for i in range(1, len(winners)) if winners[i] != winners[i - 1]), len(winners) - 1]
for first, after in itertools.pairwise(changes):
    n, start, end = winners[first], float(alphas[first]), float(alphas[after])
    ax.axvline(start, color=plots.ORANGE, linewidth=1, linestyle=":", zorder=1)
    ax.text(
        (start + end) / 2, 0.25, "1 token wins" if n == 1 else f"{n} win", ha="center", color=plots.INK, size=10
    )
ax.set(
    xlabel="length penalty α", ylabel="score of the best text\nof 1 to 8 tokens", xlim=(0, 2), ylim=(None, 0.5)
)
ax.tick_params(axis="y", pad=38)
ax.legend(loc="lower right", fontsize=9.5)
plots.show(fig, alt="Scores of the best text of each length against the length penalty: the winner grows.")

# %% [markdown]
# ### When to stop
#
# Four rules end a text, whichever comes first: the **end-of-sequence token** (结束符), chosen like any other; a further stop
# *token*; the limits `max_new_tokens` and `max_seq_len`; and a stop *string*. `"The end"` may arrive as three tokens or as the
# middle of one, so text that could still become a stop string is held back until it can't. `ignore_eos` is for benchmarks, which
# want a fixed length. Filters treat the ending like any other token: a small $k$ may cut it off, and the text goes on.

# %%
greedy = SamplingParams(temperature=0, max_new_tokens=60)
full = minillm.generate_text(model, tokenizer, "Once upon a time", greedy)
cut = minillm.generate_text(model, tokenizer, "Once upon a time", greedy, stop=(". ", ".\n"))
print(f"without a stop string: {len(full)} characters; with one: {len(cut)}: {cut!r}")
assert full.startswith(cut) and full[len(cut) : len(cut) + 1] == "."

# %% [markdown]
# ## The real version
#
# The library composes the filters in one function, in the order of `transformers`. (`source` shows the library's own code, as it
# runs.)

# %%
source(process_logits)

# %% [markdown]
# Each line is a pure function on logits. The most delicate is top-p. From the large end it reads "keep while the sum of those
# before is below $p$". The library looks from the small end: drop while the tail weighs at most $1 - p$. The same set, and adding
# small numbers first loses fewer digits. The likeliest token is kept whatever happens.

# %%
source(keep_top_p)

# %% [markdown]
# Is it the *smallest* set that reaches $p$? Ask all of them: of eight tokens there are 255 sets.

# %%
rng = torch.Generator().manual_seed(0)
checked = 0
for top_p in (0.3, 0.6, 0.9, 0.99):
    for _ in range(25):
        logits = 2 * torch.randn(8, generator=rng, dtype=torch.float64)
        probs = logits.softmax(dim=-1).tolist()
        sets = [s for size in range(1, 9) for s in itertools.combinations(range(8), size)]
        enough = [s for s in sets if sum(probs[i] for i in s) >= top_p]
        smallest = min(map(len, enough))
        heaviest = max((s for s in enough if len(s) == smallest), key=lambda s: sum(probs[i] for i in s))
        assert (keep_top_p(logits, top_p) > -math.inf).nonzero().flatten().tolist() == list(heaviest)
        checked += 1
print(f"top-p agrees with the search through all sets, {checked} times")

# %% [markdown]
# The draw is the staircase, with exactly one uniform number a token.

# %%
source(sample)

# %% [markdown]
# The cumulative sum ends a rounding error away from 1. `uniform * total_prob` scales the draw to that end, so it can't fall off
# the stairs.
#
# Why one number, and why from a generator that the caller brings? **Reproducibility** (可复现性) in a batch. A request with a
# generator of its own gets the same text alone and among strangers: nobody else draws from it. With one for all, your text
# changes when a neighbour joins.

# %%
bos = tokenizer.encode("")  # [BOS]: nothing but the beginning of a text
hot = SamplingParams(max_new_tokens=12, temperature=1.0, top_p=0.95)
own = [torch.Generator().manual_seed(seed) for seed in range(4)]
in_batch = minillm.generate_batch(model, [bos] * 4, hot, generators=own)
alone = [minillm.generate(model, bos, hot, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
shared = torch.Generator().manual_seed(0)
with_neighbours = minillm.generate_batch(model, [bos] * 4, hot, generators=[shared] * 4)
print("own generators, batch equals alone: ", in_batch == alone)
print("one shared generator, row 0 equals alone:", with_neighbours[0] == alone[0])

# %% [markdown]
# One caveat. A batch of 64 sums in another order than a batch of 1 and differs in the last digit of a logit. A draw within that
# digit of a step's edge may flip, or an argmax between near equals. Seeds make the randomness reproducible, not the rounding.

# %% [markdown]
# ## Measured
#
# **Quality against diversity.** A dozen stories for each setting (two dozen at $T=1$), all in one batch, their first 80 tokens
# judged. Quality: the rate of *first mistakes* per token, $\hat\varepsilon$ = texts that left the grammar / tokens told until
# then, the same $\varepsilon$ as on the napkin. Diversity: **distinct-3**, the share of three-token sequences that are different
# from each other, over twelve stories of a setting. With $k$ mistakes counted, $\hat\varepsilon$ is uncertain by about
# $\hat\varepsilon/\sqrt{k}$: the horizontal lines show it.

# %%
num_stories, num_tokens = 12, 80
settings = {
    "T 0.3": {"temperature": 0.3}, "T 0.6": {"temperature": 0.6},
    "T 1": {"temperature": 1.0}, "T 1.3": {"temperature": 1.3},
    "p 0.5": {"top_p": 0.5}, "p 0.8": {"top_p": 0.8}, "p 0.95": {"top_p": 0.95},
    "min-p 0.1": {"min_p": 0.1},
}  # fmt: skip
labels = [label for label in settings for _ in range(num_stories * (2 if label == "T 1" else 1))]
told = minillm.generate_batch(
    model,
    [bos] * len(labels),
    [SamplingParams(max_new_tokens=num_tokens, **settings[label]) for label in labels],
    generators=[torch.Generator().manual_seed(1000 + i) for i in range(len(labels))],
)


def first_mistake(token_ids: list[int]) -> int | None:
    """Index of the token with which the text stops being the beginning of a story; None if it never does."""
    text_ids = [i for i in token_ids if i not in model.config.eos_token_ids]
    text = tokenizer.decode(text_ids)
    prob, reach = judge(text)
    if prob > 0:
        ended_early = len(text_ids) < len(token_ids) and stories.log_prob(text) == -math.inf
        return len(text_ids) if ended_early else None
    return next(n for n in range(len(text_ids)) if len(tokenizer.decode(text_ids[: n + 1])) > reach)


mistakes = [first_mistake(token_ids) for token_ids in told]
results = {}
for label in settings:
    mine = [i for i, other in enumerate(labels) if other == label]
    num_mistakes = sum(mistakes[i] is not None for i in mine)
    tokens_at_risk = sum(len(told[i]) if mistakes[i] is None else mistakes[i] + 1 for i in mine)
    triples = [tuple(told[i][t : t + 3]) for i in mine[:num_stories] for t in range(len(told[i]) - 2)]
    rate = num_mistakes / tokens_at_risk
    results[label] = (rate, len(set(triples)) / len(triples), rate / max(1, num_mistakes) ** 0.5)

at_1 = [mistake for mistake, label in zip(mistakes, labels, strict=True) if label == "T 1"]
survived = [sum(m is None or m >= n for m in at_1) / len(at_1) for n in range(num_tokens + 1)]

# %% tags=["hide-input"]
fig, (left, middle, right) = plots.figure(7.6, 3.9, ncols=3, width_ratios=(1, 0.75, 1.15))
family_colors = {"T": plots.ORANGE, "p": plots.BLUE, "min-p": plots.PURPLE}
for y, (label, (rate, distinct, uncertainty)) in enumerate(results.items()):
    color = family_colors[label.split()[0]]
    left.errorbar(100 * rate, y, xerr=100 * uncertainty, marker="o", color=color, elinewidth=1.2, capsize=0)
    middle.barh(y, distinct, color=color, height=0.6)
for ax in (left, middle):
    ax.set_ylim(len(results) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
left.set_yticks(range(len(results)), list(results))
middle.set_yticks([])
left.set(xlabel="first mistakes\nper 100 tokens", xlim=(0, None))
middle.set(xlabel="diversity:\ndistinct-3", xlim=(0, 1))
rate = results["T 1"][0]
right.plot(
    range(num_tokens + 1),
    [(1 - rate) ** n for n in range(num_tokens + 1)],
    color=plots.GREEN,
    linestyle="--",
    label="napkin: $(1-\\hat\\varepsilon)^n$",
)
right.step(range(num_tokens + 1), survived, where="post", color=plots.BLUE, label="stories, T = 1")
right.set(xlabel="tokens told", ylabel="share without a mistake", ylim=(0, 1.03))
right.legend(fontsize=9.5)
plots.show(
    fig, alt="Mistakes against diversity for temperatures and filters; stories without a mistake by length."
)

# %%
pairs = list(itertools.combinations(results.values(), 2))
apart = sum(abs(a[0] - b[0]) > a[2] + b[2] for a, b in pairs)
print(f"{apart} of {len(pairs)} pairs of settings have lines that don't overlap")

# %% [markdown]
# Which setting is best? Lines that overlap can't tell, and a dozen stories leave many overlapping. Even lines that don't may lie:
# cold settings repeat themselves, so that their mistakes are few events counted often, and their lines are too short. What shows
# plainly is the price. The colder the setting or the tighter the filter, the lower the diversity. To choose between neighbours,
# tell hundreds.
#
# The dashed curve has one parameter, the total rate, and assumes that every token is equally dangerous. Where the staircase lies
# above it and falls faster later, mistakes depend on the place: an opening asks nothing of the memory, the fifth sentence has a
# name, a colour and a friend to keep apart.
#
# Which of these mistakes could a filter have prevented? We know the distribution from which each fatal token of the unfiltered
# stories was drawn. So ask each filter whether it would have kept the token.

# %%
fatal_logits, fatal_tokens = [], []
for token_ids, mistake, label in zip(told, mistakes, labels, strict=True):
    if label == "T 1" and mistake is not None and mistake < len(token_ids):
        with torch.inference_mode():
            fatal_logits.append(model(torch.tensor([*bos, *token_ids[:mistake]]))[-1].double())
        fatal_tokens.append(token_ids[mistake])

fatal_probs = [float(z.softmax(dim=-1)[t]) for z, t in zip(fatal_logits, fatal_tokens, strict=True)]
ranks = [int((z > z[t]).sum()) + 1 for z, t in zip(fatal_logits, fatal_tokens, strict=True)]
convictions = sum(rank == 1 for rank in ranks)
bad_luck = sum(rank > 1 and prob < 0.01 for rank, prob in zip(ranks, fatal_probs, strict=True))
print(f"{len(ranks)} fatal tokens: {convictions} the model's first choice, {bad_luck} less likely than 1 in 100, "
      f"{len(ranks) - convictions - bad_luck} in between")  # fmt: skip
fatal = list(zip(fatal_logits, fatal_tokens, strict=True))
prevented = {label: sum(bool(keep(z)[t] == -math.inf) for z, t in fatal) for label, keep in filters.items()}

# %% tags=["hide-input"]
fig, (left, right) = plots.figure(7.6, 3.5, ncols=2, width_ratios=(1.1, 1))
left.scatter(ranks, fatal_probs, color=plots.RED, s=42, alpha=0.8, linewidth=0)
left.set(
    xscale="log",
    yscale="log",
    xlim=(0.8, max(100, 1.3 * max(ranks, default=1))),
    ylim=(min(1e-4, 0.7 * min(fatal_probs, default=1)), 2),
    xlabel="rank of the fatal token",
    ylabel="its probability",
)
left.axvspan(0.8, 1.5, color=plots.tint(plots.RED, 0.2), zorder=0)
left.text(1.7, 1.0, "← the model's first choice", size=9.5, va="center")
left.axhspan(1e-9, 0.01, color=plots.tint(plots.GREY, 0.2), zorder=0)
left.text(0.95, 0.0085, "less than 1 in 100", size=9.5, va="top")
right.barh(range(len(prevented)), [len(fatal_tokens)] * len(prevented), color=plots.GRID)
right.barh(range(len(prevented)), list(prevented.values()), color=plots.BLUE)
right.set_yticks(range(len(prevented)), list(prevented))
right.invert_yaxis()
right.grid(axis="y", visible=False)
right.set(xlabel=f"of {len(fatal_tokens)} fatal tokens, filtered out")
plots.show(
    fig, alt="Probability and rank of the fatal tokens, and how many of them each filter would have removed."
)

# %% [markdown]
# Three groups. At the bottom is bad luck: unlikely tokens that were drawn all the same. A filter removes them and costs little.
# At the left are *convictions*: the model's first choice was wrong. No filter helps, and cooling makes them surer. In between are
# tokens that the model thought plausible. A filter tight enough for those also cuts good ones off: the diversity above. Against
# both, better weights help ([chapter 03](03_training.ipynb)).
#
# **Search on the real model.** Beams of growing width look for the most probable first 24 tokens. Against them stand the 24 tokens
# with which the sampled stories began, scored by the same model.

# %%
search_len = 24
beams = {}
for num_beams in (1, 2, 4, 8):
    beams[num_beams] = beam_search(
        model, bos, num_beams=num_beams, max_new_tokens=search_len, length_penalty=0.0
    )[0]


@torch.inference_mode()
def total_log_prob(token_ids: list[int]) -> float:
    log_probs = model(torch.tensor([*bos, *token_ids]))[:-1].log_softmax(dim=-1)
    return float(log_probs[range(len(token_ids)), token_ids].sum())


sampled_totals = [
    total_log_prob(token_ids[:search_len])
    for token_ids, label in zip(told, labels, strict=True)
    if label == "T 1"
]

# %% tags=["hide-input"]
fig, ax = plots.figure(7.2, 3.0)
for x, (_, total) in enumerate(beams.values()):
    ax.plot(x, total, marker="D", markersize=9, color=plots.ORANGE)
    ax.annotate(f"{total:.1f}", (x, total), xytext=(9, -4), textcoords="offset points", size=10)
spread = [4 + 0.5 * (i / len(sampled_totals) - 0.5) for i in range(len(sampled_totals))]
ax.scatter(spread, sampled_totals, color=plots.BLUE, s=32, alpha=0.75, linewidth=0)
ax.set_xticks(range(5), ["greedy", "2 beams", "4 beams", "8 beams", f"{len(sampled_totals)} samples"])
ax.set(ylabel="log-probability (nats)", xlim=(-0.5, 4.6))
plots.show(fig, alt="Log-probability of 24 tokens: beam search far above every sample.")

# %%
rows = ["| beams | log-probability (model) | log-probability (grammar) | text |", "|---:|---:|---:|---|"]
for num_beams, (token_ids, total) in beams.items():
    truth = judge(tokenizer.decode(token_ids))[0]
    true_total = math.log(truth) if truth else -math.inf
    rows.append(f"| {num_beams} | {total:.2f} | {true_total:.2f} | {struck(tokenizer.decode(token_ids))} |")
Markdown("\n".join(rows))

# %% [markdown]
# The diamonds lie above the cloud, as they should: that's what was searched for. Diamonds at the same height are the same text,
# found again by a wider beam. The samples are what stories *are like*, since the model was trained to imitate
# stories, and most of them lie nats below the diamonds. A story that makes the commonest choice at every turn is itself rare.
# Holtzman et al. made this observation for human text. So search is for tasks with one right answer, such as translation, and
# sampling for those with many.

# %% [markdown]
# ## In production
#
# | system | order of the steps | how it draws |
# |---|---|---|
# | this library | penalty → n-gram ban → temperature → top-k → top-p → min-p | staircase |
# | `transformers` | the same | `torch.multinomial` |
# | vLLM (V1 sampler) | penalties → temperature → min-p → top-k and top-p | exponential race, `probs / q` and argmax |
# | SGLang | temperature → softmax → top-k and top-p *jointly*, on the same probabilities | FlashInfer's rejection sampling |
# | llama.cpp (default) | penalties → … → top-k → … → top-p → min-p → … → temperature **last** | what is left |
#
# - **vLLM** avoids `torch.multinomial`, since it makes the CPU wait for the GPU, and divides the probabilities by exponential
#   noise: the Gumbel trick of above without its logarithms. Seeded requests have generators of their own. A switch for *batch
#   invariance* buys kernels that always sum in the same order.
# - **FlashInfer**, which SGLang and optionally vLLM use, draws from the nucleus without sorting: draw, check whether the token is
#   inside, and if not, draw again from what is above it. "Jointly" means that top-p doesn't see what top-k left: our four tokens
#   above keep two and not one.
# - **llama.cpp** lets the user arrange the chain. Its temperature comes after the filters, so it never changes who survives.
# - **Beam search** costs $B$ sequences for one answer, whose common beginnings a paged cache can share (chapter 13). vLLM keeps
#   it outside the engine, as a loop that calls it; TensorRT-LLM has it inside, with a maximum width fixed when the model is
#   loaded.

# %% [markdown]
# ## Exercises
#
# `python3 tasks.py grade ch04` runs the tests and shows the points. The tasks are in
# [exercises/ch04_next_token.py](../exercises/ch04_next_token.py).
#
# | task | points | prepared by |
# |---|---:|---|
# | 1 `nucleus_size`: predict how many tokens top-p keeps, in closed form | 3 | The idea, filters |
# | 2 `temperature_probs`: down to 0 without NaN | 4 | The idea, temperature |
# | 3 `nucleus_mask`: the crossing token, ties, any order | 5 | The idea, filters |
# | 4 `process`: a draft with eight bugs, to be repaired | 8 | The idea, order and loops; The real version |
# | 5 `gumbel_draw`: argmax as a draw | 3 | The idea, drawing |
# | 6 `beam_search`: finished beams, length penalty, endings | 7 | The idea, search |

# %% [markdown]
# ## Check yourself
#
# <details><summary>A chooser errs once in 500 tokens. What share of texts of 200 tokens is spoiled, and of 1,000?</summary>
#
# $1 - 0.998^{200} = 0.33$ and $1 - 0.998^{1000} = 0.865$. Longer texts need a better chooser for the same quality.
#
# </details>
#
# <details><summary>Logits fall by 0.5 from rank to rank. How many tokens does top-p = 0.95 keep at T = 1, and at T = 2?</summary>
#
# $\frac{T}{s} \ln \frac{1}{1-p} = 2 \cdot 2.996 = 5.99$, so 6; at $T = 2$ twice as much, 11.98, so 12.
#
# </details>
#
# <details><summary>At temperature 0, do top-k, top-p and min-p change anything? And the repetition penalty?</summary>
#
# The three filters always keep the likeliest token, so the argmax stays. The penalty and the n-gram ban can change which token is
# the likeliest, so they count.
#
# </details>
#
# <details><summary>Min-p comes after the temperature. Why does it never keep more tokens when the temperature falls?</summary>
#
# With min-p = 0.1, token $i$ stays if $e^{(z_i - z_\max)/T} \ge 0.1$. That is $z_\max - z_i \le T \ln 10$. The line lies at a
# distance proportional to $T$ below the best logit.
#
# </details>

# %% [markdown]
# ## Sources
#
# - A. Holtzman, J. Buys, L. Du, M. Forbes, Y. Choi: *The Curious Case of Neural Text Degeneration*,
#   [arXiv:1904.09751](https://arxiv.org/abs/1904.09751). Nucleus sampling (section 3.1), and why the likeliest text is not what
#   people write.
# - N. N. Minh et al.: *Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs*,
#   [arXiv:2407.01082](https://arxiv.org/abs/2407.01082).
# - N. S. Keskar et al.: *CTRL: A Conditional Transformer Language Model for Controllable Generation*,
#   [arXiv:1909.05858](https://arxiv.org/abs/1909.05858). The repetition penalty (section 4.1).
# - J. Li et al.: *A Diversity-Promoting Objective Function for Neural Conversation Models*,
#   [arXiv:1510.03055](https://arxiv.org/abs/1510.03055). Counting distinct n-grams.
# - A. Fan, M. Lewis, Y. Dauphin: *Hierarchical Neural Story Generation*, [arXiv:1805.04833](https://arxiv.org/abs/1805.04833).
#   Top-k sampling, for stories.
# - Y. Wu et al.: *Google's Neural Machine Translation System*, [arXiv:1609.08144](https://arxiv.org/abs/1609.08144). A length
#   penalty of another form, and beam search at scale.
# - C. J. Maddison, D. Tarlow, T. Minka: *A\* Sampling*, [arXiv:1411.0030](https://arxiv.org/abs/1411.0030). The Gumbel-max trick
#   and what it leads to.
#
# The code: [sampling.py](../minillm/sampling.py), [beam.py](../minillm/generation/beam.py),
# [stream.py](../minillm/generation/stream.py). Next: [chapter 08](08_kv_cache.ipynb), where choosing a token stops costing a
# reading of the whole text.
