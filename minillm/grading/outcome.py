"""What a test's report tells about its task: points, a state, and for known problems one clear message."""

from __future__ import annotations

import linecache
from typing import Any

import pytest

from minillm.grading.course import Chapter
from minillm.grading.problems import MissingName, Problem, Unusable
from minillm.grading.task import graded_of

MAX_REASON = 400  # characters of an error that go into the file of scores
CASES = pytest.StashKey[dict[tuple[str, str], int]]()  # how many cases each test function of a file has


def count_cases(config: pytest.Config, items: list[pytest.Item]) -> None:
    counts: dict[tuple[str, str], int] = {}
    for item in items:
        counts[_function_of(item)] = counts.get(_function_of(item), 0) + 1
    config.stash[CASES] = counts


def _function_of(item: pytest.Item) -> tuple[str, str]:
    return str(item.path), getattr(item, "originalname", item.name)


def new_grading(item: pytest.Item, chapter: Chapter, state: str, message: str = "") -> dict[str, Any]:
    """What a report carries as `grading`: JSON, so that it passes from process to process."""
    graded = graded_of(getattr(item, "function", None))
    cases = item.config.stash.get(CASES, {}).get(_function_of(item), 1)
    points = graded.points / cases if graded else 0.0
    return {
        "chapter": chapter.name,
        "task": graded.task.name if graded else "",
        "hints": graded.task.hints if graded else (),
        "test": item.nodeid.partition("::")[2],
        "max": points,
        "points": points if state == "passed" else 0.0,
        "state": state,  # passed, failed, not started, unusable, stopped
        "message": message,
        "names": [],
    }


def describe(
    report: pytest.TestReport, item: pytest.Item, call: pytest.CallInfo[None], chapter: Chapter, filename: str
) -> None:
    """Attach the grading; where a message says it all, put it in the place of the traceback.

    `filename` is the one of the module under test, as its frames carry it.
    """
    if report.when != "call" and report.passed:
        return
    if report.skipped and report.when == "setup":
        return  # a mark of the course's own says that this machine can't run it
    state, message, reason = "passed" if report.passed else "failed", "", ""
    if call.excinfo is not None and not report.passed:
        error = call.excinfo.value
        if isinstance(error, Problem):
            state = "unusable" if isinstance(error, Unusable | MissingName) else "failed"
            message = str(error)
        elif place := _stub_line(call.excinfo, filename):
            state = "not started"
            message = f"not started yet: {chapter.show(chapter.student)}, line {place}: {error}"
        elif report.skipped:
            message = f"the code under test ended its own test: {type(error).__name__}"
        reason = message or call.excinfo.exconly(tryshort=True)[:MAX_REASON].strip()
    if message:
        report.outcome = "failed"
        report.when = "call"  # so that a failed import of the student's file is no error of the course's
        report.longrepr = message
    report.grading = new_grading(item, chapter, state, reason)  # type: ignore[attr-defined]


def _stub_line(excinfo: pytest.ExceptionInfo[BaseException], filename: str) -> int | None:
    """The line in the student's file where a stub said so, None for any other error."""
    last = excinfo.traceback[-1]
    if not isinstance(excinfo.value, NotImplementedError) or str(last.path) != filename:
        return None
    line = last.lineno + 1
    return line if "raise NotImplementedError" in linecache.getline(filename, line) else None


def grading_of(report: Any) -> dict[str, Any] | None:
    return getattr(report, "grading", None)
