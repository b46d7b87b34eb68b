"""Attention that breaks kernels, its oracle, and the error that is allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minillm.attention.naive import naive_attention, visible_keys
from minillm.kernels.gates import Problem
from minillm.kernels.gemm_problems import ROUNDING, SMALLEST

Attention = Callable[..., Any]
# Whose gradients take no other path than those of problems beside them.
FORWARD_ONLY = {
    "square",
    "window past the start",
    "head dims of MLA",
    "a scale",
    "one key repeated",
    "queries at the end",
}


def exact_attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The oracle: float64 on the CPU."""
    return naive_attention(q.cpu(), k.cpu(), v.cpu(), **options)


def exact_decoding(
    q: Tensor, k: Tensor, v: Tensor, *, seq_lens: Any = None, softmax_scale: float | None = None, **_: Any
) -> tuple[Tensor, Tensor]:
    """The oracle on each sequence alone, cut to its length."""
    results = [exact_attention(*parts, softmax_scale=softmax_scale) for parts in sequences(q, k, v, seq_lens)]
    return torch.cat([out for out, _ in results]), torch.cat([lse for _, lse in results])


def sequences(q: Tensor, k: Tensor, v: Tensor, seq_lens: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(q, k, v) of each sequence, batch 1, valid keys only."""
    lengths = [k.shape[1]] * k.shape[0] if seq_lens is None else [int(seq_len) for seq_len in seq_lens]
    return [(q[[b]], k[[b], :seq_len], v[[b], :seq_len]) for b, seq_len in enumerate(lengths)]


def gradients_of(attention: Attention) -> Callable[..., Tensor]:
    """(q, k, v, d_out, d_lse, **options) -> dq, dk and dv, all in one row."""

    def gradients(q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, d_lse: Tensor, **options: Any) -> Tensor:
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        with torch.enable_grad():
            out, lse = attention(*inputs, **options)
        d_lse = d_lse.to(lse).masked_fill(lse == float("-inf"), 0.0)
        grads = torch.autograd.grad([out, lse], inputs, [d_out.to(out), d_lse])
        return torch.cat([grad.flatten() for grad in grads])

    return gradients


# ---- allowed errors


def score_error(q: Tensor, k: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    """Of the worst scaled score of each row, (batch, q_len, num_heads): rounded sums of k_head_dim products.

    The sums of float32 are made of additions that round either way; tensor cores cut off, always down.
    """
    dim = q.shape[-1]
    steps = dim**0.5 + 8 if dtype == torch.float32 else dim + 8
    if k.shape[1] == 0:
        return q.new_zeros(q.shape[:-1])
    k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    largest = torch.einsum("bqhd,bkhd->bqhk", q.abs(), k.abs()).amax(dim=-1)
    return steps * 2.0**-23 * abs(scale) * largest


def attention_bound(problem: Problem, exact: Tensor) -> Tensor:
    """An error e of the scores changes the weights by 2 e at most, and lse by e. Weights are rounded to the dtype of
    the inputs, small ones to a multiple of its smallest number; out is rounded once.
    """
    dtype = problem.args[0].dtype
    q, k, v = (arg.double().cpu() for arg in problem.args[:3])
    options = {name: problem.options[name] for name in ("causal", "window", "softmax_scale") if name in problem.options}
    scale = options.get("softmax_scale", q.shape[-1] ** -0.5)
    of_scores = score_error(q, k, dtype, scale) + k.shape[1] * 2.0**-24
    if exact.dim() == 3:  # lse
        return of_scores + 2.0**-22 * (1.0 + exact.nan_to_num(neginf=0.0).abs())
    spread, _ = exact_attention(q, k, v.abs(), **options)
    lost = k.shape[1] * SMALLEST[dtype] * (v.abs().amax() if v.numel() else 0.0)
    share = torch.expm1(2 * of_scores) + 2 * ROUNDING[dtype]
    return share.unsqueeze(-1) * spread + ROUNDING[dtype] * exact.abs() + lost + SMALLEST[dtype]


def decoding_bound(problem: Problem, exact: Tensor) -> Tensor:
    """`attention_bound` of each sequence."""
    options = {name: value for name, value in problem.options.items() if name == "softmax_scale"}
    q, k, v = problem.args
    parts = sequences(q, k, v, problem.options.get("seq_lens"))
    bounds = [attention_bound(Problem("", part, options), exact[[b]]) for b, part in enumerate(parts)]
    return torch.cat(bounds)


def gradient_bound(problem: Problem, exact: Tensor) -> Tensor:
    """Each gradient is a product; its factors are off by the error of the scores and some roundings."""
    dtype = problem.args[0].dtype
    q, k, v, d_out, d_lse = (arg.double().cpu() for arg in problem.args)
    scale = problem.options.get("softmax_scale", q.shape[-1] ** -0.5)
    causal, window = problem.options.get("causal", True), problem.options.get("window")
    out, lse = exact_attention(q, k, v, causal=causal, window=window, softmax_scale=scale)
    group = q.shape[2] // k.shape[2]
    k_all, v_all = (x.repeat_interleave(group, dim=2) for x in (k, v))
    visible = visible_keys(q.shape[1], k.shape[1], causal=causal, window=window)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k_all) * scale - lse.nan_to_num(neginf=0.0).transpose(1, 2)[..., None]
    weights = scores.exp() * visible
    # |dS| before anything cancels, (batch, heads, q_len, k_len).
    of_rows = (d_out * out).abs().sum(dim=-1) + d_lse.abs()
    d_scores = torch.einsum("bqhd,bkhd->bhqk", d_out.abs(), v_all.abs()) + of_rows.transpose(1, 2)[..., None]
    d_scores = weights * d_scores * abs(scale)
    share = (2 * score_error(q, k, dtype, scale) + 4 * ROUNDING[dtype] + 2.0**-20).transpose(1, 2)[..., None]
    dq = torch.einsum("bhqk,bkhd->bqhd", share * d_scores, k_all.abs())
    dk = torch.einsum("bhqk,bqhd->bkhd", share * d_scores, q.abs())
    dv = torch.einsum("bhqk,bqhd->bkhd", share * weights, d_out.abs())
    dk, dv = (x.unflatten(2, (k.shape[2], group)).sum(dim=3) for x in (dk, dv))
    # Numbers under the smallest of the dtype are lost from P and dS, whatever they are multiplied with.
    factor = max((float(x.abs().max()) for x in (q, k, d_out) if x.numel()), default=0.0)
    lost = SMALLEST[dtype] * (1 + max(q.shape[1] * group, k.shape[1]) * factor)
    return torch.cat([x.flatten() for x in (dq, dk, dv)]) + ROUNDING[dtype] * exact.abs() + lost


# ---- problems


class Inputs:
    """Random tensors of one dtype on one device, the same in every run."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device, self.generator = dtype, device, torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.dtype).to(self.device)

    def attention(
        self, q_len: int, k_len: int, heads: tuple[int, int], dims: tuple[int, int], batch: int = 1
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v with (query heads, KV heads) and (k_head_dim, v_head_dim)."""
        q = self.normal(batch, q_len, heads[0], dims[0])
        k, v = (self.normal(batch, k_len, heads[1], dim) for dim in dims)
        return q, k, v


def attention_problems(dtype: torch.dtype, device: torch.device, large: bool) -> list[Problem]:
    """Tails, windows, groups, head dims, lengths that differ, rows without keys, huge scores, any strides."""
    make = Inputs(dtype, device)
    shapes: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("square", (64, 64, (2, 2), (64, 64), 2), {}),
        ("ragged, groups of 4", (70, 70, (4, 1), (64, 64)), {}),
        ("groups of 8", (33, 33, (8, 1), (32, 32)), {}),
        ("not causal", (40, 75, (2, 2), (64, 64)), {"causal": False}),
        ("queries at the end", (20, 90, (2, 1), (32, 32)), {}),
        ("rows without keys", (75, 40, (2, 2), (32, 32)), {}),
        ("one token", (1, 1, (2, 1), (64, 64)), {}),
        ("one query", (1, 70, (4, 2), (64, 64)), {}),
        ("no keys", (5, 0, (2, 1), (32, 32)), {}),
        ("no queries", (0, 5, (2, 1), (32, 32)), {}),
        ("window of 1", (70, 70, (1, 1), (32, 32)), {"window": 1}),
        ("window of 7", (70, 90, (2, 1), (32, 32)), {"window": 7}),
        ("window of 40", (130, 130, (1, 1), (32, 32)), {"window": 40}),
        ("window past the start", (40, 70, (1, 1), (32, 32)), {"window": 1000}),
        ("window, rows without keys", (90, 40, (1, 1), (32, 32)), {"window": 33}),
        ("head_dim 96", (40, 40, (2, 1), (96, 96)), {}),
        ("head_dim 128", (40, 40, (2, 1), (128, 128)), {}),
        ("head dims of MLA", (34, 34, (2, 2), (192, 128)), {}),
        ("head dims 40 and 8", (34, 34, (1, 1), (40, 8)), {}),
        ("a scale", (34, 34, (1, 1), (32, 32)), {"softmax_scale": 0.5}),
        ("a negative scale", (34, 50, (1, 1), (32, 32)), {"softmax_scale": -0.25}),
        ("a scale of 0", (34, 50, (1, 1), (32, 32)), {"softmax_scale": 0.0}),
    ]
    if large:
        shapes += [
            ("long", (1000, 1000, (4, 2), (64, 64), 2), {}),
            ("long, not causal", (513, 1025, (4, 4), (128, 128)), {"causal": False}),
            ("long window", (1100, 1300, (4, 1), (128, 128)), {"window": 300}),
            ("head_dim 256", (300, 300, (2, 1), (256, 256)), {}),
        ]
    problems = [Problem(name, make.attention(*sizes), options) for name, sizes, options in shapes]
    q, k, v = make.attention(50, 70, (2, 2), (64, 64))
    problems.append(Problem("scores of ±1e4", (100 * q, 100 * k, v)))
    q = make.normal(1, 40, 2, 32)
    same = make.normal(1, 1, 1, 32).expand(1, 50, 1, 32)
    problems.append(Problem("one key repeated", (q, same, make.normal(1, 50, 1, 32))))
    # (batch, heads, seq_len, dim), dimensions first, every second.
    q, k, v = make.normal(2, 2, 45, 32), make.normal(2, 32, 45, 1), make.normal(2, 45, 2, 64)
    permuted = (q.transpose(1, 2), k.transpose(1, 2).transpose(2, 3), v[:, :, ::2, ::2])
    return [*problems, Problem("any strides", permuted)]


def gradient_problems(dtype: torch.dtype, device: torch.device, large: bool) -> list[Problem]:
    """`attention_problems` with gradients of any strides that arrive at out and lse; fewer where they take long."""
    make = Inputs(dtype, device)
    problems = []
    for problem in attention_problems(dtype, device, large):
        if not large and problem.name in FORWARD_ONLY:
            continue
        q, _, v = problem.args
        d_out = make.normal(q.shape[0], q.shape[2], q.shape[1], v.shape[-1]).transpose(1, 2)
        d_lse = make.normal(*q.shape[:3])
        problems.append(Problem(problem.name, (*problem.args, d_out, d_lse), problem.options))
    return problems


def decoding_problems(dtype: torch.dtype, device: torch.device, large: bool) -> list[Problem]:
    """Ragged caches with NaN behind their ends, splits without keys, several new tokens, many heads, absorbed MLA."""
    make = Inputs(dtype, device)

    def cache(
        lengths: list[int], q_len: int, k_len: int, heads: tuple[int, int], dims: tuple[int, int]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        q, k, v = make.attention(q_len, k_len, heads, dims, batch=len(lengths))
        for b, seq_len in enumerate(lengths):
            k[b, seq_len:], v[b, seq_len:] = float("nan"), float("nan")
        return (q, k, v), torch.tensor(lengths, dtype=torch.int32, device=device)

    ragged, seq_lens = cache([90, 1, 0, 37], 1, 90, (4, 2), (32, 32))
    several, several_lens = cache([64, 2], 3, 64, (8, 2), (64, 64))
    problems = [
        Problem("one query", make.attention(1, 70, (4, 1), (64, 64)), {"num_splits": 3}),
        Problem("splits chosen", make.attention(1, 300, (1, 1), (32, 32))),
        Problem("one key", make.attention(1, 1, (2, 2), (32, 32)), {"num_splits": 4}),
        Problem("no keys", make.attention(2, 0, (2, 1), (32, 32))),
        Problem("ragged", ragged, {"seq_lens": seq_lens, "num_splits": 3}),
        Problem("ragged, more splits than keys", ragged, {"seq_lens": seq_lens.long(), "num_splits": 200}),
        Problem("several tokens, ragged", several, {"seq_lens": several_lens, "num_splits": 2}),
        Problem("more queries than keys", make.attention(5, 3, (2, 1), (32, 32)), {"num_splits": 2}),
        Problem("rows of two tiles", make.attention(1, 40, (20, 1), (32, 32)), {"num_splits": 2}),
        Problem("groups of 1, a scale", make.attention(1, 40, (2, 2), (96, 96)), {"softmax_scale": -0.5}),
        Problem("absorbed MLA", make.attention(1, 40, (4, 1), (576, 512)), {"num_splits": 2}),
    ]
    q, k, v = make.attention(2, 70, (4, 2), (64, 64))
    problems.append(Problem("scores of ±1e4", (100 * q, 100 * k, v), {"num_splits": 3}))
    both = make.normal(1, 2, 50, 64)
    problems.append(Problem("V a slice of K", (q[..., :64], both.transpose(1, 2), both[..., ::2].transpose(1, 2))))
    if large:
        long, long_lens = cache([5000, 1, 4097], 1, 5000, (32, 8), (128, 128))
        problems += [
            Problem("long", long, {"seq_lens": long_lens}),
            Problem("128 heads of absorbed MLA", make.attention(2, 700, (128, 1), (576, 512))),
        ]
    return problems
