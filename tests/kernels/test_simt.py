"""The thread-level ladder: each rung equals the oracle, and its warps ask for exactly what the closed forms say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.kernels.simt import SIMT_LADDER, simt_matmul, simulate_matmul, transpose
from minillm.perf.warp import Run, bind, simulate

# Sizes small enough to simulate; a warp still has 32 lanes and the kernels still share tiles.
SMALL = {
    "naive": {"BLOCK_M": 8, "BLOCK_N": 8},
    "coalesced": {"BLOCK_M": 8, "BLOCK_N": 8},
    "shared_tile": {"BLOCK_M": 8, "BLOCK_N": 8, "BLOCK_K": 8},
    "register_column": {"BLOCK_M": 8, "BLOCK_N": 8, "BLOCK_K": 4, "THREAD_M": 2},
    "register_tile": {"BLOCK_M": 8, "BLOCK_N": 8, "BLOCK_K": 4, "THREAD_M": 2, "THREAD_N": 2},
}


def random_problem(m: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(m + 7 * n + 49 * k)
    return torch.randn(m, k, generator=generator), torch.randn(k, n, generator=generator)


def check(c: Tensor, a: Tensor, b: Tensor) -> None:
    exact, magnitude = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    assert bool(((c.double() - exact).abs() <= (a.shape[1] + 1) * 2.0**-24 * magnitude).all())


def run_of(name: str, m: int, n: int, k: int, **constants: int) -> Run:
    a, b = random_problem(m, n, k)
    c, run = simulate_matmul(name, a, b, **constants)
    check(c, a, b)
    return run


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(list(SIMT_LADDER)),
    m=st.integers(1, 19),
    n=st.integers(1, 19),
    k=st.integers(0, 11),
    a_by_columns=st.booleans(),
)
def test_any_shape(name: str, m: int, n: int, k: int, a_by_columns: bool) -> None:
    a, b = random_problem(m, n, k)
    a = a.T.contiguous().T if a_by_columns else a
    c, _ = simulate_matmul(name, a, b, **SMALL[name])
    check(c, a, b)


@pytest.mark.parametrize("name", list(SIMT_LADDER))
def test_nan_and_infinity_stay_in_their_rows_and_columns(name: str) -> None:
    a, b = random_problem(9, 10, 5)
    a[2, 1], b[4, 7] = float("nan"), float("inf")
    c, _ = simulate_matmul(name, a, b, **SMALL[name])
    assert c[2].isnan().all() and c.isnan().sum() == 10
    assert c[[0, 1, *range(3, 9)], 7].isinf().all() and c.isinf().sum() == 8


# ---- what the warps ask for; M, N and K are multiples of the tiles


M, N, K = 32, 64, 8


def test_naive_touches_a_sector_a_lane() -> None:
    run = run_of("naive", M, N, K)
    steps = M * N * K // 32  # of a warp
    a, b, c = (run.traffic("global", array=name) for name in "abc")
    assert (a.requests, a.sectors, b.requests, b.sectors) == (steps, 32 * steps, steps, steps)
    assert (c.requests, c.sectors) == (M * N // 32, M * N)
    assert run.flops == 2 * M * N * K and run.barriers == 0 and run.shared_bytes == 0


def test_coalesced_touches_five_sectors_a_step() -> None:
    run = run_of("coalesced", M, N, K)
    steps = M * N * K // 32
    a, b, c = (run.traffic("global", array=name) for name in "abc")
    assert (a.requests, a.sectors, b.requests, b.sectors) == (steps, steps, steps, 4 * steps)
    assert (c.requests, c.sectors) == (M * N // 32, M * N // 8) and run.flops == 2 * M * N * K


def test_naive_moves_six_times_what_coalesced_moves() -> None:
    naive, coalesced = (run_of(name, M, N, K).traffic("global", "load").bytes_moved for name in ("naive", "coalesced"))
    assert naive / coalesced == 33 / 5


@pytest.mark.parametrize(("m", "n", "k", "tile"), [(32, 48, 16, 16), (32, 32, 32, 32)])
def test_shared_tile(m: int, n: int, k: int, tile: int) -> None:
    run = run_of("shared_tile", m, n, k, BLOCK_M=tile, BLOCK_N=tile, BLOCK_K=tile)
    assert run.traffic("global", "load", "a").bytes_moved == 4 * m * k * (n // tile)
    assert run.traffic("global", "load", "b").bytes_moved == 4 * k * n * (m // tile)
    assert run.traffic("global", "store", "c").bytes_moved == 4 * m * n
    assert run.traffic("shared", "load").requests == 2 * m * n * k // 32  # two for each multiply-add of a warp
    assert run.traffic("shared").conflicts == 0 and run.shared_bytes == 2 * 4 * tile * tile
    assert run.barriers == 2 * (k // tile) * run.num_blocks and run.flops == 2 * m * n * k


def test_register_column() -> None:
    m, n, k, block, thread_m = 32, 64, 8, 32, 4
    run = run_of("register_column", m, n, k, BLOCK_M=block, BLOCK_N=block, BLOCK_K=8, THREAD_M=thread_m)
    loads = run.traffic("shared", "load")
    assert loads.requests * thread_m == m * n * k // 32 * (thread_m + 1) and loads.conflicts == 0
    assert run.traffic("global", "load").bytes_moved == 4 * m * n * k * 2 // block
    assert run.threads_per_block == block * block // thread_m and run.shared_bytes == 2 * 4 * block * 8


def test_register_tile() -> None:
    m, n, k, block, thread = 32, 64, 8, 32, 4
    run = run_of("register_tile", m, n, k, BLOCK_M=block, BLOCK_N=block, BLOCK_K=8, THREAD_M=thread, THREAD_N=thread)
    loads = run.traffic("shared", "load")
    assert loads.requests * thread == m * n * k // 32 * 2  # (1/4 + 1/4) for each multiply-add
    assert run.traffic("shared").conflicts == 0
    assert run.traffic("global", "load").bytes_moved == 4 * m * n * k * 2 // block
    assert run.traffic("global", "store").sectors_per_request == 4  # 8 columns of 4 rows


@pytest.mark.parametrize("name", ["register_column", pytest.param("register_tile", marks=pytest.mark.slow)])
def test_the_real_sizes_are_free_of_conflicts(name: str) -> None:
    constants = SIMT_LADDER[name].constants
    run = run_of(name, constants["BLOCK_M"], constants["BLOCK_N"], 1)
    assert run.traffic("shared").conflicts == 0 and run.num_blocks == 1
    assert run.traffic("global", "store").bytes_moved == 4 * constants["BLOCK_M"] * constants["BLOCK_N"]


def test_each_rung_moves_less_than_the_last() -> None:
    moved = [run_of(name, 32, 64, 8, **sizes).traffic("global").bytes_moved for name, sizes in LADDER_SIZES.items()]
    assert moved == sorted(moved, reverse=True) and len(set(moved)) == 4  # the last two differ in shared memory only


LADDER_SIZES = {
    "naive": {},
    "coalesced": {},
    "shared_tile": {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16},
    "register_column": {"BLOCK_M": 32, "BLOCK_N": 32, "THREAD_M": 4},
    "register_tile": {"BLOCK_M": 32, "BLOCK_N": 32, "THREAD_M": 4, "THREAD_N": 4},
}


@pytest.mark.parametrize(("row_words", "passes"), [(32, 32), (33, 1), (34, 2), (36, 4)])
def test_padding_a_tile_removes_its_conflicts(row_words: int, passes: int) -> None:
    """gcd(words a row, 32) lanes of a column share a bank."""
    source = np.random.default_rng(0).standard_normal((40, 70)).astype(np.float32)
    target = np.zeros((70, 40), np.float32)
    run = simulate(bind(transpose, ROW_WORDS=row_words), grid=(3, 2), block=(32, 32), args=(source, target))
    assert np.array_equal(target, source.T)
    assert max(request.passes for request in run.select("shared", "load")) == passes
    assert run.traffic("shared", "store").conflicts == 0


# ---- the ladder itself


def test_every_rung_says_what_it_gains() -> None:
    percents = [rung.reference_percent for rung in SIMT_LADDER.values()]
    assert percents == [1.3, 8.5, 12.8, 36.5, 68.7]
    for name, rung in SIMT_LADDER.items():
        assert rung.name == name and rung.what_changed
        assert f"{rung.reference_percent} %" in " ".join((rung.kernel.__doc__ or "").split())


def test_launches_cover_c() -> None:
    assert SIMT_LADDER["coalesced"].launch_sizes(33, 65) == ((3, 2), (32, 32))
    assert SIMT_LADDER["naive"].launch_sizes(33, 65) == ((2, 3), (32, 32))
    assert SIMT_LADDER["register_tile"].launch_sizes(128, 129) == ((2, 1), (16, 16))
    assert SIMT_LADDER["register_column"].launch_sizes(1, 1) == ((1, 1), (64, 8))


def test_inputs_are_refused() -> None:
    a = torch.ones(4, 4)
    for function in (simulate_matmul, simt_matmul):
        with pytest.raises(ValueError, match="no rung 'fast'; there are naive, coalesced"):
            function("fast", a, a)
        with pytest.raises(ValueError, match=r"expected float32 a \(m, k\) and b \(k, n\)"):
            function("naive", a, torch.ones(3, 4))
        with pytest.raises(ValueError, match="float64"):
            function("naive", a.double(), a.double())
    with pytest.raises(ValueError, match="naive has the constants BLOCK_M, BLOCK_N; got TILE"):
        simulate_matmul("naive", a, a, TILE=8)
    with pytest.raises(ValueError, match="no whole number"):
        simulate_matmul("register_column", a, a, BLOCK_M=12, THREAD_M=8)
    with pytest.raises(ValueError, match="three are equal"):
        simulate_matmul("shared_tile", a, a, BLOCK_K=16)
    with pytest.raises(ValueError, match="empty|at least 1"):
        simulate_matmul("naive", torch.ones(0, 4), a)


def test_cpu_tensors_are_for_the_simulators() -> None:
    pytest.importorskip("numba")
    from minillm.kernels.simt import is_simulated

    if not is_simulated():
        with pytest.raises(ValueError, match="simulate_matmul"):
            simt_matmul("naive", torch.ones(4, 4), torch.ones(4, 4))


COMPILE = """
import re, sys
from numba import cuda, float32
from minillm.kernels.simt import SIMT_LADDER, transpose
from minillm.perf.warp import bind
from numba.cuda.cudadrv.nvvm import NVVM
try:
    NVVM()
except Exception:
    sys.exit(77)
matrix = float32[:, ::1]
for name, kernel in {**{name: rung.kernel for name, rung in SIMT_LADDER.items()}, "transpose": transpose}.items():
    arguments = (matrix,) * kernel.__code__.co_argcount
    ptx, _ = cuda.compile_ptx(bind(kernel, cuda=cuda), arguments, cc=(8, 0))
    assert ".f64" not in ptx and ".local" not in ptx, name
    if name == "register_tile":
        assert (ptx.count("fma.rn.f32"), len(re.findall(r"ld\\.shared", ptx))) == (64, 16), ptx
"""


def test_numba_compiles_the_rungs_for_sm_80() -> None:
    """In float32 all the way, totals in registers, the products of a step unrolled. Needs NVIDIA's compiler library."""
    pytest.importorskip("numba")
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run([sys.executable, "-c", COMPILE], cwd=root, capture_output=True, text=True, timeout=100)
    if result.returncode == 77:
        pytest.skip("numba finds no libNVVM: the thread-level kernels are not compiled for a GPU")
    assert result.returncode == 0, result.stderr
