"""FLOPs and bytes of an attention problem, counted exactly: against the mask itself and against tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.attention.naive import visible_keys
from minillm.bench.attention_shape import AttentionShape

LLAMA = AttentionShape(2, 100, 100, num_heads=8, num_kv_heads=2, k_head_dim=16, v_head_dim=12)
MLA = AttentionShape(3, 1, 50, num_heads=4, num_kv_heads=1, k_head_dim=24, v_head_dim=16, v_from_k=True)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.integers(0, 12), st.booleans(), st.none() | st.integers(1, 30))
def test_pairs_are_those_of_the_mask(q_len: int, more: int, causal: bool, window: int | None) -> None:
    window = window if causal else None
    shape = replace(LLAMA, q_len=q_len, k_len=q_len + more, causal=causal, window=window)
    mask = visible_keys(q_len, q_len + more, causal=causal, window=window)
    assert shape.pairs == mask.sum()
    numbers = 2 * 2 * mask.any(dim=0).sum() * (16 + 12)  # batch, KV heads, seen keys
    if causal:  # a window's own bound: keys that no query sees don't count
        assert shape.kv_bytes(4) == 4 * numbers


def test_flops_by_hand() -> None:
    pairs = 100 * 101 // 2
    assert LLAMA.flops() == 2 * 2 * 8 * pairs * (16 + 12)
    assert LLAMA.flops(backward=True) == 3 * LLAMA.flops()
    assert replace(LLAMA, causal=False).flops() == 2 * 2 * 8 * 100 * 100 * (16 + 12)


def test_flops_agree_with_the_products_of_naive_attention() -> None:
    """torch's own counter sees every pair, so the comparison is without a mask; six products with gradients."""
    from torch.utils.flop_counter import FlopCounterMode

    from minillm.attention.naive import naive_attention

    shape = replace(LLAMA, causal=False)
    q, k, v = (x.requires_grad_() for x in shape.tensors(torch.float32))
    with FlopCounterMode(display=False) as forward:
        out, _ = naive_attention(q, k, v, causal=False)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(out.sum(), (q, k, v))
    assert shape.flops() == forward.get_total_flops()
    assert shape.flops(backward=True) == forward.get_total_flops() + backward.get_total_flops()


def test_bytes_are_those_of_the_tensors() -> None:
    q, k, v = LLAMA.tensors(torch.bfloat16)
    out = q[..., :12]
    assert LLAMA.kv_bytes(2) == k.nbytes + v.nbytes
    assert LLAMA.least_bytes(2) == q.nbytes + k.nbytes + v.nbytes + out.numel() * 2
    # forward, then q, k, v, out, its gradient read, and three gradients written
    once = q.nbytes + k.nbytes + v.nbytes
    assert LLAMA.least_bytes(2, backward=True) == LLAMA.least_bytes(2) + 2 * once + 2 * out.numel() * 2


def test_values_within_keys_are_not_stored() -> None:
    q, k, v = MLA.tensors(torch.float32)
    assert MLA.kv_bytes(4) == k.nbytes == 3 * 50 * 24 * 4
    assert v.shape == (3, 50, 1, 16) and v.data_ptr() == k.data_ptr()
    assert replace(MLA, v_from_k=False).kv_bytes(4) == 3 * 50 * (24 + 16) * 4
    assert q.shape == (3, 1, 4, 24)


def test_the_small_problem_has_the_same_rules() -> None:
    large = replace(LLAMA, batch=9, q_len=5000, k_len=5000, window=1000)
    small = large.small()
    assert (small.batch, small.q_len, small.k_len, small.window) == (2, 200, 200, 67)
    assert (small.num_heads, small.num_kv_heads, small.k_head_dim, small.v_head_dim) == (8, 2, 16, 12)
    assert small.pairs < replace(small, window=None).pairs  # the window hides something
    assert LLAMA.small() == LLAMA and MLA.small() == replace(MLA, batch=2)
    assert replace(MLA, k_len=9999).small().q_len == 1


def test_inputs_are_always_the_same() -> None:
    for a, b in zip(LLAMA.tensors(torch.float32), LLAMA.tensors(torch.float32), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "sizes from 1 on"),
        ({"v_head_dim": 0}, "sizes from 1 on"),
        ({"q_len": 101}, "no more queries than keys"),
        ({"num_kv_heads": 3}, "multiple of KV heads, got 8 and 3"),
        ({"window": 0}, "window=0"),
        ({"window": 5, "causal": False}, "needs causal"),
        ({"v_from_k": True, "v_head_dim": 17}, "17 numbers of 16"),
    ],
)
def test_bad_shapes(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(LLAMA, **change)
