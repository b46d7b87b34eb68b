"""FlashAttention in Triton's interpreter: any shape and tile, what is skipped, gradients, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")
pytest.importorskip("numba")

from minillm import kernels
from minillm.attention.naive import visible_keys
from minillm.kernels import flash_attention, registry
from minillm.kernels.flash import addressable
from minillm.kernels.flash_problems import (
    Inputs,
    attention_bound,
    exact_attention,
    gradient_bound,
    gradients_of,
)
from minillm.kernels.flash_tiles import (
    BACKWARD_TILES,
    TILES_64,
    TILES_128,
    TILES_256,
    TILES_FP32,
    FlashTile,
    backward_tiles,
    forward_tiles,
    padded_dim,
)
from minillm.kernels.gates import Problem, compare
from minillm.kernels.gemm_tiles import SHARED_BYTES
from minillm.kernels.processes import Worker
from tests.kernels.flash_in_child import attention_and_gradients, runs, tuned_attention

SHARED_WORKER = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def make(dtype: torch.dtype = torch.float32) -> Inputs:
    return Inputs(dtype, torch.device("cpu"))


def check(result: torch.Tensor, exact: torch.Tensor, bound: torch.Tensor) -> None:
    _, share, found = compare(result, exact, bound)
    assert not found and share <= 1


@settings(max_examples=10, **SHARED_WORKER)
@given(
    q_len=st.integers(0, 50),
    k_len=st.integers(0, 50),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    dims=st.sampled_from([(16, 16), (24, 16), (8, 33)]),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 80),
    block_q=st.sampled_from([16, 32]),
    block_k=st.sampled_from([16, 32]),
    scale=st.sampled_from([0.2, 1.5]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)
@example(65, 70, (4, 2), (16, 16), True, 20, 32, 16, 0.2, torch.float32)
@example(70, 33, (2, 1), (16, 16), True, 33, 16, 32, 0.2, torch.float32)
def test_any_shape_pattern_and_tile(
    interpreter: Worker,
    q_len: int,
    k_len: int,
    heads: tuple[int, int],
    dims: tuple[int, int],
    causal: bool,
    window: int | None,
    block_q: int,
    block_k: int,
    scale: float,
    dtype: torch.dtype,
) -> None:
    options = {"causal": causal, "window": window if causal else None, "softmax_scale": scale}
    inputs = make(dtype)
    qkv = inputs.attention(q_len, k_len, heads, dims)
    d_out, d_lse = inputs.normal(1, q_len, heads[0], dims[1]), inputs.normal(1, q_len, heads[0]).float()
    tile = FlashTile(block_q, block_k, 4, 1)
    out, lse, *grads = interpreter.call(attention_and_gradients, *qkv, d_out, d_lse, tile, **options)

    exact_qkv = [x.double() for x in qkv]
    problem = Problem("", (*qkv, d_out, d_lse), options)
    for result, exact in zip((out, lse), exact_attention(*exact_qkv, **options), strict=True):
        check(result, exact, attention_bound(problem, exact))
    assert [grad.shape for grad in grads] == [x.shape for x in qkv]
    exact = gradients_of(exact_attention)(*exact_qkv, d_out.double(), d_lse.double(), **options)
    check(torch.cat([grad.flatten() for grad in grads]), exact, gradient_bound(problem, exact))


LENGTHS = [(64, 64), (70, 70), (33, 100), (100, 33), (1, 90), (90, 1), (64, 96), (17, 48)]


@pytest.mark.parametrize(("q_len", "k_len"), LENGTHS)
@pytest.mark.parametrize(("block_q", "block_k"), [(16, 16), (32, 16), (16, 32)])
def test_the_walk_visits_what_is_seen_and_nothing_else(
    q_len: int, k_len: int, block_q: int, block_k: int, interpreter: Worker
) -> None:
    """Against the mask itself, tile by tile, both ways round."""
    for causal, window in [(False, None), (True, None), *[(True, window) for window in (1, 7, 16, 33, 200)]]:
        mask = visible_keys(q_len, k_len, causal=causal, window=window)
        for by_keys in (False, True):
            found = interpreter.call(runs, q_len, k_len, causal, window, block_q, block_k, by_keys=by_keys)
            seen = mask.T if by_keys else mask  # (what a program has, what it walks over)
            own, step = (block_k, block_q) if by_keys else (block_q, block_k)
            assert len(found) == -(-seen.shape[0] // own)
            for block, (first, full_first, full_stop, stop) in enumerate(found):
                strip = seen[block * own : (block + 1) * own]
                visited = [*range(first, full_first, step), *range(full_first, full_stop, step)]
                visited += range(full_stop, stop, step)
                needed = [s for s in range(0, seen.shape[1], step) if strip[:, s : s + step].any()]
                assert visited == needed, (causal, window, by_keys, block)
                for start in range(full_first, full_stop, step):
                    assert strip[:, start : start + step].all(), (causal, window, by_keys, block)
                if not by_keys:  # every full tile is in the run without a mask, but for those that windows leave over
                    full = [s for s in needed if s + step <= seen.shape[1] and strip[:, s : s + step].all()]
                    assert len(full) == len(range(full_first, full_stop, step)) or len(strip) < own


def test_what_is_skipped_is_not_read(interpreter: Worker) -> None:
    """NaN in tiles outside the pattern reaches no row that doesn't see them, forward and backward."""
    tile, inputs = FlashTile(32, 32, 4, 1), make()
    q, k, v = inputs.attention(96, 96, (2, 1), (16, 16))
    d_out, d_lse = torch.randn_like(q), torch.zeros(1, 96, 2)
    for window in (None, 20):
        options = {"causal": True, "window": window, "softmax_scale": 0.25}
        clean = interpreter.call(attention_and_gradients, q, k, v, d_out, d_lse, tile, **options)
        later = [x.clone() for x in (k, v)]
        for x in later:
            x[:, 64:] = float("nan")
        out, lse, dq, *_ = interpreter.call(attention_and_gradients, q, *later, d_out, d_lse, tile, **options)
        for result, expected in zip((out, lse, dq), clean[:3], strict=True):
            assert torch.equal(result[:, :64], expected[:, :64]) and result[:, 64:].isnan().any()
        earlier = d_out.clone()
        earlier[:, :32] = float("nan")
        dk, dv = interpreter.call(attention_and_gradients, q, k, v, earlier, d_lse, tile, **options)[3:]
        assert torch.equal(dk[:, 32:], clean[3][:, 32:]) and torch.equal(dv[:, 32:], clean[4][:, 32:])
        if window is not None:
            for x in later:
                x[:, 64:], x[:, :32] = 1.0, float("nan")
            out = interpreter.call(attention_and_gradients, q, *later, d_out, d_lse, tile, **options)[0]
            assert out[:, 64:].isfinite().all() and out[:, :32].isnan().all()


