"""Latent attention through the contiguous cache: equal to a full forward, and no more stored than the paper says."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.cache import ContiguousCache
from minillm.config import MLAConfig
from minillm.model import Transformer
from minillm.model.mla import FORMS, use_latent_form
from tests.cache.feeding import cache_for, equal_lens, feed, full, padded, poison_free_slots, ragged_lens, random_ids
from tests.model.tiny_mla import CONFIG, tiny_mla_model

TOKENS = torch.randint(0, 97, (2, 15), generator=torch.Generator().manual_seed(1))

cached_model = lru_cache(tiny_mla_model)


def assert_equal(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("form", FORMS)
@given(
    chunks=st.lists(ragged_lens | equal_lens, min_size=1, max_size=5), windowed=st.booleans(), seed=st.integers(0, 99)
)
@settings(max_examples=25, deadline=None)
def test_any_chunking_equals_the_full_forward(form: str, chunks: list[list[int]], windowed: bool, seed: int) -> None:
    """Prefill, chunked prefill, decoding, ragged batches; against the naive form without a cache."""
    windows = (None, 3, 7) if windowed else None
    model, naive = cached_model(form, windows=windows), cached_model("naive", windows=windows)
    totals = [sum(lens) for lens in zip(*chunks, strict=True)]
    texts = [random_ids(total, seed + b) for b, total in enumerate(totals)]
    cache = cache_for(model, 3)
    parts: list[list[Tensor]] = [[], [], []]
    for lens in chunks:
        poison_free_slots(cache)
        rows = [text[start : start + new] for text, start, new in zip(texts, cache.seq_lens, lens, strict=True)]
        for part, logits in zip(parts, feed(model, cache, rows), strict=True):
            part.append(logits)
    for text, part in zip(texts, parts, strict=True):
        if text:
            assert_equal(torch.cat(part), full(naive, text))


@pytest.mark.parametrize("form", FORMS)
def test_crop_reorder_and_decode_again(form: str) -> None:
    model, naive = cached_model(form), cached_model("naive")
    texts = [random_ids(9, 1), random_ids(6, 2)]
    cache = cache_for(model, 2)
    feed(model, cache, texts)
    cache.crop([4, 6])
    cache.reorder([1, 0, 0])
    poison_free_slots(cache)
    texts = [texts[1], texts[0][:4], texts[0][:4]]
    for step in range(3):
        new = [random_ids(1, 10 * step + b) for b in range(3)]
        texts = [text + row for text, row in zip(texts, new, strict=True)]
        for text, logits in zip(texts, feed(model, cache, new), strict=True):
            assert_equal(logits, full(naive, text)[-1:])


def test_a_tree_of_drafts() -> None:
    """Two continuations of one text in one forward, of which the second is kept."""
    model = cached_model()
    text, (a, b, c) = random_ids(5, 4), random_ids(3, 5)
    cache = cache_for(model, 1)
    feed(model, cache, [text])
    mask = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 1, 1]], dtype=torch.bool)
    attend = cache.begin([3], mask)
    logits = model(padded([[a, b, c]]), torch.tensor([[5, 5, 6]]), attend)
    cache.commit(keep=[[1, 2]])
    assert_equal(logits[0, :1], full(model, [*text, a])[-1:])
    assert_equal(logits[0, 1:], full(model, [*text, b, c])[-2:])
    assert_equal(feed(model, cache, [[a]])[0], full(model, [*text, b, c, a])[-1:])


def test_an_absorbed_cache_holds_latent_and_rotated_key_and_no_more() -> None:
    model = cached_model("absorbed")
    cache = cache_for(model, 2, max_seq_len=30)
    feed(model, cache, [random_ids(7), random_ids(5)])
    assert [slab.shape for slab in cache.k] == [(2, 30, 1, 18 + 8)] * 3
    assert cache.v == [None] * 3
    assert cache.bytes_per_token == 3 * (18 + 8) * 8
    storages = {slab.untyped_storage().data_ptr(): slab.untyped_storage().nbytes() for slab in cache.k}
    assert sum(storages.values()) == 2 * 30 * 3 * (18 + 8) * 8


def test_a_naive_cache_holds_every_head() -> None:
    cache = cache_for(cached_model("naive"), 2, max_seq_len=30)
    assert [slab.shape for slab in cache.k] == [(2, 30, 4, 10 + 8)] * 3
    assert [slab.shape for slab in cache.v] == [(2, 30, 4, 14)] * 3  # type: ignore[union-attr]
    assert cache.bytes_per_token == 3 * 4 * (10 + 8 + 14) * 8


def test_deepseek_v3_caches_576_numbers() -> None:
    """d_c + d_h^R = 512 + 64 (DeepSeek-V2, table 1), and 128 heads of 128 + 64 and 128 when expanded."""
    config = dataclasses.replace(
        CONFIG, num_layers=2, num_heads=128, num_kv_heads=128, head_dim=64, mla=MLAConfig(1536, 512, 128, 64, 128)
    )
    with torch.device("meta"):
        model = Transformer(config)
    numbers = {}
    for form in FORMS:
        use_latent_form(model, form)
        cache = ContiguousCache(model.layer_specs, 1, max_seq_len=1, dtype=torch.bfloat16)
        numbers[form] = cache.bytes_per_token / 2 / config.num_layers
    assert numbers == {"absorbed": 576, "naive": 40_960}


def test_what_is_cached() -> None:
    """The latent after its norm; the shared key after its rotation, outside of the norm."""
    model = cached_model("absorbed")
    seen: dict[str, Tensor] = {}

    class Stop(Exception):
        pass

    def attend(layer_idx: int, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
        seen.update(k=k, v=v)
        raise Stop

    positions = torch.arange(15) + 3
    with pytest.raises(Stop):
        model(TOKENS, positions, attend)
    block, spec = model.blocks[0], model.layer_specs[0]
    both = block.attention.wkv_a(block.attention_norm(model.embed(TOKENS)))
    latent, k_rope = both[..., :18], both[..., 18:]
    assert_equal(seen["k"][..., 0, :18], latent / (latent.square().mean(-1, keepdim=True) + 1e-6).sqrt()
                 * block.attention.kv_norm.weight)  # fmt: skip
    assert_equal(seen["v"], seen["k"][..., :18])
    assert_equal(seen["k"][..., 0, 18:], model.rope.rotate(k_rope[..., None, :], positions)[..., 0, :])
    # A cache that stores keys unrotated turns back the last numbers and leaves the latent alone.
    back = spec.rope.rotate(seen["k"], positions, inverse=True)
    assert torch.equal(back[..., :18], seen["k"][..., :18])
    torch.testing.assert_close(back[..., 0, 18:], k_rope, atol=1e-6, rtol=0)
