"""Translate between `ModelConfig` and the `config.json` of a Hugging Face checkpoint.

Four families are known: Llama (2, 3.x), Mistral, Qwen2 and Qwen3. Their files say the same things in two spellings:
transformers 5 writes `rope_parameters` and `dtype`, the hub's older files `rope_theta`, `rope_scaling` and
`torch_dtype`. Values that a file leaves out take the default of the family's own configuration class.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minillm.config import ModelConfig, RopeConfig

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
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
    hf_config = _read_json(folder / "config.json")
    generation_file = folder / "generation_config.json"
    if generation_file.exists():
        generation = _read_json(generation_file)
        if generation.get("eos_token_id") is not None:
            hf_config["eos_token_id"] = generation["eos_token_id"]
    try:
        return from_hf(hf_config)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error


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
    num_heads = hf["num_attention_heads"]
    default_head_dim = 128 if family == "qwen3" else hf["hidden_size"] // num_heads
    attention_bias = family in ("llama", "qwen3") and hf.get("attention_bias", False)
    default_bos, default_eos = (1, 2) if family in ("llama", "mistral") else (None, None)
    default_kv_heads = {"mistral": 8, "llama": num_heads}.get(family, 32)
    return ModelConfig(
        vocab_size=hf["vocab_size"],
        hidden_size=hf["hidden_size"],
        intermediate_size=hf["intermediate_size"],
        num_layers=hf["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=hf.get("num_key_value_heads", default_kv_heads) or num_heads,
        head_dim=_value(hf, "head_dim", default_head_dim),
        max_seq_len=_value(hf, "max_position_embeddings", {"llama": 2048, "mistral": 131_072}.get(family, 32_768)),
        norm_eps=_value(hf, "rms_norm_eps", 1e-6),
        rope=_rope_from_hf(hf),
        tie_embeddings=_value(hf, "tie_word_embeddings", False),
        qkv_bias=family == "qwen2" or attention_bias,
        o_bias=attention_bias,
        mlp_bias=family == "llama" and hf.get("mlp_bias", False),
        qk_norm=family == "qwen3",
        windows=_windows_from_hf(hf),
        model_type=family,
        bos_token_id=hf.get("bos_token_id", default_bos),
        eos_token_ids=_as_tuple(hf.get("eos_token_id", default_eos)),
    )


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
    if config.model_type in ("llama", "qwen3"):
        hf["attention_bias"] = config.qkv_bias
    if config.model_type == "llama":
        hf["mlp_bias"] = config.mlp_bias
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
    }
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
    fields: dict[str, Any] = {"theta": float(rope.get("rope_theta") or hf.get("rope_theta") or 10_000.0)}
    if scaling == "default":
        return RopeConfig(**fields)
    if scaling not in ("linear", "llama3", "yarn"):
        raise ValueError(f"unsupported rope scaling {scaling!r}; supported: default, linear, llama3, yarn")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("unsupported partial_rotary_factor: every dimension of a head is rotated here")
    original = hf.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    max_seq_len = hf.get("max_position_embeddings")
    if scaling != "linear":
        fields["original_max_seq_len"] = original or max_seq_len
    factor = rope.get("factor")
    if factor is None and original and max_seq_len:
        factor = max_seq_len / original
    fields["factor"] = float(factor or 1.0)
    for name in _SCALING_FIELDS[scaling]:
        if rope.get(name) is not None:
            fields[name] = rope[name]
    return RopeConfig(scaling=scaling, **fields)


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
