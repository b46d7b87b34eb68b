"""One program of a launch: tiles come into its memory on the chip, are computed with, and go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minillm.perf.meter.hbm import HbmTensor, Region
from minillm.perf.meter.onchip import OnChip
from minillm.perf.meter.tile import SPECIAL, Tile
from minillm.perf.meter.trace import Event

if TYPE_CHECKING:
    from minillm.perf.meter.machine import Kernel


class Program:
    """One program (CUDA: a thread block), with an SRAM of its own: `with kernel.program(i, j) as sram`.

    Everything it holds is gone when the `with` block ends, as on a GPU.
    """

    def __init__(self, kernel: Kernel, coordinates: tuple[int, ...]) -> None:
        self.kernel = kernel
        self.meter = kernel.meter
        self.coordinates = coordinates
        self.number = 0  # its place in the launch, from 1
        self.sram = OnChip("SRAM", self.meter.sram_bytes)
        self.registers = OnChip("the register file", self.meter.register_bytes)
        self._counts = kernel.counts

    def __enter__(self) -> Program:
        self.number = self.kernel._enter(self)
        return self

    def __exit__(self, *error: object) -> None:
        self.free(*self._tiles())
        self.kernel._leave()

    @property
    def held_bytes(self) -> int:
        """Bytes of SRAM that its tiles hold now."""
        return self.sram.held_bytes

    # ---- between HBM and the chip

    def load(self, region: Region | HbmTensor, *, in_registers: bool = False) -> Tile:
        """Copy a region of HBM into a new tile. Counts its bytes as read from HBM.

        in_registers  past SRAM, as a thread does with what it alone needs
        """
        region = self._region(region)
        data = region.tensor._read(region, self)
        tile = self._allocate(data, region.name, region.tensor.bytes_per_number, in_registers)
        moved = region.num_bytes
        if self.meter.cache is not None and self.meter.cache.read(region):
            self._counts.cache_bytes_read += moved
            moved = 0
        self._counts.bytes_read += moved
        region.tensor.bytes_read += moved
        self._count_sram(written=tile)
        self._record("load", region.name, moved, region)
        return tile

    def store(self, tile: Tile, region: Region | HbmTensor) -> None:
        """Copy a tile to a region of HBM of the same shape. Counts the region's bytes as written to HBM."""
        region, data = self._stored(tile, region)
        region.tensor._write(region, self, data)
        self._count_store(tile, region)
        self._record("store", region.name, region.num_bytes, region)

    def atomic_add(self, tile: Tile, region: Region | HbmTensor) -> None:
        """Add a tile to a region of HBM, which other programs of the launch may add to as well.

        Counts the region's bytes as read and as written, and one FLOP a number.
        """
        region, data = self._stored(tile, region)
        region.tensor._add(region, self, data)
        self._counts.bytes_read += region.num_bytes
        region.tensor.bytes_read += region.num_bytes
        self._counts.other_flops += data.numel()
        self._count_store(tile, region)
        self._record("atomic_add", region.name, 2 * region.num_bytes, region)

    # ---- on the chip

    def zeros(self, *shape: int | Sequence[int], **where: Any) -> Tile:
        """A new tile of zeros: zeros(32, 32) or zeros((32, 32)). Keywords are those of `full`."""
        return self.full(shape[0] if len(shape) == 1 else shape, 0.0, **where)  # type: ignore[arg-type]

    def full(
        self,
        shape: int | Sequence[int],
        value: float,
        *,
        name: str = "tile",
        stored_as: torch.dtype | None = None,
        in_registers: bool = False,
    ) -> Tile:
        """A new tile filled with one value.

        name          for error messages and pictures
        stored_as     the dtype that its bytes are counted in; None = the meter's
        in_registers  keep it in registers instead of SRAM: computing with it then moves nothing through SRAM
        """
        size = (shape,) if isinstance(shape, int) else tuple(shape)
        data = torch.full(size, value, dtype=self.meter.dtype)
        tile = self._allocate(data, name, (stored_as or self.meter.stored_as).itemsize, in_registers)
        self._count_sram(written=tile)
        return tile

    def matmul(
        self,
        a: Tile,
        b: Tile,
        *,
        into: Tile | None = None,
        register_tile: tuple[int, int] | None = None,
        stored_as: torch.dtype | None = None,
        name: str = "matmul",
    ) -> Tile:
        """a (m, k) @ b (k, n): a new tile (m, n), or added to the tile `into`. 2·m·n·k FLOPs.

        register_tile  (rows, columns) of the result that are worked on at a time, the meter's by default. Each pass
                       over k brings rows + columns numbers from SRAM for rows · columns multiply-adds, so a is read
                       ceil(n / columns) times and b ceil(m / rows) times.
        stored_as      of a new tile: the dtype that its bytes are counted in; None = that of the wider operand
        name           of a new tile, for error messages and pictures
        """
        a_data, b_data = self._own(a)._numbers(), self._own(b)._numbers()
        if a_data.dim() != 2 or b_data.dim() != 2 or a_data.shape[1] != b_data.shape[0]:
            raise ValueError(f"expected matrices (m, k) and (k, n) to multiply, got {a.shape} and {b.shape}")
        (m, k), n = a_data.shape, b_data.shape[1]
        rows, columns = register_tile or self.meter.register_tile
        if rows < 1 or columns < 1:
            raise ValueError(f"expected a register tile of at least 1 × 1, got {rows} × {columns}")
        if into is None:
            result = self._allocate_result([a, b], a_data @ b_data, name, stored_as)
        elif self._own(into).shape != (m, n):
            raise ValueError(f"expected a tile of shape {(m, n)} to add the product into, got {into.shape}")
        else:
            result = into
            result._numbers().addmm_(a_data, b_data)
            self._count_sram(read=result)
        self._count_sram(read=a, times=-(-n // columns))
        self._count_sram(read=b, times=-(-m // rows))
        self._count_sram(written=result)
        self._counts.matmul_flops += 2 * m * n * k
        self._record("compute", "matmul", 0, None)
        return result

    def free(self, *tiles: Tile) -> None:
        """Give the memory of these tiles back. Freeing twice raises ValueError."""
        for tile in tiles:
            self._own(tile)._numbers()
            self._memory(tile).release(tile.base)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Free at the end of the `with` block what was made in it: the body of a loop over tiles, usually."""
        before = {id(tile) for tile in self._tiles()}
        yield
        self.free(*(tile for tile in self._tiles() if id(tile) not in before))

    # ---- counting

    def _compute(
        self, operation: str, data: Tensor, operands: list[Any], *, flops: int | None = None, into: Tile | None = None
    ) -> Tile:
        """Count an operation on tiles whose numbers are known, and put them into a new tile or into `into`."""
        tiles = [operand for operand in operands if isinstance(operand, Tile)]
        for tile in tiles:
            self._count_sram(read=tile)
        if into is None:
            into = self._allocate_result(tiles, data, operation, None)
        else:
            into._numbers().copy_(data)
        self._count_sram(written=into)
        if operation in SPECIAL:
            self._counts.special_ops += data.numel()
        else:
            self._counts.other_flops += data.numel() if flops is None else flops
        self._record("compute", operation, 0, None)
        return into

    def _allocate_result(self, operands: list[Tile], data: Tensor, name: str, stored_as: torch.dtype | None) -> Tile:
        """A new tile for a result: as wide as the widest operand, in registers if all operands are."""
        if data.is_floating_point():
            data = data.to(self.meter.dtype)
        widths = [t.bytes_per_number for t in operands if t._data.is_floating_point() == data.is_floating_point()]
        width = stored_as.itemsize if stored_as else max(widths, default=self.meter.stored_as.itemsize)
        return self._allocate(data, name, width, all(tile.in_registers for tile in operands))

    def _allocate(self, data: Tensor, name: str, bytes_per_number: int, in_registers: bool) -> Tile:
        self._refuse_outside()
        tile = Tile(self, data, name, bytes_per_number, in_registers)
        self._memory(tile).hold(tile)
        counts = self._counts
        counts.peak_sram_bytes = max(counts.peak_sram_bytes, self.sram.held_bytes)
        counts.peak_register_bytes = max(counts.peak_register_bytes, self.registers.held_bytes)
        return tile

    def _count_store(self, tile: Tile, region: Region) -> None:
        self._counts.bytes_written += region.num_bytes
        region.tensor.bytes_written += region.num_bytes
        self._count_sram(read=tile)
        if self.meter.cache is not None:
            self.meter.cache.write(region)

    def _count_sram(self, *, read: Tile | None = None, written: Tile | None = None, times: int = 1) -> None:
        if read is not None and not read.in_registers:
            self._counts.sram_bytes_read += times * read.num_bytes
        if written is not None and not written.in_registers:
            self._counts.sram_bytes_written += times * written.num_bytes

    def _record(self, kind: str, name: str, num_bytes: int, region: Region | None) -> None:
        if self.meter.trace is None:
            return
        held = tuple((tile.name, tile.num_bytes) for tile in self.sram.tiles.values())
        tensor, bounds = (region.tensor.name, region.bounds) if region else ("", ())
        self.meter.trace.append(Event(self.kernel.name, self.coordinates, kind, name, tensor, bounds, num_bytes, held))

    # ---- what is refused

    def _own(self, tile: Tile) -> Tile:
        if not isinstance(tile, Tile):
            name = getattr(tile, "name", f"a {type(tile).__name__}")
            raise ValueError(f"expected a tile, got {name}: load it with sram.load")
        if tile.program is not self:
            raise ValueError(f"{tile} belongs to another program: each has an SRAM of its own")
        return tile

    def _region(self, region: Region | HbmTensor) -> Region:
        self._refuse_outside()
        if isinstance(region, HbmTensor):
            region = region[()]
        if not isinstance(region, Region):
            raise ValueError(f"expected a region of HBM, such as a[0:32, 0:32], got a {type(region).__name__}")
        if self.meter.tensors.get(region.tensor.name) is not region.tensor:
            raise ValueError(f"{region.tensor.name} is no tensor of this meter")
        return region

    def _stored(self, tile: Tile, region: Region | HbmTensor) -> tuple[Region, Tensor]:
        region = self._region(region)
        data = self._own(tile)._numbers()
        if tile.shape != region.shape:
            raise ValueError(f"expected a tile of shape {region.shape} for {region.name}, got {tile.name} {tile.shape}")
        return region, data

    def _refuse_outside(self) -> None:
        if self.kernel.running is not self:
            raise ValueError("a program works inside its with block: with kernel.program(i, j) as sram: …")

    def _memory(self, tile: Tile) -> OnChip:
        return self.registers if tile.in_registers else self.sram

    def _tiles(self) -> list[Tile]:
        return [*self.sram.tiles.values(), *self.registers.tiles.values()]
