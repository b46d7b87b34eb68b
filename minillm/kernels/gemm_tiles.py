"""Which tile a matrix product uses, and into how many parts it splits K."""

from __future__ import annotations

from dataclasses import dataclass

SHARED_BYTES = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}  # of a program, by compute capability
MAX_SPLITS = 16
BARRIER_BYTES = 1024  # more than the copy engine's barriers take
MOST_SUMS = 64  # of a thread without tensor cores, which also needs registers for both factors


@dataclass(frozen=True)
class Tile:
    """One way to compile the kernel.

    A program makes block_m × block_n numbers of C in steps of block_k along K, with num_warps · 32 threads, while up to
    num_stages − 1 further steps are on their way from memory. group_m is explained in `order`.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    group_m: int = 8

    def shared_bytes(self, itemsize: int) -> int:
        """An estimate: the stages of both operands. The compiler's figure is the build gate's business."""
        return (self.block_m + self.block_n) * self.block_k * itemsize * self.num_stages


# Arithmetic per byte from L2 grows with the tile (block_m · block_n / (block_m + block_n) multiply-adds a number
# loaded), and so do registers; small tiles give every SM something to do on small problems.
TILES = (
    Tile(128, 256, 64, 8, 3),  # the most reuse: large products in 16 bits on H100 and H200
    Tile(128, 128, 64, 8, 3),
    Tile(128, 128, 64, 4, 4),  # fewer threads, so more registers and a longer queue of loads
    Tile(128, 128, 32, 4, 4),  # half the shared memory: A100, or two programs an SM
    Tile(64, 256, 32, 4, 4),  # flat C
    Tile(128, 64, 32, 4, 4),  # float32, and C with fewer columns
    Tile(64, 128, 32, 4, 4),
    Tile(64, 64, 32, 4, 5),  # C too small for the tiles above to fill the GPU
    Tile(64, 64, 64, 4, 3),
    Tile(32, 64, 64, 2, 4),  # a few tens of rows
)
# The persistent kernel, which has operands and the finished tile in shared memory. The first that fits is taken.
PERSISTENT_TILES = (
    Tile(128, 256, 64, 8, 3),
    Tile(128, 128, 64, 8, 4),
    Tile(128, 128, 32, 8, 4),  # tf32
)
INTERPRETER_TILE = Tile(64, 64, 32, 4, 1)  # its cost follows the number of programs and steps
FEW_ROWS = 16


def fitting_tiles(
    tiles: tuple[Tile, ...], m: int, n: int, k: int, *, itemsize: int, capability: int, precision: str = "ieee"
) -> tuple[Tile, ...]:
    """Those worth trying for C (m, n): they fit into shared memory, are no more than twice too large for the problem,
    and leave a thread enough registers.

    At least one, the smallest that fits, is always left.
    """
    limit = shared_limit(capability)
    uses_tensor_cores = itemsize < 4 or precision == "tf32"
    fitting = [
        tile
        for tile in tiles
        if tile.shared_bytes(itemsize) <= limit
        and (uses_tensor_cores or tile.block_m * tile.block_n <= MOST_SUMS * 32 * tile.num_warps)
    ]
    small = [
        tile
        for tile in fitting
        if tile.block_m < 2 * max(m, 16) and tile.block_n < 2 * max(n, 16) and tile.block_k < 2 * k
    ]
    return tuple(small) or (min(fitting or tiles, key=lambda tile: tile.shared_bytes(itemsize)),)


def few_rows_tile(num_rows: int, itemsize: int) -> Tile:
    """For C of at most 16 rows, made as the transpose, Cᵀ = Bᵀ Aᵀ, so that the few are block_n: tensor cores take 8
    there. 256 bytes of each row of Bᵀ at a time keep memory busy and fit into any GPU's shared memory.
    """
    return Tile(64, 8 if num_rows <= 8 else 16, 256 // itemsize, 4, 4)


def fitting_persistent_tiles(*, itemsize: int, capability: int) -> tuple[Tile, ...]:
    """Those of PERSISTENT_TILES that fit with a tile of C beside the stages, in the order of preference."""
    limit = shared_limit(capability) - BARRIER_BYTES
    return tuple(
        tile
        for tile in PERSISTENT_TILES
        if tile.shared_bytes(itemsize) + tile.block_m * tile.block_n * itemsize <= limit
    )


def shared_limit(capability: int) -> int:
    """Bytes of shared memory a program may take; the least of current GPUs for an unknown one."""
    return SHARED_BYTES.get(capability, min(SHARED_BYTES.values()))


def choose_split_k(m: int, n: int, k: int, tile: Tile, num_sms: int) -> int:
    """Parts of K that run side by side, 1 to 16: a power of two, doubled while all programs still fit on the SMs at
    once and each part keeps four steps or more. Parts cost a float32 C each, written and read again.
    """
    tiles = -(-m // tile.block_m) * -(-n // tile.block_n)
    splits = 1
    while splits < MAX_SPLITS and 2 * splits * tiles <= num_sms and 2 * splits * 4 * tile.block_k <= k:
        splits *= 2
    return splits
