"""Latent attention by the book, and its two forms against one another."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from minillm.attention import FullAttend
from minillm.config import MLAConfig, RopeConfig
from minillm.model import Transformer
from minillm.model.mla import FORMS, MultiHeadLatentAttention, use_latent_form
from minillm.model.rope import Rope
from minillm.transform import replace_linears
from tests.helpers import tiny_model
from tests.model.tiny_mla import CONFIG, MLA, YARN, tiny_mla_model

TOKENS = torch.randint(0, 97, (2, 15), generator=torch.Generator().manual_seed(1))
PLAIN_QUERIES = dataclasses.replace(MLA, q_lora_rank=None)


def assert_equal(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, atol=1e-10, rtol=0)


def by_the_book(attention: Any, x: Tensor, rope: Rope, softmax_scale: float) -> Tensor:
    """DeepSeek-V2, section 2.1, token by token and head by head; x (seq_len, hidden_size)."""
    mla, nope = attention.widths, attention.widths.qk_nope_head_dim

    def rms_norm(vector: Tensor, weight: Tensor) -> Tensor:
        return vector / (vector.square().mean() + 1e-6).sqrt() * weight

    def turned(vector: Tensor, position: int) -> Tensor:
        real, imaginary = vector.chunk(2)
        angles = position * rope.inv_freq  # float32, as the model has them
        cos, sin = (f.double() for f in (angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor))
        return torch.cat((real * cos - imaginary * sin, real * sin + imaginary * cos))

    queries, keys, values = [], [], []
    for position, hidden in enumerate(x):
        c_q = rms_norm(attention.wq.a.weight @ hidden + attention.wq.a.bias, attention.wq.norm.weight)
        q = (attention.wq.b.weight @ c_q).view(-1, nope + mla.qk_rope_head_dim)
        queries.append([torch.cat((head[:nope], turned(head[nope:], position))) for head in q])
        both = attention.wkv_a.weight @ hidden + attention.wkv_a.bias
        c_kv = rms_norm(both[: mla.kv_lora_rank], attention.kv_norm.weight)
        k_rope = turned(both[mla.kv_lora_rank :], position)
        kv = (attention.wkv_b.weight @ c_kv).view(-1, nope + mla.v_head_dim)
        keys.append([torch.cat((head[:nope], k_rope)) for head in kv])
        values.append([head[nope:] for head in kv])
    rows = []
    for i in range(len(x)):
        heads = []
        for h in range(len(queries[i])):
            scores = torch.stack([queries[i][h] @ keys[j][h] for j in range(i + 1)]) * softmax_scale
            heads.append(torch.softmax(scores, dim=0) @ torch.stack([values[j][h] for j in range(i + 1)]))
        rows.append(attention.wo.weight @ torch.cat(heads) + attention.wo.bias)
    return torch.stack(rows)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rope", [RopeConfig(), YARN, RopeConfig(scaling="linear", factor=3.0)])
def test_by_the_book(rope: RopeConfig, form: str) -> None:
    model = tiny_mla_model(form, rope=rope)
    attention = model.blocks[1].attention
    x = torch.randn(9, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ours = attention(x, model.rope.cos_sin(torch.arange(9), torch.float64), FullAttend([None] * 3))
    scale = 1 / math.sqrt(10 + 8)
    if rope.scaling == "yarn":
        scale *= (0.1 * 1.4 * math.log(4.0) + 1) ** 2
    assert_equal(ours, by_the_book(attention, x, model.rope, scale))


@pytest.mark.parametrize("leading", [(15,), (2, 15), (2, 3, 15)])
@pytest.mark.parametrize("mla", [MLA, PLAIN_QUERIES, MLAConfig(6, 40, 4, 8, 2), MLAConfig(None, 1, 1, 8, 20)])
def test_both_forms_are_one_function(mla: MLAConfig, leading: tuple[int, ...]) -> None:
    model = tiny_mla_model(mla=mla, windows=(None, 4, None))
    tokens = torch.randint(0, 97, leading, generator=torch.Generator().manual_seed(3))
    absorbed = model(tokens)
    assert absorbed.shape == (*leading, 97)
    use_latent_form(model, "naive")
    assert_equal(model(tokens), absorbed)


def test_both_forms_have_one_gradient() -> None:
    gradients = []
    for form in FORMS:
        model = tiny_mla_model(form).requires_grad_()
        model(TOKENS).square().mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), name
        gradients.append([parameter.grad for parameter in model.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        assert_equal(ours, theirs)


def test_only_differences_of_positions_matter() -> None:
    model = tiny_mla_model()
    positions = torch.arange(15)
    torch.testing.assert_close(model(TOKENS, positions + 23), model(TOKENS), atol=1e-4, rtol=0)
    assert (model(TOKENS, positions * 2) - model(TOKENS)).abs().max() > 1e-2


def rows_of(linear: nn.Linear, start: int, stop: int) -> nn.Linear:
    part = nn.Linear(linear.in_features, stop - start, bias=False).double()
    part.weight.data = linear.weight.data[start:stop]
    return part


@pytest.mark.parametrize("form", FORMS)
def test_two_shards_of_the_heads_sum_to_the_whole(form: str) -> None:
    """Heads are shared out; latents are whole on every rank, and so is what an absorbed cache holds."""
    x = torch.randn(5, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = tiny_mla_model(form, o_bias=False)
    cos_sin, attend = model.rope.cos_sin(torch.arange(5), torch.float64), FullAttend([None] * 3)
    parts = []
    for rank in range(2):
        shard = copy.deepcopy(model)
        attention = shard.blocks[1].attention
        attention.wq.b = rows_of(attention.wq.b, 36 * rank, 36 * rank + 36)
        attention.wkv_b = rows_of(attention.wkv_b, 48 * rank, 48 * rank + 48)
        columns = attention.wo.weight.data[:, 28 * rank : 28 * rank + 28]
        attention.wo = nn.Linear(28, 48, bias=False).double()
        attention.wo.weight.data = columns
        specs = [(s.num_heads, s.num_kv_heads) for s in shard.layer_specs]
        assert specs == ([(4, 1), (2, 1), (4, 1)] if form == "absorbed" else [(4, 4), (2, 2), (4, 4)])
        parts.append(attention(x, cos_sin, attend))
    assert_equal(sum(parts), model.blocks[1].attention(x, cos_sin, attend))


class Halves(nn.Module):
    """y = (part + part) x, with the layer that it replaces inside and no `weight`."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.bias = base, base.bias
        self.part = nn.Parameter(base.weight.detach() / 2)
        self.in_features, self.out_features = base.in_features, base.out_features

    def dense_weight(self) -> Tensor:
        return self.part + self.part

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dense_weight(), self.bias)


