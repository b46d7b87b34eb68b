"""Translate between `ModelConfig` and the `config.json` of a Hugging Face checkpoint.

Six families are known: Llama (2, 3.x), Mistral, Qwen2, Qwen3, and models of DeepSeek-V2 and V3 without mixtures of
experts. Their files say the same things in two spellings: transformers 5 writes `rope_parameters` and `dtype`, the
hub's older files `rope_theta`, `rope_scaling` and `torch_dtype`. Values that a file leaves out take the default of the
family's own configuration class.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from minillm.config import MLAConfig, ModelConfig, RopeConfig

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
}
DEEPSEEK = ("deepseek_v2", "deepseek_v3")
_LLAMA = {"num_key_value_heads": None, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2}
_QWEN = {"num_key_value_heads": 32, "max_position_embeddings": 32_768, "bos_token_id": None, "eos_token_id": None}
_DEEPSEEK_V2 = _LLAMA | {
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "n_routed_experts": 64, "first_k_dense_replace": 0,
}  # fmt: skip
# What the families' own configuration classes take for a key that is left out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA | {"num_key_value_heads": 8, "max_position_embeddings": 131_072},
    "qwen2": _QWEN,
    "qwen3": _QWEN,
    "deepseek_v2": _DEEPSEEK_V2,
    "deepseek_v3": _DEEPSEEK_V2
    | {"max_position_embeddings": 4096, "first_k_dense_replace": 3, "bos_token_id": 0, "eos_token_id": 1},
}
WEIGHTS_DIR = Path(__file__).parent / "weights"


def resolve_model_path(path: str | Path) -> Path:
    """The folder of a bundled name ("stories-5m") or of a path; "./stories-5m" is a path.

    Raises FileNotFoundError that names the bundled models.
    """
    bundled = sorted(child.name for child in WEIGHTS_DIR.glob("*") if child.is_dir())
    if str(path) in bundled:
        return WEIGHTS_DIR / str(path)
    if Path(path).is_dir():
        return Path(path)
    raise FileNotFoundError(f"no model folder {str(path)!r}; bundled models: {', '.join(bundled) or 'none'}")


def read_config(path: str | Path) -> ModelConfig:
    """`ModelConfig` of a bundled name or a folder; end tokens from `generation_config.json`, else `config.json`."""
    folder = resolve_model_path(path)
    hf_config = read_hf_config(folder)
    generation_file = folder / "generation_config.json"
    if generation_file.exists():
        generation = _read_json(generation_file)
        if generation.get("eos_token_id") is not None:
            hf_config["eos_token_id"] = generation["eos_token_id"]
    try:
        return from_hf(hf_config)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error


def read_hf_config(folder: Path) -> dict[str, Any]:
    """The contents of the folder's `config.json`, as they are."""
    return _read_json(folder / "config.json")


def rotates_neighbours(hf: dict[str, Any]) -> bool:
    """Whether the stored weights are made for RoPE on neighbouring dimensions, as DeepSeek's are, and not on halves."""
    family = hf.get("model_type")
    return family == "deepseek_v2" or (family == "deepseek_v3" and bool(hf.get("rope_interleave", True)))


def from_hf(hf: dict[str, Any]) -> ModelConfig:
    """`ModelConfig` from the contents of a `config.json`. Raises ValueError for what is not built here."""
    try:
        return _from_hf(hf)
    except KeyError as error:
        raise ValueError(f"missing key {error}") from error
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"a value of the wrong type ({error})") from error


