"""Tiny random models of every supported family, made by `transformers`: the oracle of model and loader."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers

from tests.helpers import randomise

SIZES = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def _case(family: str, rope: dict[str, Any] | None = None, **changes: Any) -> tuple[str, dict[str, Any]]:
    """A family and its configuration: SIZES with changes."""
    rope_parameters = {"rope_type": "default", "rope_theta": 10_000.0} | (rope or {})
    return family, SIZES | {"rope_parameters": rope_parameters} | changes


# 24 tokens are enough to reach every scaling rule and every window.
_LINEAR = {"rope_type": "linear", "factor": 3.0}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16}
_LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
_YARN_GIVEN = _YARN | {"attention_factor": 1.3, "truncate": False, "beta_fast": 2.5, "beta_slow": 0.4}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-mha": _case("llama", num_key_value_heads=4),
    "llama-gqa-tied": _case("llama", tie_word_embeddings=True),
    "llama-mqa": _case("llama", num_key_value_heads=1),
    "llama-theta-eps": _case("llama", {"rope_theta": 500.0}, rms_norm_eps=1e-3),
    "llama-wide-heads": _case("llama", head_dim=20),
    "llama-biases": _case("llama", attention_bias=True, mlp_bias=True),
    "llama-attention-bias-tied": _case("llama", attention_bias=True, tie_word_embeddings=True),
    "llama-linear": _case("llama", _LINEAR),
    "llama-llama3": _case("llama", _LLAMA3),
    "llama-yarn": _case("llama", _YARN | {"beta_fast": 2.0}),
    "llama-yarn-given": _case("llama", _YARN_GIVEN),
    "llama-yarn-mscale": _case("llama", _YARN | {"mscale": 0.7, "mscale_all_dim": 1.4}),
    "mistral-window": _case("mistral", sliding_window=5),
    "mistral-full": _case("mistral", sliding_window=None, head_dim=20),
    "qwen2-tied": _case("qwen2", tie_word_embeddings=True),
    "qwen2-windows": _case("qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen3": _case("qwen3", head_dim=20),
    "qwen3-tied-biases": _case("qwen3", head_dim=12, attention_bias=True, tie_word_embeddings=True),
    "qwen3-windows": _case("qwen3", head_dim=12, use_sliding_window=True, sliding_window=7, max_window_layers=2),
}

# Latent attention in dense blocks. All widths differ, so that none can stand for another.
_LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 22, "kv_lora_rank": 18, "qk_nope_head_dim": 10, "qk_rope_head_dim": 8,
    "v_head_dim": 14, "first_k_dense_replace": 3, "n_routed_experts": 4,
}  # fmt: skip
_PLAIN_QUERIES = _LATENT | {"q_lora_rank": None}
_MSCALES = {"mscale": 0.7, "mscale_all_dim": 1.4}
DEEPSEEK_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek-v2": _case("deepseek_v2", **_LATENT),
    "deepseek-v2-plain-queries": _case("deepseek_v2", **_PLAIN_QUERIES, mlp_bias=True, tie_word_embeddings=True),
    "deepseek-v2-biases": _case("deepseek_v2", **_LATENT, attention_bias=True, rms_norm_eps=1e-3),
    "deepseek-v2-yarn": _case("deepseek_v2", _YARN | _MSCALES | {"beta_fast": 2.0}, **_LATENT),
    "deepseek-v3": _case("deepseek_v3", **_LATENT),
    "deepseek-v3-plain-queries": _case("deepseek_v3", **_PLAIN_QUERIES, tie_word_embeddings=True),
    "deepseek-v3-halves": _case("deepseek_v3", **_LATENT, rope_interleave=False),
    "deepseek-v3-biases": _case("deepseek_v3", **_LATENT, attention_bias=True, rms_norm_eps=1e-3),
    "deepseek-v3-yarn": _case("deepseek_v3", _YARN | _MSCALES, **_LATENT),
    "deepseek-v3-yarn-halves": _case("deepseek_v3", _YARN_GIVEN | _MSCALES, **_LATENT, rope_interleave=False),
    "deepseek-v3-yarn-alone": _case("deepseek_v3", _YARN, **_LATENT),
    "deepseek-v3-linear": _case("deepseek_v3", _LINEAR, **_LATENT),
}


def make_hf_model(case: str, *, attention: str = "eager", seed: int = 0) -> Any:
    """The float64 model of a case, every parameter random, in eval mode."""
    family, hf_config = (CASES | DEEPSEEK_CASES)[case]
    config = transformers.AutoConfig.for_model(family, **copy.deepcopy(hf_config))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float64)
    randomise(model, seed)
    return model.eval()
