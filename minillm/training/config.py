"""The settings of a training run: everything that decides what the weights become, and how the run is watched."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

WATCHING_FIELDS = frozenset(
    {
        "device",
        "threads",
        "eval_every",
        "eval_stories",
        "final_eval_stories",
        "save_every",
        "save_every_s",
        "log_every",
    }
)
"""Fields that may change between an interruption and a resumption: they do not enter the mathematics of the run."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run; the defaults suit a model of about five million parameters.

    `steps` counts optimiser updates. One update consumes `batch_size * grad_accum` rows of `seq_len` targets each.
    `save_every` (steps) and `save_every_s` (seconds) may both be set; `None` turns either off.
    Raises `ValueError` that names the field when a value makes no sense.
    """

    steps: int
    batch_size: int = 8
    seq_len: int = 512
    grad_accum: int = 1
    lr: float = 2e-3
    warmup_steps: int = 100
    min_lr_ratio: float = 0.02
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    seed: int = 0
    dtype: str = "bf16"
    compile: bool = False
    device: str = "cpu"
    threads: int | None = None
    eval_every: int = 500
    eval_stories: int = 100
    final_eval_stories: int = 2000
    save_every: int | None = None
    save_every_s: float | None = 300.0
    log_every: int = 10

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "seq_len",
            "grad_accum",
            "eval_every",
            "eval_stories",
            "log_every",
        ):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        _require(self.final_eval_stories >= 1, "final_eval_stories", "at least 1", self.final_eval_stories)
        for name in ("threads", "save_every"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, "at least 1", value)
        _require(
            self.save_every_s is None or self.save_every_s > 0,
            "save_every_s",
            "above 0 seconds",
            self.save_every_s,
        )
        _require(0 < self.lr < float("inf"), "lr", "a positive number", self.lr)
        _require(self.warmup_steps >= 0, "warmup_steps", "at least 0", self.warmup_steps)
        _require(0 <= self.min_lr_ratio <= 1, "min_lr_ratio", "between 0 and 1", self.min_lr_ratio)
        _require(0 <= self.weight_decay < float("inf"), "weight_decay", "at least 0", self.weight_decay)
        _require(self.grad_clip > 0, "grad_clip", "above 0 (inf turns clipping off)", self.grad_clip)
        _require(0 <= self.seed < 2**32, "seed", "between 0 and 2**32 - 1", self.seed)
        _require(self.dtype in ("bf16", "fp32"), "dtype", "'bf16' or 'fp32'", self.dtype)

    @property
    def rows_per_step(self) -> int:
        """Rows (of `seq_len` targets) that one optimiser update consumes."""
        return self.batch_size * self.grad_accum

    @property
    def tokens_per_step(self) -> int:
        """Targets that one optimiser update learns from."""
        return self.rows_per_step * self.seq_len

    @property
    def num_rows(self) -> int:
        """Rows that the whole run consumes."""
        return self.steps * self.rows_per_step

    def deciding_fields(self) -> dict[str, object]:
        """The fields that decide the final weights: a resumed run must have the same ones."""
        return {name: value for name, value in asdict(self).items() if name not in WATCHING_FIELDS}


def settings_hash(settings: dict[str, object]) -> str:
    """A short fingerprint of JSON-like `settings`, independent of the order of their keys."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _require(condition: bool, name: str, expected: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{name} must be {expected}, got {value!r}")
