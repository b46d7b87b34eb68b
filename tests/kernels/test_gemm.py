"""The Triton matrix products in the interpreter: any shape and strides, the order of tiles, splits, errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from minillm.kernels import few_row_matmul, matmul, persistent_matmul, tile_matmul
from minillm.kernels.gates import Problem, compare
from minillm.kernels.gemm_problems import exact_matmul, matmul_bound
from minillm.kernels.gemm_tiles import (
    PERSISTENT_TILES,
    TILES,
    Tile,
    choose_split_k,
    few_rows_tile,
    fitting_persistent_tiles,
    fitting_tiles,
)
from minillm.kernels.launch import is_interpreting
from minillm.kernels.order import grouped_order, strips_read
from minillm.kernels.processes import Worker
from tests.kernels.in_child import gemv_beside_a_guard, order_of_programs, tuned_matmul

SHARED_WORKER = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    problem = Problem("", (a, b))
    exact = exact_matmul(a.double(), b.double())
    _, share, found = compare(c, exact, matmul_bound(problem, exact))
    assert c.dtype == a.dtype and not found and share <= 1


@SHARED_WORKER
@given(
    m=st.integers(0, 50),
    n=st.integers(0, 50),
    k=st.integers(0, 70),
    a_by_columns=st.booleans(),
    b_by_columns=st.booleans(),
    split_k=st.integers(1, 3),
    sizes=st.tuples(*[st.sampled_from([16, 32])] * 3),
    group_m=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)
def test_any_shape_layout_and_tile(
    interpreter: Worker,
    m: int,
    n: int,
    k: int,
    a_by_columns: bool,
    b_by_columns: bool,
    split_k: int,
    sizes: tuple[int, int, int],
    group_m: int,
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(m * 7 + n)
    a, b = torch.randn(m, k, generator=generator).to(dtype), torch.randn(k, n, generator=generator).to(dtype)
    a = a.T.contiguous().T if a_by_columns else a
    b = b.T.contiguous().T if b_by_columns else b
    tile = Tile(*sizes, num_warps=4, num_stages=2, group_m=group_m)
    check(interpreter.call(tile_matmul, a, b, tile=tile, split_k=split_k), a, b)


@SHARED_WORKER
@given(m=st.integers(0, 20), n=st.integers(0, 300), k=st.integers(0, 600), transposed=st.booleans())
def test_the_dispatcher_takes_any_number_of_rows(interpreter: Worker, m: int, n: int, k: int, transposed: bool) -> None:
    generator = torch.Generator().manual_seed(n)
    a = torch.randn(m, k, generator=generator)
    b = torch.randn(n, k, generator=generator).T if transposed else torch.randn(k, n, generator=generator)
    check(interpreter.call(matmul, a, b), a, b)


@pytest.mark.parametrize("n", [1, 31, 33, 64])
def test_a_row_ends_where_it_should(n: int, interpreter: Worker) -> None:
    assert interpreter.call(gemv_beside_a_guard, n, 20)


def test_persistent_programs_share_out_more_tiles_than_there_are(interpreter: Worker) -> None:
    """4 programs, 5 × 6 tiles with tails."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(150, 72, generator=generator), torch.randn(72, 188, generator=generator)
    tile = Tile(32, 32, 16, 4, 2, group_m=3)
    check(interpreter.call(persistent_matmul, a, b, tile=tile), a, b)


@pytest.mark.parametrize(("tiles_m", "tiles_n", "group_m"), [(5, 3, 2), (4, 4, 4), (1, 7, 8), (6, 2, 1), (9, 9, 3)])
def test_the_kernel_walks_the_order_that_is_drawn(
    tiles_m: int, tiles_n: int, group_m: int, interpreter: Worker
) -> None:
    order = grouped_order(tiles_m, tiles_n, group_m)
    assert sorted(order) == [(i, j) for i in range(tiles_m) for j in range(tiles_n)]  # each tile once
    assert interpreter.call(order_of_programs, tiles_m * 16 - 3, tiles_n * 32 - 1, 16, 32, group_m) == order


def test_grouping_reads_fewer_strips() -> None:
    """The figures of the picture in `order`."""
    assert strips_read(grouped_order(9, 9, 1)[:9], 9) == 10
    assert strips_read(grouped_order(9, 9, 3)[:9], 9) == 6
    assert grouped_order(9, 9, 3)[:4] == [(0, 0), (1, 0), (2, 0), (0, 1)] and grouped_order(9, 9, 3)[27] == (3, 0)
    with pytest.raises(ValueError, match="group_m"):
        grouped_order(2, 2, 0)


