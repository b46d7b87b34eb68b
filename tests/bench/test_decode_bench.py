"""The benchmark measures what it says: peer and fast model decode the same tokens; the command writes whole files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minillm.bench.decode import SIZES, fast_copy, load_size, num_tokens, random_model
from minillm.bench.peer import make_peer, peer_generate, peer_loop
from minillm.fast_linears import can_use_fast_linears
from minillm.generation.generate import generate
from minillm.sampling import SamplingParams

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("tie", [True, False])
def test_everyone_decodes_the_same_tokens_from_the_same_memory(tie: bool) -> None:
    model = random_model(replace(SIZES["tiny"], tie_embeddings=tie), torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.dim() > 1 else 1)
    peer, fast = make_peer(model), fast_copy(model)
    addresses = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in peer.parameters()} == addresses
    assert {parameter.data_ptr() for parameter in fast.parameters()} == addresses
    assert isinstance(model.lm_head, torch.nn.Linear)
    assert (type(fast.lm_head) is not type(model.lm_head)) == can_use_fast_linears()

    expected = generate(model, [1], SamplingParams(max_new_tokens=12, temperature=0, ignore_eos=True))
    assert len(set(expected)) > 1
    assert generate(fast, [1], SamplingParams(max_new_tokens=12, temperature=0, ignore_eos=True)) == expected
    assert peer_loop(peer, [1], 12) == expected
    assert peer_loop(peer, [1], 12, batch_size=3) == expected
    assert peer_generate(peer, [1], 12) == expected


def test_sizes() -> None:
    assert num_tokens(20 * 2**20, 64) == 64 and num_tokens(2 * 2**30, 64) == 4 and num_tokens(1, 3) == 3
    model, weights = load_size("tiny", torch.bfloat16)
    assert weights == "random" and {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="size must be one of"):
        load_size("enormous", torch.float32)


def run_command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "minillm", "bench", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )


def test_quick_run_writes_table_json_and_picture(tmp_path: Path) -> None:
    json_file, png_file = tmp_path / "out.json", tmp_path / "out.png"
    result = run_command("decode", "--quick", "--threads", "1", "--json", str(json_file), "--plot", str(png_file))
    assert result.returncode == 0, result.stderr
    assert "tiny, float32, random weights" in result.stdout and "in cache" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert "Traceback" not in result.stderr
    document = json.loads(json_file.read_text(encoding="utf-8"))
    assert document["settings"]["threads"] == 1 and document["machine"]["torch_threads"] == 1
    (measured,) = document["results"]
    assert {"core", "peer loop", "peer generate"} <= measured["decode"]["seconds"].keys()
    assert measured["in_cache"] and measured["row_counts"] == [1, 2]
    assert png_file.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.png"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--sizes", "enormous"], "size must be one of"),
        (["--sizes", ","], "expected names"),
        (["--rounds", "0"], "rounds must be at least 1"),
        (["--dtypes", "fp16"], "fp32 or bf16"),
        (["--threads", "0"], "threads must be at least 1"),
        (["--json", "nowhere/at/all.json"], "no folder"),
    ],
)
def test_bad_options(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from minillm.cli import main

    assert main(["bench", "decode", "--quick", *args]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_an_interrupted_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minillm.bench import decode
    from minillm.cli import main

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(decode, "measure", interrupted)
    file = tmp_path / "out.json"
    assert main(["bench", "decode", "--quick", "--json", str(file)]) == 130
    assert list(tmp_path.iterdir()) == []


def test_a_failing_writer_leaves_the_old_file(tmp_path: Path) -> None:
    from minillm.bench.report import write_json

    file = tmp_path / "out.json"
    write_json({"a": 1}, file)
    with pytest.raises(TypeError):
        write_json({"a": object()}, file)
    assert json.loads(file.read_text(encoding="utf-8")) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
