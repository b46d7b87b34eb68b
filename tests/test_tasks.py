"""tasks.py without its network: what is stamped, how arguments are read, what the user is told."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tasks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minillm_tasks", ROOT / "tasks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A directory with tasks.py and the two files that its stamps depend on."""
    for name in ("tasks.py", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


def run_tasks(*args: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(root / "tasks.py"), *args], capture_output=True, text=True, timeout=60)


def stamp(tasks: ModuleType, venv: Path, names: tuple[str, ...], text: str) -> None:
    folder = venv / tasks.STAMPS
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(text)


def fake_python(tasks: ModuleType, venv: Path) -> None:
    python = tasks.venv_python(venv)
    python.parent.mkdir(parents=True)
    python.touch()


# ---- stamps


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_hash_changes_with_each_file(tasks: ModuleType, checkout: Path, name: str) -> None:
    before = tasks.environment_hash(checkout)
    assert tasks.environment_hash(checkout) == before
    with open(checkout / name, "a") as file:
        file.write("\n# changed\n")
    assert tasks.environment_hash(checkout) != before


def test_hash_changes_when_the_checkout_is_copied_elsewhere(tasks: ModuleType, checkout: Path) -> None:
    """An editable install points to a place: a copied .venv would import the package of the original."""
    copy = checkout / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        (copy / name).write_bytes((checkout / name).read_bytes())
    assert tasks.environment_hash(copy) != tasks.environment_hash(checkout)


def test_ready_only_with_python_and_every_stamp(tasks: ModuleType, tmp_path: Path) -> None:
    assert not tasks.is_ready(("fast",), "h1", tmp_path)
    stamp(tasks, tmp_path, ("core", "fast"), "h1")
    assert not tasks.is_ready(("fast",), "h1", tmp_path), "there is no Python in it"
    fake_python(tasks, tmp_path)
    assert tasks.is_ready(("fast",), "h1", tmp_path)
    assert not tasks.is_ready(("fast", "test"), "h1", tmp_path)
    assert tasks.missing_stamps(("fast", "test"), "h1", tmp_path) == ["test"]
    assert tasks.missing_stamps(("fast",), "h2", tmp_path) == ["core", "fast"]


def test_an_installation_that_was_cut_off_is_not_ready(tasks: ModuleType, tmp_path: Path) -> None:
    fake_python(tasks, tmp_path)
    stamp(tasks, tmp_path, ("core", "installing"), "h")
    assert not tasks.is_ready((), "h", tmp_path)


@pytest.mark.parametrize("cut_off", [True, False])
def test_stamps_are_written_last(tasks: ModuleType, tmp_path: Path, monkeypatch, cut_off: bool) -> None:
    """Ctrl-C leaves the mark that makes the next run start anew; a failing pip leaves what there was."""
    venv = tmp_path / ".venv"
    monkeypatch.setattr(tasks, "VENV", venv)
    monkeypatch.setattr(tasks, "venv_python", lambda venv: venv / "python")
    venv.mkdir()
    (venv / "python").touch()
    (venv / "old").touch()

    def fail(command: list[str], failure: str) -> None:
        raise KeyboardInterrupt if cut_off else tasks.TaskError(failure)

    monkeypatch.setattr(tasks, "run_quietly", fail)
    with pytest.raises(KeyboardInterrupt if cut_off else tasks.TaskError):
        tasks.prepare(("fast",), False)
    assert not (venv / tasks.STAMPS / "core").exists()
    assert (venv / tasks.STAMPS / "installing").exists() == cut_off

    commands: list[list[str]] = []

    def succeed(command: list[str], failure: str) -> None:
        commands.append(command)
        assert (venv / tasks.STAMPS / "installing").exists()
        (venv / "python").touch()

    monkeypatch.setattr(tasks, "run_quietly", succeed)
    tasks.prepare(("fast",), True)
    assert (venv / "old").exists() == (not cut_off), "only an unfinished environment is rebuilt"
    assert len(commands) == (2 if cut_off else 1)
    assert commands[-1][-1] == ".[fast]" and tasks.CPU_WHEELS in commands[-1]
    commands.clear()
    tasks.prepare(("fast",), False)
    assert commands == [], "a second run installs nothing"


# ---- arguments


@pytest.mark.parametrize(
    ("argv", "job", "args", "cpu", "system"),
    [
        (["test", "-k", "sampling", "-x"], "test", ["-k", "sampling", "-x"], False, False),
        (["--cpu", "demo", "--help"], "demo", ["--help"], True, False),
        (["demo", "--cpu"], "demo", [], True, False),
        (["test", "--system", "-q"], "test", ["-q"], False, True),
        ([], None, [], False, False),
    ],
)
def test_arguments(tasks: ModuleType, argv, job, args, cpu, system) -> None:
    options = tasks.parse(argv)
    assert (options.job, options.args, options.cpu, options.system) == (job, args, cpu, system)


