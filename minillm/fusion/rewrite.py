"""Replace what patterns find by fused operators, and say what was done."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from minillm.fusion.capture import num_operations
from minillm.fusion.matcher import Match, matches, obstacle, place_of
from minillm.fusion.operation import tensor_of
from minillm.fusion.patterns import PATTERNS, Pattern


@dataclass(frozen=True)
class Report:
    """What became of one graph. Nodes are operations; inputs and outputs aren't counted."""

    nodes_before: int
    nodes_after: int
    fused: Counter[str]  # how often each pattern was found, by its name
    refused: tuple[str, ...]  # "rms_norm at mul_2: …", what looked like a pattern and was left alone

    def __str__(self) -> str:
        found = ", ".join(f"{count} × {name}" for name, count in self.fused.items()) or "nothing"
        return f"{self.nodes_before} nodes -> {self.nodes_after}: {found}"


def fuse_graph(graph: fx.GraphModule, patterns: Sequence[Pattern] = PATTERNS) -> Report:
    """Rewrite the graph in place, one pattern after the other, each from the top of the graph to its end.

    Patterns are tried in the order given: `PATTERNS` has the largest first. Nodes outside matches stay as they are, in
    their order. Raises ValueError for a graph without example values (`capture` leaves them).
    """
    if not any(tensor_of(node) is not None for node in graph.graph.nodes):
        raise ValueError("expected a graph with example values, as TorchDynamo hands it to a backend")
    before = num_operations(graph)
    fused: Counter[str] = Counter()
    refused: dict[str, str] = {}
    for pattern in patterns:
        for node in list(graph.graph.nodes):
            if node._erased:
                continue
            reason = None
            for match in matches(pattern, node):
                reason = obstacle(match)
                if reason is None:
                    _replace(graph.graph, match)
                    fused[pattern.name] += 1
                    break
            if reason is not None:
                refused[f"{pattern.name} at {node.name}"] = reason
    graph.graph.lint()
    graph.recompile()
    told = tuple(f"{where}: {reason}" for where, reason in refused.items())
    return Report(before, num_operations(graph), fused, told)


def _replace(graph: fx.Graph, match: Match) -> None:
    """Put one call where the match was; its results take the outputs' names' place in every user."""
    pattern, outputs, binding = match.pattern, match.outputs, match.binding
    order = {node: i for i, node in enumerate(graph.nodes)}
    place = list(graph.nodes)[place_of(match, order)]
    with graph.inserting_before(place):
        arguments = tuple(binding[name] for name in pattern.arguments)
        call = graph.create_node("call_function", pattern.operator, arguments, name=pattern.name)
        if len(outputs) == 1:
            results = [call]
        else:
            results = [graph.call_function(operator.getitem, (call, i)) for i in range(len(outputs))]
    for result, output in zip(results, outputs, strict=True):
        result.meta = dict(output.meta)
        output.replace_all_uses_with(result)
    if len(outputs) > 1:
        call.meta["example_value"] = tuple(tensor_of(result) for result in results)
    for node in sorted(match.members, key=order.__getitem__, reverse=True):
        graph.erase_node(node)
    for result in results:
        if result is not call and not result.users:
            graph.erase_node(result)
