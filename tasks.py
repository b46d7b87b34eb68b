"""Run the project's jobs with nothing but Python: `python3 tasks.py demo`.

The first run makes a virtual environment in `.venv` beside this file and installs what the job needs; later
runs start at once. Standard library only. In three parts: the jobs, the environment, the command line.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMPS = "minillm-stamps"  # in .venv: one file per extra that is in place
MIN_PYTHON = (3, 11)
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
MAX_TEST_WORKERS = 4  # each worker holds its own copy of torch

EXAMPLES = """\
examples:
  python3 tasks.py demo               a story, then a table of ways to decode it
  python3 tasks.py --cpu demo         Linux without an NVIDIA GPU: install PyTorch's CPU build
  python3 tasks.py test               all tests
  python3 tasks.py test -k sampling   arguments after the job belong to the job
  python3 tasks.py grade ch08         your points in chapter 08; --hints 1 if you are stuck
  python3 tasks.py --system test      use the Python that runs this, as it is (Colab, conda)
"""


class TaskError(Exception):
    """Something the user can put right: shown as one line, exit status 2."""


# ---- the jobs


@dataclass(frozen=True)
class Job:
    """One entry of the table of jobs: `run(python, args)` returns the exit status."""

    help: str
    extras: tuple[str, ...]  # extras of pyproject.toml that it needs
    run: Callable[[str, list[str]], int]
    pages: str = ""  # files that it works on; without any, there is nothing to run yet


def run_demo(python: str, args: list[str]) -> int:
    return call([python, "-m", "minillm", "demo", *args])


def run_test(python: str, args: list[str]) -> int:
    """The whole suite runs in parallel; with arguments (a selection) one process starts sooner."""
    workers = min(MAX_TEST_WORKERS, os.cpu_count() or 1)
    if args or workers == 1:
        return call([python, "-m", "pytest", "-q", *args])
    # One torch thread per worker: more would only compete for the same cores.
    return call([python, "-m", "pytest", "-q", "-n", str(workers)], environment={"OMP_NUM_THREADS": "1"})


def run_learn(python: str, args: list[str]) -> int:
    return call([python, "-m", "jupyterlab", *(args or ["chapters"])])


def run_notebooks(python: str, args: list[str]) -> int:
    return call([python, str(ROOT / "book" / "tools" / "notebooks.py"), *args])


def run_book(python: str, args: list[str]) -> int:
    pages = ROOT / "book" / "_build" / "html"
    status = call([python, "-m", "sphinx", "-q", "-W", "-b", "html", "-c", "book", *args, ".", str(pages)])
    if status == 0:
        print(f'The book is in {pages}\nRead it with: python3 -m http.server --directory "{pages}"')
    return status


def grading(command: str) -> Callable[[str, list[str]], int]:
    """A job of the exercises: all of them are commands of one module. Paths are the caller's: `call` changes folder."""
    return lambda python, args: call([python, "-m", "minillm.grading", "--start", str(Path.cwd()), command, *args])


def run_verify(python: str, args: list[str]) -> int:
    """Whatever is generated and committed must be what its sources generate. Goes on after a failure."""
    stubs = call([python, "-m", "minillm.grading", "stubs", "--check"])
    return max(stubs, run_notebooks(python, ["--check", *args]), run_book(python, []))


def run_lint(python: str, args: list[str]) -> int:
    """Run every check even if an earlier one complains; fail if any did."""
    checks = ["ruff", "check", *(args or ["."])], ["mypy"], ["codespell_lib"]
    return max([call([python, "-m", *check]) for check in checks])


JUPYTER = ("fast", "plots", "notebooks")  # the chapters decode with the fast kernels
GRADING = ("fast", "grading")
TESTS = "exercises/test_*.py"
JOBS = {
    "demo": Job("tell a story, then compare ways of decoding it", ("fast",), run_demo),
    "test": Job("run the tests", ("fast", "plots", "test"), run_test),
    "learn": Job("open the chapters in Jupyter", JUPYTER, run_learn, "chapters/*.ipynb"),
    "grade": Job("grade your exercises: all, or grade ch08", GRADING, grading("grade"), TESTS),
    "reset": Job("put a chapter's stub back: reset ch08", GRADING, grading("reset"), TESTS),
    "progress": Job("what is read, solved and open", GRADING, grading("progress"), TESTS),
    "notebooks": Job("execute the chapters", JUPYTER, run_notebooks, "chapters/src/*.py"),
    "book": Job("build the book as web pages", ("book",), run_book, "book/conf.py"),
    "handout": Job("write what students get: handout DIR", GRADING, grading("handout"), "solutions/*.py"),
    "stubs": Job("generate the exercises from the solutions", GRADING, grading("stubs"), "solutions/*.py"),
    "prove": Job("prove that each mistake is caught and named", GRADING, grading("prove"), "solutions/*.py"),
    "verify": Job("check stubs, chapters and book", (*JUPYTER, "grading", "book"), run_verify, "chapters/src/*.py"),
    "lint": Job("check style, types and spelling", ("lint",), run_lint),
}


def call(command: list[str], environment: Mapping[str, str] = {}, output: IO[bytes] | None = None) -> int:
    """Run a command in the repository; return its exit status, or 130 if Ctrl-C ended it.

    Ctrl-C reaches the command too; this process only waits, so that the command can close in its own way.
    """
    interrupted = False

    def note(_signal: int, _frame: object) -> None:
        nonlocal interrupted
        interrupted = True

    previous = signal.signal(signal.SIGINT, note)
    try:
        errors = subprocess.STDOUT if output else None
        variables = {**os.environ, **environment}
        status = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=errors).wait()
    finally:
        signal.signal(signal.SIGINT, previous)
    if interrupted and status != 0:
        return 130
    return status if status >= 0 else 128 - status  # killed by signal n: 128 + n, as shells report it


