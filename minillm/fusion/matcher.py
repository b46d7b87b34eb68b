"""Find a pattern in a graph: unification, with commutative operations tried both ways round.

A match binds each node of the pattern to a node or value of the graph. It counts only if taking it out leaves the graph
whole; see `obstacle`. Compare `torch.fx.subgraph_rewriter`, which does the structural half of this.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from minillm.fusion.operation import COMMUTATIVE, operation, tensor_of
from minillm.fusion.patterns import Pattern

Values = dict[fx.Node, Any]  # of the pattern's nodes


@dataclass(frozen=True)
class Match:
    """One place where a pattern fits."""

    pattern: Pattern
    values: Values

    @property
    def binding(self) -> dict[str, Any]:
        """What the parameters stand for."""
        return {str(node.target): value for node, value in self.values.items() if node.op == "placeholder"}

    @property
    def outputs(self) -> tuple[fx.Node, ...]:
        return tuple(self.values[node] for node in self.pattern.outputs)

    @property
    def members(self) -> set[fx.Node]:
        """The nodes that a fused operator replaces."""
        return {value for node, value in self.values.items() if node.op != "placeholder"}

    @property
    def inputs(self) -> set[fx.Node]:
        """The nodes whose values it takes."""
        return {value for value in self.binding.values() if isinstance(value, fx.Node)}


def matches(pattern: Pattern, first: fx.Node) -> Iterator[Match]:
    """Every way to fit the pattern so that its first output is `first`.

    An output that hangs together with the first is found from there. One that doesn't (k's rotation beside q's) is
    looked for further down the graph, nearest first.
    """
    for values in unify(pattern, pattern.outputs[0], first, {}):
        yield from (Match(pattern, found) for found in _further_outputs(pattern, 1, first, values))


def _further_outputs(pattern: Pattern, index: int, first: fx.Node, values: Values) -> Iterator[Values]:
    if index == len(pattern.outputs):
        yield values
        return
    output = pattern.outputs[index]
    if output in values:
        yield from _further_outputs(pattern, index + 1, first, values)
        return
    place = first.next
    while place.op != "root":
        if place not in values.values():
            for extended in unify(pattern, output, place, values):
                yield from _further_outputs(pattern, index + 1, first, extended)
        place = place.next


def unify(pattern: Pattern, wanted: Any, value: Any, values: Values) -> Iterator[Values]:
    """Every extension of `values` under which the pattern's node or constant `wanted` means `value`."""
    if isinstance(wanted, tuple):
        if isinstance(value, tuple) and len(value) == len(wanted):
            yield from _unify_all(pattern, list(zip(wanted, value, strict=True)), values)
    elif not isinstance(wanted, fx.Node):
        if type(wanted) is type(value) and wanted == value:
            yield values
    elif wanted in values:
        if values[wanted] is value or (not isinstance(value, fx.Node) and values[wanted] == value):
            yield values
    elif wanted.op == "placeholder":
        if _stands_for(pattern.wildcards[str(wanted.target)], value):
            yield {**values, wanted: value}
    elif isinstance(value, fx.Node):
        own, other = operation(wanted), operation(value)
        if own and other and own.name == other.name and len(own.arguments) == len(other.arguments):
            bound = {**values, wanted: value}
            pairs = list(zip(own.arguments, other.arguments, strict=True))
            yield from _unify_all(pattern, pairs, bound)
            if own.name in COMMUTATIVE:
                a, b = own.arguments[:2]
                c, d = other.arguments[:2]
                yield from _unify_all(pattern, [(a, d), (b, c), *pairs[2:]], bound)


def _unify_all(pattern: Pattern, pairs: list[tuple[Any, Any]], values: Values) -> Iterator[Values]:
    if not pairs:
        yield values
        return
    (wanted, value), *rest = pairs
    for extended in unify(pattern, wanted, value, values):
        yield from _unify_all(pattern, rest, extended)


def _stands_for(kind: type, value: Any) -> bool:
    if kind is torch.Tensor:
        return isinstance(tensor_of(value), torch.Tensor)
    return isinstance(value, kind) and not isinstance(value, bool)


def obstacle(match: Match) -> str | None:
    """Why the match may not be replaced by one call, or None.

    - A value inside it is used outside: the fused operator wouldn't compute it.
    - No place for the call: all its inputs must be there before anyone uses a result.
    - Something between its first node and that place writes into a tensor, perhaps into one that it reads.
    - The pattern's own check refuses it.
    """
    members, outputs = match.members, set(match.outputs)
    if members & match.inputs:
        return "a result is used before all inputs are there"  # one part's result is another part's input
    for node in members - outputs:
        for user in node.users:
            if user not in members:
                return f"{node.name} is used by {user.name} as well"
    order = {node: i for i, node in enumerate(next(iter(members)).graph.nodes)}
    users = [user for node in outputs for user in node.users if user not in members]
    last_input = max((order[node] for node in match.inputs), default=-1)
    first_user = min((order[user] for user in users), default=len(order))
    if last_input >= first_user:
        return "a result is used before all inputs are there"
    first = min(order[node] for node in members)
    for node, place in order.items():
        if first < place < max(place_of(match, order), last_input + 1) and writes(node):
            return f"{node.name} writes into a tensor in between"
    return match.pattern.check(match.binding)


def place_of(match: Match, order: dict[fx.Node, int]) -> int:
    """Where in the order the call goes: at the first output, or after the last input if that is later."""
    last_input = max((order[node] for node in match.inputs), default=-1)
    return max(min(order[node] for node in match.outputs), last_input + 1)


def writes(node: fx.Node) -> bool:
    """Whether a node changes a tensor in place: `x.add_()`, `x += 1`, `x[i] = 1`, `out=`."""
    found = operation(node)
    if found is None:
        return False
    name = found.name.rpartition("::")[2]
    in_place = name.endswith("_") or name in {"setitem", *(f"i{word}" for word in ("add", "sub", "mul", "truediv"))}
    return in_place or "out" in node.kwargs
