"""Proves that a chapter's tests teach: the stub earns nothing, the solution everything, each mistake is named.

Every test is run with every target in one process; nothing depends on the student's file.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from minillm.grading.attempt import new_attempt, run_attempt, test_name
from minillm.grading.course import Chapter
from minillm.grading.mistakes import Mistake, load_mistakes
from minillm.grading.naming import Name, explain
from minillm.grading.outcome import grading_of
from minillm.grading.parent import PACKAGE_ROOT
from minillm.grading.plugin import RUNNER
from minillm.grading.problems import CourseError, Unusable
from minillm.grading.score import Scores
from minillm.grading.stubs import pristine_stub
from minillm.grading.target import Target, read_target

MAIN = "import sys; sys.path.insert(0, sys.argv[1]); from minillm.grading.prove import main; sys.exit(main())"
Run = dict[str, Any]  # one test with one target: its grading, records, seconds


@dataclass
class Proof:
    """All runs of a chapter: `tests[test][target]` with the targets "stub", "solution", "0", "1", … (mistakes)."""

    chapter: Chapter
    mistakes: list[Name]
    tests: dict[str, dict[str, Run]]

    def problems(self) -> list[str]:
        """What isn't as it should be; empty for a good chapter."""
        found = [] if self.tests else ["there are no graded tests"]
        for test, runs in self.tests.items():
            stub, solution = runs["stub"], runs["solution"]
            if stub["grading"]["state"] != "not started":
                found.append(f"stub, {test}: {stub['grading']['state']} and not 'not started' {stub['text']}")
            if solution["grading"]["state"] != "passed":
                found.append(f"solution, {test}: {solution['grading']['state']} {solution['text']}")
        tasks = {runs["stub"]["grading"]["task"] for runs in self.tests.values()}
        found += [f"task {task}: no mistakes" for task in tasks - {name.task for name in self.mistakes}]
        for index, name in enumerate(self.mistakes):
            if name.task not in tasks:
                found.append(f"mistake {name.name!r}: no test grades a task {name.task!r}")
            elif problem := self._problem_of(index):
                found.append(f"mistake {name.name!r} of {name.task}: {problem}")
        return found

    def _problem_of(self, index: int) -> str:
        scores = self.scores(str(index))
        name = self.mistakes[index]
        (task,) = [task for task in scores.tasks.values() if task.task == name.task]
        unusable = [test["message"] for test in task.tests.values() if test["state"] == "unusable"]
        if unusable:
            return unusable[0]
        if task.points > task.max_points - 1e-9:
            return "loses no points"
        named = [other["name"] for other in task.names]
        if named == [name.name]:
            return ""
        return f"is called {', '.join(named)}" if named else "isn't named: its outputs are those of the solution"

    def scores(self, target: str) -> Scores:
        """The points of a target, with the names that its failures would be given."""
        scores = Scores()
        for runs in self.tests.values():
            if target not in runs:
                continue
            grading = dict(runs[target]["grading"])
            if target.isdigit() and grading["state"] != "passed":
                names = self.names(runs, runs[target], grading["task"])
                grading["names"] = [vars(name) for name in names]
            scores.add(grading)
        return scores

    def names(self, runs: dict[str, Run], run: Run, task: str) -> list[Name]:
        own = [
            (name, runs[str(index)]["records"])
            for index, name in enumerate(self.mistakes)
            if name.task == task and str(index) in runs
        ]
        return explain(run["records"], runs["solution"]["records"], own)

    def fingerprints(self) -> dict[str, Any]:
        """What a handout has in the place of mistakes and solution."""
        tests = {}
        for test, runs in self.tests.items():
            reference = runs["solution"]["records"]
            made = {target: run["records"] for target, run in runs.items() if target.isdigit()}
            tests[test] = {"reference": reference, "mistakes": {k: v for k, v in made.items() if v != reference}}
        return {"mistakes": [vars(name) for name in self.mistakes], "tests": tests}

    def summary(self) -> str:
        scores, problems = self.scores("solution"), self.problems()
        counts = f"{scores.max_points:g} points, {len(self.tests)} tests, {len(self.mistakes)} mistakes"
        head = f"{self.chapter.name}: {counts}"
        return "\n  ".join([f"{head}: {len(problems)} problems" if problems else f"{head}: proven", *problems])


def prove_chapter(chapter: Chapter, every: bool = False) -> Proof:
    """Run the proof in a new process. `every`: also the mistakes of other tasks than a test's own."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-P", "-c", MAIN, PACKAGE_ROOT, str(chapter.tests), str(result), str(int(every))]
        process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        if not result.exists():
            output = process.stdout.decode(errors="replace").strip()
            raise CourseError(f"{chapter.name} can't be proven:\n{output}")
        data = json.loads(result.read_text(encoding="utf-8"))
    return Proof(chapter, [Name(**name) for name in data["mistakes"]], data["tests"])


# ---- in the new process


class Prover:
    """Runs each test with every target, in the place of the student's file."""

    def __init__(self, chapter: Chapter, every: bool) -> None:
        self.every = every
        solution = read_target(chapter.solution, chapter.show(chapter.solution))
        stub = Target("the stub", pristine_stub(chapter), f"<stub of {chapter.name}>")
        self.mistakes: list[Mistake] = load_mistakes(chapter)
        self.targets = {"stub": stub, "solution": solution}
        self.targets |= {str(index): mistake.target for index, mistake in enumerate(self.mistakes)}
        self.tests: dict[str, dict[str, Run]] = {}

    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[RUNNER] = self.run

    def run(self, item: pytest.Item, nextitem: pytest.Item | None, chapter: Chapter) -> list[pytest.TestReport]:
        runs: dict[str, Run] = {}
        for name, target in self.targets.items():
            attempt = new_attempt(item, chapter, functools.partial(_same, target))
            task = attempt.graded.task.name if attempt.graded else ""
            if not task or (name.isdigit() and not self.every and self.mistakes[int(name)].task != task):
                continue
            run_attempt(item, nextitem, attempt)
            gradings = [grading for report in attempt.reports if (grading := grading_of(report))]
            if not gradings:
                continue  # skipped on this machine
            worst = min(gradings, key=lambda grading: grading["points"])
            text = "\n".join(str(report.longrepr) for report in attempt.reports if report.failed)
            runs[name] = {"grading": worst, "records": attempt.records, "text": text}
        if runs:
            self.tests[test_name(item)] = runs
        return []


def _same(target: Target) -> Target:
    return target


def main() -> int:
    _, _, tests, result, every = sys.argv
    file = Path(tests)
    chapter = Chapter(file.stem.removeprefix("test_"), file.parent)
    try:
        prover = Prover(chapter, bool(int(every)))
    except (CourseError, Unusable) as error:
        print(error)
        return 2
    arguments = [tests, "--in-process", "-q", "-p", "no:cacheprovider", "-p", "no:timeout"]
    arguments += [f"--config-file={file.parent / 'pytest.ini'}", f"--rootdir={file.parent}"]
    status = int(pytest.main(arguments, plugins=[prover]))
    if status == 0:
        names = [{"task": m.task, "name": m.name, "hint": m.hint} for m in prover.mistakes]
        data = {"mistakes": names, "tests": prover.tests}
        Path(f"{result}.part").write_text(json.dumps(data, default=repr), encoding="utf-8")
        os.replace(f"{result}.part", result)
    return status
