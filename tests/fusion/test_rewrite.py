"""Patterns are found where they fit, however they are written, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from minillm.fusion import PATTERNS, Pattern, capture, fuse_graph, graph_breaks, kind_counts, op_counts
from minillm.fusion.operation import Operation, kind, operation
from minillm.fusion.patterns import largest_first, rms_norm

EPS = 1e-3


def numbers(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


X, Y, W, V = numbers(2, 3, 8), numbers(2, 3, 8) * 0.5 + 1, numbers(8), numbers(8) + 1


def norm(x: Tensor, weight: Tensor, eps: float = EPS) -> Tensor:
    return rms_norm(x, weight, eps, torch.promote_types(x.dtype, torch.float32), x.dtype)


def fused(function: Callable, *inputs: Tensor) -> tuple[dict[str, int], tuple[str, ...]]:
    """What was found in the function's graph, and refused; the rewritten graph computes what the function does."""
    expected = function(*inputs)
    (graph,) = capture(function, *inputs)
    taken: list[Tensor] = []
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    names = {"x": 0, "y": 1, "w": 2, "v": 3}
    taken = [inputs[names[node.name.split("_")[1]]] for node in placeholders]
    report = fuse_graph(graph)
    found = graph(*taken)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12 if expected.dtype == torch.float64 else 1e-2, atol=1e-2)
    assert report.nodes_before - report.nodes_after >= sum(report.fused.values()) or not report.fused
    return dict(report.fused), report.refused


# ---- what is found


WAYS_TO_WRITE_A_NORM: dict[str, Callable] = {
    "as the model": lambda x, w: norm(x, w),
    "operands swapped": lambda x, w: (torch.rsqrt(EPS + x.square().mean(-1, True)) * x) * w,
    "pow": lambda x, w: w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)),
    "**": lambda x, w: w * (x * (((x**2).mean((-1,), keepdim=True) + EPS).rsqrt())),
    "functions": lambda x, w: torch.mul(
        w, torch.mul(x, torch.rsqrt(torch.add(torch.mean(torch.square(x), dim=2, keepdim=True), EPS)))
    ),
}


