"""What an operation costs on a GPU, predicted by a formula or counted by the meter; and one launch after another.

Eager torch makes a launch of each call: a kernel that reads its operands from HBM and writes its result back, where the
next one reads it again. `launch` is such a kernel on the meter. A fused kernel keeps what lies between on the chip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minillm.perf.meter import HbmTensor, Meter, Program, Region, Tile


@dataclass(frozen=True)
class Cost:
    """Launches, bytes across the border of HBM, and operations: `special_ops` are exp, log, rsqrt, sigmoid."""

    launches: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    other_flops: int = 0
    special_ops: int = 0

    @property
    def hbm_bytes(self) -> int:
        return self.bytes_read + self.bytes_written

    @property
    def flops(self) -> int:
        """All operations, the special ones counted as one each."""
        return self.other_flops + self.special_ops

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Blocks:
    """What one program works on: so many rows (tokens), and of long rows so many columns at a time."""

    rows: int = 4
    columns: int = 128

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"expected blocks of at least 1 row and 1 column, got {self.rows} and {self.columns}")


@dataclass(frozen=True)
class Widths:
    """Bytes of a number: as tensors are stored, and as statistics are computed (float32 or wider)."""

    own: int = 4

    @property
    def wide(self) -> int:
        return max(self.own, 4)

    @property
    def casts(self) -> bool:
        """Whether the two differ, so that eager torch has to cast: one launch each way."""
        return self.wide != self.own


def counted(meter: Meter) -> Cost:
    """What the meter counted so far."""
    total = meter.total
    return Cost(total.launches, total.bytes_read, total.bytes_written, total.other_flops, total.special_ops)


def launch(
    meter: Meter,
    name: str,
    compute: Callable[..., Tile],
    inputs: Sequence[HbmTensor],
    out: HbmTensor,
    block_rows: int,
) -> HbmTensor:
    """One eager call: a launch whose programs load a block of rows of each input, compute, and store it; returns `out`.

    Rows are the axis before the last. An input with one row (a weight) is loaded by each program. `compute` gets a tile
    for each input and may write into it.
    """
    with meter.kernel(name) as kernel:
        for number, rows in enumerate(row_blocks(out.shape[-2], block_rows)):
            with kernel.program(number) as sram:
                tiles = [load_rows(sram, tensor, rows, whole=tensor.shape[-2] == 1) for tensor in inputs]
                sram.store(compute(*tiles), rows_of(out, rows))
    return out


def row_blocks(num_rows: int, block_rows: int) -> list[slice]:
    """Slices of so many rows; the last may be shorter."""
    return [slice(start, min(start + block_rows, num_rows)) for start in range(0, num_rows, block_rows)]


def load_rows(sram: Program, tensor: HbmTensor, rows: slice, *, whole: bool = False) -> Tile:
    return sram.load(tensor if whole else rows_of(tensor, rows))


def rows_of(tensor: HbmTensor, rows: slice) -> Region:
    """Some rows (the axis before the last) of a matrix, or of all heads of (heads, tokens, head_dim)."""
    return tensor[(*[slice(None)] * (len(tensor.shape) - 2), rows)]
