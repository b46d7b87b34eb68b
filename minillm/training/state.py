"""Checkpoints of a run that can be continued bit for bit: weights in float32, optimiser moments, random state, step.

One checkpoint is one safetensors file (no pickle), written under a temporary name and renamed, so that a file with a
proper name is always complete. The data position is not stored: it is a function of the step (see `data.Rows`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

NUM_KEPT = 2
"""Checkpoints kept: the newest, and one before it in case the newest turns out to be damaged by a failing disk."""


def save_checkpoint(
    directory: Path, *, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, settings_hash: str
) -> Path:
    """Writes `directory/step-NNNNNNNN.safetensors` after `step` updates, keeps the last two, returns the path.

    Raises `OSError` when the disk is full or not writable; the earlier checkpoints are then untouched.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    for name, parameter in model.named_parameters():  # a tied weight appears once
        tensors[f"model.{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{name}"] = value
    path = directory / f"step-{step:08d}.safetensors"
    partial = path.with_suffix(".partial")
    metadata = {"format": "minillm training checkpoint", "step": str(step), "settings_hash": settings_hash}
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial, metadata)
    with open(partial, "rb") as file:
        os.fsync(file.fileno())  # the bytes reach the disk before the name does
    os.replace(partial, path)
    for old in find_checkpoints(directory)[:-NUM_KEPT]:
        old.unlink()
    return path


def find_checkpoints(directory: Path) -> list[Path]:
    """The complete checkpoints in `directory`, oldest first."""
    return sorted(path for path in directory.glob("step-*.safetensors") if re.fullmatch(r"step-\d+", path.stem))


def load_checkpoint(path: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, settings_hash: str) -> int:
    """Loads `path` into `model` and `optimizer` in place, restores the random state, returns the updates done.

    Raises `ValueError` when the file is damaged, belongs to other settings, or lacks a tensor.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a complete checkpoint ({error}); delete it to resume from the one before"
        ) from error
    if metadata.get("settings_hash") != settings_hash:
        raise ValueError(
            f"{path} was written by a run with other settings "
            f"(hash {metadata.get('settings_hash')}, expected {settings_hash})"
        )
    try:
        for name, parameter in model.named_parameters():
            with torch.no_grad():
                parameter.copy_(tensors[f"model.{name}"])
            optimizer.state[parameter] = {
                "step": tensors[f"optimizer.step.{name}"],
                "exp_avg": tensors[f"optimizer.exp_avg.{name}"].to(parameter.device),
                "exp_avg_sq": tensors[f"optimizer.exp_avg_sq.{name}"].to(parameter.device),
            }
            if parameter.is_cuda:  # the fused kernel reads the step count on the device
                optimizer.state[parameter]["step"] = optimizer.state[parameter]["step"].to(parameter.device)
    except KeyError as error:
        raise ValueError(f"{path} lacks the tensor {error}") from error
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    return int(metadata["step"])


def write_text_atomically(path: Path, text: str) -> None:
    """Writes `text` (UTF-8) so that `path` holds either its old contents or all of the new ones."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def append_record(path: Path, record: Mapping[str, object]) -> None:
    """Appends one JSON line."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_records(path: Path) -> list[dict[str, float]]:
    """The records of a JSON-lines file, a half-written last line left out; an empty list without the file."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def rewind_log(path: Path, step: int) -> None:
    """Drops the records after `step`: a run resumed from a checkpoint at `step` writes them again."""
    kept = [record for record in read_records(path) if record["step"] <= step]
    write_text_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))
