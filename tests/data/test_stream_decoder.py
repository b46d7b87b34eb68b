"""Decoding token by token against decoding at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from minillm.data import BPETokenizer, StreamDecoder
from minillm.data.pretokenize import BYTE_TO_CHAR
from minillm.data.tokenizer import LibraryTokenizer

EOS = "<|endoftext|>"
relaxed = settings(max_examples=150, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    return BPETokenizer.train(["the café 狐は😀 the 😀😀 é é 👩‍👩‍👧"], 285, [EOS, "<é>"])


def byte_fallback() -> LibraryTokenizer:
    """In the style of SentencePiece: spaces are written as U+2581, unknown characters as bytes."""
    vocab = {"<unk>": 0, "<s>": 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    vocab |= {token: 258 + idx for idx, token in enumerate(["▁", "a", "▁a", "é", "b", "\ufffd"])}
    library = Tokenizer(models.BPE(vocab, [("▁", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<s>"])
    return LibraryTokenizer(library)


def word_piece() -> LibraryTokenizer:
    tokens = ["[UNK]", "fox", "##es", "##e", "a", ".", "'", "s", "do", "not", "n't", "!", ","]
    library = Tokenizer(models.WordPiece({token: idx for idx, token in enumerate(tokens)}, unk_token="[UNK]"))
    library.decoder = decoders.WordPiece()
    library.add_special_tokens(["[UNK]"])
    return LibraryTokenizer(library)


def byte_level_in_library() -> LibraryTokenizer:
    library = Tokenizer(models.BPE({char: idx for idx, char in enumerate(sorted(BYTE_TO_CHAR))}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    library.decoder = decoders.ByteLevel()
    return LibraryTokenizer(library)


def pieces(tokenizer, token_ids: list[int], skip: bool = True) -> list[str]:
    decoder = StreamDecoder(tokenizer, skip_special_tokens=skip)
    return [*(decoder.push(token_id) for token_id in token_ids), decoder.flush()]


@relaxed
@given(data=st.data(), skip=st.booleans())
def test_pieces_join_to_the_decoded_text(tokenizer, data, skip):
    token_ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=25))
    assert "".join(pieces(tokenizer, token_ids, skip)) == tokenizer.decode(token_ids, skip_special_tokens=skip)


@relaxed
@given(data=st.binary(max_size=10))
def test_any_bytes_one_at_a_time(tokenizer, data):
    token_ids = [tokenizer.settings.vocab[BYTE_TO_CHAR[byte]] for byte in data]
    assert "".join(pieces(tokenizer, token_ids)) == data.decode("utf-8", "replace")


@relaxed
@given(text=st.text(max_size=12))
def test_text_is_given_as_soon_as_it_is_complete(tokenizer, text):
    token_ids = tokenizer.encode(text)
    decoder = StreamDecoder(tokenizer)
    given_text = ""
    for count, token_id in enumerate(token_ids, start=1):
        given_text += decoder.push(token_id)
        # The bytes of valid text so far, without the character that is not finished
        assert given_text == tokenizer.decode_bytes(token_ids[:count]).decode("utf-8", "ignore")
    assert given_text == text
    assert decoder.flush() == ""


def test_emoji_in_bytes(tokenizer):
    token_ids = [tokenizer.settings.vocab[BYTE_TO_CHAR[byte]] for byte in "😀a".encode()]
    assert pieces(tokenizer, token_ids) == ["", "", "", "😀", "a", ""]
    assert pieces(tokenizer, token_ids[:3]) == ["", "", "", "\ufffd"]
    assert pieces(tokenizer, token_ids[1:2]) == ["\ufffd", ""]  # a lone continuation byte is certain at once


def test_special_tokens_inside_a_character(tokenizer):
    """A skipped token does not break a character; one that is shown does."""
    head, tail = (tokenizer.settings.vocab[BYTE_TO_CHAR[byte]] for byte in "é".encode())
    token_ids = [head, tokenizer.special_tokens[EOS], tail]
    assert "".join(pieces(tokenizer, token_ids)) == "é"
    assert "".join(pieces(tokenizer, token_ids, skip=False)) == f"\ufffd{EOS}\ufffd"


@pytest.mark.parametrize("make", [byte_fallback, word_piece, byte_level_in_library])
def test_library_tokenizers_join_to_the_decoded_text(make):
    tokenizer = make()

    @relaxed
    @given(data=st.data(), skip=st.booleans())
    def check(data, skip):
        token_ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12))
        joined = "".join(pieces(tokenizer, token_ids, skip))
        assert joined == tokenizer.decode(token_ids, skip_special_tokens=skip)

    check()


def test_library_tokenizers_stream_text():
    tokenizer = byte_fallback()
    token_ids = tokenizer.encode("▁a狐▁a")
    given_pieces = pieces(tokenizer, token_ids)
    assert given_pieces[0] == "a"
    assert given_pieces[1:4] == ["", "", ""]  # the bytes of 狐 wait for the token that follows
    assert given_pieces[4] == "狐 a"


def test_text_that_later_tokens_rewrite_waits():
    class Rewriting:
        def decode(self, token_ids, *, skip_special_tokens=True):
            return ["", "a", "bb", "abc"][len(token_ids)]

    assert pieces(Rewriting(), [0, 0, 0]) == ["a", "", "bc", ""]


@pytest.mark.parametrize("make", [None, byte_fallback])
def test_unknown_ids_are_refused_and_flush_starts_anew(tokenizer, make):
    tokenizer = make() if make else tokenizer
    decoder = StreamDecoder(tokenizer)
    token_ids = tokenizer.encode("a")
    first = "".join(decoder.push(token_id) for token_id in token_ids)
    for token_id in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"got {token_id}"):
            decoder.push(token_id)
    assert first + decoder.flush() == tokenizer.decode(token_ids)
    assert "".join(decoder.push(token_id) for token_id in token_ids) + decoder.flush() == first
