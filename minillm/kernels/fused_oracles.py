"""What the fused kernels compute, in torch's own operators: their oracles, and what runs where there is no GPU.

Same names, arguments and results as `minillm.kernels.*`; any device, any floating-point dtype, differentiable by
autograd. Written for the eye, one line a step: each step is a launch that reads and writes memory, which is what the
kernels save. Imports without Triton.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

IGNORED = -100  # torch's own default for a target that doesn't count


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last axis: `minillm.model.RMSNorm`.

    x (..., size), weight (size,). Statistics in float32 at least; what is normed is rounded to the dtype of x, and
    then multiplied. Zhang and Sennrich 2019 (arXiv:1910.07467).
    """
    wide = x.to(wide_dtype(x))
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(`rms_norm` of the sum, the sum): x and residual (..., size). The sum is rounded before it is normed."""
    new_residual = x + residual
    return rms_norm(new_residual, weight, eps), new_residual


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q and k (..., heads, head_dim), each with heads of its own number, turned: `minillm.model.rope.rotate` of both.

    cos, sin (..., 1, head_dim), broadcastable to q and k. Dimensions i and i + head_dim / 2 are a pair. Su et al. 2021
    (arXiv:2104.09864), eq. 34, in the layout of halves.
    """
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, elementwise; silu(g) = g / (1 + exp(−g)). Shazeer 2020 (arXiv:2002.05202), eq. 6."""
    return torch.nn.functional.silu(gate) * up


def swiglu_halves(gate_up: Tensor) -> Tensor:
    """`swiglu` of the halves of a matrix: gate_up (..., 2 · size), gate first -> (..., size)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return swiglu(gate, up)


def softmax(x: Tensor) -> Tensor:
    """exp(x) / sum(exp(x)) over the last axis. A row of −inf alone gives 0, where torch gives NaN."""
    wide = x.to(wide_dtype(x))
    exps = (wide - _finite_top(wide)).exp()
    total = exps.sum(dim=-1, keepdim=True)
    return (exps / total.masked_fill(total == 0.0, 1.0)).to(x.dtype)


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore_index: int = IGNORED) -> tuple[Tensor, Tensor]:
    """(loss, lse) of each row, float32 at least: −log softmax(logits)[target], and log(sum(exp(logits))).

    logits (..., vocab_size), targets (...) integers. The loss is 0 where the target is `ignore_index`, whatever the
    logits; infinite, without a gradient, where all logits are −inf; NaN where the target is no number of a logit.
    """
    wide = logits.to(wide_dtype(logits))
    top = _finite_top(wide)
    total = (wide - top).exp().sum(dim=-1)
    is_empty = total == 0.0
    lse = (top.squeeze(-1) + total.masked_fill(is_empty, 1.0).log()).masked_fill(is_empty, -math.inf)

    targets = targets.long()
    exists = (targets >= 0) & (targets < logits.shape[-1])
    picked = wide.gather(-1, targets.masked_fill(~exists, 0).unsqueeze(-1)).squeeze(-1)
    loss = (lse - picked.masked_fill(~exists, math.nan)).masked_fill(is_empty & exists, math.inf)
    return loss.masked_fill(targets == ignore_index, 0.0), lse


def wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype of sums over numbers of x: float32 for 16 bits, its own otherwise."""
    return torch.promote_types(x.dtype, torch.float32)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def _finite_top(x: Tensor) -> Tensor:
    """The largest of each row, kept as an axis of 1; 0 for rows of −inf alone, since −inf − (−inf) is NaN."""
    if x.shape[-1] == 0:
        return x.new_zeros((*x.shape[:-1], 1))
    top = x.detach().amax(dim=-1, keepdim=True)
    return top.masked_fill(top == -math.inf, 0.0)
