"""Models with other attention through the commands: pooled KV heads, latent attention, mixtures that are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import minillm
from minillm.cli import main
from minillm.model.convert_heads import pool_kv_heads

DEEPSEEK = {
    "model_type": "deepseek_v3", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "q_lora_rank": 12, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "v_head_dim": 6, "first_k_dense_replace": 2, "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}  # fmt: skip


def train(out: Path, text: Path, *options: str) -> Path:
    """Two updates; the folder of the trained model."""
    settings = ["--text", str(text), "--steps", "2", "--batch-size", "1", "--seq-len", "16"]
    assert main(["train", "--out", str(out), *settings, *options]) == 0
    return out / "model"


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("<|endoftext|>".join(["The fox had a red ball and lost it in the wood."] * 40), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def trained_folder(text_file: Path) -> Path:
    """A model with latent attention."""
    file = text_file.with_name("deepseek.json")
    file.write_text(json.dumps(DEEPSEEK))
    return train(text_file.with_name("latent"), text_file, "--config", str(file), "--vocab-size", "300")


def test_a_pooled_model_is_trained_on(text_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(DEEPSEEK | {"model_type": "llama", "num_key_value_heads": 4}))
    start = train(tmp_path / "mha", text_file, "--config", str(file), "--vocab-size", "300")
    pooled = tmp_path / "pooled"
    minillm.save_model(pool_kv_heads(minillm.load_model(start), 1), pooled)
    shutil.copy(start / "tokenizer.json", pooled)
    result = train(tmp_path / "mqa", text_file, "--init-from", str(pooled))
    before, after = minillm.load_model(pooled), minillm.load_model(result)
    assert after.layer_specs[0].num_kv_heads == 1
    assert not torch.equal(after.blocks[0].attention.wk.weight, before.blocks[0].attention.wk.weight)


def test_latent_attention_trains_and_generates(trained_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = minillm.load_model(trained_folder)
    assert [(spec.k_head_dim, spec.v_from_k) for spec in model.layer_specs] == [(16 + 4, True)] * 2
    capsys.readouterr()
    options = ["--model", str(trained_folder), "--max-new-tokens", "5", "--temperature", "0"]
    assert main(["generate", "The fox", *options]) == 0
    assert capsys.readouterr().out.startswith("The fox")


def test_a_mixture_is_refused_in_one_line(
    trained_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(trained_folder, tmp_path / "mixture")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"first_k_dense_replace": 1}))
    capsys.readouterr()
    assert main(["generate", "The fox", "--model", str(folder)]) == 2
    stderr = capsys.readouterr().err
    assert "the layers from 1 on are mixtures of experts" in stderr and stderr.count("\n") == 1
