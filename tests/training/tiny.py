"""A model and settings small enough to train in a test."""

from __future__ import annotations

from minillm.config import ModelConfig
from minillm.model.transformer import Transformer
from minillm.training.config import TrainConfig
from minillm.training.optim import initialize_weights

MODEL = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    max_seq_len=64,
    tie_embeddings=True,
)


def tiny_model(seed: int = 0) -> Transformer:
    model = Transformer(MODEL)
    initialize_weights(model, num_layers=MODEL.num_layers, seed=seed)
    return model


def tiny_config(**changes: object) -> TrainConfig:
    settings = {"steps": 12, "batch_size": 3, "seq_len": 16, "warmup_steps": 2, "dtype": "fp32"} | changes
    return TrainConfig(**settings)
