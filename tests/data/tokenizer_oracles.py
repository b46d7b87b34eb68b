"""Tokenizers made by the `tokenizers` library, the oracle of `BPETokenizer`, and texts hard to encode."""

from __future__ import annotations

import json
import random
from functools import cache
from tempfile import TemporaryDirectory

import tokenizers
from hypothesis import settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from minillm.data import BPETokenizer
from minillm.data.pretokenize import NAMED_PATTERNS

EOS = "<|endoftext|>"
CORPUS = [
    "Once upon a time, there was a little fox named Mimi. She didn't like the rain, and she'd say so.\n",
    "def add(a, b):\n    return a + b  # 12345 + 67890 == 80235\n\n\tprint(add(1, 22))\r\n",
    "Der Fuchs läuft über die Brücke; naïve café, déjà vu. Они пошли домой. 狐は雨が嫌い。😀👩‍👩‍👧🇫🇷 e\u0301",
    "IT'S 'Tis we'LL I'M ... !!! --- aaaaaaaabbbbbbbb the the the there then thethethe  \n\n  \n end",
] * 3
PIECES = [
    EOS, "<|end", "<tool>", "<|pad|>", "cafe\u0301", "é", "e\u0301", " the", "there",
    "'s", "'LL", "'ſ", "zebra", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000",
    "\u0085", "\x1c", "\x00", "1234567", "٣٤", "Ⅻ", "½", "😀", "👩‍👩‍👧", "\ufe0f", "狐は",
    "ﬁ", "\u1e9b\u0323", "aaaa", "bbb", "+=", "#", "Ġ", "\U0010ffff", "\ufffd",
]  # fmt: skip
texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), max_size=12).map("".join)
relaxed = settings(max_examples=60, deadline=None, derandomize=True)


def byte_level(pattern: str) -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer of the library for one of `NAMED_PATTERNS`."""
    if pattern == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Split(Regex(NAMED_PATTERNS[pattern]), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def train_with_library(
    corpus: list[str], vocab_size: int, special_tokens: list[str], pattern: str, min_frequency: int
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level(pattern)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


@cache
def oracles() -> dict[str, Tokenizer]:
    """Tokenizers made by the library, in the styles found in the wild."""
    gpt2 = train_with_library(CORPUS, 420, [EOS, "<|pad|>"], "gpt2", 0)

    llama3 = train_with_library(CORPUS, 400, [], "llama3", 2)
    llama3.add_special_tokens([EOS, "<|pad|>", EOS + "!"])  # ids after the vocabulary; one begins like another
    bos = llama3.token_to_id("<|pad|>")
    template = processors.TemplateProcessing(
        single=f"<|pad|> $A {EOS}:1",
        pair=f"<|pad|> $A {EOS}:1 $B:1",
        special_tokens=[("<|pad|>", bos), (EOS, llama3.token_to_id(EOS))],
    )
    llama3.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    content = json.loads(llama3.to_str())
    content["model"]["ignore_merges"] = True
    words = ["zebra", "Ġzebra", "aaaaaa"]  # tokens that no merge makes; the ids of the special tokens move up
    _insert_tokens(content, words)
    llama3 = Tokenizer.from_str(json.dumps(content))

    qwen2 = train_with_library(CORPUS, 400, [], "qwen2", 0)
    qwen2.normalizer = normalizers.NFC()
    qwen2.add_special_tokens([EOS])
    qwen2.add_tokens(
        [
            tokenizers.AddedToken("<tool>", normalized=False),
            tokenizers.AddedToken("caf\u00e9", normalized=True),
        ]
    )

    content = json.loads(gpt2.to_str())
    random.Random(0).shuffle(content["model"]["merges"])  # ranks that training would not give
    shuffled = Tokenizer.from_str(json.dumps(content))
    return {"gpt2": gpt2, "llama3": llama3, "qwen2": qwen2, "shuffled": shuffled}


def _insert_tokens(content: dict, words: list[str]) -> None:
    """Append `words` to the vocabulary of a tokenizer.json, and move the ids of its added tokens up."""
    vocab = content["model"]["vocab"]
    for word in words:
        vocab[word] = len(vocab)
    for token in content["added_tokens"]:
        token["id"] += len(words)
    for processor in content["post_processor"]["processors"]:
        for token in processor.get("special_tokens", {}).values():
            token["ids"] = [token_id + len(words) for token_id in token["ids"]]


@cache
def pairs() -> dict[str, tuple[Tokenizer, BPETokenizer]]:
    """Each tokenizer of `oracles` beside the one that `BPETokenizer` reads from its file."""
    loaded = {}
    with TemporaryDirectory() as folder:
        for name, oracle in oracles().items():
            oracle.save(f"{folder}/{name}.json")
            loaded[name] = (oracle, BPETokenizer.from_file(f"{folder}/{name}.json"))
    return loaded


STYLES = ["gpt2", "llama3", "qwen2", "shuffled"]
