"""What the fused operators run on a CPU: as few torch calls as each allows, in the precision of the modules.

Fewer calls, not less traffic: each call still reads and writes whole tensors. With one row these fit the cache, and
what a step costs there is the calls. Any device and dtype that torch knows works.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """One torch call, which takes the statistics in float32; two for 16-bit numbers, see below. 7 in the module."""
    if x.dtype in HALVES:
        # The module rounds to 16 bits before it multiplies by the weight; torch's own weight would come before.
        return weight * F.rms_norm(x, weight.shape, None, eps)
    return F.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """One more call for the sum."""
    total = x + residual
    return rms_norm(total, weight, eps), total


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Two calls, the second in place."""
    return F.silu(gate).mul_(up)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Three calls for each of q and k, and three for a sine with its sign: 9, where the module makes 16.

    (a cos − b sin, b cos + a sin) = x · cos + roll(x, head_dim / 2) · (−sin, sin)
    """
    half = q.shape[-1] // 2
    signed = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
    return _rotate(q, cos, signed), _rotate(k, cos, signed)


def _rotate(x: Tensor, cos: Tensor, signed: Tensor) -> Tensor:
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), signed)
