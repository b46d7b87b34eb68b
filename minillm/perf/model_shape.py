"""The shape of a decoder, as far as FLOPs and bytes depend on it: matrices, norms, heads, experts. No weights.

    shape = read_shape("stories-5m")          # or a folder, a config.json, the contents of one
    shape.num_parameters                      4_951_296
    shape.layers[0].matrices                  wq, wk, wv, wo, w_gate, w_up, w_down

Everything else in the cost model follows from the lists of matrices here. How a `config.json` becomes a shape is
`minillm.perf.shape_from_hf`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Matrix:
    """A linear layer y = x Wᵀ + bias, W (out_features, in_features).

    copies            experts that each have one
    copies_per_token  how many of them a token passes through
    """

    name: str
    in_features: int
    out_features: int
    bias: bool = False
    copies: int = 1
    copies_per_token: int = 1

    @property
    def num_weights(self) -> int:
        """Numbers in one copy of W, without the bias."""
        return self.in_features * self.out_features

    @property
    def num_parameters(self) -> int:
        """Numbers in all copies, biases included."""
        return self.copies * (self.num_weights + (self.out_features if self.bias else 0))


@dataclass(frozen=True)
class LatentShape:
    """Multi-head latent attention (DeepSeek-V2, section 2.1): K and V are made from one latent vector a token.

    q_lora_rank None = queries are not compressed.
    """

    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int | None = None


@dataclass(frozen=True)
class AttentionShape:
    """Heads of one layer. With `latent` the KV head count is `num_heads` before absorption and 1 in the cache."""

    num_heads: int
    num_kv_heads: int
    k_head_dim: int
    v_head_dim: int
    window: int | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    latent: LatentShape | None = None

    @property
    def kv_numbers_per_token(self) -> int:
        """Numbers that the cache keeps for one token in this layer."""
        if self.latent is not None:
            return self.latent.kv_lora_rank + self.latent.qk_rope_head_dim
        return self.num_kv_heads * (self.k_head_dim + self.v_head_dim)

    def matrices(self, hidden_size: int) -> tuple[Matrix, ...]:
        """Projections from and to the residual stream."""
        q_size, wo_size = self.num_heads * self.k_head_dim, self.num_heads * self.v_head_dim
        wo = Matrix("wo", wo_size, hidden_size, self.o_bias)
        if self.latent is None:
            return (
                Matrix("wq", hidden_size, q_size, self.qkv_bias),
                Matrix("wk", hidden_size, self.num_kv_heads * self.k_head_dim, self.qkv_bias),
                Matrix("wv", hidden_size, self.num_kv_heads * self.v_head_dim, self.qkv_bias),
                wo,
            )
        kv_rank, rope_dim, q_rank = self.latent.kv_lora_rank, self.latent.qk_rope_head_dim, self.latent.q_lora_rank
        down = Matrix("wkv_down", hidden_size, kv_rank + rope_dim, self.qkv_bias)
        up = Matrix("wkv_up", kv_rank, self.num_heads * (self.latent.qk_nope_head_dim + self.v_head_dim))
        if q_rank is None:
            return Matrix("wq", hidden_size, q_size), down, up, wo
        q_down = Matrix("wq_down", hidden_size, q_rank, self.qkv_bias)
        return q_down, Matrix("wq_up", q_rank, q_size), down, up, wo

    @property
    def num_norm_parameters(self) -> int:
        """Of norms inside attention: q and k norms, or those of MLA's latents."""
        if self.latent is not None:
            return self.latent.kv_lora_rank + (self.latent.q_lora_rank or 0)
        return 2 * self.k_head_dim if self.qk_norm else 0


