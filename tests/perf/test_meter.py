"""The meter counts what was moved and computed, exactly, and what was computed is right."""

from __future__ import annotations

import textwrap
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import minillm.perf.meter
from minillm.perf.meter import HbmTensor, Meter
from tests.perf.meter_programs import (
    flash_v1,
    flash_v1_moved,
    flash_v2,
    flash_v2_moved,
    flash_v2_other_work,
    naive_attention,
    naive_attention_moved,
    softmax_fused,
    softmax_fused_moved,
    softmax_in_steps,
    softmax_in_steps_moved,
)

SIZES = st.integers(1, 23)
BLOCKS = st.integers(1, 9)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def big(**options: object) -> Meter:
    return Meter(2**20, dtype=torch.float64, **options)  # type: ignore[arg-type]


def moved(meter: Meter) -> tuple[int, int]:
    """Numbers of 8 bytes read from HBM and written to it."""
    assert meter.total.bytes_read % 8 == meter.total.bytes_written % 8 == 0
    return meter.total.bytes_read // 8, meter.total.bytes_written // 8


def attention_problem(meter: Meter, n: int, m: int, d: int) -> tuple[list[HbmTensor], Tensor]:
    q, k, v = numbers(n, d) * 3, numbers(m, d, seed=1) * 3, numbers(m, d, seed=2)
    expected = (q @ k.T / d**0.5).softmax(-1) @ v
    return [meter.hbm(name, data) for name, data in (("Q", q), ("K", k), ("V", v))], expected


# ---- programs against their oracles and their closed forms


