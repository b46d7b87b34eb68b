"""`BPETokenizer`: byte-level BPE put together, from training to text and back.

encode: text -> words (`pretokenize`) -> bytes -> merged tokens (`bpe`) -> ids
decode: ids -> bytes -> text
"""

from __future__ import annotations

import json
import operator
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tqdm import tqdm

from minillm.data import tokenizer_json
from minillm.data.bos_eos import read_bos_and_eos, read_json
from minillm.data.bpe import apply_merges, learn_merges
from minillm.data.pretokenize import (
    BYTE_TO_CHAR,
    NAMED_PATTERNS,
    bytes_to_chars,
    chars_to_bytes,
    check_no_surrogates,
    make_finder,
    make_splitter,
)
from minillm.data.tokenizer_json import AddedToken, BPESettings, UnsupportedTokenizerError

MAX_CACHED_WORDS = 1 << 17
MAX_CACHED_WORD_LENGTH = 64  # longer ones are hardly words, and hardly come back


class BPETokenizer:
    """Byte-level BPE: the ids and the text that the `tokenizers` library gives for the same `tokenizer.json`.

    `settings` is what `tokenizer.json` says; `bos_token_id` and `eos_token_ids` are what the files beside it
    say. `special_tokens` maps the special tokens to their ids.
    """

    def __init__(
        self, settings: BPESettings, *, bos_token_id: int | None = None, eos_token_ids: tuple[int, ...] = ()
    ) -> None:
        self.settings = settings
        self.bos_token_id = bos_token_id
        self.eos_token_ids = eos_token_ids
        self.special_tokens = {token.content: token.token_id for token in settings.added_tokens if token.special}

        tokens = {token_id: token for token, token_id in settings.vocab.items()}
        self._merges = {
            (left, right): (rank, settings.vocab[tokens[left] + tokens[right]])
            for rank, (left, right) in enumerate(settings.merges)
        }
        self._bytes_of = {token_id: chars_to_bytes(token) for token_id, token in tokens.items()}
        self._bytes_of.update({token.token_id: chars_to_bytes(token.content) for token in settings.added_tokens})
        self._special_ids = frozenset(self.special_tokens.values())
        self._byte_ids = [settings.vocab[char] for char in BYTE_TO_CHAR]
        self._normalize = tokenizers.normalizers.NFC().normalize_str if settings.nfc else str
        self._split = make_splitter(settings.pattern)
        self._cache: dict[str, list[int]] = {}  # word -> ids
        # Which added tokens to look for: (normalized?, special ones too?) -> finder
        self._finders = {
            (normalized, allow_special): make_finder(
                {
                    token.content: token.token_id
                    for token in settings.added_tokens
                    if token.normalized == normalized and (allow_special or not token.special)
                }
            )
            for normalized in (False, True)
            for allow_special in (False, True)
        }

    # Making, loading, saving

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        special_tokens: Iterable[str] = (),
        *,
        pattern: str = "gpt2",
        min_frequency: int = 0,
        bos_token: str | None = None,
        eos_token: str | None = None,
        progress: bool = False,
    ) -> BPETokenizer:
        """Learn a vocabulary of `vocab_size` tokens: the special tokens, the 256 bytes, then one per merge.

        The vocabulary stays smaller when `texts` holds no more pairs that occur `min_frequency` times.
        `pattern` is `"gpt2"`, `"llama3"`, `"qwen2"` or a regular expression. Special tokens that occur in
        `texts` are plain text there. `bos_token` and `eos_token` name the special tokens that play these
        parts; `encode` does not add them.

        Same vocabulary and merges as `tokenizers.trainers.BpeTrainer` with the initial alphabet of
        `ByteLevel`.

        Raises:
            ValueError: `vocab_size` is too small for the special tokens and bytes; a special token is empty;
                `bos_token` or `eos_token` is not a special token; `texts` or `special_tokens` is one str; a
                text has lone surrogates.
        """
        if isinstance(texts, str) or isinstance(special_tokens, str):
            raise ValueError("expected several texts and special tokens, got one str; pass [text]")
        vocab: dict[str, int] = {}
        for token in special_tokens:
            check_no_surrogates(token)
            vocab.setdefault(token, len(vocab))
        added_tokens = tuple(AddedToken(token, token_id) for token, token_id in vocab.items())
        if "" in vocab:
            raise ValueError("expected special tokens that are not empty")
        for role, name in (("bos_token", bos_token), ("eos_token", eos_token)):
            if name is not None and name not in vocab:
                raise ValueError(f"expected {role} to be one of {list(vocab)}, got {name!r}")
        for char in sorted(BYTE_TO_CHAR):
            vocab.setdefault(char, len(vocab))
        if vocab_size < len(vocab):
            raise ValueError(
                f"expected vocab_size >= {len(vocab)} (256 bytes and {len(added_tokens)} special tokens), "
                f"got {vocab_size}"
            )

        pattern = NAMED_PATTERNS.get(pattern, pattern)
        split = make_splitter(pattern)
        counts: Counter[str] = Counter()
        for text in tqdm(texts, desc="words", disable=not progress):
            check_no_surrogates(text)
            counts.update(split(text))
        word_counts = {bytes_to_chars(word.encode("utf-8")): count for word, count in counts.items()}
        merges = learn_merges(word_counts, vocab, vocab_size, min_frequency, progress=progress)
        return cls(
            BPESettings(vocab, tuple(merges), pattern, added_tokens),
            bos_token_id=None if bos_token is None else vocab[bos_token],
            eos_token_ids=() if eos_token is None else (vocab[eos_token],),
        )

    @classmethod
    def from_file(cls, path: str | Path) -> BPETokenizer:
        """Read a `tokenizer.json`, and which tokens begin and end a text from the files beside it.

        Raises:
            UnsupportedTokenizerError (a ValueError): a tokenizer of another kind (see `load_tokenizer`).
            ValueError: not a `tokenizer.json`. OSError: the file cannot be read.
        """
        path = Path(path)
        content = read_json(path)
        try:
            settings = tokenizer_json.parse(content)
            tokenizer = cls(settings)
        except UnsupportedTokenizerError as error:
            raise UnsupportedTokenizerError(f"{path}: {error}") from None
        except ValueError as error:
            raise ValueError(f"{path} is not a tokenizer.json: {error}") from None
        except (KeyError, TypeError, AttributeError) as error:  # a part is missing or of another type
            raise ValueError(f"{path} is not a tokenizer.json: {type(error).__name__} {error}") from None
        ids = settings.vocab | {token.content: token.token_id for token in settings.added_tokens}
        tokenizer.bos_token_id, tokenizer.eos_token_ids = read_bos_and_eos(path.parent, ids.get)
        if tokenizer.bos_token_id is None and settings.prefix_ids:
            tokenizer.bos_token_id = settings.prefix_ids[0]
        return tokenizer

    def save(self, path: str | Path) -> None:
        """Write a `tokenizer.json` to the file `path`; an older one stays until the new one is complete."""
        path = Path(path)
        text = json.dumps(tokenizer_json.build(self.settings), ensure_ascii=False, indent=2)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            unfinished.write_text(text, encoding="utf-8")
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    # Encoding

    @property
    def vocab_size(self) -> int:
        """The number of tokens, added ones included. The embedding of a model may have more rows."""
        return len(self._bytes_of)

    def encode(self, text: str, *, add_special_tokens: bool = True, allow_special: bool = True) -> list[int]:
        """The token ids of `text`.

        `add_special_tokens` puts the ids of the post-processor around them. Special tokens that occur in
        `text` become their ids; with `allow_special=False` they are plain text, which is how to encode text
        from strangers.

        Raises:
            ValueError: `text` has lone surrogates, which UTF-8 cannot write. (The `tokenizers` library raises
                TypeError there.)
        """
        check_no_surrogates(text)
        token_ids: list[int] = []
        for part in self._finders[False, allow_special](text):
            if isinstance(part, int):
                token_ids.append(part)
                continue
            for piece in self._finders[True, allow_special](self._normalize(part)):
                if isinstance(piece, int):
                    token_ids.append(piece)
                else:
                    self._encode_plain(piece, token_ids)
        if add_special_tokens:
            return [*self.settings.prefix_ids, *token_ids, *self.settings.suffix_ids]
        return token_ids

    def encode_bytes(self, data: bytes) -> list[int]:
        """The token ids of any bytes, such that `decode_bytes` gives the bytes again.

        What is valid UTF-8 is encoded as plain text, never normalized; each other byte is a token of its own.
        """
        token_ids: list[int] = []
        # "surrogateescape" turns an invalid byte 0xNN into the code point U+DCNN, which valid UTF-8 has not.
        parts = re.split("([\udc80-\udcff]+)", data.decode("utf-8", "surrogateescape"))
        for valid, invalid in zip(parts[::2], [*parts[1::2], ""], strict=True):
            self._encode_plain(valid, token_ids)
            token_ids.extend(self._byte_ids[ord(char) - 0xDC00] for char in invalid)
        return token_ids

    def _encode_plain(self, text: str, token_ids: list[int]) -> None:
        """Append the ids of `text`, which holds no added tokens. The cache makes this a loop of look-ups."""
        cache = self._cache
        for word in self._split(text):
            word_ids = cache.get(word)
            if word_ids is None:
                word_ids = self._encode_word(word)
                if len(word) <= MAX_CACHED_WORD_LENGTH:
                    if len(cache) >= MAX_CACHED_WORDS:
                        cache.clear()
                    cache[word] = word_ids
            token_ids.extend(word_ids)

    def _encode_word(self, word: str) -> list[int]:
        data = word.encode("utf-8")
        if self.settings.ignore_merges:
            token_id = self.settings.vocab.get(bytes_to_chars(data))
            if token_id is not None:
                return [token_id]
        return apply_merges([self._byte_ids[byte] for byte in data], self._merges)

    # Decoding

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `token_ids`, without special tokens unless asked for; bytes that are no UTF-8 become
        U+FFFD.

        Raises:
            ValueError: an id that no token has.
        """
        return self.decode_bytes(token_ids, skip_special_tokens=skip_special_tokens).decode("utf-8", "replace")

    def decode_bytes(self, token_ids: Iterable[int], *, skip_special_tokens: bool = False) -> bytes:
        """The bytes of `token_ids`, by default of all of them. Raises as `decode` does."""
        return b"".join([self.token_bytes(i, skip_special_tokens=skip_special_tokens) for i in token_ids])

    def token_bytes(self, token_id: int, *, skip_special_tokens: bool = False) -> bytes:
        """The bytes of one token, which may be part of a character. Raises as `decode` does."""
        token_id = operator.index(token_id)  # an element of a tensor or array becomes an int
        if token_id not in self._bytes_of:
            raise ValueError(f"expected token ids in 0 ... {max(self._bytes_of)}, got {token_id}")
        return b"" if skip_special_tokens and token_id in self._special_ids else self._bytes_of[token_id]
