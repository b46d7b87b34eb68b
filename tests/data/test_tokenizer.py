"""Byte-level BPE against the `tokenizers` library: encoding and decoding."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from minillm.data import BPETokenizer
from minillm.data import bpe_tokenizer as bpe_tokenizer_module
from minillm.data.bpe import apply_merges, apply_merges_naive
from minillm.data.pretokenize import BYTE_TO_CHAR, NAMED_PATTERNS, make_splitter
from tests.data.tokenizer_oracles import (
    CORPUS,
    EOS,
    STYLES,
    pairs,
    relaxed,
    texts,
    train_with_library,
)


@pytest.mark.parametrize("style", STYLES)
@settings(relaxed, max_examples=150)
@given(text=texts)
def test_encode_equals_the_library(style, text):
    oracle, tokenizer = pairs()[style]
    assert tokenizer.encode(text) == oracle.encode(text).ids
    assert tokenizer.encode(text, add_special_tokens=False) == oracle.encode(text, add_special_tokens=False).ids
    oracle.encode_special_tokens = True
    try:
        assert tokenizer.encode(text, allow_special=False) == oracle.encode(text).ids
    finally:
        oracle.encode_special_tokens = False


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("text", ["", EOS, EOS + EOS, EOS + "!", f" {EOS} the", "x" * 300, "the " * 200, *CORPUS])
def test_encode_of_given_texts_equals_the_library(style, text):
    oracle, tokenizer = pairs()[style]
    assert tokenizer.encode(text) == oracle.encode(text).ids


@pytest.mark.parametrize("style", STYLES)
@relaxed
@given(data=st.data())
def test_decode_of_any_ids_equals_the_library(style, data):
    oracle, tokenizer = pairs()[style]
    token_ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    for skip in (True, False):
        expected = oracle.decode(token_ids, skip_special_tokens=skip)
        assert tokenizer.decode(token_ids, skip_special_tokens=skip) == expected


@settings(relaxed, max_examples=200)
@given(data=st.binary(max_size=12))
def test_decode_of_any_bytes_equals_the_library(data):
    """Lone continuation bytes, cut characters, overlong forms, surrogates."""
    oracle, tokenizer = pairs()["gpt2"]
    token_ids = [tokenizer.settings.vocab[BYTE_TO_CHAR[byte]] for byte in data]
    assert tokenizer.decode(token_ids) == oracle.decode(token_ids)


@pytest.mark.parametrize("style", STYLES)
@relaxed
@given(text=texts, data=st.binary(max_size=20))
def test_round_trip(style, text, data):
    tokenizer = pairs()[style][1]
    if not tokenizer.settings.nfc:
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(token_ids, skip_special_tokens=False) == text
    for mixed in (data, data + text.encode() + data, text.encode()):
        assert tokenizer.decode_bytes(tokenizer.encode_bytes(mixed)) == mixed
    plain = tokenizer.encode(text, add_special_tokens=False, allow_special=False)
    if not tokenizer.settings.nfc:
        assert tokenizer.encode_bytes(text.encode()) == plain


def test_special_token_spelled_by_merges(tmp_path):
    corpus, special_tokens = ["abab ab abc"] * 3, ["ab", "a b\u00e9"]
    oracle = train_with_library(corpus, 270, special_tokens, "gpt2", 0)
    tokenizer = BPETokenizer.train(corpus, 270, special_tokens)
    for token_ids in ([0, 1], [1, 0, 1], list(range(tokenizer.vocab_size))):
        for skip in (True, False):
            assert tokenizer.decode(token_ids, skip_special_tokens=skip) == oracle.decode(
                token_ids, skip_special_tokens=skip
            )
    assert tokenizer.encode("xab a b\u00e9") == oracle.encode("xab a b\u00e9").ids


@pytest.mark.parametrize("pattern", NAMED_PATTERNS)
def test_short_way_for_ascii_equals_the_pattern(pattern):
    split = make_splitter(NAMED_PATTERNS[pattern])
    general = pre_tokenizers.Split(Regex(NAMED_PATTERNS[pattern]), "isolated")
    ascii_chars = [chr(code) for code in range(128)]
    rng = random.Random(0)
    samples = [" a" + left + right + "1 " for left in ascii_chars for right in " \n'aA1\r\t\v\x1c#_"]
    samples += ["".join(rng.choices("  \n\r\t'sSlLdDtTaZ09_#.\x0b\x0c\x1f\x00", k=40)) for _ in range(300)]
    for sample in samples:
        assert split(sample) == [piece for piece, _ in general.pre_tokenize_str(sample)], sample


@relaxed
@given(word=st.lists(st.integers(0, 3), max_size=30), seed=st.integers(0, 1000))
def test_indexed_merging_equals_naive(word, seed):
    """Merges in random order: a later one may have a lower rank than the one that makes its halves."""
    rng = random.Random(seed)
    token_ids = list(range(4))
    merges = {}
    for rank in rng.sample(range(100), 12):
        pair = (rng.choice(token_ids), rng.choice(token_ids))
        if pair not in merges:
            merges[pair] = (rank, len(token_ids))
            token_ids.append(len(token_ids))
    assert apply_merges(word, merges) == apply_merges_naive(word, merges)


@pytest.mark.timeout(20)
def test_a_word_of_a_hundred_thousand_letters():
    oracle, tokenizer = pairs()["gpt2"]
    word = "ab" * 5 + "a" * 100_000
    assert tokenizer.encode(word) == oracle.encode(word).ids


def test_a_full_cache_changes_nothing(monkeypatch):
    oracle, _ = pairs()["gpt2"]
    monkeypatch.setattr(bpe_tokenizer_module, "MAX_CACHED_WORDS", 2)
    monkeypatch.setattr(bpe_tokenizer_module, "MAX_CACHED_WORD_LENGTH", 4)
    tokenizer = BPETokenizer(pairs()["gpt2"][1].settings)
    for _ in range(2):
        for text in CORPUS:
            assert tokenizer.encode(text) == oracle.encode(text).ids
    for word in ("a", "b", "c", "d", "e"):
        tokenizer.encode(word)
        assert 1 <= len(tokenizer._cache) <= 2
    assert all(len(word) <= 4 for word in tokenizer._cache)


def test_results_do_not_share_memory_with_the_cache():
    tokenizer = pairs()["gpt2"][1]
    first = tokenizer.encode("there")
    expected = list(first)
    first.append(0)
    assert tokenizer.encode("there") == expected


def test_bad_input_is_refused():
    tokenizer = pairs()["gpt2"][1]
    for token_ids in ([-1], [tokenizer.vocab_size], [0, 10**9]):
        with pytest.raises(ValueError, match=f"got {token_ids[-1]}"):
            tokenizer.decode(token_ids)
    with pytest.raises(ValueError, match="lone surrogate.*position 2"):
        tokenizer.encode("ab\udc80")


def test_decode_takes_tensors():
    torch = pytest.importorskip("torch")
    tokenizer = pairs()["gpt2"][1]
    assert tokenizer.decode(torch.tensor(tokenizer.encode("a fox"))) == "a fox"
