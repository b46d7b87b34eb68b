"""Transformer blocks for decoding: a few rows at a time run through `minillm.gemm.fused`, everything else as before.

    use_fused_blocks(use_fast_linears(model))        # the lm_head is a linear and no block

Inference only, CPU only, and needs numba (`pip install minillm[fast]`). Apply it last: a fused block reads the weights
it found, and knows nothing of linears that are wrapped afterwards.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from minillm.attention.full import Attend
from minillm.fast_linears import FastLinear, can_use_fast_linears
from minillm.model.ffn import SwiGLU
from minillm.model.gqa import GroupedQueryAttention
from minillm.model.norm import RMSNorm
from minillm.model.transformer import Block

ModelT = TypeVar("ModelT", bound=nn.Module)


def use_fused_blocks(model: ModelT) -> ModelT:
    """Wrap each `Block` of `model.blocks` that `can_fuse` in a `FusedBlock`, in place; returns the model.

    Weights stay where they are. Does nothing where numba is missing.
    """
    if can_use_fast_linears():
        blocks = cast(nn.ModuleList, model.blocks)
        for index, block in enumerate(blocks):
            if can_fuse(block):
                blocks[index] = FusedBlock(cast(Block, block))
    return model


def can_fuse(block: nn.Module) -> bool:
    """Whether the kernels know everything in `block`: plain or fast linears, no q/k norm, one dtype, on the CPU."""
    if not (isinstance(block, Block) and isinstance(block.attention, GroupedQueryAttention)):
        return False
    norms = (block.attention_norm, block.ffn_norm)
    parts_known = (
        isinstance(block.ffn, SwiGLU)
        and isinstance(block.attention.q_norm, nn.Identity)
        and all(isinstance(norm, RMSNorm) for norm in norms)
        and all(type(linear) in (nn.Linear, FastLinear) for linear in _linears(block))
    )
    if not parts_known:
        return False
    tensors = [tensor for tensor in _tensors(block) if tensor is not None]
    dtype = tensors[0].dtype
    return dtype in (torch.float32, torch.bfloat16) and all(
        tensor.dtype == dtype and tensor.is_cpu and tensor.is_contiguous() for tensor in tensors
    )


class FusedBlock(nn.Module):
    """`base(x, cos_sin, attend)` in two calls around the attend when x has up to `max_rows` rows.

    x (..., hidden_size) -> (..., hidden_size). Falls back to `base` with gradients enabled, for more rows, and when x
    is of another dtype or device than the weights. Raises ImportError without numba.
    """

    def __init__(self, base: Block, *, max_rows: int = 8) -> None:
        super().__init__()
        from minillm.gemm import fused, gemv

        self.base = base
        self.max_rows = max_rows
        self._fused: Any = fused
        self._gemv = gemv
        self._tensors = _tensors(base)  # the parameters themselves, in the order of the kernels' arguments
        attention = _attention(base)
        self._hidden_size: int = attention.wq.in_features
        self._q_size: int = attention.wq.out_features
        self._kv_size: int = attention.wk.out_features
        self._intermediate_size: int = base.ffn.w_gate.out_features

    @property
    def attention(self) -> nn.Module:
        """The attention inside, whose `layer_spec` the model asks for."""
        return self.base.attention

    def plain_module(self) -> nn.Module:
        """The block inside: what a checkpoint stores."""
        return self.base

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        weight = self._tensors[1]
        assert weight is not None
        few_rows = x.numel() <= self.max_rows * self._hidden_size
        if not few_rows or torch.is_grad_enabled() or x.dtype != weight.dtype or not (x.is_cpu and weight.is_cpu):
            return self.base(x, cos_sin, attend)
        attention = _attention(self.base)
        head_dim, leading = attention.head_dim, x.shape[:-1]
        x = x.contiguous()
        rows = x.numel() // self._hidden_size
        cos, sin = (_one_row_each(table, leading, rows, head_dim) for table in cos_sin)
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in self._tensors]
        like = self._fused.LIKE_FLOAT32 if x.dtype == torch.float32 else self._fused.LIKE_BFLOAT16

        q = x.new_empty((*leading, self._q_size // head_dim, head_dim))
        k = x.new_empty((*leading, self._kv_size // head_dim, head_dim))
        v = torch.empty_like(k)
        projected_bytes = (self._q_size + 2 * self._kv_size) * self._hidden_size * x.element_size()
        self._fused.project(
            like, x.data_ptr(), *addresses[:7], cos.data_ptr(), sin.data_ptr(), q.data_ptr(), k.data_ptr(),
            v.data_ptr(), rows, self._hidden_size, self._q_size, self._kv_size, head_dim,
            self.base.attention_norm.eps, self._gemv.threads_for(projected_bytes),
        )  # fmt: skip
        out = attend(attention.layer_idx, q, k, v, attention.softmax_scale).contiguous()
        y = torch.empty_like(x)
        finished_bytes = (self._q_size + 3 * self._intermediate_size) * self._hidden_size * x.element_size()
        self._fused.finish(
            like, out.data_ptr(), x.data_ptr(), *addresses[7:], y.data_ptr(), rows, self._hidden_size, self._q_size,
            self._intermediate_size, self.base.ffn_norm.eps, self._gemv.threads_for(finished_bytes),
        )  # fmt: skip
        return y


def _one_row_each(table: Tensor, leading: torch.Size, rows: int, head_dim: int) -> Tensor:
    """cos or sin, (..., 1, head_dim) broadcastable to the rows of x -> contiguous (rows, head_dim)."""
    if table.numel() != rows * head_dim:
        table = table.expand(*leading, 1, head_dim)
    return table.contiguous()


def _attention(block: Block) -> GroupedQueryAttention:
    return cast(GroupedQueryAttention, block.attention)  # `can_fuse` has looked


def _linears(block: Block) -> list[nn.Module]:
    attention, ffn = _attention(block), block.ffn
    return [attention.wq, attention.wk, attention.wv, attention.wo, ffn.w_gate, ffn.w_up, ffn.w_down]


def _tensors(block: Block) -> tuple[Tensor | None, ...]:
    """Norms, weights and biases: seven for `project`, then nine for `finish`."""

    def weight_and_bias(linear: nn.Module) -> tuple[Tensor | None, ...]:
        plain = linear.base if isinstance(linear, FastLinear) else linear
        return cast(Tensor, plain.weight), cast("Tensor | None", plain.bias)

    wq, wk, wv, wo, w_gate, w_up, w_down = (weight_and_bias(linear) for linear in _linears(block))
    return (
        *(block.attention_norm.weight, *wq, *wk, *wv),
        *(*wo, block.ffn_norm.weight, *w_gate, *w_up, *w_down),
    )
