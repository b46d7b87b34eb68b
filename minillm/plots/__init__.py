"""Figures in the course's style. Needs matplotlib: `pip install minillm[plots]`.

    from minillm import plots

    fig, ax = plots.figure()
    ax.plot(seq_lens, seconds, color=plots.BLUE, label="with a cache")
    ax.set(xlabel="tokens", ylabel="time of a step (s)")
    plots.show(fig, alt="A step's time stays flat with a cache.", record=record)

Reading order: `style` (palette, card), `display` (from a figure to the reader), `shapes` (boxes and arrows),
`charts` (timelines and matrices).
"""

from minillm.plots.charts import matrix, timeline
from minillm.plots.display import in_notebook, publish, save, show
from minillm.plots.shapes import arrow, box, cells, text_widths, visible
from minillm.plots.style import (
    BLUE,
    GREEN,
    GREY,
    GRID,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    PURPLE,
    RED,
    SERIES,
    SKY,
    YELLOW,
    contrast,
    diagram,
    figure,
    ink_on,
    ramp,
    tint,
)

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "GRID",
    "INK",
    "MUTED",
    "ORANGE",
    "PAPER",
    "PURPLE",
    "RED",
    "SERIES",
    "SKY",
    "YELLOW",
    "arrow",
    "box",
    "cells",
    "contrast",
    "diagram",
    "figure",
    "in_notebook",
    "ink_on",
    "matrix",
    "publish",
    "ramp",
    "save",
    "show",
    "text_widths",
    "timeline",
    "tint",
    "visible",
]
