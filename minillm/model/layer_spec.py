"""What a model tells caches about its layers."""

from __future__ import annotations

from dataclasses import dataclass

from minillm.model.rope import Rope


@dataclass(frozen=True)
class LayerSpec:
    """What a cache must know of one layer, read from the live modules (so it is right on a tensor-parallel shard).

    `v_from_k`: V is the first `v_head_dim` numbers of K and needs no room of its own. `window`: how many keys a
    query sees, or None for all. `rope` turns this layer's keys to other positions.
    """

    num_heads: int
    num_kv_heads: int
    k_head_dim: int
    v_head_dim: int
    v_from_k: bool
    window: int | None
    rope: Rope
