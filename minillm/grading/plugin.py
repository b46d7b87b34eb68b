"""The hooks and fixtures that exercises/conftest.py imports.

The process that grades starts a child for each chapter and shows the child's reports as those of its own tests
(`parent`). In the child, and with `--in-process`, a test is run here, and a failure is explained.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
import torch

from minillm.grading.attempt import CURRENT, Attempt, new_attempt, run_attempt, target_source
from minillm.grading.course import Chapter, chapter_of
from minillm.grading.naming import Name, Namer
from minillm.grading.outcome import count_cases, describe, grading_of
from minillm.grading.parent import ChildRun
from minillm.grading.reporter import Reporter
from minillm.grading.target import StudentModule, Target

__all__ = [
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_runtest_makereport",
    "pytest_runtest_protocol",
    "pytest_unconfigure",
    "rng",
    "student",
]

Announce = Callable[[dict[str, Any]], None]
Runner = Callable[[pytest.Item, pytest.Item | None, Chapter], list[pytest.TestReport]]
ANNOUNCE = pytest.StashKey[Announce]()  # set in a child: sends an event to the parent
NAMERS = pytest.StashKey[dict[str, Namer]]()
RUNNER = pytest.StashKey[Runner]()  # set by proofs: runs a test in another way
RUNS = pytest.StashKey[dict[str, ChildRun]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("exercises")
    group.addoption("--target", default="exercises", metavar="WHAT", help="exercises, solutions, or a path to grade")
    group.addoption("--hints", type=int, choices=(1, 2), default=0, help="show mild (1) or also strong (2) hints")
    group.addoption("--score-json", metavar="FILE", help="write the scores in the form that Gradescope reads")
    group.addoption("--in-process", action="store_true", help="no child process: for debugging (--pdb implies it)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[NAMERS] = {}
    config.stash[RUNS] = {}
    config.pluginmanager.register(Reporter(config), "minillm-grading-reporter")


def pytest_unconfigure(config: pytest.Config) -> None:
    for run in config.stash.get(RUNS, {}).values():
        run.close()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    count_cases(config, items)


def is_debugging(config: pytest.Config) -> bool:
    return bool(config.getoption("usepdb", False) or config.getoption("trace", False))


def is_in_process(config: pytest.Config) -> bool:
    return bool(config.getoption("--in-process", False)) or is_debugging(config)


# ---- running


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    chapter = chapter_of(item.path)
    if chapter is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    if is_in_process(item.config):
        reports = item.config.stash.get(RUNNER, _run_here)(item, nextitem, chapter)
    else:
        runs = item.config.stash[RUNS]
        if chapter.name not in runs:
            runs[chapter.name] = ChildRun(item.config, chapter)
        reports = runs[chapter.name].reports(item, nextitem)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _run_here(item: pytest.Item, nextitem: pytest.Item | None, chapter: Chapter) -> list[pytest.TestReport]:
    config = item.config
    announce = config.stash.get(ANNOUNCE, lambda event: None)
    announce({"event": "start", "id": item.nodeid})
    source = target_source(chapter, config.getoption("--target", "exercises"), config.invocation_params.dir)
    attempt = new_attempt(item, chapter, source)
    attempt.when_loaded = lambda: announce({"event": "loaded", "id": item.nodeid})
    run_attempt(item, nextitem, attempt)
    failed = [report for report in attempt.reports if report.failed]
    grading = grading_of(failed[0]) if failed and not is_debugging(config) else None
    if grading and grading["state"] == "failed" and grading["task"]:
        announce({"event": "naming", "id": item.nodeid, "reports": serialized(config, attempt.reports)})
        names = _explain(item, nextitem, chapter, attempt)
        grading["names"] = [vars(name) for name in names]
        for name in names:
            place = "" if name.task == grading["task"] else f" (in {name.task})"
            failed[0].sections.insert(0, (f"this looks like: {name.name}{place}", name.hint))
    announce({"event": "done", "id": item.nodeid, "reports": serialized(config, attempt.reports)})
    return attempt.reports


def serialized(config: pytest.Config, reports: list[pytest.TestReport]) -> list[Any]:
    return [config.hook.pytest_report_to_serializable(config=config, report=report) for report in reports]


def _explain(item: pytest.Item, nextitem: pytest.Item | None, chapter: Chapter, attempt: Attempt) -> list[Name]:
    """Run the same test with the solution and with the mistakes, and compare the records."""

    def run(target: Target) -> list[Any]:
        return run_attempt(item, nextitem, new_attempt(item, chapter, lambda: target)).records

    namers = item.config.stash[NAMERS]
    namer = namers.setdefault(chapter.name, Namer(chapter))
    task = attempt.graded.task.name if attempt.graded else ""
    return namer.explain(attempt.test, task, attempt.records, run)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    chapter = chapter_of(item.path)
    if chapter is not None and CURRENT in item.config.stash:
        describe(report, item, call, chapter, item.config.stash[CURRENT].filename)
    return report


# ---- fixtures


@pytest.fixture
def student(request: pytest.FixtureRequest) -> Iterator[StudentModule]:
    """The module under test: the student's file, the solution, or a mistake."""
    yield from request.config.stash[CURRENT].student()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> torch.Generator:
    """Random numbers that depend on the test's name and on the course's seed only."""
    return torch.Generator().manual_seed(request.config.stash[CURRENT].seed)