@pytest.mark.parametrize("way", WAYS_TO_WRITE_A_NORM)
def test_a_norm_however_written(way: str) -> None:
    assert fused(lambda x, y, w, v: WAYS_TO_WRITE_A_NORM[way](x, w), X, Y, W, V)[0] == {"rms_norm": 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_in_another_dtype(dtype: torch.dtype) -> None:
    inputs = [x.to(dtype) for x in (X, Y, W, V)]
    assert fused(lambda x, y, w, v: norm(x + y, w), *inputs)[0] == {"add_rms_norm": 1}

    def with_methods(x: Tensor, y: Tensor, w: Tensor, v: Tensor) -> Tensor:
        high = x.float()
        normed = high * torch.rsqrt(high.pow(2).mean(-1, keepdim=True) + EPS)
        return w * normed.to(dtype)

    assert fused(with_methods, *inputs)[0] == {"rms_norm": 1}


def test_the_residual_stream_goes_on() -> None:
    def block(x: Tensor, y: Tensor, w: Tensor, v: Tensor) -> Tensor:
        total = x + y
        return total + norm(total, w)  # the sum is used again

    assert fused(block, X, Y, W, V)[0] == {"add_rms_norm": 1}
    assert fused(lambda x, y, w, v: norm(y + x, w) * y, X, Y, W, V)[0] == {"add_rms_norm": 1}


def test_two_norms_of_one_sum() -> None:
    def block(x: Tensor, y: Tensor, w: Tensor, v: Tensor) -> Tensor:
        total = x + y
        return norm(total, w) * norm(total, v)

    assert fused(block, X, Y, W, V)[0] == {"add_rms_norm": 1, "rms_norm": 1}
    assert fused(lambda x, y, w, v: norm(x, w) + norm(x, v), X, Y, W, V)[0] == {"rms_norm": 2}


def test_swiglu() -> None:
    assert fused(lambda x, y, w, v: F.silu(x) * y, X, Y, W, V)[0] == {"swiglu": 1}
    assert fused(lambda x, y, w, v: y * F.silu(x), X, Y, W, V)[0] == {"swiglu": 1}
    assert fused(lambda x, y, w, v: F.silu(x) * F.silu(y), X, Y, W, V)[0] == {"swiglu": 1}
    assert fused(lambda x, y, w, v: F.silu(x) * x, X, Y, W, V)[0] == {"swiglu": 1}


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def turn_slices(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return (x * cos) + (torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin)


@pytest.mark.parametrize("rotate", [turn, turn_slices])
def test_rope(rotate: Callable) -> None:
    q, k, cos, sin = numbers(2, 3, 4, 6), numbers(2, 3, 2, 6), numbers(3, 1, 6), numbers(3, 1, 6) + 1

    def join(q: Tensor, k: Tensor) -> Tensor:
        return torch.cat((q, k), dim=-2)

    found = fused(lambda x, y, w, v: join(rotate(x, w, v), rotate(y, w, v)), q, k, cos, sin)
    assert found[0] == {"rope": 1}
    # Two pairs beside each other: each q goes with the k that follows it.
    found = fused(lambda x, y, w, v: join(rotate(rotate(x, w, v), w, v), rotate(rotate(y, w, v), w, v)), q, k, cos, sin)
    assert found[0] == {"rope": 2}


def test_pairs_of_two_layers_stay_apart() -> None:
    """The second q needs the first's result: paired with one another they would wait for themselves."""
    q, k, cos, sin = numbers(2, 3, 4, 6), numbers(2, 3, 4, 6), numbers(3, 1, 6), numbers(3, 1, 6) + 1

    def layers(x: Tensor, y: Tensor, w: Tensor, v: Tensor) -> Tensor:
        return turn(turn(x, w, v) * 2, w, v) + y

    found, refused = fused(layers, q, k, cos, sin)
    assert found == {} and any("before all inputs" in reason for reason in refused)


# ---- what is left alone


def not_a_norm(change: Callable[[Tensor, Tensor], Tensor]) -> Callable:
    return lambda x, y, w, v: change(x, w)


LOOKALIKES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "another axis": lambda x, w: w * (x * torch.rsqrt(x.square().mean(1, True) + EPS)),
    "no axis": lambda x, w: w * (x * torch.rsqrt(x.square().mean() + EPS)),
    "two axes": lambda x, w: w * (x * torch.rsqrt(x.square().mean((1, 2), True) + EPS)),
    "sum": lambda x, w: w * (x * torch.rsqrt(x.square().sum(-1, True) + EPS)),
    "sqrt": lambda x, w: w * (x * torch.sqrt(x.square().mean(-1, True) + EPS)),
    "cube": lambda x, w: w * (x * torch.rsqrt(x.abs().pow(3).mean(-1, True) + EPS)),
    "eps a tensor": lambda x, w: w * (x * torch.rsqrt(x.square().mean(-1, True) + w[0] ** 2)),
    "other statistics": lambda x, w: w * (x * torch.rsqrt((x * 2).square().mean(-1, True) + EPS)),
    "low statistics": lambda x, w: w * (x.to(torch.float32) * torch.rsqrt(x.to(torch.float32).square().mean(-1, True))),
    "weight a matrix": lambda x, w: torch.stack([w, w, w]) * (x * torch.rsqrt(x.square().mean(-1, True) + EPS)),
    "in place": lambda x, w: w * (x * torch.rsqrt(x.square().mean(-1, True).add_(EPS))),
    "scaled sum": lambda x, w: w * (x * torch.rsqrt(torch.add(x.square().mean(-1, True), EPS, alpha=2))),
}


@pytest.mark.parametrize("name", LOOKALIKES)
def test_lookalikes(name: str) -> None:
    assert fused(not_a_norm(LOOKALIKES[name]), X, Y, W, V)[0] == {}


def test_casts_must_be_those_of_the_norm() -> None:
    low = [x.to(torch.bfloat16) for x in (X, Y, W, V)]

    def double_statistics(x: Tensor, y: Tensor, w: Tensor, v: Tensor) -> Tensor:
        return rms_norm(x, w, EPS, torch.float64, x.dtype)

    found, refused = fused(double_statistics, *low)
    assert found == {} and any("statistics" in reason for reason in refused)
    # No casts at all: statistics in 16 bits, which the operator wouldn't give.
    assert fused(lambda x, y, w, v: w * (x * torch.rsqrt(x.square().mean(-1, True) + EPS)), *low)[0] == {}
    # A weight of another dtype makes the result wider.
    assert fused(lambda x, y, w, v: norm(x, w), low[0], low[1], W.float(), V)[0] == {}
    assert fused(lambda x, y, w, v: F.silu(x) * y, low[0], Y.float(), W, V)[0] == {}
    assert fused(lambda x, y, w, v: rms_norm(x, w, EPS, torch.float32, torch.float32), *low)[0] == {}


def test_a_value_inside_that_someone_else_needs() -> None:
    def uses_square(x: Tensor, y: Tensor, w: Tensor, v: Tensor) -> Tensor:
        square = x.square()
        return w * (x * torch.rsqrt(square.mean(-1, True) + EPS)) + square

    def uses_silu(x: Tensor, y: Tensor, w: Tensor, v: Tensor) -> Tensor:
        gate = F.silu(x)
        return gate * y + gate

    for function in (uses_square, uses_silu):
        found, refused = fused(function, X, Y, W, V)
        assert found == {} and any("as well" in reason for reason in refused)


def test_broadcasting_is_left_alone() -> None:
    assert fused(lambda x, y, w, v: F.silu(x) * w, X, Y, W, V)[0] == {}
    assert fused(lambda x, y, w, v: norm(x + w, v), X, Y, W, V)[0] == {"rms_norm": 1}  # the sum stays
    q, k = numbers(2, 3, 4, 6), numbers(2, 3, 2, 6)
    turned = fused(lambda x, y, w, v: torch.cat((turn(x, w, v), turn(y, w, v)), -2), q, k, numbers(6), numbers(6) + 1)
    assert turned[0] == {}  # angles without an axis for heads


def test_writing_in_between_forbids() -> None:
    def writes(x: Tensor, y: Tensor, w: Tensor, v: Tensor) -> Tensor:
        up = y * 1
        gate = F.silu(x)
        up += 1
        return gate * up

    x = X.clone()
    found, refused = fused(writes, x, Y, W, V)
    assert found == {} and any("writes" in reason for reason in refused)


def test_silu_in_place_is_another_operation() -> None:
    assert fused(lambda x, y, w, v: F.silu(x * 1, inplace=True) * y, X, Y, W, V)[0] == {}


# ---- the order, and torch's own rewriter


def test_largest_first() -> None:
    sizes = [pattern.num_operations for pattern in PATTERNS]
    assert sizes == sorted(sizes, reverse=True)
    smallest_first = tuple(reversed(largest_first(PATTERNS)))
    (graph,) = capture(lambda x, y, w: norm(x + y, w), X, Y, W)
    assert dict(fuse_graph(graph, smallest_first).fused) == {"rms_norm": 1}  # and the sum is left over


def test_torch_s_own_rewriter_finds_as_much() -> None:
    from torch.fx.subgraph_rewriter import replace_pattern

    def model(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        return norm(norm(x, w), v)

    def plain(x: Tensor, w: Tensor) -> Tensor:
        high = x.to(torch.float64)
        normed = high * torch.rsqrt(high.square().mean(dim=-1, keepdim=True) + EPS)
        return w * normed.to(torch.float64)

    (graph,) = capture(model, X, W, V)
    (same,) = capture(model, X, W, V)
    theirs = replace_pattern(graph, plain, lambda x, w: torch.ops.minillm.rms_norm(x, w, EPS))
    assert len(theirs) == fuse_graph(same).fused["rms_norm"] == 2
    torch.testing.assert_close(graph(X, W, V)[0], same(X, W, V)[0])


def test_a_pattern_of_one_s_own() -> None:
    def root(x: Tensor) -> Tensor:
        return torch.sqrt(torch.exp(x))

    pattern = Pattern("root of exp", root, torch.sigmoid, ("x",), lambda found: None)
    (graph,) = capture(lambda x: torch.sqrt(torch.exp(x)) + 1, X)
    report = fuse_graph(graph, [pattern])
    assert str(report) == "3 nodes -> 2: 1 × root of exp"
    torch.testing.assert_close(graph(X)[0], X.sigmoid() + 1)


def test_a_graph_without_examples_is_refused() -> None:
    with pytest.raises(ValueError, match="example values"):
        fuse_graph(fx.symbolic_trace(lambda x: F.silu(x) * x))


# ---- capture


def test_operations_read_alike() -> None:
    (graph,) = capture(lambda x: x.mean(2, True) + torch.mean(x, dim=-1, keepdim=True) + x.float().sum(), X)
    means = [operation(node) for node in graph.graph.nodes if operation(node) and operation(node).name == "mean"]
    assert means[0] == means[1] == Operation("mean", (means[0].arguments[0], -1, True))
    assert op_counts(graph) == {"mean": 2, "add": 2, "to": 1, "sum": 1}
    assert kind_counts(graph) == {"reduction": 3, "elementwise": 3}
    assert kind(next(iter(graph.graph.nodes))) is None


def test_graph_breaks_have_reasons() -> None:
    def breaks(x: Tensor) -> Tensor:
        x = x * 2
        if x.sum().item() > 0:
            torch._dynamo.graph_break()
        return x + 1

    assert len(capture(breaks, X.abs())) > 1
    found = graph_breaks(breaks, X.abs())
    assert found and all("test_rewrite.py:" in line for line in found)
    assert graph_breaks(lambda x: x + 1, X) == []


def test_graphs_for_any_length() -> None:
    (fixed,), (free,) = capture(lambda x: x * 2, X), capture(lambda x: x * 3, X, dynamic=True)
    assert [node.meta["example_value"].shape[0] for node in fixed.graph.nodes if node.name.endswith("x_")] == [2]
    assert any(isinstance(node.meta["example_value"], torch.SymInt) for node in free.graph.nodes if "s" == node.name[0])
