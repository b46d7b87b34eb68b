"""What the 32 lanes of a warp ask of memory in one instruction, and what the memory does for it.

Global memory answers in sectors of 32 bytes: the cost of a load is the number of different sectors that its lanes
touch, whatever share of them is used. Shared memory has 32 banks of 4 bytes side by side: different words of one
bank are delivered one after the other, the same word goes to all lanes at once.

Source: NVIDIA, CUDA C++ Best Practices Guide, "Coalesced Access to Global Memory" and "Shared Memory and Memory Banks".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WARP_SIZE = 32
SECTOR_BYTES = 32
NUM_BANKS = 32
BANK_BYTES = 4

Index3 = tuple[int, int, int]


def sectors_touched(addresses: Sequence[int | None], itemsize: int) -> list[int]:
    """The different sectors, in order, of elements of `itemsize` bytes at these byte addresses; None is no access."""
    touched = {
        sector
        for address in addresses
        if address is not None
        for sector in range(address // SECTOR_BYTES, (address + itemsize - 1) // SECTOR_BYTES + 1)
    }
    return sorted(touched)


def bank_passes(addresses: Sequence[int | None], itemsize: int) -> int:
    """How many times shared memory must deliver so that every lane gets its element: 1 is free of conflicts.

    A pass serves at most one word of each bank. Elements wider than a bank are served in several passes by design:
    half a warp at a time for 8 bytes, a quarter for 16.
    """
    lanes_at_once = max(1, WARP_SIZE * BANK_BYTES // max(itemsize, BANK_BYTES))
    passes = 0
    for first in range(0, len(addresses), lanes_at_once):
        words_of_bank = defaultdict(set)
        for address in addresses[first : first + lanes_at_once]:
            if address is not None:
                for word in range(address // BANK_BYTES, (address + itemsize - 1) // BANK_BYTES + 1):
                    words_of_bank[word % NUM_BANKS].add(word)
        passes += max((len(words) for words in words_of_bank.values()), default=0)
    return passes


@dataclass(frozen=True)
class Request:
    """One load or store of one warp.

    space      "global" or "shared"; `kind` is "load" or "store"
    array      the name of the kernel's argument, or "shared 0", "shared 1" … in the order of allocation
    line       of the kernel's source file
    block      (x, y, z) of the block, `warp` the number of the warp in it
    addresses  one a lane: bytes from the start of the array (global) or of the block's shared memory; None for a lane
               that took no part
    """

    space: str
    kind: str
    array: str
    line: int
    block: Index3
    warp: int
    addresses: tuple[int | None, ...]
    itemsize: int

    @property
    def bytes_requested(self) -> int:
        """Bytes of the elements asked for; lanes that ask for the same one count it each."""
        return self.itemsize * sum(address is not None for address in self.addresses)

    @property
    def sectors(self) -> int:
        """Sectors of global memory that are moved; 0 for shared memory."""
        return len(sectors_touched(self.addresses, self.itemsize)) if self.space == "global" else 0

    @property
    def passes(self) -> int:
        """Deliveries of shared memory; 0 for global memory."""
        return bank_passes(self.addresses, self.itemsize) if self.space == "shared" else 0

    @property
    def conflicts(self) -> int:
        """Passes beyond those that elements of this width need without a conflict."""
        words = max(1, self.itemsize // BANK_BYTES)
        lanes_at_once = WARP_SIZE // words
        groups = {lane // lanes_at_once for lane, address in enumerate(self.addresses) if address is not None}
        return max(0, self.passes - len(groups))


@dataclass(frozen=True)
class Traffic:
    """Sums over requests.

    requests         instructions of a warp
    bytes_requested  of elements, by all lanes
    sectors          of 32 bytes, and `bytes_moved` = 32 · sectors: what global memory delivers. No cache is simulated
    passes           of shared memory, and `conflicts`: those that a better layout would save
    """

    requests: int = 0
    bytes_requested: int = 0
    sectors: int = 0
    passes: int = 0
    conflicts: int = 0

    @property
    def bytes_moved(self) -> int:
        return SECTOR_BYTES * self.sectors

    @property
    def sectors_per_request(self) -> float:
        """1 if all lanes share a sector, 4 for 32 neighbouring floats, 32 if each lane has one of its own."""
        return self.sectors / self.requests if self.requests else 0.0

    @property
    def efficiency(self) -> float:
        """Bytes requested over bytes moved. Above 1 where lanes share an element."""
        return self.bytes_requested / self.bytes_moved if self.sectors else 0.0


def total(requests: Iterable[Request]) -> Traffic:
    """The sums over these requests."""
    chosen = list(requests)
    return Traffic(
        requests=len(chosen),
        bytes_requested=sum(request.bytes_requested for request in chosen),
        sectors=sum(request.sectors for request in chosen),
        passes=sum(request.passes for request in chosen),
        conflicts=sum(request.conflicts for request in chosen),
    )
