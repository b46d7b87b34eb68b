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
# # 07 · Fusion and graph compilation
#
# *Between two matrix products the numbers need hardly any arithmetic. They only keep travelling. This chapter lets them stay.*
#
# Needs: chapters [01](01_whole_system.ipynb), [02](02_building_the_model.ipynb), [03](03_training.ipynb), [05](05_cost_model.ipynb), [06](06_gemm.ipynb) ·
# Time: 75 minutes to read, 90 to solve

# %% [markdown]
# ## Why
#
# A GPU doesn't run a model. It runs **kernels** (算子), and each has to be *launched*: the host looks up the function,
# packs its arguments, and puts an order into the GPU's queue. `x * y` is a launch, and so is `x + 1e-6` on a single number.
# How many does the bundled model need for one token? Torch has a place where every operation passes by, so we can stand there
# and count.

# %%
import copy
import os
from collections import Counter
from importlib.util import find_spec

import torch
from IPython.display import Markdown
from torch.utils._python_dispatch import TorchDispatchMode

import minillm
from minillm import plots
from minillm.bench.recorded import recorded
from minillm.bench.show import source
from minillm.cache import ContiguousCache
from minillm.generation.tape import names_memory_only

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its kernels then run on CPU tensors, slowly


class Launches(TorchDispatchMode):
    """The operations that compute something. Views, which only name memory that is there, aren't counted."""

    def __init__(self) -> None:
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))  # func: an operation in one form, as mul.Tensor; its packet: mul
        if not names_memory_only(func, (args, kwargs), outputs):
            self.names.append(func.overloadpacket.__name__.strip("_"))
        return outputs


model, tokenizer = minillm.load_model(), minillm.load_tokenizer()
model.requires_grad_(False)
prompt = tokenizer.encode("Once upon a time")


def prefilled() -> ContiguousCache:
    """A cache (chapter 01) that holds the prompt."""
    cache = ContiguousCache(model.layer_specs, 1, max_seq_len=64)
    attend = cache.begin([len(prompt)])  # where new tokens go, and how they attend to the cache
    model(torch.tensor([prompt]), attend.positions, attend)
    cache.commit()
    return cache


cache = prefilled()
attend = cache.begin([1])
with Launches() as step:
    model(torch.tensor([[5]]), attend.positions, attend)
num_parameters = sum(p.numel() for p in model.parameters())
num_launches = len(step.names)
print(f"{num_launches} operations for one token:", dict(Counter(step.names).most_common(9)))

# %% [markdown]
# Over two hundred, and only 43 of them, `mm`, are matrix products. Now put that on an H100. The five million weights take 10 MB
# in 16 bits: 3 µs at 3.35 TB/s. A launch costs the host about as much; the documentation of
# [CUDA.jl](https://cuda.juliagpu.org/dev/usage/graphs/) measures 260 µs for 80 small kernels, 3.25 µs each, and there Python
# isn't even in the way. To scale:

# %% tags=["hide-input"]
LAUNCH_US, BANDWIDTH = 260 / 80, 3.35e12  # cited above; data sheet
data_us = 2 * num_parameters / BANDWIDTH * 1e6
products = {"mm", "addmm", "bmm"}
fig, ax = plots.figure(height=1.9)
for i, name in enumerate(step.names):
    color = plots.BLUE if name in products else plots.ORANGE
    ax.broken_barh([(i * LAUNCH_US, 0.72 * LAUNCH_US)], (1.0, 0.8), color=color, linewidth=0)
ax.broken_barh([(0, data_us)], (0.0, 0.8), color=plots.GREEN, linewidth=0)
total_us = len(step.names) * LAUNCH_US
ax.text(data_us + 6, 0.4, f"reading every weight once: {data_us:.0f} µs", va="center")
ax.text(0, 2.0, f"{len(step.names)} launches, {total_us:.0f} µs:", va="bottom", ha="left")
ax.text(0.33 * total_us, 2.0, "matrix products", va="bottom", color=plots.BLUE)
ax.text(0.55 * total_us, 2.0, "everything between them", va="bottom", color=plots.ORANGE)
ax.set(xlim=(-4, total_us + 4), ylim=(-0.15, 2.7), xlabel="µs on the host's clock, predicted for an H100", yticks=[])
ax.grid(False)
for side in ("left", "top", "right"):
    ax.spines[side].set_visible(False)
plots.show(fig, alt="A comb of more than two hundred launches, most of them between matrix products, above a sliver: the time to read all weights.")

# %% [markdown]
# The host would need three quarters of a millisecond to order what the memory can deliver in three microseconds. Larger models
# have more work in each launch, but the disease is the same, and it has a second half: what lies between the products moves
# bytes, too.

# %% [markdown]
# ## Napkin
#
# RMSNorm (chapter 02) of $N$ numbers, in 16 bits, as torch runs it: eight launches, each of which reads its operands from HBM
# and writes its result back.
#
# | launch | reads | writes | bytes |
# |---|---|---|---:|
# | widen to float32 | x | wide | 2 + 4 |
# | square | wide | squares | 4 + 4 |
# | mean; add eps; rsqrt | squares | one number a row | 4 |
# | multiply | wide | normed | 4 + 4 |
# | round to 16 bits | normed | narrow | 4 + 2 |
# | times weight | narrow | y | 2 + 2 |
#
# 36 bytes a number, for 4 FLOPs: an intensity of 0.11 FLOPs a byte. An H100 asks for 295 before arithmetic counts (chapter 05).
# The same work in one launch reads x and writes y: 4 bytes. That is **operator fusion** (算子融合), and on the far left of the
# roofline it is free speed: the time falls with the bytes, by 9.
#
# What can be fused? Kernels share work by tiles. Operations chain well if a program that has a tile of the input can finish its
# tile of the output:
#
# * **elementwise** (逐元素) operations: any tile will do;
# * **reductions** (归约) along a row: whole rows, or a row in pieces with a running result;
# * not matrix products, as a rule: a tile of $C$ needs entire rows of $A$ and columns of $B$, so the tile changes its shape. A
#   product can carry elementwise work on its way *out*, its **epilogue** (尾部融合).
#
# A layer of Llama 3 8B, 2,048 tokens, between its products, by the library's closed forms:

