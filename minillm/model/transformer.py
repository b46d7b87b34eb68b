"""The transformer (Touvron et al. 2023): embedding, blocks of attention and feed-forward, norm, output projection.

Every shape is polymorphic over its leading axes: (batch, seq_len) in training, (num_tokens,) packed in serving. The
model keeps no state between calls; what is remembered lives in the attend that it is given.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minillm.attention.full import Attend, FullAttend
from minillm.config import ModelConfig
from minillm.model.ffn import SwiGLU
from minillm.model.gqa import GroupedQueryAttention
from minillm.model.layer_spec import LayerSpec
from minillm.model.mla import MultiHeadLatentAttention
from minillm.model.norm import RMSNorm
from minillm.model.rope import Rope

ATTENTION = {"gqa": GroupedQueryAttention, "mla": MultiHeadLatentAttention}


class Block(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x)): the pre-norm residual block. x (..., hidden_size)."""

    def __init__(self, config: ModelConfig, layer_idx: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = ATTENTION[config.attention_type](config, layer_idx)
        self.ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn = SwiGLU(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos_sin, attend)
        return x + self.ffn(self.ffn_norm(x))


class Transformer(nn.Module):
    """A Llama-style decoder: `logits = model(tokens, positions, attend)`.

    Weights are torch's default initialisation until a checkpoint or the trainer sets them.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, layer_idx) for layer_idx in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.rope = Rope(config.rope, config.head_dim)

    @property
    def layer_specs(self) -> list[LayerSpec]:
        """One `LayerSpec` a block, in order."""
        return [block.attention.layer_spec(self.rope) for block in self.blocks]  # type: ignore[union-attr, operator]

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (...) int64 -> x (..., hidden_size)."""
        return self.embed_tokens(tokens)

    def hidden(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """x (..., hidden_size), positions broadcastable to x's leading axes -> normed state of the last block."""
        cos_sin = self.rope.cos_sin(positions, x.dtype)
        for block in self.blocks:
            x = block(x, cos_sin, attend)
        return self.norm(x)

    def unembed(self, h: Tensor) -> Tensor:
        """h (..., hidden_size) -> logits (..., vocab_size)."""
        return self.lm_head(h)

    def forward(self, tokens: Tensor, positions: Tensor | None = None, attend: Attend | None = None) -> Tensor:
        """tokens (...) int64 -> logits (..., vocab_size).

        Without an attend the tokens are whole sequences (..., seq_len) at positions 0, 1, …, each attending to
        itself. With one, `positions` (int64, broadcastable to tokens) is required: ValueError otherwise.
        """
        if attend is None:
            attend = FullAttend([spec.window for spec in self.layer_specs])
            if positions is None:
                positions = torch.arange(tokens.shape[-1], device=tokens.device)
        elif positions is None:
            raise ValueError("an attend was given without positions; a cache's attend offers attend.positions")
        return self.unembed(self.hidden(self.embed(tokens), positions, attend))
