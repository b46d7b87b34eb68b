"""Linear layers for decoding: few rows at a time go through `minillm.gemm.gemv`, everything else as before.

Inference only, CPU only, and needs numba (`pip install minillm[fast]`); `can_use_fast_linears` says
whether it is there.
"""

from __future__ import annotations

import importlib.util
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from minillm.transform import replace_linears

ModelT = TypeVar("ModelT", bound=nn.Module)


def can_use_fast_linears() -> bool:
    """Whether numba is installed. Without it `use_fast_linears` leaves a model as it is."""
    return importlib.util.find_spec("numba") is not None


def use_fast_linears(model: ModelT) -> ModelT:
    """Wrap every plain `nn.Linear` of `model` in a `FastLinear`, in place; returns the model.

    Weights stay where they are, tied ones tied. Does nothing where numba is missing.
    """
    if not can_use_fast_linears():
        return model
    return replace_linears(model, lambda name, linear: FastLinear(linear) if type(linear) is nn.Linear else None)


class FastLinear(nn.Module):
    """`base(x)`, computed by `few_row_linear` when x has up to `max_rows` rows.

    x (..., in_features) -> (..., out_features). Falls back to `base` with gradients enabled, for more
    rows, and for dtypes, devices or layouts that the kernel does not know. Raises ImportError without
    numba.
    """

    def __init__(self, base: nn.Linear, *, max_rows: int = 8) -> None:
        super().__init__()
        from minillm.gemm import gemv

        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.max_rows = max_rows
        self._gemv = gemv

    def forward(self, x: Tensor) -> Tensor:
        parameters = self.base._parameters  # each attribute of a module costs 0.3 µs, some hundred times a token
        weight, bias = cast(Tensor, parameters["weight"]), parameters["bias"]
        few_rows = x.numel() <= self.max_rows * self.in_features
        if few_rows and not torch.is_grad_enabled() and self._gemv.can_multiply(x, weight, bias):
            return self._gemv.multiply(x, weight, bias, self._gemv.threads_for(weight.nbytes))
        return self.base(x)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the layer inside."""
        return self.base.bias

    def dense_weight(self) -> Tensor:
        """The weight of the layer inside, (out_features, in_features)."""
        return self.base.weight
