"""Parameters counted from a config.json equal those of the model that transformers builds from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from minillm import ModelConfig, load_model
from minillm.bench.decode import SIZES, random_model
from minillm.perf.model_shape import ModelShape, read_shape

transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
LATENT = {
    **SMALL,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "first_k_dense_replace": 1,
    "topk_group": 1,
}
OPT = {
    "vocab_size": 300,
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "ffn_dim": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 50,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "llama, tied, biases": {
        **SMALL, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 20,
    },
    "mistral": GROUPED,
    "mistral, defaults": SMALL | {"num_attention_heads": 8},
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "attention_bias": True, "head_dim": 24},
    "qwen3, defaults": GROUPED,
    "mixtral": {**GROUPED, "num_local_experts": 5, "num_experts_per_tok": 2},
    "qwen2_moe": {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 56, "decoder_sparse_step": 2},
    "qwen2_moe, no bias": {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 56, "qkv_bias": False},
    "qwen3_moe": {**GROUPED, **EXPERTS, "mlp_only_layers": [1]},
    "deepseek_v2": {**LATENT, "q_lora_rank": None, "n_shared_experts": 2, "n_group": 1, "topk_method": "greedy"},
    "deepseek_v2, q compressed": {**LATENT, "q_lora_rank": 24, "n_shared_experts": 2, "n_group": 1},
    "deepseek_v3": {**LATENT, "q_lora_rank": 24, "n_shared_experts": 1, "n_group": 2, "attention_bias": True},
    "opt": OPT,
    "opt, post-norm": {**OPT, "do_layer_norm_before": False, "tie_word_embeddings": False, "enable_bias": False},
    "gpt2": {"vocab_size": 300, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 50, "eos_token_id": None},
    "gpt2, narrow": {"vocab_size": 300, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 80},
    # No family of its own here: read as a Llama, which these happen to be.
    "gemma": {**GROUPED, "head_dim": 16},
    "phi3": GROUPED,
}  # fmt: skip


@pytest.mark.parametrize("case", FAMILIES)
def test_parameters_as_in_transformers(case: str) -> None:
    family, options = case.split(",")[0], FAMILIES[case]
    config = transformers.AutoConfig.for_model(family, **options)
    with torch.device("meta"):
        expected = transformers.AutoModelForCausalLM.from_config(config).num_parameters()
    as_given, as_saved = read_shape({"model_type": family, **options}), read_shape(config.to_dict())
    assert as_given.num_parameters == as_saved.num_parameters == expected
    assert as_given.layers == as_saved.layers
    assert as_given.is_exact == (family not in ("gemma", "phi3"))


@pytest.mark.parametrize("size", ["stories-5m", "tiny"])
def test_parameters_of_live_models(size: str) -> None:
    model = load_model(size) if size == "stories-5m" else random_model(SIZES[size], torch.float32)
    shape = read_shape(size if size == "stories-5m" else model.config.to_hf())
    assert shape.num_parameters == shape.num_active_parameters == sum(p.numel() for p in model.parameters())
    specs = model.layer_specs
    assert shape.kv_numbers_per_token == sum(s.num_kv_heads * (s.k_head_dim + s.v_head_dim) for s in specs)


LLAMA_3_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
MIXTRAL_8X7B = {
    "model_type": "mixtral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": None,
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
OPT_175B = {
    "model_type": "opt",
    "vocab_size": 50272,
    "hidden_size": 12288,
    "ffn_dim": 49152,
    "num_hidden_layers": 96,
    "num_attention_heads": 96,
    "word_embed_proj_dim": 12288,
}


@pytest.mark.parametrize(
    ("config", "published", "active"),
    [
        (LLAMA_3_8B, 8.03e9, 8.03e9),  # Hugging Face's model card: 8.03 B
        (MIXTRAL_8X7B, 46.7e9, 12.9e9),  # mistral.ai/news/mixtral-of-experts
        (DEEPSEEK_V3, 671e9, 37e9),  # DeepSeek-V3 technical report (2024), abstract
        (OPT_175B, 175e9, 175e9),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else None,
)
def test_published_totals(config: dict[str, Any], published: float, active: float) -> None:
    shape = read_shape(config)
    assert shape.num_parameters == pytest.approx(published, rel=3e-3)
    assert shape.num_active_parameters == pytest.approx(active, rel=0.016)


def test_published_caches() -> None:
    assert 2 * read_shape(LLAMA_3_8B).kv_numbers_per_token == 128 * 2**10
    deepseek = read_shape(DEEPSEEK_V3)
    assert {layer.attention.kv_numbers_per_token for layer in deepseek.layers} == {576}
    assert sum(layer.ffn.num_experts > 0 for layer in deepseek.layers) == 58


def windows(shape: ModelShape) -> list[int | None]:
    return [layer.attention.window for layer in shape.layers]


def test_windows() -> None:
    base = {k: v for k, v in GROUPED.items() if v is not None}
    assert windows(read_shape({"model_type": "mistral", **base, "sliding_window": 7})) == [7, 7, 7]
    assert windows(read_shape({"model_type": "mistral", **base})) == [4096] * 3
    assert windows(read_shape({"model_type": "mistral", **base, "sliding_window": None})) == [None] * 3
    assert windows(read_shape({"model_type": "mixtral", **base, "num_experts_per_tok": 1})) == [None] * 3
    qwen = {"model_type": "qwen2", **base, "sliding_window": 9, "max_window_layers": 1}
    assert windows(read_shape(qwen)) == [None] * 3
    assert windows(read_shape({**qwen, "use_sliding_window": True})) == [None, 9, 9]
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert windows(read_shape({**qwen, "use_sliding_window": True, "layer_types": kinds})) == [9, None, 9]
    # The loader of live models agrees.
    for hf in (qwen, {**qwen, "use_sliding_window": True}, {"model_type": "mistral", **base, "sliding_window": 7}):
        live = ModelConfig.from_hf(hf).windows
        assert windows(read_shape(hf)) == list(live or [None] * 3)


def test_spellings_and_places(tmp_path: Path) -> None:
    seeing = {"model_type": "llava", "text_config": {"model_type": "llama", **GROUPED}}
    assert read_shape(seeing).num_parameters == read_shape({"model_type": "llama", **GROUPED}).num_parameters
    assert read_shape("llama-70m").num_parameters == sum(p.numel() for p in _meta("llama-70m"))
    folder = tmp_path / "some-model"
    folder.mkdir()
    file = folder / "config.json"
    file.write_text(json.dumps({"model_type": "llama", **GROUPED}), encoding="utf-8")
    assert read_shape(folder).name == read_shape(file).name == "some-model"
    other = tmp_path / "wide.json"
    other.write_text(json.dumps({"model_type": "llama", **GROUPED}), encoding="utf-8")
    assert read_shape(str(other)).name == "wide"


def _meta(size: str) -> list[torch.Tensor]:
    from minillm.model.transformer import Transformer

    with torch.device("meta"):
        return list(Transformer(SIZES[size]).parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "wrong type|hidden_size"),
        ({"num_attention_heads": 0}, "wrong type|at least 1"),
        ({"num_hidden_layers": 0}, "at least one layer"),
        ({"vocab_size": "many"}, "vocab_size must be a whole number"),
        ({"num_key_value_heads": 3}, "multiple"),
        ({"intermediate_size": -1}, "intermediate_size must be"),
        ({"num_hidden_layers": "3"}, "wrong type"),
        ({"num_local_experts": 2, "num_experts_per_tok": 3}, "can't see 3 of 2 experts"),
        ({"model_type": "opt", "word_embed_proj_dim": 32}, "word_embed_proj_dim"),
    ],
)
def test_files_that_say_nonsense(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = {"model_type": "llama", **GROUPED, **changes}
    with pytest.raises(ValueError, match=message):
        read_shape(config)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match="config.json: "):
        read_shape(file)


def test_what_is_missing(tmp_path: Path) -> None:
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        with pytest.raises(ValueError, match=f"missing key '{key}'"):
            read_shape({"model_type": "llama", **{k: v for k, v in GROUPED.items() if k != key}})
    with pytest.raises(FileNotFoundError, match="no-such-model"):
        read_shape("no-such-model")
    for text, message in (("{", "not valid JSON"), ("[1]", "expected a JSON object")):
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_shape(tmp_path)
    with pytest.raises(FileNotFoundError):
        (tmp_path / "config.json").unlink()
        read_shape(tmp_path)
