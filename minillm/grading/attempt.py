"""One test, run once with one target: seeded, recorded and guarded."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from _pytest.runner import runtestprotocol

from minillm.grading.course import Chapter
from minillm.grading.guard import Guard
from minillm.grading.problems import Unusable
from minillm.grading.recorder import Record, Recorder
from minillm.grading.target import StudentModule, Target, read_target
from minillm.grading.task import Graded, graded_of

TargetSource = Callable[[], Target]  # may raise Unusable


@dataclass
class Attempt:
    """A run of one test with one target, and what came of it."""

    chapter: Chapter
    graded: Graded | None
    test: str
    target: TargetSource
    when_loaded: Callable[[], None] = lambda: None
    records: list[Record] = field(default_factory=list)
    reports: list[pytest.TestReport] = field(default_factory=list)
    filename: str = ""  # of the target, as its frames carry it

    @property
    def passed(self) -> bool:
        return all(report.passed for report in self.reports)

    @property
    def seed(self) -> int:
        """From the test's name, so that tests don't share their numbers; an instructor's seed changes them all."""
        text = f"{self.chapter.seed}:{self.chapter.name}:{self.test}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    def student(self) -> Iterator[StudentModule]:
        """The module under test, for as long as the test runs."""
        target = self.target()
        self.filename = target.filename
        guard = Guard(self.graded.task if self.graded else None, str(self.chapter.tests))
        recorder = Recorder(guard)
        self.records = recorder.records
        module = target.load(self.chapter.name)
        recorder.attach(module)
        with guard.installed():
            self.when_loaded()
            self.seed_everything()  # what the module drew while it was imported makes no difference
            yield module

    def seed_everything(self) -> None:
        torch.manual_seed(self.seed)
        random.seed(self.seed)
        np.random.seed(self.seed % 2**32)


CURRENT = pytest.StashKey[Attempt]()  # of the session's config: what the fixture `student` serves


def run_attempt(item: pytest.Item, nextitem: pytest.Item | None, attempt: Attempt) -> Attempt:
    """Set the test up, call it and tear it down; the reports are kept, nothing is shown."""
    item.config.stash[CURRENT] = attempt
    attempt.seed_everything()
    attempt.reports = runtestprotocol(item, log=False, nextitem=nextitem)
    return attempt


def test_name(item: pytest.Item) -> str:
    """The test's name inside its file, parameters included."""
    return item.nodeid.partition("::")[2]


test_name.__test__ = False  # type: ignore[attr-defined]  # it is no test, whoever imports it


def new_attempt(item: pytest.Item, chapter: Chapter, target: TargetSource) -> Attempt:
    return Attempt(chapter, graded_of(getattr(item, "function", None)), test_name(item), target)


def target_source(chapter: Chapter, option: str, start: Path) -> TargetSource:
    """What `--target` says: exercises, solutions, or the path of a file or folder, seen from `start`."""

    def read() -> Target:
        if option == "exercises":
            path = chapter.student
        elif option == "solutions":
            path = chapter.solution
        else:
            path = (start / option).resolve()
            path = path / f"{chapter.name}.py" if path.is_dir() else path
        if option == "solutions" and not path.exists():
            raise Unusable(f"{chapter.show(path)} is not here: handouts hold no solutions")
        return read_target(path, chapter.show(path))

    return read
