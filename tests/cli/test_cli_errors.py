"""Bad input ends with one clear line on stderr and status 2, Ctrl-C with 130, and help comes at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import minillm as package
from minillm.cli import main, one_line

ROOT = Path(__file__).resolve().parents[2]
STORY = "Once upon a time"


def assert_one_line(stderr: str, *mentions: str) -> None:
    assert stderr.count("\n") == 1 and stderr.endswith("\n"), stderr
    assert stderr.startswith("minillm") and "error: " in stderr and "Traceback" not in stderr
    for text in mentions:
        assert text in stderr


@pytest.mark.parametrize(
    ("args", "mentions"),
    [
        ([], ["COMMAND"]),
        (["fly"], ["fly", "generate"]),
        (["generate"], ["prompt", "--help"]),
        (["generate", STORY, "--fast"], ["--fast", "--help"]),
        (["generate", STORY, "--top-k", "many"], ["--top-k", "many"]),
        (["generate", STORY, "--model", "no/such/folder"], ["no/such/folder"]),
        (["generate", ""], ["prompt is empty"]),
        (["generate", "-"], ["prompt is empty"]),
    ],
)
def test_mistakes_seen_before_anything_is_loaded(minillm, args: list[str], mentions: list[str]) -> None:
    result = minillm(*args, stdin=subprocess.DEVNULL)
    assert result.returncode == 2 and result.stdout == ""
    assert_one_line(result.stderr, *mentions)


def test_prompt_longer_than_the_context(minillm, model_folder: Path) -> None:
    result = minillm("generate", "fox " * 200, "--model", str(model_folder))
    assert result.returncode == 2 and result.stdout == ""
    assert_one_line(result.stderr, "prompt", "64")


BAD_VALUES = [
    (["--temperature", "-1"], "temperature must be"),
    (["--temperature", "nan"], "temperature must be"),
    (["--top-p", "1.5"], "top_p must be"),
    (["--top-k", "0"], "top_k must be"),
    (["--max-new-tokens", "-3"], "max_new_tokens must be"),
    (["--repetition-penalty", "0"], "repetition_penalty must be"),
    (["--seed", "-1"], "seed must be"),
    (["--beams", "0"], "beams must be"),
    (["--beams", "2", "--temperature", "0.5", "--stop", "x"], "--temperature, --stop"),
    (["--threads", "0"], "threads must be"),
    (["--dtype", "int8"], "dtype must be"),
    (["--device", "toaster"], "device must be"),
    (["--device", "cuda:99"], "CUDA devices"),
    (["--stop", ""], "stop must be"),
]


@pytest.mark.parametrize(("options", "message"), BAD_VALUES)
def test_bad_values(model_folder: Path, capsys, options: list[str], message: str) -> None:
    assert main(["generate", STORY, "--model", str(model_folder), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert_one_line(captured.err, message)


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("how", ["missing", "cut short", "not its format"])
def test_damaged_folder(model_folder: Path, tmp_path: Path, capsys, damage: str, how: str) -> None:
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    contents = (tmp_path / damage).read_bytes()
    if how == "missing":
        (tmp_path / damage).unlink()
    else:
        (tmp_path / damage).write_bytes(contents[: len(contents) // 2] if how == "cut short" else b"[1, 2]\n")
    assert main(["generate", STORY, "--model", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert_one_line(captured.err, damage.split(".")[0])


def test_debug_shows_the_traceback(minillm) -> None:
    for args in (["--debug", "generate", ""], ["generate", "", "--debug"]):
        result = minillm(*args)
        assert result.returncode != 0 and "Traceback" in result.stderr and "ValueError" in result.stderr


def test_a_bug_keeps_its_traceback(monkeypatch) -> None:
    from minillm.cli import generate

    def run(args: object) -> int:
        raise KeyError("a bug")

    monkeypatch.setattr(generate, "run", run)
    with pytest.raises(KeyError):
        main(["generate", STORY])


def test_help_shows_examples(minillm) -> None:
    result = minillm("--help")
    assert result.returncode == 0 and "generate" in result.stdout and "train" in result.stdout
    result = minillm("generate", "--help")
    assert result.returncode == 0 and "examples:" in result.stdout and "--top-p" in result.stdout


@pytest.mark.parametrize("module", ["minillm", "minillm.cli", "minillm.cli.generate"])
def test_importing_does_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; from minillm.cli import make_parser; make_parser(); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0 and "torch" not in result.stdout.split(), result.stderr


def test_version(minillm) -> None:
    assert minillm("--version").stdout == f"minillm {package.__version__}\n"


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to a process")
def test_ctrl_c(model_folder: Path) -> None:
    command = [sys.executable, "-m", "minillm", "generate", "-", "--model", str(model_folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

    def listen_to_ctrl_c() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a suite in the background was started with it ignored

    with subprocess.Popen(command, cwd=ROOT, text=True, preexec_fn=listen_to_ctrl_c, **pipes) as process:
        time.sleep(1)  # it waits for its prompt
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.strip() == "interrupted"


@pytest.mark.skipif(os.name == "nt", reason="closes a POSIX pipe")
def test_reader_that_leaves_early_gets_no_complaint(model_folder: Path) -> None:
    command = [sys.executable, "-m", "minillm", "generate", STORY, "--model", str(model_folder), "--quiet"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_messages_become_one_line() -> None:
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(FileNotFoundError(2, "No such file", "x.txt")) == "No such file: x.txt"
    assert one_line(ValueError()) == "ValueError"
