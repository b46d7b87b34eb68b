"""The tensors of a folder of safetensors files: names, shapes, and values when they are asked for.

Only safetensors are read. A `pytorch_model.bin` is a pickle, and unpickling a file runs the code in it.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class CheckpointError(ValueError):
    """A model folder that can't be read. The message names the file and, where there is one, the tensor."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of an open safetensors file."""

    file: Path
    name: str
    handle: Any  # of the open file: safetensors.safe_open

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.handle.get_slice(self.name).get_shape())

    @property
    def dtype(self) -> torch.dtype:
        """Raises CheckpointError for anything but the floats that are read here."""
        stored_dtype = self.handle.get_slice(self.name).get_dtype()
        if stored_dtype not in FLOATS:
            expected = ", ".join(FLOATS)
            raise CheckpointError(f"{self.file}: tensor {self.name} is {stored_dtype}, expected {expected}")
        return FLOATS[stored_dtype]

    def read(self) -> Tensor:
        """The values, on the CPU: a view of the mapped file where the system allows it."""
        return self.handle.get_tensor(self.name)


def open_folder(folder: Path, open_files: ExitStack) -> tuple[Path, dict[str, StoredTensor]]:
    """The file that says what is stored (the weights, or the index of several), and the tensors by name.

    The files stay open as long as `open_files`. Raises FileNotFoundError or CheckpointError.
    """
    if (folder / ONE_FILE).exists():
        return folder / ONE_FILE, _open_file(folder / ONE_FILE, open_files)
    index = folder / INDEX
    if not index.exists():
        if any(folder.glob("pytorch_model*.bin*")):
            raise CheckpointError(
                f"{folder}: has pytorch_model.bin, a pickle, which is not read; convert it to safetensors"
            )
        raise FileNotFoundError(f"{folder}: holds neither {ONE_FILE} nor {INDEX}")
    weight_map = _read_weight_map(index)
    shards: dict[str, dict[str, StoredTensor]] = {}
    for shard in sorted(set(weight_map.values())):
        if not (folder / shard).is_file():
            raise FileNotFoundError(f"{folder / shard}: no such file, although {INDEX} names it")
        shards[shard] = _open_file(folder / shard, open_files)
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise CheckpointError(f"{folder / shard}: tensor {name} is missing, although {INDEX} names it")
    return index, {name: tensor for shard in shards.values() for name, tensor in shard.items()}


def _open_file(file: Path, open_files: ExitStack) -> dict[str, StoredTensor]:
    try:
        handle = open_files.enter_context(safe_open(file, framework="pt"))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: truncated, or not a safetensors file ({error})") from error
    return {name: StoredTensor(file, name, handle) for name in handle.keys()}


def _read_weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(shard) for name, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: expected a JSON object with a weight_map ({error!r})") from error
