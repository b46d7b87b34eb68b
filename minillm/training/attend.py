"""Causal attention for training on a CPU, in blocks of queries.

Where its time goes decides the algorithm. A score matrix of `(q_len, k_len)` is mostly memory traffic, and half of it
is thrown away by the causal mask. So queries are taken in blocks: a block sees the keys up to its own end and no
others, its scores fit in the cache, and the products run in bfloat16, for which the CPU has instructions. torch's
fused kernel for the CPU keeps its products in float32 and takes about twice as long at the sizes of this project.
"""

from __future__ import annotations

import torch
from torch import Tensor


class BlockedAttend:
    """`attend(layer_idx, q, k, v, softmax_scale) -> out` over whole sequences, full causal attention, differentiable.

    q (batch, seq_len, num_heads, head_dim), k and v (batch, seq_len, num_kv_heads, head_dim). Products are in
    `dtype`, which the output has too; sums inside the softmax are float32.
    """

    def __init__(self, *, block_q: int = 64, dtype: torch.dtype = torch.bfloat16) -> None:
        self.block_q = block_q
        self.dtype = dtype

    def __call__(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
        batch, seq_len, num_heads, _ = q.shape
        num_kv_heads = k.shape[2]
        group = num_heads // num_kv_heads
        # One matrix for each KV head of each row: its `group` query heads are further queries to the same keys.
        q = (q * softmax_scale).to(self.dtype).unflatten(2, (num_kv_heads, group))
        q = q.permute(0, 2, 3, 1, 4)  # (batch, num_kv_heads, group, seq_len, head_dim)
        k, v = (
            x.to(self.dtype).transpose(1, 2).flatten(0, 1) for x in (k, v)
        )  # (batch * num_kv_heads, seq_len, head_dim)
        outs = []
        for start in range(0, seq_len, self.block_q):
            stop = min(start + self.block_q, seq_len)
            block = q[..., start:stop, :].reshape(batch * num_kv_heads, group * (stop - start), -1)
            scores = torch.bmm(block, k[:, :stop].transpose(1, 2))  # (batch * num_kv_heads, group * block, stop)
            future = torch.full((stop - start, stop - start), -torch.inf, dtype=self.dtype, device=q.device).triu(1)
            scores[..., start:].add_(future.repeat(group, 1))  # only the last `block` keys can lie in the future
            out = torch.bmm(torch.softmax(scores, dim=-1), v[:, :stop])
            outs.append(out.view(batch, num_kv_heads, group, stop - start, -1))
        return torch.cat(outs, dim=3).permute(0, 3, 1, 2, 4).flatten(2, 3)  # (batch, seq_len, num_heads, v_head_dim)
