"""Read a `ModelShape` from a Hugging Face `config.json`, in transformers' current spelling or the hub's older one.

Known families count exactly: Llama, Mistral, Qwen2, Qwen3, Mixtral, Qwen2-MoE, Qwen3-MoE, DeepSeek-V2 and V3, OPT,
GPT-2. Any other file that speaks of hidden_size, num_hidden_layers and num_attention_heads is read as a Llama of those
sizes, and marked `is_exact=False`. What a file leaves out takes the default of the family's configuration class.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minillm.config import PRESETS
from minillm.hf_config import resolve_model_path
from minillm.perf.model_shape import AttentionShape, FfnShape, LatentShape, LayerShape, ModelShape

GATED = {
    "llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3",
}  # fmt: skip
SPELLINGS = {  # GPT-2 and its children have their own words
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "num_layers"),
    "num_attention_heads": ("n_head", "num_heads"),
    "intermediate_size": ("ffn_dim", "n_inner"),
    "max_position_embeddings": ("n_positions", "n_ctx"),
}


def load_shape(model: str | Path) -> ModelShape:
    """From a bundled name, the name of a preset, a folder with a `config.json`, or such a file."""
    if str(model) in PRESETS and not Path(model).exists():
        return shape_from_hf(PRESETS[str(model)].to_hf(), name=str(model))
    file = Path(model) if Path(model).is_file() else resolve_model_path(model) / "config.json"
    try:
        contents = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(contents).__name__}")
    name = file.parent.resolve().name if file.name == "config.json" else file.stem
    try:
        return shape_from_hf(contents, name=name)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def shape_from_hf(hf: dict[str, Any], *, name: str | None = None) -> ModelShape:
    """From the contents of a `config.json`. Raises ValueError that names a missing key or a value of a wrong type."""
    if isinstance(hf.get("text_config"), dict):  # a model that also sees: its decoder is a part of the file
        hf = {**hf, **hf["text_config"]}
    for key, others in SPELLINGS.items():
        found = next((hf[other] for other in others if hf.get(other) is not None), None)
        if hf.get(key) is None and found is not None:
            hf = {**hf, key: found}
    family = str(hf.get("model_type", "unknown"))
    try:
        shape = _learned_positions(hf, family) if family in ("opt", "gpt2") else _rotary(hf, family)
    except KeyError as error:
        raise ValueError(f"missing key {error}") from error
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"a value of the wrong type ({error})") from error
    return _checked(shape, name or str(hf.get("_name_or_path") or family))


def _rotary(hf: dict[str, Any], family: str) -> ModelShape:
    """Llama and its relatives: RMSNorm, rotary positions, gated feed-forward networks."""
    hidden_size, num_layers = hf["hidden_size"], hf["num_hidden_layers"]
    windows = _windows(hf, family)
    attention = _latent_attention(hf) if hf.get("kv_lora_rank") else _attention(hf, family)
    return ModelShape(
        name="",
        model_type=family,
        vocab_size=hf["vocab_size"],
        hidden_size=hidden_size,
        layers=tuple(
            LayerShape(
                hidden_size,
                AttentionShape(**{**vars(attention), "window": windows[layer_idx]}),
                _ffn(hf, family, layer_idx),
                norm_numbers=hidden_size,
            )
            for layer_idx in range(num_layers)
        ),
        final_norm_numbers=hidden_size,
        max_seq_len=_value(hf, "max_position_embeddings", 2048),
        tie_embeddings=bool(_value(hf, "tie_word_embeddings", family.startswith("gemma"))),
        is_exact=family in GATED,
    )


def _attention(hf: dict[str, Any], family: str) -> AttentionShape:
    num_heads = hf["num_attention_heads"]
    default_kv_heads = {"mistral": 8, "mixtral": 8, "qwen2": 32, "qwen3": 32, "qwen2_moe": 16, "qwen3_moe": 4}
    num_kv_heads = hf.get("num_key_value_heads", default_kv_heads.get(family, num_heads)) or num_heads
    head_dim = _value(hf, "head_dim", 128 if family == "qwen3" else hf["hidden_size"] // num_heads)
    everywhere = bool(hf.get("attention_bias", False)) and family not in ("mistral", "mixtral", "qwen2", "qwen2_moe")
    only_qkv = family == "qwen2" or (family == "qwen2_moe" and bool(hf.get("qkv_bias", True)))
    return AttentionShape(
        num_heads,
        num_kv_heads,
        k_head_dim=head_dim,
        v_head_dim=head_dim,
        qkv_bias=everywhere or only_qkv,
        o_bias=everywhere,
        qk_norm=family in ("qwen3", "qwen3_moe"),
    )


def _latent_attention(hf: dict[str, Any]) -> AttentionShape:
    nope, rope = hf["qk_nope_head_dim"], hf["qk_rope_head_dim"]
    has_bias = bool(hf.get("attention_bias", False))
    return AttentionShape(
        hf["num_attention_heads"],
        hf["num_attention_heads"],
        k_head_dim=nope + rope,
        v_head_dim=hf["v_head_dim"],
        qkv_bias=has_bias,
        o_bias=has_bias,
        latent=LatentShape(hf["kv_lora_rank"], nope, rope, hf.get("q_lora_rank")),
    )


def _ffn(hf: dict[str, Any], family: str, layer_idx: int) -> FfnShape:
    num_experts = hf.get("n_routed_experts") or hf.get("num_local_experts") or hf.get("num_experts") or 0
    if not num_experts or not _is_mixture(hf, layer_idx):
        has_bias = family in GATED and bool(hf.get("mlp_bias", False)) and family in ("llama", "deepseek_v2")
        return FfnShape(hf["intermediate_size"], bias=has_bias)
    expert_size = _value(hf, "moe_intermediate_size", hf.get("intermediate_size"))
    shared_size = _value(hf, "shared_expert_intermediate_size", expert_size * (hf.get("n_shared_experts") or 0))
    return FfnShape(
        expert_size,
        num_experts=num_experts,
        num_experts_per_token=hf["num_experts_per_tok"],
        shared_intermediate_size=shared_size,
        shared_gate=family == "qwen2_moe",
    )


def _is_mixture(hf: dict[str, Any], layer_idx: int) -> bool:
    """DeepSeek counts its dense layers from the front, Qwen lists them or takes every n-th."""
    if layer_idx < (hf.get("first_k_dense_replace") or 0) or layer_idx % (hf.get("moe_layer_freq") or 1):
        return False
    in_step = (layer_idx + 1) % (hf.get("decoder_sparse_step") or 1) == 0
    return in_step and layer_idx not in (hf.get("mlp_only_layers") or ())


def _windows(hf: dict[str, Any], family: str) -> tuple[int | None, ...]:
    """The sliding window of each layer, None for full attention."""
    num_layers = hf["num_hidden_layers"]
    window = hf.get("sliding_window", 4096 if family in ("mistral", "qwen2", "qwen3") else None)
    if window is None or (family.startswith("qwen") and not hf.get("use_sliding_window", False)):
        return (None,) * num_layers
    kinds = hf.get("layer_types")
    if kinds is None:
        first = _value(hf, "max_window_layers", 28) if family.startswith("qwen") else 0
        kinds = ["sliding_attention" if layer_idx >= first else "" for layer_idx in range(num_layers)]
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _learned_positions(hf: dict[str, Any], family: str) -> ModelShape:
    """OPT and GPT-2: LayerNorm with a bias, a table of positions, two matrices in the network, biases throughout."""
    hidden_size, num_heads = hf["hidden_size"], hf["num_attention_heads"]
    if family == "opt" and hf.get("word_embed_proj_dim", hidden_size) != hidden_size:
        raise ValueError("unsupported word_embed_proj_dim other than hidden_size (OPT-350m)")
    has_bias = bool(hf.get("enable_bias", True)) if family == "opt" else True
    norm_numbers = 2 * hidden_size if hf.get("layer_norm_elementwise_affine", True) else 0
    has_final_norm = bool(hf.get("do_layer_norm_before", True)) and not hf.get("_remove_final_layer_norm", False)
    head_dim = hidden_size // num_heads
    max_seq_len = _value(hf, "max_position_embeddings", 2048 if family == "opt" else 1024)
    layer = LayerShape(
        hidden_size,
        AttentionShape(num_heads, num_heads, head_dim, head_dim, qkv_bias=has_bias, o_bias=has_bias),
        FfnShape(_value(hf, "intermediate_size", 4 * hidden_size), is_gated=False, bias=has_bias),
        norm_numbers=norm_numbers,
    )
    return ModelShape(
        name="",
        model_type=family,
        vocab_size=hf["vocab_size"],
        hidden_size=hidden_size,
        layers=(layer,) * hf["num_hidden_layers"],
        final_norm_numbers=norm_numbers if has_final_norm else 0,
        max_seq_len=max_seq_len,
        tie_embeddings=bool(_value(hf, "tie_word_embeddings", True)),
        num_positions=max_seq_len + (2 if family == "opt" else 0),  # OPT keeps two rows for padding
    )


def _checked(shape: ModelShape, name: str) -> ModelShape:
    """The shape with its name. Raises ValueError for sizes that are no whole numbers of at least 1."""
    if not shape.layers:
        raise ValueError("expected at least one layer, got num_hidden_layers 0")
    sizes = {"vocab_size": shape.vocab_size, "hidden_size": shape.hidden_size}
    for layer in shape.layers:
        for key in ("num_heads", "num_kv_heads", "k_head_dim", "v_head_dim"):
            sizes[key] = getattr(layer.attention, key)
        sizes["intermediate_size"] = layer.ffn.intermediate_size
        for key, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{key} must be a whole number of at least 1, got {size!r}")
        if layer.attention.num_heads % layer.attention.num_kv_heads:
            heads = (layer.attention.num_heads, layer.attention.num_kv_heads)
            raise ValueError(f"the number of heads must be a multiple of that of KV heads, got {heads}")
        if layer.ffn.num_experts_per_token > layer.ffn.num_experts:
            raise ValueError(f"a token can't see {layer.ffn.num_experts_per_token} of {layer.ffn.num_experts} experts")
    return ModelShape(**{**vars(shape), "name": name})


def _value(hf: dict[str, Any], key: str, default: Any) -> Any:
    """`hf[key]`, or the default when it is missing or null."""
    return default if hf.get(key) is None else hf[key]
