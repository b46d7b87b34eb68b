"""The FMA probe does the arithmetic that it counts, in registers, and nothing beats it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("numba")

from minillm.perf import fma_kernel
from minillm.perf.fma_probe import FmaProbe

ROOT = Path(__file__).resolve().parents[2]


def chains_by_hand(steps: int, factor: float, addend: float) -> float:
    sums = torch.arange(fma_kernel.NUM_SUMS, dtype=torch.float64) + addend
    for _ in range(steps):
        sums = sums * factor + addend
    return float(sums.sum()) * fma_kernel.UNIT.lanes


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_every_step_is_taken(turns: int) -> None:
    """The total after few steps tells their number: chains that were skipped or merged would miss it."""
    factor, addend = torch.tensor(0.9).numpy()[()], torch.tensor(0.3).numpy()[()]
    expected = chains_by_hand(turns * fma_kernel.STEPS_PER_TURN, float(factor), float(addend))
    assert fma_kernel.run_chains(turns, factor, addend) == pytest.approx(expected, rel=1e-5)
    together = fma_kernel.run_chains_in_parallel(turns, factor, addend, 3)
    assert together == pytest.approx(3 * expected, rel=1e-5)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_flops_counted(num_threads: int) -> None:
    probe = FmaProbe(num_threads, seconds=0.002)
    assert probe.flops == probe.turns * 8 * fma_kernel.NUM_SUMS * fma_kernel.UNIT.lanes * 2 * num_threads
    assert 1e8 < probe.flops_per_s(repeats=1) / num_threads < 1e13


def test_threads_are_torchs() -> None:
    assert FmaProbe(seconds=1e-4).num_threads == torch.get_num_threads()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="at least 1 thread, got 0"):
        FmaProbe(0)
    with pytest.raises(ValueError, match="positive number of seconds, got -1"):
        FmaProbe(1, seconds=-1)
    with pytest.raises(ValueError, match="at least 1 repeat, got 0"):
        FmaProbe(1, seconds=1e-4).flops_per_s(repeats=0)


@pytest.mark.parametrize("name", ["torch", "packed"])
def test_nothing_beats_it(name: str) -> None:
    """On one thread, best against best, for as many turns as a busy machine needs to show both at their best."""
    from minillm.gemm import LADDER

    multiply = {"torch": torch.mm, "packed": LADDER["packed"]}[name]
    a, b = torch.randn(384, 384), torch.randn(384, 384)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        multiply(a, b)
        probe = FmaProbe(1, seconds=0.001)  # about as long as the product takes
        ceiling = reached = 0.0
        for turn in range(500):
            ceiling = max(ceiling, probe.flops_per_s(repeats=1))
            started = time.perf_counter()
            multiply(a, b)
            reached = max(reached, 2 * 384**3 / (time.perf_counter() - started))
            if turn >= 10 and reached < 1.05 * ceiling:
                break
        assert reached < 1.05 * ceiling
    finally:
        torch.set_num_threads(num_threads)


def test_the_loop_holds_nothing_but_multiply_adds(tmp_path: Path) -> None:
    """Read in the machine code, in a process whose compiler cache is empty."""
    code = """
import re
from minillm.perf import fma_kernel as kernel
if kernel.UNIT.name not in ("AVX-512", "AVX2"):
    raise SystemExit
kernel.run_chains(1, 0.5, 0.5)
(code,) = kernel.run_chains.inspect_asm().values()
(body,) = [body for body in re.split(r"\\n[.\\w]+:", code) if body.count("vfmadd") > kernel.NUM_SUMS]
fused = [line for line in body.splitlines() if "vfmadd" in line]
assert len(fused) % (kernel.STEPS_PER_TURN * kernel.NUM_SUMS) == 0, len(fused)
assert len({line.split(",")[-1] for line in fused}) == kernel.NUM_SUMS, "chains share registers"
register = "%zmm" if kernel.UNIT.lanes == 16 else "%ymm"
assert all(line.count(register) == 3 for line in fused), "an operand comes from memory"
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=100, env=environment)


def test_without_numba() -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from minillm.perf.fma_probe import FmaProbe\n"
        "try: FmaProbe(1)\n"
        "except ValueError as error: assert 'minillm[fast]' in str(error)\n"
        "else: raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=100)
