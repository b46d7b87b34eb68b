"""The kernels between the products in Triton's interpreter: any shape, what is written, kept and launched, errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")
pytest.importorskip("numba")

from minillm import kernels
from minillm.kernels import fused_bounds as bounds
from minillm.kernels import fused_entries, registry
from minillm.kernels import fused_oracles as oracles
from minillm.kernels.flash_problems import Inputs
from minillm.kernels.fused_problems import gradients_of, loss_and_gradient
from minillm.kernels.fused_rows import as_rows
from minillm.kernels.gates import Problem, compare
from minillm.kernels.processes import Worker
from tests.kernels.fused_in_child import (
    beside_guards,
    built_for_sizes_of_one,
    is_view,
    launches,
    loss_in_place,
    loss_of_a_copy,
    norm_parts,
    numbers_that_rms_norm_keeps,
    rope_arguments,
    softmax_in_blocks,
    what_swiglu_keeps,
    with_gradients,
)

SHARED_WORKER = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
HALF_OR_SINGLE = st.sampled_from([torch.float32, torch.float16])


def make(dtype: torch.dtype = torch.float32) -> Inputs:
    return Inputs(dtype, torch.device("cpu"))


def check(results: Sequence[Tensor], exact: Sequence[Tensor], bound: Callable[..., Tensor], problem: Problem) -> None:
    for result, wanted in zip(results, exact, strict=True):
        _, share, found = compare(result, wanted, bound(problem, wanted))
        assert not found and share <= 1, (found, share)


def double(*args: Any) -> list[Any]:
    return [arg.double() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args]


@SHARED_WORKER
@given(rows=st.integers(0, 20), n=st.integers(1, 70), eps=st.sampled_from([1e-6, 1e-2]), dtype=HALF_OR_SINGLE)
def test_norms_of_any_shape(interpreter: Worker, rows: int, n: int, eps: float, dtype: torch.dtype) -> None:
    x, residual, dy, d_residual = make(dtype).normal(4, n, rows).transpose(1, 2)
    weight = make(dtype).normal(n)
    args = (x, residual, weight, dy, d_residual)
    results = interpreter.call(with_gradients, kernels.add_rms_norm, *args, inputs=3, eps=eps)
    problem = Problem("", args, {"eps": eps})
    exact = oracles.add_rms_norm(*double(x, residual, weight), eps)
    check(results[:2], exact, bounds.add_norm_bound, Problem("", args[:3], {"eps": eps}))
    assert torch.equal(results[1], x + residual)  # rounded as eager torch rounds
    exact = gradients_of(oracles.add_rms_norm, inputs=3)(*double(*args), eps=eps)
    check(results[2:], exact, bounds.norm_gradient_bound, problem)


def test_the_norm_rounds_where_the_model_does(interpreter: Worker) -> None:
    """Before the product with the weight: rounding once would give other last bits in every fourth number."""
    x, weight = make(torch.float16).normal(4, 500), make(torch.float16).normal(500)
    y = interpreter.call(kernels.rms_norm, x, weight, 1e-5)
    assert (y != oracles.rms_norm(x, weight, 1e-5)).double().mean() < 0.01


def test_the_rounded_sum_is_normed(interpreter: Worker) -> None:
    """What later layers read, to the last bit, not the sum before rounding."""
    x, residual = make(torch.float16).normal(2, 4, 500)
    weight = make(torch.float16).normal(500)
    y, new_residual = interpreter.call(kernels.add_rms_norm, x, residual, weight, 1e-5)
    assert torch.equal(y, interpreter.call(kernels.rms_norm, new_residual, weight, 1e-5))


@pytest.mark.parametrize("num_rows", [1, 4, 7, 33])
@pytest.mark.parametrize("num_sms", [1, 2, 9])
def test_parts_of_the_weights_gradient_cover_all_rows(num_rows: int, num_sms: int, interpreter: Worker) -> None:
    """Powers of two, whose sums are exact in any order: a row left out or counted twice shows."""
    x, weight = torch.ones(num_rows, 70), torch.ones(70)
    dy = torch.where(torch.arange(70) % 2 == 0, 1.0, -2.0).expand(num_rows, -1)
    dx, d_weight = interpreter.call(norm_parts, x, weight, dy, num_sms)
    assert torch.allclose(d_weight, dy.sum(dim=0), rtol=1e-4) and dx.shape == x.shape
    again = interpreter.call(norm_parts, x, weight, dy, num_sms)
    assert torch.equal(again[0], dx) and torch.equal(again[1], d_weight)


@SHARED_WORKER
@given(
    tokens=st.integers(0, 3),
    heads=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    half=st.integers(1, 20),
    dtype=HALF_OR_SINGLE,
)
def test_rope_of_any_shape(
    interpreter: Worker, tokens: int, heads: tuple[int, int], half: int, dtype: torch.dtype
) -> None:
    inputs = make(dtype)
    q, k, d_q, d_k = (inputs.normal(2, num, tokens, 2 * half).transpose(1, 2) for num in heads * 2)
    cos, sin = inputs.normal(2, tokens, 1, 2 * half)
    args = (q, k, cos, sin, d_q, d_k)
    results = interpreter.call(with_gradients, kernels.rope, *args, inputs=2, constants=2)
    check(results[:2], oracles.rope(*double(*args[:4])), bounds.rope_bound, Problem("", args[:4]))
    exact = gradients_of(oracles.rope, inputs=2, constants=2)(*double(*args))
    check(results[2:], exact, bounds.rope_gradient_bound, Problem("", args))


def test_turning_back_undoes_a_turn(interpreter: Worker) -> None:
    """The gradient of a rotation is the rotation by −θ."""
    q, k = make().normal(2, 3, 4, 16)
    angles = make().normal(3, 1, 8).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    turned = interpreter.call(kernels.rope, q, k, cos, sin)
    _, _, *back = interpreter.call(with_gradients, kernels.rope, q, k, cos, sin, *turned, inputs=2, constants=2)
    for result, x in zip(back, (q, k), strict=True):
        torch.testing.assert_close(result, x, rtol=0, atol=1e-6)


@SHARED_WORKER
@given(rows=st.integers(0, 5), n=st.integers(1, 70), dtype=HALF_OR_SINGLE)
def test_swiglu_of_any_shape(interpreter: Worker, rows: int, n: int, dtype: torch.dtype) -> None:
    gate, up, dy = 4 * make(dtype).normal(3, rows, 2 * n)[..., ::2]
    results = interpreter.call(with_gradients, kernels.swiglu, gate, up, dy, inputs=2)
    check(results[:1], (oracles.swiglu(*double(gate, up)),), bounds.swiglu_bound, Problem("", (gate, up)))
    exact = gradients_of(oracles.swiglu, inputs=2)(*double(gate, up, dy))
    check(results[1:], exact, bounds.swiglu_gradient_bound, Problem("", (gate, up, dy)))
    both = torch.cat((gate, up), dim=-1)
    y, d_both = interpreter.call(with_gradients, kernels.swiglu_halves, both, dy, inputs=1)
    assert torch.equal(y, results[0]) and torch.equal(d_both, torch.cat(results[1:], dim=-1))
    assert d_both.is_contiguous()


@SHARED_WORKER
@given(
    rows=st.integers(0, 4),
    n=st.integers(0, 90),
    largest=st.sampled_from([16, 32, 128]),
    hidden=st.floats(0.0, 1.0),
    spread=st.sampled_from([1.0, 30.0]),
    dtype=HALF_OR_SINGLE,
)
def test_softmax_in_one_block_or_many(
    interpreter: Worker, rows: int, n: int, largest: int, hidden: float, spread: float, dtype: torch.dtype
) -> None:
    inputs = make(dtype)
    x, dy = spread * inputs.normal(n, rows).T, inputs.normal(rows, 2 * n)[:, ::2]
    x[torch.rand(x.shape, generator=inputs.generator) < hidden] = float("-inf")
    y, dx = interpreter.call(softmax_in_blocks, x, dy, largest)
    check((y,), (oracles.softmax(x.double()),), bounds.softmax_bound, Problem("", (x,)))
    exact = gradients_of(oracles.softmax, inputs=1)(x.double(), dy.double())
    check((dx,), exact, bounds.softmax_gradient_bound, Problem("", (x, dy)))


@SHARED_WORKER
@given(rows=st.integers(0, 4), vocab_size=st.integers(1, 90), in_place=st.booleans(), dtype=HALF_OR_SINGLE)
def test_cross_entropy_of_any_shape(
    interpreter: Worker, rows: int, vocab_size: int, in_place: bool, dtype: torch.dtype
) -> None:
    inputs = make(dtype)
    logits = 5 * inputs.normal(rows, vocab_size)
    targets = torch.randint(-1, vocab_size, (rows,), generator=inputs.generator)
    d_loss, d_lse = inputs.normal(rows).float(), inputs.normal(rows).float()
    args = (logits, targets, d_loss, d_lse)
    results = interpreter.call(loss_of_a_copy, *args, in_place=in_place)
    exact = loss_and_gradient(oracles.cross_entropy)(*double(*args), ignore_index=-1)
    check(results, exact, bounds.loss_bound, Problem("", args, {"ignore_index": -1}))


def test_the_loss_in_the_logits_memory(interpreter: Worker) -> None:
    logits, targets = make().normal(3, 50), torch.tensor([3, -100, 49])
    memory, is_shared, again, other = interpreter.call(loss_in_place, logits.clone(), targets)
    leaf = logits.double().requires_grad_()
    oracles.cross_entropy(leaf, targets)[0].mean().backward()
    assert is_shared and leaf.grad is not None
    torch.testing.assert_close(memory.double(), leaf.grad, rtol=0, atol=1e-7)
    # Whoever needs what was there is told, instead of getting wrong gradients.
    assert "modified by an inplace operation" in again and "modified by an inplace operation" in other


def test_nothing_is_kept_that_can_be_computed_again(interpreter: Worker) -> None:
    x = make().normal(5, 8)
    assert interpreter.call(what_swiglu_keeps, x, x + 1)
    assert interpreter.call(numbers_that_rms_norm_keeps, x, x[0].clone()) == 5


LAUNCHES = [
    ("rms_norm", (torch.ones(3, 10), torch.ones(10), 1e-5), (1, 2)),
    ("add_rms_norm", (torch.ones(3, 10), torch.ones(3, 10), torch.ones(10), 1e-5), (1, 2)),
    ("rope", rope_arguments(), (1, 1)),
    ("swiglu", (torch.ones(3, 10), torch.ones(3, 10)), (1, 1)),
    ("swiglu_halves", (torch.ones(3, 10),), (1, 1)),
    ("softmax", (torch.ones(3, 10),), (1, 1)),
    ("cross_entropy", (torch.ones(3, 10), torch.tensor([0, 1, 2])), (1, 1)),
]


@pytest.mark.parametrize(("name", "args", "expected"), LAUNCHES)
def test_launches_are_as_few_as_promised(
    name: str, args: tuple[Any, ...], expected: tuple[int, int], interpreter: Worker
) -> None:
    assert interpreter.call(launches, getattr(kernels, name), *args) == expected


def test_nothing_is_written_behind_the_results(interpreter: Worker) -> None:
    """Rows of 19 numbers in blocks of 32, heads of 6 pairs in blocks of 8."""
    x, y, z, u = make().normal(4, 3, 19)
    row = make().normal(19)
    q, k, cos, sin = rope_arguments()
    gradients = make().normal(3).float()
    for function, args, options in [
        (kernels.rms_norm, (x, row, y), {"inputs": 2, "eps": 1e-5}),
        (kernels.add_rms_norm, (x, y, row, z, u), {"inputs": 3, "eps": 1e-5}),
        (kernels.rope, (q, k, cos, sin, q, k), {"inputs": 2, "constants": 2}),
        (kernels.swiglu, (x, y, z), {"inputs": 2}),
        (kernels.swiglu_halves, (x[:, :18], y[:, :9]), {"inputs": 1}),
        (kernels.softmax, (x, y), {"inputs": 1}),
        (kernels.softmax, (make().normal(1, 16385), make().normal(1, 16385)), {"inputs": 1}),
        (kernels.cross_entropy, (x, torch.tensor([0, 5, 18]), gradients, gradients), {"inputs": 1, "constants": 1}),
    ]:
        assert interpreter.call(beside_guards, function, *args, **options), function.__name__


def test_views_are_taken_as_they_are(interpreter: Worker) -> None:
    assert interpreter.call(is_view, 3, 5, stride=(20, 2))
    assert interpreter.call(is_view, 2, 3, 5, stride=(60, 20, 1))  # halves of a matrix: one step between all rows
    assert not interpreter.call(is_view, 2, 3, 5, stride=(5, 10, 1))
    # Offsets inside a row are 32 bits wide. Tensors without memory:
    long = torch.empty_strided((2, 3), (1, 2**30), device="meta")
    assert as_rows(long).stride() == (3, 1) and as_rows(long[:, :1]).stride() == (1, 2**30)


@pytest.mark.parametrize("capability", [80, 90])
def test_no_build_spills_and_sizes_of_one_compile(capability: int, compiler: Worker) -> None:
    """The interpreter doesn't turn arguments that are 1 into constants, a GPU's first launch does."""
    assert [found for found in compiler.call(built_for_sizes_of_one, capability) if found[1]] == []
    for entry in fused_entries.entries():
        builds = compiler.call(registry.check_builds, entry.name, capability)
        assert [built.label for built in builds if built.spilled_bytes] == []


def test_names_of_the_package_stay_functions() -> None:
    """A module of the same name would take the place of the function once it is imported."""
    for name in ("rms_norm", "rope", "softmax", "swiglu", "cross_entropy"):
        assert callable(getattr(kernels, name)) and callable(getattr(kernels, name))
