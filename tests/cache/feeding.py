"""A random model, a cache, and the forwards that the tests of caches compare."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from hypothesis import strategies as st
from torch import Tensor

from minillm.cache import ContiguousCache
from minillm.model import Transformer
from tests.helpers import tiny_model

PADDING = 96
MODES = {"inference": torch.inference_mode, "no_grad": torch.no_grad}


@lru_cache
def model_with(windows: tuple[int | None, ...] | None) -> Transformer:
    """Grouped heads, q/k norm, biases, random weights, float64."""
    return tiny_model("qwen3", windows=windows, qkv_bias=True, o_bias=True).double().requires_grad_(False)


WINDOWED, UNLIMITED = (None, 3, 7), None


def cache_for(model: Transformer, batch_size: int, max_seq_len: int | None = None) -> ContiguousCache:
    return ContiguousCache(model.layer_specs, batch_size, max_seq_len=max_seq_len, dtype=torch.float64)


def random_ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, PADDING, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([list(row) + [PADDING] * (width - len(row)) for row in rows])


def feed(model: Transformer, cache: ContiguousCache, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """One forward and commit; logits of each row's tokens, (len(row), vocab_size)."""
    attend = cache.begin([len(row) for row in rows])
    logits = model(padded(rows), attend.positions, attend)
    cache.commit()
    return [logits[b, : len(row)] for b, row in enumerate(rows)]


def full(model: Transformer, token_ids: Sequence[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor(token_ids, dtype=torch.long))


def poison_free_slots(cache: ContiguousCache) -> None:
    """What is left in slots beyond the committed ones (cropped, given back) must not matter."""
    for slab in filter(lambda slab: slab is not None, (*cache.k, *cache.v)):
        for row, seq_len in enumerate(cache.seq_lens):
            slab[row, seq_len:] = 1e30


def assert_equal(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-12)


ragged_lens = st.lists(st.integers(0, 6), min_size=3, max_size=3).filter(any)
equal_lens = st.integers(1, 6).map(lambda query_len: [query_len] * 3)