# %%
from minillm.fusion.metered import Blocks, cost, run
from minillm.fusion.metered_layer import LayerShape, layer_cost

llama = LayerShape(hidden_size=4096, intermediate_size=14336, num_heads=32, num_kv_heads=8, head_dim=128)
weights = 2 * 4096 * (4096 + 1024) + 3 * 4096 * 14336  # q, o and k, v; gate, up, down
rows = ["| | launches | MiB | FLOPs a byte | at best, on an H100 |", "|---|---:|---:|---:|---:|"]
for version in ("eager", "fused"):
    found = layer_cost(llama, 2048, version, bytes_per_number=2)
    rows.append(
        f"| norms, RoPE, SwiGLU: {version} | {found.launches} | {found.hbm_bytes / 2**20:,.0f} "
        f"| {found.flops / found.hbm_bytes:.2f} | {found.hbm_bytes / BANDWIDTH * 1e6:.0f} µs predicted |"
    )
rows.append(f"| matrix products | 7 | | | {2 * weights * 2048 / 989e12 * 1e6:.0f} µs predicted |")
Markdown("\n".join(rows))

# %% [markdown]
# What lies between the products takes 29 % of the time, eager, for almost none of the arithmetic; fused, 11 %. A fifth of the
# whole is saved. (Eager is what torch calls running each operation as it comes. Attention has a chapter of its own, 10.)

# %% [markdown]
# ## The naive version
#
# The meter of chapter 06 again: each call a kernel, each result a tensor in HBM. Float32 needs no casts; with the residual sum
# in front that makes seven launches. Filled is what a step loads or stores, pale what was written before; SRAM shows what the
# program holds, grey what it just computed.

# %%
generator = torch.Generator().manual_seed(7)
x, residual = (torch.randn(12, 32, generator=generator) for _ in range(2))
weight = torch.rand(32, generator=generator)
eager = run("add_rms_norm", "eager", x, residual, weight, blocks=Blocks(rows=4), sram_bytes=1536, trace=True)
total = x + residual
torch.testing.assert_close(eager.outputs, [torch.nn.functional.rms_norm(total, (32,), weight, 1e-6), total])

# %% tags=["hide-input"]
from minillm.perf.meter.film import film_strip

plots.show(film_strip(eager.meter, list(eager.meter.tensors), frames=[0, 4, 8, 16, 20]), alt="Five steps of seven kernels: every intermediate result is written to HBM as a tensor of its own and read by the next kernel.")

# %% [markdown]
# Nothing stays on the chip when a kernel ends. Six results were made there, sent away, and called back; `sum` even twice.

# %% [markdown]
# ## The idea
#
# ### Keep the tile
#
# A program loads four rows of x, adds the residual, and keeps them. The sum is written, since the residual stream goes on. The
# mean square of a row is a number on the chip. So are the factor, the normed rows, and their product with the weight. Then the
# is stored. (The blue frame: the tile that began as these rows of x is still there, and holds their sum by now.)

# %% tags=["hide-input"]
fused = run("add_rms_norm", "fused", x, residual, weight, blocks=Blocks(rows=4), sram_bytes=1536, trace=True)
torch.testing.assert_close(fused.outputs, eager.outputs)
plots.show(film_strip(fused.meter, ["x", "residual", "weight", "sum", "y"], frames=[0, 1, 4, 5]), alt="Four steps of one kernel: rows of x and of the residual come in, the sum goes out, the weight comes in, the normed rows go out.")

# %% [markdown]
# 6.4 KiB in one launch for 15.7 in seven, the same FLOPs, the same numbers. The rest of a model goes the same way:
#
# * **SwiGLU**: `silu(gate) · up` is two launches in eager torch, and `silu(gate)` crosses the border twice for nothing.
# * **RoPE** turns q and k: multiply, negate, concatenate, multiply, add, for each. Fused, a program loads its rows of cos and sin
#   once and turns all heads of its tokens.
# * **Softmax** is five passes: maximum, subtract, exponentiate, sum, divide.
#
# Each library version on the meter, checked against torch elsewhere and against its closed form here:

# %%
inputs = {
    "rms_norm": (x, weight),
    "add_rms_norm": (x, residual, weight),
    "swiglu": (x, residual),
    "rope": (*(torch.randn(heads, 12, 8, generator=generator) for heads in (4, 2)), *(torch.rand(2, 12, 8, generator=generator))),
    "softmax": (x,),
    "cross_entropy": (x, torch.randint(32, (12,), generator=generator)),
}
rows = ["| | eager: launches | bytes | fused: launches | bytes | saved |", "|---|---:|---:|---:|---:|---:|"]
launches_saved = {}
for name, tensors in inputs.items():
    totals = []
    for version in ("eager", "fused"):
        counts = run(name, version, *tensors).meter.total
        predicted = cost(name, version, (6, 12, 8) if name == "rope" else tuple(x.shape))
        assert (counts.launches, counts.hbm_bytes) == (predicted.launches, predicted.hbm_bytes)
        totals.append(counts)
    before, after = totals
    launches_saved[name] = before.launches - after.launches
    saved = before.hbm_bytes / after.hbm_bytes
    rows.append(f"| `{name}` | {before.launches} | {before.hbm_bytes:,} | {after.launches} | {after.hbm_bytes:,} | {saved:.1f} × |")
