"""The contiguous cache against the only thing it may equal: a full forward over the text of each row."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.attention import naive_attention
from minillm.cache import ContiguousCache
from minillm.model import LayerSpec
from tests.cache.feeding import (
    MODES,
    UNLIMITED,
    WINDOWED,
    assert_equal,
    cache_for,
    equal_lens,
    feed,
    full,
    model_with,
    padded,
    poison_free_slots,
    ragged_lens,
    random_ids,
)
from tests.helpers import tiny_model


@given(st.lists(ragged_lens | equal_lens, min_size=1, max_size=6), st.booleans(), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_any_chunking_equals_the_full_forward(chunks: list[list[int]], grows: bool, seed: int) -> None:
    model = model_with(WINDOWED)
    totals = [sum(lens) for lens in zip(*chunks, strict=True)]
    cache = cache_for(model, 3, max_seq_len=None if grows else max(totals))
    texts = [random_ids(total, seed + b) for b, total in enumerate(totals)]
    parts: list[list[Tensor]] = [[], [], []]
    for lens in chunks:
        poison_free_slots(cache)
        starts = cache.seq_lens
        rows = [text[start : start + new] for text, start, new in zip(texts, starts, lens, strict=True)]
        for part, logits in zip(parts, feed(model, cache, rows), strict=True):
            part.append(logits)
    assert cache.seq_lens == totals
    for text, part in zip(texts, parts, strict=True):
        if text:
            assert_equal(torch.cat(part), full(model, text))


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_history_of_crops_reorders_and_abandoned_forwards(data: st.DataObject) -> None:
    """The dictionary model of a cache: a list of texts. Every forward must give the logits of those texts."""
    model = model_with(data.draw(st.sampled_from([WINDOWED, UNLIMITED])))
    texts: list[list[int]] = [[] for _ in range(data.draw(st.integers(1, 3)))]
    cache = cache_for(model, len(texts), max_seq_len=data.draw(st.none() | st.just(40)))
    for step in range(data.draw(st.integers(2, 7))):
        with MODES[data.draw(st.sampled_from(sorted(MODES)))]():
            action = data.draw(st.sampled_from(["feed", "feed", "abandon", "crop", "reorder"]))
            if action == "crop":
                texts = [text[: data.draw(st.integers(0, len(text)))] for text in texts]
                cache.crop([len(text) for text in texts])
            elif action == "reorder":
                rows = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=3))
                texts = [list(texts[row]) for row in rows]
                cache.reorder(rows)
            else:
                lens = data.draw(st.lists(st.integers(0, 5), min_size=len(texts), max_size=len(texts)))
                lens = lens if any(lens) else [1] * len(texts)
                new = [random_ids(count, 10 * step + b) for b, count in enumerate(lens)]
                poison_free_slots(cache)
                if action == "abandon":
                    attend = cache.begin(lens)
                    model(padded(new), attend.positions, attend)
                else:
                    texts = [text + row for text, row in zip(texts, new, strict=True)]
                    for text, logits in zip(texts, feed(model, cache, new), strict=True):
                        if len(logits):
                            assert_equal(logits, full(model, text)[len(text) - len(logits) :])
        assert cache.seq_lens == [len(text) for text in texts]
        assert cache.batch_size == len(texts)


def test_growth_passes_the_first_capacity_several_times() -> None:
    model = model_with(WINDOWED)
    cache = cache_for(model, 2)
    first = cache.capacity
    texts = [random_ids(350, 1), random_ids(340, 2)]
    parts: list[list[Tensor]] = [[], []]
    capacities = []
    with torch.inference_mode():
        while cache.seq_lens[0] < 350:
            rows = [text[start : start + 50] for text, start in zip(texts, cache.seq_lens, strict=True)]
            for part, logits in zip(parts, feed(model, cache, rows), strict=True):
                part.append(logits)
            capacities.append(cache.capacity)
    assert sorted(set(capacities)) == [first, 2 * first, 4 * first, 8 * first]
    for text, part in zip(texts, parts, strict=True):
        assert_equal(torch.cat(part), full(model, text))


def test_one_forward_may_need_more_than_double() -> None:
    model = model_with(WINDOWED)
    cache, text = cache_for(model, 1), random_ids(200)
    logits = torch.cat([feed(model, cache, [part])[0] for part in (text[:10], text[10:])])
    assert cache.capacity >= 200
    assert_equal(logits, full(model, text))


def test_overflow_raises_before_anything_is_written() -> None:
    model = model_with(WINDOWED)
    cache = cache_for(model, 2, max_seq_len=8)
    texts = [random_ids(8, 1), random_ids(8, 2)]
    feed(model, cache, [texts[0][:6], texts[1][:2]])
    before = [slab.clone() for slab in (*cache.k, *cache.v)]
    for lens in ([3, 1], [0, 7], [3, 3]):
        with pytest.raises(ValueError, match=r"overflow.* in 8 slots"):
            cache.begin(lens)
    assert cache.seq_lens == [6, 2] and cache.capacity == 8
    assert all(map(torch.equal, before, (*cache.k, *cache.v)))
    with pytest.raises(RuntimeError, match="without begin"):
        cache.commit()
    # Row 0 has room for 2 more: the 3 columns of padding beside row 1's 5 tokens take none.
    first, second = feed(model, cache, [texts[0][6:], texts[1][2:7]])
    assert_equal(first, full(model, texts[0])[6:])
    assert_equal(second, full(model, texts[1])[2:7])
    assert_equal(feed(model, cache, [[], texts[1][7:]])[1], full(model, texts[1])[7:])
    assert cache.seq_lens == [8, 8]


def test_copies_made_by_reorder_share_nothing() -> None:
    model = model_with(WINDOWED)
    cache, prompt = cache_for(model, 2), random_ids(5)
    feed(model, cache, [random_ids(4, 7), prompt])
    cache.reorder([1, 1, 1])
    endings = [random_ids(3, 1), [], random_ids(2, 2)]
    before = [slab[1].clone() for slab in (*cache.k, *cache.v)]
    feed(model, cache, endings)
    assert all(map(torch.equal, before, (slab[1] for slab in (*cache.k, *cache.v))))
    for ending, logits in zip(endings, feed(model, cache, [[9], [9], [9]]), strict=True):
        assert_equal(logits, full(model, [*prompt, *ending, 9])[-1:])


@pytest.mark.parametrize("first", MODES)
@pytest.mark.parametrize("second", MODES)
def test_every_step_may_run_in_another_mode(first: str, second: str) -> None:
    model, text = model_with(UNLIMITED), random_ids(90)
    with MODES[first]():
        cache = cache_for(model, 1)
    with MODES[second]():
        feed(model, cache, [text[:3]])
    with MODES[first]():
        feed(model, cache, [text[3:70]])  # grows
        cache.reorder([0, 0])
    with MODES[second]():
        attend = cache.begin([4, 3])
    with MODES[first]():
        model(padded([text[70:74], text[70:73]]), attend.positions, attend)
    with MODES[second]():
        cache.commit(keep=[[0, 1], [0]])
        cache.crop([72, 71])
        assert_equal(feed(model, cache, [text[72:75], text[71:80]])[1], full(model, text[:80])[71:])
    ours = feed(model, cache, [text[75:], text[80:]])[0]  # gradients enabled, but no weight wants one
    assert_equal(ours, full(model, text)[75:])


def spec(*, v_from_k: bool = False, window: int | None = None) -> LayerSpec:
    rope = model_with(UNLIMITED).rope
    return LayerSpec(4, 1 if v_from_k else 2, 6, 4, v_from_k=v_from_k, window=window, rope=rope)


def random_qkv(lens: Sequence[int], kv_heads: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((4, 6), (kv_heads, 6), (kv_heads, 4))
    return tuple(
        torch.randn(len(lens), max(lens), *shape, generator=generator, dtype=torch.float64) for shape in shapes
    )


@pytest.mark.parametrize("v_from_k", [True, False])
@pytest.mark.parametrize("chunks", [[[70, 70], [2, 2]], [[3, 70], [2, 1], [0, 4]]])
def test_an_attend_alone_and_values_that_are_a_slice_of_keys(v_from_k: bool, chunks: list[list[int]]) -> None:
    specs = [spec(v_from_k=v_from_k), spec(v_from_k=v_from_k, window=2)]
    cache = ContiguousCache(specs, 2, dtype=torch.float64)
    if v_from_k:
        assert cache.v == [None, None]
        assert cache.bytes_per_token == 2 * 1 * 6 * 8
    else:
        assert cache.bytes_per_token == 2 * 2 * (6 + 4) * 8
    history: list[list[list[Tensor]]] = [[[], []], [[], []]]  # [layer][row] = list of (k, v)
    for step, lens in enumerate(chunks):
        attend = cache.begin(lens)
        for layer_idx in (0, 1):
            q, k, v = random_qkv(lens, specs[layer_idx].num_kv_heads, 2 * step + layer_idx)
            out = attend(layer_idx, q, k, v, 0.3)
            assert out.shape == (2, max(lens), 4, 4)
            values = k[..., :4] if v_from_k else v
            for row, new in enumerate(lens):
                history[layer_idx][row].append(torch.cat((k[row, :new], values[row, :new]), dim=-1))
                kv = torch.cat(history[layer_idx][row]).unsqueeze(0)
                expected, _ = naive_attention(
                    q[row : row + 1, :new],
                    kv[..., :6],
                    kv[..., 6:],
                    window=specs[layer_idx].window,
                    softmax_scale=0.3,
                )
                assert_equal(out[row, :new], expected[0])
        cache.commit()
        cache.reorder([0, 1])  # every operation must cope with slabs that are not there
        cache.crop(cache.seq_lens)
    attend = cache.begin([3, 3])
    attend(0, *random_qkv([3, 3], specs[0].num_kv_heads, 9), 0.3)
    cache.commit(keep=[[1], [0, 2]])


def test_positions_follow_the_committed_tokens() -> None:
    model = model_with(UNLIMITED)
    cache = cache_for(model, 3)
    feed(model, cache, [[1, 2], [], [3, 4, 5, 6]])
    positions = cache.begin([1, 3, 0]).positions
    assert positions.dtype == torch.int64
    assert positions.shape == (3, 3)
    assert positions[0, 0] == 2 and positions[1].tolist() == [0, 1, 2]
    assert cache.begin([2, 2, 2]).positions.tolist() == [[2, 3], [0, 1], [4, 5]]


def test_bytes_per_token_counts_kv_heads_only() -> None:
    model = model_with(UNLIMITED)  # 3 layers, 4 heads, 2 KV heads, head_dim 16
    assert ContiguousCache(model.layer_specs, 5, dtype=torch.bfloat16).bytes_per_token == 3 * 2 * 2 * 16 * 2
    assert cache_for(model, 1, max_seq_len=9).bytes_per_token == 3 * 2 * 2 * 16 * 8


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 0.5)])
def test_other_dtypes(dtype: torch.dtype, tolerance: float) -> None:
    model, text = tiny_model("qwen3", windows=WINDOWED).to(dtype).requires_grad_(False), random_ids(20)
    cache = ContiguousCache(model.layer_specs, 1, dtype=dtype)
    assert {slab.dtype for slab in (*cache.k, *cache.v)} == {dtype}
    ours = torch.cat([feed(model, cache, [part])[0] for part in (text[:13], text[13:19], text[19:])])
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, full(model, text), atol=tolerance, rtol=0.02)