def test_the_autotuner_tries_the_tiles_that_fit_once_for_a_shape(interpreter: Worker) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(70, 40, generator=generator), torch.randn(40, 100, generator=generator)
    c, tried = interpreter.call(tuned_matmul, a, b)
    check(c, a, b)
    assert tried == len(fitting_tiles(TILES, 70, 100, 40, itemsize=4, capability=80)) > 1
    again, tried = interpreter.call(tuned_matmul, a, b)
    assert tried == 0 and torch.equal(again, c)


def test_split_k_gives_the_same_bits_every_time(interpreter: Worker) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(20, 700, generator=generator), torch.randn(700, 24, generator=generator)
    results = [interpreter.call(tile_matmul, a, b, split_k=4) for _ in range(3)]
    assert all(torch.equal(results[0], result) for result in results)
    check(results[0], a, b)


def test_splits_fill_the_gpu_and_no_more() -> None:
    tile = Tile(128, 128, 64, 4, 4)
    assert choose_split_k(4096, 4096, 4096, tile, 132) == 1  # 1024 tiles
    assert choose_split_k(128, 128, 8192, tile, 132) == 16  # the most there is
    assert choose_split_k(128, 4096, 8192, tile, 132) == 4  # 32 tiles · 4 = 128
    assert choose_split_k(128, 128, 512, tile, 132) == 2  # four steps each
    assert choose_split_k(128, 128, 64, tile, 132) == 1


def test_tiles_fit_the_gpu_and_the_problem() -> None:
    half = {"itemsize": 2, "capability": 90}
    assert fitting_tiles(TILES, 4096, 4096, 4096, **half) == TILES
    assert all(tile.block_m <= 32 for tile in fitting_tiles(TILES, 20, 4096, 4096, **half))
    assert fitting_tiles(TILES, 1, 1, 1, **half)  # never none
    single = fitting_tiles(TILES, 4096, 4096, 4096, itemsize=4, capability=80)
    assert all(tile.shared_bytes(4) <= 163 * 1024 for tile in single) and Tile(128, 128, 32, 4, 4) not in single
    on_tensor_cores = fitting_tiles(TILES, 4096, 4096, 4096, itemsize=4, capability=80, precision="tf32")
    assert Tile(128, 128, 32, 4, 4) in on_tensor_cores
    assert fitting_persistent_tiles(itemsize=2, capability=90)[0] == PERSISTENT_TILES[0]
    assert fitting_persistent_tiles(itemsize=4, capability=90) == PERSISTENT_TILES[-1:]
    assert few_rows_tile(8, 2).block_n == 8 and few_rows_tile(9, 2).block_n == 16
    assert max(few_rows_tile(16, itemsize).shared_bytes(itemsize) for itemsize in (2, 4)) <= 99 * 1024


def test_inputs_are_refused_with_what_was_expected(interpreter: Worker) -> None:
    x = torch.ones(4, 4)
    for function, a, b, options, message in [
        (matmul, x, torch.ones(3, 4), {}, r"expected a \(m, k\) and b \(k, n\), got \(4, 4\) and \(3, 4\)"),
        (tile_matmul, torch.ones(4), x, {}, "expected a"),
        (matmul, x, x, {"precision": "fp8"}, "expected precision 'ieee' or 'tf32', got 'fp8'"),
        (matmul, x, x.half(), {}, "one dtype on one device"),
        (matmul, x.double(), x.double(), {}, "expected float32, float16 or bfloat16"),
        (matmul, x.bfloat16(), x.bfloat16(), {}, "interpreter gets bfloat16 wrong"),
        (few_row_matmul, torch.ones(17, 4), x, {}, "at most 16 rows, got 17"),
        (persistent_matmul, torch.ones(4, 3), torch.ones(3, 4), {}, "tensor descriptors want"),
        (persistent_matmul, torch.ones(8, 8)[:, ::2], x, {}, "tensor descriptors want"),
    ]:
        with pytest.raises(ValueError, match=message):
            interpreter.call(function, a, b, **options)


def test_cpu_tensors_need_the_interpreter(compiler: Worker) -> None:
    for function in (matmul, tile_matmul, persistent_matmul, few_row_matmul):
        with pytest.raises(ValueError, match="expected CUDA tensors, got .*TRITON_INTERPRET=1"):
            compiler.call(function, torch.ones(4, 4), torch.ones(4, 4))
    assert compiler.call(is_interpreting) is False


def test_without_triton_one_line_says_what_to_install() -> None:
    code = "import sys; sys.modules['triton'] = None\nimport minillm.kernels\nminillm.kernels.matmul"
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=100)
    assert result.stderr.splitlines()[-1] == (
        "ValueError: matmul needs Triton (Linux only): pip install 'minillm[kernels]'"
    )


def test_the_package_loads_kernels_when_asked() -> None:
    import minillm.kernels

    assert minillm.kernels.matmul.__doc__ and not hasattr(minillm.kernels, "no_such_kernel")
