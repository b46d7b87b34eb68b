"""The fused operators `torch.ops.minillm.{rms_norm, add_rms_norm, swiglu, rope}`: one call where eager makes many.

An operator registered with `torch.library` is one node of a graph, whatever runs behind it. Each has four parts:

    a schema          names and types, all that the dispatcher needs
    implementations   CPU: `minillm.fusion.cpu`; CUDA: the kernel of the same name in `minillm.kernels`
    a fake one        the result's shape and dtype without numbers, which compilers run instead
    a backward        formulas; a graph that holds the operator can be trained through

Importing this module registers them. They are called through these functions, or as `torch.ops.minillm.rms_norm(…)`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minillm.fusion import cpu

SCHEMAS = {
    "rms_norm": "(Tensor x, Tensor weight, float eps) -> Tensor",
    "add_rms_norm": "(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)",
    "swiglu": "(Tensor gate, Tensor up) -> Tensor",
    "rope": "(Tensor q, Tensor k, Tensor cos, Tensor sin) -> (Tensor, Tensor)",
}


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight · x / sqrt(mean(x²) + eps) over the last axis, as `minillm.model.norm.RMSNorm` computes it.

    x (..., size) and weight (size,) of one floating dtype; so is the result. Statistics in float32, or float64 for
    float64; what is normed is rounded to x's dtype before the weight multiplies it. Raises ValueError for others.
    """
    return torch.ops.minillm.rms_norm.default(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(s, weight, eps), s) with s = x + residual, the residual stream that goes on.

    x and residual (..., size) of the same shape and dtype. Raises ValueError for others.
    """
    return torch.ops.minillm.add_rms_norm.default(x, residual, weight, eps)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, where silu(g) = g · sigmoid(g); both of one shape and dtype. Raises ValueError for others."""
    return torch.ops.minillm.swiglu.default(gate, up)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q (..., num_heads, head_dim) and k (..., num_kv_heads, head_dim) turned, as `minillm.model.rope.rotate` does.

    cos and sin (..., 1, head_dim) broadcast over heads and leading axes. No gradient flows into them: RuntimeError in
    the backward where one is asked for. Raises ValueError for other shapes.
    """
    return torch.ops.minillm.rope.default(q, k, cos, sin)


# ---- shapes, checked for every implementation: expected and given are in the message


def _check_norm(x: Tensor, weight: Tensor, eps: float) -> None:
    if not x.is_floating_point() or x.dim() < 1 or weight.shape != x.shape[-1:] or weight.dtype != x.dtype:
        raise ValueError(f"expected x (..., size) and weight (size,) of one floating dtype, got {_said(x, weight)}")


def _check_alike(a: Tensor, b: Tensor) -> None:
    if not a.is_floating_point() or a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"expected two tensors of one shape and floating dtype, got {_said(a, b)}")


def _check_add_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> None:
    _check_alike(x, residual)
    _check_norm(x, weight, eps)


def _check_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    fits = (
        q.dim() >= 2
        and q.dim() == k.dim()
        and q.shape[:-2] == k.shape[:-2]
        and q.shape[-1] == k.shape[-1] == cos.shape[-1]
        and q.shape[-1] % 2 == 0
        and cos.shape == sin.shape
        and 2 <= cos.dim() <= q.dim()
        and cos.shape[-2] == 1
        and len({x.dtype for x in (q, k, cos, sin)}) == 1
    )
    if not fits:
        raise ValueError(
            "expected q (..., num_heads, head_dim), k (..., num_kv_heads, head_dim), cos and sin (..., 1, head_dim) of "
            f"one dtype, head_dim even, got {_said(q, k, cos, sin)}"
        )


def _said(*tensors: Tensor) -> str:
    return ", ".join(f"{tuple(x.shape)} {x.dtype}".replace("torch.", "") for x in tensors)


CHECKS: dict[str, Callable[..., None]] = {
    "rms_norm": _check_norm,
    "add_rms_norm": _check_add_norm,
    "swiglu": _check_alike,
    "rope": _check_rope,
}


# ---- fake implementations: shapes alone


def _fake_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    _check_norm(x, weight, eps)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake_add_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    _check_add_norm(x, residual, weight, eps)
    return _fake_norm(x, weight, eps), torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    _check_alike(gate, up)
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


def _fake_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    _check_rope(q, k, cos, sin)
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k))  # type: ignore[return-value]


FAKES: dict[str, Callable[..., Any]] = {
    "rms_norm": _fake_norm,
    "add_rms_norm": _fake_add_norm,
    "swiglu": _fake_swiglu,
    "rope": _fake_rope,
}


# ---- backwards: ctx keeps inputs only


def _norm_backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
    x, weight = ctx.saved_tensors
    dx, dweight = norm_gradients(dy, x, weight, ctx.eps)
    return dx, dweight, None


def _add_norm_backward(ctx: Any, dy: Tensor, dsum: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    x, residual, weight = ctx.saved_tensors
    through_norm, dweight = norm_gradients(dy, x + residual, weight, ctx.eps)
    dx = through_norm + dsum  # the residual stream goes on beside the norm
    return dx, dx, dweight, None


def norm_gradients(dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients of rms_norm with respect to x (its shape) and weight (size,).

    With r = 1 / sqrt(mean(x²) + eps), n = x·r and g = dy·weight: dx = r·(g − n·mean(g·n)), dweight = Σ dy·n.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    high, g = x.to(wide), dy.to(wide) * weight.to(wide)
    r = torch.rsqrt(high.square().mean(-1, keepdim=True) + eps)
    n = high * r
    dx = r * (g - n * (g * n).mean(-1, keepdim=True))
    dweight = (dy.to(wide) * n).flatten(0, -2).sum(0) if x.dim() > 1 else dy.to(wide) * n
    return dx.to(x.dtype), dweight.to(weight.dtype)


def _swiglu_backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    """silu'(g) = σ(g)·(1 + g·(1 − σ(g)))."""
    gate, up = ctx.saved_tensors
    wide = torch.promote_types(gate.dtype, torch.float32)
    g, d = gate.to(wide), dy.to(wide)
    sigmoid = g.sigmoid()
    dgate = d * up.to(wide) * sigmoid * (1 + g * (1 - sigmoid))
    return dgate.to(gate.dtype), (d * g * sigmoid).to(up.dtype)


