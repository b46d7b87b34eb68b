"""The interface of a tokenizer, and how one is loaded.

`BPETokenizer` is byte-level BPE, written out in this package: what GPT-2, Llama 3, Qwen and the bundled
models use. `LibraryTokenizer` runs every other kind through the `tokenizers` library. `load_tokenizer` picks
between them.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import tokenizers

from minillm.data.bos_eos import read_bos_and_eos
from minillm.data.bpe_tokenizer import BPETokenizer
from minillm.data.pretokenize import check_no_surrogates
from minillm.data.tokenizer_json import UnsupportedTokenizerError
from minillm.hf_config import resolve_model_path

__all__ = ["BPETokenizer", "LibraryTokenizer", "Tokenizer", "load_tokenizer"]


class Tokenizer(Protocol):
    """What the rest of minillm asks of a tokenizer.

    `bos_token_id` (None where there is none) and `eos_token_ids` are what the files beside `tokenizer.json`
    say; whether `encode` adds any of them is what its post-processor says.
    """

    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @property
    def vocab_size(self) -> int: ...

    @property
    def special_tokens(self) -> dict[str, int]: ...

    def encode(self, text: str, *, add_special_tokens: bool = True, allow_special: bool = True) -> list[int]: ...

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str: ...


class LibraryTokenizer:
    """Any tokenizer that the `tokenizers` library runs (SentencePiece-like BPE, Unigram, WordPiece, ...)."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        *,
        bos_token_id: int | None = None,
        eos_token_ids: tuple[int, ...] = (),
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.bos_token_id = bos_token_id
        self.eos_token_ids = eos_token_ids
        self.special_tokens = {
            token.content: token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special
        }

    @classmethod
    def from_file(cls, path: str | Path) -> LibraryTokenizer:
        """Read a `tokenizer.json`, and which tokens begin and end a text from the files beside it.

        Raises:
            ValueError: not a `tokenizer.json`. OSError: the file cannot be read.
        """
        path = Path(path)
        content = path.read_bytes()
        try:
            tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a tokenizer.json: {error}") from None
        bos_token_id, eos_token_ids = read_bos_and_eos(path.parent, tokenizer.token_to_id)
        return cls(tokenizer, bos_token_id=bos_token_id, eos_token_ids=eos_token_ids)

    @property
    def vocab_size(self) -> int:
        """The number of tokens, added ones included."""
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = True, allow_special: bool = True) -> list[int]:
        """As `BPETokenizer.encode`."""
        check_no_surrogates(text)
        self.tokenizer.encode_special_tokens = not allow_special
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """As `BPETokenizer.decode`."""
        token_ids = [operator.index(token_id) for token_id in token_ids]
        for token_id in token_ids:
            if token_id < 0 or self.tokenizer.id_to_token(token_id) is None:
                raise ValueError(f"expected ids of the {self.vocab_size} tokens, got {token_id}")
        return self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def is_byte(self, token_id: int) -> bool:
        """Whether the token is a single byte of a tokenizer with byte fallback, such as `<0xE2>`."""
        token = self.tokenizer.id_to_token(token_id)
        return token is not None and re.fullmatch("<0x[0-9A-Fa-f]{2}>", token) is not None


def load_tokenizer(path: str | Path = "stories-5m") -> Tokenizer:
    """The tokenizer of a bundled model, of a folder in Hugging Face format, or of a `tokenizer.json`.

    `path` is the name of the model, or the path of the folder or file. Byte-level BPE becomes a
    `BPETokenizer`, everything else a `LibraryTokenizer`.

    Raises:
        FileNotFoundError: there is none. ValueError: the file is not a `tokenizer.json`.
    """
    file = Path(path) if Path(path).is_file() else resolve_model_path(path) / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; a model folder holds its tokenizer in tokenizer.json")
    try:
        return BPETokenizer.from_file(file)
    except UnsupportedTokenizerError:
        return LibraryTokenizer.from_file(file)
