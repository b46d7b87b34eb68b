"""Attention over two sets of keys from the attention over each: what splits, prefixes and rings are put together with.

A result (out, lse) stands for a set of keys: exp(lse) is the sum of its weights, exp(lse) · out the weighted sum of its
values. Both sums simply add up. So results merge in any order and any grouping, and a set without keys (out = 0,
lse = −inf) changes nothing: (out, lse) with this merge is a commutative monoid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def merge_states(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the keys of a and b together, from the results over each.

    out_a, out_b   (..., v_head_dim), of one shape and dtype
    lse_a, lse_b   (...), natural log; −inf where there was no key, and out is 0

    Returns (out, lse) as any attention does. Differentiable in all four. Raises ValueError for shapes that don't fit.
    """
    if out_a.shape != out_b.shape or lse_a.shape != lse_b.shape or lse_a.shape != out_a.shape[:-1]:
        raise ValueError(
            "expected two results out (..., v_head_dim), lse (...) of the same shape, got "
            f"{tuple(out_a.shape)}, {tuple(lse_a.shape)} and {tuple(out_b.shape)}, {tuple(lse_b.shape)}"
        )
    return merge_many(torch.stack([out_a, out_b]), torch.stack([lse_a, lse_b]))


def merge_many(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """`merge_states` of any number of parts, at least one: outs (parts, ..., v_head_dim), lses (parts, ...)."""
    if outs.shape[0] == 0 or lses.shape != outs.shape[:-1]:
        raise ValueError(
            "expected outs (parts, ..., v_head_dim) and lses (parts, ...) with at least one part, got "
            f"{tuple(outs.shape)} and {tuple(lses.shape)}"
        )
    wide = torch.promote_types(outs.dtype, lses.dtype)
    top = lses.detach().amax(dim=0)  # any number would do in exact arithmetic, so no gradient flows through it
    is_empty = top == -math.inf
    weights = torch.exp(lses - top.masked_fill(is_empty, 0.0))  # (parts, ...)
    total = weights.sum(dim=0).masked_fill(is_empty, 1.0)
    out = (weights.unsqueeze(-1) * outs.to(wide)).sum(dim=0) / total.unsqueeze(-1)
    lse = (top + torch.log(total)).masked_fill(is_empty, -math.inf)
    return out.to(outs.dtype), lse
