"""Model folders that can't be read: one line that names the file and the tensor, whatever is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from minillm.model.checkpoint import CheckpointError, load_model, save_model
from tests.helpers import TINY, tiny_model

ONE_FILE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
Q_PROJ, UP_PROJ = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"
Q_BIAS = "model.layers.0.self_attn.q_proj.bias"
SHARD = "model-00002-of-"
Fault = tuple[Callable[[Path], object], type[Exception], list[str]]


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / ONE_FILE)
    edit(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / ONE_FILE)


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: edit_weights(folder, lambda tensors: tensors.pop(name))


def put(name: str, tensor: Tensor) -> Callable[[Path], None]:
    return lambda folder: edit_weights(folder, lambda tensors: tensors.update({name: tensor}))


def configure(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / CONFIG, **changes)


def truncate(folder: Path) -> None:
    (folder / ONE_FILE).write_bytes((folder / ONE_FILE).read_bytes()[:-1])


def replace_by_pickle(folder: Path) -> None:
    (folder / ONE_FILE).rename(folder / "pytorch_model.bin")


def move_within_index(folder: Path) -> None:
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    weight_map[Q_PROJ] = min(weight_map.values())
    edit_json(folder / INDEX, weight_map=weight_map)


def name_in_index(folder: Path) -> None:
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    del weight_map["model.norm.weight"]
    edit_json(folder / INDEX, weight_map=weight_map | {Q_PROJ: "elsewhere.safetensors"})


def delete(name: str) -> Callable[[Path], None]:
    return lambda folder: next(folder.glob(name)).unlink()


def write(name: str, contents: str) -> Callable[[Path], object]:
    return lambda folder: next(folder.glob(name)).write_text(contents)


LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
BYTES = torch.ones(48, 48, dtype=torch.int8)
NEW_ROPE = {"rope_type": "longrope"}
FAULTS: dict[str, Fault] = {
    "missing tensor": (drop(Q_PROJ), CheckpointError, [ONE_FILE, Q_PROJ, "missing"]),
    "missing head": (drop("lm_head.weight"), CheckpointError, [ONE_FILE, "lm_head.weight", "missing"]),
    "extra tensor": (put("extra.weight", torch.ones(2)), CheckpointError, [ONE_FILE, "extra.weight"]),
    "extra bias": (put(Q_BIAS, torch.ones(48)), CheckpointError, [ONE_FILE, Q_BIAS]),
    "extra layer": (configure(num_hidden_layers=2), CheckpointError, [ONE_FILE, "layers.2", "more"]),
    "missing layer": (configure(num_hidden_layers=4), CheckpointError, [ONE_FILE, "layers.3", "more"]),
    "shape": (put(Q_PROJ, torch.ones(48, 47)), CheckpointError, [ONE_FILE, Q_PROJ, "(48, 47)", "(48, 48)"]),
    "transposed": (put(UP_PROJ, torch.ones(48, 80)), CheckpointError, [UP_PROJ, "(48, 80)", "(80, 48)"]),
    "integers": (put(Q_PROJ, BYTES), CheckpointError, [ONE_FILE, Q_PROJ, "I8"]),
    "head not tied": (configure(tie_word_embeddings=True), CheckpointError, ["lm_head.weight", "differs"]),
    "architecture": (configure(model_type="gemma"), CheckpointError, [CONFIG, "'gemma'", "qwen3"]),
    "activation": (configure(hidden_act="gelu"), CheckpointError, [CONFIG, "'gelu'"]),
    "rope": (configure(rope_parameters=NEW_ROPE), CheckpointError, [CONFIG, "'longrope'", "yarn"]),
    "contradiction": (configure(num_key_value_heads=3), CheckpointError, [CONFIG, "multiple", "4 and 3"]),
    "config without a size": (
        write(CONFIG, '{"model_type": "llama"}'),
        CheckpointError,
        [CONFIG, "missing key"],
    ),
    "no config": (delete(CONFIG), FileNotFoundError, [CONFIG, "no such file"]),
    "config is no JSON": (write(CONFIG, "{"), CheckpointError, [CONFIG, "JSON"]),
    "config is a list": (write(CONFIG, "[]"), CheckpointError, [CONFIG, "list"]),
    "no weights": (delete(ONE_FILE), FileNotFoundError, [ONE_FILE, INDEX]),
    "pickle": (
        replace_by_pickle,
        CheckpointError,
        ["pytorch_model.bin", "pickle", "convert it to safetensors"],
    ),
    "truncated": (truncate, CheckpointError, [ONE_FILE, "truncated"]),
    "empty": (write(ONE_FILE, ""), CheckpointError, [ONE_FILE, "truncated"]),
    "git-lfs pointer": (write(ONE_FILE, LFS_POINTER), CheckpointError, [ONE_FILE, "not a safetensors file"]),
}
SHARD_FAULTS: dict[str, Fault] = {
    "missing shard": (delete(f"{SHARD}*"), FileNotFoundError, [SHARD, "no such file", INDEX]),
    "truncated shard": (write(f"{SHARD}*", "0123456789"), CheckpointError, [SHARD, "truncated"]),
    "tensor in another shard": (move_within_index, CheckpointError, ["model-00001-of", Q_PROJ, INDEX]),
    "unknown shard": (name_in_index, FileNotFoundError, ["elsewhere.safetensors", INDEX]),
    "index is no JSON": (write(INDEX, "{"), CheckpointError, [INDEX, "weight_map"]),
    "index without map": (write(INDEX, "{}"), CheckpointError, [INDEX, "weight_map"]),
    "index with a list": (write(INDEX, '{"weight_map": []}'), CheckpointError, [INDEX, "weight_map"]),
}


@pytest.mark.parametrize("fault", [*FAULTS, *SHARD_FAULTS])
def test_errors_name_file_and_tensor(fault: str, tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path, shard_bytes=40_000 if fault in SHARD_FAULTS else 10**9)
    load_model(tmp_path)
    damage, error, words = (FAULTS | SHARD_FAULTS)[fault]
    damage(tmp_path)
    with pytest.raises(error) as caught:
        load_model(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert [word for word in words if word not in message] == []
    assert "\n" not in message
    assert isinstance(caught.value, ValueError | FileNotFoundError)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_weight_files_raise_checkpoint_errors(data: st.DataObject, tmp_path: Path) -> None:
    """Cut anywhere: an error. A byte of the header changed: an error, or a file that is still right."""
    save_model(tiny_model(num_layers=1), tmp_path)
    good = (tmp_path / ONE_FILE).read_bytes()
    header_end = 8 + int.from_bytes(good[:8], "little")
    if data.draw(st.booleans(), label="cut"):
        bad = good[: data.draw(st.integers(0, len(good) - 1), label="length")]
        (tmp_path / ONE_FILE).write_bytes(bad)
        with pytest.raises(CheckpointError):
            load_model(tmp_path)
        return
    position = data.draw(st.integers(0, header_end - 1), label="position")
    value = data.draw(st.integers(0, 255), label="value")
    (tmp_path / ONE_FILE).write_bytes(good[:position] + bytes([value]) + good[position + 1 :])
    try:
        load_model(tmp_path)
    except CheckpointError as error:
        assert ONE_FILE in str(error)


CONFIG_KEYS = sorted(TINY["llama3"].to_hf())
ODD_VALUES = [
    None,
    0,
    -1,
    1,
    2.5,
    "x",
    True,
    [],
    {},
    [1],
    {"rope_type": "yarn"},
    {"rope_type": ["x"]},
    1000,
    float("nan"),
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(CONFIG_KEYS), st.sampled_from(ODD_VALUES), max_size=2))
def test_odd_configurations_raise_checkpoint_errors(changes: dict[str, Any], tmp_path: Path) -> None:
    save_model(tiny_model("llama3", num_layers=1), tmp_path)
    edit_json(tmp_path / CONFIG, **changes)
    try:
        load_model(tmp_path)
    except CheckpointError as error:
        assert str(tmp_path) in str(error)
