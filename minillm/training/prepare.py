"""What a run needs before its first step: a tokenizer, encoded documents, held-out documents.

Everything is written to the run's `data/` folder once and read from there when the run is resumed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from torch import nn
from tqdm import tqdm

from minillm.config import ModelConfig
from minillm.data import BPETokenizer, load_tokenizer
from minillm.data.tokenizer import Tokenizer
from minillm.training import corpus
from minillm.training.config import TrainConfig
from minillm.training.data import Rows, has_token_file, read_token_file, take_enough, write_token_file
from minillm.training.evaluate import StoryEvaluation, TextEvaluation, evaluate_documents, evaluate_text
from minillm.training.state import write_text_atomically

BOS_TOKEN = "<|begin_of_text|>"
EOS_TOKEN = "<|end_of_text|>"
TOKENIZER_DOCUMENTS = 5000
TOKENIZER_CHARACTERS = 20_000_000
"""The tokenizer is trained on the first documents, up to both of these."""


@dataclass(frozen=True)
class Prepared:
    """The data of a run. `evaluate(model, num_stories, dtype)` measures held-out loss; `words()` lists the words
    of the text.
    """

    tokenizer: Tokenizer
    model_config: ModelConfig
    rows: Rows
    evaluate: Callable[[nn.Module, int, str], StoryEvaluation | TextEvaluation]
    words: Callable[[], list[str]]


def prepare(
    config: TrainConfig,
    model_config: ModelConfig,
    text_files: Iterable[str],
    tokenizer_file: str | None,
    directory: Path,
    say: Callable[[str], None],
) -> Prepared:
    """Tokenizer, rows and held-out documents, made or found in `directory`.

    `Prepared.model_config` is `model_config` with the tokenizer's vocabulary size, bos and eos.
    """
    directory.mkdir(parents=True, exist_ok=True)
    text_files = list(text_files)
    training, held_out = corpus.hold_out(corpus.read_text_files(text_files)) if text_files else ([], [])
    sample = iter(training) if text_files else corpus.training_stories(config.seed)
    tokenizer = prepare_tokenizer(sample, model_config.vocab_size, tokenizer_file, directory / "tokenizer.json", say)
    encode = document_encoder(tokenizer)
    model_config = replace(
        model_config,
        vocab_size=tokenizer.vocab_size,
        bos_token_id=encode.bos_token_id,
        eos_token_ids=(encode.eos_token_id,),
    )
    if text_files:
        return _prepare_text(config, model_config, tokenizer, encode, training, held_out, directory, say)
    return _prepare_stories(config, model_config, tokenizer, encode, directory, say)


def prepare_tokenizer(
    texts: Iterator[str], vocab_size: int, tokenizer_file: str | None, path: Path, say: Callable[[str], None]
) -> Tokenizer:
    """The tokenizer at `path`: there already, copied from `tokenizer_file`, or trained on the beginning of `texts`.

    A small `generation_config.json` beside it names the tokens that begin and end a document.
    """
    if path.exists():
        return load_tokenizer(path)
    partial = path.with_name("partial." + path.name)
    if tokenizer_file is not None:
        tokenizer = load_tokenizer(tokenizer_file)
        shutil.copyfile(tokenizer_file, partial)
    else:
        say(f"training a tokenizer of {vocab_size} tokens")
        tokenizer = train_tokenizer(texts, vocab_size)
        tokenizer.save(partial)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": list(tokenizer.eos_token_ids)}
    write_text_atomically(path.with_name("generation_config.json"), json.dumps(ends) + "\n")
    partial.replace(path)
    return load_tokenizer(path)


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> BPETokenizer:
    """Byte-level BPE with Llama 3's way of cutting words; `encode` puts bos in front, as Llama's tokenizer does."""
    sample: list[str] = []
    num_characters = 0
    for text in islice(texts, TOKENIZER_DOCUMENTS):
        sample.append(text[: TOKENIZER_CHARACTERS - num_characters])
        num_characters += len(sample[-1])
        if num_characters >= TOKENIZER_CHARACTERS:
            break
    names = (BOS_TOKEN, EOS_TOKEN)
    learned = BPETokenizer.train(sample, vocab_size, names, pattern="llama3", bos_token=BOS_TOKEN, eos_token=EOS_TOKEN)
    settings = replace(learned.settings, prefix_ids=(learned.special_tokens[BOS_TOKEN],))
    return BPETokenizer(settings, bos_token_id=learned.bos_token_id, eos_token_ids=learned.eos_token_ids)


def document_encoder(tokenizer: Tokenizer) -> corpus.DocumentEncoder:
    """How documents are framed. A tokenizer without bos (GPT-2, Qwen) has eos stand before the document as well."""
    if not tokenizer.eos_token_ids:
        raise ValueError("the tokenizer names no end-of-text token; training needs one to end documents")
    bos_token_id, eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_ids[0]
    return corpus.DocumentEncoder(tokenizer, eos_token_id if bos_token_id is None else bos_token_id, eos_token_id)


def _prepare_stories(
    config: TrainConfig,
    model_config: ModelConfig,
    tokenizer: Tokenizer,
    encode: corpus.DocumentEncoder,
    directory: Path,
    say: Callable[[str], None],
) -> Prepared:
    row_len = config.seq_len + 1
    if not has_token_file(directory, "train"):
        say(f"telling and encoding stories for {config.num_rows} rows of {row_len} tokens")
        endless = (np.array(encode(text), dtype=np.uint32) for text in corpus.training_stories(config.seed))
        enough = take_enough(endless, row_len=row_len, num_rows=config.num_rows)
        write_token_file(directory, "train", _with_bar(enough, "encoding"), vocab_size=tokenizer.vocab_size)
    file = read_token_file(directory, "train", vocab_size=tokenizer.vocab_size)
    rows = Rows(file, row_len)
    if len(rows) < config.num_rows:
        raise ValueError(
            f"{directory / 'train.bin'} fills {len(rows)} rows, the run needs {config.num_rows}; delete it"
        )

    cache: dict[int, tuple[list[list[int]], list[float]]] = {}

    def evaluate(model: nn.Module, num_stories: int, dtype: str) -> StoryEvaluation:
        if num_stories not in cache:
            texts, nats = corpus.held_out_stories(config.seed, num_stories)
            cache[num_stories] = ([encode(text) for text in texts], nats)
        return evaluate_documents(model, *cache[num_stories], dtype=dtype)

    def words() -> list[str]:
        from minillm.data.stories import vocabulary

        return ["# new names are fine", *sorted(vocabulary())]

    say(f"{file.num_documents:,} stories, {len(file.tokens):,} tokens")
    return Prepared(tokenizer, model_config, rows, evaluate, words)


def _prepare_text(
    config: TrainConfig,
    model_config: ModelConfig,
    tokenizer: Tokenizer,
    encode: corpus.DocumentEncoder,
    training: list[str],
    held_out: list[str],
    directory: Path,
    say: Callable[[str], None],
) -> Prepared:
    row_len = config.seq_len + 1
    if not has_token_file(directory, "train"):
        documents = (np.array(encode(text), dtype=np.uint32) for text in training)
        write_token_file(directory, "train", _with_bar(documents, "encoding"), vocab_size=tokenizer.vocab_size)
    file = read_token_file(directory, "train", vocab_size=tokenizer.vocab_size)
    rows = Rows(file, row_len, shuffle_seed=config.seed, cut_long=True)
    if not held_out:
        raise ValueError("the text is too short to hold any of it out for evaluation")
    pieces = [encode(text) for text in held_out]
    num_bytes = sum(len(text.encode()) for text in held_out)
    pieces = [ids[i : i + row_len] for ids in pieces for i in range(0, len(ids) - 1, row_len - 1)]

    def evaluate(model: nn.Module, num_stories: int, dtype: str) -> TextEvaluation:
        return evaluate_text(model, pieces, num_bytes=num_bytes, dtype=dtype)

    epochs = config.num_rows / len(rows)
    say(f"{file.num_documents:,} documents, {len(file.tokens):,} tokens: {epochs:.1f} epochs")
    return Prepared(tokenizer, model_config, rows, evaluate, lambda: corpus.distinct_words(training))


def _with_bar(documents: Iterable[np.ndarray], description: str) -> Iterator[np.ndarray]:
    """Passes documents on while a bar (on stderr, on a terminal only) counts their tokens."""
    with tqdm(desc=description, unit=" tokens", unit_scale=True, disable=None) as bar:
        for token_ids in documents:
            yield token_ids
            bar.update(len(token_ids))
