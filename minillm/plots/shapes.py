"""Boxes and arrows: tokens, cache slots, blocks, and what points to what. Coordinates are the axes' data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import BoxStyle, FancyBboxPatch
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from minillm.plots.style import BLUE, FONT_SIZE, INK, MUTED, PAPER, contrast, ink_on, tint

GAP = 0.08  # between cells, in data units
CHAR_WIDTH = 0.26  # of a character in a box of height 1, for boxes as wide as their text
SMALLEST = 6.0  # points; text that would have to be smaller than this is left out


def cells(
    ax: Axes,
    x: float,
    y: float,
    labels: Sequence[object],
    *,
    colors: str | Sequence[str] = BLUE,
    width: float | Sequence[float] = 1,
    height: float = 1,
    vertical: bool = False,
    filled: bool = False,
    size: float = FONT_SIZE,
    frame: bool = False,
) -> list[tuple[float, float]]:
    """A row of labelled boxes whose first one has its lower left corner at (x, y); returns their centres.

    labels    one a box; text that is too wide shrinks, for all boxes of the row alike
    colors    one, or one a box: the edge, and a light tint of it inside. PAPER makes an empty, dashed box
    width     of a box, one a box, or `text_widths(labels)`
    vertical  a column, downward: (x, y) stays the lower left corner of the first box
    filled    the full colour inside instead of its tint
    size      of the text in points
    frame     keep the axes' frame and ticks, for boxes that stand in a plot

    The axes grow to show the boxes.
    """
    names = [colors] * len(labels) if isinstance(colors, str) else list(colors)
    widths = [float(width)] * len(labels) if isinstance(width, int | float) else list(width)
    if not len(names) == len(widths) == len(labels):
        message = f"expected one color and one width for each of {len(labels)} labels"
        raise ValueError(f"{message}, got {len(names)} colors and {len(widths)} widths")
    if not frame:
        ax.axis("off")
    centres = []
    texts: list[FittedText] = []
    for label, color, box_width in zip(labels, names, widths, strict=True):
        box(ax, x, y, box_width, height, color=color, filled=filled)
        centres.append((x + box_width / 2, y + height / 2))
        inside = color if filled else _tint(color)
        texts.append(FittedText(*centres[-1], str(label), (box_width - GAP, height), ink_on(inside), size, texts))
        ax.add_artist(texts[-1])
        x, y = (x, y - height) if vertical else (x + box_width, y)
    return centres


def box(
    ax: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    *,
    color: str = BLUE,
    filled: bool = False,
    gap: float = GAP,
) -> None:
    """One rounded box with its lower left corner at (x, y); `gap` keeps it clear of its neighbours."""
    empty = color == PAPER
    rounding = 0.16 * min(width, height)
    patch = FancyBboxPatch(
        (x + gap / 2, y + gap / 2),
        width - gap,
        height - gap,
        boxstyle=BoxStyle("round", pad=0, rounding_size=rounding),
        facecolor=color if filled else _tint(color),
        edgecolor=MUTED if empty else color,
        linestyle=(0, (2.5, 2.5)) if empty else "-",
        linewidth=0.9 if empty else 1.2,
        mutation_aspect=1,
        zorder=2,
    )
    ax.add_patch(patch)
    ax.update_datalim([(x, y), (x + width, y + height)])
    ax.autoscale_view()


def arrow(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    label: str | None = None,
    *,
    color: str = MUTED,
    bend: float = 0.0,
    size: float = FONT_SIZE - 1,
    width: float = 1.6,
) -> None:
    """An arrow from `start` to `end` with a label on its middle. `bend` curves it: 0.3 is a gentle bow."""
    style = {"arrowstyle": "-|>,head_length=0.5,head_width=0.25", "mutation_scale": 11, "joinstyle": "miter"}
    line = {"connectionstyle": f"arc3,rad={bend}", "shrinkA": 2, "shrinkB": 2, "color": color, "lw": width}
    ax.annotate("", end, start, arrowprops=style | line, zorder=3)
    ax.update_datalim([start, end])
    ax.autoscale_view()
    if label:
        (x0, y0), (x1, y1) = start, end
        # The middle of arc3's quadratic curve, whose control point lies `bend` of the length beside the chord.
        x, y = (x0 + x1) / 2 + bend * (y1 - y0) / 2, (y0 + y1) / 2 - bend * (x1 - x0) / 2
        behind = {"boxstyle": "round,pad=0.2", "facecolor": PAPER, "edgecolor": "none"}
        ink = color if contrast(color, PAPER) >= 4.5 else INK
        ax.text(x, y, label, size=size, color=ink, ha="center", va="center", bbox=behind, zorder=4)


def text_widths(labels: Sequence[object], *, pad: float = 0.55) -> list[float]:
    """Widths for `cells` of height 1 that give each label the room it needs: tokens as wide as their text."""
    return [max(0.8, len(str(label)) * CHAR_WIDTH + pad) for label in labels]


def visible(text: str) -> str:
    """A token's text with its spaces and line ends made visible: ' drum\\n' -> '·drum↵'."""
    return text.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥")


class FittedText(Text):
    """Centred text that shrinks until it fits a box of the given width and height in data units, all of a group alike.

    The size is found while drawing, when the scale of the axes is final. Text that would be too small is left out and
    doesn't make the others of its group smaller.
    """

    def __init__(
        self,
        x: float,
        y: float,
        text: str,
        room: tuple[float, float],
        color: str,
        size: float,
        group: list[FittedText],
    ) -> None:
        super().__init__(x, y, text, color=color, size=size, ha="center", va="center", clip_on=True, zorder=3)
        self.set_parse_math(False)  # a token may hold dollar signs
        self.room, self.group, self.full_size = room, group, size
        self.scale: tuple[object, float] = (None, 1.0)
        self.set_in_layout(False)

    def draw(self, renderer: Any) -> None:
        own = self.full_size * self.shrinkage(renderer)
        if own < SMALLEST:
            return
        others = [text.full_size * text.shrinkage(renderer) for text in self.group]
        self.set_fontsize(min([own, *(size for size in others if size >= SMALLEST)]))
        super().draw(renderer)

    def shrinkage(self, renderer: Any) -> float:
        """1 where the text fits at its full size, less where it must shrink; remembered for the scale drawn at."""
        assert self.axes is not None, "a text is drawn after it was added to its axes"
        room = Bbox(self.axes.transData.transform([(0, 0), self.room]))
        key = (abs(room.width), abs(room.height), renderer.dpi)
        if self.scale[0] != key:
            self.set_fontsize(self.full_size)
            extent = Text.get_window_extent(self, renderer)
            wide, high = max(extent.width, 1e-9), max(extent.height, 1e-9)
            self.scale = key, min(1.0, 0.92 * abs(room.width) / wide, 0.92 * abs(room.height) / high)
        return self.scale[1]


def _tint(color: str) -> str:
    return PAPER if color == PAPER else tint(color, 0.2)
