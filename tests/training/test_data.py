"""Rows against a packing written out token by token."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.training.data import (
    IGNORED_TARGET,
    Rows,
    TokenFile,
    batch_at,
    has_token_file,
    read_token_file,
    take_enough,
    write_token_file,
)


def token_file(lengths: list[int]) -> TokenFile:
    """Every token is its own place in the file, so that a row says where it came from."""
    offsets = np.cumsum([0, *lengths])
    return TokenFile(np.arange(offsets[-1], dtype=np.uint32), offsets)


def pack_token_by_token(documents: list[list[int]], row_len: int) -> list[list[int]]:
    rows, row = [], []
    for document in documents:
        for token_id in document:
            row.append(token_id)
            if len(row) == row_len:
                rows.append(row)
                row = []
                break  # the rest of the document is dropped
    return rows


@given(st.lists(st.integers(2, 12), min_size=1, max_size=30), st.integers(2, 15))
@settings(max_examples=60, deadline=None)
def test_rows_start_at_documents(lengths: list[int], row_len: int) -> None:
    file = token_file(lengths)
    documents = [file.tokens[a:b].tolist() for a, b in zip(file.offsets, file.offsets[1:], strict=False)]
    expected = pack_token_by_token(documents, row_len)
    rows = Rows(file, row_len)
    if expected:
        assert [rows[i].tolist() for i in range(len(rows))] == expected
        assert all(row[0] in file.offsets for row in expected)
        with pytest.raises(IndexError, match="asked for"):
            rows[len(rows)]
    else:
        assert rows[0].tolist() == file.tokens.tolist()[:row_len]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(2, 9), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_shuffled_epochs(lengths: list[int], row_len: int, seed: int) -> None:
    file = token_file(lengths)
    if max(lengths) < 2:
        with pytest.raises(ValueError, match="empty"):
            Rows(file, row_len, shuffle_seed=seed, cut_long=True)
        return
    rows = Rows(file, row_len, shuffle_seed=seed, cut_long=True)
    read = [rows[i].tolist() for i in range(30)]
    for i in (17, 3, 29, 0):  # any order of asking, and another object, give the same rows
        assert Rows(file, row_len, shuffle_seed=seed, cut_long=True)[i].tolist() == read[i]
        assert rows[i].tolist() == read[i]
    for row in read:  # a piece continues until its document or the row ends
        for a, b in zip(row, row[1:], strict=False):
            assert b == a + 1 or a + 1 in file.offsets or len(row) == row_len


def test_pieces_of_a_long_document_make_every_token_a_target_once() -> None:
    rows = Rows(token_file([101]), 11, shuffle_seed=0, cut_long=True)
    targets = sorted(token_id for i in range(len(rows)) for token_id in rows[i][1:].tolist())
    assert targets == list(range(1, 101))


def test_epochs_differ_and_hold_the_same_pieces() -> None:
    rows = Rows(token_file([8] * 20), 8, shuffle_seed=1)
    first, second = ([rows[i + 20 * epoch].tolist() for i in range(20)] for epoch in (0, 1))
    assert first != second and sorted(first) == sorted(second)
    other = Rows(token_file([8] * 20), 8, shuffle_seed=2)
    assert [other[i].tolist() for i in range(20)] != first


@given(st.lists(st.integers(2, 12), min_size=1, max_size=5), st.integers(2, 15), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_an_endless_source_is_read_just_far_enough(lengths: list[int], row_len: int, num_rows: int) -> None:
    endless = (np.full(lengths[i % len(lengths)], i) for i in count())
    taken = list(take_enough(endless, row_len=row_len, num_rows=num_rows))
    rows = Rows(token_file([len(document) for document in taken]), row_len)
    assert len(rows) == num_rows
    assert len(pack_token_by_token([list(d) for d in taken[:-1]], row_len)) == num_rows - 1


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_file_round_trip(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    documents = [[0, vocab_size - 1, 1], [5], [7, 8]]
    written = write_token_file(tmp_path, "train", map(np.array, documents), vocab_size=vocab_size)
    read = read_token_file(tmp_path, "train", vocab_size=vocab_size)
    for file in (written, read):
        assert file.tokens.dtype == dtype and file.num_documents == 3
        assert file.tokens.tolist() == sum(documents, []) and file.offsets.tolist() == [0, 3, 4, 6]
    (tmp_path / "train.bin").write_bytes(b"123")
    with pytest.raises(ValueError, match="should hold 6 tokens"):
        read_token_file(tmp_path, "train", vocab_size=vocab_size)


def test_an_interruption_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    def documents():
        yield np.array([1, 2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_token_file(tmp_path, "train", documents(), vocab_size=9)
    assert not has_token_file(tmp_path, "train")


def test_batches_shift_targets_and_mask_padding() -> None:
    inputs, targets = batch_at(Rows(token_file([3, 9]), 6), 0, 1)
    assert inputs.tolist() == [[0, 1, 2, 3, 4]] and targets.tolist() == [[1, 2, 3, 4, 5]]
    inputs, targets = batch_at(Rows(token_file([3]), 6, shuffle_seed=0), 4, 2)  # a text shorter than a row
    assert inputs.shape == targets.shape == (2, 5) and inputs.dtype == targets.dtype == torch.int64
    assert targets.tolist() == [[1, 2, IGNORED_TARGET, IGNORED_TARGET, IGNORED_TARGET]] * 2
