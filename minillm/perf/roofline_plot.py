"""The roofline drawn: operations of prefill and decode as dots under the roof. Needs matplotlib: minillm[plots].

    fig = roofline_plot(read_shape("config.json"), find_hardware("h100"), batch_sizes=(1, 8, 64, 512))
    plots.show(fig, alt="…")

Or piece by piece on axes of one's own: `draw_roof`, then `draw_operation` for each dot.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minillm.perf.cost import Operation, Phase, operations, total
from minillm.perf.hardware import Hardware
from minillm.perf.model_shape import ModelShape
from minillm.perf.plan import Plan
from minillm.perf.precision import FP16, Precision
from minillm.perf.roofline import attainable_flops_per_s

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TERA = 1e12


def roofline_plot(
    shape: ModelShape,
    hardware: Hardware,
    *,
    batch_sizes: Sequence[int] = (1, 8, 64, 512),
    seq_len: int = 2048,
    precision: Precision = FP16,
) -> Figure:
    """A figure: matrix products and attention, each summed up, of a prefill of `seq_len` tokens and of decode steps.

    The products of decoding climb the roof as the batch grows; attention stays where it is.
    """
    plots = _plots()
    number_format = precision.number_format(hardware)
    fig, ax = plots.figure(7.2, 4.6)
    steps = {batch: operations(shape, Phase.decode(batch, seq_len), precision) for batch in batch_sizes}
    for batch, parts in steps.items():
        draw_operation(
            ax,
            _sum(parts, "linear"),
            hardware,
            number_format,
            color=plots.BLUE,
            label="decode, matrix products" if batch == batch_sizes[0] else None,
            text=f"batch {batch}" if batch == batch_sizes[0] else str(batch),
        )
    draw_operation(
        ax,
        _sum(steps[batch_sizes[-1]], "attention"),
        hardware,
        number_format,
        color=plots.ORANGE,
        marker="D",
        label="decode, attention",
        text="any batch",
        below=True,
    )
    prefill = operations(shape, Phase.prefill(1, seq_len), precision)
    for kind, marker, name in (("linear", "o", "matrix products"), ("attention", "D", "attention")):
        draw_operation(
            ax,
            _sum(prefill, kind),
            hardware,
            number_format,
            color=plots.GREEN,
            marker=marker,
            label=f"prefill, {name}",
        )
    draw_roof(ax, hardware, number_format)
    ax.legend(loc="lower right")
    ax.set_title(f"{shape.name} on {hardware.name}, {seq_len} tokens a sequence")
    return fig


def draw_roof(ax: Axes, hardware: Hardware, number_format: str = "bf16", *, color: str | None = None) -> None:
    """The roof over what `ax` shows, its two limits and its ridge named. Call it after the dots, for their range."""
    plots = _plots()
    color = color or plots.INK
    ridge, peak = hardware.ridge(number_format), hardware.peak(number_format)
    dots = [float(x) for line in ax.lines for x in np.asarray(line.get_xdata(), dtype=float)]
    low, high = min([*dots, ridge / 30]) / 4, max([*dots, ridge * 4]) * 2.5
    ax.set(xscale="log", yscale="log", xlim=(low, high))
    heights = [attainable_flops_per_s(x, hardware, number_format) / TERA for x in (low, ridge, high)]
    ax.plot([low, ridge, high], heights, color=color, linewidth=1.6, zorder=1.5)
    ax.set_ylim(heights[0] / 1.5, heights[-1] * 6)
    ax.annotate(
        f"{peak / TERA:,.4g} TFLOP/s",
        (high, heights[-1]),
        (-4, 8),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=color,
    )
    ax.annotate(
        f"ridge {ridge:,.0f}",
        (ridge, 2.5 * heights[1]),
        (0, 1),
        textcoords="offset points",
        ha="center",
        va="bottom",
        color=color,
    )
    ax.vlines(ridge, heights[1], 2.5 * heights[1], color=color, linewidth=1, linestyle=":")
    ax.set(xlabel="intensity (FLOPs a byte)", ylabel="at most (TFLOP/s)")
    from matplotlib.ticker import FuncFormatter

    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def draw_operation(
    ax: Axes,
    operation: Operation,
    hardware: Hardware,
    number_format: str = "bf16",
    *,
    color: str,
    marker: str = "o",
    label: str | None = None,
    text: str | None = None,
    below: bool = False,
) -> None:
    """A mark on the roof at the operation's intensity: "o" a dot, "D" a diamond that leaves a dot at its place visible.

    text  beside it, to the upper left on the slope and below it on the flat; with `below` always to the lower right
    """
    plots = _plots()
    is_dot = marker == "o"
    height = attainable_flops_per_s(operation.intensity, hardware, number_format) / TERA
    ax.plot(
        [operation.intensity],
        [height],
        marker=marker,
        color=color,
        markerfacecolor=color if is_dot else plots.PAPER,
        markeredgecolor=plots.PAPER if is_dot else color,
        markeredgewidth=0.8 if is_dot else 2,
        markersize=9 if is_dot else 12,
        linestyle="",
        label=label,
        zorder=3 if is_dot else 2.8,
    )
    if not text:
        return
    on_the_flat = operation.intensity >= hardware.ridge(number_format)
    offset, sides = (-8, 5), ("right", "bottom")
    if below or on_the_flat:
        offset, sides = ((9, -9), ("left", "top")) if below else ((0, -8), ("center", "top"))
    ax.annotate(
        text,
        (operation.intensity, height),
        offset,
        textcoords="offset points",
        ha=sides[0],
        va=sides[1],
        color=color,
    )


def save_plan_plot(plan: Plan, file: Path) -> None:
    """`roofline_plot` of a plan's deployment as a PNG: batches of powers of four up to the plan's own, and that one."""
    plots = _plots()
    wanted = plan.deployment
    batch_sizes = [4**i for i in range(11) if 2 * 4**i <= wanted.batch_size] + [wanted.batch_size]
    fig = roofline_plot(
        wanted.rank_shape,
        wanted.hardware,
        batch_sizes=batch_sizes,
        seq_len=wanted.prompt_len,
        precision=wanted.precision,
    )
    plots.save(fig, file, alt=f"Roofline of {wanted.hardware.name} with operations of {wanted.shape.name} under it.")


def _sum(parts: list[Operation], kind: str) -> Operation:
    return total((part for part in parts if part.kind == kind), kind, kind)


def _plots() -> Any:
    try:
        from minillm import plots
    except ImportError as error:
        raise ValueError("drawing needs matplotlib: pip install minillm[plots]") from error
    return plots
