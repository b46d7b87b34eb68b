"""`minillm bench fusion` runs what it says, refuses wrong logits, and writes whole files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minillm.bench import fusion
from minillm.bench.compare import Comparison
from minillm.bench.fusion import EAGER, FUSED, QUICK, Plan, Result, Runner, measure
from minillm.bench.fusion_report import as_document, table, write_plot
from minillm.fusion.patterns import PATTERNS

ROOT = Path(__file__).resolve().parents[2]


def made_up() -> Result:
    """Eager steps of 1 ms; fused ones of half that, inductor's of twice that."""
    times = {EAGER: [0.004] * 3, FUSED: [0.001, 0.002, 0.004], "inductor": [0.008] * 3}
    return Result(
        size="tiny",
        dtype="float32",
        device="cpu",
        weights="random",
        num_threads=2,
        prefill_len=9,
        context_len=5,
        steps=4,
        calls={EAGER: 304, FUSED: 140},
        differences={FUSED: 1e-7, "inductor": 1e-7},
        compile_s={FUSED: 1.5, "inductor": 30.0},
        skipped={"max-autotune": "no C++ compiler"},
        prefill=Comparison({name: [2 * x for x in seconds] for name, seconds in times.items()}, [], 0),
        decode=Comparison(times, [], 0),
    )


def test_the_table_says_what_was_measured() -> None:
    result = made_up()
    assert result.step_s(EAGER) == pytest.approx(0.001)
    lines = table(result).splitlines()
    assert all(len(line) <= 100 for line in lines)
    (fused,) = [line for line in lines if line.startswith("  fused")]
    assert fused.split() == ["fused", "0.500", "2.00", "(1.50–3.00)", "4.00", "2.00", "(1.50–3.00)", "140", "1.5"]
    assert [line.split()[1:] for line in lines if line.startswith("  eager")] == [["1.000", "8.00", "304"]]
    assert "  max-autotune skipped: no C++ compiler" in lines


def test_figures_survive_json_and_plot(tmp_path: Path) -> None:
    document = json.loads(json.dumps(as_document([made_up()], {"cpu": "none"}, {})))
    (result,) = document["results"]
    assert result["decode_over_eager"]["inductor"]["median"] == 0.5 and result["step_s"][FUSED] == 0.0005
    pytest.importorskip("matplotlib")
    write_plot([made_up()], tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_candidates_do_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def compare(candidates, *, rounds, on_round):
        seen.append(candidates)
        return Comparison({name: [1.0] for name in candidates}, [], 0)

    monkeypatch.setattr(fusion, "compare", compare)
    result = measure("tiny", torch.float32, QUICK)
    assert [set(candidates) for candidates in seen] == [{EAGER, FUSED}] * 2
    assert 0 < result.differences[FUSED] < 1e-5 and result.compile_s[FUSED] > 0
    assert result.calls[FUSED] < 0.6 * result.calls[EAGER]
    for candidates in seen:
        a, b = (candidates[name]() for name in (EAGER, FUSED))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(candidates[EAGER](), a)  # a call leaves nothing behind


def test_a_step_is_behind_the_context() -> None:
    model, _ = fusion.load_size("tiny", torch.float32)
    runner = Runner(model, Plan(context_len=5, prefill_len=9, steps=3))
    runner.decode()
    assert runner.cache.seq_lens == [8]
    prompt = runner.prompt[:5] + [7] * 3
    with torch.inference_mode():
        torch.testing.assert_close(runner.decode(), model(torch.tensor([prompt]))[0, -1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(runner.prefill(), model(torch.tensor([runner.prompt[:9]]))[0, -1])


def test_wrong_logits_and_failing_compilers_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [p for p in PATTERNS if p.name != "swiglu"]
    plan = Plan(rounds=1, prefill_len=4, context_len=3, steps=1, candidates=(EAGER, FUSED, "inductor"))

    def made(name, model):
        if name == FUSED:
            other, _ = fusion.load_size("tiny", torch.float32)
            other.norm.weight.data *= 1.5
            return fusion.fuse(other, wrong)
        return fusion.fuse(model, (), then=lambda graph, inputs: 1 / 0)

    monkeypatch.setattr(fusion, "made", made)
    monkeypatch.setattr(fusion, "obstacle", lambda name, device: None)
    result = measure("tiny", torch.float32, plan)
    assert set(result.decode.seconds) == {EAGER} and "differ" in result.skipped[FUSED]
    assert result.skipped["inductor"] == "ZeroDivisionError: division by zero"


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion.shutil, "which", lambda name: None)
    assert "C++" in (fusion.obstacle("inductor", torch.device("cpu")) or "")
    assert fusion.obstacle(FUSED, torch.device("cpu")) is None
    assert fusion.obstacle("inductor", torch.device("cuda")) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sizes", "giant"], "size must be one of"),
        (["--candidates", "magic"], "candidates must be of"),
        (["--rounds", "0"], "rounds must be at least 1"),
        (["--dtype", "int8"], "dtype"),
        (["--json", "/no/such/folder/x.json"], "no folder"),
    ],
)
def test_bad_options_end_in_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    from minillm.cli import main

    assert main(["bench", "fusion", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", "minillm", "bench", "fusion", "--quick", "--json", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert "tiny, float32" in done.stdout and json.loads(file.read_text())["settings"]["quick"] is True
