"""See the graphs that TorchDynamo makes of a Python function, and where it could not go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from minillm.fusion.operation import kind, operation

MOST_GRAPHS = 256  # of one Python function, while capturing


def capture(function: Callable[..., Any], *example_inputs: Any, dynamic: bool | None = None) -> list[fx.GraphModule]:
    """Call `function(*example_inputs)` through TorchDynamo (Ansel et al. 2024); the graphs it made, in order.

    One graph, if the function could be followed from start to end; else several (`graph_breaks` says why).
    Graphs are as Dynamo hands them to a backend: calls of torch as the source makes them, weights among the inputs,
    `node.meta["example_value"]` a tensor with shape and dtype but no numbers. The function really runs, once.

    dynamic  as in `torch.compile`: True makes sizes symbols, so that one graph serves all of them
    """
    graphs: list[fx.GraphModule] = []

    def record(graph: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):
        torch.compile(function, backend=record, dynamic=dynamic)(*example_inputs)
    return graphs


def graph_breaks(function: Callable[..., Any], *example_inputs: Any) -> list[str]:
    """Where and why TorchDynamo ends one graph and begins another when it follows `function(*example_inputs)`.

    One line a break: the reason, and the line of source. Runs the function, and makes Dynamo forget what it compiled.
    """
    torch._dynamo.reset()
    explained = torch._dynamo.explain(function)(*example_inputs)
    torch._dynamo.reset()
    found = []
    for broken in explained.break_reasons:
        frame = broken.user_stack[-1] if broken.user_stack else None
        where = f" at {frame.filename}:{frame.lineno}" if frame else ""
        found.append(f"{broken.reason.strip().splitlines()[0]}{where}")
    return found


def op_counts(graphs: fx.GraphModule | Sequence[fx.GraphModule]) -> Counter[str]:
    """How often each operation is called, by its name: {"linear": 43, "mul": 50, …}. Inputs and outputs are none."""
    return Counter(found.name for node in _nodes(graphs) if (found := operation(node)))


def kind_counts(graphs: fx.GraphModule | Sequence[fx.GraphModule]) -> Counter[str]:
    """Operations by what they do: matmul, attention, reduction, elementwise, fused, copy, view, other."""
    return Counter(found for node in _nodes(graphs) if (found := kind(node)))


def num_operations(graph: fx.GraphModule) -> int:
    """Nodes that are neither inputs nor outputs of the graph."""
    return sum(operation(node) is not None for node in graph.graph.nodes)


def _nodes(graphs: fx.GraphModule | Sequence[fx.GraphModule]) -> list[fx.Node]:
    several = [graphs] if isinstance(graphs, fx.GraphModule) else graphs
    return [node for graph in several for node in graph.graph.nodes]
