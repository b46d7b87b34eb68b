"""FlashDecoding: one step's few queries against a long cache, its keys split among the processors.

Dao, Haziza, Massa, Sizov 2023 ("Flash-Decoding for long-context inference", PyTorch blog).

    keys of one sequence    |────── split 0 ──────|────── split 1 ──────|────── split 2 ──────|
                                   |                     |                     |
    attention over each       out_0, lse_0          out_1, lse_1          out_2, lse_2        units of work: any
                                   └──────────┬──────────┴─────────────────────┘              order, side by side
    one merge                              out, lse

A unit is one split of one sequence and KV head. The query heads of the head's group, and all new tokens, are rows of
one tile, so that each key is read once for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minillm.attention.dispatch import gpu_kernel
from minillm.attention.merge import merge_many
from minillm.attention.naive import check_shapes
from minillm.attention.splits import choose_num_splits, split_keys


def flash_decoding(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_splits: int | None = None,
    softmax_scale: float | None = None,
    seq_lens: Tensor | Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of the last q_len tokens of each sequence to all of its keys, computed in splits of the keys.

    q           (batch, q_len, num_heads, k_head_dim): the new tokens, causal among themselves
    k, v        (batch, k_len, num_kv_heads, …): the cache, of which row b holds seq_lens[b] valid keys
    num_splits  None = from the number of processors, see `choose_num_splits`; at most one split a key
    seq_lens    integers (batch,), the keys of the new tokens included; None = k_len for all

    Returns out (batch, q_len, num_heads, v_head_dim) in the dtype of q and lse (batch, q_len, num_heads), float32
    (float64 for float64 inputs). Query i of row b sees the keys up to seq_lens[b] − q_len + i: equal to causal
    `naive_attention` on the first seq_lens[b] keys. A query without keys gives 0 and −inf. Differentiable. Keys from
    seq_lens[b] on are never read. CUDA tensors go to `minillm.kernels.flash_decoding` if that is installed. Raises
    ValueError for shapes that don't fit, num_splits below 1, seq_lens outside 0 … k_len.
    """
    if (kernel := gpu_kernel("flash_decoding", q)) is not None:  # before anything looks at lengths on the GPU
        return kernel(q, k, v, num_splits=num_splits, softmax_scale=softmax_scale, seq_lens=seq_lens)
    lengths, num_splits = check_decoding(q, k, v, num_splits=num_splits, seq_lens=seq_lens)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    results = [
        decode_sequence(rows, k[b, :seq_len], v[b, :seq_len], q.shape[1], num_splits, scale)
        for b, (rows, seq_len) in enumerate(zip(pack_rows(q, k.shape[2]), lengths, strict=True))
    ]
    if not results:
        return q.new_zeros(0, *q.shape[1:3], v.shape[-1]), q.new_zeros(0, *q.shape[1:3], dtype=_wide(q))
    outs, lses = (torch.stack(parts) for parts in zip(*results, strict=True))
    outs, lses = (unpack_rows(x, *q.shape[1:3]) for x in (outs, lses.unsqueeze(-1)))
    return outs.to(q.dtype), lses.squeeze(-1)


def decode_sequence(
    rows: Tensor, k: Tensor, v: Tensor, q_len: int, num_splits: int, scale: float
) -> tuple[Tensor, Tensor]:
    """One sequence: rows (num_kv_heads, group · q_len, dim), k and v (seq_len, num_kv_heads, dim), valid keys only."""
    parts = [
        attend_to_part(split_scores(rows, k, keys, q_len, scale), v[keys])
        for keys in split_keys(k.shape[0], num_splits)
    ]
    if not parts:
        return rows.new_zeros(*rows.shape[:2], v.shape[-1]), rows.new_full(rows.shape[:2], -math.inf)
    outs, lses = zip(*parts, strict=True)
    return merge_many(torch.stack(outs), torch.stack(lses))


def split_scores(rows: Tensor, k: Tensor, keys: slice, q_len: int, scale: float) -> Tensor:
    """Scaled scores (num_kv_heads, group · q_len, keys) of one split, −inf for keys after a query's own place."""
    k_part = k[keys].transpose(0, 1).to(rows.dtype)  # (num_kv_heads, keys, k_head_dim): a view, no copy
    scores = torch.bmm(rows, k_part.mT) * scale
    first_place = k.shape[0] - q_len  # of the first new token
    if keys.stop - 1 <= first_place:
        return scores  # every query sees the whole split
    place = first_place + torch.arange(q_len, device=k.device)
    hidden = torch.arange(keys.start, keys.stop, device=k.device) > place[:, None]  # (q_len, keys)
    return scores.unflatten(1, (-1, q_len)).masked_fill(hidden, -math.inf).flatten(1, 2)


def attend_to_part(scores: Tensor, v_part: Tensor) -> tuple[Tensor, Tensor]:
    """out (num_kv_heads, rows, v_head_dim), lse (num_kv_heads, rows) of one split; v_part (keys, num_kv_heads, …)."""
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.masked_fill(lse == -math.inf, 0.0).unsqueeze(-1))
    return torch.bmm(weights, v_part.transpose(0, 1).to(scores.dtype)), lse


def pack_rows(q: Tensor, num_kv_heads: int) -> Tensor:
    """(batch, q_len, num_heads, dim) -> (batch, num_kv_heads, group · q_len, dim) in the wide dtype."""
    batch, q_len, num_heads, dim = q.shape
    grouped = q.to(_wide(q)).unflatten(2, (num_kv_heads, num_heads // num_kv_heads))
    return grouped.permute(0, 2, 3, 1, 4).reshape(batch, num_kv_heads, num_heads // num_kv_heads * q_len, dim)


def unpack_rows(x: Tensor, q_len: int, num_heads: int) -> Tensor:
    """The inverse of `pack_rows`: (batch, num_kv_heads, group · q_len, dim) -> (batch, q_len, num_heads, dim)."""
    return x.reshape(x.shape[0], num_heads, q_len, x.shape[-1]).transpose(1, 2)


def check_decoding(
    q: Tensor, k: Tensor, v: Tensor, *, num_splits: int | None, seq_lens: Tensor | Sequence[int] | None
) -> tuple[list[int], int]:
    """The lengths of the sequences and the number of splits; ValueError for what doesn't fit."""
    check_shapes(q, k, v, causal=True, window=None)
    batch, k_len, num_kv_heads, _ = k.shape
    given = [k_len] * batch if seq_lens is None else seq_lens
    lengths = [int(seq_len) for seq_len in (given.tolist() if isinstance(given, Tensor) else given)]
    if len(lengths) != batch or not all(0 <= seq_len <= k_len for seq_len in lengths):
        raise ValueError(f"expected seq_lens of {batch} sequences, each from 0 to k_len = {k_len}, got {lengths}")
    if num_splits is not None and num_splits < 1:
        raise ValueError(f"expected at least 1 split, got num_splits={num_splits}")
    longest = max(lengths, default=0)
    return lengths, num_splits or choose_num_splits(max(batch, 1), num_kv_heads, longest, num_processors(q.device))


def num_processors(device: torch.device) -> int:
    """SMs of a GPU; threads of torch on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return torch.get_num_threads()


def _wide(q: Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)
