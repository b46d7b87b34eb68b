"""Tensor parallelism (Megatron-LM, Shoeybi et al. 2019, section 3) in the cost model: what one rank holds and sends."""

from __future__ import annotations

from dataclasses import dataclass, replace

from minillm.perf.cost import Phase
from minillm.perf.formulas import all_reduce_bytes
from minillm.perf.model_shape import LayerShape, ModelShape
from minillm.perf.precision import Precision


@dataclass(frozen=True)
class Communication:
    """What each rank exchanges in one forward: `count` all-reduces that make it send `num_bytes` in all."""

    count: int
    num_bytes: float


def shard(shape: ModelShape, tp_size: int) -> ModelShape:
    """The part of one rank of `tp_size`: its heads, its columns of the networks, its rows of the vocabulary.

    Fewer KV heads than ranks are copied, 1 to a rank; MLA's down-projections and latents are on every rank; so are
    norms and routers. Raises ValueError where heads or widths can't be shared out evenly.
    """
    if tp_size < 1:
        raise ValueError(f"tp_size must be at least 1, got {tp_size}")
    if tp_size == 1:
        return shape
    parts = {layer: _shard_layer(layer, tp_size) for layer in set(shape.layers)}
    return replace(
        shape,
        vocab_size=-(-shape.vocab_size // tp_size),
        layers=tuple(parts[layer] for layer in shape.layers),
    )


def communication(shape: ModelShape, phase: Phase, precision: Precision, tp_size: int) -> Communication:
    """Two all-reduces a layer, after wo and after w_down, each over the b · s · h numbers of the residual stream."""
    if tp_size == 1:
        return Communication(0, 0.0)
    one = all_reduce_bytes(phase.num_tokens, shape.hidden_size, tp_size, number_bytes=precision.activation_bytes)
    count = 2 * len(shape.layers)
    return Communication(count, count * one)


def _shard_layer(layer: LayerShape, tp_size: int) -> LayerShape:
    attention, ffn = layer.attention, layer.ffn
    if attention.num_kv_heads % tp_size and tp_size % attention.num_kv_heads:
        raise ValueError(f"{attention.num_kv_heads} KV heads can't be shared out to {tp_size} ranks")
    return replace(
        layer,
        attention=replace(
            attention,
            num_heads=_share(attention.num_heads, tp_size, "heads"),
            num_kv_heads=max(1, attention.num_kv_heads // tp_size),
        ),
        ffn=replace(
            ffn,
            intermediate_size=_share(ffn.intermediate_size, tp_size, "columns of a feed-forward network"),
            shared_intermediate_size=_share(ffn.shared_intermediate_size, tp_size, "columns of a shared expert"),
        ),
    )


def _share(count: int, tp_size: int, what: str) -> int:
    if count % tp_size:
        raise ValueError(f"{count} {what} can't be shared out to {tp_size} ranks")
    return count // tp_size
