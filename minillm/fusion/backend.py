"""A backend for `torch.compile` that fuses: TorchDynamo finds the graph, the patterns rewrite it, torch runs it.

    compiled = torch.compile(model, backend=fusing_backend)

    backend = FusingBackend()                       # the same, and it tells
    compiled = torch.compile(model, backend=backend)
    compiled(tokens)
    print(backend.reports[0])                       # 361 nodes -> 197: 6 × rope, …
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from minillm.fusion.patterns import PATTERNS, Pattern
from minillm.fusion.rewrite import Report, fuse_graph

Compiled = Callable[..., Any]
Backend = Callable[[fx.GraphModule, Sequence[Any]], Compiled]


class FusingBackend:
    """Rewrites each graph that TorchDynamo hands over, and keeps a report of each.

    patterns  to look for, in this order; none = graphs stay as they are
    then      the backend that gets the rewritten graph: "inductor" generates code for what is left, calling the fused
              operators as they are; None = the graph is run node by node

    Rewritten graphs compute what the original does, to rounding. Raises ValueError for an unknown `then`.
    """

    def __init__(self, patterns: Sequence[Pattern] = PATTERNS, then: str | Backend | None = None) -> None:
        self.patterns = patterns
        self.then = _backend(then) if isinstance(then, str) else then
        self.reports: list[Report] = []

    def __call__(self, graph: fx.GraphModule, example_inputs: Sequence[Any]) -> Compiled:
        if any(node.op == "call_function" for node in graph.graph.nodes):
            self.reports.append(fuse_graph(graph, self.patterns))
        return graph.forward if self.then is None else self.then(graph, example_inputs)


def _backend(name: str) -> Backend:
    known = torch._dynamo.list_backends(exclude_tags=())
    if name not in known:
        raise ValueError(f"expected a backend of torch.compile, {', '.join(known)}, got {name!r}")
    found: Any = torch._dynamo.lookup_backend(name)
    return found


def fusing_backend(graph: fx.GraphModule, example_inputs: Sequence[Any]) -> Compiled:
    """`FusingBackend()` for one graph, to hand to `torch.compile`."""
    return FusingBackend()(graph, example_inputs)
