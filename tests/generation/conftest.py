"""Tiny random models, and the same models in transformers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from minillm.model.transformer import Transformer
from tests.helpers import tiny_model


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Transformer]:
    """make_model(seed, dtype=float64, **changes): a tiny random Llama, other where `changes` say so."""

    def make(seed: int = 0, dtype: torch.dtype = torch.float64, **changes: object) -> Transformer:
        shape = {"vocab_size": 41, "num_layers": 2, "max_seq_len": 48, "eos_token_ids": ()} | changes
        return tiny_model("llama", seed, **shape).to(dtype).requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def to_transformers() -> Callable[[Transformer], LlamaForCausalLM]:
    """The same weights in a transformers model, copied by name."""

    def convert(model: Transformer) -> LlamaForCausalLM:
        config = model.config
        peer_config = LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm_eps,
            max_position_embeddings=config.max_seq_len,
            tie_word_embeddings=False,
            eos_token_id=list(config.eos_token_ids) or None,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
        )
        peer = LlamaForCausalLM(peer_config).to(model.embed_tokens.weight.dtype)
        names = {"embed_tokens": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"}
        inner = {
            "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
            "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj",
            "attention.wv": "self_attn.v_proj", "attention.wo": "self_attn.o_proj",
            "ffn.w_gate": "mlp.gate_proj", "ffn.w_up": "mlp.up_proj", "ffn.w_down": "mlp.down_proj",
        }  # fmt: skip
        for layer_idx in range(config.num_layers):
            for ours, theirs in inner.items():
                names[f"blocks.{layer_idx}.{ours}"] = f"model.layers.{layer_idx}.{theirs}"
        weights = model.state_dict()
        peer.load_state_dict({f"{names[ours]}.weight": weights[f"{ours}.weight"] for ours in names}, strict=True)
        return peer.eval()

    return convert
