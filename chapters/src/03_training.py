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
# # 03 · Training it
#
# *Where the weights come from: a loss with a known floor, every gradient by hand, and a loop that reaches the floor while you
# watch.*
#
# Needs: chapters [01](01_whole_system.ipynb) and [02](02_building_the_model.ipynb)  ·  Time: 75 minutes to read, 90 to solve

# %% [markdown]
# ## Why
#
# The model of chapter 02 has the right architecture and random weights, and talks like a dropped type case. Something has to
# set 4.95 million numbers. The recipe fits on a napkin (guess the next token, measure the surprise, nudge every weight against
# it), and the code in ten lines. What makes training hard to learn is that wrong code doesn't crash. Feed a loop the wrong
# targets, and its loss falls faster than ever, all the way to 0. It has learned to copy its input.
#
# The number that hurts: Llama 3 8B took **1.3 million GPU-hours**. That is 148 years of one H100, and nobody pays for that
# twice because the first curve was wrong. You have to know the answer beforehand. This chapter gives you three numbers to
# hold any training run against: where the loss must *start*, which gradient is *right*, and where the loss must *end*.

# %%
import json
import math
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import minillm
from minillm import plots
from minillm.bench.recorded import recorded
from minillm.bench.show import source
from minillm.config import PRESETS, ModelConfig
from minillm.data.stories import tell_story
from minillm.data.stories.chance import Drawer
from minillm.model import Transformer
from minillm.perf.flops import count_flops
from minillm.training import TrainConfig, build_optimizer, initialize_weights, learning_rate, train

all_threads = torch.get_num_threads()
torch.set_num_threads(1)  # this chapter's models are too small to share; the last measurement takes torch's default

model = minillm.load_model()
tokenizer = minillm.load_tokenizer()
num_parameters = sum(parameter.numel() for parameter in model.parameters())
print(f"{num_parameters:,} weights to find")

# %% [markdown]
# ## Napkin
#
# **Work.** Take one weight and one token. Forward, the weight multiplies a number and the product is added to a sum: 2 FLOPs.
# Backward, it does so twice more: once to find its own gradient, once to hand the gradient on to what came before it. That is 6
# FLOPs a weight and token, so training $N$ weights on $D$ tokens takes
#
# $$C \approx 6\,N\,D .$$
#
# (Kaplan et al. 2020; the products inside attention come on top, small for short sequences.) Count, on a row of 16 tokens:

# %%
fresh = Transformer(PRESETS["stories-5m"])
initialize_weights(fresh, num_layers=6, seed=0)
some_tokens = torch.randint(2048, (16,), generator=torch.Generator().manual_seed(0))
forward_flops = count_flops(lambda: fresh(some_tokens))
both_flops = count_flops(lambda: fresh(some_tokens).logsumexp(-1).sum().backward())
print(f"forward:              {forward_flops / 16 / num_parameters:.2f} FLOPs a weight and token (predicted 2)")
print(f"forward and backward: {both_flops / 16 / num_parameters:.2f} FLOPs a weight and token (predicted 6)")

# %% [markdown]
# It does, although looking up an embedding costs nothing: our table is used twice, the second time as the last layer.

# %%
H100_PEAK = 989e12  # FLOP/s in bf16, dense
llama_flops = 6 * 8.03e9 * 15e12
hours_at_peak = llama_flops / H100_PEAK / 3600
print(f"Llama 3 8B on 15 T tokens: {llama_flops:.2g} FLOPs, {hours_at_peak:,.0f} H100-hours at full speed")
print(f"reported: 1,300,000 hours, so {hours_at_peak / 1.3e6:.0%} of the peak")

# %% [markdown]
# No job runs at its peak: numbers must be moved, jobs wait and restart, and attention's FLOPs are not in $6ND$. The share of
# the peak that is put to use is the job's **utilization** (算力利用率); for its 405B model Meta reports 38 to 43 %.
#
# **Memory.** For each weight, plain fp32 training keeps the weight, its gradient, and two running means that belong to the
# optimiser: $4 \cdot 4 = 16$ bytes. Our model needs 76 MiB. Llama 3 8B needs 120 GiB, more than an H100 has (80 GB), before the
# first activation is stored. Serving it in bf16 takes 2 bytes a weight, 15 GiB. Most of this course lives in that factor of 8.

# %% [markdown]
# ## The naive version
#
# To judge training we need to know how predictable its text is. So here is a source with no secrets: a machine that plays tunes
# on 8 notes. It draws each note from a table, given the two notes before it (a *second-order Markov source*). The rows of the
# table are random themselves (from a Dirichlet distribution, whose draws are probabilities), with 2 % of evenness mixed in: no
# note is ever impossible, so no $\log 0$.
#
# Because we own the table, we can compute how surprising its tunes are on average, exactly. The *surprise* at what had
# probability $p$ is $-\log p$; its mean is the **entropy** (熵) of the source, in nats (natural logarithm; divide by 0.693 for
# bits).

# %%
NOTES = ("C", "D", "E", "F", "G", "A", "B", "c")
V = len(NOTES)
table_rng = np.random.default_rng(3)
NEXT = 0.98 * table_rng.dirichlet([0.35] * V, size=(V, V)) + 0.02 / V  # NEXT[a, b, c] = p(c | a, b)

pair_share = np.full((V, V), 1 / V**2)  # how often each pair of notes occurs in the long run
for _ in range(500):
    pair_share = np.einsum("ab,abc->bc", pair_share, NEXT)
after_one = pair_share / pair_share.sum(1, keepdims=True)  # p(b | a)
note_share = pair_share.sum(1)

FLOORS = {
    "nothing": math.log(V),
    "how common each note is": -(note_share * np.log(note_share)).sum(),
    "the note before": -(pair_share * np.log(after_one)).sum(),
    "both notes before": -(pair_share[..., None] * NEXT * np.log(NEXT)).sum(),
}
for knowledge, nats in FLOORS.items():
    print(f"{nats:.3f} nats a note for who knows {knowledge}")


def play_tunes(num_tunes: int, length: int, seed: int) -> np.ndarray:
    """Tunes as note numbers (num_tunes, length)."""
    rng = np.random.default_rng(seed)
    tunes = np.empty((num_tunes, length), dtype=np.int64)
    tunes[:, 0], tunes[:, 1] = np.divmod(rng.choice(V * V, size=num_tunes, p=pair_share.ravel()), V)
    cumulative, u = NEXT.cumsum(-1), rng.random((length, num_tunes, 1))
    for i in range(2, length):
        reached = cumulative[tunes[:, i - 2], tunes[:, i - 1]] < u[i]
        tunes[:, i] = reached.sum(1).clip(max=V - 1)
    return tunes


