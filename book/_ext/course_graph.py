"""The graph of chapters: a column of titles, and an arc from each chapter to every later one that needs it.

Drawn as an arc diagram because it stays legible on a phone: titles stand one below the other at full size, and an arc's
width is its length. Colours are CSS variables of the page; `graph.js` lights up what a chapter needs.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from course_data import ROMAN, Chapter, Part

WIDTH, LEFT = 490, 132  # of the picture, and of the arcs' share of it
ROW, PART_ROW = 27, 52  # heights
TOP = -8


def draw_graph(parts: tuple[Part, ...], address: Callable[[Chapter], str]) -> str:
    """The SVG as text. `address` gives the page of a chapter that exists."""
    places: dict[int, float] = {}
    rows: list[str] = []
    y = TOP
    for number, part in zip(ROMAN, parts, strict=True):
        y += PART_ROW
        rows.append(f'<text class="part" x="{LEFT}" y="{y - 20}">{number} · {escape(part.title)}</text>')
        for chapter in part.chapters:
            places[chapter.number] = y
            rows.append(draw_chapter(chapter, y, address))
            y += ROW
    chapters = [chapter for part in parts for chapter in part.chapters]
    arcs = [arc(need, chapter.number, places) for chapter in chapters for need in chapter.needs]
    caption = "Which chapter needs which: an arc leads from a chapter to each later one that builds on it."
    # Longest first, so that short arcs lie on top.
    drawn = [text for _, text in sorted(arcs, key=lambda item: -item[0])]
    return "\n".join(
        [
            '<div class="chapter-graph">',
            f'<svg viewBox="0 0 {WIDTH} {y + 6:.0f}" role="img" aria-label="{caption}">',
            *drawn,
            *rows,
            "</svg></div>",
        ]
    )


def draw_chapter(chapter: Chapter, y: float, address: Callable[[Chapter], str]) -> str:
    """A dot and a title; a link when the chapter exists, hollow and grey when it is planned."""
    needs = " ".join(str(need) for need in chapter.needs)
    state = "here" if chapter.exists() else "planned"
    title = f'<tspan class="number">{chapter.number:02d}</tspan> {escape(chapter.title)}'
    body = f'<circle cx="{LEFT + 7}" cy="{y}" r="5.5"/><text x="{LEFT + 22}" y="{y + 5}">{title}</text>'
    if chapter.exists():
        body = f'<a href="{escape(address(chapter))}">{body}</a>'
    data = f'data-chapter="{chapter.number}" data-needs="{needs}"'
    box = f'<rect x="{LEFT - 2}" y="{y - ROW / 2}" width="{WIDTH - LEFT}" height="{ROW}"/>'
    return f'<g class="chapter {state}" {data}>{box}{body}</g>'


def arc(need: int, chapter: int, places: dict[int, float]) -> tuple[float, str]:
    """(length, SVG) of the arc from a chapter to one that needs it, bulging to the left by a share of its length."""
    start, end = places[need], places[chapter]
    reach = min(LEFT - 8, 10 + (end - start) * 0.16)
    path = f"M {LEFT} {start} C {LEFT - reach * 1.3:.0f} {start}, {LEFT - reach * 1.3:.0f} {end}, {LEFT} {end}"
    return end - start, f'<path class="arc" data-from="{need}" data-to="{chapter}" d="{path}"/>'
