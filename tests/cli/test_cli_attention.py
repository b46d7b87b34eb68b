"""`minillm bench attention` and `decode-attention` as commands: quick runs, bad options, exit statuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from minillm.bench import attention_race
from minillm.bench.attention_check import Absence
from minillm.cli import main

COMMANDS = ("attention", "decode-attention")


def quick(*args: str) -> int:
    """The command in this process, with torch's threads as they were."""
    threads = torch.get_num_threads()
    try:
        return main(["bench", *args, "--quick"])
    finally:
        torch.set_num_threads(threads)


def test_quick_attention(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    files = ["--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")]
    heads = ["--heads", "4", "--kv-heads", "2", "--head-dim", "16", "--window", "20", "--threads", "1"]
    assert quick("attention", "--lengths", "33,64,33", *heads, *files) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^(\d+) tokens", out, re.MULTILINE) == ["33", "64"]
    assert "causal, a window of 20 keys, float32" in out and "4 heads to 2 KV heads of 16" in out
    assert max(map(len, out.splitlines())) <= 110
    document = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert document["settings"]["threads"] == 1 and document["machine"]["torch_threads"] == 1
    assert [result["shape"]["q_len"] for result in document["results"]] == [33, 64]
    assert {"naive", "flash v1", "flash v2", "flash_attention", "torch SDPA"} <= set(document["results"][0]["results"])
    assert all(times for times in document["results"][1]["comparison"]["seconds"].values())
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.png"]


def test_options_of_attention(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--lengths", "40", "--not-causal", "--backward", "--dtype", "bf16", "--batch", "2", "--heads", "3"]
    assert quick("attention", *args, "--json", str(tmp_path / "out.json")) == 0
    out = capsys.readouterr().out
    assert "forward and backward: not causal, bfloat16" in out and "batch 2, 3 heads to 1 KV head of 64" in out
    (result,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["results"]
    assert result["backward"] and result["flops"] == 3 * 2 * 2 * 3 * 40 * 40 * 128


def test_quick_decode_attention(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    files = ["--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")]
    assert quick("decode-attention", "--shapes", "GQA", "--contexts", "70", "--threads", "1", *files) == 0
    out = capsys.readouterr().out
    assert out.count("\nGQA: ") == 2 and "in cache" in out and "splits: flash_decoding" in out
    assert max(map(len, out.splitlines())) <= 105
    document = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [result["shape"]["batch"] for result in document["results"]["GQA"]] == [1, 2]
    assert document["results"]["GQA"][0]["kv_bytes"] == 70 * 2 * 8 * 128 * 4
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["attention", "--lengths", "0"], "whole number of at least 1, got '0'"),
        (["attention", "--lengths", ","], "expected names"),
        (["attention", "--heads", "6", "--kv-heads", "4"], "multiple of KV heads, got 6 and 4"),
        (["attention", "--batch", "0"], "sizes from 1 on"),
        (["attention", "--head-dim", "0"], "sizes from 1 on"),
        (["attention", "--heads", "0"], "sizes from 1 on"),
        (["attention", "--window", "0"], "window=0"),
        (["attention", "--window", "5", "--not-causal"], "needs causal"),
        (["decode-attention", "--shapes", "GQA,LSH"], "got 'LSH'"),
        (["decode-attention", "--contexts", "1k"], "got '1k'"),
        (["decode-attention", "--cache-mib", "0"], "got '0'"),
        (["decode-attention", "--cache-mib", "1", "--contexts", "4096"], "no cache of GQA"),
        *[
            ([command, *args], message)
            for command in COMMANDS
            for args, message in (
                (["--dtype", "fp64"], "dtype must be"),
                (["--dtype", "auto"], "dtype must be fp32, bf16 or fp16, got 'auto'"),
                (["--device", "tpu"], "device must be"),
                (["--device", "cuda:99"], "CUDA devices"),
                (["--rounds", "0"], "rounds must be at least 1"),
                (["--threads", "0"], "threads must be at least 1"),
                (["--json", "nowhere/at/all.json"], "no folder"),
            )
        ],
    ],
)
def test_bad_options(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert quick(*args) == 2
    captured = capsys.readouterr()
    assert message in captured.err and len(captured.err.splitlines()) == 1 and captured.out == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_result_is_named_and_fails_the_command(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = f"minillm.bench.{command.replace('-', '_')}"
    wrong = {"naive": Absence("out is wrong by 3", is_wrong=True)}
    monkeypatch.setattr(f"{module}.check_all", lambda *args, **options: wrong)
    sizes = ["--lengths", "16"] if command == "attention" else ["--contexts", "16", "--batches", "1"]
    assert quick(command, *sizes) == 1
    out = capsys.readouterr().out
    assert "not timed: naive: WRONG, out is wrong by 3" in out and "\n  naive  " not in out


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupted_run_writes_nothing(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(attention_race, "compare", interrupted)
    files = ["--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")]
    assert quick(command, *files) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_without_numba(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Measured all the same, without a compute probe and without the kernel on cores."""
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "numba" else find(name, *rest))
    sizes = ["--lengths", "16"] if command == "attention" else ["--contexts", "16", "--shapes", "GQA"]
    assert quick(command, *sizes) == 0
    out = capsys.readouterr().out
    assert ("no probe without numba" if command == "attention" else "minillm[fast]") in out and "FMA" not in out