print("\na tune:", " ".join(NOTES[i] for i in play_tunes(1, 40, seed=1)[0]))

# %% [markdown]
# The simplest model of it is a table of $8 \times 8$ scores: given a note, softmax of its row predicts the next one. And the
# simplest way to find out how to change a score: *change it*. Nudge one weight by $\pm h$, run the model again, see how the
# loss moves. That is the definition of a **gradient** (梯度), and it needs no calculus at all.

# %%
def bigram_loss(scores: torch.Tensor, tunes: torch.Tensor) -> torch.Tensor:
    """Mean surprise of each note given the one before. scores (V, V), tunes (num_tunes, length)."""
    log_probs = scores[tunes[:, :-1]].log_softmax(-1)
    return -log_probs.gather(-1, tunes[:, 1:, None]).mean()


def gradient_by_nudging(loss_of, weights: torch.Tensor, h: float = 1e-5) -> torch.Tensor:
    """d loss / d weight for each weight, by running everything twice for each."""
    gradient = torch.zeros_like(weights)
    for place in np.ndindex(*weights.shape):
        nudged = weights.clone()
        nudged[place] += h
        up = loss_of(nudged)
        nudged[place] -= 2 * h
        gradient[place] = (up - loss_of(nudged)) / (2 * h)
    return gradient


tunes, fresh_tunes = torch.from_numpy(play_tunes(64, 33, seed=2)), torch.from_numpy(play_tunes(3000, 33, seed=7))
scores = torch.zeros(V, V, dtype=torch.float64)
naive_losses = []
for _ in range(40):
    naive_losses.append(float(bigram_loss(scores, fresh_tunes)))
    scores -= 6.0 * gradient_by_nudging(lambda weights: bigram_loss(weights, tunes), scores)
print(f"first loss {naive_losses[0]:.3f} (log 8 = {math.log(8):.3f})")
print(f"after 40 updates, on tunes not trained on: {naive_losses[-1]:.3f}")
print(f"best possible for a model that sees one note: {FLOORS['the note before']:.3f}")
print(f"runs of the model: {40 * 2 * V * V:,} for {V * V} weights")
print(f"for one update of stories-5m: {2 * num_parameters:,}")

# %% [markdown]
# It works, and the loss starts and ends where it should: at $\log 8$, since a model that knows nothing spreads its bets evenly;
# and just above the entropy given *one* note, since one note is all this model sees. The price is two runs of the model for
# every weight. The idea below gets the same numbers for the price of *three* runs, whatever the number of weights.

# %% [markdown]
# ## The idea
#
# ### The loss
#
# A language model is a classifier: it gives a score $z_j$ (**logit**) to each of $V$ tokens; softmax makes probabilities
# $p_j = e^{z_j} / \sum_i e^{z_i}$. The **cross-entropy** (交叉熵) at one place is the surprise at the token $t$ that really came:
#
# $$L = -\log p_t = -z_t + \log \sum_i e^{z_i} .$$
#
# Differentiate. The first term gives $-1$ for $j = t$ and nothing else. The second gives $e^{z_j} / \sum_i e^{z_i}$, which is
# $p_j$ again. So
#
# $$\frac{\partial L}{\partial z_j} = p_j - [\,j = t\,] \qquad \text{: softmax minus one-hot.}$$
#
# By hand: $z = (2, 1, 0)$ gives $p = (0.665,\ 0.245,\ 0.090)$. If the second token came, $L = -\log 0.245 = 1.408$, and the
# gradient is $(0.665,\ -0.755,\ 0.090)$. It sums to 0: what the target gains, the others pay in proportion to how much they
# were believed. A mean over $n$ targets divides all of it by $n$.
#
# Two practical matters. Rows are padded to one length. A target of −100 (torch's convention, `IGNORED_TARGET` in the library)
# marks padding: it counts neither in the sum nor in $n$, and its gradient is 0. And since $e^{89}$ overflows float32, subtract
# the row's maximum from $z$ first; softmax doesn't notice.

# %% tags=["hide-input"]
prompt = "Once upon a time, there was a kind girl named Lily who lived in a"
came = tokenizer.encode(" pretty", add_special_tokens=False)[0]
with torch.inference_mode():
    probs = model(torch.tensor(tokenizer.encode(prompt)))[-1].softmax(-1)
shown = probs.topk(9).indices.tolist()
if came not in shown:
    shown[-1] = came
pull = probs.clone()
pull[came] -= 1
fig, axes = plots.figure(height=3.4, ncols=2, sharey=True)
names = [plots.visible(tokenizer.decode([i])) for i in shown]
axes[0].barh(names, probs[shown], color=plots.BLUE)
axes[0].set(xlabel="probability p", title="what the model believes")
axes[1].barh(names, pull[shown], color=[plots.GREEN if i == came else plots.ORANGE for i in shown])
axes[1].axvline(0, color=plots.INK, linewidth=0.8)
axes[1].set(xlabel="gradient p − [j = t]", title="“pretty” came")
axes[0].invert_yaxis()
plots.show(fig, alt="Left: the model's probabilities for the next word. Right: the gradient is the same bars, except that the word that came has its probability minus one.")

# %% [markdown]
# One often reads that this cancellation is of no use inside a transformer. True of the softmax in attention, whose gradient comes
# below. But a language model ends in exactly this pair, and this one line starts its whole backward pass.
#
# ### Why there is a floor
#
# Let the source speak token $j$ with probability $p_j$, and the model believe $q_j$. Then the mean loss is
#
# $$-\sum_j p_j \log q_j \;=\; \underbrace{-\sum_j p_j \log p_j}_{\text{entropy } H(p)}
# \;+\; \underbrace{\sum_j p_j \log \frac{p_j}{q_j}}_{\text{KL}(p \,\|\, q)} .$$
#
# The second term is the **Kullback–Leibler divergence** (KL 散度). Since $\log x \le x - 1$, we have
# $-\text{KL} = \sum p_j \log (q_j / p_j) \le \sum p_j (q_j / p_j - 1) = 1 - 1 = 0$: it is never negative, and zero only for
# $q = p$. So the loss has a **floor**, the entropy of the source, and the distance to it, the *excess*, is exactly what the
# model has still to learn.
#
# For text from the Internet nobody knows the floor. For our stories we do. The grammar in
# [minillm/data/stories](../minillm/data/stories) makes every decision (which plot, which name, which adjective) through one
# function that knows the probability of each option, and adds up the logarithms. No text arises from two different sequences of
# decisions ([test_stories.py](../tests/data/test_stories.py) searches for a second one). So the probability of a story is the
# product along its single path:

