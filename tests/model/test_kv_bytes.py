"""Bytes of KV cache a token: what the cost model says of a `config.json` is what a cache of that model allocates."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from minillm.cache import ContiguousCache
from minillm.config import MLAConfig, ModelConfig
from minillm.model import Transformer
from minillm.perf.model_shape import read_shape
from minillm.perf.traffic import kv_bytes_per_step

# Two layers are enough; widths are those of the models named.
MHA = ModelConfig(
    vocab_size=50, hidden_size=4096, intermediate_size=64, num_layers=2, num_heads=32, num_kv_heads=32, head_dim=128,
    max_seq_len=4096,
)  # fmt: skip
CONFIGS = {
    "MHA: Llama-2-7B": (MHA, 2 * 32 * 128),
    "GQA: Llama-3-8B": (dataclasses.replace(MHA, num_kv_heads=8), 2 * 8 * 128),
    "MQA: Llama-3-8B with one KV head": (dataclasses.replace(MHA, num_kv_heads=1), 2 * 128),
    "MLA: DeepSeek-V3": (
        dataclasses.replace(
            MHA, num_heads=128, num_kv_heads=128, head_dim=64, mla=MLAConfig(1536, 512, 128, 64, 128),
            model_type="deepseek_v3",
        ),
        512 + 64,
    ),
    "MLA: DeepSeek-V2-Lite": (
        dataclasses.replace(
            MHA, num_heads=16, num_kv_heads=16, head_dim=64, mla=MLAConfig(None, 512, 128, 64, 128),
            model_type="deepseek_v2",
        ),
        512 + 64,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_predicted_bytes_are_allocated(name: str) -> None:
    config, numbers_per_layer = CONFIGS[name]
    with torch.device("meta"):
        model = Transformer(config)
    cache = ContiguousCache(model.layer_specs, 1, max_seq_len=10, dtype=torch.bfloat16)
    expected = config.num_layers * numbers_per_layer * 2
    assert cache.bytes_per_token == expected
    assert sum(slab.nbytes for slab in (*cache.k, *cache.v) if slab is not None) == 10 * expected
    shape = read_shape(config.to_hf())
    assert shape.kv_numbers_per_token * 2 == expected
    assert kv_bytes_per_step(model.layer_specs, 9, bytes_per_number=2) == 10 * expected  # 9 read, 1 written
    assert shape.num_parameters == sum(parameter.numel() for parameter in model.parameters())
