"""From tensors to the arrays that the loop nests work on, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def multiply_with(function: Callable[[Any, Any, Any], object], a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) · b (K, N) -> a new tensor (M, N), by `function(a, b, c)`, which fills c.

    The function gets numpy arrays, contiguous by rows; an input that isn't is copied first. Inputs are not changed.
    Without columns in a, the result is zeros. Raises ValueError unless both are float32 matrices on the CPU that fit.
    """
    for matrix in (a, b):
        if not isinstance(matrix, Tensor) or matrix.dtype != torch.float32 or matrix.dim() != 2 or not matrix.is_cpu:
            raise ValueError(f"expected float32 matrices on the CPU, got {_describe(a)} and {_describe(b)}")
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"expected a (M, K) and b (K, N), got {tuple(a.shape)} and {tuple(b.shape)}")
    c = torch.zeros(a.shape[0], b.shape[1])
    if c.numel() and a.shape[1]:
        function(a.detach().contiguous().numpy(), b.detach().contiguous().numpy(), c.numpy())
    return c


def _describe(matrix: object) -> str:
    if not isinstance(matrix, Tensor):
        return type(matrix).__name__
    return f"{matrix.dtype} {tuple(matrix.shape)} on {matrix.device}"