Markdown("\n".join(rows))

# %% [markdown]
# Less than the napkin's 9: float32 needs no casts, so a norm moves 28 bytes a number instead of 8, and weights come on top.
#
# Closed forms follow one rule. A kernel reads each operand once, however often it uses it, but a weight, a single row, is needed
# by *each* of its programs. It writes each result that somebody outside reads. For `add_rms_norm` with $P$ programs, $N$ numbers
# in rows of $n$: $2N + Pn$ read, $2N$ written.
#
# ### The largest tensor of training
#
# The last row of that table is worth a second look. The logits of 8,192 tokens over Llama 3's vocabulary of 128,256 words are 2
# GiB in 16 bits, and 4 in the float32 that a loss wants. Cross-entropy by calls makes several tensors of that size. Yet it
# returns a number a token: $\text{loss} = \mathrm{lse} - s_\text{target}$, with $\mathrm{lse} = \ln \sum_j e^{s_j}$.
#
# A sum can be taken piece by piece. The catch is overflow: $e^{89}$ is too much for float32, so one subtracts the row's largest
# logit, which isn't known before the last piece. The way out is an *online softmax* (chapter 10 lives on it): keep the largest so
# far, $m$, and $l = \sum e^{s_j - m}$. After a block the largest is $m' = \max(m, \max_{j \text{ in the block}} s_j)$.
# Everything summed so far is too large by one known factor, which is 1 where nothing larger came:
#
# $$l' = l \cdot e^{m - m'} + \sum_{j \text{ in the block}} e^{s_j - m'}, \qquad \mathrm{lse} = m + \ln l \text{ at the end.}$$
#
# By hand, two blocks of one logit each, $\ln 2$ and $\ln 8$: first $m = \ln 2$, $l = 1$. Then $m' = \ln 8$, the factor is
# $2/8$, and $l' = 1/4 + 1 = 5/4$. lse $= \ln 8 + \ln \tfrac54 = \ln 10$. It starts with $m = -\infty$ and $l = 0$.
#
# The gradient needs no probabilities in memory either. $\partial\,\text{loss} / \partial s_j = p_j - [j = \text{target}]$ with
# $p_j = e^{s_j - \mathrm{lse}}$, made again from the logit when it is wanted. And one can go further: the logits are $s_j = h
# \cdot w_j$, the hidden state times rows of lm_head, so
#
# $$\frac{\partial\,\text{loss}}{\partial h} = \sum_j p_j\, w_j - w_\text{target} .$$
#
# A mean of rows of lm_head, weighted by a softmax, minus one row. The mean is $\sum_j e^{s_j - m} w_j$ divided by $l$, and that
# sum grows block by block like $l$, repaired by the same factor. Nothing asks for all logits at once. What that is worth for
# memory:

# %% tags=["hide-input"]
tokens, vocab_size, hidden_size, block = 8192, 128_256, 4096, 4096
GIB = 2**30
bars = [
    ("logits, probabilities and\ntheir gradient, float32", 3 * 4 * tokens * vocab_size, plots.ORANGE),
    ("fused loss, gradient\nin the logits' place, 16 bits", 2 * tokens * vocab_size, plots.SKY),
    (f"{block:,} words at a time,\nlogits in float32", 4 * tokens * block, plots.BLUE),
    ("lm_head itself, 16 bits", 2 * vocab_size * hidden_size, plots.GREY),
]
fig, ax = plots.figure(height=3.0)
for place, (_, size, color) in enumerate(bars):
    ax.barh(place, size / GIB, color=color)
    ax.text(size / GIB + 0.12, place, f"{size / GIB:.2f} GiB", va="center")
ax.set_yticks(range(4), [name for name, *_ in bars])
ax.set(xlabel="GiB for 8,192 tokens and a vocabulary of 128,256", xlim=(0, 13.4), ylim=(3.6, -0.6))
plots.show(fig, alt="Memory of the loss: logits, probabilities and gradients in float32 take nearly twelve GiB, a fused loss two, a loss by blocks of the vocabulary an eighth of one.")

# %% [markdown]
# ## The real version
#
# ### A kernel, line by line
#
# RMSNorm in Triton (chapter 06): `program_id` is the row, `BLOCK` a power of two at least as long as a row, `inside` the mask
# that keeps the surplus out. `source` shows the library's own code.

# %%
if find_spec("triton"):
    from minillm.kernels import fused_norm

    source(fused_norm.norm_kernel.fn)
    x, residual = torch.randn(3, 200, generator=generator), torch.randn(3, 200, generator=generator)
    weight = torch.rand(200, generator=generator)
    y, new_residual = fused_norm.add_rms_norm(x, residual, weight, 1e-6)
    torch.testing.assert_close(y, torch.nn.functional.rms_norm(x + residual, (200,), weight, 1e-6))
    print("run by Triton's interpreter: equal to torch's")
else:
    print("Triton exists for Linux only: see minillm/kernels/fused_norm.py")

# %% [markdown]
# Two lines deserve attention. The sum is *rounded to the residual's dtype before it is normed*: a later layer will read the
# rounded one. And `normed` is rounded before the weight multiplies it, because the model of chapter 02 does so. A fused kernel
# computes what the calls computed, their roundings included, or the model becomes another one by a hair.
#
# Training needs the gradient. With $r = 1/\sqrt{\mathrm{mean}(x^2) + \varepsilon}$, $\hat x = x r$ and $g = dy \odot w$,
#
# $$dx = r \left( g - \hat x \cdot \mathrm{mean}(g \odot \hat x) \right), \qquad dw = \sum_\text{rows} dy \odot \hat x .$$
#
# The second term is there because moving one number moves the norm of its row. One number a row, $r$, is kept from the forward
# pass; everything else is computed again.
#
# `minillm doctor` compares each of these kernels with float64, on whatever the machine has: how much of the error that rounding
# allows it made, at most 100 %, and whether it compiles for two generations of GPUs. From its report (`recorded` measures on
# your machine when you run the notebook; what is printed here was found on the machine named below):

