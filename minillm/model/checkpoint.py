"""Read and write model folders in the Hugging Face format: `config.json` and safetensors files."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minillm.config import ModelConfig
from minillm.hf_config import read_hf_config, resolve_model_path, rotates_neighbours
from minillm.model.hf_names import hf_name, plain_weights
from minillm.model.rope_layout import from_interleaved, to_interleaved
from minillm.model.stored import INDEX, ONE_FILE, CheckpointError, StoredTensor, open_folder
from minillm.model.transformer import Transformer

__all__ = ["CheckpointError", "load_model", "resolve_model_path", "save_model"]

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def load_model(
    path: str | Path = "stories-5m",
    *,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str | None = None,
) -> Transformer:
    """The model of a bundled name or a Hugging Face folder, in eval mode, its weights converted to `dtype`.

    `dtype="auto"` keeps the dtype in which the embedding is stored. Takes hardly more memory than the
    weights: the model is laid out without any, then filled tensor by tensor from mapped files. Raises
    FileNotFoundError for a missing folder or file, CheckpointError for contents that don't fit.
    """
    if not (dtype == "auto" or isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype must be a floating-point torch.dtype or 'auto', got {dtype!r}")
    folder = resolve_model_path(path)
    try:
        config = ModelConfig.from_pretrained(folder)
        interleaved = rotates_neighbours(read_hf_config(folder))
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    with torch.device("meta"), _NoInitialisation():
        model = Transformer(config)
    with ExitStack() as open_files:
        source, stored = open_folder(folder, open_files)
        _check_fit(model, source, stored)
        wanted = dtype if isinstance(dtype, torch.dtype) else stored[EMBEDDING].dtype
        for name, parameter in list(model.named_parameters()):  # a tied lm_head comes once, as the embedding
            values = torch.empty(parameter.shape, dtype=wanted, device=device)
            stored_values = stored[hf_name(name)].read()
            values.copy_(from_interleaved(name, stored_values, config) if interleaved else stored_values)
            module_name, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(module_name), leaf, nn.Parameter(values))
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model.eval()


class _NoInitialisation(TorchFunctionMode):
    """Skips `torch.nn.init`: drawing weights that get replaced costs time, and on "meta" a slow import."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"]
        return func(*args, **kwargs)


def save_model(model: Transformer, path: str | Path, *, shard_bytes: int = 5_000_000_000) -> None:
    """Write the model to the folder `path`, for minillm and `transformers`, weights in the dtype they have.

    Writes `config.json`, `generation_config.json` (which tokens end a text) and `model.safetensors`; weights
    above `shard_bytes` are split over several files with an index. A wrapped linear is stored as the plain
    one that it stands for. Raises ValueError when no supported family can express the model. Files move to
    their places when all are complete, so that an interruption leaves no half of one.
    """
    hf_config = model.config.to_hf()
    hf_config["dtype"] = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as staging_name:
        staging = Path(staging_name)
        _write_weights(model, staging, shard_bytes)
        end_tokens = {key: hf_config[key] for key in ("bos_token_id", "eos_token_id")}
        _write_json(staging / "generation_config.json", end_tokens)
        _write_json(staging / "config.json", hf_config)
        new_files = sorted((file.name for file in staging.iterdir()), reverse=True)  # config.json comes last
        for name in new_files:
            shutil.copymode(staging / "config.json", staging / name)  # safetensors shuts out other users
            os.replace(staging / name, folder / name)
    # Weights of an earlier save that were split in another way would be read in place of the new ones.
    for old in {folder / ONE_FILE, folder / INDEX, *folder.glob("model-*-of-*.safetensors")}:
        if old.name not in new_files:
            old.unlink(missing_ok=True)


def _write_weights(model: Transformer, folder: Path, shard_bytes: int) -> None:
    """One safetensors file, or several and their index."""
    files: list[Path] = []
    names_of: list[list[str]] = []  # of the tensors in each file
    total_bytes = 0
    for shard in _shards(model, shard_bytes):
        files.append(folder / f"shard-{len(files)}")
        names_of.append(list(shard))
        save_file(shard, files[-1], metadata={"format": "pt"})
        total_bytes += sum(tensor.nbytes for tensor in shard.values())
    if len(files) == 1:
        files[0].rename(folder / ONE_FILE)
        return
    weight_map: dict[str, str] = {}
    for number, (file, names) in enumerate(zip(files, names_of, strict=True), start=1):
        renamed = file.rename(folder / f"model-{number:05d}-of-{len(files):05d}.safetensors")
        weight_map |= dict.fromkeys(names, renamed.name)
    _write_json(folder / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})


def _write_json(file: Path, document: dict[str, Any]) -> None:
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _shards(model: Transformer, shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    """The weights by stored name, in groups of at most `shard_bytes` (a larger tensor stands alone)."""
    shard: dict[str, Tensor] = {}
    interleaved = rotates_neighbours(model.config.to_hf())
    for name, weight in plain_weights(model):
        tensor = weight.detach().cpu().contiguous()
        if interleaved:
            tensor = to_interleaved(name, tensor, model.config)
        if model.config.tie_embeddings and hf_name(name) == HEAD:
            if not torch.equal(tensor, model.embed_tokens.weight.detach().cpu()):
                raise ValueError("tie_embeddings is set, but lm_head and embed_tokens hold different weights")
            continue
        if shard and sum(other.nbytes for other in shard.values()) + tensor.nbytes > shard_bytes:
            yield shard
            shard = {}
        shard[hf_name(name)] = tensor
    yield shard


def _check_fit(model: Transformer, source: Path, stored: dict[str, StoredTensor]) -> None:
    """Raise CheckpointError unless exactly the model's tensors are stored, in their shapes and as floats."""
    expected = {hf_name(name): tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if missing := [name for name in expected if name not in stored]:
        raise CheckpointError(f"{source}: tensor {_first_of(missing)} is missing")
    for name, shape in expected.items():
        tensor = stored[name]
        if tensor.shape != shape:
            raise CheckpointError(f"{tensor.file}: tensor {name} has shape {tensor.shape}, expected {shape}")
        assert tensor.dtype.is_floating_point
    # Old checkpoints store the frequencies of RoPE, which follow from the configuration.
    extra = {name for name in stored if not name.endswith("rotary_emb.inv_freq")} - set(expected)
    if model.config.tie_embeddings and HEAD in extra:
        extra.remove(HEAD)
        if not torch.equal(stored[HEAD].read(), stored[EMBEDDING].read()):
            raise CheckpointError(
                f"{stored[HEAD].file}: tensor {HEAD} differs from {EMBEDDING}, but config.json ties them"
            )
    if extra:
        file = stored[min(extra)].file
        raise CheckpointError(f"{file}: tensor {_first_of(sorted(extra))} has no place in this config.json")


def _first_of(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"
