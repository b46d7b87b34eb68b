"""Attention problems drawn at random, and attention as its definition: plain loops over Python floats."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor


def random_tensor(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@dataclass(frozen=True)
class Problem:
    """q, k, v and the keyword arguments (causal, window, softmax_scale, mask) of an attention function."""

    q: Tensor
    k: Tensor
    v: Tensor
    options: dict[str, Any] = field(default_factory=dict)


def make_problem(
    *,
    batch: int = 2,
    q_len: int = 5,
    k_len: int = 5,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    k_head_dim: int = 6,
    v_head_dim: int = 6,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> Problem:
    return Problem(
        q=random_tensor(seed, batch, q_len, num_heads, k_head_dim, dtype=dtype),
        k=random_tensor(seed + 1, batch, k_len, num_kv_heads, k_head_dim, dtype=dtype),
        v=random_tensor(seed + 2, batch, k_len, num_kv_heads, v_head_dim, dtype=dtype),
        options=options,
    )


@st.composite
def problems(draw: st.DrawFn, *, longest_query: int = 7) -> Problem:
    """Any shapes (q longer or shorter than k), windows, scales, masks of every broadcastable shape."""
    batch, num_kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    q_len, k_len = draw(st.integers(1, longest_query)), draw(st.integers(1, 9))
    num_heads = num_kv_heads * group
    causal = draw(st.booleans())
    seed = draw(st.integers(0, 2**16))
    problem = make_problem(
        batch=batch,
        q_len=q_len,
        k_len=k_len,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        k_head_dim=draw(st.integers(1, 5)),
        v_head_dim=draw(st.integers(1, 5)),
        seed=seed,
        causal=causal,
        window=draw(st.none() | st.integers(1, 12)) if causal else None,
        softmax_scale=draw(st.none() | st.sampled_from([0.0, 0.3, 2.0, -1.0])),
    )
    full = (batch, num_heads, q_len, k_len)
    num_axes = draw(st.none() | st.integers(0, 4))
    if num_axes is not None:
        shape = [draw(st.sampled_from([1, size])) for size in full[4 - num_axes :]]
        share_visible = draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
        generator = torch.Generator().manual_seed(seed)
        problem.options["mask"] = torch.rand(shape, generator=generator) < share_visible
    return problem


def by_definition(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    softmax_scale: float | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """out and lse in float64, one scalar at a time."""
    batch, q_len, num_heads, k_head_dim = q.shape
    k_len, num_kv_heads, v_head_dim = v.shape[1:]
    scale = 1 / math.sqrt(k_head_dim) if softmax_scale is None else softmax_scale
    allowed = torch.ones(batch, num_heads, q_len, k_len, dtype=torch.bool) if mask is None else mask
    allowed = allowed.expand(batch, num_heads, q_len, k_len).tolist()
    qs, ks, vs = q.double().tolist(), k.double().tolist(), v.double().tolist()
    out = torch.zeros(batch, q_len, num_heads, v_head_dim, dtype=torch.float64)
    lse = torch.full((batch, q_len, num_heads), -math.inf, dtype=torch.float64)
    for b in range(batch):
        for h in range(num_heads):
            kv_head = h * num_kv_heads // num_heads
            for i in range(q_len):
                last = i + k_len - q_len  # the key at the query's own place
                scores = {}
                for j in range(k_len):
                    seen = not causal or (j <= last and (window is None or last - j < window))
                    if seen and allowed[b][h][i][j]:
                        dot = math.fsum(x * y for x, y in zip(qs[b][i][h], ks[b][j][kv_head], strict=True))
                        scores[j] = dot * scale
                if not scores:
                    continue
                top = max(scores.values())
                total = math.fsum(math.exp(score - top) for score in scores.values())
                lse[b, i, h] = top + math.log(total)
                for c in range(v_head_dim):
                    out[b, i, h, c] = math.fsum(
                        math.exp(score - top) / total * vs[b][j][kv_head][c] for j, score in scores.items()
                    )
    return out, lse
