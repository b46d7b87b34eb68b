"""Every figure that chapter 05 promises, to the byte."""

from __future__ import annotations

import random

import pytest

from minillm.perf import formulas

KIB, GIB, TIB = 2**10, 2**30, 2**40


def test_opt_175b() -> None:
    """FlexGen (Sheng et al. 2023, section 3): 325 GB of weights, 1.2 TB of cache, 3.8 times as much."""
    weights = formulas.block_weight_bytes(96, 12288, 4 * 12288)
    cache = formulas.kv_cache_bytes(512, 96, 12288, 512, 32)
    assert weights == 324 * GIB == 96 * (8 * 12288**2 + 4 * 12288 * 49152)
    assert cache == 1_314_259_992_576 and cache / TIB == 1.1953125
    assert cache / weights == pytest.approx(3.8, abs=0.03)


def test_caches() -> None:
    assert formulas.kv_cache_bytes(1, 40, 5120, 1, 0) == 800 * KIB  # a token of a 13B model (vLLM paper, section 3)
    assert formulas.kv_cache_bytes(1, 64, 9216, 512, 0) == 1.125 * GIB  # 512 tokens of OPT-66B
    assert formulas.kv_bytes_per_token(32, 8, 128) == 128 * KIB  # Llama-3-8B
    assert formulas.kv_bytes_per_token(32, 32, 128) == 512 * KIB  # Llama-2-7B
    assert formulas.kv_bytes_per_token(32, 32, 128, number_bytes=1) == 256 * KIB


def test_intensity_of_a_product() -> None:
    assert formulas.gemm_flops(3, 5, 7) == 2 * 3 * 5 * 7
    assert formulas.gemm_bytes(3, 5, 7) == 2 * (21 + 35 + 15)
    assert formulas.gemm_intensity(4096, 4096, 4096) == pytest.approx(4096 / 3)  # MNK/(MN + MK + KN) in fp16
    assert formulas.gemm_intensity(1, 4096, 4096) == pytest.approx(1.0, abs=1e-3)  # a GEMV
    assert formulas.gemm_intensity(64, 8192, 8192, number_bytes=1) == pytest.approx(2 * 64 * 8192 / (128 + 8192))
    assert formulas.ridge_intensity(312e12, 2039e9) == pytest.approx(153.0, abs=0.1)


def test_decode_attention_keeps_its_intensity() -> None:
    assert formulas.decode_attention_intensity(32, 32) == 1.0
    assert formulas.decode_attention_intensity(32, 8) == 4.0
    assert formulas.decode_attention_intensity(32, 8, number_bytes=1) == 8.0
    # From scratch: one query, n keys, K and V of 128 numbers.
    flops, num_bytes = 2 * 32 * 1000 * (128 + 128), 2 * 8 * 1000 * (128 + 128)
    assert flops / num_bytes == formulas.decode_attention_intensity(32, 8)


def test_grouped_queries_load_as_much_from_l2() -> None:
    """Memory holds an eighth with 8 heads a group; kernels that reload per head move the same through L2."""
    held = 1000 * formulas.kv_bytes_per_token(1, 4, 128)
    loaded = formulas.kv_bytes_loaded_by_head(1, 1000, 32, 128)
    assert loaded == 8 * held == 1000 * formulas.kv_bytes_per_token(1, 32, 128)


@pytest.mark.parametrize(("num_experts", "per_token", "num_tokens"), [(8, 2, 1), (8, 2, 5), (16, 4, 3), (6, 6, 2)])
def test_experts_touched_against_drawing(num_experts: int, per_token: int, num_tokens: int) -> None:
    rng, rounds = random.Random(0), 4000
    drawn = sum(
        len({expert for _ in range(num_tokens) for expert in rng.sample(range(num_experts), per_token)})
        for _ in range(rounds)
    )
    expected = formulas.experts_touched(num_experts, per_token, num_tokens)
    assert expected == pytest.approx(drawn / rounds, rel=0.02)


def test_experts_touched_at_the_ends() -> None:
    assert formulas.experts_touched(256, 8, 1) == pytest.approx(8)
    assert formulas.experts_touched(256, 8, 10**6) == pytest.approx(256)


@pytest.mark.parametrize("tp_size", [1, 2, 3, 4, 8])
def test_all_reduce_counted_on_a_ring(tp_size: int) -> None:
    """Reduce-scatter, then all-gather: p − 1 steps each, a p-th of the numbers at every step."""
    numbers = 24 * 10
    sent = 0.0
    for _ in range(2):
        for _ in range(tp_size - 1):
            sent += numbers / tp_size * 2
    assert formulas.all_reduce_bytes(24, 10, tp_size) == pytest.approx(sent)


def test_communication_ratio() -> None:
    """A block of a 7B on 2 GPUs: what link keeps 312 TFLOP/s busy?"""
    flops, sent = 2 * 4096 * (12 * 4096**2), 2 * formulas.all_reduce_bytes(4096, 4096, 2)
    ccr = formulas.compute_to_communication_ratio(flops / 2, sent)
    assert ccr == pytest.approx(6 * 4096 / 2)
    assert formulas.required_link_bytes_per_s(312e12, ccr) == pytest.approx(25.4e9, rel=0.01)
