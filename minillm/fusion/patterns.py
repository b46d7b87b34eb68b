"""What is worth fusing, written as the Python that a model writes.

A pattern is a function. Traced, it is a small graph; its parameters are wildcards, each for what its annotation says:
a `Tensor` for any tensor of the graph, a `float` or an `int` for a number, a `torch.dtype` for a dtype. A wildcard that
is used twice means the same thing twice.

    def swiglu(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up

Where a pattern fits, `operator(*arguments)` takes the place of everything between its parameters and its results. What
the graph alone doesn't say (dtypes, above all) a `check` looks at: it returns a reason to refuse, or None.

`PATTERNS` has the largest first, because each node can be fused only once: were norms to go before the sums in front of
them, the sums would be left over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from minillm.fusion import operators  # noqa: F401 (registers what takes a pattern's place)
from minillm.fusion.operation import operation, tensor_of

Binding = Mapping[str, Any]  # a value, or the node of one, for each parameter of a pattern
Check = Callable[[Binding], str | None]


@dataclass(frozen=True)
class Pattern:
    """A piece of a graph, and the operator that does its work.

    name       what reports call it; several patterns may share one: ways of writing the same thing
    function   the piece; returns one value or a tuple of them, of which the graph may use any
    operator   called with the values of the parameters named in `arguments`; returns as much as `function` does
    check      the last word on a fit: a reason to refuse, or None
    """

    name: str
    function: Callable[..., Any]
    operator: Any
    arguments: tuple[str, ...]
    check: Check

    @cached_property
    def graph(self) -> fx.Graph:
        """The function as a graph."""
        return fx.Tracer().trace(self.function)

    @cached_property
    def outputs(self) -> tuple[fx.Node, ...]:
        """The nodes whose values the function returns."""
        (result,) = next(iter(reversed(self.graph.nodes))).args
        return result if isinstance(result, tuple) else (result,)

    @cached_property
    def wildcards(self) -> dict[str, type]:
        """What each parameter stands for."""
        hints = get_type_hints(self.function)
        return {str(node.target): hints[str(node.target)] for node in self.graph.nodes if node.op == "placeholder"}

    @property
    def num_operations(self) -> int:
        return sum(operation(node) is not None for node in self.graph.nodes)


# ---- RMSNorm, with the sum in front of it


def rms_norm(x: Tensor, weight: Tensor, eps: float, wide: torch.dtype, own: torch.dtype) -> Tensor:
    """As in `minillm.model.norm`, and in Hugging Face's Llama."""
    high = x.to(wide)
    normed = high * torch.rsqrt(high.square().mean(dim=-1, keepdim=True) + eps)
    return weight * normed.to(own)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, wide: torch.dtype, own: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The sum is a result as well: the residual stream that goes on."""
    total = x + residual
    return rms_norm(total, weight, eps, wide, own), total


def rms_norm_without_casts(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * (x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps))


def add_rms_norm_without_casts(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x + residual
    return rms_norm_without_casts(total, weight, eps), total


def check_norm(found: Binding) -> str | None:
    """One dtype all through, statistics in float32 or wider, a weight for the last axis."""
    x, weight = tensor_of(found["x"]), tensor_of(found["weight"])
    if weight.dim() != 1 or weight.shape[0] != x.shape[-1]:
        return f"the weight has shape {tuple(weight.shape)}, not one number for each of the last axis"
    if x.dtype != weight.dtype or not x.is_floating_point():
        return f"x is {x.dtype} and the weight {weight.dtype}"
    wide = torch.promote_types(x.dtype, torch.float32)
    if found.get("wide", x.dtype) != wide:
        return f"statistics of {x.dtype} in {found.get('wide', x.dtype)}, not {wide}"
    if found.get("own", x.dtype) != x.dtype:
        return f"the result is cast to {found['own']}, x is {x.dtype}"
    residual = tensor_of(found["residual"]) if "residual" in found else x
    return alike(x, residual)


# ---- SwiGLU


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def check_swiglu(found: Binding) -> str | None:
    return alike(tensor_of(found["gate"]), tensor_of(found["up"]))


# ---- RoPE of q and k together


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As in `minillm.model.rope`."""
    halves = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-halves[1], halves[0]), dim=-1) * sin


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return rotate(q, cos, sin), rotate(k, cos, sin)


def rope_with_slices(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """As in Hugging Face's Llama."""

    def turned(x: Tensor) -> Tensor:
        return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin

    return turned(q), turned(k)


def check_rope(found: Binding) -> str | None:
    """Heads in the axis before the last, which cos and sin broadcast over; halves that are halves."""
    q, k, cos, sin = (tensor_of(found[name]) for name in ("q", "k", "cos", "sin"))
    head_dim = q.shape[-1]
    if head_dim % 2 or found.get("half", head_dim // 2) != head_dim // 2:
        return f"heads of {head_dim} aren't cut in the middle"
    if len({x.dtype for x in (q, k, cos, sin)}) != 1:
        return f"dtypes differ: {', '.join(str(x.dtype) for x in (q, k, cos, sin))}"
    try:
        operators.CHECKS["rope"](q, k, cos, sin)
    except ValueError as error:
        return str(error)
    return None


def alike(a: Tensor, b: Tensor) -> str | None:
    """A reason to refuse two tensors that broadcasting or promotion would have to make alike; None for others."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{tuple(a.shape)} {a.dtype} and {tuple(b.shape)} {b.dtype} aren't of one shape and dtype"
    return None


def largest_first(patterns: tuple[Pattern, ...]) -> tuple[Pattern, ...]:
    """In the order of their operations, the most first; of equals the order stays."""
    return tuple(sorted(patterns, key=lambda pattern: -pattern.num_operations))


_OPS = torch.ops.minillm
_NORM, _ADD_NORM = ("x", "weight", "eps"), ("x", "residual", "weight", "eps")
PATTERNS = largest_first(
    (
        Pattern("rope", rope, _OPS.rope.default, ("q", "k", "cos", "sin"), check_rope),
        Pattern("rope", rope_with_slices, _OPS.rope.default, ("q", "k", "cos", "sin"), check_rope),
        Pattern("add_rms_norm", add_rms_norm, _OPS.add_rms_norm.default, _ADD_NORM, check_norm),
        Pattern("add_rms_norm", add_rms_norm_without_casts, _OPS.add_rms_norm.default, _ADD_NORM, check_norm),
        Pattern("rms_norm", rms_norm, _OPS.rms_norm.default, _NORM, check_norm),
        Pattern("rms_norm", rms_norm_without_casts, _OPS.rms_norm.default, _NORM, check_norm),
        Pattern("swiglu", swiglu, _OPS.swiglu.default, ("gate", "up"), check_swiglu),
    )
)
