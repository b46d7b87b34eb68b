"""Writes a trained model as a Hugging Face folder."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from minillm.data.tokenizer import Tokenizer
from minillm.model.checkpoint import save_model
from minillm.model.transformer import Transformer
from minillm.training.state import write_text_atomically


def export_model(
    model: Transformer, tokenizer: Tokenizer, tokenizer_file: Path, words: Sequence[str], directory: Path
) -> None:
    """Writes config, weights (rounded to bfloat16), tokenizer, generation settings and word list to `directory`.

    `tokenizer` is what `tokenizer_file` holds.

    `transformers.AutoModelForCausalLM` and `AutoTokenizer` open the folder. `model` itself stays in float32.
    """
    directory.mkdir(parents=True, exist_ok=True)
    save_model(copy.deepcopy(model).to("cpu", torch.bfloat16).eval(), directory)
    shutil.copyfile(tokenizer_file, directory / "tokenizer.json")
    config = model.config
    bos, eos = config.bos_token_id, config.eos_token_ids[0]
    names: dict[int | None, str] = {token_id: name for name, token_id in tokenizer.special_tokens.items()}
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names.get(bos),
        "eos_token": names.get(eos),
        "model_max_length": config.max_seq_len,
        "clean_up_tokenization_spaces": False,
    }
    generation_config = {"bos_token_id": bos, "eos_token_id": eos, "do_sample": True, "temperature": 1.0}
    _write_json(directory / "tokenizer_config.json", tokenizer_config)
    _write_json(directory / "generation_config.json", generation_config)
    write_text_atomically(directory / "words.txt", "".join(f"{word}\n" for word in words))


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    write_text_atomically(path, json.dumps(value, indent=2) + "\n")
