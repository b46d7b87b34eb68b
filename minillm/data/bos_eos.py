"""Which tokens begin and end a text: said by the files beside `tokenizer.json`, not by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read_bos_and_eos(folder: Path, id_of: Callable[[str], int | None]) -> tuple[int | None, tuple[int, ...]]:
    """The id that begins a text (or None) and those that end one, as the files beside a `tokenizer.json` say.

    The first of `generation_config.json`, `config.json` (which name ids) and `tokenizer_config.json` (which
    names tokens) that has an answer gives it, for each of the two. `id_of` turns a token into its id.
    """
    found: dict[str, tuple[int, ...]] = {"bos": (), "eos": ()}
    for name in ("generation_config.json", "config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            continue
        content = read_json(folder / name)
        if not isinstance(content, dict):
            raise ValueError(f"{folder / name}: expected a JSON object")
        for role in found:
            if name == "tokenizer_config.json":
                token = content.get(f"{role}_token")
                token = token.get("content") if isinstance(token, dict) else token
                ids = id_of(token) if token else None
            else:
                ids = content.get(f"{role}_token_id")
            if not found[role] and ids is not None:
                found[role] = tuple(ids) if isinstance(ids, list) else (ids,)
    return (found["bos"][0] if found["bos"] else None), found["eos"]


def read_json(path: Path) -> Any:
    """The parsed content of a JSON file. Raises ValueError if it holds none, OSError if it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{path} is not a JSON file: {error}") from None
