"""Rotary position embedding (Su et al. 2021): turn pairs of dimensions of q and k by an angle that grows with position.

Dimensions i and i + head_dim/2 form a pair (the Hugging Face layout: halves, not neighbours). Pair i at position p
turns by p · inv_freq[i]. The scalar product of a rotated query and key then depends on their distance alone.
`frequencies` holds the four rules for the angular speeds; `Rope` applies them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minillm.config import RopeConfig


class Rope:
    """Rotation by position for heads of `head_dim`. Not a module: its frequencies must survive a cast to bf16."""

    def __init__(self, config: RopeConfig, head_dim: int) -> None:
        self.config, self.head_dim = config, head_dim
        self.inv_freq = frequencies(config, head_dim)  # (head_dim / 2,), radians a position, float32
        self.attention_factor = attention_factor(config)

    def cos_sin(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions (...) int64 -> cos, sin (..., 1, head_dim): both halves alike, one axis for the heads to share."""
        if self.inv_freq.device != positions.device:
            self.inv_freq = self.inv_freq.to(positions.device)
        angles = positions.unsqueeze(-1) * self.inv_freq
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(-2)
        cos, sin = angles.cos(), angles.sin()
        if self.attention_factor != 1.0:
            cos, sin = cos * self.attention_factor, sin * self.attention_factor
        return cos.to(dtype), sin.to(dtype)

    def rotate(self, x: Tensor, positions: Tensor, *, inverse: bool = False) -> Tensor:
        """x (..., heads, head_dim) turned to `positions` (...), or back from them. `inverse` undoes a rotation.

        Of wider heads the last `head_dim` numbers are turned: those of latent attention keep position there.
        """
        cos, sin = self.cos_sin(positions, x.dtype)
        if inverse:
            # cos and sin carry the attention factor, once for each direction.
            cos, sin = cos / self.attention_factor**2, -sin / self.attention_factor**2
        straight, turned = x[..., : -self.head_dim], rotate(x[..., -self.head_dim :], cos, sin)
        return turned if straight.shape[-1] == 0 else torch.cat((straight, turned), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (..., heads, head_dim), cos and sin (..., 1, head_dim): (a, b) -> (a cos - b sin, b cos + a sin)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """Angular speed of each pair of dimensions, (head_dim / 2,) float32 on the CPU."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    return _RULES[config.scaling](1.0 / config.theta**exponents, config, head_dim)


def attention_factor(config: RopeConfig) -> float:
    """Factor on cos and sin, so its square on the scores: YaRN sharpens attention as contexts grow (eq. 15)."""
    if config.scaling != "yarn":
        return 1.0
    if config.attention_factor is not None:
        return config.attention_factor
    if config.mscale and config.mscale_all_dim:
        return yarn_mscale(config.factor, config.mscale) / yarn_mscale(config.factor, config.mscale_all_dim)
    return yarn_mscale(config.factor, 1.0)


def _default(inv_freq: Tensor, config: RopeConfig, head_dim: int) -> Tensor:
    return inv_freq


def _linear(inv_freq: Tensor, config: RopeConfig, head_dim: int) -> Tensor:
    """Position interpolation (Chen et al. 2023): every angle shrinks alike."""
    return inv_freq / config.factor


def _llama3(inv_freq: Tensor, config: RopeConfig, head_dim: int) -> Tensor:
    """Llama 3.1: slow pairs shrink, fast ones stay, those between are blended by their wavelength."""
    assert config.original_max_seq_len is not None
    turns = config.original_max_seq_len * inv_freq / (2 * math.pi)  # over the original length
    keep = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    keep = keep.clamp(0.0, 1.0)
    return (1 - keep) * inv_freq / config.factor + keep * inv_freq


def _yarn(inv_freq: Tensor, config: RopeConfig, head_dim: int) -> Tensor:
    """YaRN (Peng et al. 2023, eq. 13): a linear ramp over dimensions between `beta_fast` and `beta_slow` turns."""
    original_len = config.original_max_seq_len
    assert original_len is not None

    def dimension_with(turns: float) -> float:
        wavelength = original_len / (turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(config.theta))

    low, high = dimension_with(config.beta_fast), dimension_with(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    keep = 1 - ((torch.arange(head_dim // 2, dtype=torch.float32, device="cpu") - low) / width).clamp(0, 1)
    return (1 - keep) * inv_freq / config.factor + keep * inv_freq


def yarn_mscale(factor: float, mscale: float) -> float:
    """How much longer contexts sharpen attention: 0.1 · mscale · ln(factor) + 1 (YaRN, eq. 15, has mscale = 1)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


_RULES: dict[str, Callable[[Tensor, RopeConfig, int], Tensor]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
