"""Each operation between matrix products on the memory-hierarchy meter, as eager torch runs it and fused.

    meter, outputs = run("rms_norm", "eager", x, weight)
    assert counted(meter) == cost("rms_norm", "eager", x.shape)

    for version in VERSIONS["rms_norm"]:
        print(version, cost("rms_norm", version, (2048, 4096), bytes_per_number=2))

Reading order: `costs`, `metered_norm`, `metered_elementwise`, `metered_softmax`, `metered_loss`, this file,
`metered_layer`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from minillm.fusion.costs import Blocks, Cost, Widths, counted
from minillm.fusion.metered_elementwise import (
    eager_rope,
    eager_swiglu,
    fused_rope,
    fused_swiglu,
    rope_cost,
    swiglu_cost,
)
from minillm.fusion.metered_loss import cross_entropy_cost, eager_cross_entropy, fused_cross_entropy
from minillm.fusion.metered_norm import (
    add_rms_norm_cost,
    eager_add_rms_norm,
    eager_rms_norm,
    fused_add_rms_norm,
    fused_rms_norm,
    rms_norm_cost,
)
from minillm.fusion.metered_softmax import eager_softmax, fused_softmax, online_softmax, softmax_cost
from minillm.perf.meter import HbmTensor, Meter

__all__ = ["VERSIONS", "Blocks", "Cost", "Measured", "Widths", "cost", "counted", "run"]

VERSIONS: dict[str, dict[str, Callable[..., list[HbmTensor]]]] = {
    "rms_norm": {"eager": eager_rms_norm, "fused": fused_rms_norm},
    "add_rms_norm": {"eager": eager_add_rms_norm, "fused": fused_add_rms_norm},
    "swiglu": {"eager": eager_swiglu, "fused": fused_swiglu},
    "rope": {"eager": eager_rope, "fused": fused_rope},
    "softmax": {"eager": eager_softmax, "fused": fused_softmax, "online": online_softmax},
    "cross_entropy": {"eager": eager_cross_entropy, "fused": fused_cross_entropy},
}
INPUTS = {
    "rms_norm": ("x", "weight"),
    "add_rms_norm": ("x", "residual", "weight"),
    "swiglu": ("gate", "up"),
    "rope": ("q", "k", "cos", "sin"),
    "softmax": ("x",),
    "cross_entropy": ("logits", "targets"),
}
COSTS: dict[str, Callable[[str, int, int, Blocks, Widths], Cost]] = {
    "rms_norm": rms_norm_cost,
    "add_rms_norm": add_rms_norm_cost,
    "swiglu": swiglu_cost,
    "softmax": softmax_cost,
    "cross_entropy": cross_entropy_cost,
}


class Measured(NamedTuple):
    """The meter with what it counted, and the results."""

    meter: Meter
    outputs: list[Tensor]


def run(
    name: str,
    version: str,
    *inputs: Tensor,
    blocks: Blocks = Blocks(),  # noqa: B008 (frozen)
    sram_bytes: int = 256 * 1024,
    stored_as: torch.dtype | None = None,
    trace: bool = False,
) -> Measured:
    """Run one operation on a meter of its own.

    name, version  of `VERSIONS`
    inputs         float32 or float64, in the order of `INPUTS`: rows (rows, size), a weight (size,), for rope
                   q and k (heads, tokens, head_dim) with cos and sin (tokens, head_dim), int64 targets (rows,)
    stored_as      the dtype that bytes are counted in; None = that of the inputs

    The numbers are computed in the inputs' dtype whatever `stored_as` says. Raises ValueError for unknown names,
    another number of inputs, and tiles that don't fit into the SRAM.
    """
    _check(name, version)
    if len(inputs) != len(INPUTS[name]):
        raise ValueError(f"expected {', '.join(INPUTS[name])} for {name}, got {len(inputs)} tensors")
    meter = Meter(sram_bytes, dtype=inputs[0].dtype, stored_as=stored_as, trace=trace)
    tensors = [meter.hbm(label, _as_matrix(label, x)) for label, x in zip(INPUTS[name], inputs, strict=True)]
    outputs = VERSIONS[name][version](meter, *tensors, blocks)
    return Measured(meter, [tensor.result() for tensor in outputs])


def cost(
    name: str,
    version: str,
    shape: tuple[int, ...],
    *,
    blocks: Blocks = Blocks(),  # noqa: B008 (frozen)
    bytes_per_number: int = 4,
) -> Cost:
    """What `run` counts, by the closed form; nothing is computed, so any size will do.

    shape  (rows, size), or for rope (heads of q and k together, tokens, head_dim)

    Raises ValueError for unknown names and another number of sizes.
    """
    _check(name, version)
    widths = Widths(bytes_per_number)
    if len(shape) != (3 if name == "rope" else 2):
        raise ValueError(f"expected (heads, tokens, head_dim) for rope and (rows, size) for others, got {tuple(shape)}")
    if name == "rope":
        heads, tokens, head_dim = shape
        return rope_cost(version, tokens, heads, head_dim, blocks, widths)
    return COSTS[name](version, shape[0], shape[1], blocks, widths)


def _check(name: str, version: str) -> None:
    if version not in VERSIONS.get(name, {}):
        known = "; ".join(f"{name}: {', '.join(versions)}" for name, versions in VERSIONS.items())
        raise ValueError(f"expected an operation and a version of it, {known}; got {name!r}, {version!r}")


def _as_matrix(label: str, x: Tensor) -> Tensor:
    """A weight as one row, targets as one column."""
    if label in ("weight", "targets") and x.dim() != 1:
        raise ValueError(f"expected a vector as {label}, got {tuple(x.shape)}")
    return x[None, :] if label == "weight" else x[:, None] if label == "targets" else x
