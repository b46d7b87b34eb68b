"""The error that each fused kernel is allowed: what float32 arithmetic and one or two roundings can do, not more.

`ROUNDING` is one rounding of the tensors' dtype, F one of float32. Sums of n numbers in float32 are taken as trees, so
that n enters by its square root, generously. Every bound is a function of (problem, exact result) for `gates`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.kernels.fused_oracles import IGNORED
from minillm.kernels.gates import Problem
from minillm.kernels.gemm_problems import ROUNDING, SMALLEST

F = 2.0**-24
UNDERFLOW = 2.0**-120  # exponentials below are lost in float32, on a GPU with their last bits earlier
LARGEST_GAP = 200.0  # exp(−200) is 0


def sum_error(n: int) -> float:
    """Of a sum of n numbers of one sign, and of the handful of operations around it."""
    return (16 + n**0.5) * F


def loosest(exact: Tensor, *bounds: Tensor) -> Tensor:
    """Of the bounds shaped like a result, the largest at each place: results of one shape can't be told apart."""
    return torch.stack([bound for bound in bounds if bound.shape == exact.shape]).amax(dim=0)


def norm_bound(problem: Problem, exact: Tensor) -> Tensor:
    """The root mean square, the rounding of what is normed, and the product."""
    x, weight = (arg.double().cpu() for arg in problem.args)
    dtype = problem.args[0].dtype
    lost = SMALLEST[dtype] * (1.0 + weight.abs())
    return (sum_error(x.shape[-1]) + 2 * ROUNDING[dtype]) * exact.abs() + lost


def add_norm_bound(problem: Problem, exact: Tensor) -> Tensor:
    """Of y, and loose for the sum, which is rounded once; that moves y by its own error and that of the mean."""
    weight, dtype = problem.args[2].double().cpu(), problem.args[0].dtype
    lost = SMALLEST[dtype] * (1.0 + weight.abs())
    return (sum_error(exact.shape[-1]) + 4 * ROUNDING[dtype]) * exact.abs() + lost


def norm_gradient_bound(problem: Problem, exact: Tensor) -> Tensor:
    """dx and dresidual, which are one, and dweight: each is a sum, here of absolute values."""
    dtype, eps = problem.args[0].dtype, problem.options["eps"]
    args = [arg.double().cpu() for arg in problem.args]
    has_residual = len(args) == 5
    h, weight, dy = (args[0] + args[1], args[2], args[3]) if has_residual else args
    inv_rms = torch.rsqrt(h.square().mean(dim=-1, keepdim=True) + eps)
    normed = h * inv_rms
    g = (dy * weight).abs()
    spread = inv_rms * (g + normed.abs() * (g * normed.abs()).mean(dim=-1, keepdim=True))
    share = 2 * sum_error(h.shape[-1]) + (4 * ROUNDING[dtype] if has_residual else 0.0)
    of_rows = share * spread + (4 * F * args[4].abs() if has_residual else 0.0)
    rows = dy.shape[:-1].numel()
    of_weight = (share + sum_error(rows)) * (dy * normed).abs().reshape(rows, dy.shape[-1]).sum(dim=0)
    return loosest(exact, of_rows, of_weight) + ROUNDING[dtype] * exact.abs() + SMALLEST[dtype]


def rope_bound(problem: Problem, exact: Tensor) -> Tensor:
    """Turned q or k: a difference of two products each, rounded once."""
    *_, cos, sin = problem.args
    return _turned_bound(problem.args[:2], cos, sin, exact, is_gradient=False)


def rope_gradient_bound(problem: Problem, exact: Tensor) -> Tensor:
    """The same for what arrives at q and k."""
    _, _, cos, sin, d_q, d_k = problem.args
    return _turned_bound((d_q, d_k), cos, sin, exact, is_gradient=True)


def _turned_bound(tensors: tuple[Tensor, ...], cos: Tensor, sin: Tensor, exact: Tensor, *, is_gradient: bool) -> Tensor:
    dtype = tensors[0].dtype
    cos, sin = cos.double().cpu().abs(), sin.double().cpu().abs()
    spreads = []
    for x in (x.double().cpu().abs() for x in tensors):
        across = torch.cat((x * sin).chunk(2, dim=-1)[::-1], dim=-1) if is_gradient else _swapped(x) * sin
        spreads.append(x * cos + across)
    return 4 * F * loosest(exact, *spreads) + ROUNDING[dtype] * exact.abs() + SMALLEST[dtype]


def _swapped(x: Tensor) -> Tensor:
    return torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1)


def swiglu_bound(problem: Problem, exact: Tensor) -> Tensor:
    """exp(−gate) is off by a share that grows with gate; where it overflows the sigmoid is 0."""
    gate, up = _gate_and_up(problem)
    dtype = problem.args[0].dtype
    return (_of_sigmoid(gate) + ROUNDING[dtype]) * exact.abs() + UNDERFLOW * up.abs().nan_to_num() + SMALLEST[dtype]


