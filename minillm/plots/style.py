"""The course's look: one palette, one card, type that stays legible on a phone.

Figures are cards: dark ink on warm paper with rounded corners and nothing around them, so that the same PNG reads on a
light page and on a dark one. The hues are those of Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), darkened
until each stands out from the paper by a contrast of 3 and more, and spread in lightness so that they stay apart with
any colour vision; `tests/plots/test_palette.py` measures both.
"""

from __future__ import annotations

import logging
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import FancyBboxPatch
from matplotlib.rcsetup import cycler
from matplotlib.transforms import Affine2D, Bbox, Transform

PAPER, INK, MUTED, GRID = "#fdfaf3", "#1a1c21", "#66645e", "#e6e0d3"

BLUE = "#386bc2"  # ours, the main thing
ORANGE = "#d96f38"  # the naive version, the compared thing
GREEN = "#166e53"  # the ideal, a bound, a prediction
RED = "#850e2d"  # an error
PURPLE, YELLOW, SKY = "#c569a7", "#7c6a12", "#1996ce"  # further series
GREY = "#88857e"  # context
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, RED, GREY)

FONT_SIZE = 12.0  # points; a figure 7.2 inches wide shown 360 pixels wide leaves 8 of them
DPI = 150
DIAGRAM = "diagram"  # the mark of axes made by `diagram`
LARGEST_UNIT = 0.75  # inches a unit of a diagram takes at most

STYLE: Any = {  # Any: matplotlib types its settings by name
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs on every machine
    "font.size": FONT_SIZE,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.labelpad": 6,
    "axes.titlesize": FONT_SIZE + 1,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=SERIES),
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "grid.color": GRID,
    "grid.linewidth": 0.9,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": FONT_SIZE - 1,
    "ytick.labelsize": FONT_SIZE - 1,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 2.2,
    "lines.markersize": 5.5,
    "lines.solid_capstyle": "round",
    "patch.linewidth": 0,
    "errorbar.capsize": 3,
    "legend.frameon": True,
    "legend.facecolor": PAPER,  # grid lines end at it
    "legend.edgecolor": "none",
    "legend.framealpha": 0.92,
    "legend.fontsize": FONT_SIZE - 1,
    "legend.handlelength": 1.6,
    "mathtext.fontset": "dejavusans",
}


def tint(color: str, amount: float = 0.25) -> str:
    """The colour mixed into the paper: 0 is paper, 1 the colour itself. A light fill that ink reads well on."""
    red, green, blue = (amount * c + (1 - amount) * p for c, p in zip(to_rgb(color), to_rgb(PAPER), strict=True))
    return to_hex((red, green, blue))


def contrast(color: str, other: str) -> float:
    """The contrast ratio of two colours, 1 to 21 (WCAG 2.2, "contrast ratio"). 4.5 is asked for text, 3 for shapes."""
    lighter, darker = sorted((_luminance(color), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def ink_on(color: str) -> str:
    """INK or PAPER, whichever is easier to read on this colour."""
    return max((INK, PAPER), key=lambda ink: contrast(ink, color))


def ramp(*colors: str) -> LinearSegmentedColormap:
    """A colour map from the paper to one colour, or from a first colour through the paper to a second."""
    first = [] if len(colors) == 1 else [colors[0]]
    return LinearSegmentedColormap.from_list("-".join(colors), [*first, PAPER, colors[-1]], N=257)  # odd: zero is paper


def figure(
    width: float = 7.2, height: float = 3.6, nrows: int = 1, ncols: int = 1, **kwargs: Any
) -> tuple[Figure, Any]:
    """A card of `width` by `height` inches with axes on it: (fig, ax), or an array of axes as `plt.subplots` gives it.

    Further arguments go to `Figure.subplots`: sharex, sharey, width_ratios, squeeze, subplot_kw … Makes the course's
    style matplotlib's for the process, since text and legends added later read it. The figure belongs to nobody but
    the caller: pyplot doesn't know it, nothing has to be closed.
    """
    apply_style()
    layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.14, wspace=0.04, hspace=0.04)
    fig = Figure(figsize=(width, height), dpi=DPI, facecolor="none", layout=layout)
    FigureCanvasAgg(fig)
    axes = fig.subplots(nrows, ncols, **kwargs)
    return fig, axes


def diagram(width: float = 7.2, height: float = 4.8) -> tuple[Figure, Any]:
    """A card with one empty sheet to draw boxes and arrows on: no frame, no ticks, squares are square.

    The card shown is as high as the drawing needs; `height` is only the most that it gets.
    """
    fig, ax = figure(width, height)
    ax.axis("off")
    ax.set_aspect("equal")
    ax.set_gid(DIAGRAM)
    return fig, ax


def widen_small_diagrams(fig: Figure) -> None:
    """Give drawings of a few boxes room at their sides, so that boxes keep a size that suits their text."""
    for ax in fig.axes:
        left, right = ax.get_xlim()
        lacking = fig.get_size_inches()[0] / LARGEST_UNIT - (right - left)
        if ax.get_gid() == DIAGRAM and lacking > 0:
            ax.set_xlim(left - lacking / 2, right + lacking / 2)


def apply_style() -> None:
    """Make the course's style matplotlib's for this process."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # a missing glyph is no news for stderr
    matplotlib.rcParams.update(STYLE)


def draw_card(fig: Figure, bounds: Bbox, radius: float = 0.11) -> FancyBboxPatch:
    """Lay rounded paper under everything within `bounds`; both in inches."""
    card = FancyBboxPatch(
        (bounds.x0 + radius, bounds.y0 + radius),
        bounds.width - 2 * radius,
        bounds.height - 2 * radius,
        boxstyle=f"round,pad={radius},rounding_size={radius}",
        transform=inches(fig),
        facecolor=PAPER,
        zorder=-10,
    )
    card.set_in_layout(False)
    fig.add_artist(card)
    return card


def inches(fig: Figure) -> Transform:
    """Coordinates in inches from the figure's lower left corner. They hold when a part of it is saved, too."""
    width, height = fig.get_size_inches()
    return Affine2D().scale(1 / width, 1 / height) + fig.transFigure


def _luminance(color: str) -> float:
    """Relative luminance of WCAG 2.2, 0 (black) to 1 (white)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
