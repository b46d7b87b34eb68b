"""Fuse a whole model, so that `generate` and its ordinary cache work with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from minillm.attention.full import Attend, FullAttend
from minillm.fusion.backend import Backend, FusingBackend
from minillm.fusion.outside import OutsideAttend
from minillm.fusion.patterns import PATTERNS, Pattern
from minillm.fusion.rewrite import Report


def fuse(model: nn.Module, patterns: Sequence[Pattern] = PATTERNS, *, then: str | Backend | None = None) -> FusedModel:
    """The model with its graphs rewritten, over the same weights; `model` itself stays as it is.

    patterns, then  as for `FusingBackend`; `patterns=()` with `then="inductor"` is `torch.compile` and nothing else

    Compiles at the first call with each form of input (see `FusedModel`), not here.
    """
    return FusedModel(model, FusingBackend(patterns, then))


class FusedModel(nn.Module):
    """`base`, a `minillm.model.transformer.Transformer`, behind TorchDynamo: the same calls, shapes and results.

    The blocks are one graph with the attend outside, see `minillm.fusion.outside`. Lengths are symbols in it, but torch
    makes 1 a case of its own: one graph for prefills of any length, one for steps of one token, and again two for
    several sequences.

    For training (gradients enabled and no attend) attention is part of the graph, and each shape has one of its own.
    With an attend, a backward raises RuntimeError. Not for two threads at once.
    """

    def __init__(self, base: nn.Module, backend: FusingBackend) -> None:
        super().__init__()
        self.base = base
        self.backend = backend
        self._outside = OutsideAttend()
        self._hidden = torch.compile(_with_own_code(base.hidden), backend=backend)
        self._trained = torch.compile(_with_own_code(base.forward), backend=backend, dynamic=False)

    @property
    def reports(self) -> list[Report]:
        """One for each graph compiled so far, in order."""
        return self.backend.reports

    def forward(self, tokens: Tensor, positions: Tensor | None = None, attend: Attend | None = None) -> Tensor:
        """tokens (...) int64 -> logits (..., vocab_size); arguments and errors as of the model."""
        if attend is None:
            if torch.is_grad_enabled():
                return self._trained(tokens, positions)
            attend = FullAttend([spec.window for spec in self.layer_specs])
            if positions is None:
                positions = torch.arange(tokens.shape[-1], device=tokens.device)
        elif positions is None:
            raise ValueError("an attend was given without positions; a cache's attend offers attend.positions")
        return self.unembed(self.hidden(self.embed(tokens), positions, attend))

    def hidden(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """x (..., hidden_size), positions broadcastable to x's leading axes -> normed state of the last block."""
        self._outside.attend = attend
        try:
            return self._hidden(_with_symbols(x, 1), _with_symbols(positions), self._outside)
        finally:
            self._outside.attend = None  # a cache isn't kept alive by the model

    def embed(self, tokens: Tensor) -> Tensor:
        return self.base.embed(tokens)  # type: ignore[operator]

    def unembed(self, h: Tensor) -> Tensor:
        return self.base.unembed(h)  # type: ignore[operator]

    def plain_module(self) -> nn.Module:
        """The model inside: what a checkpoint stores."""
        return self.base

    @property
    def config(self) -> Any:
        return self.base.config

    @property
    def layer_specs(self) -> Any:
        """What caches are built from."""
        return self.base.layer_specs

    @property
    def embed_tokens(self) -> Any:
        """The embedding, whose dtype and device caches take."""
        return self.base.embed_tokens


def _with_own_code(method: Any) -> Callable[..., Any]:
    """The method with a copy of its code. TorchDynamo keeps graphs by code object and stops at 8 of them.

    Models of one class share their methods' code, so the fifth fused model would stay as it is without a word.
    """
    function = method.__func__
    code = function.__code__.replace(co_name=f"{function.__name__} of {id(method.__self__)}")
    copied = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    return MethodType(copied, method.__self__)


def _with_symbols(x: Tensor, fixed: int = 0) -> Tensor:
    """The tensor, with a mark for TorchDynamo that all axes but the last `fixed` change from call to call.

    `torch.compile(dynamic=True)` would say more: that `norm_eps` changes too, and then no norm is known by its eps.
    """
    for dim in range(x.dim() - fixed):
        torch._dynamo.maybe_mark_dynamic(x, dim)
    return x
