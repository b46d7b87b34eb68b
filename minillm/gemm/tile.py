"""The register tile: how many numbers of C a core can keep in its vector registers.

A core multiplies and adds one *vector* of numbers at a time (SIMD: one instruction, 16 float32 lanes with AVX-512).
Numbers that stay in its vector registers cost nothing to read again, and there are only 16 or 32 of them. A tile of
C, `rows` × `vectors` registers, is summed there while k runs:

                       b[k, 0:16]  b[k, 16:32]        for each k: `vectors` loads of B, `rows` of A,
                     ┌───────────┬───────────┐        and rows · vectors multiply-adds:
     a[0, k] in all  │  sum 0,0  │  sum 0,1  │
     a[1, k] lanes   │  sum 1,0  │  sum 1,1  │            FLOPs per number loaded
         ⋮           │     ⋮     │     ⋮     │                = 2 · rows · columns / (rows + columns)
     a[11, k]        └───────────┴───────────┘            12 × 32: 17.5       1 × 1: 1

The more square and the larger the tile, the more work a load feeds; it ends where the registers end. Enough sums must
run side by side, too: a multiply-add takes about 4 cycles and up to two start in each, so that fewer than 8 sums leave
the units waiting for their own results.
"""

from __future__ import annotations

import platform
from collections.abc import Set
from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """A tile of C of `rows` × `vectors` registers with `lanes` float32 numbers each."""

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        """Numbers in a row of the tile."""
        return self.vectors * self.lanes

    @property
    def registers(self) -> int:
        """Vector registers in use: the sums, a row of B, and one number of A in all lanes."""
        return self.rows * self.vectors + self.vectors + 1

    @property
    def flops_per_load(self) -> float:
        """FLOPs for each number loaded from A and B."""
        return 2 * self.rows * self.columns / (self.rows + self.columns)


@dataclass(frozen=True)
class VectorUnit:
    """What the instruction set offers: `registers` vector registers of `lanes` float32 numbers."""

    name: str
    lanes: int
    registers: int

    def packed_tile(self) -> Tile:
        """The tile of large products: two or three vectors wide, as many rows as the registers hold, near square."""
        # 12 × 32 (AVX-512), 6 × 16 (AVX2), 8 × 12 (NEON): the shapes of BLIS for these units, or one row less.
        rows, vectors = {(16, 32): (12, 2), (8, 16): (6, 2), (4, 32): (8, 3)}.get((self.lanes, self.registers), (6, 2))
        return Tile(rows, vectors, self.lanes)

    def flat_tile(self, rows: int = 8) -> Tile:
        """The tile of products with few rows: exactly `rows`, and as wide as the registers allow."""
        return Tile(rows, max(1, (self.registers - 1) // (rows + 1)), self.lanes)

    def num_independent_sums(self) -> int:
        """Sums that can run side by side beside two constants: enough to hide the latency of a multiply-add."""
        return self.registers - 4


def vector_unit(machine: str, features: Set[str]) -> VectorUnit:
    """The widest vectors of a processor.

    machine   "x86_64", "AMD64", "arm64", "aarch64" …, as `platform.machine()` says it
    features  LLVM's names of what it can do, "avx512f" say
    """
    if machine.lower() in ("arm64", "aarch64"):
        return VectorUnit("NEON", lanes=4, registers=32)
    if "avx512f" in features:
        return VectorUnit("AVX-512", lanes=16, registers=32)
    if {"avx2", "fma"} <= features:
        return VectorUnit("AVX2", lanes=8, registers=16)
    return VectorUnit("portable", lanes=4, registers=16)  # SSE2; LLVM makes do where there is less


def host_vector_unit() -> VectorUnit:
    """That of this machine, as far as numba compiles for it (needs numba)."""
    from numba.core.codegen import get_host_cpu_features

    features = get_host_cpu_features().split(",")  # "+avx2,-avx512f,…"
    return vector_unit(platform.machine(), {name[1:] for name in features if name.startswith("+")})