# %%
class DecisionLog(Drawer):
    """A `Drawer` that notes where in the text each decision fell, and what it cost."""

    def __init__(self, rng: random.Random):
        super().__init__(rng)
        self.decisions: list[tuple[int, float]] = []

    def choose(self, distribution, head):  # `head` serves scoring; drawing doesn't need it
        before = self.log_prob
        option = super().choose(distribution, head)
        self.decisions.append((len(self.text), before - self.log_prob))
        return option


teller = DecisionLog(random.Random("chapter 03"))
tell_story(teller)
story = teller.text
print(story[: story.index("\n")], "...\n")
for place, nats in teller.decisions[:9]:
    before = repr(story[max(0, place - 18) : place])
    print(f"after {before:22} an option of probability {math.exp(-nats):.3f}: {nats:.2f} nats")
digits = -teller.log_prob / math.log(10)
print(f"\n{len(teller.decisions)} decisions, {-teller.log_prob:.1f} nats in all: this story is one in 10^{digits:.0f}")

# %% [markdown]
# Some decisions leave no text at once (girl or boy comes first); some come in two stages (is the name from the list, then which).
#
# ### Shapes decide
#
# Now the gradient of everything else. One rule saves half the work: **the gradient of the loss with respect to a thing has the
# shape of the thing**. Write $dX$ for it. For a matrix product $Y = XW$ with $X$ (tokens × in) and $W$ (in × out), go by index:
# $Y_{tj} = \sum_i X_{ti} W_{ij}$. The loss feels $X_{ti}$ through every $Y_{tj}$ of row $t$, with slope $W_{ij}$; it feels
# $W_{ij}$ through every token, with slope $X_{ti}$:
#
# $$dX_{ti} = \sum_j dY_{tj} W_{ij} \;\Rightarrow\; dX = dY\,W^\top
# \qquad\qquad dW_{ij} = \sum_t X_{ti}\, dY_{tj} \;\Rightarrow\; dW = X^\top dY .$$
#
# You could have guessed both: no other product has the right shape (unless the matrices are square, where a forgotten transpose
# passes unnoticed). Each costs as much as the forward product. That is the 6 in $6ND$.

# %% tags=["hide-input"]
fig, ax = plots.diagram(height=4.6)
TOKENS, WIDE_IN, WIDE_OUT = 2.6, 1.5, 3.2


def draw_product(x, y, parts):
    """parts: (label, rows, columns, colour) or a sign; drawn in one line, centred on y."""
    for part in parts:
        if isinstance(part, str):
            ax.text(x + 0.35, y, part, ha="center", va="center", fontsize=15)
            x += 0.7
        else:
            label, rows, columns, color = part
            plots.box(ax, x, y - rows / 2, columns, rows, color=color)
            ax.text(x + columns / 2, y, label, ha="center", va="center", fontsize=13)
            x += columns


X, W, Y = (TOKENS, WIDE_IN, plots.BLUE), (WIDE_IN, WIDE_OUT, plots.PURPLE), (TOKENS, WIDE_OUT, plots.GREY)
dY, WT, XT = (TOKENS, WIDE_OUT, plots.ORANGE), (WIDE_OUT, WIDE_IN, plots.PURPLE), (WIDE_IN, TOKENS, plots.BLUE)
draw_product(0, 0, [("X", *X), "·", ("W", *W), "=", ("Y", *Y)])
draw_product(0, -3.3, [("dY", *dY), "·", ("Wᵀ", *WT), "=", ("dX", *X)])
draw_product(0, -6.5, [("Xᵀ", *XT), "·", ("dY", *dY), "=", ("dW", *W)])
for y, text in ((0, "forward"), (-3.3, "to the input"), (-6.5, "to the weight")):
    ax.text(-0.4, y, text, ha="right", va="center", color=plots.MUTED)
ax.text(11.3, -3.3, "like X:\ntokens × in", va="center", color=plots.MUTED)
ax.text(11.3, -6.5, "like W: in × out,\nsummed over tokens", va="center", color=plots.MUTED)
ax.text(11.3, 0, "tokens × out", va="center", color=plots.MUTED)
ax.set_xlim(-3.2, 15.4)
plots.show(fig, alt="Three matrix products drawn to scale: X times W gives Y; dY times W transposed has the shape of X; X transposed times dY has the shape of W.")

# %% [markdown]
# Backpropagation is this step, repeated from the loss back to the first layer. Each part gets the gradient of its output and
# returns the gradient of its inputs, using what it *saved* in the forward pass ($X$ above). No part builds its
# **Jacobian** (雅可比矩阵), the matrix of all $\partial y_i / \partial x_j$.
#
# ### Backward, part by part
#
# **Residual.** $y = x + f(x)$ gives $dx = dy + (\text{what } f \text{ hands back})$. The first term passes every layer
# unchanged, however many there are.
#
# **SwiGLU.** $y = \text{silu}(g) \circ u$ ($\circ$ is element by element), with $\text{silu}(g) = g\,\sigma(g)$. Product rule:
# $du = dy \circ \text{silu}(g)$ and $dg = dy \circ u \circ \sigma(g)\,(1 + g\,(1 - \sigma(g)))$. Its three linear layers go by
# the rule above.
#
# **RoPE.** $y = R\,x$ with a rotation $R$, so $dx = R^\top dy$. The transpose of a rotation is the rotation back: the gradient
# turns by the opposite angle.
#
# **RMSNorm.** $y_i = w_i n_i$ with $n = x / r$ and $r = \sqrt{\tfrac1h \sum_k x_k^2 + \varepsilon}$, for vectors of width $h$.
# The gain is easy: $dw_i = \sum_{\text{tokens}} dy_i\, n_i$. For $x$ put $g_i = dy_i\, w_i$, the gradient of $n_i$. Each $x_k$
# acts directly, by $1/r$, and through $r$ on *every* $n_i$. From $r^2 = \tfrac1h \sum_k x_k^2 + \varepsilon$ follows
# $2r\, \partial r / \partial x_k = 2 x_k / h$; and $n_i = x_i / r$ changes with $r$ by $-x_i / r^2$. So
#
# $$dx_k = \frac{g_k}{r} - \sum_i g_i \frac{x_i}{r^2} \cdot \frac{x_k}{h\,r}
# = \frac1r \Big( g_k - n_k \cdot \tfrac1h \textstyle\sum_i g_i n_i \Big).$$
#
# Read it: the part of $g$ along $n$ is taken away, because (but for $\varepsilon$) making $x$ longer changes nothing that the
# norm lets through.
#
# **Softmax.** $p = \text{softmax}(s)$ has $\partial p_i / \partial s_j = p_i ([i = j] - p_j)$, so
#
# $$ds_j = \sum_i dp_i\, p_i ([i = j] - p_j) = p_j \Big( dp_j - \textstyle\sum_i p_i\, dp_i \Big).$$
#
# ### Attention
#
# Compose. Forward, for one head: $S = c\,QK^\top$ (masked), $P = \text{softmax}(S)$ by rows, $O = PV$; $c$ is the scale of the
# softmax, $1/\sqrt{d}$ in most models, and $V$ are now the values. Backward, from $dO$, each line with a shape you can check
# (rowsum: one number for each query):
#
# $$dV = P^\top dO, \quad dP = dO\,V^\top, \quad dS = P \circ (dP - \text{rowsum}(P \circ dP)),
# \quad dQ = c\,dS\,K, \quad dK = c\,dS^\top Q .$$
#
# Four products, since $P$ was saved. The mask needs no line of its own: where $P = 0$, $dS = 0$. With grouped heads, the $dK$
# and $dV$ of the query heads that share a KV head add up.
#
# Don't trust algebra, compare. Below each Jacobian is built entry by entry (slow, for the eye), and autograd is the judge. This
# checks the derivatives; the short forms, and $dw$ of the norm, are yours to check in the exercises.