def test_every_job_names_extras_that_exist(tasks: ModuleType) -> None:
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, job in tasks.JOBS.items():
        assert set(job.extras) <= set(declared), name


@pytest.mark.parametrize("args", [[], ["-k", "x"]])
def test_a_selection_of_tests_runs_in_one_process(tasks: ModuleType, monkeypatch, args: list[str]) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(tasks, "call", lambda command, *_, **__: commands.append(command) or 0)
    monkeypatch.setattr(tasks.os, "cpu_count", lambda: 8)
    tasks.run_test("python", args)
    assert ("-n" in commands[0]) == (not args)
    assert commands[0][4:] == args if args else commands[0][-1] == str(tasks.MAX_TEST_WORKERS)


# ---- what the user sees


def test_help_names_every_job(tasks: ModuleType) -> None:
    result = run_tasks("--help")
    assert result.returncode == 0 and "examples:" in result.stdout
    for name, job in tasks.JOBS.items():
        assert name in result.stdout and job.help in result.stdout


@pytest.mark.parametrize("job", ["grade", "reset", "progress", "handout", "stubs", "prove"])
def test_jobs_of_the_exercises_are_commands_of_the_grading_module(tasks: ModuleType, monkeypatch, job: str) -> None:
    from minillm.grading.commands import make_parser

    commands: list[list[str]] = []
    monkeypatch.setattr(tasks, "call", lambda command, *_, **__: commands.append(command) or 5)
    assert tasks.JOBS[job].run("python", ["8"]) == 5
    assert commands == [["python", "-m", "minillm.grading", "--start", str(Path.cwd()), job, "8"]]
    assert make_parser().parse_args([job, *([] if job == "progress" else ["8"])]).command == job


def test_verify_goes_on_after_a_failure_and_reports_it(tasks: ModuleType, monkeypatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(tasks, "call", lambda command, *_, **__: commands.append(command) or (len(commands) == 1))
    assert tasks.JOBS["verify"].run("python", []) == 1
    stubs, notebooks, book = commands
    assert stubs[1:] == ["-m", "minillm.grading", "stubs", "--check"]
    assert notebooks[1:] == [str(ROOT / "book" / "tools" / "notebooks.py"), "--check"]
    assert "sphinx" in book and "-W" in book


def test_notebooks_passes_its_arguments_on(tasks: ModuleType, monkeypatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(tasks, "call", lambda command, *_, **__: commands.append(command) or 0)
    tasks.JOBS["notebooks"].run("python", ["08", "--measure"])
    assert commands == [["python", str(ROOT / "book" / "tools" / "notebooks.py"), "08", "--measure"]]


@pytest.mark.parametrize(
    "args", [["fly"], ["--fly", "demo"], ["book"], ["learn"], ["notebooks"], ["grade"], ["verify"], ["handout", "x"]]
)
def test_one_line_and_status_2(checkout: Path, args: list[str]) -> None:
    """Unknown jobs and options, and jobs whose pages aren't there, end before anything is installed."""
    result = run_tasks(*args, root=checkout)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("tasks.py: ") and result.stderr.count("\n") == 1
    assert not (checkout / ".venv").exists()


def test_old_python_is_told_so(tasks: ModuleType, monkeypatch, capsys) -> None:
    monkeypatch.setattr(tasks.sys, "version_info", (3, 10, 2))
    assert tasks.main(["demo"]) == 2
    assert "Python 3.11 or newer is needed" in capsys.readouterr().err


def test_exit_status_passes_through(tasks: ModuleType) -> None:
    handler = signal.getsignal(signal.SIGINT)
    assert tasks.call([sys.executable, "-c", "raise SystemExit(7)"]) == 7
    assert signal.getsignal(signal.SIGINT) is handler


def test_output_of_a_quiet_command_shows_only_when_it_fails(tasks: ModuleType, capfd) -> None:
    tasks.run_quietly([sys.executable, "-c", "print('noise')"], "bad")
    assert "noise" not in "".join(capfd.readouterr())
    with pytest.raises(tasks.TaskError, match="bad"):
        tasks.run_quietly([sys.executable, "-c", "print('reason'); raise SystemExit(1)"], "bad")
    assert "reason" in capfd.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to a process group")
def test_ctrl_c_ends_with_130_after_the_job_has_closed(checkout: Path) -> None:
    job = "import time\ntry:\n    print('up', flush=True); time.sleep(30)\nexcept KeyboardInterrupt:\n"
    job += "    time.sleep(0.5); print('closed', flush=True); raise SystemExit(3)"
    code = f"import sys, tasks; sys.exit(tasks.call([sys.executable, '-c', {job!r}]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=checkout, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=20)[0] == "closed\n"
    assert process.returncode == 130
