"""Points by task and chapter, and the JSON file that Gradescope reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class TaskScore:
    """The tests of one task that were run."""

    chapter: str
    task: str
    hints: tuple[str, ...]
    tests: dict[str, dict[str, Any]] = field(default_factory=dict)  # test name -> its grading

    @property
    def points(self) -> float:
        return sum(test["points"] for test in self.tests.values())

    @property
    def max_points(self) -> float:
        return sum(test["max"] for test in self.tests.values())

    @property
    def state(self) -> str:
        """full, not started, or what share of its tests passes."""
        states = [test["state"] for test in self.tests.values()]
        num_passed = states.count("passed")
        if num_passed == len(states):
            return "full"
        if "unusable" in states:
            return "can't be run"
        if num_passed == 0 and "not started" in states:
            return "not started"
        return f"{num_passed} of {len(states)} tests pass"

    @property
    def names(self) -> list[dict[str, str]]:
        """The mistakes that fit every failed test that any mistake fits; of several tests the common ones."""
        found = [test["names"] for test in self.tests.values() if test["names"]]
        common = [name for name in (found[0] if found else []) if all(name in names for names in found)]
        return common or _unique([name for names in found for name in names])


def _unique(names: list[dict[str, str]]) -> list[dict[str, str]]:
    return list({tuple(name.items()): name for name in names}.values())


class Scores:
    """Collects the gradings of a run."""

    def __init__(self) -> None:
        self.tasks: dict[tuple[str, str], TaskScore] = {}

    def add(self, grading: dict[str, Any]) -> None:
        """A test counts once; of several reports the worse one."""
        if not grading["task"]:
            return
        key = (grading["chapter"], grading["task"])
        task = self.tasks.setdefault(key, TaskScore(*key, hints=tuple(grading["hints"])))
        known = task.tests.get(grading["test"])
        if known is None or grading["points"] < known["points"]:
            task.tests[grading["test"]] = grading

    def by_chapter(self) -> Iterator[tuple[str, list[TaskScore]]]:
        for chapter in sorted({task.chapter for task in self.tasks.values()}):
            yield chapter, [task for task in self.tasks.values() if task.chapter == chapter]

    @property
    def points(self) -> float:
        return sum(task.points for task in self.tasks.values())

    @property
    def max_points(self) -> float:
        return sum(task.max_points for task in self.tasks.values())

    def as_gradescope(self) -> dict[str, Any]:
        """Gradescope's results.json (https://gradescope-autograders.readthedocs.io/en/latest/specs/)."""
        tests = []
        for task in self.tasks.values():
            for test in task.tests.values():
                named = [looks_like(name, task.task) for name in test["names"]]
                output = "\n".join([*([test["message"]] if test["message"] else []), *named])
                tests.append(
                    {
                        "name": f"{task.chapter} {task.task}: {test['test']}",
                        "score": round(test["points"], 6),
                        "max_score": round(test["max"], 6),
                        "status": "passed" if test["state"] == "passed" else "failed",
                        "output": output or test["state"],
                        "visibility": "visible",
                    }
                )
        return {"score": round(self.points, 6), "output": f"{number(self.points)} points", "tests": tests}

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_gradescope(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def looks_like(name: dict[str, str], task: str) -> str:
    """One line for a named mistake; its task is said when it is another one than the task that failed."""
    place = "" if name["task"] == task else f" in {name['task']}"
    return f"looks like{place}: {name['name']}. {name['hint']}"


def number(points: float) -> str:
    """Points as a table prints them: 3, 2.5, 0.33."""
    return f"{round(points, 2):g}"
