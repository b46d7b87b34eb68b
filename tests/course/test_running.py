"""Everything that can go wrong with a student's file, in one run from another directory, under a path with spaces."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.course.made_up import ROOT, make_course, scores_by_test, solved

pytestmark = pytest.mark.timeout(300)

TROUBLED = solved(
    double="def double(x):\n    return x * 3",
    attend="def attend(q, k, v):\n    while True:\n        q = q + 1",
    count_up="def count_up(stop):\n    import os\n    yield 0\n    os._exit(7)",
    mean="def mean(x):\n    return x.sum() / len(x)",
    Stack="class Stack:\n    pass",
    fill='def fill(x, value):\n    raise NotImplementedError("fill: your code here")',
)
STUDENTS = {
    "ch08_made_up": TROUBLED,
    "ch01_syntax": "def double(x):\n    return (2 * x\n",
    "ch02_import": "import torch\n\nimport no_such_module\n",
    "ch03_cheats": solved(
        attend="def attend(q, k, v):\n"
        "    from torch.nn.functional import scaled_dot_product_attention as sdpa\n    return sdpa(q, k, v)",
        double="def renamed(x):\n    return 2 * x",
        count_up="def count_up(stop):\n    import pytest\n    pytest.skip('not today')\n    yield",
        fill="def fill(x, value):\n    import sys\n    sys.exit(0)",
    ),
    "ch04_large": solved(attend="def attend(q, k, v):\n    return torch.softmax(torch.ones(4, 1).expand(4, 99), -1)"),
    "ch05_missing": None,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """pytest, as a student would start it in another folder."""
    root = make_course(tmp_path_factory.mktemp("a course"), STUDENTS)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv.pop(1)); import pytest; pytest.main()"]
    command += [str(ROOT), str(root / "exercises"), "--hints=1", "--score-json=out/scores.json"]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, encoding="utf-8", timeout=280)
    scores = elsewhere / "out" / "scores.json"
    assert scores.exists(), done.stdout + done.stderr
    return SimpleNamespace(output=done.stdout, tests=scores_by_test(scores), errors=done.stderr)


def failed(run: SimpleNamespace, test: str, *texts: str) -> None:
    entry = run.tests[test]
    assert entry["status"] == "failed" and entry["score"] == 0 and entry["max_score"] > 0
    for text in texts:
        assert text in entry["output"], entry["output"]


def test_a_hang_is_stopped_and_its_line_named(run: SimpleNamespace) -> None:
    place = "in exercises/ch08_made_up.py, line "
    failed(run, "ch08 test_attend", f"stopped after 2 s {place}", " in attend", "endless loop")


def test_a_crash_is_reported_and_costs_only_its_own_test(run: SimpleNamespace) -> None:
    failed(run, "ch08 test_count_up", "ended (exit status 7)")
    failed(run, "ch08 test_mean_of_nothing_is_zero")


def test_mistakes_are_named_with_their_hints(run: SimpleNamespace) -> None:
    failed(run, "ch08 test_double[1]", "looks like: tripled. Two, not three.")
    failed(run, "ch08 test_mean_of_nothing_is_zero", "looks like: empty gives NaN. 0 / 0.")
    assert "this looks like: tripled" in run.output
    assert "looks like: tripled. Two, not three." in run.output.partition("= ch08_made_up =")[2]


def test_a_failure_that_comes_from_another_task_is_named_there(run: SimpleNamespace) -> None:
    failed(run, "ch08 test_quadruple", "looks like in double: tripled")


def test_points_of_a_parametrised_test_are_shared(run: SimpleNamespace) -> None:
    assert run.tests["ch08 test_double[1]"]["max_score"] == 0.5


def test_a_stub_is_not_started_and_no_failure(run: SimpleNamespace) -> None:
    failed(run, "ch08 test_fill", "not started yet: exercises/ch08_made_up.py, line ", "fill: your code here")
    assert "not started yet" not in run.output
    (line,) = [line for line in run.output.partition("= ch08_made_up =")[2].splitlines() if line.startswith(" fill ")]
    assert "0/1" in line and "not started" in line


def test_a_class_without_the_method_fails_plainly(run: SimpleNamespace) -> None:
    failed(run, "ch08 test_stack", "AttributeError")


def test_a_syntax_error_is_one_message_with_its_line(run: SimpleNamespace) -> None:
    for test in ("test_double[1]", "test_stack"):
        failed(run, f"ch01 {test}", "exercises/ch01_syntax.py, line 2: '(' was never closed\n    ", "return (2 * x")
    assert "Traceback" not in run.output and "INTERNALERROR" not in run.output + run.errors


def test_a_failing_import_is_one_message_with_its_line(run: SimpleNamespace) -> None:
    failed(run, "ch02 test_stack", "exercises/ch02_import.py, line 3: the file can't be imported", "no_such_module")


def test_a_missing_file_says_how_to_get_it_back(run: SimpleNamespace) -> None:
    failed(run, "ch05 test_stack", "exercises/ch05_missing.py is missing", "tasks.py reset")


def test_a_missing_function_is_said_to_be_missing(run: SimpleNamespace) -> None:
    failed(run, "ch03 test_double[1]", "exercises/ch03_cheats.py has no 'double'")


def test_the_answer_of_the_library_is_refused_however_it_was_imported(run: SimpleNamespace) -> None:
    failed(run, "ch03 test_attend", "attend may not use torch.nn.functional.scaled_dot_product_attention")


@pytest.mark.parametrize("test", ["test_count_up", "test_fill"])
def test_ending_the_test_from_inside_earns_nothing(run: SimpleNamespace, test: str) -> None:
    failed(run, f"ch03 {test}")


def test_a_large_tensor_is_refused_even_when_it_takes_no_memory(run: SimpleNamespace) -> None:
    failed(run, "ch04 test_attend", "attend made a tensor of 396 elements, shape (4, 99)")


def test_whatever_else_is_right_earns_its_points(run: SimpleNamespace) -> None:
    for chapter, tests in {"ch03": ["stack"], "ch04": ["double[1]", "count_up", "fill", "quadruple"]}.items():
        for test in tests:
            assert run.tests[f"{chapter} test_{test}"]["status"] == "passed"


def test_the_table_fits_80_columns_and_shows_hints_only_where_something_is_open(run: SimpleNamespace) -> None:
    table = run.output.partition("= ch01_syntax =")[2].partition("short test summary")[0]
    assert max(map(len, table.splitlines())) <= 80
    assert "hint: A mild hint." in table and "A strong hint." not in table
    assert "hint" not in table.partition("= ch04_large =")[2].partition(" attend ")[0]


def test_settings_of_the_project_around_the_exercises_dont_reach_the_child(tmp_path) -> None:
    """`--target solutions` makes pytest read the project's settings, whose `timeout` the child doesn't know."""
    pytest.importorskip("pytest_timeout")
    root = make_course(tmp_path, {"ch08_made_up": None})
    settings = '[tool.pytest.ini_options]\naddopts = ["--strict-config", "--import-mode=importlib"]\ntimeout = 60\n'
    (root / "pyproject.toml").write_text(settings)
    command = [sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv.pop(1)); import pytest; pytest.main()"]
    command += [str(ROOT), "exercises/test_ch08_made_up.py", "--target", "solutions"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, encoding="utf-8", timeout=280)
    assert "configfile: pyproject.toml" in done.stdout
    assert " passed in" in done.stdout and "failed" not in done.stdout, done.stdout
