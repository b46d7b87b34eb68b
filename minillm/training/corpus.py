"""Where documents come from: the story grammar, or the user's own text; and how they become token ids.

A document is encoded as `[bos] text [eos]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from minillm.data.tokenizer import Tokenizer

DOCUMENT_SEPARATOR = "<|endoftext|>"
HELD_OUT_SHARE = 0.05
HELD_OUT_SEED_OFFSET = 2**32
"""Training seeds lie below this number, so no training run draws from the seeds that stories are held out by."""


@dataclass(frozen=True)
class DocumentEncoder:
    """Encodes whole documents as `[bos] text [eos]`. Special tokens spelled out in the text are plain text."""

    tokenizer: Tokenizer
    bos_token_id: int
    eos_token_id: int

    def __call__(self, text: str) -> list[int]:
        token_ids = self.tokenizer.encode(text, add_special_tokens=False, allow_special=False)
        return [self.bos_token_id, *token_ids, self.eos_token_id]


def training_stories(seed: int) -> Iterator[str]:
    """The endless training text of `seed`, in order."""
    from minillm.data.stories import stories

    return (story.text for story in stories(seed, 0))


def held_out_stories(seed: int, num_stories: int) -> tuple[list[str], list[float]]:
    """`num_stories` stories that no run trains on, and the exact −log p of each in nats."""
    from minillm.data.stories import stories

    drawn = list(islice(stories(seed + HELD_OUT_SEED_OFFSET, 0), num_stories))
    return [story.text for story in drawn], [-story.log_prob for story in drawn]


def read_text_files(paths: Sequence[str | Path]) -> list[str]:
    """The documents of UTF-8 text files: those between `<|endoftext|>` markers, else one document a file.

    Raises `OSError` for a file that cannot be read, `ValueError` for one that is not UTF-8 or when nothing is left.
    """
    documents: list[str] = []
    for path in paths:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
        documents += [part.strip() for part in text.split(DOCUMENT_SEPARATOR)]
    documents = [document for document in documents if document]
    if not documents:
        raise ValueError(f"no text in {', '.join(map(str, paths))}")
    return documents


def hold_out(documents: Sequence[str], share: float = HELD_OUT_SHARE) -> tuple[list[str], list[str]]:
    """Splits off the last `share` of all characters: (training documents, held-out documents).

    The document on the border is cut there, at a blank if one is near, so that a single long document can be split as
    well.
    """
    num_training = int(sum(map(len, documents)) * (1 - share))
    for i, document in enumerate(documents):
        if len(document) > num_training:
            cut = document.rfind(" ", 0, num_training + 1)
            cut = cut if cut > 0 else num_training
            before, after = document[:cut].strip(), document[cut:].strip()
            training = [*documents[:i], *([before] if before else [])]
            return training, [*([after] if after else []), *documents[i + 1 :]]
        num_training -= len(document)
    return list(documents), []


def distinct_words(documents: Iterable[str]) -> list[str]:
    """The distinct words of `documents` in lower case, sorted; apostrophes inside a word belong to it."""
    words: set[str] = set()
    for document in documents:
        words.update(re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", document.lower()))
    return sorted(words)
