"""A memory on the chip: a capacity, and the tiles that hold it now."""

from __future__ import annotations

from minillm.perf.meter.counts import in_bytes
from minillm.perf.meter.tile import Tile


class OnChip:
    """The SRAM of one program, or its registers.

    name      for messages
    capacity  in bytes; None = not limited
    """

    def __init__(self, name: str, capacity: int | None) -> None:
        self.name = name
        self.capacity = capacity
        self.held_bytes = 0
        self.tiles: dict[int, Tile] = {}  # by identity, oldest first

    def hold(self, tile: Tile) -> None:
        """Make room for a tile. Raises ValueError if it doesn't fit, naming what is in its way."""
        if self.capacity is not None and self.held_bytes + tile.num_bytes > self.capacity:
            holders = ", ".join(f"{other.name} {other.shape} {other.num_bytes}" for other in self.tiles.values())
            raise ValueError(
                f"{tile.name} {tile.shape} needs {tile.num_bytes} bytes, but {self.name} has "
                f"{self.capacity - self.held_bytes} of {self.capacity} ({in_bytes(self.capacity)}) free; "
                f"held: {holders or 'nothing'}"
            )
        self.tiles[id(tile)] = tile
        self.held_bytes += tile.num_bytes

    def release(self, tile: Tile) -> None:
        """Give the room of a tile back; from now on using it raises ValueError."""
        del self.tiles[id(tile)]
        self.held_bytes -= tile.num_bytes
        tile.is_free = True
