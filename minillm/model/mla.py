"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1; DeepSeek-V3, arXiv:2412.19437, 2.1.1).

A token is remembered as a latent c of `kv_lora_rank` numbers and one rotated key of `qk_rope_head_dim` numbers that all
heads share. Head h has its own W_UK, W_UV to make a key and a value of c, so its score and its output are

    score = q_nope · (W_UK c)  +  q_rope · k_rope          out = Σ weight · (W_UV c)
          = (W_UKᵀ q_nope) · c +  q_rope · k_rope              = W_UV (Σ weight · c)

The first line is the *naive* form: expand K and V of all heads, then multi-head attention. The second is the
*absorbed* form: W_UK moves into the query, W_UV behind the sum, and what remains is multi-query attention whose single
key is (c, k_rope) and whose value is the c inside of it. Both are the same function.

Position has numbers of its own because of the second line. Were the expanded keys rotated, the score would be
q · R(distance) W_UK c, and the query to absorb W_UK into, W_UKᵀ R(distance)ᵀ q, would be another one for each key.

    numbers a token and layer in a cache        128 heads of DeepSeek-V3
    naive      num_heads · (nope + rope + v)    40,960
    absorbed   kv_lora_rank + rope                 576
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minillm.attention.full import Attend
from minillm.config import ModelConfig
from minillm.model.layer_spec import LayerSpec
from minillm.model.norm import RMSNorm
from minillm.model.rope import Rope, rotate, yarn_mscale
from minillm.transform import dense_weight

# DeepSeek's code gives the norms of latents this constant, whatever `rms_norm_eps` says.
LATENT_NORM_EPS = 1e-6


class MultiHeadLatentAttention(nn.Module):
    """x (..., hidden_size) -> (..., hidden_size), with `config.mla` for the widths.

    `form`, "absorbed" or "naive", says how it is computed and so what a cache holds; `use_latent_form` changes it.
    Absorbed costs more arithmetic when many tokens are processed at once, since scores and sums are over
    `kv_lora_rank` instead of the width of a head, and moves far fewer bytes when one token meets a long cache.
    """

    def __init__(self, config: ModelConfig, layer_idx: int) -> None:
        super().__init__()
        mla = config.mla
        if mla is None:
            raise ValueError("latent attention needs a ModelConfig with mla")
        self.layer_idx = layer_idx
        self.widths = mla
        self.form = "absorbed"
        self.softmax_scale = latent_softmax_scale(config)
        self.window = None if config.windows is None else config.windows[layer_idx]
        q_size = config.num_heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
        self.wq: nn.Module
        if mla.q_lora_rank is None:
            self.wq = nn.Linear(config.hidden_size, q_size, bias=False)
        else:
            self.wq = nn.Sequential()
            self.wq.add_module("a", nn.Linear(config.hidden_size, mla.q_lora_rank, bias=config.qkv_bias))
            self.wq.add_module("norm", RMSNorm(mla.q_lora_rank, LATENT_NORM_EPS))
            self.wq.add_module("b", nn.Linear(mla.q_lora_rank, q_size, bias=False))
        self.wkv_a = nn.Linear(config.hidden_size, mla.kv_lora_rank + mla.qk_rope_head_dim, bias=config.qkv_bias)
        self.kv_norm = RMSNorm(mla.kv_lora_rank, LATENT_NORM_EPS)
        kv_size = config.num_heads * (mla.qk_nope_head_dim + mla.v_head_dim)
        self.wkv_b = nn.Linear(mla.kv_lora_rank, kv_size, bias=False)  # W_UK and W_UV of each head in turn
        self.wo = nn.Linear(config.num_heads * mla.v_head_dim, config.hidden_size, bias=config.o_bias)

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        mla = self.widths
        # -1 heads: a tensor-parallel shard holds fewer than the configuration says.
        q = self.wq(x).unflatten(-1, (-1, mla.qk_nope_head_dim + mla.qk_rope_head_dim))
        q_nope, q_rope = q.split((mla.qk_nope_head_dim, mla.qk_rope_head_dim), dim=-1)
        latent, k_rope = self.wkv_a(x).split((mla.kv_lora_rank, mla.qk_rope_head_dim), dim=-1)
        latent = self.kv_norm(latent).unsqueeze(-2)  # (..., 1, kv_lora_rank)
        q_rope = rotate(q_rope, *cos_sin)  # (..., num_heads, qk_rope_head_dim)
        k_rope = rotate(k_rope.unsqueeze(-2), *cos_sin)  # (..., 1, qk_rope_head_dim)
        out = FORMS[self.form].attend(self, q_nope, q_rope, latent, k_rope, attend)  # (..., num_heads, v_head_dim)
        return self.wo(out.flatten(-2))

    @property
    def num_heads(self) -> int:
        """Heads of the projections in place. A wrapped linear offers its own `out_features`."""
        return self.wkv_b.out_features // (self.widths.qk_nope_head_dim + self.widths.v_head_dim)

    def layer_spec(self, rope: Rope) -> LayerSpec:
        """What a cache must know; it depends on the form. `rope` turns the last numbers of a key, where k_rope is."""
        return FORMS[self.form].layer_spec(self, rope)


