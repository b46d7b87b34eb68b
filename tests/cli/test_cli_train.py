"""`minillm train` in processes of its own: a run, an interrupted run, and bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minillm.cli import main
from tests.cli.conftest import ROOT, Run

SHAPE = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
TEXT = "The fox had a red ball. It lost the ball in the wood, and a bird found it near the old tree. " * 40
SETTINGS = [
    "--steps",
    "12",
    "--batch-size",
    "2",
    "--seq-len",
    "32",
    "--threads",
    "1",
    "--log-every",
    "1",
    "--eval-every",
    "4",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds config.json, text.txt, and `straight`, the folder of a finished run."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "config.json").write_text(json.dumps(SHAPE))
    (folder / "text.txt").write_text(TEXT)
    result = subprocess.run(train_command(folder, "straight"), capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert result.returncode == 0, result.stderr
    return folder


def train_command(folder: Path, name: str, *more: str) -> list[str]:
    source = ["--config", str(folder / "config.json"), "--text", str(folder / "text.txt")]
    return [sys.executable, "-m", "minillm", "train", "--out", str(folder / name), *source, *SETTINGS, *more]


def checkpoint_step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def test_a_run_leaves_a_complete_folder(folder: Path) -> None:
    import minillm

    out = folder / "straight"
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    evaluations = [record["eval_nats_per_token"] for record in records if "eval_nats_per_token" in record]
    assert len(losses) == 12 and losses[-1] < losses[0] and len(evaluations) == 3
    assert {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_s"} == records[0].keys()
    assert records[-1]["tokens"] == 12 * 2 * 32
    stored = json.loads((out / "train.json").read_text())
    assert stored["settings"]["train"]["steps"] == 12 and "--steps" in stored["command"] and stored["versions"]["torch"]

    model = minillm.load_model(out / "model", dtype="auto")
    tokenizer = minillm.load_tokenizer(out / "model")
    assert model.embed_tokens.weight.dtype == torch.bfloat16
    assert model.config.bos_token_id == tokenizer.bos_token_id == tokenizer.encode("the fox")[0] == 0
    assert model.config.eos_token_ids == tokenizer.eos_token_ids == (1,)
    assert "fox" in (out / "model" / "words.txt").read_text().splitlines()
    weights = load_file(out / "checkpoints" / "step-00000012.safetensors")
    assert torch.equal(model.embed_tokens.weight, weights["model.embed_tokens.weight"].bfloat16())
    assert model.lm_head.weight is model.embed_tokens.weight


def test_transformers_opens_the_result(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import minillm

    path = folder / "straight" / "model"
    peer = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    token_ids = minillm.load_tokenizer(path).encode("The bird found a ball")
    assert transformers.AutoTokenizer.from_pretrained(path)("The bird found a ball")["input_ids"] == token_ids
    tokens = torch.tensor([token_ids])
    torch.testing.assert_close(minillm.load_model(path)(tokens), peer(tokens).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_equals_straight(folder: Path, minillm: Run, signum: signal.Signals) -> None:
    """The process is stopped in the middle; a line of its log says when."""
    name = f"stopped-{signum.name}"
    slow = {**os.environ, "PYTHONPATH": str(make_slow_module(folder))}
    process = subprocess.Popen(
        train_command(folder, name),
        cwd=ROOT,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=slow,
    )
    log = folder / name / "log.jsonl"
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline and (not log.exists() or log.read_text().count("\n") < 4):
        time.sleep(0.02)
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=40)
    assert process.returncode == 130, stderr
    assert stderr.count("\n") == 1 and f"--out {folder / name} --resume" in stderr
    (saved,) = (folder / name / "checkpoints").iterdir()
    assert 3 <= checkpoint_step(saved) < 12

    resumed = minillm("train", "--out", str(folder / name), "--resume", "--save-every", "1")
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming at step {checkpoint_step(saved)} of 12" in resumed.stdout
    one, other = (load_file(folder / run / "checkpoints" / "step-00000012.safetensors") for run in ("straight", name))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines() if '"loss"' in line]
    assert steps == list(range(1, 13))


def make_slow_module(folder: Path) -> Path:
    """A folder whose sitecustomize slows the optimiser down, so that a signal reliably arrives between two
    steps.
    """
    path = folder / "slow"
    path.mkdir(exist_ok=True)
    (path / "sitecustomize.py").write_text(
        "import sys, time\n"
        "class Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'minillm.training.loop':\n"
        "            import minillm.training.optim as optim\n"
        "            plain = optim.learning_rate\n"
        "            optim.learning_rate = lambda *a: (time.sleep(0.15), plain(*a))[1]\n"
        "sys.meta_path.insert(0, Slow())\n"
    )
    return path


def test_stories_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = folder / "long.json"
    shape.write_text(json.dumps(SHAPE | {"max_position_embeddings": 1024}))
    settings = ["--steps", "3", "--batch-size", "2", "--seq-len", "64", "--vocab-size", "800"]
    few = ["--eval-stories", "2", "--final-eval-stories", "3", "--eval-every", "2", "--dtype", "fp32"]
    assert main(["train", "--out", str(folder / "stories"), "--config", str(shape), *settings, *few]) == 0
    stdout = capsys.readouterr().out
    assert "3 held-out stories: model" in stdout and "ratio" in stdout
    words = (folder / "stories" / "model" / "words.txt").read_text().splitlines()
    assert words[0] == "# new names are fine" and words[1:] == sorted(words[1:]) and len(words) > 500
    records = [json.loads(line) for line in (folder / "stories" / "log.jsonl").read_text().splitlines()]
    assert all("source_nats_per_token" in record for record in records if "eval_stories" in record)


def test_a_run_can_start_from_a_model(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A step of no size changes nothing: what comes out are the weights and the tokenizer that went in."""
    import minillm

    start, out = folder / "straight" / "model", tmp_path / "more"
    settings = ["--text", str(folder / "text.txt"), "--steps", "1", "--batch-size", "1", "--seq-len", "16"]
    still = ["--lr", "1e-12", "--weight-decay", "0", "--dtype", "fp32"]
    assert main(["train", "--out", str(out), "--init-from", str(start), *settings, *still]) == 0
    before, after = minillm.load_model(start), minillm.load_model(out / "model")
    for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert (out / "model" / "tokenizer.json").read_bytes() == (start / "tokenizer.json").read_bytes()
    assert main(["train", "--out", str(out), "--resume"]) == 0  # the stored settings name the model
    capsys.readouterr()
    assert_refused(capsys, ["--out", str(out), "--resume", "--init-from", "stories-5m"], "--init-from cannot change")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lr", "0.5"], "--lr cannot change from 0.002 to 0.5"),
        (["--steps", "13"], "--steps cannot change from 12 to 13"),
        (["--tokens", "640"], "--steps cannot change from 12 to 10"),
        (["--seed", "1"], "--seed cannot change"),
        (["--text", "other.txt"], "--text cannot change"),
        (["--vocab-size", "400"], "--vocab-size cannot change"),
        (["--preset", "stories-5m"], "--preset cannot change"),
    ],
)
def test_resume_refuses_changes(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert_refused(capsys, ["--out", str(folder / "straight"), "--resume", *options], message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "{full}"], "is not empty; add --resume"),
        (["--out", "{new}", "--resume"], "nothing to resume"),
        (["--out", "{new}", "--text", "missing.txt"], "missing.txt"),
        (["--out", "{new}", "--preset", "huge"], "--preset must be one of"),
        (["--out", "{new}", "--config", "{text}"], "not a config.json"),
        (["--out", "{new}", "--lr", "-1"], "lr must be"),
        (["--out", "{new}", "--tokens", "0"], "--tokens must be at least 1"),
        (["--out", "{new}", "--seq-len", "1024"], "max_seq_len"),
        (["--out", "{new}", "--save-every", "often"], "--save-every must be"),
        (["--out", "{new}", "--device", "abacus"], "device must be"),
        (["--out", "{new}", "--tokenizer", "{text}"], "not a JSON file"),
        (["--out", "{new}", "--init-from", "{full}/model", "--vocab-size", "400"], "brings its own tokenizer"),
        (["--out", "{new}", "--init-from", "nowhere"], "nowhere"),
        (["--out", "{new}", "--init-from", "{full}/model", "--preset", "stories-5m"], "not allowed with"),
        (["--out", "{new}", "--steps", "1", "--tokens", "1"], "not allowed with"),
    ],
)
def test_bad_input(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    places = {"full": folder / "straight", "new": tmp_path / "new", "text": folder / "text.txt"}
    assert_refused(capsys, [option.format(**places) for option in options], message)
    assert not (tmp_path / "new").exists()


def test_compile_without_a_compiler(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_refused(capsys, ["--out", str(tmp_path / "new"), "--compile"], "needs a C++ compiler")


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", "--help"])
    stdout = capsys.readouterr().out
    assert end.value.code == 0 and "examples:" in stdout and "--resume" in stdout


def assert_refused(capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    """Status 2 and one line on stderr that says `message`."""
    try:
        status: object = main(["train", *options])
    except SystemExit as end:  # argparse
        status = end.code
    stderr = capsys.readouterr().err
    assert status == 2 and message in stderr and stderr.count("\n") == 1, stderr
