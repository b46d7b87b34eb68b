"""Trees of drafts in the contiguous cache: every node equals a forward over its own path."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cache.feeding import (
    UNLIMITED,
    assert_equal,
    cache_for,
    feed,
    full,
    model_with,
    padded,
    poison_free_slots,
    ragged_lens,
    random_ids,
)


class Tree:
    """Nodes 0, 1, … with their parents (-1 = the last committed token), each a token."""

    def __init__(self, parents: Sequence[int], seed: int) -> None:
        self.token_ids = random_ids(len(parents), seed)
        self.paths: list[list[int]] = []  # from the first draft to the node itself
        for node, parent in enumerate(parents):
            self.paths.append([*(self.paths[parent] if parent >= 0 else []), node])

    def leaves(self) -> list[int]:
        inner = {node for path in self.paths for node in path[:-1]}
        return [node for node in range(len(self.paths)) if node not in inner]

    def text(self, node: int) -> list[int]:
        return [self.token_ids[step] for step in self.paths[node]]


@st.composite
def trees(draw: st.DrawFn, num_nodes: int) -> Tree:
    parents = [draw(st.integers(-1, node - 1)) for node in range(num_nodes)]
    return Tree(parents, draw(st.integers(0, 999)))


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_each_node_of_a_tree_sees_its_path_and_the_kept_path_stays(data: st.DataObject) -> None:
    model = model_with(UNLIMITED)
    cache = cache_for(model, 3, max_seq_len=data.draw(st.none() | st.just(18)))
    in_step = data.draw(st.booleans())
    prompt_lens = [data.draw(st.integers(1, 4))] * 3 if in_step else data.draw(ragged_lens)
    texts = [random_ids(prompt_len, b) for b, prompt_len in enumerate(prompt_lens)]
    feed(model, cache, texts)

    sizes = [data.draw(st.integers(1, 6))] * 3 if in_step else data.draw(ragged_lens)
    drafts = [data.draw(trees(size)) for size in sizes]
    q_len = max(sizes)
    mask = torch.zeros(3, q_len, q_len, dtype=torch.bool)
    positions = torch.zeros(3, q_len, dtype=torch.long)
    for b, draft in enumerate(drafts):
        for node, path in enumerate(draft.paths):
            mask[b, node, path] = True
            positions[b, node] = prompt_lens[b] + len(path) - 1
    poison_free_slots(cache)
    attend = cache.begin(sizes, mask=mask)
    logits = model(padded([draft.token_ids for draft in drafts]), positions, attend)
    keep: list[list[int]] = []
    for b, draft in enumerate(drafts):
        for node in draft.leaves():
            assert_equal(logits[b, draft.paths[node]], full(model, texts[b] + draft.text(node))[prompt_lens[b] :])
        last = data.draw(st.integers(-1, sizes[b] - 1))
        keep.append(draft.paths[last] if last >= 0 else [])
        texts[b] = texts[b] + (draft.text(last) if last >= 0 else [])
    cache.commit(keep=keep)
    assert cache.seq_lens == [len(text) for text in texts]

    poison_free_slots(cache)
    after = [random_ids(count, 50) for count in data.draw(ragged_lens)]
    for text, new, logits_after in zip(texts, after, feed(model, cache, after), strict=True):
        if new:
            assert_equal(logits_after, full(model, text + new)[len(text) :])


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("prompt_lens", [[3, 3], [3, 1]])
def test_one_mask_may_serve_every_row(axes: int, prompt_lens: list[int]) -> None:
    model = model_with(UNLIMITED)
    cache = cache_for(model, 2)
    texts = [random_ids(prompt_len, b) for b, prompt_len in enumerate(prompt_lens)]
    feed(model, cache, texts)
    mask = torch.eye(4, dtype=torch.bool)  # four alternatives for the next token
    attend = cache.begin([4, 4], mask=mask if axes == 2 else mask.unsqueeze(0))
    logits = model(torch.tensor([[5, 6, 7, 8]] * 2), torch.tensor(prompt_lens)[:, None], attend)
    for b, text in enumerate(texts):
        for node, token_id in enumerate([5, 6, 7, 8]):
            assert_equal(logits[b, node], full(model, [*text, token_id])[-1])
    cache.commit(keep=[[2], []])
    ours = feed(model, cache, [[1], [1]])
    assert_equal(ours[0], full(model, [*texts[0], 7, 1])[-1:])
    assert_equal(ours[1], full(model, [*texts[1], 1])[-1:])
