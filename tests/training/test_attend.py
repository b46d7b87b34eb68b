"""Attention within documents, against the oracle with a mask drawn pair by pair, and on documents one at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minillm.attention.naive import naive_attention
from minillm.training.attend import BlockedAttend, DocumentAttend, document_starts
from tests.training.tiny import tiny_model

BOS = 7


def rows_of_documents(batch: int, seq_len: int) -> Tensor:
    """Random tokens (batch, seq_len): the first row starts with a bos, the others in the middle of a document."""
    tokens = torch.randint(8, 30, (batch, seq_len), generator=torch.Generator().manual_seed(1))
    tokens[torch.rand(batch, seq_len, generator=torch.Generator().manual_seed(2)) < 0.2] = BOS
    tokens[0, 0], tokens[1:, 0] = BOS, 9
    return tokens


def test_documents_start_at_a_bos_or_with_the_row() -> None:
    tokens = torch.tensor([[BOS, 1, 2, BOS, 3], [1, 2, BOS, BOS, 4]])
    assert document_starts(tokens, BOS).tolist() == [[0, 0, 0, 3, 3], [0, 0, 2, 3, 3]]
    assert document_starts(tokens, None).tolist() == [[0] * 5] * 2


@pytest.mark.parametrize(("seq_len", "block_q", "num_kv_heads"), [(16, 4, 2), (13, 4, 1), (5, 8, 4), (1, 4, 2)])
def test_equals_the_oracle_with_gradients(seq_len: int, block_q: int, num_kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(3)
    shapes = ((4, 6), (num_kv_heads, 6), (num_kv_heads, 5))
    q, k, v = (torch.randn(3, seq_len, *shape, generator=generator, dtype=torch.float64) for shape in shapes)
    weights = torch.randn(3, seq_len, 4, 5, generator=generator, dtype=torch.float64)
    tokens = rows_of_documents(3, seq_len)
    starts = document_starts(tokens, BOS)

    def same_document(row: int, query: int, key: int) -> bool:
        return not bool((tokens[row, key + 1 : query + 1] == BOS).any())

    mask = torch.tensor(
        [[[same_document(row, i, j) for j in range(seq_len)] for i in range(seq_len)] for row in range(3)]
    )[:, None]
    oracle = lambda _, q, k, v, scale: naive_attention(q, k, v, softmax_scale=scale, mask=mask)[0]  # noqa: E731
    attends = (BlockedAttend(starts, block_q=block_q, dtype=torch.float64), DocumentAttend(starts, [None]), oracle)
    results = []
    for attend in attends:
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attend(0, *inputs, 0.7)
        (out * weights).sum().backward()
        results.append((out.detach(), *(x.grad for x in inputs)))
    for ours in results[:2]:
        for value, expected in zip(ours, results[2], strict=True):
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)


def test_windows_differ_by_layer() -> None:
    q = k = v = torch.randn(2, 12, 2, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    starts = torch.zeros(2, 12, dtype=torch.int64)
    attend = DocumentAttend(starts, [3, None])
    for layer_idx, window in enumerate((3, None)):
        expected = naive_attention(q, k, v, softmax_scale=0.4, window=window)[0]
        torch.testing.assert_close(attend(layer_idx, q, k, v, 0.4), expected)


@torch.no_grad()
def test_a_story_in_a_row_gets_the_logits_that_it_gets_alone() -> None:
    """What the model is trained on is what it is asked for later: positions in the row don't matter to RoPE."""
    model = tiny_model().double()
    tokens = torch.tensor([[BOS, 11, 12, BOS, 21, 22, 23, 24, 25]])
    attend = BlockedAttend(document_starts(tokens, BOS), block_q=4, dtype=torch.float64)
    together = model(tokens, torch.arange(9), attend)[0]
    alone = torch.cat([model(tokens[0, :3]), model(tokens[0, 3:])])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
