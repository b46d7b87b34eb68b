"""Fewer KV heads: when nothing is lost, what is averaged, and what the heads of a shard see."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from minillm.attention import FullAttend
from minillm.model import Transformer
from minillm.model.checkpoint import load_model, save_model
from minillm.model.convert_heads import POOLINGS, pool_kv_heads
from minillm.transform import replace_linears
from tests.helpers import TINY, tiny_model
from tests.model.tiny_mla import tiny_mla_model

TOKENS = torch.randint(0, 97, (2, 11), generator=torch.Generator().manual_seed(0))
SHAPE = {"num_heads": 8, "num_kv_heads": 8, "qkv_bias": True}


def mha_model(family: str = "qwen3") -> Transformer:
    return tiny_model(family, **SHAPE).double().requires_grad_(False)


def make_groups_equal(model: Transformer, num_kv_heads: int) -> None:
    """Give all KV heads of a group the weights of one."""
    head_dim = model.config.head_dim
    for block in model.blocks:
        for linear in (block.attention.wk, block.attention.wv):
            for tensor in (linear.weight, linear.bias):
                heads = tensor.unflatten(0, (num_kv_heads, -1, head_dim))
                heads.copy_(heads[:, :1].clone().expand_as(heads))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4, 8])
@pytest.mark.parametrize("family", TINY)
def test_equal_heads_pool_without_loss(family: str, num_kv_heads: int, pooling: str) -> None:
    model = mha_model(family)
    make_groups_equal(model, num_kv_heads)
    pooled = pool_kv_heads(model, num_kv_heads, pooling=pooling)
    assert pooled.config == dataclasses.replace(model.config, num_kv_heads=num_kv_heads)
    assert {spec.num_kv_heads for spec in pooled.layer_specs} == {num_kv_heads}
    torch.testing.assert_close(pooled(TOKENS), model(TOKENS), atol=1e-12, rtol=0)


def test_the_mean_is_over_neighbours() -> None:
    model, head_dim = mha_model(), 16
    pooled = pool_kv_heads(model, 2)
    for block, old_block in zip(pooled.blocks, model.blocks, strict=True):
        for name in ("wk", "wv"):
            new, old = getattr(block.attention, name), getattr(old_block.attention, name)
            for head in range(2):
                rows = [slice((4 * head + i) * head_dim, (4 * head + i + 1) * head_dim) for i in range(4)]
                place = slice(head * head_dim, (head + 1) * head_dim)
                torch.testing.assert_close(new.weight[place], sum(old.weight[row] for row in rows) / 4)
                torch.testing.assert_close(new.bias[place], sum(old.bias[row] for row in rows) / 4)


def test_pooling_in_steps_is_pooling_at_once() -> None:
    model = mha_model()
    at_once, in_steps = pool_kv_heads(model, 1), pool_kv_heads(pool_kv_heads(model, 4), 1)
    torch.testing.assert_close(in_steps(TOKENS), at_once(TOKENS), atol=1e-12, rtol=0)
    assert torch.equal(pool_kv_heads(model, 8)(TOKENS), model(TOKENS))


def test_the_first_head_is_the_first_of_its_group() -> None:
    model = mha_model()
    first = pool_kv_heads(model, 4, pooling="first").blocks[0].attention.wk.weight
    assert torch.equal(first[16:32], model.blocks[0].attention.wk.weight[32:48])


@torch.no_grad()
def test_the_result_is_a_model_of_its_own() -> None:
    model = tiny_model("llama3", **SHAPE).train()
    before = model(TOKENS)
    pooled = pool_kv_heads(model, 2)
    assert pooled.training and not pool_kv_heads(model.eval(), 2).training
    assert pooled.lm_head.weight is pooled.embed_tokens.weight
    assert all(parameter.requires_grad for parameter in pooled.parameters())
    for parameter in pooled.parameters():
        parameter.zero_()
    assert torch.equal(model(TOKENS), before)
    assert next(pool_kv_heads(model.bfloat16(), 2).parameters()).dtype == torch.bfloat16


class Doubled(nn.Module):
    """y = 2 W x + bias around another layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.bias = base, base.bias
        self.in_features, self.out_features = base.in_features, base.out_features

    def dense_weight(self) -> Tensor:
        return 2 * self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dense_weight(), self.bias)