# %%
def jacobian_of_norm(x, weight, eps):
    """∂y_i/∂x_k of RMSNorm for one vector: w_i ([i = k] / r − x_i x_k / (d r³))."""
    r = (x.square().mean() + eps).sqrt()
    return weight[:, None] * (torch.eye(len(x)).to(x) / r - torch.outer(x, x) / (len(x) * r**3))


def attention_gradients_by_row(d_out, q, k, v, scale):
    """One query at a time, softmax's Jacobian in full."""
    d_q, d_k, d_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for i in range(len(q)):  # query i sees keys 0 … i
        p = (k[: i + 1] @ q[i] * scale).softmax(0)
        jacobian = p.diag() - torch.outer(p, p)
        d_s = jacobian @ (v[: i + 1] @ d_out[i])
        d_v[: i + 1] += torch.outer(p, d_out[i])
        d_q[i] = scale * d_s @ k[: i + 1]
        d_k[: i + 1] += scale * torch.outer(d_s, q[i])
    return d_q, d_k, d_v


def causal_attention(q, k, v):
    return F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, scale=0.4)[0]


judge_rng = torch.Generator().manual_seed(0)


def random64(*shape):
    return torch.randn(*shape, generator=judge_rng, dtype=torch.float64)


def compare(part, by_hand, function, inputs, d_out):
    """Print whether gradients by hand are those of autograd."""
    leaves = [value.clone().requires_grad_() for value in inputs]
    expected = torch.autograd.grad(function(*leaves), leaves, d_out)
    worst = max(float((ours - theirs).abs().max()) for ours, theirs in zip(by_hand, expected, strict=True))
    print(f"{part:10} gradients: {len(leaves)}, agree to 1e-10: {worst < 1e-10}")


x, w, d_y = random64(5, 8), random64(8, 3), random64(5, 3)
compare("linear", (d_y @ w.T, x.T @ d_y), lambda x, w: x @ w, (x, w), d_y)

g, u, d_y = random64(6), random64(6), random64(6)
sigma = g.sigmoid()
compare("SwiGLU", (d_y * u * sigma * (1 + g * (1 - sigma)), d_y * g * sigma), lambda g, u: F.silu(g) * u, (g, u), d_y)

heads, d_heads, positions = random64(7, 2, 32), random64(7, 2, 32), torch.arange(7)
turned_back = model.rope.rotate(d_heads, positions, inverse=True)
compare("RoPE", (turned_back,), lambda x: model.rope.rotate(x, positions), (heads,), d_heads)

x, w, d_y = random64(8), random64(8), random64(8)
norm = F.rms_norm
compare("RMSNorm", (jacobian_of_norm(x, w, 1e-6).T @ d_y,), lambda x: norm(x, (8,), w, eps=1e-6), (x,), d_y)

q, k, v, d_out = (random64(6, 4) for _ in range(4))
compare("attention", attention_gradients_by_row(d_out, q, k, v, 0.4), causal_attention, (q, k, v), d_out)

# %% [markdown]
# What attention hands back, in a picture. $P$: where a head looks. $dP$: how the loss would change if that weight grew (orange:
# it would fall). $dS$: what the softmax makes of it. Rows of $dS$ sum to zero: adding the same number to all scores of a query
# changes nothing.

# %% tags=["hide-input"]
q, k, v, d_out = (random64(8, 4) * scale for scale in (1.5, 1.5, 1, 1))
visible_keys = torch.ones(8, 8, dtype=torch.bool).tril()
P = (q @ k.T * 0.5).masked_fill(~visible_keys, -torch.inf).softmax(-1)
dP = d_out @ v.T
dS = torch.stack([(P[i].diag() - torch.outer(P[i], P[i])) @ dP[i] for i in range(8)])
hidden = torch.where(visible_keys, 0.0, torch.nan)
fig, axes = plots.figure(height=3.3, ncols=3)
for ax, values, title in zip(axes, (P, dP, dS), ("P", "dP", "dS"), strict=True):
    scale = plots.matrix(ax, values + hidden)
    ax.set_title(title, pad=10)
    ax.set_xlabel("key")
key = fig.colorbar(scale, ax=axes, shrink=0.6, aspect=14, ticks=[scale.get_clim()[0], 0, scale.get_clim()[1]])
key.ax.set_yticklabels(["−", "0", "+"])
axes[0].set_ylabel("query")
plots.show(fig, alt="Three causal 8 by 8 matrices: attention weights P, their gradient dP with both signs, and the gradient dS of the scores, which is large only where P is large and whose rows sum to zero.")
print("rows of dS sum to zero:", bool((dS.sum(-1).abs() < 1e-12).all()))

# %% [markdown]
# ### From a gradient to a step
#
# A gradient $g$ says which way. How far? Plain gradient descent, $w \leftarrow w - \eta g$ with a **learning rate** (学习率)
# $\eta$, moves a weight in proportion to its gradient. But gradients of different weights differ by orders of magnitude, so no
# single $\eta$ suits all. **Adam** divides each by its own typical size. It keeps two running means, the *moments* of the
# gradient ($v$ is no value here),
#
# $$m \leftarrow \beta_1 m + (1 - \beta_1)\, g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2 ,$$
#
# both from 0, and therefore too small at first: for a constant $g$, after $t$ updates $m = (1 - \beta_1^t)\, g$. **Bias
# correction** (偏差修正) divides this out: $\hat m = m / (1 - \beta_1^t)$, $\hat v = v / (1 - \beta_2^t)$. The first step is then
# $\eta \cdot g / |g|$: as long as the learning rate, for every weight.
#
# **Weight decay** (权重衰减) pulls weights towards 0, so that nothing stays large without a reason. The old way adds $\lambda w$ to
# $g$ (L2). In Adam that pull is then divided by $\sqrt{\hat v}$ with the rest: weights with large gradients hardly decay.
# **AdamW** decouples it (Loshchilov and Hutter 2019):
#
# $$w \leftarrow (1 - \eta \lambda)\, w - \eta\, \frac{\hat m}{\sqrt{\hat v} + \epsilon} .$$
#
# ($\epsilon$, usually $10^{-8}$, only keeps a weight without gradients from dividing 0 by 0.) Two weights show it. Both start
# at 1 and get gradients of pure noise, one a thousand times larger than the other's. Neither has a reason to be anywhere but 0.

