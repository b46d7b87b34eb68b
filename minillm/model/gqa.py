"""Grouped-query attention (Ainslie et al. 2023): project to q, k, v, rotate, hand them to the attend.

`num_kv_heads` equal to `num_heads` is multi-head attention (Vaswani et al. 2017); 1 is multi-query (Shazeer 2019).
"""

from __future__ import annotations

from torch import Tensor, nn

from minillm.attention.full import Attend
from minillm.config import ModelConfig
from minillm.model.layer_spec import LayerSpec
from minillm.model.norm import RMSNorm
from minillm.model.rope import Rope, rotate


class GroupedQueryAttention(nn.Module):
    """x (..., hidden_size) -> (..., hidden_size). What is cached, and how it is multiplied, the attend decides."""

    def __init__(self, config: ModelConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.softmax_scale = config.head_dim**-0.5
        self.window = None if config.windows is None else config.windows[layer_idx]
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.wq = nn.Linear(config.hidden_size, q_size, bias=config.qkv_bias)
        self.wk = nn.Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.wv = nn.Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.wo = nn.Linear(q_size, config.hidden_size, bias=config.o_bias)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        # -1 heads: a tensor-parallel shard holds fewer than the configuration says.
        q = self.wq(x).unflatten(-1, (-1, self.head_dim))  # (..., num_heads, head_dim)
        k = self.wk(x).unflatten(-1, (-1, self.head_dim))  # (..., num_kv_heads, head_dim)
        v = self.wv(x).unflatten(-1, (-1, self.head_dim))
        q = rotate(self.q_norm(q), *cos_sin)
        k = rotate(self.k_norm(k), *cos_sin)
        out = attend(self.layer_idx, q, k, v, self.softmax_scale)  # (..., num_heads, head_dim)
        return self.wo(out.flatten(-2))

    def layer_spec(self, rope: Rope) -> LayerSpec:
        """Heads are counted on the projections in place. A wrapped linear offers its own `out_features`."""
        return LayerSpec(
            num_heads=self.wq.out_features // self.head_dim,
            num_kv_heads=self.wk.out_features // self.head_dim,
            k_head_dim=self.head_dim,
            v_head_dim=self.head_dim,
            v_from_k=False,
            window=self.window,
            rope=rope,
        )
