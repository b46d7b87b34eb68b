"""What every part of `minillm doctor` hands back, and how its tables are laid out."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH = 80  # columns of a terminal
OK, FAILED, NOT_CHECKED = "ok", "FAILED", "not checked"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    verdict  OK, FAILED, or NOT_CHECKED where something that it needs is not here; only FAILED makes the exit status 1
    found    what was seen
    advice   one line that helps, where the verdict is not OK
    numbers  what was measured, for JSON
    """

    name: str
    verdict: str
    found: str = ""
    advice: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A part of the report: `lines` are printed, `checks` are counted, `data` goes to JSON as well."""

    name: str
    title: str
    lines: tuple[str, ...]
    checks: tuple[Check, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)

    def failed(self) -> list[Check]:
        """What must be put right."""
        return [check for check in self.checks if check.verdict == FAILED]


@dataclass(frozen=True)
class Settings:
    """How much is examined.

    quick      smaller samples of everything
    every      all dtypes, problems and builds of each kernel, large problems on a GPU
    timeout_s  of one kernel's check in its process
    on_step    (what is done now, steps done, steps in all), called before each step of a section
    """

    quick: bool = False
    every: bool = False
    timeout_s: float = 120.0
    on_step: Callable[[str, int, int], object] = lambda what, done, total: None


def columns(
    rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), indent: int = 2, gap: int = 2, width: int = WIDTH
) -> list[str]:
    """Rows of cells as aligned lines; the last column is wrapped at `width`. `right` lists right-aligned columns."""
    if not rows:
        return []
    count = max(len(row) for row in rows)
    filled = [[*row, *[""] * (count - len(row))] for row in rows]
    widths = [max(len(row[i]) for row in filled) for i in range(count - 1)]
    start = indent + sum(widths) + gap * (count - 1)
    lines = []
    for row in filled:
        cells = [row[i].rjust(widths[i]) if i in right else row[i].ljust(widths[i]) for i in range(count - 1)]
        first = " " * indent + "".join(cell + " " * gap for cell in cells)
        is_number = count - 1 in right
        last = row[-1].rjust(max(len(r[-1]) for r in filled)) if is_number else row[-1]
        pieces = textwrap.wrap(last, max(width - start, 16), drop_whitespace=not is_number) or [""]
        lines.append((first + pieces[0]).rstrip())
        lines += [" " * start + piece for piece in pieces[1:]]
    return lines


def paragraph(text: str, *, indent: int = 2, hanging: int = 0) -> list[str]:
    """Text wrapped at `WIDTH`; lines after the first are indented by `hanging` more."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + hanging),
        break_long_words=False,
        break_on_hyphens=False,
    )


def explained(checks: Sequence[Check]) -> list[str]:
    """What went wrong and what helps, for each failed check, below a table."""
    lines: list[str] = []
    for check in checks:
        if check.verdict == FAILED:
            lines += paragraph(f"FAILED  {check.name}: {check.found}", hanging=8)
            if check.advice:
                lines += paragraph(f"        {check.advice}", hanging=8)
    return lines


def brief(error: BaseException) -> str:
    """An exception in one line of moderate length: its type and what it says first."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {textwrap.shorten(text, 160, placeholder=' …')}" if text else type(error).__name__