# %%
noise = torch.randn(600, 2, 64, generator=torch.Generator().manual_seed(1))  # 64 runs of each, to average over


def decay_under(optimizer_class) -> torch.Tensor:
    weights = torch.nn.Parameter(torch.ones(2, 64))
    optimizer = optimizer_class([weights], lr=2e-3, betas=(0.9, 0.95), weight_decay=0.5)
    path = []
    for step in range(600):
        path.append(weights.detach().mean(dim=1).clone())
        weights.grad = noise[step] * torch.tensor([[10.0], [0.01]])
        optimizer.step()
    return torch.stack(path)


# %% tags=["hide-input"]
fig, axes = plots.figure(height=3.2, ncols=2, sharey=True)
for ax, optimizer_class in zip(axes, (torch.optim.Adam, torch.optim.AdamW), strict=True):
    title = "AdamW" if optimizer_class is torch.optim.AdamW else "Adam with L2"
    path = decay_under(optimizer_class)
    ax.plot(path[:, 0], color=plots.ORANGE, label="gradients around 10")
    ax.plot(path[:, 1], color=plots.BLUE, label="gradients around 0.01")
    ax.plot((1 - 2e-3 * 0.5) ** np.arange(600), color=plots.GREEN, linestyle="--", label="(1 − ηλ)ᵗ")
    ax.set(title=title, xlabel="update")
axes[0].set_ylabel("weight, mean of 64 runs")
axes[1].legend(*axes[0].get_legend_handles_labels(), loc="lower left")
plots.show(fig, alt="With L2 in Adam the weight with small gradients decays fast and the one with large gradients hardly at all; with AdamW both follow the same exponential.")

# %% [markdown]
# Left, what `torch.optim.Adam` calls `weight_decay`: the L2 kind. For the small-gradient weight $\lambda w$ is nearly the whole
# gradient; Adam divides it by its own size, and the weight walks to 0 at $\eta$ an update. For the other it drowns in the
# noise. Right: both decay by $(1 - \eta\lambda)$ an update, whatever their gradients.
#
# Two more habits. **Clipping by the global norm** (梯度裁剪): if the gradients of all weights together, as one long vector, are
# longer than 1, scale them all down to length 1. One odd batch then can't throw the model out of its valley. **Warm-up and
# cosine**: at first $\hat v$ rests on a handful of batches and the weights are random, so $\eta$ grows linearly from near 0 to
# its peak; then it falls along half a cosine, since the noise in the gradients keeps the weights rattling at a distance from
# the floor that shrinks with $\eta$.

# %% tags=["hide-input"]
config = TrainConfig(steps=1200, lr=1e-2, warmup_steps=50)
fig, ax = plots.figure(height=2.2)
ax.plot(range(1, 1201), [learning_rate(step, config) for step in range(1200)], color=plots.BLUE)
ax.set(xlabel="update", ylabel="learning rate η", xlim=(0, 1200), ylim=(0, None))
plots.show(fig, alt="The learning rate rises in a straight line for 50 updates and falls along half a cosine until update 1,200.")

# %% [markdown]
# ## The real version
#
# This is the library's whole loop (`source` shows the library's own code). `accumulate_gradients` runs forward and backward;
# saving, logging and evaluating hang on `after_step`. `attend_for` is for rows that hold several stories, so that none looks
# into another; our tunes need none.

# %%
source(train)

# %%
from minillm.training.loop import accumulate_gradients, summed_cross_entropy

source(accumulate_gradients)

# %% [markdown]
# Three things deserve a second look. The loss is a *sum* divided by the number of targets in all batches of the update, so a
# half-empty batch doesn't weigh double. The order is clip, step, zero. (Zero at the end is safe only if nobody left a gradient
# there before the first update; zeroing before backward always is.) And `clip_grad_norm_` returns the norm *before* clipping:
# the first thing to look at when a curve jumps.
#
# **First check: where must the loss start?** A model that knows nothing should pay about $\log V$. The library's fresh logits
# have a variance near 1 (`initialize_weights`), which costs extra: for Gaussian logits the mean of $\log \sum e^z$ is about
# $\log V + \tfrac12 \sigma^2$. Predict 7.62 + 0.5, then look:

# %%
story_ids = torch.tensor(tokenizer.encode(story))
with torch.inference_mode():
    logits = fresh(story_ids[:-1])
print(f"log 2048                  {math.log(2048):.2f} nats a token")
print(f"with the logits' variance {math.log(2048) + float(logits.var()) / 2:.2f}")
print(f"mean of -z_t              {-float(logits.gather(-1, story_ids[1:, None]).mean()):+.2f}")
print(f"the fresh model           {float(F.cross_entropy(logits, story_ids[1:])):.2f}")

# %% [markdown]
# The formula leaves out $-z_t$, the third line, and takes the logits for Gaussian: hence the gap. A first loss of 12, or of 3,
# is a bug, and you know it after one step.
#
# **Now train.** A transformer of one layer and 16,992 weights, on tunes it has never heard before: 1,200 updates of 16 tunes.
# Unlike the bigram table it can look at both notes before, so the last of the four floors is its own.

# %%
class Tunes:
    """Rows for the library's loop: `rows[i]` is tune i."""

    def __init__(self, num_rows: int, seq_len: int) -> None:
        self.row_len = seq_len + 1
        self.tunes = play_tunes(num_rows, self.row_len, seed=4)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.tunes[row]


def new_player() -> Transformer:
    config = ModelConfig(
        vocab_size=V, hidden_size=32, intermediate_size=128, num_layers=1,
        num_heads=2, num_kv_heads=2, head_dim=16, max_seq_len=32,
    )
    player = Transformer(config)
    initialize_weights(player, num_layers=1, seed=0)
    return player


@torch.no_grad()
def learned_table(player) -> np.ndarray:
    """The player's p(c | a, b), for the last two notes of tunes that end in each pair."""
    pairs = torch.cartesian_prod(torch.arange(V), torch.arange(V))
    starts = torch.from_numpy(play_tunes(64, 10, seed=5))
    return player(torch.cat([starts, pairs], dim=1))[:, -1].softmax(-1).numpy().astype(np.float64)


