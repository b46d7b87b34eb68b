"""A cache between HBM and the programs, as a GPU's L2: the regions used last."""

from __future__ import annotations

from collections import OrderedDict

from minillm.perf.meter.hbm import Region


class TileCache:
    """The regions that were loaded or stored last, as many as fit; the least recently used one goes first.

    A load is served from here if the very same region is held; a store writes through to HBM and stays. Real caches
    hold lines of 128 bytes instead of tiles, which comes to the same where tiles don't overlap.
    """

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.held_bytes = 0
        self._regions: OrderedDict[tuple[int, tuple[tuple[int, int], ...]], Region] = OrderedDict()

    def read(self, region: Region) -> bool:
        """Whether the region is held; it is from now on, if it fits at all."""
        key = _key(region)
        if key in self._regions:
            self._regions.move_to_end(key)
            return True
        self._keep(region)
        return False

    def write(self, region: Region) -> None:
        """Keep what was stored, and drop every older copy of any part of it."""
        for key in [key for key, held in self._regions.items() if held.overlaps(region)]:
            self.held_bytes -= self._regions.pop(key).num_bytes
        self._keep(region)

    def _keep(self, region: Region) -> None:
        if region.num_bytes > self.num_bytes:
            return
        self._regions[_key(region)] = region
        self.held_bytes += region.num_bytes
        while self.held_bytes > self.num_bytes:
            _, oldest = self._regions.popitem(last=False)
            self.held_bytes -= oldest.num_bytes


def _key(region: Region) -> tuple[int, tuple[tuple[int, int], ...]]:
    return id(region.tensor), region.bounds
