"""From documents to batches: a file of token ids, rows cut from it, batches as a pure function of the row number.

**How rows are made.** A row holds `row_len` tokens and starts where a document starts::

    [bos] text [eos] [bos] text [eos] [bos] te        the row ends here; "xt [eos]" is dropped
    [bos] the next document ...

Cutting one long stream every `row_len` tokens would waste nothing, but most rows would then start in the middle of a
document: the model would be asked who found "it" without ever having seen what "it" was, and would learn to guess.
Here every token stands in a row with everything that comes before it in its document, so each conditional
distribution that the model learns is the true one. The price is the tail of the last document of each row. Where the
source has no end (the stories) that costs nothing at all; where it has one, another epoch cuts elsewhere, since the
order changes.

A document longer than a row (a novel) is first cut into pieces that fill a row each, and pieces are then treated as
documents.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

IGNORED_TARGET = -100
"""The target of padding: cross entropy skips it."""


@dataclass(frozen=True)
class TokenFile:
    """Encoded documents on disk: `tokens` one after another, document i at `offsets[i]:offsets[i + 1]`.

    `tokens` (num_tokens,) uint16 or uint32, memory-mapped; `offsets` (num_documents + 1,) int64.
    """

    tokens: np.ndarray
    offsets: np.ndarray

    @property
    def num_documents(self) -> int:
        return len(self.offsets) - 1


def write_token_file(directory: Path, name: str, documents: Iterable[np.ndarray], *, vocab_size: int) -> TokenFile:
    """Writes `directory/name.bin` and `name.offsets.npy` and opens them.

    `documents` yields arrays of token ids below `vocab_size`. Both files are written under a temporary name and
    renamed when complete, the offsets last: where they exist, the pair is whole, and an interruption leaves nothing
    that looks finished.
    """
    directory.mkdir(parents=True, exist_ok=True)
    dtype = np.uint16 if vocab_size <= 2**16 else np.uint32
    offsets = [0]
    partial = directory / f"{name}.bin.partial"
    with open(partial, "wb") as file:
        for token_ids in documents:
            file.write(np.asarray(token_ids, dtype=dtype).tobytes())
            offsets.append(offsets[-1] + len(token_ids))
    os.replace(partial, directory / f"{name}.bin")
    partial_offsets = directory / f"{name}.offsets.partial.npy"
    np.save(partial_offsets, np.array(offsets, dtype=np.int64))
    os.replace(partial_offsets, directory / f"{name}.offsets.npy")
    return read_token_file(directory, name, vocab_size=vocab_size)


def has_token_file(directory: Path, name: str) -> bool:
    """Whether a complete pair written by `write_token_file` is there."""
    return (directory / f"{name}.offsets.npy").is_file() and (directory / f"{name}.bin").is_file()


def read_token_file(directory: Path, name: str, *, vocab_size: int) -> TokenFile:
    """Opens a pair written by `write_token_file`. Raises `ValueError` when the two files do not fit each other."""
    dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
    offsets = np.load(directory / f"{name}.offsets.npy")
    path = directory / f"{name}.bin"
    num_bytes = path.stat().st_size
    if num_bytes != int(offsets[-1]) * dtype.itemsize:
        raise ValueError(
            f"{path} should hold {int(offsets[-1])} tokens of {dtype.itemsize} bytes, it has {num_bytes} bytes"
        )
    tokens = np.memmap(path, dtype=dtype, mode="r") if num_bytes else np.empty(0, dtype)
    return TokenFile(tokens, offsets)


def take_enough(documents: Iterable[np.ndarray], *, row_len: int, num_rows: int) -> Iterator[np.ndarray]:
    """Passes documents on until they fill `num_rows` rows: how much of an endless source a run needs."""
    filled = rows = 0
    for token_ids in documents:
        if rows == num_rows:
            return
        yield token_ids
        filled += min(len(token_ids), row_len)
        if filled >= row_len:
            filled, rows = 0, rows + 1


class Rows:
    """The rows of a run, numbered from 0: `rows[i]` depends on the files, the settings and i alone.

    A resumed run therefore needs no reader state: its step number says which rows come next.

    - `shuffle_seed=None`: documents in file order, one epoch; `len(rows)` rows exist (stories).
    - otherwise each epoch takes the pieces in another order, drawn from `(shuffle_seed, epoch)`, and rows never end
      (text).

    `cut_long=True` keeps the rest of documents longer than a row as further pieces, which overlap by one token so that
    every token is a target once; `False` keeps only their beginning, the part with its full context.
    """

    def __init__(
        self, file: TokenFile, row_len: int, *, shuffle_seed: int | None = None, cut_long: bool = False
    ) -> None:
        if row_len < 2:
            raise ValueError(f"row_len must be at least 2 (a token and its target), got {row_len}")
        self.file = file
        self.row_len = row_len
        self.shuffle_seed = shuffle_seed
        self.starts, self.lengths = _pieces(file.offsets, row_len, cut_long)
        if len(self.starts) == 0:
            raise ValueError("no document to train on: the text is empty")
        self._first_rows: list[int] = [0]  # number of the first row of each epoch known so far
        self._epoch = -1
        self._enter_epoch(0)

    def __len__(self) -> int:
        """Rows in the first epoch, the unfilled last row left out (unless it is the only one)."""
        return self._first_rows[1]

    def __getitem__(self, row: int) -> np.ndarray:
        """Row `row`: (at most row_len,) int64; shorter only when the whole text is shorter than a row."""
        while row >= self._first_rows[-1]:
            if self.shuffle_seed is None:
                raise IndexError(f"row {row} asked for, the documents fill {len(self)} rows of {self.row_len} tokens")
            self._enter_epoch(len(self._first_rows) - 1)
        epoch = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        if epoch != self._epoch:
            self._enter_epoch(epoch)
        return self._read(int(self._row_starts[row - self._first_rows[epoch]]))

    def _enter_epoch(self, epoch: int) -> None:
        num_pieces = len(self.starts)
        if self.shuffle_seed is None:
            self._order = np.arange(num_pieces)
        else:
            self._order = np.random.default_rng((self.shuffle_seed, epoch)).permutation(num_pieces)
        self._row_starts = _pack(self.lengths[self._order], self.row_len)
        self._epoch = epoch
        if epoch == len(self._first_rows) - 1:
            self._first_rows.append(self._first_rows[-1] + len(self._row_starts))

    def _read(self, place: int) -> np.ndarray:
        parts: list[np.ndarray] = []
        missing = self.row_len
        while missing and place < len(self._order):
            piece = self._order[place]
            start = self.starts[piece]
            parts.append(self.file.tokens[start : start + min(self.lengths[piece], missing)])
            missing -= len(parts[-1])
            place += 1
        return np.concatenate(parts).astype(np.int64)


def _pieces(offsets: np.ndarray, row_len: int, cut_long: bool) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths of the pieces, each at most `row_len` long and at least 2 (a single token has no target)."""
    starts, lengths = offsets[:-1], np.diff(offsets)
    if cut_long and len(lengths) and lengths.max() > row_len:
        stride = row_len - 1  # the last token of a piece is the first of the next: an input there, a target here
        counts = np.maximum(1, -(-(lengths - 1) // stride))
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = np.repeat(starts, counts) + within * stride
        lengths = np.repeat(lengths, counts) - within * stride
    lengths = np.minimum(lengths, row_len)
    usable = lengths >= 2
    return starts[usable], lengths[usable]


def _pack(lengths: np.ndarray, row_len: int) -> np.ndarray:
    """The place (index into the ordered pieces) at which each full row starts; one short row if there is no full
    one.
    """
    ends = np.cumsum(lengths)
    row_starts, place, before = [], 0, 0
    while place < len(lengths):
        last = int(np.searchsorted(ends, before + row_len))  # the piece in which the row is full
        if last == len(lengths):
            break
        row_starts.append(place)
        place, before = last + 1, int(ends[last])
    return np.array(row_starts or [0], dtype=np.int64)


def batch_at(rows: Rows, first_row: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows `first_row ... first_row + batch_size - 1` as (inputs, targets), both (batch_size, row_len - 1) int64.

    Targets are the inputs one place to the left; targets of padding are `IGNORED_TARGET`.
    """
    width = rows.row_len - 1
    inputs = np.zeros((batch_size, width), dtype=np.int64)
    targets = np.full((batch_size, width), IGNORED_TARGET, dtype=np.int64)
    for row in range(batch_size):
        token_ids = rows[first_row + row]
        inputs[row, : len(token_ids) - 1] = token_ids[:-1]
        targets[row, : len(token_ids) - 1] = token_ids[1:]
    return torch.from_numpy(inputs), torch.from_numpy(targets)