def excess_nats(table: np.ndarray) -> np.ndarray:
    """KL(source ‖ player) for each pair of notes."""
    truth = NEXT.reshape(V * V, V)
    return (truth * np.log(truth / table)).sum(1)


config = TrainConfig(steps=1200, batch_size=16, seq_len=32, lr=1e-2, warmup_steps=50, dtype="fp32")
player = new_player()
losses, snapshots = [], {0: learned_table(player)}


def watch(report) -> bool:
    losses.append(report.loss)
    if report.step in (60, 200, 1200):
        snapshots[report.step] = learned_table(player)
    return True


train(player, Tunes(config.num_rows, config.seq_len), build_optimizer(player, config), config, after_step=watch)
for step, table in snapshots.items():
    excess = excess_nats(table)
    print(f"after {step:5,} updates: excess {pair_share.ravel() @ excess:.2f} nats a note; "
          f"under 0.1 for {(excess < 0.1).sum():2} of 64 pairs, over 0.3 for {(excess > 0.3).sum():2}")

# %% tags=["hide-input"]
# The first target of a tune has one note before it and not two: a slightly higher floor, on average over 32 targets.
tune_floor = (FLOORS["the note before"] + 31 * FLOORS["both notes before"]) / 32
updates = np.arange(1, len(losses) + 1)
smooth = [np.mean(losses[int(i / 1.15) : int(i * 1.15) + 1]) for i in updates]  # a window that grows like the axis


def draw_floors(ax, line_gap: float) -> None:
    """Dashed lines with their names in the right margin, at least `line_gap` apart."""
    names = ("nothing", "how common each is", "the note before", "both notes before")
    floors = (*list(FLOORS.values())[:3], tune_floor)
    label_at = [floors[1] + line_gap, floors[1], min(floors[2], floors[1] - line_gap), floors[3]]
    for name, nats, y in zip(names, floors, label_at, strict=True):
        ax.axhline(nats, color=plots.GREEN, linestyle="--", linewidth=1.3)
        ax.text(1.015, y, name, va="center", fontsize=10, color=plots.GREEN, transform=ax.get_yaxis_transform())
    above = label_at[0] + line_gap
    ax.text(1.015, above, "floors: who knows …", va="center", fontsize=10, color=plots.MUTED, transform=ax.get_yaxis_transform())


fig, ax = plots.figure(height=3.8)
ax.plot(updates, losses, color=plots.GREY, linewidth=0.6, alpha=0.5)
ax.plot(updates, smooth, color=plots.BLUE, label="transformer, smoothed")
ax.plot(updates[:40], naive_losses, color=plots.ORANGE, label="bigram table, by nudging")
draw_floors(ax, 0.08)
ax.set(xlabel="update", ylabel="loss (nats a note)", ylim=(1.25, 2.65), xlim=(1, 1200), xscale="log")
ax.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
ax.legend(loc="upper right")
plots.show(fig, alt="The transformer's loss falls from above log 8, rests near the floor for one note, and settles on the entropy given both notes; the bigram table stops at the floor for one note.")

# %% [markdown]
# The axis is logarithmic. The curve starts $\tfrac12 \sigma^2$ above $\log 8$, as predicted, and goes down a staircase of
# knowledge: it rests where a model stands that knows one note, then learns what follows two. A slow stretch between two lines
# is no floor: some pairs are learned by then and others not yet, as the printout at 200 updates shows. Below the last line
# there is nothing further to know.
#
# And since the source is a table, we can look at what was learned. Each panel is $p(\text{next} \mid \text{two notes})$, one
# row for each of the 64 pairs. At 0 updates the rows repeat every 8: fresh weights let little but the last note through.

