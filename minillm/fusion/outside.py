"""Attention as one node of a graph: `torch.ops.minillm.attend`, behind which any attend may stand.

A cache is Python with state. TorchDynamo would follow its code and remember lengths as constants, so that each new
token asks for a new graph. An operator it doesn't look into; and since the graph holds q, k and v of the new tokens
only, whose sizes are those of any other step, one graph serves them all.

Operators take tensors and numbers. The attend that waits outside is therefore found by a number, its *door*.
"""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from minillm.attention.full import Attend


class OutsideAttend:
    """An attend that hands q, k and v through the operator to whatever attend stands behind the door at that time.

        outside = OutsideAttend()
        outside.attend = cache.begin([1])
        hidden = compiled(x, positions, outside)

    No gradient comes back through the door: RuntimeError in the backward.
    """

    def __init__(self, attend: Attend | None = None) -> None:
        self.attend = attend
        self.door = next(_numbers)
        _DOORS[self.door] = self

    def __call__(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
        return torch.ops.minillm.attend.default(self.door, layer_idx, q, k, v, softmax_scale)


_numbers = itertools.count()
_DOORS: WeakValueDictionary[int, OutsideAttend] = WeakValueDictionary()  # operators are global, so their doors are


def _attend(door: int, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
    outside = _DOORS.get(door)
    if outside is None or outside.attend is None:
        raise RuntimeError("minillm::attend was called, but no attend stands behind its door now")
    # Contiguous, since compilers rely on the strides of the fake result.
    return outside.attend(layer_idx, q, k, v, softmax_scale).contiguous()


def _fake_attend(door: int, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


def _refuse_gradient(ctx: Any, gradient: Tensor) -> None:
    raise RuntimeError("minillm::attend gives no gradient: call the model under torch.inference_mode()")


torch.library.define(
    "minillm::attend", "(int door, int layer_idx, Tensor q, Tensor k, Tensor v, float softmax_scale) -> Tensor"
)
for _device in ("cpu", "cuda"):
    torch.library.impl("minillm::attend", _device, _attend)
torch.library.register_fake("minillm::attend", _fake_attend)
torch.library.register_autograd("minillm::attend", _refuse_gradient)
