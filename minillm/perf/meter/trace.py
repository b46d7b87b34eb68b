"""What happened, event by event: made by a meter with `trace=True`, drawn by `film_strip` and `animation`."""

from __future__ import annotations

from typing import NamedTuple


class Event(NamedTuple):
    """One step of one program."""

    kernel: str
    program: tuple[int, ...]  # its coordinates
    kind: str  # load, store, atomic_add or compute
    name: str  # the region, or the operation
    tensor: str  # the one in HBM; "" for compute
    bounds: tuple[tuple[int, int], ...]  # of the region, start and stop of each dimension; () for compute
    num_bytes: int  # that crossed the border of HBM
    held: tuple[tuple[str, int], ...]  # the tiles in SRAM after the step: name, bytes

    @property
    def sram_bytes(self) -> int:
        """Bytes of SRAM held after the step."""
        return sum(num_bytes for _, num_bytes in self.held)
