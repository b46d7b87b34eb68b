"""Each rung on the meter multiplies rightly and moves what its closed form says, ragged edges included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.gemm import LADDER
from minillm.gemm.metered import (
    RUNGS,
    Blocks,
    double_buffered_peak,
    grouped_moved,
    grouped_working_set,
    register_sram_read,
    run,
)
from minillm.kernels.simt import SIMT_LADDER
from minillm.perf.meter import Meter

SIZES = st.integers(1, 20)
BLOCKS = st.builds(Blocks, st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
OPTIONS: dict[str, tuple[str, ...]] = {  # the sizes that a rung can be given
    "naive ijk": (),
    "reordered ikj": (),
    "tiled": ("blocks",),
    "register tile": ("blocks", "registers"),
    "packed": ("blocks", "registers"),
    "shared_tile": ("blocks",),
    "register_column": ("blocks",),
    "double buffered": ("blocks",),
    "split-K": ("blocks", "num_splits"),
    "persistent": ("blocks", "num_programs"),
    "grouped": ("blocks", "group"),
}
SAME = {"threads": "packed", "naive": "naive ijk", "coalesced": "naive ijk", "register_tile": "register tile"}
OF_BYTES = ("blocks", "num_splits")  # those that decide how many bytes move


def matrices(m: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(m * n * k)
    shapes = (m, k), (k, n)
    return tuple(torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in shapes)  # type: ignore


def test_every_rung_is_tested_and_has_its_ladders_name() -> None:
    assert RUNGS.keys() == OPTIONS.keys() | SAME.keys()
    assert all(RUNGS[name] is RUNGS[other] for name, other in SAME.items())
    assert {*LADDER, *SIMT_LADDER} <= RUNGS.keys()


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=12, deadline=None)
@given(data=st.data(), m=SIZES, n=SIZES, k=SIZES)
def test_product_and_bytes(name: str, data: st.DataObject, m: int, n: int, k: int) -> None:
    drawn = {
        "blocks": data.draw(BLOCKS),
        "registers": data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4))),
        "num_splits": data.draw(st.integers(1, 5)),
        "num_programs": data.draw(st.integers(1, 5)),
        "group": data.draw(st.integers(1, 4)),
    }
    sizes: dict[str, Any] = {option: drawn[option] for option in OPTIONS[name]}
    a, b = matrices(m, n, k)
    meter = run(name, a, b, **sizes)
    torch.testing.assert_close(meter.tensors["C"].result(), a @ b)
    moved = RUNGS[name].moved(m, n, k, **{option: sizes[option] for option in OF_BYTES if option in sizes})
    assert (meter.total.bytes_read, meter.total.bytes_written) == (8 * moved.read, 8 * moved.written)
    assert meter.total.matmul_flops == 2 * m * n * k
    assert meter.tensors.keys() == {"A", "B", "C"}  # what was borrowed is given back


@pytest.mark.parametrize("name", OPTIONS)
def test_formulas_hold_with_the_sizes_left_out(name: str) -> None:
    a, b = matrices(33, 40, 37)
    meter = run(name, a.float(), b.float())
    moved = RUNGS[name].moved(33, 40, 37)
    assert (meter.total.bytes_read, meter.total.bytes_written) == (4 * moved.read, 4 * moved.written)


def test_formulas_by_hand() -> None:
    m, n, k = 64, 96, 32
    assert RUNGS["naive ijk"].moved(m, n, k) == (2 * 64 * 96 * 32, 64 * 96)
    assert RUNGS["reordered ikj"].moved(m, n, k).read == 64 * 32 + 64 * 96 * 32
    assert RUNGS["tiled"].moved(m, n, 128) == (128 * 96 + 64 * 128 * 3 + 3 * 64 * 96, 4 * 64 * 96)
    assert RUNGS["shared_tile"].moved(m, n, k).read == 64 * 32 * 3 + 32 * 96 * 2
    assert RUNGS["packed"].moved(m, n, k) == (64 * 32 * 4 + 32 * 96 * 3, 64 * 96 + 64 * 32 + 32 * 96)
    assert RUNGS["split-K"].moved(m, n, 128, num_splits=4) == (64 * 128 * 3 + 128 * 96 * 2 + 4 * 64 * 96, 5 * 64 * 96)
    assert register_sram_read(m, n, k, registers=(8, 4)) == m * n * k // 8 + m * n * k // 4


def test_each_rung_moves_less_than_the_one_before() -> None:
    read = [RUNGS[name].moved(512, 512, 512).read for name in ("naive ijk", "reordered ikj", "shared_tile")]
    assert read[0] > 1.9 * read[1] > 1.9 * 15 * read[2]


@settings(max_examples=20, deadline=None)
@given(SIZES, SIZES, SIZES, BLOCKS, st.integers(1, 5), st.integers(1, 5))
def test_register_tiles_and_sram(m: int, n: int, k: int, blocks: Blocks, rows: int, columns: int) -> None:
    a, b = matrices(m, n, k)
    meter = run("register tile", a, b, blocks=blocks, registers=(rows, columns))
    assert meter.total.sram_bytes_read == 8 * register_sram_read(m, n, k, blocks=blocks, registers=(rows, columns))
    assert meter.total.sram_bytes_written == meter.total.bytes_read
    assert meter.total.peak_register_bytes == 8 * min(m, blocks.m) * min(n, blocks.n)
    assert meter.total.peak_sram_bytes == 8 * (min(m, blocks.m) + min(n, blocks.n)) * min(k, blocks.k)


@pytest.mark.parametrize("k", [4, 8, 32])
def test_two_buffers_take_twice_the_sram(k: int) -> None:
    blocks = Blocks(16, 8, 8)
    peaks = [run(name, *matrices(32, 16, k), blocks=blocks).total for name in ("register tile", "double buffered")]
    assert peaks[1].peak_sram_bytes == 8 * double_buffered_peak(k, blocks=blocks)
    assert peaks[1].peak_sram_bytes == peaks[0].peak_sram_bytes * (2 if k > 8 else 1)
    assert peaks[0].bytes_read == peaks[1].bytes_read


def test_a_register_column_reads_a_once_for_each_column() -> None:
    a, b = matrices(32, 32, 32)
    assert run("register_column", a, b).total.sram_bytes_read == 8 * register_sram_read(32, 32, 32, registers=(8, 1))


def test_programs_and_launches() -> None:
    a, b = matrices(64, 64, 64)
    names = [name for name in OPTIONS if name not in ("naive ijk", "reordered ikj")]
    counts = {name: run(name, a, b).total for name in names}
    assert {name: (c.launches, c.programs) for name, c in counts.items()} == {
        "tiled": (1, 1),
        "shared_tile": (1, 4),
        "register_column": (1, 4),
        "register tile": (1, 4),
        "packed": (2, 12),
        "double buffered": (1, 4),
        "split-K": (2, 12),  # two splits of 32 are all that 64 gives
        "persistent": (1, 4),
        "grouped": (1, 4),
    }
    assert run("persistent", a, b, num_programs=3).total.programs == 3
    splits = run("split-K", *matrices(8, 8, 24), blocks=Blocks(8, 8, 8), num_splits=2)
    assert splits.total.programs == 2 + 1  # never more splits than asked for


@pytest.mark.parametrize("shape", [(64, 256, 64), (61, 250, 50), (16, 256, 16)])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 9])
def test_grouped_order_pays_with_a_cache(shape: tuple[int, int, int], group: int) -> None:
    m, n, k = shape
    blocks = Blocks(8, 8, 8)
    numbers = grouped_working_set(k, blocks=blocks, group=group)
    assert numbers < k * n  # b doesn't stay
    meter = Meter(48 * 1024, dtype=torch.float64, cache_bytes=8 * numbers)
    a, b = matrices(m, n, k)
    run("grouped", a, b, meter=meter, blocks=blocks, group=group)
    moved = grouped_moved(m, n, k, blocks=blocks, group=group)
    assert (meter.total.bytes_read, meter.total.bytes_written) == (8 * moved.read, 8 * moved.written)
    without = RUNGS["grouped"].moved(m, n, k, blocks=blocks)
    assert meter.total.bytes_read + meter.total.cache_bytes_read == 8 * without.read
    torch.testing.assert_close(meter.tensors["C"].result(), a @ b)


def test_what_is_refused() -> None:
    a, b = matrices(4, 5, 6)
    with pytest.raises(ValueError, match="expected one of naive ijk, reordered ikj, .*got 'fast'"):
        run("fast", a, b)
    for wrong in ((a, a), (a[0], b), (a[:0], b)):
        with pytest.raises(ValueError, match=r"expected matrices \(m, k\) and \(k, n\)"):
            run("tiled", *wrong)
    with pytest.raises(ValueError, match="needs .* bytes, but SRAM has"):
        run("tiled", *matrices(64, 64, 64), meter=Meter(8 * 3 * 32 * 32 - 1, dtype=torch.float64))
    run("tiled", *matrices(64, 64, 64), meter=Meter(8 * 3 * 32 * 32, dtype=torch.float64))
