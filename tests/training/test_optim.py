"""Schedule, parameter groups and starting weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from minillm.config import ModelConfig
from minillm.model.transformer import Transformer
from minillm.training.optim import align_heads, build_optimizer, initialize_weights, learning_rate
from tests.training.tiny import MODEL, tiny_config, tiny_model


def test_schedule_equals_torch() -> None:
    config = tiny_config(steps=60, warmup_steps=10, lr=0.02, min_lr_ratio=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.lr)
    warm_up = LinearLR(optimizer, start_factor=0.1, end_factor=1.0, total_iters=9)
    cosine = CosineAnnealingLR(optimizer, T_max=49, eta_min=0.002)
    scheduler = SequentialLR(optimizer, [warm_up, cosine], milestones=[10])
    for step in range(60):
        assert learning_rate(step, config) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    "changes", [{"warmup_steps": 0}, {"steps": 1, "warmup_steps": 0}, {"steps": 5, "warmup_steps": 9}]
)
def test_schedule_at_its_edges(changes: dict[str, int]) -> None:
    config = tiny_config(lr=1.0, **changes)
    rates = [learning_rate(step, config) for step in range(config.steps)]
    assert all(0 < rate <= 1 for rate in rates)
    if not config.warmup_steps:
        assert rates[0] == 1.0
    if config.steps > 1 and config.warmup_steps < config.steps:
        assert rates[-1] == pytest.approx(config.min_lr_ratio)


def test_only_matrices_decay() -> None:
    model = tiny_model()
    decayed, spared = build_optimizer(model, tiny_config(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert all(p.ndim >= 2 for p in decayed["params"]) and all(p.ndim == 1 for p in spared["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))
    assert decayed["betas"] == (0.9, 0.95) and decayed["eps"] == 1e-8


def test_starting_weights() -> None:
    models = [Transformer(MODEL) for _ in range(3)]
    for model, seed in zip(models, (5, 5, 6), strict=True):
        initialize_weights(model, num_layers=MODEL.num_layers, seed=seed)
    same, again, other = (dict(model.named_parameters()) for model in models)
    for name, parameter in same.items():
        assert torch.equal(parameter, again[name])
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.ones_like(parameter))
            continue
        assert not torch.equal(parameter, other[name])
        expected = parameter.shape[-1] ** -0.5 / (math.sqrt(4) if name.endswith(("wo.weight", "w_down.weight")) else 1)
        assert float(parameter.std()) == pytest.approx(expected, rel=0.2)


def test_heads_start_aligned() -> None:
    """Each query head resembles the key projection of its own KV head; wo the transposed values; variances stay."""
    config = ModelConfig(
        vocab_size=10,
        hidden_size=96,
        intermediate_size=8,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_seq_len=8,
    )
    attention = Transformer(config).blocks[0].attention
    for linear in (attention.wq, attention.wk, attention.wv, attention.wo):
        torch.nn.init.normal_(linear.weight, std=linear.in_features**-0.5, generator=torch.Generator().manual_seed(3))
    attention.wo.weight.data /= math.sqrt(2)
    torch.nn.init.normal_(attention.wk.weight, std=96**-0.5, generator=torch.Generator().manual_seed(4))
    spread = [linear.weight.std().item() for linear in (attention.wq, attention.wo)]
    align_heads(attention, num_layers=1)
    for head in range(4):
        q, o = attention.wq.weight[16 * head : 16 * (head + 1)], attention.wo.weight[:, 16 * head : 16 * (head + 1)]
        for kv_head in range(2):
            rows = slice(16 * kv_head, 16 * (kv_head + 1))
            for projection, kept in ((q, attention.wk.weight[rows]), (o.T, attention.wv.weight[rows])):
                alignment = torch.cosine_similarity(projection.flatten(), kept.flatten(), dim=0).item()
                assert alignment == pytest.approx(0.7 if kv_head == head // 2 else 0.0, abs=0.12)
    assert [attention.wq.weight.std().item(), attention.wo.weight.std().item()] == pytest.approx(spread, rel=0.1)
