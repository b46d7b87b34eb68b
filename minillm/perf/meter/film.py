"""Pictures of a trace: a strip of frames, or an animation. Needs matplotlib: `pip install minillm[plots]`.

    meter = Meter(sram_bytes=…, trace=True)
    …
    plots.show(film_strip(meter, ("A", "B", "C")), alt="…")
    show_animation(animation(meter, ("A", "B", "C")), alt="…")

A frame shows the tensors in HBM, drawn to scale, and the SRAM of the program that runs:

    filled    came to the chip in this step           tinted   written by now
    framed    came before and is still there          dashed   where the result will go
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np

from minillm.perf.meter.beats import Beat, beats
from minillm.perf.meter.machine import Meter

try:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image  # comes with matplotlib

    from minillm import plots
    from minillm.perf.meter.frame import Scene, draw
    from minillm.plots.display import CSS_PIXELS_PER_INCH
except ImportError as error:
    raise ValueError("pictures need matplotlib: pip install minillm[plots]") from error

WIDTH, BETWEEN = 7.2, 0.3  # inches of a strip, and of the paper around each of its frames
FRAMES_A_ROW = 3
FILM_DPI, FILM_COLORS = 120, 64


def film_strip(
    meter: Meter,
    tensors: Sequence[str] | None = None,
    *,
    frames: int | Sequence[int] = 6,
    kernel: str | None = None,
    places: Mapping[str, tuple[int, int]] | None = None,
) -> Figure:
    """Some frames of what a meter traced, three in a row (fewer where names are long), for `plots.show`.

    tensors  the names of those to draw, from left to right; None = all that were touched and
             are still in HBM
    frames   how many, spread evenly from the first to the last; or which, counted from 0
    kernel   the one to draw, its bytes counted from 0; None = all, one after the other
    places   (row, column) of each tensor, for another order than from left to right: a product reads best with
             {"A": (1, 0), "B": (0, 1), "C": (1, 1)}

    Raises ValueError without a trace, and for names that it doesn't hold.
    """
    chosen = _beats(meter, kernel)
    numbers = _spread(len(chosen), frames) if isinstance(frames, int) else list(frames)
    if not numbers or not all(0 <= number < len(chosen) for number in numbers):
        raise ValueError(f"expected frames between 0 and {len(chosen) - 1}, got {numbers}")
    for columns in range(min(FRAMES_A_ROW, len(numbers)), 0, -1):
        panel = WIDTH / columns - BETWEEN
        scene = Scene.of(meter, chosen, tensors, places, panel)
        if scene.is_roomy:
            break
    rows = -(-len(numbers) // columns)
    fig = _sheet(WIDTH, rows * (scene.height_inches + BETWEEN))
    for i, number in enumerate(numbers):
        row, column = divmod(i, columns)
        draw(_panel(fig, scene, panel, row, column), scene, chosen[number], number)
    return fig


def animation(
    meter: Meter,
    tensors: Sequence[str] | None = None,
    *,
    kernel: str | None = None,
    places: Mapping[str, tuple[int, int]] | None = None,
    most_frames: int = 32,
    frames_per_s: int = 2,
    width: float = 4.2,
) -> bytes:
    """An animated PNG of what a meter traced; the same bytes for the same trace.

    most_frames  longer traces are thinned out evenly; a frame takes 3 to 4 KiB
    width        in inches, 120 pixels each
    Other arguments are those of `film_strip`. Where animation isn't known, the picture is its last frame.
    """
    chosen = _beats(meter, kernel)
    scene = Scene.of(meter, chosen, tensors, places, width - BETWEEN)
    fig = _sheet(width, scene.height_inches + BETWEEN)
    fig.set_dpi(FILM_DPI)
    fig.set_facecolor(plots.PAPER)
    canvas = FigureCanvasAgg(fig)
    ax = _panel(fig, scene, width - BETWEEN, 0, 0)
    frames = []
    for number in _spread(len(chosen), most_frames):
        ax.clear()
        draw(ax, scene, chosen[number], number)
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    palette = frames[-1].quantize(FILM_COLORS)  # one for all: the last frame has every colour
    still, *moving = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in [frames[-1], *frames])
    last = 3  # the end stays that many times as long
    milliseconds = [1000 // frames_per_s] * (len(moving) - 1) + [last * 1000 // frames_per_s]
    buffer = io.BytesIO()
    timing = {"duration": milliseconds, "loop": 0}
    still.save(buffer, "PNG", save_all=True, default_image=True, append_images=moving, optimize=True, **timing)
    return buffer.getvalue()


def show_animation(film: bytes, alt: str) -> None:
    """Show an animated PNG in a notebook with its alternative text, one sentence for those who can't see it."""
    if not alt.strip():
        raise ValueError("expected alternative text, one sentence that says what the picture shows; got none")
    if plots.in_notebook():
        width = Image.open(io.BytesIO(film)).width * CSS_PIXELS_PER_INCH // FILM_DPI
        data = {"image/png": base64.b64encode(film).decode("ascii"), "text/plain": alt}
        plots.publish(data, {"image/png": {"alt": alt, "width": width}})


def _sheet(width: float, height: float) -> Figure:
    fig, ax = plots.figure(width, height)
    fig.set_layout_engine("none")  # panels stay where they are put, from frame to frame
    ax.remove()
    return fig


def _panel(fig: Figure, scene: Scene, width: float, row: int, column: int) -> Axes:
    """Axes for one frame, from the upper left; width in inches, with half of BETWEEN around it."""
    whole_width, whole_height = fig.get_size_inches()
    left = BETWEEN / 2 + column * (width + BETWEEN)
    bottom = whole_height - (row + 1) * (scene.height_inches + BETWEEN) + BETWEEN / 2
    size = width / whole_width, scene.height_inches / whole_height
    return fig.add_axes((left / whole_width, bottom / whole_height, *size))


def _beats(meter: Meter, kernel: str | None) -> list[Beat]:
    trace = meter.trace
    if trace and kernel is not None:
        trace = [event for event in trace if event.kernel == kernel]
        if not trace:
            raise ValueError(f"expected one of the kernels {', '.join(meter.kernels)}, got {kernel}")
    return beats(trace)


def _spread(length: int, count: int) -> list[int]:
    if count < 1:
        raise ValueError(f"expected at least 1 frame, got {count}")
    if count >= length:
        return list(range(length))
    if count == 1:
        return [length - 1]
    return [round(i * (length - 1) / (count - 1)) for i in range(count)]
