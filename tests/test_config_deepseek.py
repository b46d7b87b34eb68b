"""`config.json` files of DeepSeek-V2 and V3 with dense blocks, against `transformers`' reading of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.config import MLAConfig, ModelConfig, RopeConfig
from minillm.hf_config import rotates_neighbours
from tests.helpers import TINY
from tests.hf_models import DEEPSEEK_CASES, make_hf_model
from tests.model.tiny_mla import CONFIG, MLA

# As published, but for the number of dense layers.
V2_LITE = {
    "architectures": ["DeepseekV2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "aux_loss_alpha": 0.001, "bos_token_id": 100000, "eos_token_id": 100001, "first_k_dense_replace": 27,
    "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 10944,
    "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v2",
    "moe_intermediate_size": 1408, "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2,
    "norm_topk_prob": False, "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27,
    "num_key_value_heads": 16, "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06, "rope_theta": 10000, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "rope_scaling": {
        "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096, "type": "yarn",
    },
    "v_head_dim": 128, "vocab_size": 102400,
}  # fmt: skip
V3 = {
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "bos_token_id": 0, "eos_token_id": 1,
    "first_k_dense_replace": 61, "hidden_act": "silu", "hidden_size": 7168, "intermediate_size": 18432,
    "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v3",
    "n_routed_experts": 256, "num_attention_heads": 128, "num_hidden_layers": 61, "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06, "rope_theta": 10000, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "rope_scaling": {
        "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn",
    },
    "v_head_dim": 128, "vocab_size": 129280,
}  # fmt: skip
PUBLISHED = {"V2-Lite": V2_LITE, "V3": V3}
FAMILIES = ("deepseek_v2", "deepseek_v3")


def in_new_spelling(old: dict[str, Any]) -> dict[str, Any]:
    """The same configuration as `transformers` reads and would write it."""
    given_keys = {key: value for key, value in old.items() if key != "model_type"}
    config = transformers.AutoConfig.for_model(old["model_type"], **given_keys)
    return json.loads(config.to_json_string(use_diff=False))


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_read_and_written_means_the_same(name: str) -> None:
    config = ModelConfig.from_hf(PUBLISHED[name])
    assert ModelConfig.from_hf(in_new_spelling(PUBLISHED[name])) == config
    written = json.loads(json.dumps(config.to_hf()))
    assert ModelConfig.from_hf(written) == config
    assert ModelConfig.from_hf(in_new_spelling(written)) == config


def test_the_numbers_of_known_models() -> None:
    lite, v3 = ModelConfig.from_hf(V2_LITE), ModelConfig.from_hf(V3)
    assert lite.mla == MLAConfig(None, 512, 128, 64, 128)
    assert v3.mla == MLAConfig(1536, 512, 128, 64, 128)
    assert (lite.num_heads, lite.num_kv_heads, lite.head_dim) == (16, 16, 64)
    assert (v3.num_heads, v3.num_kv_heads, v3.head_dim, v3.num_layers) == (128, 128, 64, 61)
    assert lite.rope == RopeConfig(1e4, "yarn", 40.0, 4096, mscale=0.707, mscale_all_dim=0.707)
    assert v3.rope == RopeConfig(1e4, "yarn", 40.0, 4096, mscale=1.0, mscale_all_dim=1.0)
    assert (lite.attention_type, TINY["llama"].attention_type) == ("mla", "gqa")
    assert (lite.bos_token_id, lite.eos_token_ids, v3.eos_token_ids) == (100000, (100001,), (1,))


@pytest.mark.parametrize("family", FAMILIES)
def test_left_out_values_take_the_defaults_of_the_family(family: str) -> None:
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    full = json.loads(transformers.AutoConfig.for_model(family).to_json_string(use_diff=False))
    dense = {"first_k_dense_replace": full["num_hidden_layers"]}
    short = {key: full[key] for key in (*sizes, "model_type")}
    assert ModelConfig.from_hf(short | dense) == ModelConfig.from_hf(full | dense)
    num_dense = full["first_k_dense_replace"]
    with pytest.raises(ValueError, match=f"the layers from {num_dense} on are mixtures of experts") as caught:
        ModelConfig.from_hf(short)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", DEEPSEEK_CASES)
def test_folders_of_transformers_are_read(case: str, tmp_path: Path) -> None:
    make_hf_model(case).save_pretrained(tmp_path)
    config = ModelConfig.from_pretrained(tmp_path)
    assert ModelConfig.from_hf(config.to_hf()) == config
    assert config.mla is not None and config.mla.kv_lora_rank == 18


@pytest.mark.parametrize(
    ("change", "num_mixtures"),
    [({"first_k_dense_replace": 26}, 1), ({"first_k_dense_replace": 0}, 27), ({"first_k_dense_replace": None}, 27)],
)
def test_a_single_mixture_is_refused(change: dict[str, Any], num_mixtures: int) -> None:
    with pytest.raises(ValueError, match=f"the layers from {27 - num_mixtures} on are mixtures of experts"):
        ModelConfig.from_hf(V2_LITE | change)
    assert ModelConfig.from_hf(V2_LITE | change | {"n_routed_experts": None}) == ModelConfig.from_hf(V2_LITE)


def test_an_mscale_of_zero_is_none() -> None:
    rope = V2_LITE["rope_scaling"] | {"mscale": 0, "mscale_all_dim": 0.0}  # type: ignore[operator]
    assert ModelConfig.from_hf(V2_LITE | {"rope_scaling": rope}).rope == RopeConfig(1e4, "yarn", 40.0, 4096)


def test_a_scale_of_scores_without_yarn_is_refused() -> None:
    rope = {"type": "linear", "factor": 2.0, "mscale_all_dim": 1.0}
    with pytest.raises(ValueError, match="unsupported mscale_all_dim with rope scaling 'linear'"):
        ModelConfig.from_hf(V3 | {"rope_scaling": rope})


def test_the_layout_of_rotated_rows() -> None:
    assert rotates_neighbours({"model_type": "deepseek_v2", "rope_interleave": False})  # V2 has no such key
    assert rotates_neighbours({"model_type": "deepseek_v3"})
    assert not rotates_neighbours({"model_type": "deepseek_v3", "rope_interleave": False})
    assert not rotates_neighbours({"model_type": "llama"})
    assert not rotates_neighbours({})
    assert all(rotates_neighbours(dataclasses.replace(CONFIG, model_type=family).to_hf()) for family in FAMILIES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 2}, "num_kv_heads = num_heads and head_dim = qk_rope_head_dim, got 2 of 4 heads, 8 and 8"),
        ({"head_dim": 10}, "of 4 heads, 10 and 8"),
        ({"qk_norm": True}, "qk_norm must be False"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(MLAConfig)])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "8"])
def test_widths_are_counts(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1"):
        dataclasses.replace(MLA, **{name: value})


def test_only_queries_may_stay_uncompressed() -> None:
    assert dataclasses.replace(MLA, q_lora_rank=None).q_lora_rank is None
    with pytest.raises(ValueError, match="kv_lora_rank must be a whole number of at least 1, got None"):
        dataclasses.replace(MLA, kv_lora_rank=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "llama"},
        {"o_bias": False},
        {"windows": (4, 4, 4)},
        {"mlp_bias": True},
        {"mla": None},
        {"model_type": "deepseek_v2", "qkv_bias": False},
    ],
)
def test_what_no_family_expresses_is_not_written(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="config.json can't express"):
        dataclasses.replace(CONFIG, **changes).to_hf()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5000) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(sorted(PUBLISHED)), key=st.sampled_from(sorted(V2_LITE | V3)), value=JSON)
def test_any_value_gives_a_config_or_a_value_error(name: str, key: str, value: Any) -> None:
    try:
        ModelConfig.from_hf(PUBLISHED[name] | {key: value})
    except ValueError as error:
        assert "\n" not in str(error)
