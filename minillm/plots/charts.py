"""Two pictures that chapters need again and again: who did what when, and a matrix with readable cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex, to_rgb
from matplotlib.patches import FancyBboxPatch, Patch, Rectangle

from minillm.plots.shapes import FittedText
from minillm.plots.style import BLUE, FONT_SIZE, GRID, INK, MUTED, ORANGE, PAPER, ink_on, ramp, tint

MILLISECONDS_BELOW_S = 1.0
MOST_ROUNDED = 1024  # cells; a larger matrix is an image
MOST_WRITTEN = 400  # cells whose values are written into them


def timeline(
    ax: Axes,
    spans: Sequence[tuple[str, float, float, str, str]],
    *,
    xlabel: str | None = None,
    legend: bool = False,
) -> None:
    """Who did what when: one lane a row, the first at the top.

    spans   (lane, start_s, end_s, label, color); the label stands in its bar if there is room
    xlabel  for another unit than seconds, "step" say: then numbers are taken as they are
    legend  explain the colours by their labels, for bars too short to hold one

    The axis reads in milliseconds when everything ends within a second.
    """
    if not spans:
        raise ValueError("expected one span or more, got none")
    lanes = list(dict.fromkeys(span[0] for span in spans))
    in_ms = xlabel is None and max(span[2] for span in spans) < MILLISECONDS_BELOW_S
    scale = 1000.0 if in_ms else 1.0
    for lane, start, end, label, color in spans:
        row = lanes.index(lane)
        left, width = start * scale, (end - start) * scale
        bar = Rectangle((left, row - 0.36), width, 0.72, facecolor=color, edgecolor=PAPER, linewidth=1, zorder=2)
        ax.add_patch(bar)
        if label:
            ax.add_artist(FittedText(left + width / 2, row, label, (width, 0.72), ink_on(color), FONT_SIZE - 1, []))
    ax.update_datalim([(min(span[1] for span in spans) * scale, -0.5), (max(span[2] for span in spans) * scale, 0)])
    ax.autoscale_view()
    ax.margins(x=0.01)
    ax.set_ylim(len(lanes) - 0.4, -0.6)
    ax.set_yticks(range(len(lanes)), lanes)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(xlabel if xlabel is not None else f"time ({'ms' if in_ms else 's'})")
    if legend:
        names = dict.fromkeys((span[3], span[4]) for span in spans if span[3])
        handles = [Patch(facecolor=color, label=label) for label, color in names]
        ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles), borderaxespad=0.2)


def matrix(
    ax: Axes,
    values: Any,
    *,
    row_labels: Sequence[object] | None = None,
    column_labels: Sequence[object] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    color: str = BLUE,
    other: str = ORANGE,
    vmin: float | None = None,
    vmax: float | None = None,
    fmt: str | None = None,
) -> ScalarMappable:
    """A matrix as cells: a heat map of numbers, or a mask of booleans (filled = True = attend).

    values       (rows, columns): nested lists, an array or a tensor on the CPU; row 0 at the top, column 0 at the left
    row_labels   one a row, likewise `column_labels`, written above; None leaves them out
    xlabel       of the columns, above; `ylabel` of the rows
    color        of the largest value; with negative values `other` is that of the smallest, and the paper is zero
    vmin, vmax   the values with the palest and the fullest colour; by default 0 and the largest magnitude
    fmt          how values are written into the cells, ".2f" say; None writes none

    Returns the colour scale, for `fig.colorbar(scale, ax=ax, label=…)`. Raises ValueError unless it is a matrix.
    """
    table = np.asarray(values)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"expected a matrix (rows, columns) that isn't empty, got shape {table.shape}")
    rows, columns = table.shape
    for name, labels, count in (("row", row_labels, rows), ("column", column_labels, columns)):
        if labels is not None and len(labels) != count:
            raise ValueError(f"expected {count} {name} labels for shape {table.shape}, got {len(labels)}")
    scale = _scale(table, color, other, vmin, vmax)
    is_mask = table.dtype == bool
    if table.size <= MOST_ROUNDED:
        _draw_cells(ax, table, scale, color, is_mask, fmt)
    else:
        image = scale.to_rgba(np.asarray(table, dtype=float)) if not is_mask else _mask_image(table, color)
        ax.imshow(image, interpolation="nearest", zorder=2)
    ax.set(xlim=(-0.54, columns - 0.46), ylim=(rows - 0.46, -0.54), aspect="equal")
    _label(ax, row_labels, column_labels, xlabel, ylabel)
    return scale


def _scale(table: np.ndarray, color: str, other: str, vmin: float | None, vmax: float | None) -> ScalarMappable:
    finite = table[np.isfinite(table)].astype(float)
    largest = float(np.abs(finite).max(initial=0)) or 1.0
    high = largest if vmax is None else vmax
    low = vmin if vmin is not None else (-high if finite.min(initial=0) < 0 else 0.0)
    colors = (other, color) if low < 0 < high else (color,)
    scale = ScalarMappable(Normalize(low, high, clip=True), ramp(*colors))
    scale.set_array(np.asarray([]))
    return scale


def _draw_cells(ax: Axes, table: np.ndarray, scale: ScalarMappable, color: str, is_mask: bool, fmt: str | None) -> None:
    faces = scale.to_rgba(table.astype(float))  # (rows, columns, 4)
    texts: list[FittedText] = []
    for (row, column), value in np.ndenumerate(table):
        if is_mask:
            face = color if value else tint(MUTED, 0.1)
        else:
            # Not-a-number and −inf hold nothing: they look like a masked cell.
            face = to_hex(tuple(faces[row, column])) if np.isfinite(value) else tint(MUTED, 0.1)
        cell = FancyBboxPatch((column - 0.46, row - 0.46), 0.92, 0.92, boxstyle="round,pad=0,rounding_size=0.14")
        cell.set(facecolor=face, edgecolor=GRID, linewidth=0.6, zorder=2)
        ax.add_patch(cell)
        if fmt is not None and table.size <= MOST_WRITTEN:
            written = format(value, fmt).replace("-", "−").replace("inf", "∞")
            texts.append(FittedText(column, row, written, (0.9, 0.9), ink_on(face), FONT_SIZE, texts))
            ax.add_artist(texts[-1])


def _mask_image(table: np.ndarray, color: str) -> np.ndarray:
    return np.where(table[..., None], to_rgb(color), to_rgb(tint(MUTED, 0.1)))


def _label(
    ax: Axes,
    row_labels: Sequence[object] | None,
    column_labels: Sequence[object] | None,
    xlabel: str,
    ylabel: str,
) -> None:
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    ax.tick_params(length=0, labelcolor=INK)
    ax.set_yticks(range(len(row_labels or ())), [str(label) for label in row_labels or ()])
    names = [str(label) for label in column_labels or ()]
    ax.set_xticks(range(len(names)), names)
    if max(map(len, names), default=0) > 3:
        for tick in ax.get_xticklabels():
            tick.set(rotation=45, ha="left", rotation_mode="anchor")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
