"""The default attend: attention of a sequence to itself, with nothing kept afterwards.

An *attend* is what the model hands q, k and v to: `attend(layer_idx, q, k, v, softmax_scale) -> out`. Where keys and
values come from, and which implementation multiplies them, is its business alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from minillm.attention.dispatch import attention


class Attend(Protocol):
    """`attend(layer_idx, q, k, v, softmax_scale)`: q (..., num_heads, k_head_dim) -> out (..., num_heads, v_head_dim).

    k and v hold the new tokens only, (..., num_kv_heads, k_head_dim) and (..., num_kv_heads, v_head_dim). Keys and
    queries arrive rotated to their positions.
    """

    def __call__(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor: ...


class FullAttend:
    """Causal attention within the sequence: q (..., seq_len, num_heads, head_dim). Stateless and differentiable.

    `windows[layer_idx]` is the sliding window of a layer, or None.
    """

    def __init__(self, windows: Sequence[int | None]) -> None:
        self.windows = windows

    def __call__(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
        leading = q.shape[:-3]  # () for one sequence, (batch,) for several
        q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
        out = attention(q, k, v, causal=True, window=self.windows[layer_idx], softmax_scale=softmax_scale)
        return out.reshape(*leading, *out.shape[-3:])
