"""A graph as a figure, and one before and after fusing side by side. Needs matplotlib: `pip install minillm[plots]`.

    def layer(x, cos, sin):
        return model.blocks[0](x, (cos, sin), attend)

    attend = OutsideAttend(FullAttend([None]))
    (before,) = capture(layer, torch.zeros(1, 5, 256), *model.rope.cos_sin(torch.arange(5), torch.float32))
    after = copy.deepcopy(before)
    fuse_graph(after)
    plots.show(before_and_after(before, after), alt="…")

Nodes that move nothing are left out; products carry the name of their weight.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from torch import fx

from minillm.fusion.capture import kind_counts
from minillm.fusion.layout import Layout, is_weight, layout
from minillm.fusion.operation import kind, operation, tensor_of

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    from minillm import plots
    from minillm.plots.shapes import FittedText
except ImportError as error:
    raise ValueError("pictures need matplotlib: pip install minillm[plots]") from error

WIDTH, LAYER = 7.2, 0.34  # inches: of a figure, and from one layer to the next
BOX, HIGH = 0.9, 0.62  # width and height of a node's box, where nodes are 1 apart
SHAPE = 0.55  # columns of room at the right for shapes
FONT = 9.5
COLORS = {
    "matmul": plots.BLUE,
    "attention": plots.PURPLE,
    "fused": plots.GREEN,
    "elementwise": plots.ORANGE,
    "reduction": plots.ORANGE,
    "copy": plots.ORANGE,
}
NAMES = {
    "minillm::rms_norm": "norm",
    "minillm::add_rms_norm": "+ norm",
    "minillm::swiglu": "swiglu",
    "minillm::rope": "rope",
    "minillm::attend": "attend",
    "scaled_dot_product_attention": "attend",
    "to": "cast",
}


def before_and_after(before: fx.GraphModule, after: fx.GraphModule, *, views: bool = False) -> Figure:
    """Two graphs side by side at the same scale, for `plots.show`: as captured, and rewritten."""
    laid = [layout(graph, views=views) for graph in (before, after)]
    spans = [max(1.0, right - left) + 1.2 + SHAPE for left, right in (one.columns for one in laid)]
    height = LAYER * max(one.num_layers for one in laid) + 0.9
    fig, axes = plots.figure(WIDTH, height, ncols=2, width_ratios=spans)
    counts = [sum(count for name, count in kind_counts(graph).items() if name != "view") for graph in (before, after)]
    titles = [f"{word}: {count} calls" for word, count in zip(("before", "after"), counts, strict=True)]
    layers = max(one.num_layers for one in laid)
    for ax, one, title in zip(axes, laid, titles, strict=True):
        draw_layout(ax, one, num_layers=layers)
        ax.set_title(title, loc="center")
    return fig


def draw_graph(graph: fx.GraphModule, *, views: bool = False, width: float = WIDTH) -> Figure:
    """One graph, for `plots.show`.

    views  show what moves nothing, too: unflatten, chunk, getitem …
    width  in inches
    """
    laid = layout(graph, views=views)
    fig, ax = plots.figure(width, LAYER * laid.num_layers + 0.5)
    draw_layout(ax, laid)
    return fig


def draw_layout(ax: Axes, laid: Layout, *, num_layers: int | None = None) -> None:
    """Boxes and edges on axes of their own. `num_layers` gives the axes room for more than there are."""
    ax.axis("off")
    left, right = laid.columns[0] - 0.6, laid.columns[1] + 0.6 + SHAPE
    ax.set_xlim(left, right)
    ax.set_ylim((num_layers or laid.num_layers) - 0.45, -0.55)
    for points in laid.edges.values():
        _edge(ax, points)
    group: list[FittedText] = []
    for node, (column, layer) in laid.places.items():
        found = kind(node)
        color = COLORS.get(found or "", plots.GREY)
        corner = column - BOX / 2, layer - HIGH / 2
        filled = found == "fused"
        plots.box(ax, *corner, BOX, HIGH, color=color, filled=filled, gap=0.0)
        inside = color if filled else plots.tint(color, 0.2)
        ax.add_artist(FittedText(column, layer, label(node), (BOX, HIGH), plots.ink_on(inside), FONT, group))
    _write_shapes(ax, laid, right)
    ax.set_xlim(left, right)
    ax.set_ylim((num_layers or laid.num_layers) - 0.45, -0.55)


def label(node: fx.Node) -> str:
    """A short name: that of the weight for a product, else of the operation, or of the input."""
    found = operation(node)
    if found is None:
        return _input_name(node)
    weights = [source for source in node.all_input_nodes if is_weight(source)]
    if kind(node) == "matmul" and weights:
        return _weight_name(weights[0])
    return NAMES.get(found.name, found.name.removeprefix("minillm::"))


def shape(node: fx.Node) -> str:
    """The shape of a node's value, as "1 × 5 × 256"; "" where it has none."""
    value: Any = tensor_of(node)
    return " × ".join(str(size) for size in value.shape) if hasattr(value, "shape") else ""


def _weight_name(node: fx.Node) -> str:
    """l_self_modules_ffn_modules_w_gate_parameters_weight_ -> w_gate"""
    found = re.search(r"([a-z0-9_]+?)_parameters_", node.name.rpartition("modules_")[2])
    return found.group(1) if found else node.name


def _input_name(node: fx.Node) -> str:
    """l_x_ -> x"""
    return re.sub(r"^l_|_+$", "", node.name)


def _edge(ax: Axes, points: list[tuple[float, int]]) -> None:
    """An arrow from the lower edge of the first box to the upper edge of the last, by the places where it passes."""
    places = [(column, float(layer)) for column, layer in points]
    places[0] = places[0][0], places[0][1] + HIGH / 2
    places[-1] = places[-1][0], places[-1][1] - HIGH / 2
    vertices, codes = [places[0]], [Path.MOVETO]
    for (x0, y0), (x1, y1) in pairwise(places):
        middle = (y0 + y1) / 2  # leave and arrive upright
        vertices += [(x0, middle), (x1, middle), (x1, y1)]
        codes += [Path.CURVE4] * 3
    head = "-|>,head_length=0.3,head_width=0.14"
    style: Any = {"arrowstyle": head, "mutation_scale": 10, "shrinkA": 0, "shrinkB": 0}
    ax.add_patch(FancyArrowPatch(path=Path(vertices, codes), color=plots.MUTED, lw=1.0, zorder=1, **style))


def _write_shapes(ax: Axes, laid: Layout, right: float) -> None:
    """Beside layers of one node the shape of its value, where it isn't that of the shape written before."""
    written, behind = "", {"boxstyle": "square,pad=0.1", "facecolor": plots.PAPER, "edgecolor": "none"}
    for number in range(laid.num_layers):
        here = [node for node, (_, layer) in laid.places.items() if layer == number]
        text = shape(here[0]) if len(here) == 1 else ""
        if text and text != written:
            ax.text(
                right, number, text, size=FONT - 1.5, color=plots.MUTED, ha="right", va="center", bbox=behind, zorder=2
            )
            written = text
