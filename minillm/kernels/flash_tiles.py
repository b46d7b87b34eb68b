"""Which tiles the attention kernels use: blocks of queries and keys, warps, stages, by head_dim and dtype."""

from __future__ import annotations

from dataclasses import dataclass

from minillm.kernels.gemm_tiles import shared_limit

SMALLEST_DOT = 16  # rows, columns and depth of the smallest product on tensor cores
MOST_DECODE_ROWS = 64  # query rows of one tile when decoding; more take several programs


@dataclass(frozen=True)
class FlashTile:
    """One way to compile an attention kernel: a tile of block_q × block_k scores at a time, by num_warps · 32 threads,
    while up to num_stages − 1 further blocks are on their way from memory.
    """

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int
    min_capability: int = 80  # of the GPUs on which it keeps everything in registers

    def shared_bytes(self, block_d: int, block_v: int, itemsize: int) -> int:
        """An estimate for the forward pass: the stages of K and V, and Q. The compiler's figure is the build gate's."""
        return (self.num_stages * self.block_k * (block_d + block_v) + self.block_q * block_d) * itemsize


# 16 bits, head_dim up to 64: acc and the scores are small, so that long blocks of K fit into registers.
TILES_64 = (
    FlashTile(128, 128, 8, 3),  # the fewest steps: long sequences on H100 and H200
    FlashTile(128, 64, 8, 3),  # half the registers: two programs an SM, one at its exp while the other multiplies
    FlashTile(128, 64, 4, 3),  # 32 rows a warp: each fragment of K and V read from shared memory serves twice as many
    FlashTile(64, 64, 4, 3),  # short sequences: more blocks for the SMs
    FlashTile(64, 32, 4, 4),  # least shared memory: four programs an SM and more
)
# 16 bits, head_dim up to 128: acc is 128 × 128 numbers in float32, 64 registers of a thread with 8 warps and all that
# there are with 4. Hopper's wgmma reads K and V from shared memory; Ampere's mma wants them in registers as well.
TILES_128 = (
    FlashTile(128, 128, 8, 2, min_capability=90),
    FlashTile(128, 64, 8, 3),
    FlashTile(128, 32, 8, 3),  # A100 and smaller: the least shared memory at 128 rows
    FlashTile(64, 64, 4, 2),  # short sequences
    FlashTile(64, 32, 4, 3),
)
# 16 bits, head_dim up to 256: acc is 128 registers of a thread at 128 rows and 8 warps.
TILES_256 = (
    FlashTile(128, 64, 8, 2, min_capability=90),
    FlashTile(64, 64, 8, 2),
    FlashTile(64, 32, 8, 2),
)
# float32 has no tensor cores: a product's operands, too, are held in registers.
TILES_FP32 = {
    64: (FlashTile(64, 32, 8, 2), FlashTile(32, 32, 4, 2)),
    128: (FlashTile(32, 64, 8, 2), FlashTile(32, 16, 8, 2)),
    256: (FlashTile(32, 32, 8, 2), FlashTile(16, 16, 8, 1)),
}
# (dK and dV, dQ), by the wider head dim.
BACKWARD_TILES = {
    64: (FlashTile(32, 128, 8, 2), FlashTile(128, 64, 8, 3)),
    128: (FlashTile(32, 64, 8, 2), FlashTile(128, 32, 8, 2)),
    256: (FlashTile(32, 32, 8, 1), FlashTile(64, 32, 8, 2)),
}
BACKWARD_TILES_FP32 = {
    64: (FlashTile(32, 32, 8, 2), FlashTile(64, 32, 8, 2)),
    128: (FlashTile(16, 32, 8, 1), FlashTile(32, 16, 8, 1)),
    256: (FlashTile(16, 16, 8, 1), FlashTile(16, 16, 8, 1)),
}
INTERPRETER_TILE = FlashTile(32, 32, 4, 1)  # large enough to be quick, small enough to have full and boundary tiles
INTERPRETER_DECODE_TILE = FlashTile(16, 16, 4, 1)


def padded_dim(head_dim: int) -> int:
    """The power of two that a tile is wide: Triton's blocks have no other sizes. 96 takes 128, 192 takes 256."""
    return max(SMALLEST_DOT, 1 << (head_dim - 1).bit_length())


def forward_tiles(k_head_dim: int, v_head_dim: int, *, itemsize: int, capability: int) -> tuple[FlashTile, ...]:
    """Those worth trying for these head dims, largest first. Raises ValueError for head dims over 256."""
    block_d, block_v = padded_dim(k_head_dim), padded_dim(v_head_dim)
    widest = max(64, block_d, block_v)
    if widest > 256:
        raise ValueError(f"expected head dims of at most 256, got k_head_dim {k_head_dim}, v_head_dim {v_head_dim}")
    tiles = TILES_FP32[widest] if itemsize == 4 else {64: TILES_64, 128: TILES_128, 256: TILES_256}[widest]
    limit = shared_limit(capability)
    fitting = tuple(
        tile
        for tile in tiles
        if tile.min_capability <= capability and tile.shared_bytes(block_d, block_v, itemsize) <= limit
    )
    return fitting or (min(tiles, key=lambda tile: tile.shared_bytes(block_d, block_v, itemsize)),)


def backward_tiles(k_head_dim: int, v_head_dim: int, *, itemsize: int) -> tuple[FlashTile, FlashTile]:
    """For dK and dV, and for dQ: the largest that keep everything in registers on Ampere and on Hopper.

    dK and dV are two sums beside four tiles of scores and gradients, so that few queries at a time are left.
    """
    tiles = BACKWARD_TILES_FP32 if itemsize == 4 else BACKWARD_TILES
    return tiles[max(64, padded_dim(k_head_dim), padded_dim(v_head_dim))]


def decode_tile(num_rows: int, k_head_dim: int, v_head_dim: int, *, itemsize: int) -> FlashTile:
    """For `num_rows` query rows that share a KV head.

    Rows are padded to 16, 32 or 64. About 32 KiB of keys and values a step, and as much on its way for each further
    stage, keep memory busy: an SM's share of what must be in flight is about that much. float32 needs its registers for
    operands.
    """
    width = padded_dim(k_head_dim) + padded_dim(v_head_dim)
    if itemsize == 4:
        return FlashTile(16, 32 if width <= 512 else 16, 8, 2)
    block_q = min(MOST_DECODE_ROWS if width <= 512 else 16, padded_dim(num_rows))
    block_k = min(128, max(16, _power_of_two(32 * 1024 // (width * itemsize))))
    return FlashTile(block_q, block_k, 8 if width > 512 or block_q > 32 else 4, 2 if width > 512 else 3)


def _power_of_two(number: int) -> int:
    """The largest one that isn't larger."""
    return 1 << (max(number, 1).bit_length() - 1)
