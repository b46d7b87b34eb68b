"""What the contiguous cache refuses, and that it stays usable afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minillm.cache import ContiguousCache
from tests.cache.feeding import (
    UNLIMITED,
    WINDOWED,
    assert_equal,
    cache_for,
    feed,
    full,
    model_with,
    padded,
    random_ids,
)
from tests.helpers import tiny_model


def test_gradients_are_refused_and_the_cache_survives() -> None:
    model = tiny_model().double()
    cache, text = cache_for(model, 1), random_ids(6)
    for trained in (model, model.blocks[-1].attention.wq):
        model.requires_grad_(False)
        trained.requires_grad_(True)
        attend = cache.begin([6])
        with pytest.raises(RuntimeError, match="gradient"):
            model(padded([text]), attend.positions, attend)
        with torch.no_grad():
            assert_equal(model(padded([text]), attend.positions, attend)[0], full(model, text))


def test_a_cache_of_another_dtype_is_refused() -> None:
    model = model_with(UNLIMITED)
    attend = ContiguousCache(model.layer_specs, 1).begin([1])
    with pytest.raises(ValueError, match=r"torch.float32.*torch.float64"):
        model(torch.tensor([[1]]), attend.positions, attend)


@pytest.mark.parametrize("shape", [(2, 2), (1, 3), (3,)])
def test_tokens_of_another_shape_than_announced(shape: tuple[int, ...]) -> None:
    model = model_with(UNLIMITED)
    attend = cache_for(model, 2).begin([3, 1])
    with pytest.raises(ValueError, match=r"\(2, 3\) as in begin"):
        model(torch.ones(shape, dtype=torch.long), torch.zeros(1, dtype=torch.long), attend)


@pytest.mark.parametrize("lens", [[], [1], [1, 1, 1], [1, -1], [0, 0]])
def test_begin_refuses_lengths(lens: list[int]) -> None:
    with pytest.raises(ValueError, match="expected 2 query lengths"):
        cache_for(model_with(UNLIMITED), 2).begin(lens)


@pytest.mark.parametrize(
    "mask",
    [
        torch.zeros(3, 3),
        torch.ones(2, 2, dtype=torch.bool),
        torch.ones(3, 3, 3, dtype=torch.bool),
        torch.ones(2, 1, 3, 3, dtype=torch.bool),
        torch.ones(3, dtype=torch.bool),
    ],
    ids=["float", "size", "batch", "axes", "one axis"],
)
def test_begin_refuses_masks(mask: Tensor) -> None:
    cache = cache_for(model_with(UNLIMITED), 2)
    with pytest.raises(ValueError, match=r"boolean mask .*\(2, 3, 3\)"):
        cache.begin([3, 1], mask=mask)
    with pytest.raises(RuntimeError, match="without begin"):
        cache.commit()


def test_a_mask_and_windows_exclude_one_another() -> None:
    with pytest.raises(ValueError, match="window"):
        cache_for(model_with(WINDOWED), 1).begin([2], mask=torch.eye(2, dtype=torch.bool))


def test_commit_needs_a_begin_of_its_own() -> None:
    model = model_with(UNLIMITED)
    cache = cache_for(model, 1)
    with pytest.raises(RuntimeError, match="without begin"):
        cache.commit()
    feed(model, cache, [[1, 2]])
    for cancel in (lambda: cache.crop([1]), lambda: cache.reorder([0]), cache.commit):
        cache.begin([2])
        cancel()
        with pytest.raises(RuntimeError, match="without begin"):
            cache.commit()


@pytest.mark.parametrize(
    "keep", [[[0]], [[0], [0], [0]], [[3], []], [[-1], []], [[0], [1]], [[1, 0], []], [[0, 0], []]]
)
def test_commit_refuses_tokens_that_are_not_new(keep: list[list[int]]) -> None:
    model = model_with(UNLIMITED)
    cache = cache_for(model, 2)
    text = random_ids(3)
    attend = cache.begin([3, 1])
    model(padded([text, [5]]), attend.positions, attend)
    with pytest.raises(ValueError, match=r"keep must name new tokens.*\[3, 1\]"):
        cache.commit(keep=keep)
    assert cache.seq_lens == [0, 0]
    cache.commit()
    assert_equal(feed(model, cache, [[8], [8]])[0], full(model, [*text, 8])[-1:])


def test_crop_and_reorder_refuse_what_is_not_there() -> None:
    model = model_with(UNLIMITED)
    cache = cache_for(model, 2)
    feed(model, cache, [[1, 2, 3], [4]])
    for seq_lens in ([4, 1], [3, -1], [3], [3, 1, 0]):
        with pytest.raises(ValueError, match=r"\[3, 1\]"):
            cache.crop(seq_lens)
    for rows in ([], [2], [0, -1]):
        with pytest.raises(ValueError, match="rows 0…1"):
            cache.reorder(rows)
    assert cache.seq_lens == [3, 1]


def test_sizes_below_one_are_refused() -> None:
    model = model_with(UNLIMITED)
    with pytest.raises(ValueError, match="batch_size"):
        ContiguousCache(model.layer_specs, 0)
    with pytest.raises(ValueError, match="max_seq_len"):
        ContiguousCache(model.layer_specs, 1, max_seq_len=0)
