"""What the tests of fusion share. TorchDynamo forgets its graphs between tests: 8 of one function is all it keeps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from minillm import load_model
from minillm.model.transformer import Transformer


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="session")
def stories() -> Transformer:
    """The bundled model; nobody changes it."""
    return load_model()


@pytest.fixture
def tiny() -> Transformer:
    """Two layers in float64, norm weights and biases that hide nothing."""
    from dataclasses import replace

    from minillm.config import PRESETS

    config = replace(
        PRESETS["stories-5m"],
        vocab_size=61,
        hidden_size=24,
        intermediate_size=36,
        num_layers=2,
        num_heads=6,
        num_kv_heads=2,
        head_dim=10,
        max_seq_len=64,
        tie_embeddings=False,
        qkv_bias=True,
    )
    torch.manual_seed(0)
    model = Transformer(config).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()