def _rope_backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor, Tensor, None, None]:
    """A rotation's transpose is the rotation by the opposite angle: what reaches one half goes back to the other."""
    if any(ctx.needs_input_grad[2:]):
        raise RuntimeError("minillm::rope gives no gradient for cos and sin; detach them")
    cos, sin = ctx.saved_tensors
    opposite = -sin.roll(sin.shape[-1] // 2, dims=-1)
    return *torch.ops.minillm.rope.default(dq.contiguous(), dk.contiguous(), cos, opposite), None, None


def _keep_norm(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _keep_all(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _keep_angles(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[2:])


BACKWARDS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "rms_norm": (_norm_backward, _keep_norm),
    "add_rms_norm": (_add_norm_backward, _keep_norm),
    "swiglu": (_swiglu_backward, _keep_all),
    "rope": (_rope_backward, _keep_angles),
}


# ---- implementations and registration


def implementation(name: str, device: str) -> Callable[..., Any]:
    """What runs for tensors of a device type: checks, then the CPU's functions or the GPU's kernel.

    A GPU without Triton, and float64 on any, run the CPU's torch calls, which know every device.
    """
    check, plain = CHECKS[name], getattr(cpu, name)

    def run(*args: Any) -> Any:
        check(*args)
        kernel = gpu_kernel(name) if device == "cuda" and args[0].dtype != torch.float64 else None
        return (kernel or plain)(*args)

    return run


def gpu_kernel(name: str) -> Callable[..., Any] | None:
    """`minillm.kernels.<name>` where Triton is installed; None otherwise."""
    if importlib.util.find_spec("triton") is None:
        return None
    from minillm import kernels

    return getattr(kernels, name, None)


def _register() -> None:
    for name, schema in SCHEMAS.items():
        qualified = f"minillm::{name}"
        torch.library.define(qualified, schema)
        for device in ("cpu", "cuda"):
            torch.library.impl(qualified, device, implementation(name, device))
        torch.library.register_fake(qualified, FAKES[name])
        backward, keep = BACKWARDS[name]
        torch.library.register_autograd(qualified, backward, setup_context=keep)


_register()
