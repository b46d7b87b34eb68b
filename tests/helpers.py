"""Small things that several tests share: tiny models, random weights, tolerances."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from minillm.config import ModelConfig, RopeConfig
from minillm.model.transformer import Transformer

# Largest |difference| of logits of a tiny model from float64.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.5, torch.float16: 0.05}

_LLAMA = ModelConfig(
    vocab_size=97, hidden_size=48, intermediate_size=80, num_layers=3,
    num_heads=4, num_kv_heads=2, head_dim=12, max_seq_len=64, bos_token_id=1, eos_token_ids=(2,),
)  # fmt: skip

# One of each supported family; hidden_size / num_heads differs from head_dim in Qwen3.
TINY: dict[str, ModelConfig] = {
    "llama": _LLAMA,
    "llama3": dataclasses.replace(
        _LLAMA, tie_embeddings=True, rope=RopeConfig(scaling="llama3", factor=4.0, original_max_seq_len=16)
    ),
    "mistral": dataclasses.replace(_LLAMA, model_type="mistral", windows=(5, 5, 5)),
    "qwen2": dataclasses.replace(_LLAMA, model_type="qwen2", qkv_bias=True, windows=(None, None, 5)),
    "qwen3": dataclasses.replace(_LLAMA, model_type="qwen3", qk_norm=True, head_dim=16),
}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter in place, norm weights (around 1) and biases included, and return the model.

    Defaults of 1 and 0 hide omissions. Works for the models of any library.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.dim() > 1:
                parameter.copy_(noise * 1.5 / parameter.shape[-1] ** 0.5)
            else:
                parameter.copy_(0.3 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return model


def tiny_model(family: str = "llama", seed: int = 0, **changes: object) -> Transformer:
    """A random float32 model of `TINY[family]` with `changes`, in eval mode."""
    model = Transformer(dataclasses.replace(TINY[family], **changes))
    randomise(model, seed)
    return model.eval()
