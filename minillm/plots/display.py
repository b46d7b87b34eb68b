"""From a figure to the reader: a PNG with alternative text in the notebook, or a file."""

from __future__ import annotations

import base64
import io
import os
import sys
from pathlib import Path
from typing import Any, Protocol

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from minillm.plots.style import MUTED, draw_card, inches, widen_small_diagrams

PAD = 0.16  # inches of paper around what is drawn
NOTE_SIZE, NOTE_HEIGHT = 9.0, 0.2  # points; inches added at the bottom for the note
CSS_PIXELS_PER_INCH = 100


class Measured(Protocol):
    """What a picture of a measurement says about it; `minillm.bench.recorded.Record` is one."""

    @property
    def machine(self) -> str: ...


def show(fig: Figure, alt: str, record: Measured | None = None, *, path: str | Path | None = None) -> None:
    """Show a finished figure, once.

    fig     made by `plots.figure`; drawn and done with
    alt     what the picture tells, in one sentence, for those who can't see it. ValueError if empty
    record  where the figures in it were measured: a small note names the machine
    path    also, or in a plain script only, write the PNG there

    In a notebook it displays the PNG with its alternative text. A plain script without `path` shows nothing.
    """
    image = png(fig, alt, record)
    if path is not None:
        write_whole(Path(path), image)
    if in_notebook():
        width = round(fig.get_size_inches()[0] * CSS_PIXELS_PER_INCH)
        # Jupyter and nbconvert read the alternative text and the width under the MIME type.
        publish(
            {"image/png": base64.b64encode(image).decode("ascii"), "text/plain": alt},
            {"image/png": {"alt": alt, "width": width}},
        )


def save(fig: Figure, path: str | Path, alt: str, record: Measured | None = None) -> None:
    """Write a figure as a PNG file, all of it or nothing; the same bytes for the same figure."""
    write_whole(Path(path), png(fig, alt, record))


def png(fig: Figure, alt: str, record: Measured | None = None) -> bytes:
    """The figure on its card as PNG, without empty room above and below what is drawn.

    Equal figures give equal bytes: no date, no version inside. The figure itself stays as it is.
    """
    if not alt.strip():
        raise ValueError("expected alternative text, one sentence that says what the picture shows; got none")
    widen_small_diagrams(fig)
    fig.canvas.draw()  # lays it out: from here on the positions are final
    drawn = fig.get_tightbbox()
    width = fig.get_size_inches()[0]
    bottom, top = drawn.y0 - PAD, drawn.y1 + PAD
    if record is not None:
        bottom -= NOTE_HEIGHT
    left = 0.0 if drawn.x0 >= 0 else drawn.x0 - PAD  # wider than asked only where something sticks out
    right = width if drawn.x1 <= width else drawn.x1 + PAD
    bounds = Bbox.from_extents(left, bottom, right, top)
    extras: list[Artist] = [draw_card(fig, bounds)]
    if record is not None:
        extras.append(_draw_note(fig, bounds, f"measured on {record.machine}"))
    # PNG text chunks are Latin-1; what isn't would make saving fail.
    description = alt.encode("latin-1", "replace").decode("latin-1")
    buffer = io.BytesIO()
    fig.savefig(
        buffer,
        format="png",
        facecolor="none",
        bbox_inches=bounds,
        metadata={"Software": None, "Description": description},
    )
    for artist in extras:
        artist.remove()
    return buffer.getvalue()


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


def publish(data: dict[str, str], metadata: dict[str, Any] | None = None) -> None:
    """Show a MIME bundle as an output of the running cell."""
    from IPython.display import publish_display_data

    publish_display_data(data, metadata or {})


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, all of it or nothing."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _draw_note(fig: Figure, bounds: Bbox, text: str) -> Artist:
    """A line at the lower right of the card, below everything."""
    x, y = bounds.x1 - 0.16, bounds.y0 + 0.13
    note = fig.text(x, y, text, size=NOTE_SIZE, color=MUTED, ha="right", va="baseline", transform=inches(fig))
    note.set_in_layout(False)
    return note
