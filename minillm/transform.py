"""Change a finished model's linear layers: quantize, adapt, shard or speed them up, without touching the
model's code.

    replace_linears(model, lambda name, linear: LoRALinear(linear), match="blocks.*.attention.w[qv]")

A wrapper is a module that holds the layer it replaces (`LoRALinear(base)`), so transforms compose: load
plain weights, then shard, quantize, adapt. It offers what the rest of the package asks of a linear:

    forward(x)          (..., in_features) -> (..., out_features)
    in_features, out_features
    bias                the bias that it adds, or None
    dense_weight()      the (out_features, in_features) matrix that it multiplies by, for whoever must see it whole
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import Tensor, nn

ModelT = TypeVar("ModelT", bound=nn.Module)


def replace_linears(
    model: ModelT, wrap: Callable[[str, nn.Module], nn.Module | None], *, match: str | None = None
) -> ModelT:
    """Replace each linear of `model` by `wrap(name, linear)`; returns the model, changed in place.

    `linear` is an `nn.Linear` or a wrapper from an earlier transform (whatever offers `dense_weight`);
    what is inside a wrapper is not visited. `wrap` returns the new module, or None (or `linear` itself)
    to leave it. `match` is a glob over dotted names, "blocks.*.ffn.w_*"; None = every linear, `lm_head`
    included. A layer found under several names is wrapped once and stays shared. A wrapper that keeps its
    base keeps ties between parameters, so that a tied `lm_head` still reads `embed_tokens.weight`.

    Raises ValueError when `match` fits no linear, or when the model itself is one (it has no parent to
    change).
    """
    if is_linear(model):
        raise ValueError("the model is itself a linear: wrap it directly")
    found = [
        (name, parent, child_name, child)
        for parent_name, parent in _modules_outside_linears(model)
        for child_name, child in parent.named_children()
        if is_linear(child)
        for name in [f"{parent_name}.{child_name}".lstrip(".")]
        if match is None or fnmatchcase(name, match)
    ]
    if match is not None and not found:
        raise ValueError(f"no linear layer is named like {match!r}")
    wrapped: dict[int, nn.Module] = {}
    for name, parent, child_name, child in found:
        if id(child) not in wrapped:
            replacement = wrap(name, child)
            wrapped[id(child)] = child if replacement is None else replacement
        setattr(parent, child_name, wrapped[id(child)])
    return model


def is_linear(module: nn.Module) -> bool:
    """Whether `replace_linears` sees a module as one linear layer."""
    return isinstance(module, nn.Linear) or hasattr(module, "dense_weight")


def dense_weight(linear: nn.Module) -> Tensor:
    """The (out_features, in_features) matrix of a plain or wrapped linear. Raises ValueError for other
    modules.
    """
    if callable(dense := getattr(linear, "dense_weight", None)):
        weight: Tensor = dense()
        return weight
    if isinstance(linear, nn.Linear):
        return linear.weight
    raise ValueError(f"expected nn.Linear or a wrapper with dense_weight(), got {type(linear).__name__}")


def _modules_outside_linears(module: nn.Module, name: str = "") -> list[tuple[str, nn.Module]]:
    """`module` and the modules below it as (dotted name, module), each linear left out together with its
    inside.
    """
    found = [(name, module)]
    for child_name, child in module.named_children():
        if not is_linear(child):
            found += _modules_outside_linears(child, f"{name}.{child_name}".lstrip("."))
    return found