# %% tags=["hide-input"]
def examine_kernels() -> list[str]:
    """What `minillm doctor --only kernels` prints."""
    import subprocess
    import sys

    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "minillm", "doctor", "--only", "kernels"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return done.stdout.splitlines()


doctor = recorded("07_doctor", examine_kernels)
fused_rows = {"rms_norm", "add_rms_norm", "rope", "swiglu", "softmax", "cross_entropy"}
rows = ["| kernel | checked by | of the error allowed | builds | verdict |", "|---|---|---:|---:|---|"]
for words in map(str.split, doctor.values):
    if words and words[0].removesuffix("_gradients") in fused_rows:
        name, where, _, share, *rest = words  # builds are missing where Triton can't compile
        builds, verdict = rest[:2] if "/" in rest[0] else ("", rest[0])
        rows.append(f"| `{name}` | {where} | {share.replace('%', ' %')} | {builds} | {verdict} |")
Markdown("\n".join([*rows, "", f"*{doctor.machine}*"]))

# %% [markdown]
# ### Who finds what to fuse?
#
# Somebody could rewrite the model by hand, and for each model anew. A compiler finds the chains itself, if it gets to see the
# whole computation. **TorchDynamo** (TorchDynamo 捕获器), the front of `torch.compile`, reads a Python function's *bytecode*, its
# steps as the interpreter sees them, follows them with tensors that have shapes but no numbers, and writes down each call of
# torch as a node of an **FX graph** (计算图). A *backend* gets the graph and returns something to call. Here the backend only
# looks. One layer of the model, as captured and after the library rewrote it (views are left out; green is fused):

# %%
from minillm.attention.full import FullAttend
from minillm.fusion import OutsideAttend, capture, fuse_graph
from minillm.fusion.draw import before_and_after

attend = OutsideAttend(FullAttend([None]))  # attention as one node, whatever stands behind it