def test_a_gradient_at_the_lse_of_a_row_without_keys_goes_nowhere(interpreter: Worker) -> None:
    """NaN, say, from a function of −inf."""
    inputs = make()
    q, k, v = inputs.attention(40, 20, (1, 1), (16, 16))
    d_out, d_lse = torch.ones_like(q), torch.zeros(1, 40, 1)
    arguments, options = (q, k, v, d_out), {"causal": True, "window": None, "softmax_scale": 0.25}
    clean = interpreter.call(attention_and_gradients, *arguments, d_lse, FlashTile(32, 32, 4, 1), **options)
    d_lse[:, :20] = float("nan")
    found = interpreter.call(attention_and_gradients, *arguments, d_lse, FlashTile(32, 32, 4, 1), **options)
    assert all(torch.equal(a, b) for a, b in zip(clean, found, strict=True)) and (found[2][:, :20] == 0).all()


def test_gradients_are_the_same_bits_every_time(interpreter: Worker) -> None:
    inputs = make()
    q, k, v = inputs.attention(40, 50, (2, 1), (16, 16))
    arguments = (q, k, v, torch.randn_like(q), torch.randn(1, 40, 2), FlashTile(32, 32, 4, 1))
    options = {"causal": True, "window": None, "softmax_scale": 0.25}
    first, second = (interpreter.call(attention_and_gradients, *arguments, **options) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_autotuner_tries_the_tiles_once_for_a_class_of_lengths(interpreter: Worker) -> None:
    inputs = make()
    qkv = inputs.attention(70, 70, (1, 1), (16, 16))
    out, tried = interpreter.call(tuned_attention, *qkv)
    exact, _ = exact_attention(*(x.double() for x in qkv))
    check(out, exact, attention_bound(Problem("", qkv), exact))
    assert tried == len(TILES_FP32[64]) > 1
    assert interpreter.call(tuned_attention, *inputs.attention(100, 90, (1, 1), (16, 16)))[1] == 0
    assert interpreter.call(tuned_attention, *inputs.attention(200, 90, (1, 1), (16, 16)))[1] == tried


def test_tiles_fit_every_gpu() -> None:
    assert [padded_dim(dim) for dim in (1, 16, 17, 64, 96, 192, 256)] == [16, 16, 32, 64, 128, 256, 256]
    for capability, limit in SHARED_BYTES.items():
        for itemsize in (2, 4):
            for dim in (8, 64, 96, 128, 192, 256):
                tiles = forward_tiles(dim, dim, itemsize=itemsize, capability=capability)
                width = padded_dim(dim)
                assert tiles and tiles[-1].shared_bytes(width, width, itemsize) <= limit
    assert forward_tiles(64, 64, itemsize=2, capability=90) == TILES_64
    assert forward_tiles(128, 128, itemsize=2, capability=90) == TILES_128
    assert forward_tiles(128, 128, itemsize=2, capability=80) == TILES_128[1:]  # it would spill there
    assert forward_tiles(192, 128, itemsize=2, capability=90) == TILES_256
    assert backward_tiles(96, 64, itemsize=2) == BACKWARD_TILES[128]
    with pytest.raises(ValueError, match="at most 256, got k_head_dim 64, v_head_dim 257"):
        forward_tiles(64, 257, itemsize=2, capability=90)


@pytest.mark.parametrize("name", [name for name in registry.KERNELS if name.startswith("flash")])
@pytest.mark.parametrize("capability", [80, 90])
def test_the_usual_head_dims_stay_in_registers(name: str, capability: int, compiler: Worker) -> None:
    """16 bits, head_dim 64 and 128, without a window."""
    builds = compiler.call(registry.check_builds, name, capability)
    usual = [b for b in builds if "fp32" not in b.label and ("64/64" in b.label or "128/128" in b.label)]
    assert usual and [f"{b.label}: {b.spilled_bytes}" for b in usual if b.spilled_bytes] == []


def test_strides_that_offsets_in_a_tile_cannot_hold_are_copied_away() -> None:
    far, near = torch.zeros(2, 2**21 + 1)[:, :3].T, torch.zeros(2, 2**21)[:, :3].T
    assert addressable(far).is_contiguous() and addressable(near) is near


def test_inputs_are_refused_with_what_was_expected(interpreter: Worker) -> None:
    x = torch.ones(1, 4, 2, 16)
    wide = torch.ones(1, 4, 2, 272)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ((x, x[:, :3], x), {}, "don't fit"),
        ((x, x, x), {"causal": False, "window": 2}, "requires causal"),
        ((x, x, x), {"window": 0}, "at least 1 key, got 0"),
        ((x, x, x.half()), {}, "one dtype on one device"),
        ((x.double(), x.double(), x.double()), {}, "expected float32, float16 or bfloat16"),
        ((wide, wide, x), {}, "at most 256, got k_head_dim 272, v_head_dim 16"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(ValueError, match=message):
            interpreter.call(flash_attention, *arguments, **options)


def test_cpu_tensors_need_the_interpreter(compiler: Worker) -> None:
    x = torch.ones(1, 4, 2, 16)
    for function in (flash_attention, kernels.flash_decoding, kernels.flash_decoding_unified):
        with pytest.raises(ValueError, match="expected CUDA tensors, got .*TRITON_INTERPRET=1"):
            compiler.call(function, x, x, x)
