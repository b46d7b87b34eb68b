"""The dispatched attention gives what the oracle gives, whichever pattern reaches torch's fused kernel."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from minillm.attention import flash_attention, flash_decoding, flash_decoding_unified, naive_attention
from minillm.attention.dispatch import attention, gpu_kernel
from tests.attention.problems import Problem, make_problem, problems, random_tensor


def assert_equals_oracle(problem: Problem, tolerance: float = 1e-12) -> None:
    out = attention(problem.q, problem.k, problem.v, **problem.options)
    expected, _ = naive_attention(problem.q, problem.k, problem.v, **problem.options)
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=0)


@given(problems())
@settings(max_examples=100, deadline=None)
def test_equals_the_oracle(problem: Problem) -> None:
    assert_equals_oracle(problem)


@given(problems(longest_query=1))
@settings(max_examples=100, deadline=None)
def test_equals_the_oracle_for_one_query(problem: Problem) -> None:
    assert_equals_oracle(problem)


@pytest.mark.parametrize("q_len", [1, 2, 5])
@pytest.mark.parametrize("softmax_scale", [0.0, -1.0])
def test_what_is_masked_stays_masked_under_any_scale(q_len: int, softmax_scale: float) -> None:
    assert_equals_oracle(make_problem(q_len=q_len, k_len=5, softmax_scale=softmax_scale))


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("mask_shape", [None, (7,), (1, 7), (3, 1, 1, 7), (4, 1, 7), (1, 4, 1, 7), (3, 4, 1, 7)])
@pytest.mark.parametrize("window", [None, 1, 3, 7, 20])
def test_one_query_with_every_mask_shape(num_kv_heads: int, mask_shape: Any, window: int | None) -> None:
    problem = make_problem(batch=3, q_len=1, k_len=7, num_kv_heads=num_kv_heads, v_head_dim=3, window=window)
    if mask_shape is not None:
        problem.options["mask"] = random_tensor(4, *mask_shape) > 0
    assert_equals_oracle(problem)


@pytest.mark.parametrize("q_len, k_len", [(1, 1), (5, 5), (3, 7), (7, 3), (6, 1)])
@pytest.mark.parametrize("window", [None, 1, 2, 3, 6, 7, 8])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_causal_lengths_and_windows(q_len: int, k_len: int, window: int | None, num_kv_heads: int) -> None:
    assert_equals_oracle(make_problem(q_len=q_len, k_len=k_len, window=window, num_kv_heads=num_kv_heads))


@pytest.mark.parametrize("q_len, k_len", [(0, 4), (4, 0), (0, 0), (1, 0)])
@pytest.mark.parametrize("causal", [True, False])
def test_nothing_to_ask_or_nothing_to_see(q_len: int, k_len: int, causal: bool) -> None:
    problem = make_problem(q_len=q_len, k_len=k_len, v_head_dim=3, causal=causal)
    assert attention(problem.q, problem.k, problem.v, causal=causal).shape == (2, q_len, 4, 3)
    assert_equals_oracle(problem)


@pytest.mark.parametrize("q_len", [1, 4])
@pytest.mark.parametrize("num_kv_heads", [2, 4])
def test_strided_inputs(q_len: int, num_kv_heads: int) -> None:
    """Slices of a cache's slab and of a fused projection are views with strides of their own."""
    slab = random_tensor(0, 2, 16, 2 * num_kv_heads, 6)
    q = random_tensor(1, 2, 4, q_len, 9).transpose(1, 2)[..., :6]
    problem = Problem(q, slab[:, 3:9, :num_kv_heads], slab[:, 3:9, num_kv_heads:, :5])
    assert not any(x.is_contiguous() for x in (problem.k, problem.v))
    assert_equals_oracle(problem)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 2},
        {"causal": False},
        {"k_len": 2},
        {"q_len": 1, "mask": torch.tensor([False, True, True, False, True])},
        {"mask": (random_tensor(5, 2, 4, 5, 5) > 0) & torch.tensor([True, True, False, True, True])[:, None]},
    ],
    ids=["causal", "window", "bidirectional", "empty rows", "folded", "masked rows"],
)
def test_gradients_equal_the_oracles(options: dict[str, Any]) -> None:
    problem = make_problem(v_head_dim=3, **options)
    gradients = []
    for function in (attention, lambda *args, **kwargs: naive_attention(*args, **kwargs)[0]):
        inputs = [x.clone().requires_grad_() for x in (problem.q, problem.k, problem.v)]
        function(*inputs, **problem.options).square().sum().backward()
        gradients.append([x.grad for x in inputs])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"q_len": 1}, {"window": 5}, {"q_len": 3}])
def test_low_precision(dtype: torch.dtype, options: dict[str, Any]) -> None:
    problem = make_problem(**({"q_len": 17} | options), k_len=17, k_head_dim=32, v_head_dim=32, dtype=dtype)
    out = attention(problem.q, problem.k, problem.v, **problem.options)
    assert out.dtype == dtype
    exact, _ = naive_attention(problem.q.double(), problem.k.double(), problem.v.double(), **problem.options)
    # The oracle computes in float32 and rounds once, so its error is the least that the dtype allows.
    rounded, _ = naive_attention(problem.q, problem.k, problem.v, **problem.options)
    least = (rounded.double() - exact).abs().max()
    assert (out.double() - exact).abs().max() <= (1e-5 if dtype == torch.float32 else 4 * least + 1e-5)


