"""`minillm plan`: text for a stranger, JSON for a program, one line for a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minillm.cli import main

MIXTRAL = {
    "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
    "num_experts_per_tok": 2, "sliding_window": None,
}  # fmt: skip


@pytest.fixture
def mixtral(tmp_path: Path) -> Path:
    folder = tmp_path / "Mixtral-8x7B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MIXTRAL), encoding="utf-8")
    return folder


def test_the_example_of_the_issue(mixtral: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--gpu", "H100", "--batch", "32", "--prompt", "4096", "--output", "512", "--bits", "4", "--tp", "2"]
    for model in (mixtral, mixtral / "config.json"):
        assert main(["plan", str(model), *options]) == 0
        text = capsys.readouterr().out
        assert text.startswith("Mixtral-8x7B: 46.70 B parameters, 12.88 B of them for each token\non 2 × H100 SXM 80GB")
        assert "weights 4 bits" in text and "It fits" in text and "all-reduces" in text
        assert max(map(len, text.splitlines())) <= 100


def test_what_does_not_fit_is_no_error(mixtral: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(mixtral), "--gpu", "a100"]) == 0
    assert "IT DOES NOT FIT. It would with --bits 8, or --tp 2." in capsys.readouterr().out


def test_bundled_model_json_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "roof.png"
    assert main(["plan", "stories-5m", "--gpu", "4090", "--batch", "8", "--json", "--plot", str(picture)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["parameters"] == 4_951_296 and document["hardware"] == "RTX 4090 24GB" and document["fits"]
    assert document["batch_size"] == 8 and document["prompt_len"] == 512 and document["output_len"] == 128
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_every_option_arrives(capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--bits", "8", "--group-size", "64", "--kv-bits", "4", "--activation-bits", "8", "--mfu", "0.5", "--mbu", "0.4",
        "--all-reduce-us", "7", "--memory-share", "0.8", "--prefill-chunk", "100", "--tp", "2",
    ]  # fmt: skip
    assert main(["plan", "stories-5m", "--gpu", "h200", "--json", *options]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["precision"] == {
        "bits": 8, "group_size": 64, "scale_bits": 16, "activation_bits": 8, "kv_bits": 4,
    }  # fmt: skip
    assert document["assumptions"] == {
        "mfu": 0.5, "mbu": 0.4, "all_reduce_s": pytest.approx(7e-6), "memory_share": 0.8, "prefill_chunk": 100,
    }  # fmt: skip
    assert document["number_format"] == "fp8" and document["tp_size"] == 2


def test_this_machine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from minillm.perf import hardware

    measured = hardware.Hardware(
        "a CPU", hardware.Peaks(fp32=5e11, bf16=5e11), bytes_per_s=5e10, memory_bytes=2**33, num_sms=2
    )
    monkeypatch.setattr(hardware, "this_machine", lambda: measured)
    assert main(["plan", "llama-70m", "--gpu", "this", "--bits", "32"]) == 0
    text = capsys.readouterr().out
    assert "on 1 × a CPU: 0.5 TFLOP/s (fp32), 50 GB/s, 8 GiB" in text and "KV cache 32 bits" in text
    assert main(["plan", "llama-70m", "--gpu", "this", "--tp", "2"]) == 2
    assert "no link" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "mentions"),
    [
        (["stories-5m"], ["--gpu"]),
        (["stories-5m", "--gpu", "abacus"], ["abacus", "H100 SXM 80GB"]),
        (["no-such-model", "--gpu", "h100"], ["no-such-model", "stories-5m"]),
        (["stories-5m", "--gpu", "h100", "--batch", "0"], ["batch_size must be"]),
        (["stories-5m", "--gpu", "h100", "--bits", "5"], ["bits must be"]),
        (["stories-5m", "--gpu", "h100", "--tp", "3"], ["3 ranks"]),
        (["stories-5m", "--gpu", "h100", "--mfu", "2"], ["mfu must be"]),
        (["stories-5m", "--gpu", "a10", "--activation-bits", "4"], ["activation_bits must be"]),
        (["stories-5m", "--gpu", "h100", "--plot", "nowhere/at/roof.png"], ["no folder", "roof.png"]),
        (["stories-5m", "--gpu", "h100", "--prompt", "many"], ["many"]),
    ],
)
def test_mistakes(args: list[str], mentions: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["plan", *args])
    except SystemExit as left:  # argparse's own complaints
        status = int(left.code or 0)
    captured = capsys.readouterr()
    assert status == 2 and captured.out == "" and captured.err.count("\n") == 1
    assert all(mention in captured.err for mention in mentions), captured.err


def test_help_has_examples_and_comes_without_torch() -> None:
    code = "import sys; from minillm.cli import main\ntry: main(['plan', '--help'])\nfinally: print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "examples:" in result.stdout and "minillm plan my-model" in result.stdout
    assert "torch" not in result.stdout.split()
