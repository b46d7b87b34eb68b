"""The simulated memories of a kernel: arrays that note who reads and writes what, and numbers that count operations."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import CodeType
from typing import Any

import numpy as np

# (block, epoch, thread): the threads of a block meet at barriers; `epoch` counts those that the block has passed.
Who = tuple[tuple[int, int, int], int, int]
# Where an access stands in the source: (line, column, last line, last column).
Place = tuple[int, int, int, int]
# (array, "load" or "store", address, place): told of every access.
Listener = Callable[["TracedArray", str, int, Place], None]


class KernelError(ValueError):
    """The simulated kernel did something that a GPU would punish: with wrong numbers, a hang or a crash."""


class Number:
    """A floating-point value that came out of a simulated array. + − × ÷ on it count as one operation each."""

    __slots__ = ("operations", "value")
    __array_ufunc__ = None  # NumPy's own scalars leave the operation to this class

    def __init__(self, value: Any, operations: list[int]) -> None:
        self.value = value
        self.operations = operations  # [how many]: shared by all numbers of a launch

    def _count(self, value: Any) -> Number:
        self.operations[0] += 1
        return Number(value, self.operations)

    def __add__(self, other: Any) -> Number:
        return self._count(self.value + plain(other))

    def __sub__(self, other: Any) -> Number:
        return self._count(self.value - plain(other))

    def __rsub__(self, other: Any) -> Number:
        return self._count(plain(other) - self.value)

    def __mul__(self, other: Any) -> Number:
        return self._count(self.value * plain(other))

    def __truediv__(self, other: Any) -> Number:
        return self._count(self.value / plain(other))

    def __rtruediv__(self, other: Any) -> Number:
        return self._count(plain(other) / self.value)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Number:
        return Number(-self.value, self.operations)

    def __abs__(self) -> Number:
        return Number(abs(self.value), self.operations)

    def __float__(self) -> float:
        return float(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __lt__(self, other: Any) -> bool:
        return bool(self.value < plain(other))

    def __le__(self, other: Any) -> bool:
        return bool(self.value <= plain(other))

    def __gt__(self, other: Any) -> bool:
        return bool(self.value > plain(other))

    def __ge__(self, other: Any) -> bool:
        return bool(self.value >= plain(other))

    def __eq__(self, other: object) -> bool:
        return bool(self.value == plain(other))

    __hash__ = None  # type: ignore[assignment]


def plain(value: Any) -> Any:
    """The value without its counter."""
    return value.value if isinstance(value, Number) else value


@dataclass(slots=True)
class History:
    """Who touched one element, as far as a later access can clash with it.

    Blocks run one after the other here, and so do the threads of a block between two barriers: if the first of several
    readers is no clash for a writer, the others aren't either.
    """

    writer: tuple[Who, int] | None = None  # the last one, with its line
    first_reader: tuple[Who, int] | None = None
    epoch_reader: tuple[Who, int] | None = None  # the first one since the latest barrier

    def note_read(self, who: Who, line: int) -> None:
        if self.first_reader is None:
            self.first_reader = (who, line)
        if self.epoch_reader is None or self.epoch_reader[0][:2] != who[:2]:
            self.epoch_reader = (who, line)

    def clash(self, who: Who, is_write: bool) -> tuple[Who, int, str] | None:
        """An earlier access that nothing orders before this one: of another block, or since the last barrier."""
        if self.writer is not None and unordered(self.writer[0], who):
            return *self.writer, "written"
        for earlier in (self.first_reader, self.epoch_reader):
            if is_write and earlier is not None and unordered(earlier[0], who):
                return *earlier, "read"
        return None


def unordered(earlier: Who, later: Who) -> bool:
    """Whether the GPU may run these two the other way round."""
    if earlier[0] != later[0]:
        return True
    return earlier[1] == later[1] and earlier[2] != later[2]


class TracedArray:
    """A global or shared array as a kernel sees it: indexed with one integer an axis, nothing else.

    Every access is reported to `listener`. Raises KernelError for an index outside the array, an element of shared
    memory that nobody has written, and a race: two threads on one element, one of them writing, with no barrier
    between (threads of one warp included: since Volta they may drift apart) or from different blocks.
    """

    def __init__(
        self,
        name: str,
        space: str,
        values: np.ndarray,
        base: int,
        who: Callable[[], Who],
        listener: Listener,
        operations: list[int],
    ) -> None:
        self.name, self.space, self.values, self.base = name, space, values, base
        self.who, self.listener, self.operations = who, listener, operations
        self.shape, self.ndim, self.size, self.dtype = values.shape, values.ndim, values.size, values.dtype
        self.strides = values.strides
        self.is_float = values.dtype.kind == "f"
        self.written: np.ndarray | None = np.zeros(values.shape, bool) if space == "shared" else None
        self.history: dict[tuple[int, ...], History] = {}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        element, line = self._access(index, "load", sys._getframe(1))
        if self.written is not None and not self.written[element]:
            raise KernelError(f"line {line}: {self.name}{list(element)} is read, but nobody has written it")
        value = self.values[element]
        return Number(value, self.operations) if self.is_float else value.item()

    def __setitem__(self, index: Any, value: Any) -> None:
        element, _ = self._access(index, "store", sys._getframe(1))
        self.values[element] = plain(value)
        if self.written is not None:
            self.written[element] = True

    def _access(self, index: Any, kind: str, frame: Any) -> tuple[tuple[int, ...], int]:
        place = place_in_source(frame)
        line = place[0]
        element = index if isinstance(index, tuple) else (index,)
        if len(element) != self.ndim:
            expected = f"expected {self.ndim} indices for shape {self.shape}"
            raise KernelError(f"line {line}: {self.name}: {expected}, got {list(element)}")
        address = self.base
        for position, size, stride in zip(element, self.shape, self.strides, strict=True):
            if not 0 <= position < size:
                raise KernelError(f"line {line}: {self.name}{list(element)} is outside of shape {self.shape}")
            address += int(position) * stride
        self._order(element, kind, line)
        self.listener(self, kind, address, place)
        return element, line

    def _order(self, element: tuple[int, ...], kind: str, line: int) -> None:
        """Raise if this access and an earlier one could happen the other way round; note it otherwise."""
        who, history = self.who(), self.history.get(element)
        if history is None:
            history = self.history[element] = History()
        if clash := history.clash(who, kind == "store"):
            earlier, earlier_line, did = clash
            raise KernelError(
                f"line {line}: race on {self.name}{list(element)}: thread {who[2]} of block {tuple(who[0])} "
                f"{'reads' if kind == 'load' else 'writes'} it, thread {earlier[2]} of block {tuple(earlier[0])} "
                f"has {did} it in line {earlier_line}, and no barrier orders the two"
            )
        if kind == "store":
            history.writer = (who, line)
        else:
            history.note_read(who, line)


class LocalArray:
    """`cuda.local.array`: one thread's own numbers, which a compiler keeps in registers. Nothing is counted."""

    def __init__(self, shape: Any, dtype: Any, operations: list[int]) -> None:
        self.shape = shape if isinstance(shape, tuple) else (shape,)
        self.scalar = np.dtype(dtype).type
        self.operations = operations
        self.values: dict[tuple[int, ...], Any] = {}

    def __getitem__(self, index: Any) -> Any:
        place = self._place(index)
        if place not in self.values:
            raise KernelError(
                f"line {sys._getframe(1).f_lineno}: a local array is read at {list(place)}, never written"
            )
        return self.values[place]

    def __setitem__(self, index: Any, value: Any) -> None:
        bare = plain(value)
        if type(bare) is not self.scalar:
            bare = self.scalar(bare)
        is_float = issubclass(self.scalar, np.floating)
        self.values[self._place(index)] = Number(bare, self.operations) if is_float else int(bare)

    def _place(self, index: Any) -> tuple[int, ...]:
        place = index if isinstance(index, tuple) else (index,)
        inside = len(place) == len(self.shape)
        for position, size in zip(place, self.shape, strict=False):
            inside = inside and 0 <= position < size
        if not inside:
            line = sys._getframe(2).f_lineno
            raise KernelError(f"line {line}: a local array has shape {self.shape}, got index {list(place)}")
        return place


@cache
def _places(code: CodeType) -> list[Place]:
    return [tuple(place) for place in code.co_positions()]  # type: ignore[misc]


def place_in_source(frame: Any) -> Place:
    """Where the frame stands. The position in its bytecode would not do: Python moves it while it specialises code."""
    return _places(frame.f_code)[frame.f_lasti // 2]