@dataclass(frozen=True)
class FfnShape:
    """A feed-forward network, w_gate, w_up and w_down if gated, else w_up and w_down; dense, or experts.

    num_experts 0 = dense, of `intermediate_size`. Else each expert has that size, `num_experts_per_token` of them see a
    token, and a shared expert of `shared_intermediate_size` (0 = none), behind a gate of one number or not, sees all.
    """

    intermediate_size: int
    is_gated: bool = True
    bias: bool = False
    num_experts: int = 0
    num_experts_per_token: int = 0
    shared_intermediate_size: int = 0
    shared_gate: bool = False

    def matrices(self, hidden_size: int) -> tuple[Matrix, ...]:
        """In the order in which a token meets them."""
        if self.num_experts == 0:
            return self._network(hidden_size, self.intermediate_size, "", 1, 1)
        router = Matrix("router", hidden_size, self.num_experts)
        experts = self._network(
            hidden_size, self.intermediate_size, "experts.", self.num_experts, self.num_experts_per_token
        )
        if self.shared_intermediate_size == 0:
            return router, *experts
        shared = self._network(hidden_size, self.shared_intermediate_size, "shared.", 1, 1)
        gate = (Matrix("shared.gate", hidden_size, 1),) if self.shared_gate else ()
        return router, *experts, *gate, *shared

    def _network(self, hidden_size: int, size: int, prefix: str, copies: int, per_token: int) -> tuple[Matrix, ...]:
        ups = ("w_gate", "w_up") if self.is_gated else ("w_up",)
        return (
            *(Matrix(prefix + name, hidden_size, size, self.bias, copies, per_token) for name in ups),
            Matrix(prefix + "w_down", size, hidden_size, self.bias, copies, per_token),
        )


@dataclass(frozen=True)
class LayerShape:
    """One transformer block."""

    hidden_size: int
    attention: AttentionShape
    ffn: FfnShape
    norm_numbers: int  # parameters of one of its two norms: hidden_size, or twice that with a bias

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """All linear layers."""
        return self.attention.matrices(self.hidden_size) + self.ffn.matrices(self.hidden_size)

    @property
    def num_norm_parameters(self) -> int:
        """Of all norms of the block."""
        return 2 * self.norm_numbers + self.attention.num_norm_parameters

    @property
    def num_parameters(self) -> int:
        """Linears, biases and norms."""
        return sum(matrix.num_parameters for matrix in self.matrices) + self.num_norm_parameters


@dataclass(frozen=True)
class ModelShape:
    """A decoder: embedding, layers, final norm, lm_head.

    num_positions  rows of a table of learned positions; 0 with rotary ones
    is_exact       False for an architecture unknown here, read as a Llama: matrices count, its extras may be missing
    """

    name: str
    model_type: str
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerShape, ...]
    final_norm_numbers: int
    max_seq_len: int
    tie_embeddings: bool = False
    num_positions: int = 0
    is_exact: bool = True

    @property
    def lm_head(self) -> Matrix:
        """The output projection. Its W is the embedding table if embeddings are tied."""
        return Matrix("lm_head", self.hidden_size, self.vocab_size)

    @property
    def num_parameters(self) -> int:
        """As `sum(parameter.numel())` over a model with these shapes; a tied table counts once."""
        tables = 1 if self.tie_embeddings else 2
        return (
            tables * self.vocab_size * self.hidden_size
            + self.num_positions * self.hidden_size
            + sum(layer.num_parameters for layer in self.layers)
            + self.final_norm_numbers
        )

    @property
    def num_active_parameters(self) -> int:
        """Parameters that one token passes through: of the experts those chosen, everything else in full.

        The embedding table counts, as in the figures published for Mixtral (12.9 B) and DeepSeek-V3 (37 B).
        """
        idle = sum(
            (matrix.copies - matrix.copies_per_token) * (matrix.num_parameters // matrix.copies)
            for layer in self.layers
            for matrix in layer.matrices
        )
        return self.num_parameters - idle

    @property
    def kv_numbers_per_token(self) -> int:
        """Numbers that the cache keeps for one token, all layers together."""
        return sum(layer.attention.kv_numbers_per_token for layer in self.layers)


def read_shape(model: str | Path | Mapping[str, Any]) -> ModelShape:
    """The shape of a bundled name or preset ("stories-5m", "llama-70m"), a folder, a `config.json`, or its contents.

    Raises FileNotFoundError where there is no such model, ValueError for a file that says too little.
    """
    from minillm.perf.shape_from_hf import load_shape, shape_from_hf

    return shape_from_hf(dict(model)) if isinstance(model, Mapping) else load_shape(model)
