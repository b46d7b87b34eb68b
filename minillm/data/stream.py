"""Decode token by token: what a user sees while a model is generating.

A token is a run of bytes, and a character of up to four bytes may be spread over several tokens. Text can be
shown only once its last character is complete.
"""

from __future__ import annotations

import codecs

from minillm.data.bpe_tokenizer import BPETokenizer
from minillm.data.tokenizer import LibraryTokenizer, Tokenizer


class StreamDecoder:
    """Turns token ids into text as they come: the pieces joined equal `tokenizer.decode` of all ids.

    `push` gives the text that a token completes, which is empty while a character is unfinished; `flush` ends
    the text, with U+FFFD for what was left unfinished, and makes the decoder ready for another.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._decoder: _ByteStream | _TextStream
        if isinstance(tokenizer, BPETokenizer):
            self._decoder = _ByteStream(tokenizer, skip_special_tokens)
        else:
            self._decoder = _TextStream(tokenizer, skip_special_tokens)

    def push(self, token_id: int) -> str:
        """The text that is certain once `token_id` has come. Raises ValueError for an unknown id."""
        return self._decoder.push(token_id)

    def flush(self) -> str:
        """The rest of the text."""
        return self._decoder.flush()


class _ByteStream:
    """For tokens that are bytes. The UTF-8 decoder of Python keeps the bytes of an unfinished character."""

    def __init__(self, tokenizer: BPETokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._utf8.decode(self._tokenizer.token_bytes(token_id, skip_special_tokens=self._skip_special_tokens))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class _TextStream:
    """For any tokenizer: decode all ids so far, and give what is new.

    A token's text may depend on those before it (SentencePiece drops the space at the beginning of a text)
    and on those after it (bytes that follow may complete a character, or spoil one). So everything is decoded
    again for each token, and nothing is given while the text ends in U+FFFD, or no longer begins with what
    was given, or while the last token is a single byte, written `<0xE2>`.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._token_ids: list[int] = []
        self._given = ""

    def push(self, token_id: int) -> str:
        self._token_ids.append(token_id)
        try:
            text = self._decode()
        except ValueError:
            self._token_ids.pop()
            raise
        unfinished = text.endswith("\ufffd") or not text.startswith(self._given)
        if unfinished or (isinstance(self._tokenizer, LibraryTokenizer) and self._tokenizer.is_byte(token_id)):
            return ""
        new_text = text[len(self._given) :]
        self._given = text
        return new_text

    def flush(self) -> str:
        new_text = self._decode()[len(self._given) :]
        self._token_ids.clear()
        self._given = ""
        return new_text

    def _decode(self) -> str:
        return self._tokenizer.decode(self._token_ids, skip_special_tokens=self._skip_special_tokens)