def _from_hf(hf: dict[str, Any]) -> ModelConfig:
    family = hf.get("model_type")
    if not isinstance(family, str) or family not in ARCHITECTURES:
        raise ValueError(f"unsupported model_type {family!r}; supported: {', '.join(ARCHITECTURES)}")
    if hf.get("hidden_act", "silu") != "silu":
        raise ValueError(f"unsupported hidden_act {hf['hidden_act']!r}; SwiGLU needs 'silu'")
    hf = _DEFAULTS[family] | hf
    num_heads = hf["num_attention_heads"]
    default_head_dim = 128 if family == "qwen3" else hf["hidden_size"] // num_heads
    has_bias = family in ("llama", "qwen3", *DEEPSEEK) and _value(hf, "attention_bias", False)
    mla = _mla_from_hf(hf)
    return ModelConfig(
        vocab_size=hf["vocab_size"],
        hidden_size=hf["hidden_size"],
        intermediate_size=hf["intermediate_size"],
        num_layers=hf["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=hf["num_key_value_heads"] or num_heads,
        head_dim=mla.qk_rope_head_dim if mla else _value(hf, "head_dim", default_head_dim),
        max_seq_len=_value(hf, "max_position_embeddings", _DEFAULTS[family]["max_position_embeddings"]),
        norm_eps=_value(hf, "rms_norm_eps", 1e-6),
        rope=_rope_from_hf(hf),
        tie_embeddings=_value(hf, "tie_word_embeddings", False),
        qkv_bias=family == "qwen2" or has_bias,
        o_bias=has_bias,
        mlp_bias=family in ("llama", "deepseek_v2") and _value(hf, "mlp_bias", False),
        qk_norm=family == "qwen3",
        windows=_windows_from_hf(hf),
        mla=mla,
        model_type=family,
        bos_token_id=hf["bos_token_id"],
        eos_token_ids=_as_tuple(hf["eos_token_id"]),
    )


def _mla_from_hf(hf: dict[str, Any]) -> MLAConfig | None:
    """The widths of latent attention, or None. Raises ValueError for layers that are not dense."""
    if hf["model_type"] not in DEEPSEEK:
        return None
    num_layers, num_dense = hf["num_hidden_layers"], hf["first_k_dense_replace"] or 0
    if hf["n_routed_experts"] is not None and num_dense < num_layers:
        raise ValueError(
            f"the layers from {num_dense} on are mixtures of experts (first_k_dense_replace, {num_layers} layers); "
            f"of {hf['model_type']} only models without them are supported"
        )
    return MLAConfig(**{field.name: hf[field.name] for field in fields(MLAConfig)})


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The contents of a `config.json` for `transformers`. Raises ValueError when its family can't express it."""
    _check_expressible(config)
    eos = config.eos_token_ids
    hf: dict[str, Any] = {
        "architectures": [ARCHITECTURES[config.model_type]],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_seq_len,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "rope_parameters": _rope_to_hf(config.rope),
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else list(eos) or None,
    }
    if config.model_type in ("llama", "qwen3", *DEEPSEEK):
        hf["attention_bias"] = config.qkv_bias
    if config.model_type in ("llama", "deepseek_v2"):
        hf["mlp_bias"] = config.mlp_bias
    if config.mla is not None:
        hf |= asdict(config.mla) | {"first_k_dense_replace": config.num_layers}
    if config.model_type == "deepseek_v3":
        hf |= {"rope_interleave": True, "num_nextn_predict_layers": 0}
    windows = config.windows or (None,) * config.num_layers
    width = next((window for window in windows if window is not None), None)
    if config.model_type == "mistral":
        hf["sliding_window"] = width
    if config.model_type in ("qwen2", "qwen3"):
        hf["use_sliding_window"] = width is not None
        hf["sliding_window"] = width
        hf["layer_types"] = ["full_attention" if window is None else "sliding_attention" for window in windows]
    return hf


def _check_expressible(config: ModelConfig) -> None:
    family = config.model_type
    if family not in ARCHITECTURES:
        raise ValueError(f"unsupported model_type {family!r}; supported: {', '.join(ARCHITECTURES)}")
    widths = set(config.windows or (None,))
    rules = {
        "llama": config.qkv_bias == config.o_bias and not config.qk_norm and widths == {None},
        "mistral": not (config.qkv_bias or config.o_bias or config.mlp_bias or config.qk_norm) and len(widths) == 1,
        "qwen2": config.qkv_bias and not (config.o_bias or config.mlp_bias or config.qk_norm),
        "qwen3": config.qkv_bias == config.o_bias and config.qk_norm and not config.mlp_bias,
        "deepseek_v2": config.qkv_bias == config.o_bias and widths == {None},
        "deepseek_v3": config.qkv_bias == config.o_bias and widths == {None} and not config.mlp_bias,
    }
    if (config.mla is not None) != (family in DEEPSEEK):
        raise ValueError(f"a {family} config.json can't express mla {config.mla}")
    if not rules[family] or len(widths - {None}) > 1:
        raise ValueError(
            f"a {family} config.json can't express biases (qkv {config.qkv_bias}, o {config.o_bias}, mlp "
            f"{config.mlp_bias}), qk_norm {config.qk_norm}, windows {config.windows}"
        )


def _windows_from_hf(hf: dict[str, Any]) -> tuple[int | None, ...] | None:
    """One entry a layer, or None when every layer attends to everything."""
    num_layers = hf["num_hidden_layers"]
    if hf["model_type"] == "mistral":
        window = hf.get("sliding_window", 4096)
        return None if window is None else (window,) * num_layers
    if not hf.get("use_sliding_window", False) or hf.get("sliding_window", 4096) is None:
        return None
    window = hf.get("sliding_window", 4096)
    first_windowed = hf.get("max_window_layers", 28)
    layer_types = hf.get("layer_types") or [
        "sliding_attention" if layer_idx >= first_windowed else "full_attention" for layer_idx in range(num_layers)
    ]
    windows = tuple(window if kind == "sliding_attention" else None for kind in layer_types)
    return windows if any(windows) else None


def _rope_from_hf(hf: dict[str, Any]) -> RopeConfig:
    rope = dict(hf.get("rope_scaling") or {}) | dict(hf.get("rope_parameters") or {})
    scaling: Any = rope.get("rope_type") or rope.get("type") or "default"
    given: dict[str, Any] = {"theta": float(rope.get("rope_theta") or hf.get("rope_theta") or 10_000.0)}
    if scaling == "default":
        return RopeConfig(**given)
    if scaling not in ("linear", "llama3", "yarn"):
        raise ValueError(f"unsupported rope scaling {scaling!r}; supported: default, linear, llama3, yarn")
    if hf.get("model_type") in DEEPSEEK and scaling != "yarn" and rope.get("mscale_all_dim"):
        raise ValueError(f"unsupported mscale_all_dim with rope scaling {scaling!r}; it belongs to 'yarn'")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("unsupported partial_rotary_factor: every dimension of a head is rotated here")
    original = hf.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    max_seq_len = hf.get("max_position_embeddings")
    if scaling != "linear":
        given["original_max_seq_len"] = original or max_seq_len
    factor = rope.get("factor")
    if factor is None and original and max_seq_len:
        factor = max_seq_len / original
    given["factor"] = float(factor or 1.0)
    for name in _SCALING_FIELDS[scaling]:
        if rope.get(name) is not None:
            given[name] = rope[name]
    for name in ("mscale", "mscale_all_dim"):
        if given.get(name) == 0:  # DeepSeek's way to say that there is none
            del given[name]
    return RopeConfig(scaling=scaling, **given)


def _rope_to_hf(rope: RopeConfig) -> dict[str, Any]:
    hf: dict[str, Any] = {"rope_type": rope.scaling, "rope_theta": rope.theta}
    if rope.scaling != "default":
        hf["factor"] = rope.factor
    if rope.original_max_seq_len is not None:
        hf["original_max_position_embeddings"] = rope.original_max_seq_len
    return hf | {name: getattr(rope, name) for name in _SCALING_FIELDS[rope.scaling] if getattr(rope, name) is not None}


_SCALING_FIELDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": (),
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
}


def _value(hf: dict[str, Any], key: str, default: Any) -> Any:
    """`hf[key]`, or the default when it is missing or null (`"head_dim": null` is common)."""
    return default if hf.get(key) is None else hf[key]


def _as_tuple(ids: int | list[int] | None) -> tuple[int, ...]:
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else tuple(ids)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; a model folder holds config.json and weights") from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(contents).__name__}")
    return contents