def latent_softmax_scale(config: ModelConfig) -> float:
    """1 / √(width of a query head), both of its parts counted; with YaRN times mscale², which q and k would carry.

    YaRN puts its factor on cos and sin, which reach only the rotated part here. DeepSeek therefore divides it out
    there (`mscale_all_dim`) and puts its square on the whole score.
    """
    assert config.mla is not None
    scale = (config.mla.qk_nope_head_dim + config.mla.qk_rope_head_dim) ** -0.5
    if config.rope.scaling == "yarn" and config.rope.mscale_all_dim is not None:
        scale *= yarn_mscale(config.rope.factor, config.rope.mscale_all_dim) ** 2
    return scale


def use_latent_form(model: nn.Module, form: str) -> None:
    """Compute all latent attention of `model` in the form "naive" or "absorbed" from now on; weights stay the same.

    Its layer specs change with it: a cache made for one form doesn't fit the other. Raises ValueError for other forms
    and for models without latent attention.
    """
    if form not in FORMS:
        raise ValueError(f"the form of latent attention must be one of {', '.join(FORMS)}, got {form!r}")
    layers = [module for module in model.modules() if isinstance(module, MultiHeadLatentAttention)]
    if not layers:
        raise ValueError("the model has no latent attention")
    for layer in layers:
        layer.form = form


def attend_naive(
    attention: MultiHeadLatentAttention, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, attend: Attend
) -> Tensor:
    """Multi-head attention with expanded keys and values; out (..., num_heads, v_head_dim)."""
    mla = attention.widths
    expanded = attention.wkv_b(latent.squeeze(-2)).unflatten(-1, (-1, mla.qk_nope_head_dim + mla.v_head_dim))
    k_nope, v = expanded.split((mla.qk_nope_head_dim, mla.v_head_dim), dim=-1)
    q = torch.cat((q_nope, q_rope), dim=-1)  # (..., num_heads, nope + rope)
    k = torch.cat((k_nope, k_rope.expand(*k_nope.shape[:-1], -1)), dim=-1)
    return attend(attention.layer_idx, q, k, v, attention.softmax_scale)


def attend_absorbed(
    attention: MultiHeadLatentAttention, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, attend: Attend
) -> Tensor:
    """Multi-query attention over the latents themselves; out (..., num_heads, v_head_dim)."""
    mla = attention.widths
    per_head = dense_weight(attention.wkv_b).unflatten(0, (-1, mla.qk_nope_head_dim + mla.v_head_dim))
    w_uk, w_uv = per_head.split((mla.qk_nope_head_dim, mla.v_head_dim), dim=1)  # (num_heads, nope or v, kv_lora_rank)
    q_latent = torch.einsum("...hd,hdr->...hr", q_nope, w_uk)  # (..., num_heads, kv_lora_rank)
    q = torch.cat((q_latent, q_rope), dim=-1)
    k = torch.cat((latent, k_rope), dim=-1)  # (..., 1, kv_lora_rank + rope)
    out = attend(attention.layer_idx, q, k, k[..., : mla.kv_lora_rank], attention.softmax_scale)
    return torch.einsum("...hr,hdr->...hd", out, w_uv)


def naive_layer_spec(attention: MultiHeadLatentAttention, rope: Rope) -> LayerSpec:
    """Every head has its own key and value."""
    mla = attention.widths
    return LayerSpec(
        num_heads=attention.num_heads,
        num_kv_heads=attention.num_heads,
        k_head_dim=mla.qk_nope_head_dim + mla.qk_rope_head_dim,
        v_head_dim=mla.v_head_dim,
        v_from_k=False,
        window=attention.window,
        rope=rope,
    )


def absorbed_layer_spec(attention: MultiHeadLatentAttention, rope: Rope) -> LayerSpec:
    """One key for all heads, and the value is its beginning."""
    mla = attention.widths
    return LayerSpec(
        num_heads=attention.num_heads,
        num_kv_heads=1,
        k_head_dim=mla.kv_lora_rank + mla.qk_rope_head_dim,
        v_head_dim=mla.kv_lora_rank,
        v_from_k=True,
        window=attention.window,
        rope=rope,
    )


class Form(NamedTuple):
    """A way to compute latent attention, and what it has a cache keep."""

    attend: Callable[[MultiHeadLatentAttention, Tensor, Tensor, Tensor, Tensor, Attend], Tensor]
    layer_spec: Callable[[MultiHeadLatentAttention, Rope], LayerSpec]


FORMS = {"absorbed": Form(attend_absorbed, absorbed_layer_spec), "naive": Form(attend_naive, naive_layer_spec)}
