"""The static cache beside the contiguous one: same interface, same logits, and memory that never moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minillm.attention import flash_decoding
from minillm.cache import ContiguousCache, StaticCache, static
from minillm.model import Transformer
from tests.cache.feeding import (
    MODES,
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
from tests.model.tiny_mla import tiny_mla_model

CAPACITY = 24


def static_for(model: Transformer, batch_size: int, max_seq_len: int = CAPACITY) -> StaticCache:
    return StaticCache(model.layer_specs, batch_size, max_seq_len=max_seq_len, dtype=torch.float64)


def addresses(cache: StaticCache) -> list[int]:
    tensors = [*cache.k, *(slab for slab in cache.v if slab is not None), cache.positions, cache._bounds]
    return [tensor.data_ptr() for tensor in tensors]


def forward(model: Transformer, cache: Any, rows: Sequence[Sequence[int]], **kwargs: Any) -> list[Tensor]:
    attend = cache.begin([len(row) for row in rows], **kwargs)
    logits = model(padded(rows), attend.positions, attend)
    return [logits[b, : len(row)] for b, row in enumerate(rows)]


def assert_free_slots_are_zero(cache: StaticCache) -> None:
    for slab in filter(lambda slab: slab is not None, (*cache.k, *cache.v)):
        assert all(slab[row, held:CAPACITY].abs().max() == 0 for row, held in enumerate(cache.seq_lens))


MODELS = {
    "windows": lambda: model_with(WINDOWED),
    "grouped heads": lambda: model_with(UNLIMITED),
    "absorbed": lambda: tiny_mla_model("absorbed"),
    "naive": lambda: tiny_mla_model("naive", windows=(None, 4, None)),
}


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_history_side_by_side_with_the_contiguous_cache(data: st.DataObject) -> None:
    model = MODELS[data.draw(st.sampled_from(sorted(MODELS)))]()
    batch_size = data.draw(st.integers(1, 3))
    ours, theirs = static_for(model, batch_size), cache_for(model, batch_size, CAPACITY)
    where = addresses(ours)
    for step in range(data.draw(st.integers(2, 7))):
        with MODES[data.draw(st.sampled_from(sorted(MODES)))]():
            action = data.draw(st.sampled_from(["feed", "feed", "step", "abandon", "crop", "reorder"]))
            if action == "crop":
                kept = [data.draw(st.integers(0, held)) for held in ours.seq_lens]
                ours.crop(kept)
                theirs.crop(kept)
            elif action == "reorder":
                rows = data.draw(st.lists(st.integers(0, batch_size - 1), min_size=batch_size, max_size=batch_size))
                ours.reorder(rows)
                theirs.reorder(rows)
            else:
                longest = 1 if action == "step" else 5
                lens = [data.draw(st.integers(0, min(longest, CAPACITY - held))) for held in ours.seq_lens]
                if not any(lens):
                    continue
                new = [random_ids(count, 10 * step + b) for b, count in enumerate(lens)]
                expected = forward(model, theirs, new)
                for our_logits, their_logits in zip(forward(model, ours, new), expected, strict=True):
                    assert_equal(our_logits, their_logits)
                if action != "abandon":
                    ours.commit()
                    theirs.commit()
        assert ours.seq_lens == theirs.seq_lens and addresses(ours) == where


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_trees_side_by_side(data: st.DataObject) -> None:
    """Any mask among new tokens, of rows with any lengths, and what is kept of them."""
    model = data.draw(st.sampled_from([model_with(UNLIMITED), tiny_mla_model()]))
    ours, theirs = static_for(model, 2), cache_for(model, 2, CAPACITY)
    for cache in (ours, theirs):
        forward(model, cache, [random_ids(3, 1), random_ids(5, 2)])
        cache.commit()
    for step in range(3):
        lens = data.draw(st.lists(st.integers(0, 4), min_size=2, max_size=2).filter(any))
        q_len = max(lens)
        bits = data.draw(st.lists(st.booleans(), min_size=2 * q_len * q_len, max_size=2 * q_len * q_len))
        mask = torch.tensor(bits).reshape(2, q_len, q_len)
        mask = data.draw(st.sampled_from([mask, mask[0], mask[:1]]))
        new = [random_ids(count, 10 * step + b) for b, count in enumerate(lens)]
        expected = forward(model, theirs, new, mask=mask)
        for our_logits, their_logits in zip(forward(model, ours, new, mask=mask), expected, strict=True):
            assert_equal(our_logits, their_logits)
        keep = [sorted(data.draw(st.sets(st.integers(0, n - 1)))) if n else [] for n in lens]
        for cache in (ours, theirs):
            cache.commit(keep=keep)
        assert ours.seq_lens == theirs.seq_lens


class Recorded(TorchDispatchMode):
    """Each operation with the shapes of its tensors, and the other arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[object]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = tree_leaves((args, kwargs))
        seen = [tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.calls.append((str(func), seen))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("model", [model_with(WINDOWED), model_with(UNLIMITED), tiny_mla_model()])
@pytest.mark.parametrize("lens, same_shape", [([1, 1], [1, 0]), ([4, 2], [1, 4])])
def test_one_shape_means_the_same_operations_whatever_the_lengths(
    model: Transformer, lens: list[int], same_shape: list[int]
) -> None:
    cache = static_for(model, 3)
    recorded = []
    for prompts, new in (([2, 9, 1], lens), ([7, 1, 0], same_shape), ([0, 0, 3], lens)):
        cache.crop([0, 0, 0])
        forward(model, cache, [random_ids(count, 3) for count in prompts])
        cache.commit()
        attend = cache.begin(new)
        tokens = torch.ones(2, max(new), dtype=torch.long)
        with Recorded() as calls:
            model(tokens, attend.positions, attend)
        recorded.append((calls.calls, attend.positions.data_ptr(), attend.key_lens.data_ptr()))
    assert recorded[0] == recorded[1] == recorded[2]


def test_fewer_rows_leave_the_others_alone() -> None:
    model = model_with(WINDOWED)
    cache = static_for(model, 3)
    texts = [random_ids(4, b) for b in range(3)]
    forward(model, cache, texts)
    cache.commit()
    last_row = [slab[2].clone() for slab in (*cache.k, *cache.v)]
    new = random_ids(3, 9)
    ours = forward(model, cache, [new, []])
    assert_equal(ours[0], full(model, texts[0] + new)[4:])
    cache.commit()
    assert cache.seq_lens == [7, 4, 4]
    assert all(map(torch.equal, last_row, (slab[2] for slab in (*cache.k, *cache.v))))
    forward(model, cache, [[5, 6]])
    cache.commit(keep=[[1]])
    assert cache.seq_lens == [8, 4, 4]
    assert_equal(feed(model, cache, [[], [], [7]])[2], full(model, [*texts[2], 7])[4:])


def test_rows_that_are_not_named_are_emptied() -> None:
    model = model_with(WINDOWED)
    cache = static_for(model, 3)
    texts = [random_ids(4, b) for b in range(3)]
    feed(model, cache, texts)
    cache.reorder([2, 0])
    assert cache.seq_lens == [4, 4, 0] and cache.batch_size == 3
    assert_free_slots_are_zero(cache)
    for logits, text in zip(feed(model, cache, [[1], [2], [3]]), [[*texts[2], 1], [*texts[0], 2], [3]], strict=True):
        assert_equal(logits, full(model, text)[-1:])
    with pytest.raises(RuntimeError, match="without begin"):
        cache.commit()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("ending", ["crop", "begin", "keep", "reorder", "abandon and crop", "abandon and reorder"])
def test_what_is_not_finite_ends_with_its_sequence(ending: str, value: float) -> None:
    """Free slots are multiplied by 0, and 0 · NaN is NaN."""
    model, text = model_with(UNLIMITED), random_ids(6)
    cache = static_for(model, 2)
    feed(model, cache, [text[:3], text[:2]])
    attend = cache.begin([2, 3])
    for layer_idx in range(3):
        q, k, v = torch.ones(2, 3, 4, 16), torch.full((2, 3, 2, 16), value), torch.full((2, 3, 2, 16), value)
        attend(layer_idx, q.double(), k.double(), v.double(), 1.0)
    if ending == "keep":
        cache.commit(keep=[[], []])
    elif ending == "crop":
        cache.commit()
        cache.crop([3, 2])
    elif ending == "reorder":
        cache.commit()
        cache.crop([3, 5])
        cache.reorder([0, 0])
    elif ending == "abandon and crop":
        cache.crop([3, 2])
    elif ending == "abandon and reorder":
        cache.reorder([0, 1])
    for slab in (*cache.k, *cache.v):
        slab[:, CAPACITY] = value  # the slot of padding
    ours = feed(model, cache, [text[3:], [9]])
    assert_equal(ours[0], full(model, text)[3:])
    assert_free_slots_are_zero(cache)
    cache.reorder([0])
    assert_equal(feed(model, cache, [[], text])[1], full(model, text))


def test_padding_beyond_the_last_slot() -> None:
    model = model_with(WINDOWED)
    cache, texts = static_for(model, 2, max_seq_len=8), [random_ids(8, 1), random_ids(8, 2)]
    feed(model, cache, [texts[0][:7], texts[1][:1]])
    ours = feed(model, cache, [texts[0][7:], texts[1][1:]])  # row 0: one token and 6 of padding, slots 7 … 13
    assert_equal(ours[0], full(model, texts[0])[7:])
    assert_equal(ours[1], full(model, texts[1])[1:])
    assert cache.seq_lens == [8, 8]
    before = [slab.clone() for slab in (*cache.k, *cache.v)]
    for lens in ([1, 0], [0, 1], [1]):
        with pytest.raises(ValueError, match="overflow: 9 tokens in 8 slots"):
            cache.begin(lens)
    assert all(map(torch.equal, before, (*cache.k, *cache.v)))
    with pytest.raises(RuntimeError, match="without begin"):
        cache.commit()


def test_a_refused_begin_leaves_the_one_before_it() -> None:
    model, text = model_with(UNLIMITED), random_ids(5)
    cache = static_for(model, 1, max_seq_len=8)
    ours = forward(model, cache, [text])
    for bad in ([9], [0], [1, 1]):
        with pytest.raises(ValueError):
            cache.begin(bad)
    with pytest.raises(ValueError, match="boolean mask"):
        cache.begin([2], mask=torch.ones(3, 3, dtype=torch.bool))
    cache.commit()
    assert cache.seq_lens == [5]
    assert_equal(torch.cat([*ours, *feed(model, cache, [[3]])]), full(model, [*text, 3]))


@pytest.mark.parametrize("lens", [[], [1, 1, 1], [1, -1], [0, 0]])
def test_begin_refuses_lengths(lens: list[int]) -> None:
    with pytest.raises(ValueError, match="query lengths"):
        static_for(model_with(UNLIMITED), 2).begin(lens)


def test_other_refusals() -> None:
    model = model_with(UNLIMITED)
    cache = static_for(model, 2)
    feed(model, cache, [[1, 2, 3], [4]])
    for seq_lens in ([4, 1], [3, -1], [3], [3, 1, 0]):
        with pytest.raises(ValueError, match=r"\[3, 1\]"):
            cache.crop(seq_lens)
    for rows in ([], [2], [0, -1], [0, 0, 0]):
        with pytest.raises(ValueError, match="rows from 0…1"):
            cache.reorder(rows)
    for batch_size, max_seq_len in ((0, 4), (4, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            static_for(model, batch_size, max_seq_len)
    with pytest.raises(ValueError, match="window"):
        static_for(model_with(WINDOWED), 1).begin([2], mask=torch.eye(2, dtype=torch.bool))
    for mask in (torch.zeros(2, 2), torch.ones(3, 2, 2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)):
        with pytest.raises(ValueError, match="boolean mask"):
            cache.begin([2, 1], mask=mask)
    for keep in ([[0]] * 3, [[2], []], [[1, 0], []], [[0, 0], []], [[], [1]]):
        forward(model, cache, [[5, 6], [7]])
        with pytest.raises(ValueError, match="keep must name"):
            cache.commit(keep=keep)
    attend = cache.begin([1, 1])
    with pytest.raises(ValueError, match=r"\(2, 1\) as in begin"):
        model(torch.ones(2, 2, dtype=torch.long), torch.zeros(1, dtype=torch.long), attend)
    with pytest.raises(ValueError, match="holds torch.float64"):
        attend(0, torch.ones(2, 1, 4, 16), torch.ones(2, 1, 2, 16), torch.ones(2, 1, 2, 16), 1.0)
    trained = tiny_model().double()
    attend = static_for(trained, 1).begin([1])
    with pytest.raises(RuntimeError, match="gradient"):
        trained(torch.tensor([[1]]), attend.positions, attend)
    assert cache.seq_lens == [3, 1]


def test_the_same_sizes_as_the_contiguous_cache() -> None:
    for model in (model_with(UNLIMITED), tiny_mla_model()):
        ours, theirs = static_for(model, 2), cache_for(model, 2, CAPACITY)
        assert (ours.bytes_per_token, ours.capacity) == (theirs.bytes_per_token, CAPACITY)
        assert [slab is None for slab in ours.v] == [slab is None for slab in theirs.v]


@pytest.mark.parametrize("model", [model_with(UNLIMITED), tiny_mla_model()])
def test_one_new_token_goes_to_the_kernel_with_lengths_on_the_device(model, monkeypatch) -> None:
    """The kernel's torch twin in its place: what the attend hands over must give the same logits."""
    calls: list[tuple[int, ...]] = []

    def twin(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, seq_lens: Tensor) -> tuple[Tensor, Tensor]:
        assert seq_lens.data_ptr() == cache._bounds[1].data_ptr()  # captured, and filled by every `begin`
        calls.append(tuple(k.shape))
        return flash_decoding(q, k, v, softmax_scale=softmax_scale, seq_lens=seq_lens)

    monkeypatch.setattr(static, "gpu_kernel", lambda name, q: twin if name == "flash_decoding" else None)
    cache, plain = static_for(model, 3), cache_for(model, 3)
    for rows in ([[1, 2, 3], [4], []], [[5], [6], []], [[7], [], [8]], [[9], [10], [11]]):
        ours = forward(model, cache, rows)
        for our_logits, their_logits in zip(ours, feed(model, plain, rows), strict=True):
            assert_equal(our_logits, their_logits)
        cache.commit()
    assert len(calls) == 3 * 3 and {shape[:2] for shape in calls} == {(3, CAPACITY)}
    forward(model, cache, [[5, 6]])
    forward(model, cache, [[5]], mask=torch.ones(1, 1, dtype=torch.bool))
    windowed = model_with(WINDOWED)
    before = len(calls)
    cache = static_for(windowed, 1)
    forward(windowed, cache, [[5]])
    assert before == 3 * 3 and len(calls) == before + 1  # one layer of three has no window


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 0.5)])
def test_other_dtypes(dtype: torch.dtype, tolerance: float) -> None:
    model, text = tiny_model("qwen3", windows=WINDOWED).to(dtype).requires_grad_(False), random_ids(20)
    cache = StaticCache(model.layer_specs, 1, max_seq_len=30, dtype=dtype)
    ours = torch.cat([feed(model, cache, [part])[0] for part in (text[:13], text[13:19], text[19:])])
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, full(model, text), atol=tolerance, rtol=0.02)


def test_an_attend_serves_the_same_shape_again_after_begin_has_filled_the_buffers() -> None:
    """What warm-up, capture and replays rest on: everything that depends on lengths is read anew."""
    model, text = model_with(WINDOWED), random_ids(12)
    cache = static_for(model, 2)
    attend = cache.begin([1, 0])
    for place, token_id in enumerate(text):
        cache.begin([1, 0])
        logits = model(torch.tensor([[token_id], [0]]), attend.positions, attend)
        cache.commit()
        assert_equal(logits[0], full(model, text[: place + 1])[-1:])


def test_contiguous_and_static_accept_one_another_as_the_cache_of_a_loop() -> None:
    assert {name for name in dir(ContiguousCache) if not name.startswith("_")} <= set(dir(StaticCache))