def swiglu_gradient_bound(problem: Problem, exact: Tensor) -> Tensor:
    """d_gate and d_up, or both as the halves of one matrix."""
    gate, up = _gate_and_up(problem)
    dtype, dy = problem.args[0].dtype, problem.args[-1].double().cpu().abs()
    s = torch.sigmoid(gate)
    of_gate = _of_sigmoid(gate) * dy * up.abs() * s * (1.0 + gate.abs() * (1.0 - s)) + UNDERFLOW * dy * up.abs()
    of_up = _of_sigmoid(gate) * dy * gate.abs() * s + UNDERFLOW * dy
    return (
        loosest(exact, of_gate, of_up, torch.cat((of_gate, of_up), dim=-1))
        + ROUNDING[dtype] * exact.abs()
        + SMALLEST[dtype]
    )


def _gate_and_up(problem: Problem) -> tuple[Tensor, Tensor]:
    """Both, from a problem of `swiglu`, or one of `swiglu_halves` whose gradient is half as wide."""
    first, second = (arg.double().cpu() for arg in problem.args[:2])
    gate, up = (first, second) if first.shape == second.shape else first.chunk(2, dim=-1)
    return gate, up


def _of_sigmoid(gate: Tensor) -> Tensor:
    return (16 + 4 * gate.abs().nan_to_num().clamp(max=LARGEST_GAP)) * F


def softmax_bound(problem: Problem, exact: Tensor) -> Tensor:
    """exp(x − top) is off by a share that grows with the distance from the top."""
    x, dtype = problem.args[0].double().cpu(), problem.args[0].dtype
    return (_of_weights(x) + ROUNDING[dtype]) * exact.abs() + UNDERFLOW + SMALLEST[dtype]


def softmax_gradient_bound(problem: Problem, exact: Tensor) -> Tensor:
    """y (dy − sum(dy · y)) of a y that was rounded to the dtype, small ones to a multiple of its smallest number."""
    x, dy = (arg.double().cpu() for arg in problem.args)
    dtype = problem.args[0].dtype
    y = torch.softmax(x, dim=-1).nan_to_num(0.0)
    spread = dy.abs() + (dy.abs() * y).sum(dim=-1, keepdim=True)
    share = 2 * (_of_weights(x) + ROUNDING[dtype])
    # The sum is off by the share of each of its terms, whatever the distance of the number at hand.
    of_sum = (share * dy.abs() * y).sum(dim=-1, keepdim=True)
    smallest = (SMALLEST[dtype] + UNDERFLOW) * (1.0 + spread + y * dy.abs().sum(dim=-1, keepdim=True))
    return share * y * spread + y * of_sum + smallest + ROUNDING[dtype] * exact.abs()


def _of_weights(x: Tensor) -> Tensor:
    if x.shape[-1] == 0:
        return x
    gap = (x.amax(dim=-1, keepdim=True) - x).nan_to_num(LARGEST_GAP).clamp(max=LARGEST_GAP)
    return sum_error(x.shape[-1]) + 4 * F * gap


def loss_bound(problem: Problem, exact: Tensor) -> Tensor:
    """Of loss and lse, (...), or of d_logits (..., vocab_size) for the gradients that arrive at both."""
    logits, targets, d_loss, d_lse = (arg.cpu() for arg in problem.args)
    dtype, logits = logits.dtype, logits.double()
    finite = logits.nan_to_num(0.0, 0.0, 0.0)
    largest = finite.abs().amax(dim=-1)
    of_lse = sum_error(logits.shape[-1]) + 8 * F * (1.0 + largest)
    if exact.shape == targets.shape:
        return of_lse + 4 * F * exact.abs().nan_to_num(0.0, 0.0, 0.0)
    d_loss = d_loss.double().masked_fill(targets == problem.options.get("ignore_index", IGNORED), 0.0).abs()
    weights = torch.softmax(logits, dim=-1).nan_to_num(0.0)
    lse = torch.logsumexp(logits, dim=-1, keepdim=True)
    gap = (lse - logits).nan_to_num(LARGEST_GAP).clamp(max=LARGEST_GAP)
    arriving = (d_loss + d_lse.double().abs()).unsqueeze(-1)
    share = 2 * of_lse.unsqueeze(-1) + (8 + 4 * gap) * F
    at_target = torch.arange(logits.shape[-1]) == targets.unsqueeze(-1)
    spread = weights * arriving * share + 2 * F * at_target * d_loss.unsqueeze(-1)
    return spread + UNDERFLOW * arriving + ROUNDING[dtype] * exact.abs() + SMALLEST[dtype]
