"""Attention for training: causal, and each document of a row for itself.

A row holds several documents (see `data`). A token attends to its own document only: the tokens before it in the row
belong to another story, whose names and colours would have to be told apart from those that count.

`BlockedAttend` is made for a CPU. Where its time goes decides the algorithm: a score matrix of `(q_len, k_len)` is
mostly memory traffic, and more than half of it is thrown away by the mask. So queries are taken in blocks: a block sees
the keys from the beginning of its earliest document to its own end and no others, its scores fit in the cache, and the
products run in bfloat16, for which the CPU has instructions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minillm.attention.dispatch import attention
from minillm.attention.naive import visible_keys


def document_starts(tokens: Tensor, bos_token_id: int | None) -> Tensor:
    """Where the document of each token starts: (batch, seq_len) int64, for tokens (batch, seq_len).

    A document starts at a bos, and at the beginning of the row.
    """
    places = torch.arange(tokens.shape[-1], device=tokens.device)
    starts = torch.zeros_like(tokens) if bos_token_id is None else torch.where(tokens == bos_token_id, places, 0)
    return starts.cummax(dim=-1).values


class DocumentAttend:
    """`attend(layer_idx, q, k, v, softmax_scale) -> out` over rows whose documents begin at `starts`, differentiable.

    q (batch, seq_len, num_heads, head_dim), k and v (batch, seq_len, num_kv_heads, head_dim); `starts` (batch, seq_len)
    from `document_starts`; `windows[layer_idx]` is a sliding window or None.
    """

    def __init__(self, starts: Tensor, windows: Sequence[int | None]) -> None:
        seq_len = starts.shape[1]
        own = torch.arange(seq_len, device=starts.device) >= starts[..., None]  # (batch, q_len, k_len)
        self.masks = {
            window: (own & visible_keys(seq_len, seq_len, causal=True, window=window, device=starts.device))[:, None]
            for window in set(windows)
        }
        self.windows = windows

    def __call__(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
        mask = self.masks[self.windows[layer_idx]]
        return attention(q, k, v, causal=False, softmax_scale=softmax_scale, mask=mask)


class BlockedAttend:
    """`DocumentAttend` without windows, in blocks of `block_q` queries.

    Products are in `dtype`, which the output has too; sums inside the softmax are float32.
    """

    def __init__(self, starts: Tensor, *, block_q: int = 64, dtype: torch.dtype = torch.bfloat16) -> None:
        self.dtype = dtype
        self.blocks: list[tuple[int, int, int, Tensor]] = []  # first query, end, first key, what is added to scores
        seq_len = starts.shape[1]
        places = torch.arange(seq_len, device=starts.device)
        for start in range(0, seq_len, block_q):
            stop = min(start + block_q, seq_len)
            own_start = starts[:, start:stop, None]  # (batch, block, 1)
            first_key = int(own_start.min())
            keys = places[first_key:stop]
            hidden = (keys < own_start) | (keys > places[start:stop, None])  # (batch, block, num_keys)
            bias = torch.zeros(hidden.shape, dtype=dtype, device=starts.device).masked_fill_(hidden, -torch.inf)
            self.blocks.append((start, stop, first_key, bias[:, None, None]))

    def __call__(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
        num_heads, num_kv_heads = q.shape[2], k.shape[2]
        # One matrix for each KV head of each row: its `group` query heads are further queries to the same keys.
        q = (q * softmax_scale).to(self.dtype).unflatten(2, (num_kv_heads, num_heads // num_kv_heads))
        q = q.permute(0, 2, 3, 1, 4)  # (batch, num_kv_heads, group, seq_len, head_dim)
        k, v = (x.to(self.dtype).transpose(1, 2) for x in (k, v))  # (batch, num_kv_heads, seq_len, head_dim)
        outs = []
        for start, stop, first_key, bias in self.blocks:
            block = q[..., start:stop, :]  # (batch, num_kv_heads, group, block, head_dim)
            keys, values = k[:, :, first_key:stop], v[:, :, first_key:stop]
            scores = (block.flatten(2, 3) @ keys.transpose(2, 3)).unflatten(2, block.shape[2:4]) + bias
            weights = torch.softmax(scores, dim=-1)  # (batch, num_kv_heads, group, block, num_keys)
            outs.append((weights.flatten(2, 3) @ values).unflatten(2, block.shape[2:4]))
        return torch.cat(outs, dim=3).permute(0, 3, 1, 2, 4).flatten(2, 3)  # (batch, seq_len, num_heads, v_head_dim)
