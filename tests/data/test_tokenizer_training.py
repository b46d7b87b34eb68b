"""Learning merges: equal to the `tokenizers` library, the indexed way equal to the naive one."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.data import BPETokenizer
from minillm.data.bpe import learn_merges, learn_merges_naive
from minillm.data.pretokenize import NAMED_PATTERNS
from tests.data.tokenizer_oracles import (
    EOS,
    relaxed,
    train_with_library,
)


def saved(tokenizer: BPETokenizer, folder: Path) -> dict:
    tokenizer.save(folder / "tokenizer.json")
    return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))


@settings(relaxed, max_examples=80)
@given(
    corpus=st.lists(st.text(alphabet=st.sampled_from("aaabbc  é1\n"), max_size=60), max_size=5),
    vocab_size=st.integers(262, 330),
    special_tokens=st.sampled_from([[], [EOS], ["ab", "<s>", "a", "aab", "<s>", "bc"]]),
    pattern=st.sampled_from(list(NAMED_PATTERNS)),
    min_frequency=st.integers(0, 3),
)
def test_training_equals_the_library(tmp_path_factory, corpus, vocab_size, special_tokens, pattern, min_frequency):
    expected = json.loads(train_with_library(corpus, vocab_size, special_tokens, pattern, min_frequency).to_str())
    tokenizer = BPETokenizer.train(
        iter(corpus), vocab_size, iter(special_tokens), pattern=pattern, min_frequency=min_frequency
    )
    got = saved(tokenizer, tmp_path_factory.mktemp("trained"))
    assert got["model"] == expected["model"] | {"ignore_merges": False}
    assert {k: got[k] for k in got if k != "model"} == {k: expected[k] for k in expected if k != "model"}


def test_training_on_many_words_equals_the_library():
    rng = random.Random(0)
    syllables = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in ("a", "e", "i", "o", "an", "er")]
    lexicon = ["".join(rng.choices(syllables, k=rng.randrange(1, 5))) for _ in range(2000)]
    corpus = [" ".join(rng.choices(lexicon, k=50)).capitalize() + ".\n" for _ in range(200)]
    expected = json.loads(train_with_library(corpus, 1500, [EOS], "gpt2", 2).to_str())["model"]
    tokenizer = BPETokenizer.train(corpus, 1500, [EOS], min_frequency=2)
    tokens = {token_id: token for token, token_id in tokenizer.settings.vocab.items()}
    assert tokenizer.settings.vocab == expected["vocab"]
    assert [[tokens[a], tokens[b]] for a, b in tokenizer.settings.merges] == expected["merges"]


@relaxed
@given(
    words=st.dictionaries(st.text(alphabet="aab", min_size=1, max_size=12), st.integers(1, 4), max_size=8),
    min_frequency=st.integers(0, 4),
)
def test_indexed_training_equals_naive(words, min_frequency):
    vocabs = [{"a": 0, "b": 1, "ab": 2}, {"a": 0, "b": 1, "ab": 2}]
    merges = learn_merges(words, vocabs[0], 20, min_frequency)
    assert merges == learn_merges_naive(words, vocabs[1], 20, min_frequency)
    assert vocabs[0] == vocabs[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": 256, "special_tokens": [EOS]}, "vocab_size >= 257.*got 256"),
        ({"texts": "one text"}, "got one str"),
        ({"special_tokens": "<s>"}, "got one str"),
        ({"special_tokens": [""]}, "not empty"),
        ({"special_tokens": [EOS], "eos_token": "</s>"}, "eos_token.*</s>"),
        ({"texts": ["a\ud800"]}, "lone surrogate.*position 1"),
        ({"pattern": "(("}, "not a regular expression"),
    ],
)
def test_training_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        BPETokenizer.train(**{"texts": ["abc"], "vocab_size": 300} | arguments)


def test_training_names_the_tokens_that_begin_and_end(capsys):
    tokenizer = BPETokenizer.train(["ab"], 300, ["<s>", EOS], bos_token="<s>", eos_token=EOS)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (0, (1,))
    assert tokenizer.special_tokens == {"<s>": 0, EOS: 1}
    assert tokenizer.vocab_size == 259  # 256 bytes, two special tokens, "ab"
    assert capsys.readouterr().err == ""  # no progress bar unless asked for
