"""Tiles of every instruction set fit its registers, and their kernels compute the same on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minillm.gemm.tile import Tile, VectorUnit, vector_unit

ROOT = Path(__file__).resolve().parents[2]
AVX512 = {"sse2", "avx", "avx2", "fma", "avx512f"}
UNITS = {
    "AVX-512": vector_unit("x86_64", AVX512),
    "AVX2": vector_unit("AMD64", AVX512 - {"avx512f"}),
    "NEON": vector_unit("arm64", {"neon"}),
    "portable": vector_unit("x86_64", {"sse2", "avx", "avx2"}),  # AVX2 without multiply-add
}


def test_units() -> None:
    assert {name: unit.name for name, unit in UNITS.items()} == {name: name for name in UNITS}
    assert vector_unit("aarch64", set()) == UNITS["NEON"] and vector_unit("riscv64", set()) == UNITS["portable"]
    tiles = {name: (unit.packed_tile().rows, unit.packed_tile().columns) for name, unit in UNITS.items()}
    assert tiles == {"AVX-512": (12, 32), "AVX2": (6, 16), "NEON": (8, 12), "portable": (6, 8)}
    flat = {name: (unit.flat_tile().rows, unit.flat_tile().columns) for name, unit in UNITS.items()}
    assert flat == {"AVX-512": (8, 48), "AVX2": (8, 8), "NEON": (8, 12), "portable": (8, 4)}


@pytest.mark.parametrize("unit", UNITS.values(), ids=lambda unit: unit.name)
def test_tiles_fit_the_registers(unit: VectorUnit) -> None:
    for tile in (unit.packed_tile(), unit.flat_tile(), unit.flat_tile(rows=4)):
        assert tile.registers <= unit.registers and tile.lanes == unit.lanes
    assert unit.packed_tile().rows * unit.packed_tile().vectors >= 8  # to hide the latency of a multiply-add
    assert 8 <= unit.num_independent_sums() <= unit.registers - 2


def test_work_for_a_load() -> None:
    assert Tile(12, 2, 16).flops_per_load == pytest.approx(768 / 44)
    assert Tile(1, 1, 1).flops_per_load == 1
    assert Tile(12, 2, 16).registers == 27


CHILD = """
import torch
from minillm.gemm import tile
unit = tile.VectorUnit({name!r}, {lanes}, {registers})
tile.host_vector_unit = lambda: unit
from minillm.gemm import LADDER, flat, registers
from minillm.perf.fma_probe import FmaProbe
assert registers.TILE == unit.packed_tile()
for m, k, n in [(1, 1, 1), (8, 5, 48), (13, 70, 100), (25, 401, 33)]:
    a, b = torch.randn(m, k), torch.randn(k, n)
    bound = k * 2.0**-24 * (a.double().abs() @ b.double().abs())
    for multiply in (LADDER["register tile"], LADDER["packed"], lambda a, b: flat.flat_matmul(a, b, num_threads=1)):
        assert bool(((multiply(a, b) - a.double() @ b.double()).abs() <= bound).all()), (m, k, n, multiply)
assert FmaProbe(1, seconds=1e-4).flops_per_s(repeats=1) > 0
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["AVX2", "NEON"])
def test_tiles_of_other_machines_compute_the_same(name: str, tmp_path: Path) -> None:
    """In a process of its own with a compiler cache of its own: LLVM builds any vector from those that it has."""
    pytest.importorskip("numba")
    unit = UNITS[name]
    code = CHILD.format(name=name, lanes=unit.lanes, registers=unit.registers)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=110, env=environment)


@pytest.mark.slow
def test_the_sums_live_in_registers(tmp_path: Path) -> None:
    """Read in the machine code: the packed loop multiplies and adds, and nothing goes to the stack in between."""
    pytest.importorskip("numba")
    code = """
import re, numpy
from minillm.gemm import packed
from minillm.gemm.tile import host_vector_unit
unit = host_vector_unit()
if unit.name not in ("AVX-512", "AVX2"):
    raise SystemExit
a = numpy.ones((50, 50), numpy.float32)
packed.multiply(a, a, a.copy())
(code,) = packed._multiply_blocks.inspect_asm().values()
register = "%zmm" if unit.lanes == 16 else "%ymm"
loops = [body for body in re.split(r"\\n[.\\w]+:", code) if body.count("vfmadd") >= unit.packed_tile().rows]
assert len(loops) >= 2, "a whole tile and one at the edge"
for body in loops:
    fused = [line for line in body.splitlines() if "vfmadd" in line]
    targets = {line.split(",")[-1].strip() for line in fused}
    assert all(target.startswith(register) for target in targets)
    assert len(targets) == unit.packed_tile().rows * unit.packed_tile().vectors, len(targets)
    inner = body[body.index("vfmadd") : body.rindex("vfmadd")]
    assert "(%rsp)" not in inner, "a sum is spilled to the stack"
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=110, env=environment)