# %% tags=["hide-input"]
fig, axes = plots.figure(height=5.0, ncols=5)
panels = [(f"{step:,} updates", table) for step, table in snapshots.items()] + [("the source", NEXT.reshape(64, V))]
for ax, (title, table) in zip(axes, panels, strict=True):
    color = plots.GREEN if title == "the source" else plots.BLUE
    ax.imshow(table, cmap=plots.ramp(color), vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    ax.set_title(title.replace(" updates", "\nupdates").replace("the ", "the\n"), fontsize=11)
    ax.set_xticks(range(V), NOTES, fontsize=8)
    ax.set_yticks([])
    ax.grid(False)
axes[0].set_ylabel("two notes before (64 pairs)")
axes[2].set_xlabel("next note")
plots.show(fig, alt="Five heat maps of 64 rows and 8 columns: the model's table depends on the last note at first, then is blurred, and after 1,200 updates looks like the table of the source.")

# %% [markdown]
# ## Measured
#
# ### The bundled model
#
# The same picture for the weights that come with this course: their training log, with the floor that the grammar knows.

# %% tags=["hide-input"]
RESULTS = Path("../book/results/stories-5m")
runs = [[json.loads(line) for line in path.read_text().splitlines()] for path in RESULTS.glob("*.jsonl")]
runs.sort(key=lambda run: -next(record["loss"] for record in run if "loss" in record))  # a fresh run starts highest
fig, ax = plots.figure(height=3.8)
offset, evaluations = 0, []
for number, run in enumerate(runs):
    steps = [record for record in run if "loss" in record]
    ax.plot([(offset + r["tokens"]) / 1e6 for r in steps], [r["loss"] for r in steps], color=plots.SKY, linewidth=0.8,
            label=None if number else "training batches")
    evaluations += [r | {"tokens": offset + r["tokens"]} for r in run if "eval_nats_per_token" in r]
    offset += steps[-1]["tokens"]
    if number + 1 < len(runs):
        ax.axvline(offset / 1e6, color=plots.GREY, linestyle=":", linewidth=1.2)
        ax.text(offset / 1e6, 2.7, " a second run\n goes on", fontsize=10, va="top", color=plots.MUTED)
ax.plot([e["tokens"] / 1e6 for e in evaluations], [e["eval_nats_per_token"] for e in evaluations], "o-",
        color=plots.BLUE, markersize=4, label="held-out stories")
last = evaluations[-1]
ax.axhline(last["source_nats_per_token"], color=plots.GREEN, linestyle="--", label="entropy of the grammar")
ax.axhline(math.log(2048), color=plots.GREY, linestyle=":", label="log 2048")
ax.set(xlabel="tokens trained on (millions)", ylabel="loss (nats a token)")
ax.set(yscale="log", ylim=(0.45, 9), xlim=(0, offset / 1e6 * 1.01))
ax.set_yticks([0.5, 0.7, 1, 2, 4, 8], ["0.5", "0.7", "1", "2", "4", "8"])
ax.minorticks_off()
ax.legend(loc="upper right", bbox_to_anchor=(1, 0.93), ncols=2)
plots.show(fig, alt="Training and held-out loss of the bundled model on a logarithmic axis against tokens, falling from log 2048 towards the entropy of the grammar, which is drawn as a dashed floor.")
excess = last["eval_nats_per_story"] - last["source_nats_per_story"]
source_nats_per_story = last["source_nats_per_story"]
print(f"{offset / 1e6:.1f} million tokens; on {last['eval_stories']:,} held-out stories the model needs "
      f"{last['eval_nats_per_story']:.2f} nats a story,")
print(f"the source {source_nats_per_story:.2f}: an excess of {excess:.2f} nats, "
      f"{excess / source_nats_per_story:.1%} of the entropy")

# %% [markdown]
# **Where is the excess?** Keep two ledgers of one story. The source pays when it decides, the model when it is surprised. For a
# perfect model the two totals would agree on average.

# %%
with torch.inference_mode():
    log_probs = model(story_ids[:-1]).log_softmax(-1)
token_nats = -log_probs.gather(-1, story_ids[1:, None])[:, 0].numpy()
pieces = [tokenizer.decode([i]) for i in story_ids[1:].tolist()]
ends = np.cumsum([len(piece) for piece in pieces])
starts = ends - [len(piece) for piece in pieces]
places = np.array([place for place, _ in teller.decisions])
source_nats = np.array([nats for _, nats in teller.decisions])
paid = np.zeros(len(pieces))  # by the source, at the token where each decision fell
np.add.at(paid, np.searchsorted(ends, places, side="right").clip(max=len(pieces) - 1), source_nats)
largest = (token_nats - paid).argsort()[::-1][:8]
print("model  source  token")
for i in sorted(largest):
    print(f"{token_nats[i]:5.2f}  {paid[i]:6.2f}  {pieces[i]!r:14} after {story[max(0, starts[i] - 34) : starts[i]]!r}")
settled = paid == 0
print(f"\nall {len(pieces)} tokens: model {token_nats.sum():.1f} nats, source {paid.sum():.1f}")
print(f"{settled.sum()} tokens at which nothing was decided: model {token_nats[settled].sum():.1f}, source 0.0")

# %% tags=["hide-input"]
fig, ax = plots.figure(height=3.5)
ax.step(starts, np.cumsum(token_nats), where="post", color=plots.BLUE, label="the model's surprise")
ax.step(places, np.cumsum(source_nats), where="post", color=plots.GREEN, label="the decisions of the source")
ax.set(xlabel="characters into the story", ylabel="nats so far", xlim=(0, len(story)), ylim=(0, None))
ax.legend(loc="upper left")
plots.show(fig, alt="Cumulative nats along one story: the model's staircase runs close to that of the source and ends above it.")

# %% [markdown]
# Large surprises are mostly dice, and the source paid for them too. The excess lies mostly where the source decided nothing,
# because the word was already settled by what came before ("her grandmother"), and the model isn't sure which one to copy.
#
# ### Four ways to be wrong
#
# None of these runs raises an error. Each differs from the right loop by one thing: same weights, same 300 batches.

# %%
def wrong_or_right(*, peak=1e-2, warmup_steps=50, shift=True, clear=True, num_updates=300) -> np.ndarray:
    """Losses of a loop with at most one thing wrong, smoothed."""
    config = TrainConfig(steps=num_updates, lr=peak, warmup_steps=warmup_steps)
    player = new_player()
    optimizer = build_optimizer(player, config)
    seen, history = torch.from_numpy(play_tunes(16 * num_updates, 33, seed=6)).split(16), []
    for update, batch in enumerate(seen):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(update, config)
        targets = batch[:, 1:] if shift else batch[:, :-1]
        loss = F.cross_entropy(player(batch[:, :-1]).flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(player.parameters(), 1.0)
        optimizer.step()
        if clear:
            optimizer.zero_grad()
        history.append(loss.item())
    return np.convolve(history, np.ones(10) / 10, mode="valid")


# %% tags=["hide-input"]
curves = {
    "right": (wrong_or_right(), plots.BLUE),
    "no warm-up": (wrong_or_right(warmup_steps=0), plots.PURPLE),
    "rate 10 × too high": (wrong_or_right(peak=0.1), plots.ORANGE),
    "zero_grad forgotten": (wrong_or_right(clear=False), plots.RED),
    "targets not shifted": (wrong_or_right(shift=False), plots.YELLOW),
}
fig, ax = plots.figure(height=4.2)
for name, (curve, color) in curves.items():
    ax.plot(np.arange(len(curve)) + 5.5, curve, color=color, label=name)  # at the middle of each window of 10
draw_floors(ax, 0.06)
ax.text(14, 1.47, "targets not shifted:\non its way to 0", va="center", color=plots.INK, fontsize=10)
ax.annotate("right", (222, curves["right"][0][216]), (-18, -18), textcoords="offset points", color=plots.BLUE, fontsize=10)
ax.annotate("no warm-up", (215, curves["no warm-up"][0][209]), (0, 12), textcoords="offset points", color=plots.PURPLE, fontsize=10)
ax.set(xlabel="update", ylabel="loss (nats a note)", ylim=(1.3, 2.5), xlim=(0, 300))
ax.legend(loc="upper right", ncols=2)
plots.show(fig, alt="Loss curves: the right loop falls towards the last floor; without warm-up it lags; too high a rate and forgotten zero_grad stay on the higher plateaus; unshifted targets fall to zero, below every floor.")

# %% [markdown]
# The floors turn a curve into a diagnosis. The run with unshifted targets looks best and lies *below the entropy*, which is
# impossible: it cheats. The hot one and the one that forgot `zero_grad` sit where a model that looks at one note, or at none,
# would sit; on real text you would call that plateau "converged". Without warm-up the loss falls faster at first, and lags for
# the rest of the run. 300 updates are too few for the right one to arrive; see the curve above.
#
# ### Time
#
# `recorded` measures on your machine when you run the notebook; what is printed here was measured on the machine named under
# the figure.
#
# Prediction: a machine's speed on one large matrix product, divided by $6N$, is about the most tokens a second that training
# can reach. Attention, norms, the optimiser and smaller products take their share.

# %%
def measure_training() -> dict:
    """Tokens a second: predicted from a 1024³ product, and measured in training steps of stories-5m, both in float32."""
    import time

    torch.set_num_threads(all_threads)
    a = torch.randn(1024, 1024)
    product_s = []
    for _ in range(6):
        started = time.perf_counter()
        a @ a
        product_s.append(time.perf_counter() - started)
    config = TrainConfig(steps=3, dtype="fp32")
    trainee = Transformer(PRESETS["stories-5m"])
    optimizer = build_optimizer(trainee, config)
    batch = torch.randint(2048, (2, 257), generator=torch.Generator().manual_seed(0))
    step_s = []
    for _ in range(4):
        started = time.perf_counter()
        loss = summed_cross_entropy(trainee(batch[:, :-1]), batch[:, 1:]) / 512
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step_s.append(time.perf_counter() - started)
    flops_per_s = 2 * 1024**3 / min(product_s)
    return {"bound": flops_per_s / (6 * num_parameters), "measured": 512 / min(step_s)}


record = recorded("03_training_speed", measure_training)

# %% tags=["hide-input"]
share = record.values["measured"] / record.values["bound"]
hours = offset / record.values["measured"] / 3600
fig, ax = plots.figure(height=2.5)
ax.barh(["predicted ceiling", "measured"], [record.values["bound"], record.values["measured"]], color=[plots.GREEN, plots.BLUE])
ax.bar_label(ax.containers[0], fmt="{:,.0f}", padding=4)
ax.invert_yaxis()
verdict = f"{share:.0%} of the ceiling; at this rate the bundled model's {offset / 1e6:.0f} million tokens take {hours:.1f} hours"
ax.set(xlabel=f"tokens a second, stories-5m in float32\n({verdict})", xlim=(0, max(record.values.values()) * 1.2))
plots.show(fig, alt="Two bars: tokens a second predicted from the speed of one large matrix product, and the smaller number measured in training.", record=record)

# %% [markdown]
# The share of the ceiling is a utilization again, by a kinder measure than the data sheet's.

# %% [markdown]
# ## In production
#
# Training systems are this loop under the constraint that nothing fits. **Mixed precision** (混合精度) runs the products in bf16
# and keeps weights and moments in fp32, as our bundled model was trained. **Activation checkpointing** (激活重计算) stores only some
# of the saved inputs and recomputes the rest: more than 6 FLOPs, less memory. FlashAttention does so inside attention: it saves
# one number a row (the log-sum-exp) and not $P$, and pays a fifth product for it (chapter 10). Liger Kernel fuses the last
# linear layer with the cross-entropy, so that the logits never lie in memory all at once. Megatron-LM and FSDP split all of it
# over devices (chapters 25 and 26).
#
# The serving engines (vLLM, SGLang, TensorRT-LLM, llama.cpp) run the forward half only: no gradients, no moments, no saved
# activations, and so 2 bytes a weight or fewer, not 16. What a server keeps instead: [chapter 08](08_kv_cache.ipynb).

# %% [markdown]
# ## Exercises
#
# In `exercises/ch03_training.py`; `python3 tasks.py grade ch03` grades them and names what went wrong.
#
# | task | points | prepared by |
# |---|---|---|
# | `training_seconds`: predict how long a job takes | 2 | Napkin |
# | `cross_entropy_and_grad`: the loss and softmax minus one-hot, with padding and huge logits | 4 | The loss |
# | `linear_backward`: two products, any leading axes | 3 | Shapes decide |
# | `rms_norm_backward`: without a Jacobian | 4 | Backward, part by part |
# | `attention_backward`: four products | 5 | Attention |
# | `adamw_step`: in place, as torch does it | 4 | From a gradient to a step |
# | `train_on`: a bug hunt in a loop that learns to copy | 6 | The real version; Four ways to be wrong |

# %% [markdown]
# ## Check yourself
#
# <details><summary>A vocabulary has 128,256 tokens. What should a new model's first loss be? And if it is 0.7?</summary>
#
# log 128,256 = 11.76 nats, plus about half the variance of the logits. 0.7 nats would be a model that is half sure of the right
# token before it has learned anything: the targets leak into the input, or you loaded trained weights.
# </details>
#
# <details><summary>How long does one H100 at 40 % of its peak take for 1 billion weights and 20 billion tokens?</summary>
#
# 6 · 10⁹ · 2·10¹⁰ = 1.2·10²⁰ FLOPs. 0.4 · 989·10¹² = 3.96·10¹⁴ FLOP/s. 303,000 s, or 3.5 days.
# </details>
#
# <details><summary>Adam with betas (0.9, 0.95) and no bias correction: how long is the first step?</summary>
#
# m = 0.1 g and √v = √0.05 |g| = 0.224 |g|, so the step is 0.447 η: too short by half. With the other customary pair (0.9,
# 0.999) it would be 0.1 / 0.0316 = 3.2 η: too long by a factor of three, at the very moment when the weights are random.
# </details>
#
# <details><summary>Your held-out loss is 3 % below the entropy of the source. What happened?</summary>
#
# On enough held-out text that can't happen: cross-entropy is entropy plus KL, and KL ≥ 0. Either the sample is small (look at
# the standard error), or targets leak into the inputs, or the entropy is counted per something else (per word, per story
# without its end).
# </details>

# %% [markdown]
# ## Sources
#
# - C. E. Shannon, *A Mathematical Theory of Communication*, 1948: entropy, and sources like our tune machine and the story
#   grammar (sections 2, 6 and 7).
# - D. P. Kingma and J. Ba, *Adam: A Method for Stochastic Optimization*, [arXiv:1412.6980](https://arxiv.org/abs/1412.6980):
#   algorithm 1, and section 3 on bias correction.
# - I. Loshchilov and F. Hutter, *Decoupled Weight Decay Regularization*, [arXiv:1711.05101](https://arxiv.org/abs/1711.05101);
#   *SGDR: Stochastic Gradient Descent with Warm Restarts*, [arXiv:1608.03983](https://arxiv.org/abs/1608.03983) for the cosine.
# - J. Kaplan et al., *Scaling Laws for Neural Language Models*, [arXiv:2001.08361](https://arxiv.org/abs/2001.08361):
#   $C \approx 6ND$.
# - H. Touvron et al., *LLaMA: Open and Efficient Foundation Language Models*,
#   [arXiv:2302.13971](https://arxiv.org/abs/2302.13971), section 2.3: the optimiser's settings.
# - *The Llama 3 Herd of Models*, [arXiv:2407.21783](https://arxiv.org/abs/2407.21783), and the model card of Llama 3 (15 T
#   tokens, 1.3 M H100-hours for 8B).
# - B. Zhang and R. Sennrich, *Root Mean Square Layer Normalization*, [arXiv:1910.07467](https://arxiv.org/abs/1910.07467); J.
#   Su et al., *RoFormer*, [arXiv:2104.09864](https://arxiv.org/abs/2104.09864); T. Dao et al., *FlashAttention*,
#   [arXiv:2205.14135](https://arxiv.org/abs/2205.14135).
#
# Next: [chapter 04](04_next_token.ipynb) does something with the probabilities that we have just paid for.
