"""What is counted: bytes, FLOPs, launches, as exact integers, and the table of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

PEAKS = ("peak_sram_bytes", "peak_register_bytes")  # the largest of several kernels; everything else adds up


@dataclass
class Counts:
    """What one kernel, or all of them together, did."""

    bytes_read: int = 0  # from HBM
    bytes_written: int = 0  # to HBM
    cache_bytes_read: int = 0  # loads that the cache in front of HBM served instead
    sram_bytes_read: int = 0
    sram_bytes_written: int = 0
    matmul_flops: int = 0  # 2·m·n·k a product
    other_flops: int = 0  # elementwise operations and reductions, 1 for each number
    special_ops: int = 0  # exp, log, sqrt …: a GPU has few units for them
    launches: int = 0
    programs: int = 0
    peak_sram_bytes: int = 0  # the most that one program held
    peak_register_bytes: int = 0

    @property
    def hbm_bytes(self) -> int:
        """Bytes that crossed the border of HBM, read and written."""
        return self.bytes_read + self.bytes_written

    @property
    def sram_bytes(self) -> int:
        """Bytes that crossed the border of SRAM, read and written."""
        return self.sram_bytes_read + self.sram_bytes_written

    @property
    def non_matmul_flops(self) -> int:
        """Operations outside matrix products: `other_flops` and `special_ops`."""
        return self.other_flops + self.special_ops

    @property
    def flops(self) -> int:
        """All operations, the special ones counted as one each."""
        return self.matmul_flops + self.non_matmul_flops

    @property
    def intensity(self) -> float:
        """FLOPs a byte of HBM traffic; infinite without traffic."""
        return self.flops / self.hbm_bytes if self.hbm_bytes else float("inf")


def add_up(parts: Iterable[Counts]) -> Counts:
    """The sum of several counts; a peak is the largest of the peaks."""
    whole = Counts()
    for part in parts:
        for field in fields(Counts):
            mine, other = getattr(whole, field.name), getattr(part, field.name)
            setattr(whole, field.name, max(mine, other) if field.name in PEAKS else mine + other)
    return whole


class Traffic(Protocol):
    """A tensor in HBM, as far as the table shows it."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def num_bytes(self) -> int: ...
    @property
    def bytes_read(self) -> int: ...
    @property
    def bytes_written(self) -> int: ...


def report(kernels: dict[str, Counts], tensors: Iterable[Traffic], sram_bytes: int) -> str:
    """A table of kernels and one of tensors, at most 100 columns wide."""
    heads = ("kernel", "launches", "programs", "HBM read", "written", "matmul FLOPs", "other", "special", "SRAM peak")
    total = add_up(kernels.values())
    rows = [_kernel_row(name, counts) for name, counts in kernels.items()]
    if len(kernels) > 1:
        rows.append(_kernel_row("total", total))
    by_tensor = [
        (tensor.name, " × ".join(map(str, tensor.shape)) or "1 number")
        + tuple(map(in_bytes, (tensor.num_bytes, tensor.bytes_read, tensor.bytes_written)))
        for tensor in tensors
    ]
    sram = f"SRAM holds {in_bytes(sram_bytes)} for each program; its tiles were read for "
    sram += f"{in_bytes(total.sram_bytes_read)} and written for {in_bytes(total.sram_bytes_written)}."
    cache = [f"The cache served {in_bytes(total.cache_bytes_read)} of loads."] if total.cache_bytes_read else []
    return "\n".join(
        [
            *_table(heads, rows),
            sram,
            *cache,
            "",
            *_table(("tensor", "shape", "size", "read", "written"), by_tensor),
        ]
    )


def in_bytes(count: int) -> str:
    """A number of bytes in binary units: 12288 -> "12 KiB", 1000 -> "1000 B"."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count} B"


def in_thousands(count: int) -> str:
    """A number of operations: 65536 -> "65.54 k", 512 -> "512"."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return str(count)


def _kernel_row(name: str, counts: Counts) -> tuple[str, ...]:
    return (
        name,
        f"{counts.launches}",
        f"{counts.programs}",
        in_bytes(counts.bytes_read),
        in_bytes(counts.bytes_written),
        in_thousands(counts.matmul_flops),
        in_thousands(counts.other_flops),
        in_thousands(counts.special_ops),
        in_bytes(counts.peak_sram_bytes),
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    lines = []
    for row in (heads, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells))
    return lines
