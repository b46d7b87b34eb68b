"""FlashDecoding in Triton's interpreter: ragged caches, splits, the second run of the unified maximum."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")
pytest.importorskip("numba")

from minillm import attention
from minillm.kernels import flash_decoding, flash_decoding_unified
from minillm.kernels.flash_problems import Inputs, decoding_bound, exact_decoding
from minillm.kernels.flash_tiles import decode_tile
from minillm.kernels.gates import Problem, compare
from minillm.kernels.processes import Worker
from tests.kernels.flash_in_child import decode_steps, decoding_gradients, second_run

SHARED_WORKER = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def qkv(q_len: int, k_len: int, heads: tuple[int, int], batch: int = 1, dtype: torch.dtype = torch.float32) -> Any:
    return Inputs(dtype, torch.device("cpu")).attention(q_len, k_len, heads, (16, 24), batch=batch)


def check(results: Any, arguments: Any, **options: Any) -> None:
    exact = exact_decoding(*(x.double() for x in arguments), **options)
    for result, wanted in zip(results[:2], exact, strict=True):
        _, share, found = compare(result, wanted, decoding_bound(Problem("", arguments, options), wanted))
        assert not found and share <= 1


@settings(max_examples=25, **SHARED_WORKER)
@given(
    q_len=st.integers(1, 4),
    seq_lens=st.lists(st.integers(0, 60), min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 1)]),
    num_splits=st.none() | st.integers(1, 6),
    as_tensor=st.booleans(),
    phi=st.none() | st.sampled_from([0.0, 3.0, 900.0, -300.0]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)
def test_ragged_sequences_equal_one_at_a_time(
    interpreter: Worker,
    q_len: int,
    seq_lens: list[int],
    heads: tuple[int, int],
    num_splits: int | None,
    as_tensor: bool,
    phi: float | None,
    dtype: torch.dtype,
) -> None:
    arguments = q, k, v = qkv(q_len, 60, heads, batch=len(seq_lens), dtype=dtype)
    for b, seq_len in enumerate(seq_lens):
        k[b, seq_len:], v[b, seq_len:] = math.nan, math.nan  # padding is never read
    given_lens = torch.tensor(seq_lens) if as_tensor else seq_lens
    options = {"num_splits": num_splits, "seq_lens": given_lens, "softmax_scale": 0.7}
    if phi is None:
        check(interpreter.call(flash_decoding, *arguments, **options), arguments, **options)
    else:
        results = interpreter.call(flash_decoding_unified, *arguments, phi=phi, **options)
        check(results, arguments, **options)
        if abs(phi) > 200:  # every row that sees a key is far from it
            assert torch.equal(results.fell_back, results.lse > -math.inf)


def test_the_device_clamps_lengths_that_the_host_cannot_see(interpreter: Worker) -> None:
    arguments = qkv(1, 40, (2, 1), batch=3)
    out, lse, _ = interpreter.call(decode_steps, *arguments, torch.tensor([-5, 1000, 40]), 3)
    check((out, lse.transpose(1, 2)), arguments, seq_lens=[0, 40, 40])


def test_splits_follow_each_sequences_own_length(interpreter: Worker) -> None:
    """96 keys in 3 splits of two tiles, 48 in 3 of one; 20 keys fill two; a sequence without keys none."""
    arguments = qkv(1, 96, (1, 1), batch=4)
    out, lse, part_lse = interpreter.call(decode_steps, *arguments, torch.tensor([96, 48, 20, 0]), 3)
    assert part_lse.shape == (4, 1, 1, 3)
    filled = (part_lse > -math.inf).squeeze().tolist()
    assert filled == [[True] * 3, [True] * 3, [True, True, False], [False] * 3]
    log_two = torch.logsumexp(part_lse.double() * math.log(2.0), dim=-1)
    torch.testing.assert_close(log_two, lse.double(), atol=1e-6, rtol=0)


def test_the_same_bits_every_time(interpreter: Worker) -> None:
    arguments = qkv(2, 60, (4, 2))
    first, second = (interpreter.call(flash_decoding, *arguments, num_splits=4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_second_run_touches_only_rows_to_redo(interpreter: Worker) -> None:
    """Two KV heads of 10 rows each, one tile a head; row 3 of the first is to be redone."""
    q, k, v = qkv(1, 40, (20, 2))
    redo = torch.zeros(1, 20, 1, dtype=torch.int8)
    redo[0, 3] = 1
    part_lse, lse, out = interpreter.call(second_run, q, k, v, redo)
    exact_out, exact_lse = attention.flash_decoding(q, k, v)
    torch.testing.assert_close(lse[0, 3], exact_lse[0, :, 3], atol=1e-5, rtol=0)
    torch.testing.assert_close(out[0, 0, 3], exact_out[0, 0, 3], atol=1e-5, rtol=0)
    others = [head for head in range(20) if head != 3]
    assert (lse[0, others] == 7).all() and (out[0, 0, others] == 7).all()
    assert (part_lse[0, :10] != 7).all() and (part_lse[0, 10:] == 7).all()


def test_fallback_is_taken_where_torch_takes_it(interpreter: Worker) -> None:
    """Half of the rows leave a narrow band; a row without keys doesn't count."""
    arguments = qkv(3, 60, (4, 2), batch=2)
    options: dict[str, Any] = {"band": (0.0, 4.3), "phi": 0.1, "num_splits": 2, "seq_lens": [60, 2]}
    ours = interpreter.call(flash_decoding_unified, *arguments, **options)
    theirs = attention.flash_decoding_unified(*arguments, **options)
    assert torch.equal(ours.fell_back, theirs.fell_back) and 0 < ours.fell_back.sum() < ours.fell_back.numel()
    assert ours.lse[1, 0].tolist() == [-math.inf] * 4 and not ours.fell_back[1, 0].any()
    for result, expected in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("phi", [-30.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_far_from_1_are_no_loss_within_the_band(dtype: torch.dtype, phi: float, interpreter: Worker) -> None:
    """e³⁰ and e⁻³⁰ are beyond float16, which has 6e-8 to 65504."""
    arguments = qkv(1, 40, (2, 1), dtype=dtype)
    result = interpreter.call(flash_decoding_unified, *arguments, phi=phi, num_splits=2)
    check(result, arguments)
    assert not result.fell_back.any()


def test_values_that_overflow_are_seen_in_out(interpreter: Worker) -> None:
    """The sum of the weights is finite, and in the band; times the values it isn't."""
    q, k, v = qkv(1, 30, (1, 1))
    q, k, v = torch.ones_like(q), torch.ones_like(k), v * 1e20
    result = interpreter.call(flash_decoding_unified, q, k, v, phi=-65.0, softmax_scale=1 / 16, num_splits=2)
    assert bool(result.fell_back.all())
    torch.testing.assert_close(result.out, v.mean(dim=1, keepdim=True), rtol=1e-5, atol=0)


@pytest.mark.parametrize("seq_lens", [None, [30, 4]])
def test_gradients(seq_lens: list[int] | None, interpreter: Worker) -> None:
    arguments = qkv(2, 30, (2, 1), batch=2)
    ours = interpreter.call(decoding_gradients, *arguments, seq_lens=seq_lens)
    inputs = [x.clone().requires_grad_() for x in arguments]
    out, lse = attention.flash_decoding(*inputs, seq_lens=seq_lens)
    theirs = torch.autograd.grad(out.sin().sum() + lse.sin().sum(), inputs)
    for result, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_tiles_have_room_for_the_rows() -> None:
    for itemsize in (2, 4):
        for dims in ((64, 64), (128, 128), (256, 256), (576, 512)):
            for rows in (1, 4, 16, 17, 64, 128):
                tile = decode_tile(rows, *dims, itemsize=itemsize)
                assert 16 <= tile.block_q <= 64 and tile.block_k >= 16 and tile.num_warps in (4, 8)
    assert [decode_tile(rows, 128, 128, itemsize=2).block_q for rows in (1, 16, 17, 64, 65)] == [16, 16, 32, 64, 64]
    assert decode_tile(1, 64, 64, itemsize=2).block_k == 128 and decode_tile(1, 128, 128, itemsize=2).block_k == 64


def test_inputs_are_refused_with_what_was_expected(interpreter: Worker) -> None:
    x = torch.ones(2, 4, 2, 16)
    wide = torch.ones(2, 4, 2, 1040)
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (flash_decoding, (x, x, x), {"num_splits": 0}, "at least 1 split, got num_splits=0"),
        (flash_decoding, (x, x, x), {"seq_lens": [4]}, r"2 sequences, each from 0 to k_len = 4, got \[4\]"),
        (flash_decoding, (x, x, x), {"seq_lens": [4, 5]}, r"got \[4, 5\]"),
        (flash_decoding, (x, x, x), {"seq_lens": torch.tensor([-1, 3])}, "got tensor"),
        (flash_decoding, (x, x, x), {"seq_lens": torch.tensor([1.0, 3.0])}, "got tensor"),
        (flash_decoding, (x, x, x[:, :3]), {}, "don't fit"),
        (flash_decoding, (wide, wide, x), {}, "at most 1024, got k_head_dim 1040"),
        (flash_decoding_unified, (x, x, x), {"phi": math.inf}, "finite phi"),
        (flash_decoding_unified, (x, x, x), {"band": (3.0, 2.0)}, "band within"),
        (flash_decoding_unified, (x.clone().requires_grad_(), x, x), {}, "for inference"),
    ]
    for function, arguments, options, message in cases:
        with pytest.raises(ValueError, match=message):
            interpreter.call(function, *arguments, **options)
