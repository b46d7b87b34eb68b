"""Attentions of torch that ours are compared with: `scaled_dot_product_attention` backend by backend, FlexAttention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from minillm.attention.naive import visible_keys
from minillm.bench.attention_check import Attention, Maker
from minillm.bench.attention_shape import AttentionShape

SDPA, FLEX = "torch SDPA", "FlexAttention"

BACKENDS = {
    "SDPA math": SDPBackend.MATH,
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA cudnn": SDPBackend.CUDNN_ATTENTION,
}


def sdpa(backend: SDPBackend | None = None) -> Maker:
    """torch's fused attention by one backend; None = the one that torch chooses."""

    def make(shape: AttentionShape, device: torch.device) -> Attention:
        mask, is_causal = None, False
        if shape.causal and shape.q_len > 1 or shape.window is not None:
            is_causal = shape.window is None and shape.q_len == shape.k_len  # the only pattern that it knows by itself
            if not is_causal:
                mask = visible_keys(shape.q_len, shape.k_len, causal=True, window=shape.window, device=device)
        is_grouped = shape.num_heads != shape.num_kv_heads
        options: dict[str, Any] = {"attn_mask": mask, "is_causal": is_causal, "enable_gqa": is_grouped}

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (batch, heads, seq_len, head_dim)
            if backend is None:
                return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2)
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2)

        return attend

    return make


def flex(*, compiled: bool = True) -> Maker:
    """FlexAttention: causality and window as a function of two indices, compiled into a kernel for this shape.

    Uncompiled it builds the whole score matrix, and is of use for a test only. The mask of blocks is made once and
    serves all layers of a model; it isn't timed.
    """

    def make(shape: AttentionShape, device: torch.device) -> Attention:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        shift = shape.k_len - shape.q_len

        def is_visible(_batch: Any, _head: Any, query: Tensor, key: Tensor) -> Tensor:
            seen = key <= query + shift
            return seen if shape.window is None else seen & (key > query + shift - shape.window)

        blocks = None
        if shape.causal and (shape.q_len > 1 or shape.window is not None):
            blocks = create_block_mask(is_visible, None, None, shape.q_len, shape.k_len, device=device)
        function: Any = flex_attention
        if compiled:
            torch.compiler.reset()  # a kernel for each shape; after some it would silently stop to compile
            function = torch.compile(flex_attention, dynamic=False)
        enable_gqa = shape.num_heads != shape.num_kv_heads

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            out: Tensor = function(q, k, v, block_mask=blocks, enable_gqa=enable_gqa)
            return out.transpose(1, 2)

        return attend

    return make
