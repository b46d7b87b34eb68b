"""Stubs from solutions, edits that make mistakes, which chapter is meant, points and the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minillm.grading import commands
from minillm.grading.course import Chapter, chapter_of, find_chapters, find_root
from minillm.grading.mistakes import edit, load_mistakes
from minillm.grading.parent import exit_reason, last_line_in, patience
from minillm.grading.problems import CourseError, MissingName, Unusable
from minillm.grading.progress import Progress
from minillm.grading.score import Scores
from minillm.grading.stubs import make_stub
from minillm.grading.table import bar, bar_characters, write_table
from minillm.grading.target import Target, read_target
from minillm.grading.task import Task
from tests.course.made_up import SOLUTION, make_course

NAME = "ch08_made_up"


@pytest.fixture
def course(tmp_path: Path) -> Path:
    return make_course(tmp_path / "a course", {NAME: None, "ch11_more": None})


# ---- stubs


def test_a_stub_keeps_everything_but_the_regions() -> None:
    source = "x = 1\n\nclass A:\n    def f(self):\n        '''Doc.'''\n        # BEGIN SOLUTION\n        y = 2\n\n"
    source += "        return y\n        # END SOLUTION\n\n    z = 3\n"
    expected = "x = 1\n\nclass A:\n    def f(self):\n        '''Doc.'''\n"
    expected += '        raise NotImplementedError("A.f: your code here")\n\n    z = 3\n'
    assert make_stub(source, "s") == expected


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("    # BEGIN SOLUTION\n    pass\n", "without # END"),
        ("    pass\n    # END SOLUTION\n", "without # BEGIN"),
        ("    # BEGIN SOLUTION\n    # BEGIN SOLUTION\n    pass\n    # END SOLUTION\n", "begins inside"),
        ("    #BEGIN SOLUTION\n    pass\n    # END SOLUTION\n", "write exactly"),
        ("    pass\n\n\n# BEGIN SOLUTION\nx = 1\n# END SOLUTION\n", "inside a function"),
    ],
)
def test_wrong_regions_are_refused(body: str, reason: str) -> None:
    with pytest.raises(CourseError, match=reason):
        make_stub(f"def f():\n{body}", "s")


def test_stubs_are_written_and_their_drift_is_found(course: Path, capsys) -> None:
    run = ["--root", str(course), "stubs"]
    assert commands.main([*run, "--check"]) == 1 and "exercises/ch08_made_up.py" in capsys.readouterr().err
    assert commands.main(run) == 0 and commands.main([*run, "--check"]) == 0
    student = course / "exercises" / f"{NAME}.py"
    assert "SOLUTION" not in student.read_text() and student.read_text().count("NotImplementedError") == 8
    student.write_text(student.read_text() + "\n")
    assert commands.main([*run, "--check", "11"]) == 0 and commands.main([*run, "--check"]) == 1


# ---- mistakes


def test_an_edit_is_looked_for_in_its_definition_first() -> None:
    source = 'def f():\n    """return 1"""\n    return 1\n\n\ndef g():\n    return 1\n\n\nLIMIT = 5\n'
    assert edit(source, "f", {"return 1": "return 2"}, "").count("return 2") == 1
    assert edit(source, "f", {"return 1": "return 2"}, "").startswith('def f():\n    """return 1"""\n    return 2')
    assert edit(source, "g", {"return 1": "return 2", "LIMIT = 5": "LIMIT = 6"}, "").endswith(
        "def g():\n    return 2\n\n\nLIMIT = 6\n"
    )


@pytest.mark.parametrize("old", ["nowhere", "x", "return"])
def test_an_edit_that_fits_not_exactly_once_is_refused(old: str) -> None:
    with pytest.raises(CourseError, match="must occur once"):
        edit("def f(x):\n    return x\n\n\ndef g(x):\n    return x\n", "h", {old: "new"}, "m.py, line 1")


def test_an_edit_of_two_places_works_on_the_original_text() -> None:
    assert edit("a = b\n", "f", {"a": "long b", "b": "a"}, "") == "long b = a\n"


def test_mistakes_see_the_names_of_the_solution_and_of_their_own_file(course: Path) -> None:
    (chapter, _) = find_chapters(course)
    chapter.solution.write_text(SOLUTION + "\nFACTOR = 10\n")
    chapter.mistakes.write_text(
        "import math\nfrom minillm.grading import mistake\n\nOWN = 3\n\n"
        "@mistake('double', 'm', hint='h')\ndef double(x):\n    return FACTOR * x * OWN * math.floor(1.5)\n"
    )
    (wrong,) = load_mistakes(chapter)
    module = wrong.target.load("some_name")
    assert module.double(1) == 30 and module.quadruple(1) == 900
    assert (wrong.task, wrong.name, wrong.hint) == ("double", "m", "h")


@pytest.mark.parametrize(
    "text", ["edited('double', 'm', replace={'no such text': ''}, hint='')", "edited('double', 'm')", "x = y"]
)
def test_a_file_of_mistakes_that_is_wrong_says_where(course: Path, text: str) -> None:
    (chapter, _) = find_chapters(course)
    chapter.mistakes.write_text(f"from minillm.grading import edited\n\n{text}\n")
    with pytest.raises(CourseError, match=r"exercises/mistakes/ch08_made_up.py, line 3"):
        load_mistakes(chapter)


# ---- the module under test


def test_a_module_says_what_it_lacks() -> None:
    module = Target("exercises/a.py", "x = 1\n", "<a>").load("a_module")
    assert module.x == 1 and not hasattr(module, "y") and not hasattr(module, "__path__")
    with pytest.raises(MissingName, match="exercises/a.py has no 'y'"):
        _ = module.y


def test_a_file_that_is_no_text_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"x = '\xff'\n")
    with pytest.raises(Unusable, match="no UTF-8 text"):
        read_target(tmp_path / "a.py", "a.py")


def test_a_task_with_one_string_for_several_is_refused() -> None:
    with pytest.raises(TypeError, match="forbids must be a tuple"):
        Task("t", forbids="torch.cat")  # type: ignore[arg-type]


# ---- chapters


@pytest.mark.parametrize("name", ["ch08", "08", "8", "CH08", NAME])
def test_a_chapter_has_several_names(course: Path, name: str) -> None:
    assert [chapter.name for chapter in find_chapters(course, [name])] == [NAME]


def test_unknown_chapters_are_refused_in_one_line(course: Path, capsys) -> None:
    assert commands.main(["--root", str(course), "reset", "9"]) == 2
    assert capsys.readouterr().err == "reset: no exercises for chapter '9'; there are ch08, ch11\n"


def test_the_course_is_found_from_inside(course: Path) -> None:
    assert find_root(course / "exercises" / "mistakes") == course
    assert chapter_of(course / "exercises" / f"test_{NAME}.py") == Chapter(NAME, course / "exercises")
    assert chapter_of(course / "exercises" / "test_other.py") is None


# ---- points


def grading(task: str, test: str, state: str, points: float = 1.0, names: tuple[str, ...] = ()) -> dict:
    found = [{"task": task, "name": name, "hint": "H."} for name in names]
    earned = points if state == "passed" else 0.0
    fields = {"chapter": NAME, "task": task, "hints": ("mild", "strong"), "test": test, "message": "", "names": found}
    return {**fields, "state": state, "max": points, "points": earned}


class Lines(list):
    def line(self, s: str = "", **markup: bool) -> None:
        self.append(s)


def test_the_table_says_what_is_open() -> None:
    scores = Scores()
    scores.add(grading("a", "t1", "passed", 2))
    scores.add(grading("b", "t2", "passed", 0.5))
    scores.add(grading("b", "t3", "failed", 2, ("m1", "m2")))
    scores.add(grading("b", "t4", "failed", 2, ("m2",)))
    scores.add(grading("c", "t5", "not started", 3))
    lines = Lines()
    write_table(lines, scores, 2, bar_characters("ascii"))
    assert [line.split() for line in lines if line.startswith((" a ", " c ", " total"))] == [
        ["a", "2/2", "############", "full"],
        ["c", "0/3", "------------", "not", "started"],
        ["total", "2.5/9.5", "###---------"],
    ]
    assert " b                           0.5/4.5  #-----------  1 of 3 tests pass" in lines
    assert "    looks like: m2. H." in lines and not [line for line in lines if "m1" in line]
    assert lines.count("    hint: mild") == 2 and lines.count("    hint: strong") == 2


def test_of_several_reports_of_a_test_the_worse_counts() -> None:
    scores = Scores()
    scores.add(grading("a", "t", "passed"))
    scores.add(grading("a", "t", "failed"))
    assert (scores.points, scores.max_points) == (0, 1)


def test_bars_are_full_only_for_full_points() -> None:
    assert bar(0.01, 1, ("#", "-")).count("#") == 1 and bar(0.999, 1, ("#", "-")).count("#") == 11
    assert bar_characters("utf-8") == ("█", "░") and bar_characters(None) == ("#", "-")


def test_progress_survives_and_a_broken_file_is_no_catastrophe(course: Path, capsys) -> None:
    progress = Progress(course)
    progress.note_read(["8"], True)
    scores = Scores()
    scores.add(grading("a", "t", "passed", 2))
    progress.note_grades(find_chapters(course), json.dumps(scores.as_gradescope()))
    again = Progress(course)
    assert again.read == {"08"} and again.grades == {NAME: [2, 2]}
    assert commands.main(["--root", str(course), "progress"]) == 0
    assert "Next: the exercises of chapter 11, more" in capsys.readouterr().out
    again.file.write_text("{broken")
    assert Progress(course).grades == {}


# ---- patience


def test_a_busy_machine_gets_more_time_and_an_endless_loop_doesnt() -> None:
    assert patience(10, 5, None) == 10
    assert patience(10, 10, 9.5) == 10
    assert patience(10, 10, 1.0) == 40


def test_the_line_of_a_hang_is_the_latest_innermost_one() -> None:
    dump = 'Timeout (0:00:01)!\n  File "/a b/ch08_x.py", line 3 in early\n'
    dump += 'Timeout (0:00:02)!\n  File "/a b/other.py", line 9 in sleep\n  File "/a b/ch08_x.py", line 7 in late\n'
    dump += '  File "/a b/ch08_x.py", line 1 in outer\n'
    assert last_line_in(dump, Path("/a b/ch08_x.py")) == "line 7 in late"
    assert last_line_in("nothing", Path("ch08_x.py")) == ""
    assert (exit_reason(-11), exit_reason(3), exit_reason(0xC0000005)) == (
        "killed by signal 11",
        "exit status 3",
        "exit status 0xc0000005",
    )
