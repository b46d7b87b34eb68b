"""A tile: a few numbers on the chip, and what can be computed with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from minillm.perf.meter.sram import Program

SPECIAL = {"exp", "log", "sqrt", "rsqrt", "sigmoid", "tanh"}  # one special operation a number; all else is one FLOP


class Tile:
    """Numbers in the SRAM (or the registers) of one program; made by its methods and by computing with tiles.

    It reads like a torch tensor: `s * 0.5`, `s - m`, `q @ k.T`, `s.exp()`, `s.row_max()`, with broadcasting of rows
    (r, 1) and columns (1, c). A new tile takes new SRAM; the methods whose names end in `_`, and `+=` and its like,
    write into the tile they are called on and take none. `tile.T` and `tile[:, :4]` are views of the same numbers.
    """

    __array_ufunc__ = None  # numpy's scalars leave arithmetic with tiles to the tiles

    def __init__(self, program: Program, data: Tensor, name: str, bytes_per_number: int, in_registers: bool) -> None:
        self.program = program
        self.name = name
        self.bytes_per_number = bytes_per_number
        self.in_registers = in_registers
        self.base = self  # of a view: the tile that owns the numbers
        self.is_free = False
        self._data = data

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._data.shape)

    @property
    def num_bytes(self) -> int:
        return self._data.numel() * self.bytes_per_number

    @property
    def T(self) -> Tile:
        """The matrix transposed: a view, nothing moves."""
        if self._data.dim() != 2:
            raise ValueError(f"expected a matrix to transpose, got {self}")
        return self._view(self._data.T, f"{self.name}ᵀ")

    def __getitem__(self, index: Any) -> Tile:
        """A view of a part, by slices and integers as in torch."""
        part = self._numbers()[index]
        if part.untyped_storage().data_ptr() != self._data.untyped_storage().data_ptr():
            raise ValueError(f"expected slices and integers as indices of {self}, got {index!r}")
        return self._view(part, f"part of {self.name}")

    def item(self) -> float | int | bool:
        """The number of a tile that holds one: for an address read from a table, or to decide what to do next."""
        if self._data.numel() != 1:
            raise ValueError(f"expected a tile of one number, got {self}")
        return self._numbers().item()

    def clone(self) -> Tile:
        """A copy in a new tile; no FLOPs."""
        return self.program._compute("copy", self._numbers().clone(), [self], flops=0)

    def row_max(self) -> Tile:
        """The largest number of each row (the last dimension, kept with size 1)."""
        return self._reduce("row_max", self._numbers().amax(-1, keepdim=True))

    def row_sum(self) -> Tile:
        """The sum of each row (the last dimension, kept with size 1)."""
        return self._reduce("row_sum", self._numbers().sum(-1, keepdim=True))

    def exp(self) -> Tile:
        return self._unary("exp")

    def exp_(self) -> Tile:
        return self._unary_("exp")

    def log(self) -> Tile:
        return self._unary("log")

    def log_(self) -> Tile:
        return self._unary_("log")

    def sqrt(self) -> Tile:
        return self._unary("sqrt")

    def rsqrt(self) -> Tile:
        return self._unary("rsqrt")

    def sigmoid(self) -> Tile:
        return self._unary("sigmoid")

    def tanh(self) -> Tile:
        return self._unary("tanh")

    def abs(self) -> Tile:
        return self._unary("abs")

    def __neg__(self) -> Tile:
        return self._unary("neg")

    def maximum(self, other: Tile | float) -> Tile:
        return self._binary("maximum", other)

    def maximum_(self, other: Tile | float) -> Tile:
        return self._binary_("maximum", other)

    def __add__(self, other: Tile | float) -> Tile:
        return self._binary("add", other)

    def __sub__(self, other: Tile | float) -> Tile:
        return self._binary("sub", other)

    def __mul__(self, other: Tile | float) -> Tile:
        return self._binary("mul", other)

    def __truediv__(self, other: Tile | float) -> Tile:
        return self._binary("div", other)

    def __radd__(self, other: float) -> Tile:
        return self._binary("add", other)

    def __rmul__(self, other: float) -> Tile:
        return self._binary("mul", other)

    def __rsub__(self, other: float) -> Tile:
        return self._swapped("sub", other)

    def __rtruediv__(self, other: float) -> Tile:
        return self._swapped("div", other)

    def __iadd__(self, other: Tile | float) -> Tile:
        return self._binary_("add", other)

    def __isub__(self, other: Tile | float) -> Tile:
        return self._binary_("sub", other)

    def __imul__(self, other: Tile | float) -> Tile:
        return self._binary_("mul", other)

    def __itruediv__(self, other: Tile | float) -> Tile:
        return self._binary_("div", other)

    def __matmul__(self, other: Tile) -> Tile:
        return self.program.matmul(self, other)

    def copy_(self, other: Tile) -> Tile:
        """Overwrite with the numbers of another tile; no FLOPs."""
        return self._into("copy", self._operand(other), [other], flops=0)

    def masked_fill_(self, mask: Tensor, value: float) -> Tile:
        """Overwrite with `value` where `mask` (bool, broadcastable) is True; one FLOP a number.

        The mask is a plain torch tensor, and free: a kernel knows a causal mask from the indices alone. A mask that
        has to be read from HBM is a tile; multiply or add it.
        """
        if not isinstance(mask, Tensor) or type(mask) is not Tensor or mask.dtype != torch.bool:
            raise ValueError(f"expected a bool torch tensor made from indices as mask, got {mask!r}")
        return self._into("mask", self._numbers().masked_fill(mask, value), [self])

    def __repr__(self) -> str:
        return f"Tile({self.name}, {self.shape}{', freed' if self.base.is_free else ''})"

    def __bool__(self) -> NoReturn:
        raise ValueError(f"{self} is many numbers; to decide by one of them use tile.item()")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        name = getattr(function, "__name__", "this function")
        raise ValueError(
            f"torch.{name} on a tile isn't counted: use the tile's own methods and operators, and load other operands "
            "with sram.load"
        )

    def _numbers(self) -> Tensor:
        if self.base.is_free:
            raise ValueError(f"{self.name} {self.shape} was freed: its SRAM may hold something else by now")
        return self._data

    def _view(self, data: Tensor, name: str) -> Tile:
        self._numbers()
        view = Tile(self.program, data, name, self.bytes_per_number, self.in_registers)
        view.base = self.base
        return view

    def _operand(self, other: Any) -> Tensor:
        """The numbers of another operand: a tile of the same program, or a Python number."""
        if isinstance(other, Tile):
            if other.program is not self.program:
                raise ValueError(f"{other} belongs to another program: each has an SRAM of its own")
            sizes = zip(reversed(self.shape), reversed(other.shape), strict=False)
            if not all(own == size or 1 in (own, size) for own, size in sizes):
                raise ValueError(f"{self.name} {self.shape} and {other.name} {other.shape} don't fit together")
            return other._numbers()
        if isinstance(other, int | float | np.number):
            other = other.item() if isinstance(other, np.number) else other
            return torch.tensor(other, dtype=torch.float64 if isinstance(other, float) else None)
        name = getattr(other, "name", f"a {type(other).__name__}")
        raise ValueError(f"expected a tile or a number to compute with {self.name}, got {name}: load it with sram.load")

    def _unary(self, operation: str) -> Tile:
        return self.program._compute(operation, getattr(torch, operation)(self._numbers()), [self])

    def _unary_(self, operation: str) -> Tile:
        return self._into(operation, getattr(torch, operation)(self._numbers()), [self])

    def _binary(self, operation: str, other: Any) -> Tile:
        data = getattr(torch, operation)(self._numbers(), self._operand(other))
        return self.program._compute(operation, data, [self, other])

    def _swapped(self, operation: str, other: Any) -> Tile:
        data = getattr(torch, operation)(self._operand(other), self._numbers())
        return self.program._compute(operation, data, [self, other])

    def _binary_(self, operation: str, other: Any) -> Tile:
        data = getattr(torch, operation)(self._numbers(), self._operand(other))
        return self._into(operation, data, [self, other])

    def _reduce(self, operation: str, data: Tensor) -> Tile:
        return self.program._compute(operation, data, [self], flops=self._data.numel() - data.numel())

    def _into(self, operation: str, data: Tensor, operands: list[Any], flops: int | None = None) -> Tile:
        if data.shape != self._data.shape:
            raise ValueError(f"{operation} into {self.name} {self.shape} would change its shape to {tuple(data.shape)}")
        if data.is_floating_point() and not self._data.is_floating_point():
            raise ValueError(
                f"{operation} into {self.name} would cut its results to {self._data.dtype}: make a new tile"
            )
        return self.program._compute(operation, data, operands, flops=flops, into=self)
