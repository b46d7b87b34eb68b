"""Who takes part in a comparison of attentions: makers of candidates, and the check before anything is timed.

A candidate that raises is left out, with its reason in one line; one whose result is wrong is left out and named so.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from minillm.attention.naive import naive_attention
from minillm.bench.attention_shape import AttentionShape

T = TypeVar("T")

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q (batch, q_len, num_heads, k_head_dim), k, v (batch, k_len, num_kv_heads, …) -> out like q with v_head_dim."""

Maker = Callable[[AttentionShape, torch.device], Attention]
"""Prepares a candidate for one shape, masks included, off the clock. Raises ValueError or RuntimeError to refuse."""

TOLERANCE = {torch.float32: 5e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}  # of the largest exact number, or of 1
LONGEST_REASON = 72


class Absence(NamedTuple):
    """Why a candidate isn't timed, in one line; `is_wrong` = it ran, and its result is wrong."""

    reason: str
    is_wrong: bool = False


def refuse(reason: str) -> Maker:
    """A candidate that takes no part."""

    def make(_shape: AttentionShape, _device: torch.device) -> Attention:
        raise ValueError(reason)

    return make


def check(
    makers: Mapping[str, Maker], shape: AttentionShape, dtype: torch.dtype, device: torch.device, *, backward: bool
) -> dict[str, Absence]:
    """Who refuses such problems or gets `shape.small()` wrong."""
    small = shape.small()
    inputs = small.tensors(dtype, device)
    with torch.enable_grad():
        exact = _results(partial(_oracle, small), [x.double() for x in inputs], backward=backward)
    absent: dict[str, Absence] = {}
    for name, make in makers.items():
        found, reason = attempt(lambda make=make: _results(make(small, device), inputs, backward=backward))  # type: ignore[misc]
        if found is None:
            absent[name] = Absence(reason)
        elif fault := _fault(found, exact, dtype):
            absent[name] = Absence(fault, is_wrong=True)
    return absent


def attempt(call: Callable[[], T]) -> tuple[T | None, str]:
    """(result, "") of a call, or (None, reason) where it raises."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            return call(), ""
        except Exception as error:  # libraries refuse with exceptions of many kinds, compilers with more
            return None, reason_of(error, [str(warning.message) for warning in said])


def reason_of(error: Exception, warned: list[str]) -> str:
    """Why a library refuses, in one short line: a warning that gives the cause, else the first sentence of the error.

    torch says which of its kernels it can't use in warnings, and then that none was left in the error.
    """
    noise = re.compile(r"not used because|runtime disabled|deprecated", re.IGNORECASE)
    text = next((text for text in warned if "kernel" in "".join(warned) and not noise.search(text)), str(error))
    if isinstance(error, torch.OutOfMemoryError):
        text = "out of memory"
    elif "No viable backend" in text:
        text = "torch has no such kernel for this device, dtype and shape"
    text = re.split(r"\(Triggered internally|\. (?=[A-Z])|\n", text.strip(), maxsplit=1)[0].strip(" .:")
    text = text or type(error).__name__
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"


def _oracle(shape: AttentionShape, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return naive_attention(q, k, v, causal=shape.causal, window=shape.window)[0]


def _results(attention: Attention, inputs: tuple[Tensor, ...] | list[Tensor], *, backward: bool) -> list[Tensor]:
    """out, and with `backward` the gradients of q, k and v."""
    return list(prepared(attention, inputs, backward=backward, keep_out=True)())


def prepared(
    attention: Attention, inputs: tuple[Tensor, ...] | list[Tensor], *, backward: bool, keep_out: bool = False
) -> Callable[[], tuple[Tensor, ...]]:
    """The call to be timed, made once. With `backward` forward and backward, from the same gradient of out."""
    if not backward:

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (attention(*inputs),)

        forward()
        return forward
    q, k, v = (x.detach().requires_grad_() for x in inputs)
    with torch.no_grad():
        numbers = torch.arange(q.shape[:3].numel() * v.shape[3], device=q.device) * 37 % 17 - 8
        d_out = (numbers / 8).to(q.dtype).view(*q.shape[:3], v.shape[3])  # eighths: exact in every dtype

    def both() -> tuple[Tensor, ...]:
        with torch.enable_grad():
            out = attention(q, k, v)
        gradients = torch.autograd.grad(out, (q, k, v), d_out)
        return (out.detach(), *gradients) if keep_out else gradients

    both()
    return both


def _fault(found: list[Tensor], exact: list[Tensor], dtype: torch.dtype) -> str:
    """What is wrong with the results, "" for nothing."""
    for name, ours, right in zip(("out", "dq", "dk", "dv"), found, exact, strict=False):
        if ours.shape != right.shape:
            return f"{name} has the shape {tuple(ours.shape)} for {tuple(right.shape)}"
        error = (ours.double() - right).abs().max().item()
        allowed = TOLERANCE[dtype] * max(1.0, right.abs().max().item())
        if not error <= allowed:
            return f"{name} is wrong by {error:.2g}, allowed are {allowed:.2g}"
    return ""
