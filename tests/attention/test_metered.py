"""Attention on the meter: results equal the oracle, bytes equal the closed forms, and the claims of the papers hold."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.attention import naive_attention
from minillm.attention.metered import ALGORITHMS, Metered, default_blocks, moved, run
from minillm.attention.metered_decoding import decoding_moved, run_decoding
from minillm.attention.metered_flash import Blocks
from minillm.attention.sram_budget import peak_numbers, sram_budget
from minillm.attention.tiles import Tiles
from tests.attention.problems import random_tensor

PLENTY = 2**20


def head(q_len: int, k_len: int, head_dim: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    lengths = (q_len, k_len, k_len)
    return tuple(random_tensor(i, length, head_dim, dtype=dtype) for i, length in enumerate(lengths))


def assert_right(result: Metered, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> None:
    out, lse = naive_attention(*(x[None, :, None] for x in (q, k, v)), **options)
    torch.testing.assert_close(result.out, out[0, :, 0], atol=1e-12, rtol=0)
    torch.testing.assert_close(result.lse, lse[0, :, 0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ALGORITHMS)
@given(
    q_len=st.integers(1, 17),
    more_keys=st.integers(-4, 9),
    block_q=st.integers(1, 7),
    block_k=st.integers(1, 7),
    causal=st.booleans(),
    keep_k=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_results_and_bytes_are_exact(
    name: str, q_len: int, more_keys: int, block_q: int, block_k: int, causal: bool, keep_k: bool
) -> None:
    k_len = max(1, q_len + (max(more_keys, 0) if causal else more_keys))
    (q, k, v), blocks = head(q_len, k_len), Blocks(block_q, block_k)
    result = run(name, q, k, v, sram_bytes=PLENTY, causal=causal, blocks=blocks, keep_k=keep_k, softmax_scale=0.6)
    assert_right(result, q, k, v, causal=causal, softmax_scale=0.6)
    predicted = moved(name, q_len, k_len, 4, blocks, causal=causal, keep_k=keep_k)
    total = result.meter.total
    assert (total.bytes_read, total.bytes_written) == (8 * predicted.read, 8 * predicted.written)


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_products_are_those_of_the_visible_tiles(name: str) -> None:
    q, k, v = head(40, 48)
    blocks = Blocks(5, 7)
    tiles = Tiles(40, 48, 5, 7)
    visited = [(rows, keys) for rows in tiles.query_blocks() for keys in tiles.key_blocks(rows)]
    pairs = sum((rows.stop - rows.start) * (keys.stop - keys.start) for rows, keys in visited)
    assert pairs < 0.7 * 40 * 48
    for causal, expected in ((True, pairs), (False, 40 * 48)):
        result = run(name, q, k, v, sram_bytes=PLENTY, causal=causal, blocks=blocks)
        assert result.meter.total.matmul_flops == 2 * expected * (4 + 4)


def test_by_tensor_the_loops_reload_what_the_papers_say() -> None:
    q, k, v = head(60, 60)
    blocks = Blocks(6, 20)  # 10 blocks of Q, 3 of K
    size = 60 * 4 * 8
    v1 = run("v1", q, k, v, sram_bytes=PLENTY, blocks=blocks).meter.tensors
    assert (v1["K"].bytes_read, v1["Q"].bytes_read, v1["O"].bytes_read) == (size, 3 * size, 3 * size)
    assert v1["O"].bytes_written == 4 * size  # set to 0 once, then once for each block of K
    reloading = run("v1", q, k, v, sram_bytes=PLENTY, blocks=blocks, keep_k=False).meter.tensors
    assert (reloading["K"].bytes_read, reloading["V"].bytes_read) == (10 * size, size)
    v2 = run("v2", q, k, v, sram_bytes=PLENTY, blocks=blocks).meter.tensors
    assert (v2["Q"].bytes_read, v2["K"].bytes_read, v2["O"].bytes_written) == (size, 10 * size, size)
    assert v2["O"].bytes_read == 0


@pytest.mark.parametrize("head_dim", [16, 32])
def test_traffic_of_v1_lies_on_the_formula(head_dim: int) -> None:
    """N²d²/M times a constant: with Bc = M/4d each of the T = 4Nd/M blocks of K moves 3·N·d and 4·N numbers."""
    for length in (128, 256, 512):
        previous = math.inf
        for factor in (12, 24, 48):  # M = factor · d²
            sram_numbers = factor * head_dim**2
            blocks = default_blocks("v1", sram_numbers, head_dim)
            q, k, v = head(length, length, head_dim, torch.float32)
            total = run("v1", q, k, v, sram_bytes=4 * sram_numbers).meter.total
            once = (3 * length * head_dim + 2 * length) * 4  # K, V, and O, l, m at the start
            law = 4 * 12 * length**2 * head_dim**2 / sram_numbers * (1 + 4 / (3 * head_dim))
            rounding = math.ceil(length / blocks.k) * blocks.k / length * (sram_numbers / 4 / head_dim / blocks.k)
            assert total.hbm_bytes - once == pytest.approx(law * rounding, rel=1e-9)
            assert total.hbm_bytes <= previous
            previous = total.hbm_bytes


def test_naive_moves_the_score_matrix_and_the_flash_versions_do_not() -> None:
    length, head_dim = 512, 16
    q, k, v = head(length, length, head_dim, torch.float32)
    bytes_of = {}
    for name in ALGORITHMS:
        total = run(name, q, k, v, sram_bytes=32 * 1024).meter.total
        bytes_of[name] = total.hbm_bytes
        assert total.peak_sram_bytes <= 32 * 1024
    assert bytes_of["naive"] > 4 * length**2 * 4  # S and P, written and read
    assert bytes_of["naive"] > 4 * bytes_of["v1"] > 4 * bytes_of["v2"]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("blocks", [Blocks(32, 32), Blocks(16, 48), Blocks(48, 20)])
def test_v2_computes_less_outside_products(blocks: Blocks, causal: bool) -> None:
    q, k, v = head(192, 192, 16, torch.float32)
    v1, v2 = (
        run(name, q, k, v, sram_bytes=64 * 1024, causal=causal, blocks=blocks).meter.total for name in ("v1", "v2")
    )
    assert v1.non_matmul_flops > v2.non_matmul_flops


def test_programs_that_can_run_side_by_side() -> None:
    q, k, v = head(100, 100)
    blocks = Blocks(16, 16)
    v1, v2 = (run(name, q, k, v, sram_bytes=PLENTY, blocks=blocks).meter for name in ("v1", "v2"))
    assert v1.kernels["flash v1"].programs == 1
    assert v2.kernels["flash v2"].programs == 7  # blocks of Q
    decode = run_decoding(q[:4], k, v, num_splits=9).meter
    assert decode.kernels["decode splits"].programs == 9 and decode.kernels["merge"].programs == 1
    assert run_decoding(q[:4], k, v).meter.total.programs == 1


@given(
    phi=st.sampled_from([None, 0.0, -3.0]),
    rows=st.integers(1, 5),
    k_len=st.integers(1, 40),
    num_splits=st.integers(1, 12),
    block_k=st.integers(1, 9),
)
@settings(max_examples=30, deadline=None)
def test_decoding_is_exact(phi: float | None, rows: int, k_len: int, num_splits: int, block_k: int) -> None:
    q, k, v = head(rows, k_len)
    result = run_decoding(q, k, v, num_splits=num_splits, block_k=block_k, phi=phi)
    assert_right(result, q, k, v, causal=False)
    predicted = decoding_moved(rows, k_len, 4, num_splits)
    total = result.meter.total
    assert (total.bytes_read, total.bytes_written) == (8 * predicted.read, 8 * predicted.written)
    assert total.launches == (1 if min(num_splits, k_len) == 1 else 2)


def test_splits_cost_next_to_nothing() -> None:
    q, k, v = head(4, 4096, 32, torch.float32)
    one, many = (run_decoding(q, k, v, num_splits=n).meter.total.hbm_bytes for n in (1, 32))
    assert one < many < 1.1 * one


def test_a_unified_maximum_spares_the_updates() -> None:
    q, k, v = head(4, 512, 32, torch.float32)
    maxima, unified = (run_decoding(q, k, v, num_splits=4, phi=phi).meter.total for phi in (None, 0.0))
    assert unified.hbm_bytes == maxima.hbm_bytes and unified.matmul_flops == maxima.matmul_flops
    # For each of 8 tiles and 4 parts: 4 rows of acc (32) repaired, their sums, 2 steps of the factor, the maximum;
    # and the search of the maximum in each tile of 64 scores.
    assert maxima.other_flops - unified.other_flops == (8 + 4) * 4 * (32 + 1 + 1 + 1) + 8 * 4 * 63
    assert maxima.special_ops - unified.special_ops == (8 + 4) * 4


def test_bytes_are_counted_in_another_dtype() -> None:
    q, k, v = head(20, 20)
    double, half = (
        run("v2", q, k, v, sram_bytes=PLENTY, blocks=Blocks(4, 4), stored_as=dtype).meter.total.hbm_bytes
        for dtype in (torch.float64, torch.float16)
    )
    assert double == 4 * half


# ---- the budget of SRAM


@pytest.mark.parametrize("keep_k", [True, False])
@pytest.mark.parametrize("blocks", [Blocks(8, 8), Blocks(4, 12), Blocks(12, 4), Blocks(16, 16), Blocks(1, 1)])
@pytest.mark.parametrize("head_dim", [2, 8, 16])
def test_the_peak_of_the_budget_is_what_the_meter_counts(blocks: Blocks, head_dim: int, keep_k: bool) -> None:
    length = 2 * max(blocks) + 1
    q, k, v = head(length, length, head_dim)
    peak = peak_numbers(blocks, head_dim, keep_k=keep_k)
    meter = run("v1", q, k, v, sram_bytes=8 * peak, blocks=blocks, keep_k=keep_k).meter
    assert meter.kernels["flash v1"].peak_sram_bytes == 8 * peak
    with pytest.raises(ValueError, match="needs .* bytes, but"):
        run("v1", q, k, v, sram_bytes=8 * peak - 1, blocks=blocks, keep_k=keep_k)


@pytest.mark.parametrize("keep_k", [True, False])
def test_every_step_of_the_budget_is_seen_in_the_trace(keep_k: bool) -> None:
    """What is held at some moment of the first pass, in the order of the steps; freeing is no event of its own."""
    blocks, head_dim = Blocks(4, 8), 8
    q, k, v = head(8, 8, head_dim)
    meter = run("v1", q, k, v, sram_bytes=PLENTY, blocks=blocks, keep_k=keep_k, trace=True).meter
    assert meter.trace is not None
    held = [event.sram_bytes // 8 for event in meter.trace if event.kernel == "flash v1"]
    position = 0
    steps = sram_budget(blocks, head_dim, keep_k=keep_k)
    for step in (steps[i - 1] for i in (1, 2, 3, 5, 7, 8, 9)):
        position = held.index(step.held, position)
    assert max(held[:position]) == max(step.held for step in steps)


def test_the_budget_in_symbols() -> None:
    d, block_k = 8, 40  # Br = d; step 4 frees Q and K in one line of the table with Bc = d only
    changes = [step.change for step in sram_budget(Blocks(d, block_k), d, keep_k=False)]
    tile = block_k * d
    assert changes[:3] == [2 * tile, 2 * d * d + 2 * d, tile]
    assert changes[4:] == [tile + d, -tile, d, 2 * d, -d * d, -2 * d, -tile - 4 * d]
    steps = sram_budget(Blocks(d, block_k), d)
    assert steps[2].held == 3 * tile + 2 * d * (d + 1) == max(step.held for step in steps)
    square = sram_budget(Blocks(d, d), d, keep_k=False)
    assert square[3].change == -2 * d * d and square[3].held == d * d + 2 * d * (d + 1)
    assert steps[-1].held == 2 * tile  # K and V stay for the next block of Q


@pytest.mark.parametrize("name", ["v1", "v2"])
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_default_blocks_fit_as_the_budget_says(name: str, head_dim: int) -> None:
    sram_numbers = 8 * head_dim * (head_dim + 2) if name == "v1" else 8 * head_dim**3 // (head_dim - 4) + 16 * head_dim
    blocks = default_blocks(name, sram_numbers, head_dim)
    assert max(blocks) == math.ceil(sram_numbers / (4 * head_dim)) and min(blocks) == head_dim
    q, k, v = head(2 * max(blocks) + 3, 2 * max(blocks) + 3, head_dim, torch.float32)
    assert run(name, q, k, v, sram_bytes=4 * sram_numbers).meter.total.peak_sram_bytes > 3 * sram_numbers
    with pytest.raises(ValueError, match="needs .* bytes, but"):
        run(name, q, k, v, sram_bytes=2 * sram_numbers)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"name": "v3"}, "expected one of"),
    ({"k": (4, 3)}, r"\(4, 3\)"),
    ({"q": (9, 4), "causal": True}, "no more queries than keys"),
    ({"sram_bytes": 15}, "at least 4 numbers"),
]


@pytest.mark.parametrize("changes, message", BAD)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"name": "v1", "sram_bytes": 4096, "causal": False} | changes
    tensors = [torch.zeros(arguments.pop(name, (4, 4))) for name in "qkv"]
    with pytest.raises(ValueError, match=message):
        run(arguments.pop("name"), *tensors, **arguments)


def test_decoding_refuses_no_keys() -> None:
    with pytest.raises(ValueError, match="with keys"):
        run_decoding(torch.zeros(1, 4), torch.zeros(0, 4), torch.zeros(0, 4))
