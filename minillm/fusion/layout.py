"""Where the nodes of a graph stand in its picture: in layers from the top, edges downward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import fx, nn

from minillm.fusion.operation import kind, tensor_of

SWEEPS = 16
BEND_WIDTH = 0.25  # room for an edge where it passes a layer; a node takes 1

Bend = tuple[fx.Node, fx.Node, int]  # where the edge from one node to another passes a layer
Point = fx.Node | Bend


@dataclass(frozen=True)
class Layout:
    """Places of the nodes shown: column (a real number) and layer, counted from the top; and the edges between them."""

    places: dict[fx.Node, tuple[float, int]]
    edges: dict[tuple[fx.Node, fx.Node], list[tuple[float, int]]]  # the points that an edge runs through

    @property
    def num_layers(self) -> int:
        return 1 + max(layer for _, layer in self.places.values())

    @property
    def columns(self) -> tuple[float, float]:
        """The leftmost and the rightmost column."""
        found = [column for path in self.edges.values() for column, _ in path]
        found += [column for column, _ in self.places.values()]
        return min(found), max(found)


def layout(graph: fx.GraphModule, *, views: bool = False) -> Layout:
    """Lay a graph out (after Sugiyama, Tagawa and Toda 1981): layers by the longest path, then few crossings.

    views  show nodes that move nothing (unflatten, getitem …); else what feeds them feeds those that they feed

    Weights aren't shown. Inputs stand in the layer above their first use.
    """
    shown = [node for node in graph.graph.nodes if _is_shown(node, views)]
    edges = [(source, node) for node in shown for source in _sources(node, set(shown))]
    above = {node: [a for a, b in edges if b is node] for node in shown}
    below = {node: [b for a, b in edges if a is node] for node in shown}
    layer: dict[fx.Node, int] = {}
    for node in shown:
        layer[node] = 1 + max((layer[source] for source in above[node]), default=-1)
    for node in reversed(shown):
        if not above[node] and below[node]:
            layer[node] = min(layer[user] for user in below[node]) - 1
    top = min(layer.values())
    layers: list[list[Point]] = [[] for _ in range(max(layer.values()) - top + 1)]
    for node in shown:
        layers[layer[node] - top].append(node)
    paths: dict[tuple[fx.Node, fx.Node], list[Point]] = {}
    for source, node in edges:
        bends: list[Point] = [(source, node, number) for number in range(layer[source] + 1, layer[node])]
        paths[source, node] = [source, *bends, node]
        for number, bend in enumerate(bends, start=layer[source] + 1):
            layers[number - top].append(bend)
    columns = _columns(layers, [link for path in paths.values() for link in pairwise(path)])
    at = {point: (columns[point], number) for number, row in enumerate(layers) for point in row}
    return Layout(
        {node: at[node] for node in shown}, {edge: [at[point] for point in path] for edge, path in paths.items()}
    )


def is_weight(node: fx.Node) -> bool:
    """Whether a graph's input is a parameter of a module."""
    return node.op == "placeholder" and isinstance(tensor_of(node), nn.Parameter)


def _is_shown(node: fx.Node, views: bool) -> bool:
    if node.op == "placeholder":
        return bool(node.users) and not is_weight(node) and tensor_of(node) is not None
    found = kind(node)
    return found is not None and (views or not (found == "view" or node.target == "flatten"))


def _sources(node: fx.Node, shown: set[fx.Node]) -> list[fx.Node]:
    """The shown nodes that a node's operands come from, through those that aren't shown."""
    found: dict[fx.Node, None] = {}
    waiting = list(node.all_input_nodes)
    while waiting:
        source = waiting.pop(0)
        if source in shown:
            found[source] = None
        elif not is_weight(source):
            waiting += source.all_input_nodes
    return list(found)


def _columns(layers: Sequence[Sequence[Point]], links: Sequence[tuple[Point, Point]]) -> dict[Point, float]:
    """Points go to the middle of their neighbours, downward and upward in turn, and keep apart in their layer."""
    above: dict[Point, list[Point]] = {point: [] for row in layers for point in row}
    below: dict[Point, list[Point]] = {point: [] for row in layers for point in row}
    for a, b in links:
        above[b].append(a)
        below[a].append(b)
    rows = [list(row) for row in layers]
    columns = {point: float(i) for row in rows for i, point in enumerate(row)}
    for sweep in range(SWEEPS):
        near = below if sweep % 2 else above
        for row in reversed(rows) if sweep % 2 else rows:
            wanted = {
                point: sum(columns[n] for n in near[point]) / len(near[point]) if near[point] else columns[point]
                for point in row
            }
            row.sort(key=wanted.__getitem__)
            columns.update(_apart(row, wanted))
    return columns


def _apart(row: Sequence[Point], wanted: dict[Point, float]) -> dict[Point, float]:
    """Columns in the order of the row, as near as can be to those wanted: least squares by pooling those that touch."""
    offsets = [0.0]  # of each point, if all stood shoulder to shoulder
    for left, right in pairwise(row):
        offsets.append(offsets[-1] + (_width(left) + _width(right)) / 2)
    groups: list[tuple[float, int]] = []  # where a group starts, and how many belong to it
    for point, offset in zip(row, offsets, strict=True):
        start, count = wanted[point] - offset, 1
        while groups and groups[-1][0] > start:
            other, size = groups.pop()
            start, count = (other * size + start * count) / (size + count), size + count
        groups.append((start, count))
    starts = [start for start, count in groups for _ in range(count)]
    return {point: start + offset for point, start, offset in zip(row, starts, offsets, strict=True)}


def _width(point: Point) -> float:
    return 1.0 if isinstance(point, fx.Node) else BEND_WIDTH
