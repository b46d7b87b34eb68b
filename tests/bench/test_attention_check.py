"""Who takes part: refusals become one line, wrong results are found, right ones of every library pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from minillm.attention import naive_attention
from minillm.bench import attention, decode_attention
from minillm.bench.attention_check import LONGEST_REASON, Attention, Maker, attempt, check, reason_of, refuse
from minillm.bench.attention_peers import flex, sdpa
from minillm.bench.attention_shape import AttentionShape

CPU = torch.device("cpu")
LLAMA = AttentionShape(1, 300, 300, num_heads=4, num_kv_heads=2, k_head_dim=16, v_head_dim=16)
WINDOW = AttentionShape(1, 300, 300, 4, 2, 16, 16, window=100)
FULL = AttentionShape(1, 300, 300, 4, 4, 16, 16, causal=False)
STEP = AttentionShape(2, 1, 300, num_heads=4, num_kv_heads=2, k_head_dim=16, v_head_dim=16)
LATENT = AttentionShape(2, 1, 300, num_heads=4, num_kv_heads=1, k_head_dim=24, v_head_dim=16, v_from_k=True)


def wrong(change: Callable[[Tensor], Tensor] = lambda out: out, **options: object) -> Maker:
    """Naive attention of other options than asked for, or with its result changed."""

    def make(shape: AttentionShape, _device: torch.device) -> Attention:
        rules = {"causal": shape.causal, "window": shape.window} | options
        return lambda q, k, v: change(naive_attention(q, k, v, **rules)[0])  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [LLAMA, WINDOW, FULL], ids=["causal", "window", "full"])
def test_everyone_is_right_at_prefill(shape: AttentionShape, dtype: torch.dtype) -> None:
    absent = check(attention.candidates(attention.QUICK), shape, dtype, CPU, backward=False)
    assert not [name for name, absence in absent.items() if absence.is_wrong]
    assert {"naive", "flash v1", "flash v2", "flash_attention", "torch SDPA", "SDPA math"}.isdisjoint(absent)


@pytest.mark.parametrize("shape", [LLAMA, WINDOW], ids=["causal", "window"])
def test_gradients_are_right(shape: AttentionShape) -> None:
    absent = check(attention.candidates(attention.QUICK), shape, torch.float32, CPU, backward=True)
    assert set(absent) <= {"SDPA efficient", "SDPA cudnn", "FlexAttention"}
    assert not any(absence.is_wrong for absence in absent.values())


@pytest.mark.parametrize("shape", [STEP, LATENT], ids=["GQA", "MLA"])
def test_everyone_is_right_at_a_step(shape: AttentionShape) -> None:
    absent = check(decode_attention.candidates(decode_attention.QUICK), shape, torch.float32, CPU, backward=False)
    assert not [name for name, absence in absent.items() if absence.is_wrong]
    assert {"naive", "flash_decoding", "unified maximum", "attention()", "torch SDPA"}.isdisjoint(absent)
    if shape is LATENT:
        assert absent["decode_on_cpu"].reason == "it wants v apart from k"


@pytest.mark.parametrize("shape", [LLAMA, WINDOW, FULL, STEP, LATENT])
def test_flex_attention_follows_the_rules(shape: AttentionShape) -> None:
    """Uncompiled it computes the same from the same masks."""
    assert check({"flex": flex(compiled=False)}, shape, torch.float32, CPU, backward=False) == {}


def test_flex_attention_with_more_keys_than_queries() -> None:
    shape = AttentionShape(1, 20, 50, 2, 2, 8, 8, window=11)
    q, k, v = shape.tensors(torch.float64)
    expected, _ = naive_attention(q, k, v, window=11)
    for maker in (flex(compiled=False), sdpa()):
        torch.testing.assert_close(maker(shape, CPU)(q, k, v), expected)


WRONG = [
    (LLAMA, wrong(causal=False), "out"),
    (WINDOW, wrong(window=None), "out"),
    (WINDOW, wrong(window=66), "out"),  # one key less than in the small problem
    (LLAMA, wrong(softmax_scale=0.2), "out"),
    (LLAMA, wrong(lambda out: out[:, :-1]), "the shape"),
    (LLAMA, wrong(lambda out: out.masked_fill(out == out.max(), torch.nan)), "nan"),
    (STEP, wrong(lambda out: out + 1e-3), "out"),
]


@pytest.mark.parametrize(("shape", "maker", "word"), WRONG)
def test_wrong_results_are_found(shape: AttentionShape, maker: Maker, word: str) -> None:
    absent = check({"it": maker, "naive": wrong()}, shape, torch.float32, CPU, backward=False)
    assert set(absent) == {"it"} and absent["it"].is_wrong and word in absent["it"].reason


def test_wrong_gradients_are_found() -> None:
    class HalfGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient / 2

    def make(shape: AttentionShape, _device: torch.device) -> Attention:
        return lambda q, k, v: naive_attention(q, HalfGradient.apply(k), v)[0]

    assert check({"it": make}, LLAMA, torch.float32, CPU, backward=False) == {}
    absent = check({"it": make}, LLAMA, torch.float32, CPU, backward=True)
    assert absent["it"].is_wrong and absent["it"].reason.startswith("dk is wrong by")


def test_bfloat16_may_round() -> None:
    def noisy(size: float) -> Maker:
        return wrong(lambda out: out * (1 + size))

    assert check({"it": noisy(0.004)}, LLAMA, torch.bfloat16, CPU, backward=False) == {}
    assert check({"it": noisy(0.004)}, LLAMA, torch.float32, CPU, backward=False)["it"].is_wrong
    assert check({"it": noisy(0.1)}, LLAMA, torch.bfloat16, CPU, backward=False)["it"].is_wrong


def test_refusals() -> None:
    def late(_shape: AttentionShape, _device: torch.device) -> Attention:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            raise NotImplementedError("No such dtype here. Please set another.\nTraceback: much more")

        return attend

    absent = check({"early": refuse("no"), "late": late}, LLAMA, torch.float32, CPU, backward=False)
    assert absent == {"early": ("no", False), "late": ("No such dtype here", False)}


def test_reasons_are_short_lines() -> None:
    assert reason_of(ValueError("much " * 50), []) == ("much " * 50)[: LONGEST_REASON - 1] + "…"
    assert reason_of(KeyError(), []) == "KeyError"
    assert reason_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB"), []) == "out of memory"
    none = RuntimeError("No viable backend for scaled_dot_product_attention was found. This is likely due to …")
    assert reason_of(none, []) == "torch has no such kernel for this device, dtype and shape"
    warned = [
        "Memory efficient kernel not used because: (Triggered internally at sdp_utils.cpp:1.)",
        "Memory Efficient attention has been runtime disabled. (Triggered internally at x.)",
        "Flash attention kernel not used because: (Triggered internally at y.)",
        "Expected query, key and value to all be of dtype: {Half, BFloat16}. Got float. (Triggered internally at z.)",
    ]
    assert reason_of(none, warned) == "Expected query, key and value to all be of dtype: {Half, BFloat16}"
    assert reason_of(ValueError("version 2.6 is too old. Sorry."), ["something else"]) == "version 2.6 is too old"


def test_attempt_keeps_quiet(recwarn: pytest.WarningsRecorder) -> None:
    import warnings

    def call() -> int:
        warnings.warn("kernel is slow", stacklevel=1)
        return 3

    assert attempt(call) == (3, "") and not recwarn.list
    with pytest.raises(KeyboardInterrupt):
        attempt(lambda: (_ for _ in ()).throw(KeyboardInterrupt))