def layer(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return model.blocks[0](x, (cos, sin), attend)


(before,) = capture(layer, torch.zeros(1, 5, 256), *model.rope.cos_sin(torch.arange(5), torch.float32))
after = copy.deepcopy(before)
print(fuse_graph(after), "(views included)")

# %% tags=["hide-input"]
import base64
import io

from PIL import Image

from minillm.plots.display import CSS_PIXELS_PER_INCH, png, publish

fig = before_and_after(before, after)
(label,) = [text for text in fig.axes[0].texts if text.get_text() == "1 × 5 × 256" and text.get_position()[1] == 6]
label.remove()  # the residual passes there
alt = "The graph of a decoder layer before and after: 39 calls become 14, with norm, rope, add and norm, and swiglu as single green nodes."
buffer = io.BytesIO()
picture = Image.open(io.BytesIO(png(fig, alt))).quantize(128, method=Image.Quantize.FASTOCTREE)  # a quarter of the bytes
picture.save(buffer, "PNG", optimize=True)
content = {"image/png": base64.b64encode(buffer.getvalue()).decode("ascii"), "text/plain": alt}
publish(content, {"image/png": {"alt": alt, "width": round(fig.get_size_inches()[0] * CSS_PIXELS_PER_INCH)}})

# %% [markdown]
# A graph is a list of nodes in the order in which they run. A node has an `op` (how it is called), a `target` (what is called),
# `args` (nodes and constants), and `users`:

# %%
small = torch.fx.symbolic_trace(model.blocks[0].ffn)  # w_down(silu(w_gate(x)) * w_up(x))
for node in small.graph.nodes:
    target = getattr(node.target, "__name__", node.target)
    print(f"{node.op:13} {node.name:6}  target {target:6}  args {node.args!s:14} users {list(node.users)}")

# %% [markdown]
# And the whole model, counted. There are two norms a layer and one at the end, and all but the first have a residual sum in
# front of them.

# %%
tokens = torch.tensor([prompt])
(graph,) = capture(model, tokens)
rewritten = copy.deepcopy(graph)
report = fuse_graph(rewritten)
num_layers = model.config.num_layers
assert report.fused == {"rope": num_layers, "add_rms_norm": 2 * num_layers, "rms_norm": 1, "swiglu": num_layers}
print(report)

# %% [markdown]
# ### A pattern and its traps
#
# A **pattern** (模式) is a piece of graph with wildcards. It is convenient to write it as the Python it should match, and trace
# that:

# %%
from minillm.fusion import patterns

source(patterns.rms_norm)
source(patterns.swiglu)

# %% [markdown]
# Fitting is a recursion from the result backward. A wildcard takes what stands there, or, if it was met before, insists on the
# same. An operation asks for the same operation, and its operands are fitted in turn. Where that is naive:
#
# * **Order.** `a * b` and `b * a` are one operation. Trying both orders isn't enough: with `?a·?b + ?a·?c`, which of the first
#   product's operands is `?a` only the second one tells. On `p·q + q·r` first ?a = p, ?b = q; the second product has no p, so
#   go *back*: ?a = q, ?b = p, and then ?c = r. In Python: a generator that yields each way of fitting.
# * **Escape.** In `s = silu(g); y = s * u; z = s + 1` the fused node would compute y and never make s. If an inner value is used
#   outside, or returned, the match is forbidden. A residual sum *is* used outside; so it is declared a result of
#   `add_rms_norm`, not an inner value.
# * **What the names don't say.** An eps of 1e-5 isn't one of 1e-6. Statistics in float16 aren't statistics in float32. A
#   broadcast changes shapes. Each is a reason to refuse, since *almost* the same graph is another model.
# * **Place.** Nodes run in their order. The fused one must come after all its inputs and before its first user. In the list
#   above `silu` stands before `w_up`: in its place, a fused node would ask for `w_up` too early.
# * **Size.** Largest patterns first: were a norm fused before the sum in front of it, the sum would be left over.
#
# The library's matcher is [`matcher.py`](../minillm/fusion/matcher.py), its surgery [`rewrite.py`](../minillm/fusion/rewrite.py).
# What it puts in is an operator registered with `torch.library` under a name, `minillm::swiglu`: a Triton kernel on a GPU, a few
# calls on a CPU. So the model runs, in the same numbers:

# %%
from minillm.fusion import fuse
from minillm.generation import generate
from minillm.sampling import SamplingParams

fused_model, greedy = fuse(model), SamplingParams(temperature=0.0, max_new_tokens=24)
with torch.inference_mode():
    gap = (fused_model(tokens) - model(tokens)).abs().max().item()
expected = generate(model, prompt, greedy)
assert gap < 1e-4 and generate(fused_model, prompt, greedy) == expected
print(tokenizer.decode(expected))

# %% [markdown]
# **Inductor** (Inductor 后端), the backend that `torch.compile` uses by default, needs no names for most of this. It writes each
# operation as loops and merges neighbours whose loops run over the same numbers, one after the other or side by side. Then it
# writes Triton for a GPU, C++ for a CPU. Patterns remain for what no merging of loops finds: an attention, a quantised product.
#
# ### Where a graph ends
#
# Not all Python can be followed. Where a tensor's *number* decides what comes next, Dynamo closes the graph, lets Python run, and
# opens another: a **graph break** (图断裂). Between two graphs nothing fuses.

# %%
from minillm.fusion import graph_breaks


def clipped(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    if y.max() > 1:  # a number of the device, asked for by the host
        y = y / y.max()
    return y + 1


def clipped_by_masks(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    return y / y.max().clamp(min=1) + 1


for function in (clipped, clipped_by_masks):
    reasons = [reason.partition(" at ")[0] for reason in graph_breaks(function, torch.rand(4, generator=generator))]
    print(f"{function.__name__}: {reasons or 'one graph'}")

# %% [markdown]
# (`generic_jump` is Dynamo's word for an `if`, `TensorVariable` its stand-in for a tensor.) A graph is valid while what it
# assumed holds: dtypes, shapes, the values of Python numbers. These **guards** (守卫条件) are checked at each call; when one
# fails, the function is compiled again. A length that grows by one each token is the classic:

# %%
def compilations(lengths, **options) -> int:
    """How many graphs are made for x[:length].sum()."""
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(lambda x, length: x[:length].sum(), backend=backend, **options)
    for length in lengths:
        compiled(torch.ones(16), length)
    return len(graphs)


print("every length for itself:", compilations(range(3, 10), dynamic=False))
print("length becomes a symbol at the second one:", compilations(range(3, 10)))

# %% [markdown]
# ### Launches without Python
#
# Fusion makes launches fewer. A **CUDA graph** (CUDA 图) makes the rest cheap: the GPU's driver records the launches of one step,
# with all their arguments, and *replays* them by a single call. No Python, and no dispatcher, torch's choice of a kernel for each
# call. The 80 kernels cited above take 70 µs instead of 260, and the host 3.5 of them.
#
# What is recorded are launches with *addresses* and numbers. Nothing else. That has consequences which bite everybody once, so
# the library has a model of it for CPUs: a `Tape` records the operations of a step with the very tensors they touched, and
# replays them in place. Watch a decode loop go wrong on it. Recorded is a step with the ordinary cache.

# %%
from minillm.generation.tape import CaptureError, Tape


def recorded_carelessly(token: torch.Tensor) -> Tape:
    cache = prefilled()
    attend = cache.begin([1])
    return Tape(lambda: model(token, attend.positions, attend)[0, -1])


def decode_with(tape: Tape, token: torch.Tensor, *, fill: bool) -> str:
    output = list(expected[:1])  # the first token comes from the prefill
    for _ in range(11):
        if fill:
            token.fill_(output[-1])
        else:
            token = torch.tensor([[output[-1]]])  # a new tensor by the old name
        output.append(tape.replay().argmax().item())
    return tokenizer.decode(output)


with torch.inference_mode():
    for fill, name in ((False, "token replaced"), (True, "token filled  ")):
        token = torch.tensor([[expected[0]]])
        print(f"{name}:", repr(decode_with(recorded_carelessly(token), token, fill=fill)))
print("eager         :", repr(tokenizer.decode(expected[:12])))

# %% [markdown]
# In the first line the tape goes on reading the comma it was recorded with, and says each time what follows it. In the second
# it gets the new token and is deaf to time: position and length were Python numbers when it was recorded, and are that for
# ever. Each token is written into the same slot of the cache, and looks back at the prompt only.

# %%
for name, step in (
    ("a number for Python", lambda: weight * 2 if weight.sum() > 0 else weight),
    ("a shape that depends on numbers", lambda: weight[weight > 0.5]),
    ("a tensor of Python numbers", lambda: weight[:2] * torch.tensor([1.0, 2.0])),
):
    try:
        Tape(step)
    except CaptureError as error:
        print(f"{name}: {str(error).partition(': ')[2]}")

# %% [markdown]
# The rules, for a tape and for a CUDA graph:
#
# | rule | so |
# |---|---|
# | inputs are addresses | `token.fill_(…)`, `token.copy_(…)` into the tensor that was recorded |
# | Python ran once | lengths and positions live in tensors; write with `index_copy_`, read everything and mask what lies beyond the length |
# | nothing comes back in the middle | no `.item()`, no `if tensor`; masks and `torch.where` |
# | one output, overwritten by each replay | `.clone()` what you want to keep |
# | the first time is different | warm up before recording: memory that is made *inside* a recorded step is made again, and emptied, by each replay |
# | warm-up and recording are steps | undo what they left behind |
# | shapes are fixed | one graph for each batch size, smaller batches padded |
#
# In small, a running maximum, which a slice `seen[: length + 1]` would have frozen:

# %%
slots, length = torch.arange(8), torch.zeros(1, dtype=torch.long)
seen, number = torch.zeros(8), torch.zeros(1)


def largest_so_far() -> torch.Tensor:
    seen.index_copy_(0, length, number)
    return seen.masked_fill(slots > length, -torch.inf).amax()


tape, found = Tape(largest_so_far), []
for place, value in enumerate((-3.0, -1.0, -4.0)):
    length.fill_(place)
    number.fill_(value)
    found.append(tape.replay().item())
print(found)

# %% [markdown]
# [`static.py`](../minillm/cache/static.py) is a cache by these rules: `begin` fills two buffers, attention runs over all slots
# under a mask. [`graph_decode.py`](../minillm/generation/graph_decode.py) records it, on a CPU with the tape, on a GPU with
# `torch.cuda.CUDAGraph`:

# %%
from minillm.generation import GraphDecoder, generate_with_graphs

decoder = GraphDecoder(model, batch_size=1, max_seq_len=64)
assert generate_with_graphs(decoder, [prompt], greedy)[0] == expected
print("tape with a static cache:", repr(tokenizer.decode(expected[:12])))

# %% [markdown]
# ## Measured
#
# **Calls**, exact: what the Python of a decode step asks of torch, before and after rewriting. Without views more are left than
# the 228 of the first cell: casts of float32 to float32, `flatten` and the like launch nothing. Writes into the cache, which do,
# aren't in the graph.

# %% tags=["hide-input"]
from dataclasses import replace

from minillm.bench.compare import compare
from minillm.bench.fusion import Plan, Runner, made, obstacle
from minillm.fusion import kind_counts
from minillm.fusion.overhead import measure_overhead
from minillm.model import Transformer

CONTEXT, STEPS = 48, 8
narrow_config = replace(model.config, hidden_size=64, intermediate_size=176, head_dim=8)
narrow = Transformer(narrow_config).eval().requires_grad_(False)
(one_token,) = capture(model, torch.tensor([[5]]))
one_fused = copy.deepcopy(one_token)
fuse_graph(one_fused)
kinds = {"eager": kind_counts(one_token), "fused": kind_counts(one_fused)}
order = {"matmul": plots.BLUE, "attention": plots.PURPLE, "fused": plots.GREEN, "reduction": plots.YELLOW}
order |= {"elementwise": plots.ORANGE, "copy": plots.SKY, "other": plots.GREY, "view": plots.tint(plots.GREY, 0.5)}
fig, ax = plots.figure(height=1.9)
for place, counts in enumerate(kinds.values()):
    left = 0
    for kind, color in order.items():
        ax.barh(place, counts[kind], left=left, color=color, label=kind if place == (kind == "fused") else None)
        left += counts[kind]
    assert left == sum(counts.values())
    ax.text(left + 5, place, f"{left}, {left - counts['view']} without views", va="center")
ax.set_yticks(range(2), list(kinds))
ax.set(xlabel="calls of torch a step", xlim=(0, 560), ylim=(1.6, -0.6))
ax.legend(ncols=8, fontsize=8.5, loc="lower center", bbox_to_anchor=(0.47, 1.0), columnspacing=0.9, handlelength=1.1, handletextpad=0.4)
plots.show(fig, alt="Calls of torch in a decode step by kind: eager 373, fused about two hundred, of which half are views.")

# %% [markdown]
# What that would mean in launches: the 228, less what each fused node saves by the meter's table. With the costs cited above,
# on whatever GPU they were measured: 3.25 µs a launch, 70 / 80 = 0.88 µs for one that is replayed.

# %% tags=["hide-input"]
num_fused = num_launches - sum(count * launches_saved[name] for name, count in report.fused.items())
rows = ["| a decode step | launches | host and GPU, at that price |", "|---|---:|---:|"]
for name, count, cost_us in (
    ("eager", num_launches, LAUNCH_US),
    ("fused", num_fused, LAUNCH_US),
    ("fused, as a CUDA graph", num_fused, 70 / 80),
):
    rows.append(f"| {name} | {count} | {count * cost_us:.0f} µs predicted |")
rows.append(f"| reading the weights, 16 bits | | {data_us:.0f} µs predicted |")
Markdown("\n".join(rows))

# %% [markdown]
# Nine times less, and still far from the memory.
#
# **Time** on one core. A CPU has no launches, but a call passes through Python and torch's dispatcher. Thin bars are a floor,
# made of two measurements. Pale: the matrix products alone. Dark: each other call on eight numbers, so that only its overhead
# counts. Above the floor are the Python of modules and cache, and arithmetic. (Inductor and tape make other calls, so they have
# none.) The same model at a quarter of its width stands beside the bundled one.

# %% tags=["hide-input"]


def measure_steps() -> dict:
    """Microseconds of a decode step for each candidate, in turns; of a call of each kind; and of the products alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {"call_us": {kind: 1e6 * s for kind, s in measure_overhead(calls=50, rounds=20).call_s.items()}}
    plan = Plan(context_len=CONTEXT, prefill_len=CONTEXT, steps=STEPS)
    for width, subject in (("256", model), ("64", narrow)):
        torch.compiler.reset()
        runners = {"eager": Runner(subject, plan).decode, "fused": Runner(made("fused", subject), plan).decode}
        if obstacle("inductor", torch.device("cpu")) is None:
            runners["inductor"] = Runner(made("inductor", subject), plan).decode
        decoder = GraphDecoder(subject, batch_size=1, max_seq_len=CONTEXT + STEPS)
        decoder.prefill([[1 + i % 50 for i in range(CONTEXT)]])

        def replays(decoder=decoder) -> torch.Tensor:
            decoder.cache.crop([CONTEXT])
            for _ in range(STEPS):
                logits = decoder.step([7])
            return logits

        runners["tape"] = replays
        for runner in runners.values():
            runner()  # compiles
        result = compare(runners, rounds=25)
        matrices = [(p, torch.ones(1, p.shape[1])) for p in subject.parameters() if p.dim() == 2]

        def products(matrices=matrices) -> None:
            for matrix, row in matrices:
                torch.nn.functional.linear(row, matrix)

        products_us = 1e6 * compare({"products": products}, rounds=25).time("products").median
        found[width] = {
            "step_us": {name: 1e6 * result.time(name).median / STEPS for name in runners},
            "products_us": products_us,
        }
    torch.set_num_threads(threads)
    return found


record = recorded("07_steps", measure_steps)
call_us = record.values["call_us"]
fig, axes = plots.figure(height=2.9, ncols=2, sharey=True)
colors = {"eager": plots.ORANGE, "fused": plots.BLUE, "tape": plots.PURPLE}
for ax, width, subject in zip(axes, ("256", "64"), (model, narrow), strict=True):
    step_us, products_us = record.values[width]["step_us"], record.values[width]["products_us"]
    for place, (name, measured) in enumerate(step_us.items()):
        ax.barh(place, measured / 1e3, height=0.5, color=colors.get(name, plots.GREY))
        if name in kinds:
            calls = sum(n * call_us.get(kind, call_us["elementwise"]) for kind, n in kinds[name].items() if kind != "matmul")
            ax.barh(place + 0.36, calls / 1e3, height=0.16, color=plots.GREEN, label="calls" if place == 0 else None)
            pale = plots.tint(plots.GREEN, 0.4)
            label = "products" if place == 0 else None
            ax.barh(place + 0.36, products_us / 1e3, height=0.16, left=calls / 1e3, color=pale, label=label)
    millions = sum(p.numel() for p in subject.parameters()) / 1e6
    ax.set_title(f"width {width}, {millions:.1f} M parameters", fontsize=11)
    ax.set(xlabel="ms a decode step")
axes[0].set_yticks(range(len(step_us)), list(step_us))
axes[0].set(ylim=(len(step_us) - 0.3, -0.5))
axes[1].set_xlim(0, 1.45 * max(step_us.values()) / 1e3)
axes[1].legend(title="floor", fontsize=9, title_fontsize=9, loc="lower right", framealpha=1)
plots.show(fig, alt="Milliseconds of a decode step for eager, fused, inductor and tape, for the bundled model and for one of a quarter of its width, with floors made of calls and of matrix products.", record=record)

# %% [markdown]
# Said plainly: on this CPU, fusing by patterns loses a little. Far fewer calls lower the floor only somewhat, since an operator
# registered from Python costs as much as several of torch's own. And above the floor there is more Python than before: a compiled
# function checks its guards at each call. Inductor calls *compiled* code, and gains, most where calls matter. The tape skips the
# model's Python, not the operations, and attends to all slots. Kernels of one launch, and a driver that replays them: these a
# CPU doesn't have.
#
# **Bytes.** What fusing saves on a GPU we count. Dots are the meter, lines the closed forms, for a layer of the bundled model,
# numbers of 2 bytes; on the right, an H100's predicted time for Llama 3 8B's layer, launches (3.25 µs each) beside traffic.

# %% tags=["hide-input"]
from minillm.fusion.metered_layer import run_layer

lengths = [1, 2, 4, 8, 16, 32, 64]
fig, (byte_ax, time_ax) = plots.figure(height=3.6, ncols=2)
many = [2**i for i in range(13)]
for version, color in (("eager", plots.ORANGE), ("fused", plots.BLUE)):
    predictions = [layer_cost(model.config, n, version, bytes_per_number=2).hbm_bytes for n in lengths]
    counts = [run_layer(model.config, n, version, stored_as=torch.bfloat16, generator=generator).total for n in lengths]
    assert [c.hbm_bytes for c in counts] == predictions
    byte_ax.plot(lengths, [b / 2**10 for b in predictions], color=color, linewidth=1.6)
    byte_ax.plot(lengths, [c.hbm_bytes / 2**10 for c in counts], "o", color=color, label=f"{version}, {counts[0].launches} launches")
    costs = [layer_cost(llama, n, version, bytes_per_number=2) for n in many]
    time_ax.plot(many, [c.hbm_bytes / BANDWIDTH * 1e6 for c in costs], color=color, linewidth=1.8)
    time_ax.axhline(costs[0].launches * LAUNCH_US, color=color, linestyle="--", linewidth=1.4)
    time_ax.text(1.1, costs[0].launches * LAUNCH_US * 1.12, f"{costs[0].launches} launches", color=color, va="bottom")
    time_ax.text(5200, costs[-1].hbm_bytes / BANDWIDTH * 1e6 * 0.9, version, color=color, va="center")
for ax in (byte_ax, time_ax):
    ax.set(xscale="log", yscale="log", xlabel="tokens")
    ax.minorticks_off()
    ax.yaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_major_formatter("{x:g}")
byte_ax.set_xticks(lengths)
byte_ax.set(ylabel="KiB from and to HBM")
byte_ax.legend(loc="lower right", fontsize=9.5)
time_ax.set_xticks([1, 16, 256, 4096])
time_ax.set(ylabel="µs a layer, predicted", xlim=(0.9, 20000), ylim=(0.04, 2000))
plots.show(fig, alt="Left: bytes of a layer between its products, eager and fused, counted and predicted. Right: predicted time of traffic and of launches against the number of tokens for a layer of Llama 3 8B; launches dominate below a few hundred tokens.")

# %% [markdown]
# Where the solid line lies below its dashed one, launches decide; beyond, bytes do. Decoding lives on the left and gains from
# fewer and cheaper launches, prefill on the right and gains from fewer bytes. Fusion helps at both ends, a CUDA graph at one.

# %% [markdown]
# ## In production
#
# * **vLLM** compiles models with `torch.compile` and [fusion passes of its own](https://docs.vllm.ai/en/stable/design/fusions/):
#   all-reduce with RMSNorm, quantisation behind a norm or an attention. CUDA graphs come *piecewise*, with attention between the
#   pieces, or full; `cudagraph_capture_sizes` lists the sizes that batches are padded to, and `--enforce-eager` turns it all off.
# * **SGLang** records decode steps per batch size (`--cuda-graph-max-bs`, `--disable-cuda-graph`) and prefill
#   [piecewise](https://docs.sglang.io/docs/advanced_features/piecewise_cuda_graph.md).
# * **TensorRT-LLM**'s PyTorch path uses [`torch.compile` and piecewise CUDA
#   graphs](https://nvidia.github.io/TensorRT-LLM/features/torch_compile_and_piecewise_cuda_graph.html) as well.
# * **FlashInfer** offers the kernels alone, `fused_add_rmsnorm` among them. **Liger Kernel** offers those of training: RMSNorm,
#   RoPE, SwiGLU, and a cross-entropy fused with lm_head, in blocks of *tokens* where our exercise takes blocks of words.
# * **llama.cpp** has no Python to trace: its graph is data, and backends look ahead for chains such as
#   [adds, norm and multiply](https://github.com/ggml-org/llama.cpp/pull/15631). It uses CUDA graphs, too.

# %% [markdown]
# ## Exercises
#
# In [`exercises/ch07_fusion.py`](../exercises/ch07_fusion.py); `python3 tasks.py grade ch07` grades them and names what went
# wrong.
#
# | task | points | prepared by |
# |---|---|---|
# | `fusion_bytes`: predict launches and bytes of a chain | 4 | Napkin; Keep the tile |
# | `add_rms_norm_on_meter`: residual and norm in one launch | 4 | Keep the tile; chapter 06 |
# | `loss_by_blocks`: a loss and its gradient without logits | 6 | The largest tensor of training |
# | `match_chain`: find a pattern, and know when not to | 6 | A pattern and its traps |
# | `swap_swiglu`: rewrite a graph of torch's | 5 | Who finds what to fuse?; A pattern and its traps |
# | `replayed`: a bug hunt in a recorded decode loop | 4 | Launches without Python |

# %% [markdown]
# ## Check yourself
#
# <details><summary>SwiGLU over 2,048 tokens and 14,336 columns, 2 bytes a number: how many MiB move, eager and fused, and how long does each take at 3.35 TB/s?</summary>
#
# One matrix is 2,048 · 14,336 · 2 = 56 MiB. Eager: silu reads 1 and writes 1, the product reads 2 and writes 1, so 5 · 56 = 280
# MiB, 88 µs. Fused: 2 read, 1 written, 168 MiB, 53 µs.
# </details>
#
# <details><summary>Why not fuse RMSNorm into the matrix product behind it?</summary>
#
# The factor of a row needs the whole row, a tile of the product a piece of it at a time. (There is a trick: the factor commutes
# with the product, so it can be applied in the epilogue, and the weight can be multiplied into the matrix beforehand.)
# </details>
#
# <details><summary>A step makes 228 launches of 3.25 µs and 700 µs of work on the GPU. What does a CUDA graph gain? And with 70 µs of work?</summary>
#
# The host needs 741 µs, the GPU 700, side by side: at most 41 µs, 6 %. With 70 µs of work the GPU waits most of the time. A
# graph's 228 kernels still take 0.88 µs each, about 200 µs: 3.7 times less.
# </details>
#
# <details><summary>A recorded step keeps x + 1e-6 with the eps of the time. Does it matter that eps is a Python number?</summary>
#
# No: it never changes. Frozen is right for constants, and wrong for lengths, positions, random seeds and learning rates.
# </details>

# %% [markdown]
# ## Sources
#
# * Ansel et al. 2024, [*PyTorch 2*](../book/bibliography.md#ansel2024): TorchDynamo, its guards and graph breaks, and Inductor.
# * Reed et al. 2021, [*torch.fx*](../book/bibliography.md#reed2021): the graph that is rewritten here.
# * Li et al. 2020, [*The Deep Learning Compiler: A Comprehensive Survey*](../book/bibliography.md#li2020): what graph compilers
#   do besides.
# * Zhang, Sennrich 2019, [*RMSNorm*](../book/bibliography.md#zhang2019), equation 4.
# * Milakov, Gimelshein 2018, [*Online normalizer calculation for softmax*](../book/bibliography.md#milakov2018): algorithm 3.
# * Hsu et al. 2024, [*Liger Kernel*](../book/bibliography.md#hsu2024): fused kernels for training.
# * PyTorch's notes on [CUDA semantics](https://docs.pytorch.org/docs/stable/notes/cuda.html), "CUDA Graphs"; NVIDIA's [best
#   practice for PyTorch](https://docs.nvidia.com/dl-cuda-graph/latest), with a checklist of what a capture forbids.
#
# Next: [chapter 08](08_kv_cache.ipynb), where a token stops reading the whole story again.
