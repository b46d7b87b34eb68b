"""A handout: nothing of the solutions in it, and everything works as in the course itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minillm.grading.course import find_chapters
from tests.course.made_up import ROOT, SOLUTION, grading, make_course, scores_by_test, solved

pytestmark = pytest.mark.timeout(300)
NAME = "ch08_made_up"
SEED = 12345
(STACK,) = [block for block in solved().split("\n\n\n") if block.startswith("class Stack")]


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student's file of the source is no stub: a handout must not depend on it."""
    root = make_course(tmp_path_factory.mktemp("source"), {NAME: "this is no Python"})
    (root / "chapters").mkdir()
    for name in ("08_made_up.ipynb", "09_later.ipynb"):
        (root / "chapters" / name).write_text("{}")
    return root


@pytest.fixture(scope="module")
def handout(course: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("for students") / "the course"
    done = grading(course, "handout", str(directory), "--seed", str(SEED))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fingerprints of 9 mistakes" in done.stdout
    return directory


def test_nothing_of_the_solutions_is_in_it(handout: Path) -> None:
    assert not (handout / "solutions").exists() and not (handout / "exercises" / "mistakes").exists()
    secrets = ("softmax(q @ k.T", "BEGIN SOLUTION", "2 * x\n", "range(stop", "self.items.pop", "x[:] = value")
    for file in (path for path in handout.rglob("*") if path.is_file()):
        if file.name not in ("README.md", "AGENTS.md"):
            text = file.read_text(encoding="utf-8")
            assert not [secret for secret in secrets if secret in text], file
    stub = (handout / "exercises" / f"{NAME}.py").read_text()
    assert 'raise NotImplementedError("Stack.push: your code here")' in stub
    assert (handout / "chapters" / "08_made_up.ipynb").exists()


def test_grades_names_mistakes_resets_and_shows_progress(handout: Path) -> None:
    student = handout / "exercises" / f"{NAME}.py"
    wrong = solved(
        attend="def attend(q, k, v):\n    return torch.softmax(torch.einsum('id,jd->ij', q, k), -1) @ v",
        Stack=STACK.replace("pop()", "pop(0)"),
        double="def double(x):\n    return x * 3",
    )
    student.write_text(wrong)
    done = grading(handout, "grade", "8", "--json")
    assert done.returncode == 1
    tests = scores_by_test(done.stdout)
    assert "looks like: no scale. Scores grow with the width." in tests["ch08 test_attend"]["output"]
    assert "looks like: a queue. Last in, first out." in tests["ch08 test_stack"]["output"]
    assert "looks like in double: tripled" in tests["ch08 test_quadruple"]["output"]
    assert tests["ch08 test_fill"]["status"] == "passed"

    done = grading(handout, "progress", "--read", "ch08")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(" 08  made up")]
    assert line.split()[3:5] == ["yes", "3/8"] and "5 points are open in chapter 08" in done.stdout

    done = grading(handout, "reset", "08")
    assert f"exercises/{NAME}.py is the stub again; yours is kept as exercises/{NAME}.py.bak" in done.stdout
    assert student.with_name(f"{NAME}.py.bak").read_text() == wrong
    student.write_text("something else")
    grading(handout, "reset", "ch08")
    assert student.with_name(f"{NAME}.py.bak").read_text() == wrong, "an older copy is never overwritten"
    assert student.with_name(f"{NAME}.py.bak1").read_text() == "something else"
    assert "untouched" in grading(handout, "reset", NAME).stdout


def test_the_seed_changes_the_random_numbers(handout: Path, course: Path) -> None:
    (ours,), (theirs,) = find_chapters(course), find_chapters(handout)
    assert (ours.seed, theirs.seed) == (0, SEED)
    seeded = json.loads(theirs.fingerprints.read_text())["tests"]
    copy = make_course(handout.parent / "unseeded", {NAME: SOLUTION})
    done = grading(copy, "handout", str(handout.parent / "other"))
    assert done.returncode == 0
    (unseeded,) = find_chapters(handout.parent / "other")
    other = json.loads(unseeded.fingerprints.read_text())["tests"]
    assert other["test_attend"]["reference"] != seeded["test_attend"]["reference"]
    assert other["test_stack"]["reference"] == seeded["test_stack"]["reference"], "nothing is random in it"


def test_a_folder_with_something_in_it_is_refused(course: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    done = grading(course, "handout", str(tmp_path))
    assert done.returncode == 2 and "is not empty" in done.stderr and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    inside = grading(course, "handout", str(course / "exercises" / "new"))
    assert inside.returncode == 2 and "inside the course" in inside.stderr


def test_the_real_machinery_goes_along() -> None:
    assert {"conftest.py", "pytest.ini", "README.md", "AGENTS.md"} <= {p.name for p in (ROOT / "exercises").iterdir()}
