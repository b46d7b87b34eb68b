"""Tiny models with latent attention. All widths differ, so that none can stand for another."""

from __future__ import annotations

import dataclasses
from typing import Any

from minillm.config import MLAConfig, ModelConfig, RopeConfig
from minillm.model import Transformer
from minillm.model.mla import use_latent_form
from tests.helpers import randomise

MLA = MLAConfig(q_lora_rank=22, kv_lora_rank=18, qk_nope_head_dim=10, qk_rope_head_dim=8, v_head_dim=14)
YARN = RopeConfig(scaling="yarn", factor=4.0, original_max_seq_len=16, mscale=0.7, mscale_all_dim=1.4)
CONFIG = ModelConfig(
    vocab_size=97, hidden_size=48, intermediate_size=80, num_layers=3, num_heads=4, num_kv_heads=4, head_dim=8,
    max_seq_len=64, qkv_bias=True, o_bias=True, rope=YARN, mla=MLA, model_type="deepseek_v3",
    bos_token_id=1, eos_token_ids=(2,),
)  # fmt: skip


def tiny_mla_model(form: str = "absorbed", *, seed: int = 0, **changes: Any) -> Transformer:
    """A random float64 model in eval mode, for inference; `changes` to CONFIG."""
    model = Transformer(dataclasses.replace(CONFIG, **changes)).double()
    randomise(model, seed)
    use_latent_form(model, form)
    return model.eval().requires_grad_(False)
