"""A small made-up course, to grade all that can go wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

SOLUTION = '''\
"""Chapter 08: made up."""

import torch


def double(x):
    """Twice x."""
    # BEGIN SOLUTION
    return 2 * x
    # END SOLUTION


def attend(q, k, v):
    """softmax(q k / sqrt(d)) v"""
    # BEGIN SOLUTION
    scores = q @ k.T / k.shape[-1] ** 0.5
    return torch.softmax(scores, -1) @ v
    # END SOLUTION


def count_up(stop):
    # BEGIN SOLUTION
    for number in range(stop):
        yield number
    # END SOLUTION


def mean(x):
    # BEGIN SOLUTION
    return x.sum() / max(len(x), 1)
    # END SOLUTION


class Stack:
    """Last in, first out."""

    def __init__(self):
        self.items = []

    def push(self, item):
        # BEGIN SOLUTION
        self.items.append(item)
        # END SOLUTION

    def pop(self):
        # BEGIN SOLUTION
        return self.items.pop()
        # END SOLUTION


def fill(x, value):
    """Write value everywhere into x."""
    # BEGIN SOLUTION
    x[:] = value
    # END SOLUTION


def quadruple(x):
    # BEGIN SOLUTION
    return double(double(x))
    # END SOLUTION
'''

MISTAKES = """\
import torch
from minillm.grading import edited, mistake

edited("double", "tripled", replace={"2 * x": "3 * x"}, hint="Two, not three.")
edited("attend", "no scale", replace={" / k.shape[-1] ** 0.5": ""}, hint="Scores grow with the width.")


@mistake("attend", "softmax over queries", hint="Which axis do the weights of one query lie on?")
def attend(q, k, v):
    return torch.softmax(q @ k.T / k.shape[-1] ** 0.5, 0) @ v


@mistake("attend", "never ends", hint="Endless.")
def attend(q, k, v):
    raise TypeError


edited("count_up", "counts one too far", replace={"range(stop)": "range(stop + 1)"}, hint="stop itself is left out.")
edited("mean", "empty gives NaN", replace={"max(len(x), 1)": "len(x)"}, hint="0 / 0.")


@mistake("Stack", "a queue", hint="Last in, first out.")
class Stack:
    def __init__(self):
        super().__init__()
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        return self.items.pop(0)


edited("fill", "forgets the first", replace={"x[:]": "x[1:]"}, hint="From 0 on.")
edited("quadruple", "eightfold", replace={"double(double(x))": "double(double(double(x)))"}, hint="Twice is enough.")
"""

TESTS = '''\
"""Chapter 08. Run: python3 tasks.py grade ch08"""

import pytest
import torch

from minillm.grading import Task, graded

DOUBLE = Task("double", hints=("Add x to itself.", "2 * x"))
ATTEND = Task(
    "attend",
    hints=("A mild hint.", "A strong hint."),
    seconds=2,
    forbids=("torch.nn.functional.scaled_dot_product_attention",),
    max_elements=64,
)
COUNT = Task("count_up")
MEAN = Task("mean")
STACK = Task("Stack")
FILL = Task("fill")
QUADRUPLE = Task("quadruple")


@graded(DOUBLE, points=1)
@pytest.mark.parametrize("x", [1, 2])
def test_double(student, x):
    assert student.double(x) == x + x


@graded(ATTEND, points=2)
def test_attend(student, rng):
    q, k, v = torch.randn(3, 4, 8, generator=rng)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(student.attend(q, k, v), expected)


@graded(COUNT, points=1)
def test_count_up(student):
    assert list(student.count_up(3)) == [0, 1, 2]


@graded(MEAN, points=1)
def test_mean_of_nothing_is_zero(student):
    assert student.mean(torch.zeros(0)) == 0


@graded(STACK, points=1)
def test_stack(student):
    stack = student.Stack()
    stack.push(1)
    stack.push(2)
    assert stack.pop() == 2


@graded(FILL, points=1)
def test_fill(student):
    x = torch.zeros(4)
    student.fill(x, 7)
    assert (x == 7).all()


@graded(QUADRUPLE, points=1)
def test_quadruple(student):
    assert student.quadruple(1) == 4
'''


def solved(**changes: str) -> str:
    """The solution's text without its marks; each named definition is replaced by the text given."""
    lines = [line for line in SOLUTION.splitlines() if not line.endswith(" SOLUTION")]
    blocks = "\n".join(lines).split("\n\n\n")
    for name, body in changes.items():
        (index,) = [i for i, block in enumerate(blocks) if block.startswith((f"def {name}(", f"class {name}"))]
        blocks[index] = body
    return "\n\n\n".join(blocks) + "\n"


def make_course(root: Path, students: dict[str, str | None]) -> Path:
    """Write a course; `students` gives the text of the student's file of each chapter (None: no file)."""
    exercises = root / "exercises"
    for folder in (exercises / "mistakes", root / "solutions"):
        folder.mkdir(parents=True)
    for name in ("conftest.py", "pytest.ini", "README.md", "AGENTS.md", ".gitignore"):
        (exercises / name).write_bytes((ROOT / "exercises" / name).read_bytes())
    for name, text in students.items():
        (root / "solutions" / f"{name}.py").write_text(SOLUTION)
        (exercises / "mistakes" / f"{name}.py").write_text(MISTAKES)
        (exercises / f"test_{name}.py").write_text(TESTS)
        if text is not None:
            (exercises / f"{name}.py").write_text(text)
    return root


def grading(root: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """`python -m minillm.grading ARGS` for the course at `root`."""
    command = [sys.executable, "-m", "minillm.grading", "--root", str(root), *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=280)


def scores_by_test(scores: str | Path) -> dict[str, dict[str, Any]]:
    """The entries of a score file by "chNN test"."""
    text = scores.read_text(encoding="utf-8") if isinstance(scores, Path) else scores
    found = {}
    for test in json.loads(text)["tests"]:
        chapter, _, rest = test["name"].partition(" ")
        found[f"{chapter[:4]} {rest.partition(': ')[2]}"] = test
    return found