@pytest.mark.parametrize("form", FORMS)
def test_wrapped_linears_are_absorbed(form: str) -> None:
    model = tiny_mla_model(form)
    expected = model(TOKENS)
    specs = [dataclasses.replace(spec) for spec in model.layer_specs]
    replace_linears(model, lambda name, linear: Halves(linear), match="blocks.*.attention.*")
    assert_equal(model(TOKENS), expected)
    assert model.layer_specs == specs
    with torch.no_grad():
        model.blocks[0].attention.wkv_b.part.add_(0.1)
    assert (model(TOKENS) - expected).abs().max() > 1e-2


def test_the_form_is_absorbed_unless_said_otherwise() -> None:
    model = Transformer(CONFIG)
    assert all(spec.v_from_k for spec in model.layer_specs)
    use_latent_form(model, "naive")
    assert not any(spec.v_from_k for spec in copy.deepcopy(model).layer_specs)


def test_bad_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="must be one of absorbed, naive, got 'fast'"):
        use_latent_form(tiny_mla_model(), "fast")
    with pytest.raises(ValueError, match="no latent attention"):
        use_latent_form(tiny_model(), "naive")
    with pytest.raises(ValueError, match="needs a ModelConfig with mla"):
        MultiHeadLatentAttention(tiny_model().config, 0)