def test_wrapped_linears_are_pooled_as_what_they_stand_for() -> None:
    model = replace_linears(mha_model(), lambda name, linear: Doubled(linear), match="blocks.*")
    make_equal = replace_linears(mha_model(), lambda name, linear: linear)
    for linear in (module for module in make_equal.modules() if isinstance(module, nn.Linear)):
        if linear is not make_equal.lm_head:
            linear.weight.mul_(2)
    torch.testing.assert_close(pool_kv_heads(model, 2)(TOKENS), pool_kv_heads(make_equal, 2)(TOKENS))


def test_a_short_training_brings_most_of_it_back() -> None:
    """A text learned by heart, 4 KV heads pooled to 1, and a tenth of the training again."""
    torch.manual_seed(0)
    text = torch.randint(0, 97, (2, 33), generator=torch.Generator().manual_seed(1))

    def train(model: Transformer, num_steps: int) -> float:
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(num_steps):
            loss = loss_of(model)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss_of(model).item()

    def loss_of(model: Transformer) -> Tensor:
        return nn.functional.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())

    model = Transformer(dataclasses.replace(TINY["llama"], num_kv_heads=4, num_layers=2))
    before = train(model, 60)
    pooled = pool_kv_heads(model, 1)
    right_after = loss_of(pooled).item()
    recovered = train(pooled, 6)
    assert before < recovered < right_after
    assert recovered - before < 0.5 * (right_after - before)


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    pooled = pool_kv_heads(tiny_model("llama", num_heads=4, num_kv_heads=4), 1)
    save_model(pooled, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config.num_kv_heads == 1
    assert torch.equal(loaded(TOKENS), pooled(TOKENS))


@pytest.mark.parametrize("num_kv_heads", [0, -1, 3, 16])
def test_other_numbers_are_refused(num_kv_heads: int) -> None:
    with pytest.raises(ValueError, match=f"must divide the model's 8, got {num_kv_heads}"):
        pool_kv_heads(mha_model(), num_kv_heads)


def test_other_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="one of mean, first, got 'max'"):
        pool_kv_heads(mha_model(), 2, pooling="max")
    with pytest.raises(ValueError, match="latent attention has no KV heads"):
        pool_kv_heads(tiny_mla_model(), 2)


def test_eight_heads_four_kv_heads_two_devices() -> None:
    """Each device gets 4 heads and 2 KV heads, so every KV head serves 2 query heads there: n_rep = 2."""
    model = tiny_model("llama", num_heads=8, num_kv_heads=4, head_dim=6).double().requires_grad_(False)
    x = torch.randn(5, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cos_sin, attend = model.rope.cos_sin(torch.arange(5), torch.float64), FullAttend([None] * 3)
    whole = model.blocks[0].attention(x, cos_sin, attend)
    parts = []
    for rank in range(2):
        shard = tiny_model("llama", num_heads=8, num_kv_heads=4, head_dim=6).double().requires_grad_(False)
        attention = shard.blocks[0].attention
        for name in ("wq", "wk", "wv"):
            weight = getattr(attention, name).weight.chunk(2, dim=0)[rank]
            setattr(attention, name, linear_with(weight))
        attention.wo = linear_with(attention.wo.weight.chunk(2, dim=1)[rank])
        spec = shard.layer_specs[0]
        assert (spec.num_heads, spec.num_kv_heads, spec.num_heads // spec.num_kv_heads) == (4, 2, 2)
        parts.append(attention(x, cos_sin, attend))
    torch.testing.assert_close(sum(parts), whole, atol=1e-12, rtol=0)


def linear_with(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear
