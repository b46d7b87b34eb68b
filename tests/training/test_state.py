"""Checkpoints: complete or absent, the last two, refused when they do not belong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minillm.training.config import TrainConfig, settings_hash
from minillm.training.optim import build_optimizer
from minillm.training.state import (
    append_record,
    find_checkpoints,
    load_checkpoint,
    read_records,
    rewind_log,
    save_checkpoint,
)
from tests.training.tiny import tiny_config, tiny_model


def trained_once() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = tiny_model()
    optimizer = build_optimizer(model, tiny_config())
    model(torch.arange(10)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def test_everything_comes_back(tmp_path: Path) -> None:
    model, optimizer = trained_once()
    torch.manual_seed(7)
    path = save_checkpoint(tmp_path, step=3, model=model, optimizer=optimizer, settings_hash="h")
    drawn = torch.rand(3)
    other = tiny_model(seed=1)
    other_optimizer = build_optimizer(other, tiny_config())
    assert load_checkpoint(path, model=other, optimizer=other_optimizer, settings_hash="h") == 3
    assert torch.equal(torch.rand(3), drawn)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert optimizer.state[a].keys() == other_optimizer.state[b].keys()
        for key, value in optimizer.state[a].items():
            assert torch.equal(value, other_optimizer.state[b][key])
            assert other_optimizer.state[b][key].dtype == value.dtype


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    model, optimizer = trained_once()
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, step=step, model=model, optimizer=optimizer, settings_hash="h")
    assert [path.name for path in find_checkpoints(tmp_path)] == [
        "step-00000010.safetensors",
        "step-00000100.safetensors",
    ]


def test_a_failed_write_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = trained_once()
    save_checkpoint(tmp_path, step=1, model=model, optimizer=optimizer, settings_hash="h")

    def full_disk(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minillm.training.state.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, step=2, model=model, optimizer=optimizer, settings_hash="h")
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-00000001.safetensors"]


def test_foreign_and_damaged_files_are_refused(tmp_path: Path) -> None:
    model, optimizer = trained_once()
    path = save_checkpoint(tmp_path, step=1, model=model, optimizer=optimizer, settings_hash="h")
    with pytest.raises(ValueError, match="other settings"):
        load_checkpoint(path, model=model, optimizer=optimizer, settings_hash="other")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        load_checkpoint(path, model=model, optimizer=optimizer, settings_hash="h")


def test_log_is_rewound(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    for step in (10, 20, 30):
        append_record(log, {"step": step, "loss": 1.5})
    with open(log, "a") as file:
        file.write('{"step": 40, "lo')
    rewind_log(log, 20)
    assert [record["step"] for record in read_records(log)] == [10, 20]
    assert read_records(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("batch_size", 0), ("lr", 0.0), ("lr", float("nan")), ("min_lr_ratio", 1.5),
        ("weight_decay", -1.0), ("grad_clip", 0.0), ("seed", -1), ("seed", 2**32),
        ("dtype", "fp16"), ("threads", 0), ("save_every_s", 0.0),
    ],
)  # fmt: skip
def test_config_names_the_bad_field(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        TrainConfig(**({"steps": 5} | {name: value}))


def test_hash_covers_what_decides() -> None:
    def fingerprint(**changes: object) -> str:
        return settings_hash(tiny_config(**changes).deciding_fields())

    assert fingerprint() == fingerprint(eval_every=7, save_every=3, threads=1, log_every=2)
    changed = {"steps": 13, "batch_size": 4, "seq_len": 8, "grad_accum": 2, "lr": 1.0, "warmup_steps": 1,
               "min_lr_ratio": 0.5, "weight_decay": 0.0, "grad_clip": 2.0, "seed": 1,
               "dtype": "bf16", "compile": True}  # fmt: skip
    assert len({fingerprint(), *(fingerprint(**{name: value}) for name, value in changed.items())}) == len(changed) + 1