# ---- the environment


def environment_hash(root: Path = ROOT) -> str:
    """What an installation depends on: the two files, and the place that its editable install points to."""
    digest = hashlib.sha256(str(root).encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update(b"\0" + (root / name).read_bytes())
    return digest.hexdigest()


def missing_stamps(extras: tuple[str, ...], wanted_hash: str, venv: Path) -> list[str]:
    """Those of `core` and the extras that the environment doesn't hold in the wanted state."""
    stamps = {path.name: path.read_text() for path in (venv / STAMPS).glob("*")}
    return [name for name in ("core", *extras) if stamps.get(name) != wanted_hash]


def venv_python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def is_ready(extras: tuple[str, ...], wanted_hash: str, venv: Path) -> bool:
    cut_off = (venv / STAMPS / "installing").exists()
    return venv_python(venv).exists() and not cut_off and not missing_stamps(extras, wanted_hash, venv)


def prepare(extras: tuple[str, ...], cpu: bool) -> str:
    """Make `.venv`, or bring it up to date, and return its Python. Does nothing when the stamps are current.

    Stamps are written last. The file `installing` outlives an installation that was cut off (Ctrl-C, power),
    and makes the next run start from an empty environment.
    """
    wanted_hash = environment_hash()
    python = str(venv_python(VENV))
    if is_ready(extras, wanted_hash, VENV):
        return python

    start = time.monotonic()
    installing = VENV / STAMPS / "installing"
    is_new = installing.exists() or not venv_python(VENV).exists()
    if is_new:
        say("making .venv (once)")
        shutil.rmtree(VENV, ignore_errors=True)
    installing.parent.mkdir(parents=True, exist_ok=True)
    installing.touch()
    if is_new:
        run_quietly([sys.executable, "-m", "venv", str(VENV)], "making .venv failed")

    say(f"installing minillm[{','.join(extras)}] into .venv: a minute or a few when PyTorch is among it")
    if is_new and sys.platform == "linux" and not cpu and shutil.which("nvidia-smi") is None:
        say("no NVIDIA GPU seen: if the download is large, stop it and use `python3 tasks.py --cpu ...`")
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    index = ["--extra-index-url", CPU_WHEELS] if cpu else []
    what = ["-c", "constraints.txt", "-e", f".[{','.join(extras)}]"]
    try:
        run_quietly([*pip, *index, *what], "pip failed, its last lines are above (is there a network?)")
    except TaskError:
        installing.unlink()  # pip ended by itself: what it had installed before still works
        raise

    for name in ("core", *extras):
        (VENV / STAMPS / name).write_text(wanted_hash)
    installing.unlink()
    say(f"ready after {time.monotonic() - start:.0f} s")
    return python


def run_quietly(command: list[str], failure: str) -> None:
    """Run a command; if it fails, show its last lines and raise TaskError. Ctrl-C: KeyboardInterrupt."""
    with tempfile.TemporaryFile() as output:
        status = call(command, output=output)
        if status == 0:
            return
        if status == 130:
            raise KeyboardInterrupt
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
    print(*lines[-25:], sep="\n", file=sys.stderr)
    raise TaskError(failure)


def system_python() -> str:
    """The interpreter that runs this file, as it is."""
    if importlib.util.find_spec("torch") is None:
        raise TaskError(f"--system: the running Python has no torch ({sys.executable}); leave --system out")
    return sys.executable


# ---- the command line


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise TaskError(f"{message}; see python3 tasks.py --help")


def make_parser() -> argparse.ArgumentParser:
    table = "\n".join(f"  {name:10} {job.help}" for name, job in JOBS.items())
    parser = Parser(
        prog="python3 tasks.py",
        usage="python3 tasks.py [--cpu] [--system] JOB [arguments of the job]",
        description=f"Install what a job needs into .venv, then run the job.\n\njobs:\n{table}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--cpu", action="store_true", help="when installing, prefer PyTorch's CPU build")
    parser.add_argument("--system", action="store_true", help="no .venv: use the running Python as it is")
    parser.add_argument("job", metavar="JOB", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("args", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """`cpu`, `system`, `job`, `args`. The two options count on either side of the job's name."""
    options = make_parser().parse_args(argv)
    for name in ("cpu", "system"):
        if f"--{name}" in options.args:
            options.args.remove(f"--{name}")
            setattr(options, name, True)
    if options.job is not None and options.job not in JOBS:
        raise TaskError(f"no job '{options.job}'; there are {', '.join(JOBS)}")
    return options


def say(message: str) -> None:
    print(f"tasks.py: {message}", file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    if sys.version_info < MIN_PYTHON:
        say(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]} ({sys.executable})")
        return 2
    try:
        options = parse(argv)
        if options.job is None:
            make_parser().print_help(sys.stderr)
            return 2
        job = JOBS[options.job]
        if job.pages and not any(ROOT.glob(job.pages)):
            raise TaskError(f"nothing to do for '{options.job}' yet: no file matches {job.pages}")
        python = system_python() if options.system else prepare(job.extras, options.cpu)
        return job.run(python, options.args)
    except TaskError as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        say("interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
