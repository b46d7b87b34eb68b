"""`config.json` of every family, in the spelling of transformers 5 and in the older one of the hub."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.config import PRESETS, ModelConfig, RopeConfig
from tests.helpers import TINY
from tests.hf_models import CASES, make_hf_model

# As found on the hub, written by transformers 4 and earlier.
LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 4096,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False,
    "torch_dtype": "float16", "transformers_version": "4.31.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
LLAMA_3_1_8B = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    },
    "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0.dev0", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
LLAMA_3_2_1B = LLAMA_3_1_8B | {
    "head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "rope_scaling": LLAMA_3_1_8B["rope_scaling"] | {"factor": 32.0}, "tie_word_embeddings": True,
}  # fmt: skip
MISTRAL_V01 = {
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
    "sliding_window": 4096, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
MISTRAL_V02 = MISTRAL_V01 | {"rope_theta": 1000000.0, "sliding_window": None, "attention_dropout": 0.0}
MISTRAL_NEMO = MISTRAL_V02 | {
    "head_dim": 128, "hidden_size": 5120, "num_hidden_layers": 40, "max_position_embeddings": 131072,
    "vocab_size": 131072,
}  # fmt: skip
QWEN_2_5_7B = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02,
    "intermediate_size": 18944, "max_position_embeddings": 32768, "max_window_layers": 28,
    "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.43.1", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 152064,
}  # fmt: skip
QWEN_2_5_YARN = QWEN_2_5_7B | {
    # The spelling that Qwen's model cards tell readers to add.
    "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
}
QWEN_2_WINDOWS = QWEN_2_5_7B | {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 20}
QWEN_3_4B = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 2560, "intermediate_size": 9728,
    "max_position_embeddings": 40960, "max_window_layers": 36, "model_type": "qwen3",
    "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
OLD = {
    "Llama 2": LLAMA_2_7B,
    "Llama 2, linear": LLAMA_2_7B | {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "Llama 1": {key: LLAMA_2_7B[key] for key in LLAMA_2_7B if key not in ("num_key_value_heads", "rope_scaling")},
    "Llama 3.1": LLAMA_3_1_8B,
    "Llama 3.2": LLAMA_3_2_1B,
    "head_dim null": LLAMA_3_1_8B | {"head_dim": None},
    "Mistral v0.1": MISTRAL_V01,
    "Mistral v0.2": MISTRAL_V02,
    "Mistral Nemo": MISTRAL_NEMO,
    "Qwen 2.5": QWEN_2_5_7B,
    "Qwen 2.5, yarn": QWEN_2_5_YARN,
    "Qwen 2, windows": QWEN_2_WINDOWS,
    "Qwen 3": QWEN_3_4B,
}


def in_new_spelling(old: dict[str, Any]) -> dict[str, Any]:
    """The same configuration as `transformers` reads and would write it."""
    family = old["model_type"]
    config = transformers.AutoConfig.for_model(family, **{k: v for k, v in old.items() if k != "model_type"})
    new = json.loads(config.to_json_string(use_diff=False))
    assert "rope_parameters" in new and "rope_scaling" not in new and "rope_theta" not in new
    return new


@pytest.mark.parametrize("name", OLD)
def test_both_spellings_mean_the_same(name: str) -> None:
    assert ModelConfig.from_hf(OLD[name]) == ModelConfig.from_hf(in_new_spelling(OLD[name]))


@pytest.mark.parametrize("name", OLD)
def test_what_is_written_means_the_same(name: str) -> None:
    config = ModelConfig.from_hf(OLD[name])
    written = json.loads(json.dumps(config.to_hf()))
    assert ModelConfig.from_hf(written) == config
    # transformers reads it as it reads the file from the hub.
    assert ModelConfig.from_hf(in_new_spelling(written)) == config


def test_the_numbers_of_known_models() -> None:
    llama = ModelConfig.from_hf(LLAMA_3_1_8B)
    assert (llama.vocab_size, llama.hidden_size, llama.intermediate_size) == (128256, 4096, 14336)
    assert (llama.num_layers, llama.num_heads, llama.num_kv_heads, llama.head_dim) == (32, 32, 8, 128)
    assert (llama.max_seq_len, llama.norm_eps, llama.tie_embeddings) == (131072, 1e-5, False)
    assert (llama.bos_token_id, llama.eos_token_ids) == (128000, (128001, 128008, 128009))
    assert llama.rope == RopeConfig(500000.0, "llama3", 8.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0)
    assert ModelConfig.from_hf(LLAMA_3_2_1B).head_dim == 64
    assert ModelConfig.from_hf(LLAMA_2_7B).rope == RopeConfig(10_000.0)
    assert ModelConfig.from_hf(OLD["Llama 1"]).num_kv_heads == 32

    assert ModelConfig.from_hf(MISTRAL_V01).windows == (4096,) * 32
    assert ModelConfig.from_hf(MISTRAL_V02).windows is None
    assert ModelConfig.from_hf(MISTRAL_NEMO).head_dim == 128  # not 5120 / 32

    qwen = ModelConfig.from_hf(QWEN_2_5_7B)
    assert (qwen.qkv_bias, qwen.o_bias, qwen.mlp_bias, qwen.qk_norm) == (True, False, False, False)
    assert (qwen.head_dim, qwen.windows, qwen.eos_token_ids) == (128, None, (151645,))
    assert ModelConfig.from_hf(QWEN_2_5_YARN).rope == RopeConfig(1e6, "yarn", 4.0, 32768)
    assert ModelConfig.from_hf(QWEN_2_WINDOWS).windows == (None,) * 20 + (4096,) * 8
    qwen3 = ModelConfig.from_hf(QWEN_3_4B)
    assert (qwen3.qk_norm, qwen3.qkv_bias, qwen3.head_dim, qwen3.tie_embeddings) == (True, False, 128, True)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_left_out_values_take_the_defaults_of_the_family(family: str) -> None:
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    full = json.loads(transformers.AutoConfig.for_model(family).to_json_string(use_diff=False))
    short = {key: full[key] for key in (*sizes, "model_type")}
    assert ModelConfig.from_hf(short) == ModelConfig.from_hf(full)


@pytest.mark.parametrize("case", CASES)
def test_folders_of_transformers_are_read(case: str, tmp_path: Path) -> None:
    hf_model = make_hf_model(case)
    hf_model.generation_config.eos_token_id = [7, 8]
    hf_model.save_pretrained(tmp_path)
    config = ModelConfig.from_pretrained(tmp_path)
    assert config.eos_token_ids == (7, 8)
    assert config.bos_token_id == 1
    (tmp_path / "generation_config.json").unlink()
    assert ModelConfig.from_pretrained(tmp_path) == dataclasses.replace(config, eos_token_ids=(2,))
    assert ModelConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize("config", [*TINY.values(), *PRESETS.values()])
def test_to_hf_and_back(config: ModelConfig) -> None:
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"qk_norm": True}),
        ("llama", {"qkv_bias": True}),
        ("llama", {"windows": (4, 4, 4)}),
        ("mistral", {"windows": (4, None, 4)}),
        ("mistral", {"qkv_bias": True, "o_bias": True}),
        ("qwen2", {"qkv_bias": False}),
        ("qwen2", {"windows": (4, 5, None)}),
        ("qwen3", {"qk_norm": False}),
        ("qwen3", {"mlp_bias": True}),
        ("llama", {"model_type": "gpt2"}),
    ],
)
def test_what_no_family_expresses_is_not_written(family: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="can't express|unsupported model_type"):
        dataclasses.replace(TINY[family], **changes).to_hf()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be a whole number of at least 1, got 0"),
        ({"num_layers": 2.0}, "num_layers must be a whole number of at least 1, got 2.0"),
        ({"num_kv_heads": 3}, "num_heads must be a multiple of num_kv_heads, got 4 and 3"),
        ({"head_dim": 7}, "head_dim must be even"),
        ({"norm_eps": -1.0}, "norm_eps"),
        ({"windows": (4,)}, "windows must name 3 layers, got 1"),
        ({"windows": (4, 0, None)}, "a window must hold at least 1 key"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY["llama"], **changes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scaling": "ntk"}, "one of default, linear, llama3, yarn, got 'ntk'"),
        ({"theta": 0.0}, "theta must be a positive number"),
        ({"factor": float("nan"), "scaling": "linear"}, "factor must be a positive number"),
        ({"scaling": "yarn"}, "needs original_max_seq_len"),
        ({"scaling": "yarn", "original_max_seq_len": 8, "theta": 1.0}, "theta above 1"),
        ({"scaling": "llama3", "original_max_seq_len": 8, "low_freq_factor": 4.0}, "above low_freq_factor"),
    ],
)
def test_bad_rope_scaling_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RopeConfig(**fields)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5000) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(sorted(OLD)), key=st.sampled_from(sorted(LLAMA_3_1_8B | QWEN_3_4B)), value=JSON)
def test_any_value_gives_a_config_or_a_value_error(name: str, key: str, value: Any) -> None:
    try:
        ModelConfig.from_hf(OLD[name] | {key: value})
    except ValueError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=f"missing key '{key}'"):
        ModelConfig.from_hf({k: v for k, v in LLAMA_2_7B.items() if k != key})
