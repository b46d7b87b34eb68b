"""What a model is made of: `ModelConfig` with `RopeConfig` and `MLAConfig` inside, frozen dataclasses.

Everything else (modules, caches, loaders, cost models) is built from these numbers. `hf_config.py` translates
between them and the `config.json` of a Hugging Face checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: base frequency, and how it is stretched for longer contexts.

    `scaling` selects the rule in `minillm.model.rope`; the fields below it belong to the rules named in the comments.
    """

    theta: float = 10_000.0
    scaling: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0  # linear, llama3, yarn: target length / original length
    original_max_seq_len: int | None = None  # llama3, yarn: length the model was pre-trained with
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn: turns over the original length above which a frequency is kept
    beta_slow: float = 1.0  # yarn: turns below which it is divided by `factor`
    attention_factor: float | None = None  # yarn: multiplies cos and sin; None = derived from `factor`
    mscale: float | None = None  # yarn, DeepSeek: numerator of the derived attention factor
    mscale_all_dim: float | None = None  # yarn, DeepSeek: its denominator
    truncate: bool = True  # yarn: round the ends of the ramp to whole dimensions

    def __post_init__(self) -> None:
        known = ("default", "linear", "llama3", "yarn")
        if self.scaling not in known:
            raise ValueError(f"rope scaling must be one of {', '.join(known)}, got {self.scaling!r}")
        for name in ("theta", "factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"):
            if not _is_number(getattr(self, name)) or getattr(self, name) <= 0:
                raise ValueError(f"rope {name} must be a positive number, got {getattr(self, name)!r}")
        for name in ("original_max_seq_len", "attention_factor", "mscale", "mscale_all_dim"):
            value = getattr(self, name)
            if value is not None and (not _is_number(value) or value <= 0):
                raise ValueError(f"rope {name} must be a positive number or None, got {value!r}")
        if self.scaling == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"rope high_freq_factor must be above low_freq_factor, got {self.high_freq_factor} and "
                f"{self.low_freq_factor}"
            )
        if self.scaling == "yarn" and self.theta <= 1:
            raise ValueError(f"rope scaling 'yarn' needs theta above 1, got {self.theta}")
        if self.scaling in ("llama3", "yarn") and self.original_max_seq_len is None:
            raise ValueError(f"rope scaling {self.scaling!r} needs original_max_seq_len")


@dataclass(frozen=True)
class MLAConfig:
    """Widths of multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1), in numbers.

    A token is compressed to a latent of `kv_lora_rank`, from which every head gets its key of `qk_nope_head_dim` and
    its value of `v_head_dim`. Position is carried apart from it: by `qk_rope_head_dim` rotated numbers more in every
    query head, and one rotated key of that width which all heads share. `q_lora_rank` is the width that queries are
    compressed to, or None for queries straight from the hidden state.
    """

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    def __post_init__(self) -> None:
        for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            if not _is_count(getattr(self, name)):
                raise ValueError(f"{name} must be a whole number of at least 1, got {getattr(self, name)!r}")
        if self.q_lora_rank is not None and not _is_count(self.q_lora_rank):
            raise ValueError(f"q_lora_rank must be a whole number of at least 1 or None, got {self.q_lora_rank!r}")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a Llama-style decoder.

    `num_kv_heads` equal to `num_heads` is multi-head attention, 1 is multi-query, between them grouped-query.
    `head_dim` is independent of `hidden_size / num_heads`. `windows[layer_idx]` is the sliding window of a layer
    (a number of keys, the query itself included), or None for full attention; `windows=None` means None everywhere.
    With `mla`, attention is multi-head latent attention: `num_kv_heads` equals `num_heads`, `head_dim` is what RoPE
    turns of a head (`qk_rope_head_dim`), and `qkv_bias` means biases where the hidden state is compressed.
    Raises ValueError when the numbers contradict one another.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_seq_len: int
    norm_eps: float = 1e-6
    rope: RopeConfig = field(default_factory=RopeConfig)
    tie_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int | None, ...] | None = None
    mla: MLAConfig | None = None
    model_type: str = "llama"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads")
        for name in (*sizes, "head_dim", "max_seq_len"):
            if not _is_count(getattr(self, name)):
                raise ValueError(f"{name} must be a whole number of at least 1, got {getattr(self, name)!r}")
        if not _is_number(self.norm_eps) or self.norm_eps < 0:
            raise ValueError(f"norm_eps must be a number of at least 0, got {self.norm_eps!r}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads, got {self.num_heads} and {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even (RoPE rotates halves), got {self.head_dim}")
        if self.windows is not None:
            if len(self.windows) != self.num_layers:
                raise ValueError(f"windows must name {self.num_layers} layers, got {len(self.windows)}")
            if any(window is not None and not _is_count(window) for window in self.windows):
                raise ValueError(f"a window must hold at least 1 key, got {self.windows}")
        if self.mla is not None:
            if self.num_kv_heads != self.num_heads or self.head_dim != self.mla.qk_rope_head_dim:
                raise ValueError(
                    f"latent attention needs num_kv_heads = num_heads and head_dim = qk_rope_head_dim, got "
                    f"{self.num_kv_heads} of {self.num_heads} heads, {self.head_dim} and {self.mla.qk_rope_head_dim}"
                )
            if self.qk_norm:
                raise ValueError("latent attention normalises its latents, not q and k: qk_norm must be False")

    @property
    def attention_type(self) -> Literal["gqa", "mla"]:
        """Which attention module a block gets."""
        return "gqa" if self.mla is None else "mla"

    @classmethod
    def from_pretrained(cls, path: str | Path = "stories-5m") -> ModelConfig:
        """Read `config.json` (and the end tokens of `generation_config.json`) of a bundled name or a folder.

        Raises FileNotFoundError without such a file, ValueError for an architecture not built here.
        """
        from minillm.hf_config import read_config

        return read_config(path)

    @classmethod
    def from_hf(cls, hf_config: dict[str, Any]) -> ModelConfig:
        """From the contents of a Hugging Face `config.json`, in the current or the older spelling."""
        from minillm.hf_config import from_hf

        return from_hf(hf_config)

    def to_hf(self) -> dict[str, Any]:
        """The contents of a `config.json` that `transformers` reads. Raises ValueError if no family fits."""
        from minillm.hf_config import to_hf

        return to_hf(self)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _preset(hidden_size: int, intermediate_size: int, num_layers: int, **changes: Any) -> ModelConfig:
    shape: dict[str, Any] = {
        "vocab_size": 32_000,
        "num_heads": 16,
        "num_kv_heads": 8,
        "head_dim": 64,
        "max_seq_len": 2048,
        "tie_embeddings": True,
    }
    return ModelConfig(
        hidden_size=hidden_size, intermediate_size=intermediate_size, num_layers=num_layers, **(shape | changes)
    )


PRESETS: dict[str, ModelConfig] = {
    # The bundled story teller: 4.9 M parameters.
    "stories-5m": _preset(
        256, 704, 6, vocab_size=2048, num_heads=8, num_kv_heads=4, head_dim=32, max_seq_len=512,
        bos_token_id=0, eos_token_ids=(1,),
    ),
    # Shapes for measurements, run with random weights.
    "llama-70m": _preset(512, 1664, 16, num_heads=8, num_kv_heads=4),
    "llama-420m": _preset(1024, 2944, 32),
}  # fmt: skip
