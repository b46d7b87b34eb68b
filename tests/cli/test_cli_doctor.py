"""`minillm doctor` and `minillm bench all` as commands: what they print, their exit status, and how they are stopped.

What is missing or broken is planted by a `sitecustomize`, which Python imports at its start, in child processes too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HIDDEN = "import sys\nsys.modules.update(dict.fromkeys({names!r}))\n"  # None there: no module of that name
# The registry as it is imported: one right kernel, and two planted beside it.
PLANTED = """\
import importlib.abc, importlib.machinery, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "minillm.kernels.registry":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            plant(module)
        spec.loader.exec_module = exec_module
        return spec

def plant(registry):
    import dataclasses, time
    right = dataclasses.replace(registry.KERNELS["few_row_matmul"], builds=tuple)
    def wrong(a, b, **options):
        return right.function(a, b, **options) * 1.5
    def asleep(a, b, **options):
        time.sleep(300)
    registry.KERNELS.clear()
    for name, function in (("good", right.function), ("asleep", asleep), ("wrong", wrong)):
        registry.KERNELS[name] = dataclasses.replace(right, name=name, function=function)

sys.meta_path.insert(0, Finder())
"""
needs_kernels = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("triton", "numba")), reason="Triton or numba is not installed"
)


@pytest.fixture
def with_sitecustomize(tmp_path: Path):
    """Environment variables of a Python that runs this text at its start."""

    def environment(text: str) -> dict[str, str]:
        (tmp_path / "sitecustomize.py").write_text(text)
        return {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}

    return environment


def doctor(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "minillm", "doctor", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=110, **options)


@pytest.mark.parametrize(
    ("args", "mention"),
    [
        (["--only", "luck"], "environment, devices"),
        (["--only", ","], "names"),
        (["--quick", "--all"], "--all"),
        (["--timeout", "0"], "timeout must be"),
        (["--timeout", "nan"], "timeout must be"),
        (["--json", "no/such/folder/x.json"], "no folder"),
        (["--threads", "0"], "threads must be"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(args: list[str], mention: str, capsys: pytest.CaptureFixture[str]) -> None:
    from minillm.cli import main

    try:
        status: object = main(["doctor", *args])
    except SystemExit as error:
        status = error.code
    captured = capsys.readouterr()
    assert status == 2 and captured.out == "" and captured.err.count("\n") == 1 and mention in captured.err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    from minillm.cli import make_parser

    with pytest.raises(SystemExit):
        make_parser().parse_args(["doctor", "--help"])
    text = capsys.readouterr().out
    assert "examples:" in text and "minillm doctor --only" in text and "exit status" in text


def test_json_alone_on_stdout_and_the_report_on_stderr() -> None:
    result = doctor("--only", "devices,environment", "--json", "-", "--quick")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert [section["name"] for section in document["sections"]] == ["environment", "devices"]
    assert document["status"] == 0 and document["machine"]["python"] and document["settings"]["quick"]
    assert "1 Environment" in result.stderr and "Verdict" in result.stderr
    assert max(map(len, result.stderr.splitlines())) <= 80


def test_everything_optional_missing(with_sitecustomize, tmp_path: Path) -> None:
    hidden = ("triton", "numba", "matplotlib", "transformers")
    file = tmp_path / "report.json"
    result = doctor("--quick", "--json", str(file), env=with_sitecustomize(HIDDEN.format(names=hidden)))
    assert result.returncode == 0 and result.stderr == "", result.stdout + result.stderr
    text = " ".join(result.stdout.split())
    for name, extra in (("numba", "fast"), ("triton", "kernels"), ("matplotlib", "plots")):
        assert f"{name} missing pip install 'minillm[{extra}]'" in text
    assert "CPU reading" in text and "“Once upon a time, there was" in text and "demo" in text
    assert max(map(len, result.stdout.splitlines())) <= 80
    sections = {section["name"]: section for section in json.loads(file.read_text())["sections"]}
    assert list(sections) == ["environment", "devices", "probes", "cpu", "kernels"]
    assert {check["verdict"] for check in sections["kernels"]["checks"] + sections["cpu"]["checks"]} == {"not checked"}


@needs_kernels
def test_a_broken_kernel_is_named_and_the_others_go_on(with_sitecustomize) -> None:
    result = doctor("--only", "kernels", "--quick", "--timeout", "6", env=with_sitecustomize(PLANTED))
    text = " ".join(result.stdout.split())
    assert result.returncode == 1 and result.stderr == "", result.stdout + result.stderr
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line.startswith("  ") and line.strip()}
    assert " ok" in rows["good"] and "FAILED" in rows["wrong"] and "FAILED" in rows["asleep"]
    assert "FAILED asleep: " in text and "took more than 6 s" in text and "--timeout 600" in text
    assert "FAILED wrong: " in text and "problems wrong, first “" in text and "times the allowed" in text


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to a group of processes")
@needs_kernels
def test_ctrl_c_in_the_middle_of_the_kernels(with_sitecustomize) -> None:
    """The whole group gets it, as in a terminal; nothing is left of it."""
    command = [sys.executable, "-m", "minillm", "doctor", "--only", "devices,kernels", "--timeout", "300"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": with_sitecustomize(PLANTED)}

    def listen_to_ctrl_c() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a suite in the background was started with it ignored

    with subprocess.Popen(
        command, cwd=ROOT, text=True, start_new_session=True, preexec_fn=listen_to_ctrl_c, **pipes
    ) as process:
        assert process.stdout is not None and process.stdout.readline().startswith("1 Devices")
        time.sleep(6)  # children start or are at work
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stderr.strip() == "interrupted"
    for _ in range(50):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("a child process is left")


# ---- minillm bench all


def test_bench_all_lists_its_parts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from minillm.cli import main

    assert main(["bench", "all", "--dry-run", "--out", str(tmp_path / "new")]) == 0
    text = capsys.readouterr().out
    for command in ("minillm doctor", "minillm bench gemm", "minillm bench decode", "minillm bench plan"):
        assert command in text
    assert "in all, on two cores" in text and not (tmp_path / "new").exists()
    assert main(["bench", "all", "--only", "gemm,luck"]) == 2
    assert "got luck" in capsys.readouterr().err


@needs_kernels
def test_bench_all_writes_a_report(minillm, tmp_path: Path) -> None:
    """One real part, then the listing knows that it is done."""
    result = minillm("bench", "all", "--quick", "--only", "gemm", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "flat products" in result.stdout and "report.md" in result.stdout
    text = (tmp_path / "report.md").read_text()
    assert "## Matrix products" in text and "| torch" not in text.split("## Machine")[0] and "| rung |" in text
    assert "minillm bench gemm --quick" in text
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "gemm.png").read_bytes().startswith(b"\x89PNG") and "](gemm.png)" in text
    listing = minillm("bench", "all", "--quick", "--only", "gemm", "--out", str(tmp_path), "--dry-run").stdout
    assert "   done  gemm" in listing
