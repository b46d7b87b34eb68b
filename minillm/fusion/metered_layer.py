"""A decoder layer without its matrix products and its attention: everything that fusion is about, on one meter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.fusion.costs import Blocks, Cost
from minillm.fusion.metered import VERSIONS, cost
from minillm.perf.meter import HbmTensor, Meter


@dataclass(frozen=True)
class LayerShape:
    """Sizes of a layer; any object with these names will do, a `ModelConfig` among them."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


def run_layer(
    shape: LayerShape,
    tokens: int,
    version: str,
    *,
    blocks: Blocks = Blocks(rows=1),  # noqa: B008 (frozen)
    sram_bytes: int = 256 * 1024,
    stored_as: torch.dtype | None = None,
    trace: bool = False,
    generator: torch.Generator | None = None,
) -> Meter:
    """Residual sum and norm, RoPE, residual sum and norm, SwiGLU, for so many tokens: "eager" 26 launches, "fused" 4.

    Each residual sum is counted with the norm behind it, so that the layer's last one is the next layer's. What the
    products and attention would give is random numbers, already in HBM.
    """
    if version not in ("eager", "fused"):
        raise ValueError(f'expected "eager" or "fused", got {version!r}')
    meter = Meter(sram_bytes, stored_as=stored_as, trace=trace)

    def given(name: str, *sizes: int) -> HbmTensor:
        numbers: Tensor = torch.randn(sizes, generator=generator)
        return meter.hbm(name, numbers)

    def norm(name: str) -> None:
        x, branch = given(f"{name} x", tokens, shape.hidden_size), given(f"{name} branch", tokens, shape.hidden_size)
        VERSIONS["add_rms_norm"][version](
            meter, x, branch, given(f"{name} weight", 1, shape.hidden_size), blocks, name=f"{name} "
        )

    norm("attention")
    q, k = (given(name, heads, tokens, shape.head_dim) for name, heads in _heads(shape))
    cos, sin = (given(name, tokens, shape.head_dim) for name in ("cos", "sin"))
    VERSIONS["rope"][version](meter, q, k, cos, sin, blocks, name="rope ")
    norm("ffn")
    gate, up = (given(name, tokens, shape.intermediate_size) for name in ("gate", "up"))
    VERSIONS["swiglu"][version](meter, gate, up, blocks, name="swiglu ")
    return meter


def layer_cost(
    shape: LayerShape,
    tokens: int,
    version: str,
    *,
    blocks: Blocks = Blocks(rows=1),  # noqa: B008 (frozen)
    bytes_per_number: int = 4,
) -> Cost:
    """What `run_layer` counts: the sum of its parts' closed forms."""

    def part(name: str, *sizes: int) -> Cost:
        return cost(name, version, sizes, blocks=blocks, bytes_per_number=bytes_per_number)

    norm = part("add_rms_norm", tokens, shape.hidden_size)
    rope = part("rope", shape.num_heads + shape.num_kv_heads, tokens, shape.head_dim)
    return norm + rope + norm + part("swiglu", tokens, shape.intermediate_size)


def _heads(shape: LayerShape) -> tuple[tuple[str, int], tuple[str, int]]:
    return ("q", shape.num_heads), ("k", shape.num_kv_heads)
