"""Every attention of the package under one call, and the tolerances they are held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minillm.attention import (
    flash_attention,
    flash_attention_v1,
    flash_attention_v2,
    flash_decoding,
    flash_decoding_unified,
    naive_attention,
)
from tests.attention.problems import Problem

# max |out − oracle| for scores of ordinary size
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
EVERYTHING = frozenset({"causal", "window", "mask", "softmax_scale"})


@dataclass(frozen=True)
class Implementation:
    call: Callable[..., Any]
    supports: frozenset[str] = EVERYTHING
    extra: tuple[tuple[str, Any], ...] = ()
    has_gradients: bool = True

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        return self.call(q, k, v, **options, **dict(self.extra))[:2]

    def fit(self, problem: Problem) -> Problem:
        """The problem without the options that this attention doesn't have."""
        options = {name: value for name, value in problem.options.items() if name in self.supports}
        if "causal" not in options:
            options.pop("window", None)
        return Problem(problem.q, problem.k, problem.v, options)


def blocks(block_q: int, block_k: int) -> tuple[tuple[str, Any], ...]:
    return ("block_q", block_q), ("block_k", block_k)


def splits(num_splits: int | None) -> tuple[tuple[str, Any], ...]:
    return (("num_splits", num_splits),)


DECODING = frozenset({"softmax_scale"})

IMPLEMENTATIONS = {
    "v1": Implementation(flash_attention_v1),
    "v1 1×1": Implementation(flash_attention_v1, extra=blocks(1, 1)),
    "v1 2×3": Implementation(flash_attention_v1, extra=blocks(2, 3)),
    "v1 4×1": Implementation(flash_attention_v1, extra=blocks(4, 1)),
    "v2": Implementation(flash_attention_v2),
    "v2 1×1": Implementation(flash_attention_v2, extra=blocks(1, 1)),
    "v2 3×2": Implementation(flash_attention_v2, extra=blocks(3, 2)),
    "v2 1×4": Implementation(flash_attention_v2, extra=blocks(1, 4)),
    "flash": Implementation(flash_attention, EVERYTHING - {"mask"}),
    "decoding": Implementation(flash_decoding, DECODING),
    "decoding, 1 split": Implementation(flash_decoding, DECODING, splits(1)),
    "decoding, 3 splits": Implementation(flash_decoding, DECODING, splits(3)),
    "decoding, a split a key": Implementation(flash_decoding, DECODING, splits(1000)),
    "unified": Implementation(flash_decoding_unified, DECODING, splits(3), has_gradients=False),
    "unified, far off": Implementation(
        flash_decoding_unified, DECODING, (*splits(2), ("phi", 1000.0)), has_gradients=False
    ),
    "unified, half off": Implementation(
        flash_decoding_unified, DECODING, (*splits(2), ("band", (0.5, 1.0))), has_gradients=False
    ),
}
DIFFERENTIABLE = [name for name, implementation in IMPLEMENTATIONS.items() if implementation.has_gradients]


def assert_equals_oracle(name: str, problem: Problem, tolerance: float | None = None) -> None:
    implementation = IMPLEMENTATIONS[name]
    problem = implementation.fit(problem)
    out, lse = implementation(problem.q, problem.k, problem.v, **problem.options)
    expected_out, expected_lse = naive_attention(problem.q, problem.k, problem.v, **problem.options)
    assert out.dtype == expected_out.dtype and lse.dtype == expected_lse.dtype
    limit = TOLERANCE[problem.q.dtype] if tolerance is None else tolerance
    torch.testing.assert_close(out, expected_out, atol=limit, rtol=0)
    torch.testing.assert_close(lse, expected_lse, atol=limit, rtol=0)
