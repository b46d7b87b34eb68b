"""RoPE against `transformers`, and what makes it a position embedding: scores that depend on distances alone."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from minillm.config import ModelConfig, RopeConfig
from minillm.model.rope import Rope, attention_factor, frequencies, rotate
from tests.helpers import tiny_model

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
RULES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "theta": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "llama 3.1": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 500_000.0, **LLAMA3},
    "llama 3.2": {"rope_type": "llama3", "factor": 32.0, "rope_theta": 500_000.0, **LLAMA3},
    "qwen 2.5 yarn": YARN | {"original_max_position_embeddings": 32768, "rope_theta": 1_000_000.0},
    "yarn, whole ramp": YARN | {"beta_fast": 20.0, "beta_slow": 2.0},
    "yarn, fractional ramp": YARN | {"truncate": False},
    "yarn, given factor": YARN | {"attention_factor": 0.7},
    "deepseek yarn": YARN | {"factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.4},
}


def hf_config(rope_parameters: dict[str, Any], head_dim: int) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        max_position_embeddings=131_072,
        rope_parameters={"rope_theta": 10_000.0} | copy.deepcopy(rope_parameters),
    )


def ours(config: transformers.LlamaConfig) -> Rope:
    model_config = ModelConfig.from_hf(config.to_dict())
    return Rope(model_config.rope, model_config.head_dim)


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("rule", RULES)
def test_cos_and_sin_equal_transformers(rule: str, head_dim: int) -> None:
    config = hf_config(RULES[rule], head_dim)
    theirs = LlamaRotaryEmbedding(config)
    positions = torch.cat((torch.arange(40), torch.tensor([4095, 8192, 40_000, 131_071])))
    cos, sin = ours(config).cos_sin(positions, torch.float32)
    expected_cos, expected_sin = theirs(torch.zeros(1), positions[None])
    # An angle of 131,071 radians has steps of 2^-7 in float32; equal frequencies give equal angles.
    torch.testing.assert_close(cos[:, 0], expected_cos[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(sin[:, 0], expected_sin[0], atol=1e-6, rtol=0)


@settings(max_examples=100, deadline=None)
@given(
    rule=st.sampled_from(["linear", "llama3", "yarn"]),
    head_dim=st.integers(1, 64).map(lambda half: 2 * half),
    theta=st.floats(10.0, 1e7),
    factor=st.floats(1.0, 64.0),
    original=st.integers(8, 100_000),
    edges=st.tuples(st.floats(0.1, 30.0), st.floats(1.01, 40.0)),
    truncate=st.booleans(),
)
def test_frequencies_equal_transformers(
    rule: str,
    head_dim: int,
    theta: float,
    factor: float,
    original: int,
    edges: tuple[float, float],
    truncate: bool,
) -> None:
    slow, fast = edges[0], edges[0] * edges[1]
    parameters: dict[str, Any] = {"rope_type": rule, "rope_theta": theta, "factor": factor}
    if rule != "linear":
        parameters["original_max_position_embeddings"] = original
    if rule == "llama3":
        parameters |= {"low_freq_factor": slow, "high_freq_factor": fast}
    if rule == "yarn":
        parameters |= {"beta_slow": slow, "beta_fast": fast, "truncate": truncate}
    config = hf_config(parameters, head_dim)
    expected, expected_factor = ROPE_INIT_FUNCTIONS[rule](config, torch.device("cpu"))
    rope = ours(config)
    torch.testing.assert_close(rope.inv_freq, expected, rtol=1e-5, atol=1e-9)
    assert rope.attention_factor == pytest.approx(expected_factor, rel=1e-12)


def test_rotation_equals_transformers() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 7, 3, 16, generator=generator)
    k = torch.randn(2, 7, 1, 16, generator=generator)
    config = hf_config(RULES["llama 3.1"], 16)
    positions = torch.randint(9000, (2, 7), generator=generator)
    cos, sin = LlamaRotaryEmbedding(config)(q, positions)
    expected_q, expected_k = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    rope = ours(config)
    torch.testing.assert_close(rope.rotate(q, positions), expected_q.transpose(1, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(rope.rotate(k, positions), expected_k.transpose(1, 2), atol=1e-5, rtol=0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500), st.sampled_from(["default", "linear"]))
def test_scores_depend_on_the_distance_alone(first: int, second: int, shift: int, rule: str) -> None:
    rope = Rope(RopeConfig(scaling=rule, factor=2.0), head_dim=8)
    generator = torch.Generator().manual_seed(first)
    q = torch.randn(1, 8, generator=generator, dtype=torch.float64)
    k = torch.randn(1, 8, generator=generator, dtype=torch.float64)

    def score(q_position: int, k_position: int) -> Tensor:
        turned_q = rope.rotate(q, torch.tensor(q_position))
        return turned_q @ rope.rotate(k, torch.tensor(k_position)).T

    # Angles are float32: 1000 radians are known to 6e-5.
    torch.testing.assert_close(score(first, second), score(first + shift, second + shift), atol=2e-3, rtol=0)
    torch.testing.assert_close(rope.rotate(q, torch.tensor(first)).norm(), q.norm())


def test_each_pair_turns_by_its_own_angle() -> None:
    """By the definition: (a, b) at distance head_dim / 2 is the complex number a + bi times exp(i p f)."""
    x = torch.randn(5, 2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cos_sin = Rope(RopeConfig(theta=100.0), 6).cos_sin(torch.arange(5), torch.float64)
    turned = rotate(x, *cos_sin)
    for position in range(5):
        for pair in range(3):
            angle = position * 100.0 ** (-2 * pair / 6)
            for head in range(2):
                a, b = x[position, head, pair].item(), x[position, head, pair + 3].item()
                expected = complex(a, b) * complex(math.cos(angle), math.sin(angle))
                got = complex(turned[position, head, pair].item(), turned[position, head, pair + 3].item())
                assert abs(got - expected) < 1e-6


@pytest.mark.parametrize("rule", RULES)
def test_inverse_undoes_the_rotation(rule: str) -> None:
    rope = ours(hf_config(RULES[rule], 32))
    x = torch.randn(3, 5, 2, 32, generator=torch.Generator().manual_seed(0))
    positions = torch.randint(100_000, (3, 5), generator=torch.Generator().manual_seed(1))
    back = rope.rotate(rope.rotate(x, positions), positions, inverse=True)
    torch.testing.assert_close(back, x, atol=1e-5, rtol=0)


def test_only_yarn_scales_attention() -> None:
    yarn = RopeConfig(scaling="yarn", factor=4.0, original_max_seq_len=16)
    assert attention_factor(yarn) == pytest.approx(0.1 * math.log(4.0) + 1.0)
    assert attention_factor(dataclasses.replace(yarn, factor=1.0)) == 1.0
    assert attention_factor(dataclasses.replace(yarn, attention_factor=1.5)) == 1.5
    assert attention_factor(RopeConfig(scaling="linear", factor=4.0)) == 1.0


def test_angles_survive_half_precision() -> None:
    """In bf16, 300 radians would be off by up to one."""
    model = tiny_model().to(torch.bfloat16)
    assert model.rope.inv_freq.dtype == torch.float32
    cos, _ = model.rope.cos_sin(torch.tensor([299]), torch.bfloat16)
    exact = (299 * frequencies(model.config.rope, model.config.head_dim).double()).cos()
    torch.testing.assert_close(cos[0, 0, : exact.shape[0]].double(), exact, atol=2**-8, rtol=0)