def test_the_kernel_is_spared_masks_and_repeated_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[tuple[int, ...], dict[str, Any]]] = []
    fused = F.scaled_dot_product_attention

    def recording(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        calls.append((tuple(q.shape), options))
        return fused(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recording)
    for options in ({}, {"window": 5}, {"q_len": 1}, {"q_len": 1, "window": 5}, {"causal": False}):
        assert_equals_oracle(make_problem(**options))
    assert [options["attn_mask"] for _, options in calls] == [None] * 5
    assert [options["is_causal"] for _, options in calls] == [True, True, False, False, False]
    # One query: the heads of a group arrive as queries to their KV head, (batch, num_kv_heads, group, dim).
    assert [shape for shape, _ in calls] == [(2, 4, 5, 6)] * 2 + [(2, 2, 2, 6)] * 2 + [(2, 4, 5, 6)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"softmax_scale": 0.0}, {"softmax_scale": -0.7}, {"causal": False}], ids=str)
def test_one_token_and_many_keys_go_to_the_cores(
    dtype: torch.dtype, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba", reason="decoding on CPU cores needs numba")
    from minillm.attention import cpu_decoding, dispatch

    calls = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return decode_on_cpu(*args, **kwargs)

    decode_on_cpu = cpu_decoding.decode_on_cpu
    monkeypatch.setattr(cpu_decoding, "decode_on_cpu", watched)
    problem = make_problem(batch=2, q_len=1, k_len=9, k_head_dim=16, v_head_dim=24, dtype=dtype, **options)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    monkeypatch.setattr(dispatch, "LARGE_BYTES", problem.k.nbytes + 1)
    assert_equals_oracle(problem, tolerance)
    assert not calls
    monkeypatch.setattr(dispatch, "LARGE_BYTES", problem.k.nbytes)
    assert_equals_oracle(problem, tolerance)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "changes",
    [{"q_len": 2}, {"window": 3}, {"dtype": torch.float64}, {"mask": True}, {"strided": True}, {"gradient": True}],
    ids=lambda changes: next(iter(changes)),
)
def test_what_the_cores_do_not_know_stays_with_torch(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from minillm.attention import dispatch

    changes = dict(changes)
    mask, strided, gradient = (changes.pop(name, False) for name in ("mask", "strided", "gradient"))
    monkeypatch.setattr(dispatch, "LARGE_BYTES", 0)
    monkeypatch.setitem(sys.modules, "minillm.attention.cpu_decoding", None)  # importing it would raise
    problem = make_problem(**({"q_len": 1, "k_len": 9, "dtype": torch.float32} | changes))
    if mask:
        problem.options["mask"] = torch.arange(9) % 3 > 0
    if strided:
        problem = replace(problem, v=problem.v.transpose(1, 2).contiguous().transpose(1, 2))
    if gradient:
        problem.k.requires_grad_()
    assert_equals_oracle(problem, 1e-5)


@pytest.mark.parametrize("options", [{"k_len": 2}, {"q_len": 1, "mask": torch.zeros(5, dtype=torch.bool)}])
def test_rows_without_keys_do_not_depend_on_the_kernel(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a row that sees no key some of torch's kernels give NaN, some 0, some the mean of all values."""
    fused = F.scaled_dot_product_attention

    def spoiling(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        empty = ~options["attn_mask"].any(dim=-1, keepdim=True)
        assert empty.any()
        return fused(q, k, v, **options).masked_fill(empty, float("nan"))

    monkeypatch.setattr(F, "scaled_dot_product_attention", spoiling)
    assert_equals_oracle(make_problem(**options))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"window": 2, "causal": False}, "requires causal"),
        ({"mask": torch.zeros(5, 5)}, "boolean mask"),
        ({"mask": torch.zeros(4, 5, dtype=torch.bool)}, r"\(4, 5\)"),
    ],
)
def test_refuses_what_the_oracle_refuses(options: dict[str, Any], message: str) -> None:
    problem = make_problem()
    with pytest.raises(ValueError, match=message):
        attention(problem.q, problem.k, problem.v, **options)
    with pytest.raises(ValueError, match=r"q \(2, 5, 4, 6\), k \(2, 5, 2, 6\), v \(2, 4, 2, 6\)"):
        attention(problem.q, problem.k, problem.v[:, :4])


# ---- the seam to the kernels


def test_cuda_tensors_go_to_the_kernel_of_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = ModuleType("minillm.kernels")
    kernels.flash_attention = object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "minillm.kernels", kernels)
    monkeypatch.setattr("minillm.kernels", kernels, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    on_gpu: Any = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16)
    assert gpu_kernel("flash_attention", on_gpu) is kernels.flash_attention
    assert gpu_kernel("no_such_kernel", on_gpu) is None  # torch does it
    assert gpu_kernel("flash_attention", SimpleNamespace(is_cuda=True, dtype=torch.float64)) is None  # type: ignore[arg-type]
    assert gpu_kernel("flash_attention", torch.zeros(1)) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert gpu_kernel("flash_attention", on_gpu) is None  # Triton isn't installed


@pytest.mark.parametrize("function", [flash_attention, flash_decoding, flash_decoding_unified])
def test_a_kernel_gets_the_arguments_as_they_are(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def kernel(*args: Any, **options: Any) -> str:
        calls.append((args, options))
        return "result"

    name = function.__name__
    module = sys.modules[function.__module__]
    monkeypatch.setattr(module, "gpu_kernel", lambda asked, q: kernel if asked == name else None)
    problem = make_problem(q_len=2)
    assert function(problem.q, problem.k, problem.v, softmax_scale=0.5) == "result"
    ((args, options),) = calls
    assert all(map(torch.equal, args, (problem.q, problem.k, problem.v))) and options["softmax_scale"] == 0.5
    others = {
        "flash_attention": {"causal": True, "window": None},
        "flash_decoding": {"num_splits": None, "seq_lens": None},  # the kernel chooses: no length is read here
        "flash_decoding_unified": {"phi": 0.0, "band": None, "num_splits": None, "seq_lens": None},
    }
    assert options == {"softmax_scale": 0.5} | others[name]