@settings(max_examples=20, deadline=None)
@given(SIZES, SIZES, BLOCKS)
def test_softmax_in_steps_and_fused(rows: int, columns: int, block: int) -> None:
    x = numbers(rows, columns) * 10
    cases = ((softmax_in_steps, softmax_in_steps_moved, 5), (softmax_fused, softmax_fused_moved, 1))
    for program, formula, launches in cases:
        meter = big()
        y = program(meter, meter.hbm("X", x), block=block)
        torch.testing.assert_close(y.result(), x.softmax(-1))
        assert moved(meter) == formula(rows, columns)
        assert meter.total.launches == launches
        assert meter.total.programs == launches * -(-rows // block)
        assert (meter.total.matmul_flops, meter.total.special_ops) == (0, rows * columns)
        # a maximum and a sum of columns − 1 each, a subtraction, a division
        assert meter.total.other_flops == rows * (2 * (columns - 1) + 2 * columns)


@settings(max_examples=20, deadline=None)
@given(SIZES, SIZES, st.integers(1, 8), BLOCKS, BLOCKS)
def test_attention_naive_v1_v2(n: int, m: int, d: int, block_q: int, block_k: int) -> None:
    meter = big()
    inputs, expected = attention_problem(meter, n, m, d)
    torch.testing.assert_close(naive_attention(meter, *inputs, block=block_q).result(), expected)
    assert moved(meter) == naive_attention_moved(n, m, d, block=block_q)
    assert meter.total.matmul_flops == 4 * n * m * d

    meter = big()
    inputs, expected = attention_problem(meter, n, m, d)
    torch.testing.assert_close(flash_v1(meter, *inputs, block_q=block_q, block_k=block_k).result(), expected)
    assert moved(meter) == flash_v1_moved(n, m, d, block_k=block_k)
    assert meter.total.matmul_flops == 4 * n * m * d
    v1 = meter.total

    meter = big()
    inputs, expected = attention_problem(meter, n, m, d)
    torch.testing.assert_close(flash_v2(meter, *inputs, block_q=block_q, block_k=block_k).result(), expected)
    lse = (inputs[0].result() @ inputs[1].result().T / d**0.5).logsumexp(-1, keepdim=True)
    torch.testing.assert_close(meter.tensors["lse"].result(), lse)
    assert moved(meter) == flash_v2_moved(n, m, d, block_q=block_q)
    assert meter.total.matmul_flops == 4 * n * m * d
    assert (meter.total.other_flops, meter.total.special_ops) == flash_v2_other_work(n, m, d, block_k=block_k)
    assert meter.total.bytes_written < v1.bytes_written


def test_v2_divides_less_than_v1() -> None:
    """FlashAttention-2, section 3.1: the accumulator is rescaled once a block, not twice, and divided at the end."""
    others = []
    for program in (flash_v1, flash_v2):
        meter = big()
        inputs, _ = attention_problem(meter, 32, 64, 16)
        program(meter, *inputs, block_q=8, block_k=8)
        others.append(meter.total.non_matmul_flops)
    assert others[1] < others[0]


def test_the_manual_runs_and_its_figures_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    manual = minillm.perf.meter.__doc__ or ""
    code = manual[manual.index("    import torch") : manual.index("Tiles compute")]
    names: dict[str, object] = {}
    exec(textwrap.dedent(code), names)
    a, b, c = (names[name].result() for name in "abc")  # type: ignore[attr-defined]
    torch.testing.assert_close(c, a @ b, atol=1e-4, rtol=1e-4)
    read = 4 * (70 * 50 * 3 + 50 * 90 * 3)
    assert names["meter"].total.bytes_read == read  # type: ignore[attr-defined]
    assert str(read + 4 * 70 * 90) in capsys.readouterr().out


# ---- counting by hand


def test_bytes_by_tensor_and_by_kernel() -> None:
    meter = big()
    x, y, z = meter.hbm("X", numbers(4, 6)), meter.empty("Y", (4, 6)), meter.empty("Z", (6,))
    with meter.kernel("copy") as kernel, kernel.program() as sram:
        sram.store(sram.load(x), y)
    for row in range(2):
        with meter.kernel("row") as kernel, kernel.program(row) as sram:
            sram.store(sram.load(y[row]), z)
    assert (x.bytes_read, x.bytes_written) == (192, 0)
    assert (y.bytes_read, y.bytes_written) == (96, 192)
    assert (z.bytes_read, z.bytes_written) == (0, 96)
    assert meter.kernels["copy"].bytes_read == 192 and meter.kernels["row"].bytes_read == 96
    assert (meter.kernels["row"].launches, meter.kernels["row"].programs) == (2, 2)
    assert meter.total.hbm_bytes == 192 + 192 + 96 + 96
    torch.testing.assert_close(z.result(), x.result()[1])


def test_peak_is_what_one_program_holds_at_most() -> None:
    meter = big()
    x = meter.hbm("X", numbers(8, 4))
    with meter.kernel("k") as kernel:
        for _ in range(2):
            with kernel.program() as sram:
                first = sram.load(x[:2])  # 64 bytes
                with sram.scope():
                    sram.load(x)  # 256
                second = sram.load(x[:4])  # 128
                sram.free(first)
                third = second + 1.0  # 128
                assert sram.held_bytes == 256
                third += second
                third.exp_()
                assert sram.held_bytes == 256
    assert meter.total.peak_sram_bytes == 64 + 256


def test_sram_traffic_of_each_operation() -> None:
    meter = big()
    x = meter.hbm("X", numbers(3, 4))

    def traffic(work) -> tuple[int, int]:  # type: ignore[no-untyped-def]
        with meter.kernel("k") as kernel, kernel.program() as sram:
            tile = sram.load(x)
            before = meter.total
            work(sram, tile)
            after = meter.total
        read = after.sram_bytes_read - before.sram_bytes_read
        return read // 8, (after.sram_bytes_written - before.sram_bytes_written) // 8

    assert traffic(lambda sram, t: sram.load(x[:2])) == (0, 8)
    assert traffic(lambda sram, t: t + t) == (24, 12)
    assert traffic(lambda sram, t: t * 2.0) == (12, 12)
    assert traffic(lambda sram, t: t.exp_()) == (12, 12)
    assert traffic(lambda sram, t: t.row_sum()) == (12, 3)
    assert traffic(lambda sram, t: t.clone()) == (12, 12)
    assert traffic(lambda sram, t: sram.zeros(5)) == (0, 5)
    assert traffic(lambda sram, t: sram.zeros(5, in_registers=True)) == (0, 0)
    assert traffic(lambda sram, t: sram.load(x, in_registers=True)) == (0, 0)
    assert traffic(lambda sram, t: sram.load(x, in_registers=True) + 1.0) == (0, 0)
    assert traffic(lambda sram, t: sram.load(x, in_registers=True) + t) == (12, 12)
    # (3, 4) @ (4, 3): both operands three times, as each number of the result is worked on alone
    assert traffic(lambda sram, t: t @ t.T) == (3 * 12 + 3 * 12, 9)
    assert traffic(lambda sram, t: sram.matmul(t, t.T, register_tile=(2, 3))) == (12 + 2 * 12, 9)
    assert traffic(lambda sram, t: sram.matmul(t, t.T, into=sram.zeros(3, 3))) == (72 + 9, 9 + 9)
    in_registers = {"in_registers": True}
    assert traffic(lambda sram, t: sram.matmul(t, t.T, into=sram.zeros(3, 3, **in_registers))) == (72, 0)


def test_flops_of_each_operation() -> None:
    meter = big()
    x, y = meter.hbm("X", numbers(3, 4)), meter.empty("Y", (3, 4))

    def work(action) -> tuple[int, int, int]:  # type: ignore[no-untyped-def]
        with meter.kernel("k") as kernel, kernel.program() as sram:
            tile = sram.load(x)
            before = meter.total
            action(sram, tile)
            after = meter.total
        names = ("matmul_flops", "other_flops", "special_ops")
        return tuple(getattr(after, name) - getattr(before, name) for name in names)  # type: ignore[return-value]

    assert work(lambda sram, t: t @ t.T) == (2 * 3 * 4 * 3, 0, 0)
    assert work(lambda sram, t: sram.matmul(t, t.T, into=sram.zeros(3, 3))) == (72, 0, 0)
    for action in (
        lambda sram, t: t + 1,
        lambda sram, t: 1 - t,
        lambda sram, t: 1 / t,
        lambda sram, t: t - t.T[0:4, 0:1].T,
        lambda sram, t: t.maximum(0.0),
        lambda sram, t: -t,
        lambda sram, t: t.abs(),
        lambda sram, t: t.masked_fill_(torch.ones(3, 4, dtype=torch.bool), 0.0),
    ):
        assert work(action) == (0, 12, 0)
    assert work(lambda sram, t: t.row_max()) == work(lambda sram, t: t.row_sum()) == (0, 9, 0)
    for name in ("exp", "exp_", "log", "log_", "sqrt", "rsqrt", "sigmoid", "tanh"):
        assert work(lambda sram, t, name=name: getattr(t, name)()) == (0, 0, 12)
    assert work(lambda sram, t: t.clone().copy_(t)) == work(lambda sram, t: sram.store(t, y)) == (0, 0, 0)


def test_results_of_operations() -> None:
    meter = big()
    data, other = numbers(3, 4).abs() + 0.5, numbers(1, 4, seed=1)
    x, z = meter.hbm("X", data), meter.hbm("Z", other)
    cases = [
        (lambda t, u: t + u, data + other),
        (lambda t, u: t - u, data - other),
        (lambda t, u: 0.1 - t, 0.1 - data),
        (lambda t, u: 3 / t, 3 / data),
        (lambda t, u: 2 * t, 2 * data),
        (lambda t, u: np.float64(0.1) * t * np.float32(2), 0.2 * data),
        (lambda t, u: 1 / np.sqrt(3.0) * t, data / 3**0.5),
        (lambda t, u: t / u, data / other),
        (lambda t, u: -t, -data),
        (lambda t, u: t.maximum(u), torch.maximum(data, other)),
        (lambda t, u: t.maximum(1.0), data.clamp_min(1.0)),
        (lambda t, u: t.row_max(), data.amax(1, keepdim=True)),
        (lambda t, u: t.row_sum(), data.sum(1, keepdim=True)),
        (lambda t, u: t @ u.T, data @ other.T),
        (lambda t, u: t[:, 1:3] * u[:, 1:3], data[:, 1:3] * other[:, 1:3]),
        (lambda t, u: t.clone().masked_fill_(torch.tensor([True, False, True, False]), -1.0), None),
        *[(lambda t, u, n=n: getattr(t, n)(), getattr(data, n)()) for n in ("exp", "log", "sqrt", "rsqrt", "sigmoid")],
    ]
    for i, (action, expected) in enumerate(cases):
        if expected is None:
            expected = data.clone()
            expected[:, ::2] = -1.0
        y = meter.empty(f"Y{i}", tuple(expected.shape))
        with meter.kernel("k") as kernel, kernel.program() as sram:
            sram.store(action(sram.load(x), sram.load(z)), y)
        torch.testing.assert_close(y.result(), expected, rtol=1e-15, atol=1e-15)


# ---- sizes of numbers


def test_numbers_can_be_counted_as_narrower_than_they_are() -> None:
    meter = Meter(10_000, dtype=torch.float64, stored_as=torch.float16)
    x, table = meter.hbm("X", numbers(4, 4)), meter.hbm("table", torch.tensor([3, 1]))
    weight = meter.hbm("W", numbers(4, 4), stored_as=torch.int8)
    y = meter.empty("Y", (1, 4))
    with meter.kernel("k") as kernel, kernel.program() as sram:
        row = int(sram.load(table[0]).item())
        tile = sram.load(x[row : row + 1])
        assert (tile.num_bytes, sram.load(weight).num_bytes) == (8, 16)
        wide = sram.zeros(1, 4, stored_as=torch.float32)
        assert (wide.num_bytes, (tile + wide).num_bytes, (tile + 1.0).num_bytes) == (16, 16, 8)
        wide += tile
        assert wide.num_bytes == 16
        sram.store(wide, y)
    assert torch.equal(y.result(), x.result()[3:4])
    assert (table.bytes_read, x.bytes_read, weight.bytes_read, y.bytes_written) == (8, 8, 16, 8)


def test_integers_become_floats_where_they_must() -> None:
    meter = Meter(10_000, stored_as=torch.float16)
    weight = meter.hbm("W", torch.tensor([[1, -2, 3]], dtype=torch.int8))
    y = meter.empty("Y", (1, 3))
    with meter.kernel("k") as kernel, kernel.program() as sram:
        tile = sram.load(weight)
        scaled = tile * 0.5
        assert (tile.num_bytes, scaled.num_bytes) == (3, 6)
        assert scaled._data.dtype == torch.float32
        with pytest.raises(ValueError, match="would cut its results"):
            tile *= 0.5
        sram.store(scaled, y)
    assert y.result().tolist() == [[0.5, -1.0, 1.5]]


# ---- several programs


def test_atomic_additions_of_several_programs() -> None:
    meter = big()
    x, total = meter.hbm("X", numbers(6, 5)), meter.hbm("total", torch.zeros(1, 5, dtype=torch.float64))
    with meter.kernel("k") as kernel:
        for i in range(6):
            with kernel.program(i) as sram:
                sram.atomic_add(sram.load(x[i : i + 1]), total)
    torch.testing.assert_close(total.result(), x.result().sum(0, keepdim=True))
    assert (total.bytes_read, total.bytes_written) == (6 * 40, 6 * 40)
    assert (meter.total.bytes_read, meter.total.bytes_written) == (6 * 40 + total.bytes_read, total.bytes_written)
    assert meter.total.other_flops == 30


def test_a_cache_serves_what_was_used_last() -> None:
    meter = big(cache_bytes=2 * 32)
    x, y = meter.hbm("X", numbers(3, 4)), meter.empty("Y", (1, 4))

    def load(*rows: int) -> int:
        before = meter.total.bytes_read
        with meter.kernel("k") as kernel, kernel.program() as sram:
            for row in rows:
                sram.load(x[row])
        return (meter.total.bytes_read - before) // 32

    assert load(0, 1, 0, 1) == 2
    assert load(0, 2) == 1  # 2 drives 1 out, which was used before 0
    assert load(0, 1) == 1
    assert load(0, 1, 2, 0, 1, 2) == 4  # a round through more than fits finds nothing
    assert meter.total.cache_bytes_read == 32 * (2 + 1 + 1 + 2)
    with meter.kernel("k") as kernel, kernel.program() as sram:
        sram.store(sram.load(x[0:1]), y)
        sram.load(y)
    assert y.bytes_read == 0 and y.bytes_written == 32
    assert "The cache served" in meter.report()
    with meter.kernel("k") as kernel, kernel.program() as sram:
        sram.load(y[:, :2])  # a part of what is held is another region
    assert y.bytes_read == 16


def test_a_store_renews_the_cache() -> None:
    meter = big(cache_bytes=10_000)
    x = meter.hbm("X", numbers(2, 2))
    with meter.kernel("k") as kernel, kernel.program() as sram:
        sram.load(x)
        sram.store(sram.zeros(2), x[0])
        assert torch.equal(sram.load(x)._data[0], torch.zeros(2, dtype=torch.float64))
    assert x.bytes_read == 2 * 32


# ---- report, trace, speed


def test_report_names_everything_within_100_columns() -> None:
    meter = big()
    inputs, _ = attention_problem(meter, 32, 32, 8)
    flash_v1(meter, *inputs, block_q=8, block_k=8)
    lines = meter.report().splitlines()
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert all(word in text for word in ("flash v1", "start", "total", "1 MiB", "32 × 8", "matmul FLOPs", "Q"))


def test_the_trace_adds_up_to_the_counts() -> None:
    meter = big(trace=True)
    inputs, _ = attention_problem(meter, 20, 12, 4)
    flash_v1(meter, *inputs, block_q=8, block_k=5)
    assert meter.trace is not None
    for kind, count in (("load", meter.total.bytes_read), ("store", meter.total.bytes_written)):
        assert sum(event.num_bytes for event in meter.trace if event.kind == kind) == count
    assert max(event.sram_bytes for event in meter.trace) == meter.total.peak_sram_bytes
    first = next(event for event in meter.trace if event.kind == "load")
    assert (first.kernel, first.tensor, first.bounds) == ("flash v1", "K", ((0, 5), (0, 4)))
    assert big().trace is None


def test_a_large_problem_is_quick_without_a_trace() -> None:
    meter = Meter(96 * 1024)
    inputs = [meter.hbm(name, torch.randn(1024, 64)) for name in "QKV"]
    started = time.process_time()
    flash_v2(meter, *inputs, block_q=64, block_k=64)
    assert time.process_time() - started < 2.0
