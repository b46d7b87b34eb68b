"""FLOPs counted while a function runs, against counts by hand."""

from __future__ import annotations

import pytest
import torch

from minillm.attention.dispatch import attention
from minillm.perf.flops import count_flops


def test_a_product_is_two_flops_a_term() -> None:
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert count_flops(lambda: a @ b) == 2 * 3 * 5 * 7


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("q_len", "k_len"), [(1, 9), (6, 6), (3, 8)])
def test_attention_counts_every_pair_of_every_query_head(num_kv_heads: int, q_len: int, k_len: int) -> None:
    q = torch.randn(2, q_len, 4, 8)
    k, v = torch.randn(2, k_len, num_kv_heads, 8), torch.randn(2, k_len, num_kv_heads, 8)
    per_pair = 2 * 8 + 2 * 8  # a score, and its share of the output
    assert count_flops(lambda: attention(q, k, v)) == 2 * 4 * q_len * k_len * per_pair
