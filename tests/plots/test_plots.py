"""The helpers draw what they are told, and a figure becomes the same PNG each time."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

from minillm import plots
from minillm.plots import display
from minillm.plots.shapes import FittedText

ROOT = Path(__file__).resolve().parents[2]


def texts(ax: Any) -> list[FittedText]:
    return [artist for artist in ax.get_children() if isinstance(artist, FittedText)]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(int)


def a_line(**kwargs: Any) -> Figure:
    fig, ax = plots.figure(**kwargs)
    ax.plot([0, 1, 2], [3, 1, 2], label="a")
    ax.set(xlabel="tokens", ylabel="time (s)", title="Title")
    ax.legend()
    return fig


def test_equal_figures_give_equal_bytes_and_a_figure_can_be_shown_twice() -> None:
    record = SimpleNamespace(machine="a machine")
    fig = a_line()
    first = display.png(fig, "A line.", record)
    assert first == display.png(a_line(), "A line.", record) == display.png(fig, "A line.", record)
    assert first != display.png(fig, "A line.")


def test_the_same_bytes_from_another_process(tmp_path: Path) -> None:
    code = (
        "from minillm import plots; fig, ax = plots.figure(); ax.plot([1, 2]); "
        f"plots.show(fig, 'A line.', path={str(tmp_path / 'a.png')!r})"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    fig, ax = plots.figure()
    ax.plot([1, 2])
    assert (tmp_path / "a.png").read_bytes() == display.png(fig, "A line.")


def test_the_card_is_paper_with_transparent_corners() -> None:
    image = pixels(display.png(a_line(), "A line."))
    assert image[0, 0, 3] == image[-1, -1, 3] == 0
    middle = image.shape[1] // 2
    for row in (2, -3):
        assert to_hex(image[row, middle, :3] / 255) == plots.PAPER
        assert image[row, middle, 3] == 255


def test_figures_keep_their_width_and_the_note_gets_room_of_its_own() -> None:
    plain = pixels(display.png(a_line(), "A line."))
    noted = pixels(display.png(a_line(), "A line.", SimpleNamespace(machine="a machine")))
    assert plain.shape[1] == noted.shape[1] == 1080
    assert 20 <= noted.shape[0] - plain.shape[0] <= 60


def test_a_diagram_is_as_high_as_its_drawing() -> None:
    heights = []
    for rows in (1, 3):
        fig, ax = plots.diagram()
        for row in range(rows):
            plots.cells(ax, 0, -row, list("abcdefgh"))
        heights.append(pixels(display.png(fig, "Boxes.")).shape[0])
    assert heights[0] < 250 < heights[1]


def test_a_few_boxes_are_not_blown_up() -> None:
    fig, ax = plots.diagram()
    plots.cells(ax, 0, 0, ["a"])
    display.png(fig, "A box.")
    (x0, _), (x1, _) = ax.transData.transform([(0, 0), (1, 0)])
    assert (x1 - x0) / fig.dpi == pytest.approx(0.75, rel=0.1)


def test_alternative_text_is_required_and_stored() -> None:
    with pytest.raises(ValueError, match="alternative text"):
        plots.show(a_line(), alt=" ")
    image = Image.open(io.BytesIO(display.png(a_line(), "A falling line. 注意")))
    assert image.info["Description"].startswith("A falling line.")


def test_show_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    published = []
    monkeypatch.setattr(display, "in_notebook", lambda: True)
    monkeypatch.setattr(display, "publish", lambda data, metadata: published.append((data, metadata)))
    plots.show(a_line(), alt="A falling line.")
    ((data, metadata),) = published
    assert metadata == {"image/png": {"alt": "A falling line.", "width": 720}}
    assert data["text/plain"] == "A falling line." and len(data["image/png"]) > 1000


def test_a_plain_script_shows_nothing_and_writes_only_where_told(tmp_path: Path) -> None:
    plots.show(a_line(), alt="A line.")
    assert list(tmp_path.iterdir()) == []
    plots.save(a_line(), tmp_path / "a.png", alt="A line.")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_cells_stand_in_a_row_or_a_column() -> None:
    _, ax = plots.diagram()
    assert plots.cells(ax, 1, 2, "ab", width=[2, 4]) == [(2, 2.5), (5, 2.5)]
    assert plots.cells(ax, 0, 0, "ab", vertical=True) == [(0.5, 0.5), (0.5, -0.5)]
    assert [text.get_text() for text in texts(ax)] == ["a", "b", "a", "b"]
    assert ax.dataLim.bounds == (0, -1, 7, 4)


@pytest.mark.parametrize("kwargs", [{"colors": [plots.BLUE]}, {"width": [1, 2, 3]}])
def test_cells_want_a_color_and_a_width_each(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="each of 2 labels"):
        plots.cells(plots.diagram()[1], 0, 0, "ab", **kwargs)


def test_text_shrinks_to_its_box_alike_in_a_row() -> None:
    fig, ax = plots.diagram()
    labels = ["a", "a long label", *"cdefgh"]
    plots.cells(ax, 0, 0, labels, width=1.5)
    plots.cells(ax, 0, -2, ["a", "b"], width=1.5)
    plots.cells(ax, 0, -4, ["a label that is much too long to be read in here", "b"], width=1.5)
    display.png(fig, "Boxes.")
    sizes = [text.get_fontsize() for text in texts(ax)]
    assert len(set(sizes[:8])) == 1 and 6 < sizes[0] < 12 == sizes[8] == sizes[9] == sizes[11]
    room = ax.transData.transform([(0, 0), (1.42, 0)])
    extent = texts(ax)[1].get_window_extent(fig.canvas.get_renderer())
    assert extent.width <= room[1, 0] - room[0, 0]


def test_text_too_long_for_its_box_is_left_out() -> None:
    images = []
    for label in ("", "a label that is much too long to be read in here"):
        fig, ax = plots.diagram()
        plots.cells(ax, 0, 0, [label, *"bcdefgh"])
        images.append(display.png(fig, "Boxes."))
    assert images[0] == images[1]


def test_dollar_signs_of_tokens_are_no_formulas() -> None:
    fig, ax = plots.diagram()
    plots.cells(ax, 0, 0, ["$\\frac$", "$"])
    display.png(fig, "Boxes.")


def test_visible_marks_white_space() -> None:
    assert plots.visible(" a b\n") == "·a·b↵"


def test_arrows_carry_labels() -> None:
    _, ax = plots.diagram()
    plots.arrow(ax, (0, 0), (4, 2), "copies", color=plots.RED)
    label = ax.texts[-1]
    assert label.get_text() == "copies" and label.get_position() == (2, 1)


def test_timeline_chooses_its_unit() -> None:
    spans = [("A", 0.0, 0.25, "prefill", plots.BLUE), ("B", 0.25, 0.5, "decode", plots.ORANGE)]
    _, ax = plots.figure()
    plots.timeline(ax, spans, legend=True)
    bars = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    assert ax.get_xlabel() == "time (ms)" and [(bar.get_x(), bar.get_width()) for bar in bars] == [(0, 250), (250, 250)]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["A", "B"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["prefill", "decode"]
    _, ax = plots.figure()
    plots.timeline(ax, spans, xlabel="step")
    assert ax.get_xlabel() == "step" and ax.patches[0].get_width() == 0.25
    low, high = ax.get_ylim()
    assert low > high  # the first lane is at the top
    with pytest.raises(ValueError, match="got none"):
        plots.timeline(ax, [])


def test_a_mask_fills_what_is_attended() -> None:
    _, ax = plots.figure()
    plots.matrix(ax, torch.ones(3, 3, dtype=torch.bool).tril(), row_labels="abc", column_labels="abc")
    faces = [to_hex(patch.get_facecolor()) for patch in ax.patches if isinstance(patch, FancyBboxPatch)]
    assert [face == plots.BLUE for face in faces] == [True, False, False, True, True, False, True, True, True]


def test_a_heat_map_is_paper_at_zero_and_writes_its_values() -> None:
    _, ax = plots.figure()
    plots.matrix(ax, [[0.0, 1.0], [-2.0, float("-inf")]], fmt=".1f")
    faces = [to_hex(patch.get_facecolor()) for patch in ax.patches]
    assert faces[0] == plots.PAPER and faces[2] == plots.ORANGE and faces[1] not in (plots.PAPER, plots.BLUE)
    assert [text.get_text() for text in texts(ax)] == ["0.0", "1.0", "−2.0", "−∞"]


@pytest.mark.parametrize("dtype", [bool, float])
def test_a_large_matrix_is_an_image(dtype: type) -> None:
    fig, ax = plots.figure()
    plots.matrix(ax, np.eye(100, dtype=dtype))
    assert len(ax.images) == 1 and not ax.patches
    display.png(fig, "An identity.")


@pytest.mark.parametrize("values", [[1, 2], [[]]])
def test_a_matrix_has_rows_and_columns(values: list[Any]) -> None:
    with pytest.raises(ValueError, match="matrix"):
        plots.matrix(plots.figure()[1], values)


def test_matrix_labels_are_counted() -> None:
    with pytest.raises(ValueError, match="expected 2 row labels"):
        plots.matrix(plots.figure()[1], np.eye(2), row_labels="abc")
