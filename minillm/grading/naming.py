"""Which mistake explains a failure: the one whose records of the same test are the student's records."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minillm.grading.course import Chapter
from minillm.grading.fingerprint import distance
from minillm.grading.mistakes import Mistake, load_mistakes
from minillm.grading.recorder import Record
from minillm.grading.target import Target, read_target

EXPLAINED = 0.2  # a mistake must leave less than this share of the distance to the reference
OTHERS_SECONDS = 15.0  # after which no mistakes of other tasks are tried
SAME = 0.01  # candidates closer than this, in roundings, are equally good

Runs = Callable[[Target], list[Record]]  # runs the test in question with a target


@dataclass(frozen=True)
class Name:
    """A mistake as it is reported."""

    task: str
    name: str
    hint: str


def records_distance(a: list[Record], b: list[Record]) -> float:
    """The largest distance of two corresponding entries; infinite if the calls differ."""
    if len(a) != len(b):
        return math.inf
    return max((_record_distance(x, y) for x, y in zip(a, b, strict=True)), default=0.0)


def _record_distance(a: Record, b: Record) -> float:
    if a.keys() - {"shares"} != b.keys() - {"shares"} or a["call"] != b["call"] or a.get("raised") != b.get("raised"):
        return math.inf
    apart = [distance({"list": a[key]}, {"list": b[key]}) for key in ("items", "changed") if key in a]
    return max([0.0, *apart, distance(a.get("output"), b.get("output"))])


def explain(records: list[Record], reference: list[Record], candidates: list[tuple[Name, list[Record]]]) -> list[Name]:
    """The candidates that made the same records, up to rounding, and not the reference's. Often one, or none."""
    to_reference = records_distance(records, reference)
    if to_reference <= SAME and sharing(records) != sharing(reference):  # right values, but copies for views
        alike = [(name, made) for name, made in candidates if records_distance(records, made) <= SAME]
        return [name for name, made in alike if sharing(made) == sharing(records)]
    close = []
    for name, made in candidates:
        apart = records_distance(records, made)
        if apart <= 1 and apart < EXPLAINED * to_reference:
            close.append((apart, name))
    best = min((apart for apart, _ in close), default=0.0)
    return [name for apart, name in close if apart <= max(SAME, 5 * best)]


def sharing(records: list[Record]) -> list[object]:
    return [record.get("shares") for record in records]


class Namer:
    """Names mistakes of one chapter, by running them or, in a handout, from their fingerprints."""

    def __init__(self, chapter: Chapter) -> None:
        self.chapter = chapter
        self._mistakes: list[Mistake] | None = None
        self._fingerprints: dict[str, Any] | None = None

    @property
    def mistakes(self) -> list[Mistake]:
        if self._mistakes is None:
            self._mistakes = load_mistakes(self.chapter)
        return self._mistakes

    def explain(self, test: str, task: str, records: list[Record], run: Runs) -> list[Name]:
        """The mistakes that `records` of a failed test fit: those of its task and, if none does, of any other task."""
        if not records:
            return []
        if self.chapter.fingerprints.exists():
            return self._from_fingerprints(test, task, records)
        if not self.mistakes:
            return []
        start = time.monotonic()
        reference = run(read_target(self.chapter.solution, self.chapter.show(self.chapter.solution)))
        for group in ([m for m in self.mistakes if m.task == task], [m for m in self.mistakes if m.task != task]):
            made = []
            for m in group:
                if m.task != task and time.monotonic() - start > OTHERS_SECONDS:
                    break
                made.append((Name(m.task, m.name, m.hint), run(m.target)))
            if names := explain(records, reference, made):
                return names
        return []

    def _from_fingerprints(self, test: str, task: str, records: list[Record]) -> list[Name]:
        if self._fingerprints is None:
            self._fingerprints = json.loads(self.chapter.fingerprints.read_text(encoding="utf-8"))
        known = self._fingerprints["tests"].get(test)
        if known is None:
            return []
        names = [Name(**entry) for entry in self._fingerprints["mistakes"]]
        made = [(names[int(index)], entry) for index, entry in known["mistakes"].items()]
        for group in ([m for m in made if m[0].task == task], [m for m in made if m[0].task != task]):
            if found := explain(records, known["reference"], group):
                return found
        return []
