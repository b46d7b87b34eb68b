"""Pictures of a warp's request: every lane stands where it asks, and nothing else is filled."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("matplotlib")

from minillm import plots
from minillm.perf.warp_plot import draw_request
from minillm.perf.warp_requests import Request
from minillm.plots.shapes import FittedText


def request(space: str, addresses: list[int | None], itemsize: int = 4) -> Request:
    return Request(space, "load", "a", 1, (0, 0, 0), 0, tuple(addresses), itemsize)


def drawn(wanted: Request) -> tuple[list[str], list[str], str]:
    """Labels of the cells, other texts, the headline."""
    fig, ax = plots.diagram()
    draw_request(ax, wanted)
    plots.display.png(fig, "A request.")
    labels = [text.get_text() for text in ax.get_children() if isinstance(text, FittedText)]
    others = [text.get_text() for text in ax.texts if not isinstance(text, FittedText) and text.get_text()]
    return labels, others, others[-1]


def test_coalesced() -> None:
    labels, others, headline = drawn(request("global", [4 * lane for lane in range(32)]))
    assert labels == [str(lane) for lane in range(32)]
    assert others[:4] == ["byte 0", "byte 32", "byte 64", "byte 96"]
    assert headline == "a, one load: 4 sectors, 128 of 128 bytes are used"


def test_scattered_and_shared_by_lanes() -> None:
    labels, _, headline = drawn(request("global", [1000 * 32 * lane for lane in range(32)]))
    assert (
        len(labels) == 32 * 8 and sum(label != "" for label in labels) == 32 and "32 sectors, 128 of 1024" in headline
    )
    labels, _, headline = drawn(request("global", [64] * 32))
    assert labels == ["0–31", *[""] * 7] and "1 sector, 4 of 32 bytes" in headline
    labels, _, _ = drawn(request("global", [0, 4] * 8 + [None] * 16))
    assert labels[:3] == ["0 +7", "1 +7", ""]


def test_banks() -> None:
    labels, others, headline = drawn(request("shared", [4 * lane for lane in range(32)]))
    assert labels == [str(lane) for lane in range(32)] and headline == "a, one load: 1 pass"
    assert "bank" in others and "31" in others
    labels, others, headline = drawn(request("shared", [128 * lane for lane in range(32)]))
    assert [label for label in labels if label] == [str(lane) for lane in range(8)] and "32 passes" in headline
    assert any(re.fullmatch("and 24 passes more", text) for text in others)


def test_wide_elements_of_shared_memory_are_refused() -> None:
    with pytest.raises(ValueError, match="elements of 4 bytes, got 8"):
        draw_request(plots.diagram()[1], request("shared", [0] * 32, itemsize=8))
