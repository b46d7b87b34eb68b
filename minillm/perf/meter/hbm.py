"""Tensors in the simulated HBM, and regions of them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from torch import Tensor

from minillm.perf.meter.races import Accesses, Runner


def refuse_arithmetic(cls: type) -> type:
    """Class decorator: operators and torch functions on what lies in HBM raise ValueError."""

    def refuse(self: Any, *args: Any) -> NoReturn:
        raise ValueError(f"{self.name} lies in HBM: tile = sram.load({self.example}), and compute with the tile")

    for name in ("add", "sub", "mul", "truediv", "matmul", "pow"):
        setattr(cls, f"__{name}__", refuse)
        setattr(cls, f"__r{name}__", refuse)
    for name in ("__neg__", "__float__", "__iter__", "__array__"):
        setattr(cls, name, refuse)

    def torch_function(own: type, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        refuse(next(value for value in _flat(args, kwargs) if isinstance(value, HbmTensor | Region)))

    setattr(cls, "__torch_function__", classmethod(torch_function))  # noqa: B010 (mypy knows no such attribute)
    return cls


@refuse_arithmetic
class HbmTensor:
    """A tensor in HBM: made by `Meter.hbm` and `Meter.empty`, cut into regions by slicing.

    bytes_read and bytes_written count what crossed the border between this tensor and the programs.
    """

    def __init__(
        self, name: str, data: Tensor, bytes_per_number: int, *, is_written: bool, can_look: Callable[[], bool]
    ) -> None:
        self.name = name
        self.shape = tuple(data.shape)
        self.bytes_per_number = bytes_per_number
        self.bytes_read = 0
        self.bytes_written = 0
        self._data = data
        self._written = None if is_written else np.zeros(data.shape, dtype=bool)  # None = everywhere
        self._accesses: Accesses | None = None  # of the launch that runs
        self._can_look = can_look

    @property
    def num_bytes(self) -> int:
        """Size in bytes as it is stored."""
        return self._data.numel() * self.bytes_per_number

    @property
    def example(self) -> str:
        return f"{self.name}[{', '.join(['i:j'] * len(self.shape))}]"

    def __getitem__(self, index: Any) -> Region:
        """A region: an integer or a slice a dimension, the rest in full. Slices end at the edge as Python's do,
        so the last tile may be smaller. Moves nothing. Raises ValueError for what lies outside or is empty.
        """
        given = index if isinstance(index, tuple) else (index,)
        if len(given) > len(self.shape):
            raise ValueError(
                f"expected {len(self.shape)} indices or fewer for {self.name} {self.shape}, got {len(given)}"
            )
        given += (slice(None),) * (len(self.shape) - len(given))
        parts = tuple(self._part(part, dim) for dim, part in enumerate(given))
        bounds = tuple((part, part + 1) if isinstance(part, int) else (part.start, part.stop) for part in parts)
        kept = [part for part in parts if isinstance(part, slice)]
        return Region(self, parts, bounds, tuple(part.stop - part.start for part in kept))

    def result(self) -> Tensor:
        """The numbers, for the host to look at between launches; counts nothing.

        Raises ValueError while a kernel runs, and where no program has written.
        """
        if not self._can_look():
            raise ValueError(f"{self.name}.result() is for the host, between launches; a program uses sram.load")
        self._refuse_unwritten(self[()])
        return self._data.clone()

    def __repr__(self) -> str:
        return f"HbmTensor({self.name}, {self.shape}, {self.num_bytes} bytes)"

    def _part(self, part: Any, dim: int) -> int | slice:
        size = self.shape[dim]
        try:
            if isinstance(part, slice):
                start, stop, step = part.indices(size)
            else:
                start, step = operator.index(part), 1
        except TypeError:
            raise ValueError(f"expected integers and slices as indices of {self.name}, got {part!r}") from None
        if not isinstance(part, slice):
            if not -size <= start < size:
                raise ValueError(f"index {start} is outside dimension {dim} of {self.name} {self.shape}")
            return start % size
        if step != 1:
            raise ValueError(f"expected slices with step 1, got {part} in dimension {dim} of {self.name}")
        if start >= stop:
            raise ValueError(
                f"{self.name} {self.shape} holds nothing at {part.start}:{part.stop} of dimension {dim}, "
                f"which has {size} entries"
            )
        return slice(start, stop)

    def _refuse_unwritten(self, region: Region) -> None:
        if self._written is not None and not np.all(self._written[region.index]):
            raise ValueError(f"{region.name} is read, but not all of it was ever written")

    def _read(self, region: Region, program: Runner) -> Tensor:
        self._refuse_unwritten(region)
        self._launch().read(region, program)
        return self._data[region.index].clone()

    def _write(self, region: Region, program: Runner, numbers: Tensor) -> None:
        self._launch().write(region, program)
        self._data[region.index] = numbers
        if self._written is not None:
            self._written[region.index] = True

    def _add(self, region: Region, program: Runner, numbers: Tensor) -> None:
        self._refuse_unwritten(region)
        self._launch().add(region, program)
        self._data[region.index] += numbers

    def _launch(self) -> Accesses:
        if self._accesses is None:
            self._accesses = Accesses(self.shape)
        return self._accesses


@refuse_arithmetic
@dataclass(frozen=True)
class Region:
    """A rectangle of a tensor in HBM, what `load` and `store` take."""

    tensor: HbmTensor
    index: tuple[int | slice, ...]  # for torch and numpy, one a dimension
    bounds: tuple[tuple[int, int], ...]  # start and stop, one a dimension
    shape: tuple[int, ...]  # of the tile: dimensions indexed by an integer are gone

    @property
    def name(self) -> str:
        parts = [str(part) if isinstance(part, int) else f"{part.start}:{part.stop}" for part in self.index]
        return f"{self.tensor.name}[{', '.join(parts)}]"

    @property
    def example(self) -> str:
        return self.name

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.tensor.bytes_per_number

    def overlaps(self, other: Region) -> bool:
        """Whether the two share a number."""
        pairs = zip(self.bounds, other.bounds, strict=True)
        return self.tensor is other.tensor and all(a < d and c < b for (a, b), (c, d) in pairs)


def _flat(args: Any, kwargs: Any) -> list[Any]:
    values = [*args, *(kwargs or {}).values()]
    return [inner for value in values for inner in (value if isinstance(value, tuple | list) else (value,))]
