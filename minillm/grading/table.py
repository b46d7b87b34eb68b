"""The table of points at the end of a run, in 80 columns."""

from __future__ import annotations

import textwrap
from typing import Any, Protocol

from minillm.grading.score import Scores, TaskScore, looks_like, number

WIDTH = 78
BAR = 12


class Writer(Protocol):
    """The part of pytest's TerminalWriter that is needed."""

    def line(self, s: str = "", **markup: bool) -> None: ...


def bar_characters(encoding: str | None) -> tuple[str, str]:
    """(full, empty) blocks, or plain ASCII where the terminal can't show them."""
    try:
        "█░".encode(encoding or "ascii")
        return "█", "░"
    except (UnicodeEncodeError, LookupError):
        return "#", "-"


def bar(points: float, max_points: float, characters: tuple[str, str]) -> str:
    """Full only for full points, empty only for none."""
    share = points / max_points if max_points else 0.0
    filled = round(share * BAR)
    if 0 < share < 1:
        filled = min(max(filled, 1), BAR - 1)
    return characters[0] * filled + characters[1] * (BAR - filled)


def write_table(writer: Writer, scores: Scores, hints: int, characters: tuple[str, str]) -> None:
    """Every chapter's tasks, what their mistakes look like, and the hints if wanted."""
    for chapter, tasks in scores.by_chapter():
        writer.line(f" {chapter} ".center(WIDTH, "="), bold=True)
        width = max(len(task.task) for task in tasks)
        for task in tasks:
            _write_task(writer, task, max(width, 24), hints, characters)
        points, most = sum(task.points for task in tasks), sum(task.max_points for task in tasks)
        full = points >= most - 1e-9
        total = f"{number(points)}/{number(most)}"
        writer.line(f" {'total':{max(width, 24)}}  {total:>9}  {bar(points, most, characters)}", bold=True, green=full)
        if not full and not hints:
            short = chapter[:4]
            writer.line(f" Stuck? python3 tasks.py grade {short} --hints 1   (2: stronger)", light=True)
    chapters = list(scores.by_chapter())
    if len(chapters) > 1:
        writer.line("=" * WIDTH)
        writer.line(f" all {len(chapters)} chapters: {number(scores.points)}/{number(scores.max_points)}", bold=True)


def _write_task(writer: Writer, task: TaskScore, width: int, hints: int, characters: tuple[str, str]) -> None:
    total = f"{number(task.points)}/{number(task.max_points)}"
    state = task.state
    colour: dict[str, Any] = {"green": True} if state == "full" else {"yellow" if "not" in state else "red": True}
    line = f" {task.task:{width}}  {total:>9}  {bar(task.points, task.max_points, characters)}  {state}"
    writer.line(line, **colour)
    if state == "full":
        return
    for name in task.names[:3]:
        _write_wrapped(writer, looks_like(name, task.task))
    for text in task.hints[:hints]:
        _write_wrapped(writer, f"hint: {text}")


def _write_wrapped(writer: Writer, text: str) -> None:
    for line in textwrap.wrap(text, WIDTH - 6, subsequent_indent="  ", break_long_words=False):
        writer.line(f"    {line}")
