"""Model folders: what is written, and what is read back."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minillm.config import ModelConfig
from minillm.model import checkpoint
from minillm.model.checkpoint import load_model, resolve_model_path, save_model
from minillm.transform import replace_linears
from tests.helpers import TINY, tiny_model

TOKENS = torch.arange(14).reshape(2, 7)
ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 40_000


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def assert_same_weights(model: nn.Module, other: nn.Module) -> None:
    expected = other.state_dict()
    assert list(model.state_dict()) == list(expected)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / ONE_FILE)
    edit(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / ONE_FILE)


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# Writing, then reading back


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shard_bytes", [5_000_000_000, SHARD_BYTES])
def test_save_and_load_keep_every_bit(family: str, dtype: torch.dtype, shard_bytes: int, tmp_path: Path) -> None:
    model = tiny_model(family).to(dtype)
    save_model(model, tmp_path, shard_bytes=shard_bytes)
    loaded = load_model(tmp_path, dtype="auto")
    assert_same_weights(loaded, model)
    assert loaded.config == model.config
    assert not loaded.training
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in loaded.parameters())
    assert (loaded.lm_head.weight is loaded.embed_tokens.weight) == model.config.tie_embeddings
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float64])
def test_weights_are_converted(stored: torch.dtype, wanted: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model("qwen2").to(stored)
    save_model(model, tmp_path)
    assert_same_weights(load_model(tmp_path, dtype=wanted), model.to(wanted))
    assert next(load_model(tmp_path).parameters()).dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float32", torch.int8, None, "Auto"])
def test_other_dtypes_are_refused(dtype: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="floating-point torch.dtype or 'auto', got "):
        load_model(tmp_path, dtype=dtype)


def test_loaded_weights_are_not_the_file(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path)
    before = contents(tmp_path)
    model = load_model(tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert contents(tmp_path) == before
    save_model(model, tmp_path)
    assert_same_weights(load_model(tmp_path), model)


def test_shards_are_indexed(tmp_path: Path) -> None:
    model = tiny_model()
    save_model(model, tmp_path, shard_bytes=SHARD_BYTES)
    index = json.loads((tmp_path / INDEX).read_text())
    shards = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert shards == [f"model-{idx:05d}-of-{len(shards):05d}.safetensors" for idx in range(1, len(shards) + 1)]
    assert len(shards) >= 3
    names = {name: shard for shard in shards for name in load_file(tmp_path / shard)}
    assert index["weight_map"] == names
    assert index["metadata"]["total_size"] == sum(parameter.nbytes for parameter in model.parameters())
    for shard in shards:
        tensors = load_file(tmp_path / shard)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= SHARD_BYTES


def test_files_are_as_transformers_wants_them(tmp_path: Path) -> None:
    save_model(tiny_model("llama3"), tmp_path)
    with safe_open(tmp_path / ONE_FILE, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert "lm_head.weight" not in file.keys()  # tied
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def test_weights_are_as_readable_as_other_files(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path, shard_bytes=SHARD_BYTES)
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {stat.S_IMODE(ordinary.stat().st_mode)}


def test_an_earlier_save_of_another_layout_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    for seed, shard_bytes in enumerate([10**9, SHARD_BYTES, 2 * SHARD_BYTES, 10**9]):
        model = tiny_model(seed=seed)
        save_model(model, tmp_path, shard_bytes=shard_bytes)
        assert_same_weights(load_model(tmp_path), model)
        index = tmp_path / INDEX
        named = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {ONE_FILE}
        assert {file.name for file in tmp_path.glob("*.safetensors")} == named
    assert (tmp_path / "tokenizer.json").exists()


@pytest.mark.parametrize("interrupted", ["save_file", "json.dumps", "os.replace"])
def test_an_interrupted_save_leaves_the_old_folder(
    interrupted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tiny_model(seed=1), tmp_path)
    before = contents(tmp_path)

    def interrupt(*args: Any, **kwargs: Any) -> None:
        if interrupted == "save_file":
            Path(args[1]).write_bytes(b"half a file")
        raise KeyboardInterrupt

    *module, function = interrupted.split(".")
    with monkeypatch.context() as patch:
        patch.setattr(getattr(checkpoint, module[0]) if module else checkpoint, function, interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_model(tiny_model(seed=2), tmp_path)
    assert contents(tmp_path) == before


def test_a_model_without_a_family_is_not_written(tmp_path: Path) -> None:
    model = tiny_model("llama", qk_norm=True)
    with pytest.raises(ValueError, match="a llama config.json can't express"):
        save_model(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# Wrapped linears


class Halves(nn.Module):
    """y = (half + half) x + bias, with the layer that it replaces inside."""

    def __init__(self, base: nn.Linear, change: float = 0.0) -> None:
        super().__init__()
        self.base = base
        self.change = nn.Parameter(torch.full_like(base.weight, change))
        self.in_features, self.out_features = base.in_features, base.out_features
        self.bias = base.bias

    def dense_weight(self) -> Tensor:
        return self.base.weight + self.change

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dense_weight(), self.bias)


@torch.no_grad()
@pytest.mark.parametrize("family", TINY)
def test_wrapped_linears_are_stored_plain(family: str, tmp_path: Path) -> None:
    model = replace_linears(tiny_model(family), lambda name, base: Halves(base, 0.1), match="blocks.*")
    replace_linears(model, lambda name, base: Halves(base), match="lm_head")
    save_model(model, tmp_path)
    torch.testing.assert_close(load_model(tmp_path)(TOKENS), model(TOKENS), atol=1e-5, rtol=0)


def test_a_tied_head_that_has_changed_is_not_stored(tmp_path: Path) -> None:
    model = replace_linears(tiny_model("llama3"), lambda name, base: Halves(base, 0.1), match="lm_head")
    with pytest.raises(ValueError, match="lm_head and embed_tokens hold different weights"):
        save_model(model, tmp_path)
    assert contents(tmp_path) == {}


# Harmless differences


def test_a_tied_head_may_be_stored(tmp_path: Path) -> None:
    model = tiny_model("llama3")
    save_model(model, tmp_path)
    edit_weights(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    assert_same_weights(load_model(tmp_path), model)


def test_stored_rope_frequencies_are_ignored(tmp_path: Path) -> None:
    model = tiny_model()
    save_model(model, tmp_path)
    edit_weights(tmp_path, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}))
    assert_same_weights(load_model(tmp_path), model)


def test_end_tokens_of_the_generation_config_win(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path)
    edit_json(tmp_path / "generation_config.json", eos_token_id=[5, 6])
    assert load_model(tmp_path).config.eos_token_ids == (5, 6)
    (tmp_path / "generation_config.json").unlink()
    assert load_model(tmp_path).config.eos_token_ids == (2,)


def test_config_is_read_without_weights(tmp_path: Path) -> None:
    save_model(tiny_model("qwen3"), tmp_path)
    (tmp_path / ONE_FILE).unlink()
    assert ModelConfig.from_pretrained(tmp_path) == TINY["qwen3"]


def test_an_unknown_name_lists_the_bundled_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights" / "tiny-one").mkdir(parents=True)
    monkeypatch.setattr("minillm.hf_config.WEIGHTS_DIR", tmp_path / "weights")
    with pytest.raises(FileNotFoundError, match="'nowhere'; bundled models: tiny-one"):
        load_model("nowhere")
    assert resolve_model_path("tiny-one") == tmp_path / "weights" / "tiny-one"
    save_model(tiny_model(), resolve_model_path("tiny-one"))
    assert load_model("tiny-one").config == TINY["llama"]
