"""Checkpoints that rotate neighbours, converted to a model that rotates halves, and back.

RoPE turns pairs of dimensions. DeepSeek stores the two of a pair side by side; here dimensions i and i + n/2 are a pair
(see `rope`). Reordering the rows of the projections that make queries and keys turns one layout into the other:

    interleaved   a0 b0 a1 b1 a2 b2   ->   halves   a0 a1 a2 b0 b1 b2

Queries and keys are reordered alike, so every scalar product stays what it was.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.config import ModelConfig


def from_interleaved(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """The parameter `name` (as the model calls it) with its rotated rows in halves; any other as it is."""
    return _reorder(name, tensor, config, pairs_first=True)


def to_interleaved(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """The inverse of `from_interleaved`."""
    return _reorder(name, tensor, config, pairs_first=False)


def _reorder(name: str, tensor: Tensor, config: ModelConfig, *, pairs_first: bool) -> Tensor:
    """tensor (rows, in_features), or (rows,) for a bias."""
    mla = config.mla
    if mla is None:
        raise ValueError("only checkpoints of latent attention are stored interleaved")
    rows_of = {
        "attention.wq": mla.qk_nope_head_dim + mla.qk_rope_head_dim,  # of each head
        "attention.wq.b": mla.qk_nope_head_dim + mla.qk_rope_head_dim,
        "attention.wkv_a": mla.kv_lora_rank + mla.qk_rope_head_dim,
    }
    part = name.rpartition(".")[0].split(".", 2)[-1]  # blocks.3.attention.wq.weight -> attention.wq
    if part not in rows_of:
        return tensor
    straight, rotated = tensor.unflatten(0, (-1, rows_of[part])).tensor_split((-mla.qk_rope_head_dim,), dim=1)
    rotated = rotated.unflatten(1, (-1, 2) if pairs_first else (2, -1)).transpose(1, 2).flatten(1, 2)
    return torch.cat((straight, rotated), dim=1).flatten(0, 1)
