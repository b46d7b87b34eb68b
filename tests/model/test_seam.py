"""The seam between model and attend: what crosses it, and that nothing stays behind in the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from minillm.attention import FullAttend, naive_attention
from minillm.config import RopeConfig
from minillm.model import Transformer
from tests.helpers import TINY, tiny_model

YARN = RopeConfig(scaling="yarn", factor=4.0, original_max_seq_len=16, theta=10_000.0)
LEADING_SHAPES = [(7,), (3, 7), (2, 3, 7)]


def model_in_float64(family: str = "qwen3", **changes: Any) -> Transformer:
    return tiny_model(family, **changes).double().requires_grad_(False)


def random_tokens(*shape: int) -> Tensor:
    return torch.randint(0, 97, shape, generator=torch.Generator().manual_seed(3))


class RecordingAttend:
    """Full attention that remembers what it was given, by layer."""

    def __init__(self, model: Transformer) -> None:
        self.full = FullAttend([spec.window for spec in model.layer_specs])
        self.seen: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self.scales: list[float] = []

    def __call__(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
        assert layer_idx not in self.seen
        self.seen[layer_idx] = (q, k, v)
        self.scales.append(softmax_scale)
        return self.full(layer_idx, q, k, v, softmax_scale)


@pytest.mark.parametrize("leading", LEADING_SHAPES)
@pytest.mark.parametrize("family", TINY)
def test_what_an_attend_receives(family: str, leading: tuple[int, ...]) -> None:
    model = model_in_float64(family)
    config, attend = model.config, RecordingAttend(model)
    logits = model(random_tokens(*leading), torch.arange(7), attend)
    assert logits.shape == (*leading, config.vocab_size)
    assert sorted(attend.seen) == list(range(config.num_layers))
    for q, k, v in attend.seen.values():
        assert q.shape == (*leading, config.num_heads, config.head_dim)
        assert k.shape == v.shape == (*leading, config.num_kv_heads, config.head_dim)
    assert attend.scales == [config.head_dim**-0.5] * config.num_layers


@pytest.mark.parametrize("rope", [RopeConfig(), YARN, RopeConfig(scaling="linear", factor=3.0)])
def test_queries_and_keys_arrive_rotated_and_turn_back(rope: RopeConfig) -> None:
    model = model_in_float64(rope=rope)
    straight: dict[tuple[int, str], Tensor] = {}  # after the norm, before the rotation
    for block in model.blocks:
        for name, module in (("q", block.attention.q_norm), ("k", block.attention.k_norm)):
            key = (block.attention.layer_idx, name)
            module.register_forward_hook(lambda _, __, output, key=key: straight.update({key: output}))
    attend = RecordingAttend(model)
    positions = torch.tensor([[0, 3, 40], [7, 7, 1]])
    model(random_tokens(2, 3), positions, attend)

    factor = model.rope.attention_factor
    assert (factor != 1.0) == (rope.scaling == "yarn")
    for layer_idx, spec in enumerate(model.layer_specs):
        for name, arrived in zip("qk", attend.seen[layer_idx], strict=False):
            before = straight[layer_idx, name]
            back = spec.rope.rotate(arrived, positions, inverse=True)
            torch.testing.assert_close(back, before, atol=1e-6, rtol=0)  # angles are float32
            # By definition dimensions i and i + head_dim / 2 are a complex number, turned by p · inv_freq[i].
            real, imaginary = before.chunk(2, dim=-1)
            angle = positions[..., None, None] * spec.rope.inv_freq.double()
            turned = factor * torch.complex(real, imaginary) * torch.polar(torch.ones_like(angle), angle)
            expected = torch.cat((turned.real, turned.imag), dim=-1)
            torch.testing.assert_close(arrived, expected, atol=3e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "llama3", "mistral", "qwen3"])
def test_only_differences_of_positions_matter(family: str) -> None:
    model, tokens = model_in_float64(family), random_tokens(2, 9)
    logits = model(tokens)
    positions = torch.arange(9)
    torch.testing.assert_close(model(tokens, positions), logits, atol=0, rtol=0)
    torch.testing.assert_close(model(tokens, positions + 23), logits, atol=1e-4, rtol=0)
    per_row = positions + torch.tensor([[5], [31]])
    torch.testing.assert_close(model(tokens, per_row), logits, atol=1e-4, rtol=0)
    assert (model(tokens, positions * 2) - logits).abs().max() > 1e-2


def test_leading_axes_and_broadcast_positions() -> None:
    model, tokens = model_in_float64("mistral"), random_tokens(2, 3, 9)
    logits = model(tokens)
    for i in range(2):
        torch.testing.assert_close(model(tokens[i]), logits[i], atol=1e-12, rtol=0)
        for j in range(3):
            torch.testing.assert_close(model(tokens[i, j]), logits[i, j], atol=1e-12, rtol=0)
    attend = FullAttend(model.config.windows)
    for positions in (torch.arange(9), torch.arange(9)[None], torch.arange(9).expand(2, 3, 9)):
        torch.testing.assert_close(model(tokens, positions, attend), logits, atol=1e-12, rtol=0)
    same_place = model(tokens[0], torch.full((3, 1), 4), attend)  # (batch, 1): as when decoding
    torch.testing.assert_close(same_place, model(tokens[0], torch.full((3, 9), 4), attend), atol=1e-12, rtol=0)


def test_packed_sequences_need_nothing_but_an_attend() -> None:
    """(num_tokens,) tokens of three sequences; the attend knows where each begins."""
    model, lens = model_in_float64("mistral"), [4, 1, 6]

    def packed(layer_idx: int, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
        window = model.layer_specs[layer_idx].window
        parts = zip(*(x.split(lens) for x in (q, k, v)), strict=True)
        return torch.cat(
            [
                naive_attention(*(x[None] for x in part), window=window, softmax_scale=softmax_scale)[0][0]
                for part in parts
            ]
        )

    tokens = random_tokens(sum(lens))
    positions = torch.cat([torch.arange(count) for count in lens])
    logits = model(tokens, positions, packed)
    for ours, text in zip(logits.split(lens), tokens.split(lens), strict=True):
        torch.testing.assert_close(ours, model(text), atol=1e-12, rtol=0)


def test_the_default_attend_is_causal_and_windowed() -> None:
    """One layer with a window of 3: a token changes the logits of itself and the next 2, and no others."""
    model, tokens = model_in_float64(num_layers=1, windows=(3,)), random_tokens(9)
    changed = tokens.clone()
    changed[4] = (tokens[4] + 1) % 97
    difference = (model(changed) - model(tokens)).abs().amax(dim=-1)
    assert [bool(value > 1e-9) for value in difference] == [4 <= i < 7 for i in range(9)]


def test_the_default_attend_carries_gradients() -> None:
    model = tiny_model("qwen3", windows=(None, 2, 4)).double()
    model(random_tokens(2, 6)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_an_attend_needs_positions() -> None:
    model = model_in_float64()
    with pytest.raises(ValueError, match="without positions"):
        model(random_tokens(4), attend=RecordingAttend(model))


def test_the_parts_compose_to_the_whole() -> None:
    model, tokens, positions = model_in_float64(), random_tokens(2, 5), torch.arange(5)
    x = model.embed(tokens)
    h = model.hidden(x, positions, FullAttend([None] * 3))
    assert x.shape == h.shape == (2, 5, model.config.hidden_size)
    assert torch.equal(model.unembed(h), model(tokens))
    # Logits of the last token only, the reason to take the model apart.
    torch.testing.assert_close(model.unembed(h[:, -1]), model(tokens)[:, -1], atol=1e-12, rtol=0)


def rows_of(linear: nn.Linear, start: int, stop: int) -> nn.Linear:
    part = nn.Linear(linear.in_features, stop - start, bias=linear.bias is not None).double()
    part.weight.data = linear.weight.data[start:stop]
    if linear.bias is not None:
        part.bias.data = linear.bias.data[start:stop]
    return part


def test_layer_specs_describe_the_modules_in_place() -> None:
    model = model_in_float64(windows=(None, 3, None))
    assert [(s.num_heads, s.num_kv_heads, s.k_head_dim, s.v_head_dim) for s in model.layer_specs] == [
        (4, 2, 16, 16)
    ] * 3
    assert [s.window for s in model.layer_specs] == [None, 3, None]
    assert not any(s.v_from_k for s in model.layer_specs)
    assert all(s.rope is model.rope for s in model.layer_specs)


def test_two_shards_of_the_heads_sum_to_the_whole() -> None:
    """A tensor-parallel shard is narrower linears in place: the specs follow, the outputs add up."""
    x = torch.randn(5, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = model_in_float64()
    cos_sin = model.rope.cos_sin(torch.arange(5), torch.float64)
    attend = FullAttend([None] * 3)
    whole = model.blocks[1].attention(x, cos_sin, attend)
    parts = []
    for rank in range(2):
        shard = model_in_float64()
        attention = shard.blocks[1].attention
        attention.wq = rows_of(attention.wq, 32 * rank, 32 * rank + 32)
        attention.wk = rows_of(attention.wk, 16 * rank, 16 * rank + 16)
        attention.wv = rows_of(attention.wv, 16 * rank, 16 * rank + 16)
        columns = attention.wo.weight[:, 32 * rank : 32 * rank + 32]
        attention.wo = nn.Linear(32, 48, bias=False).double()
        attention.wo.weight.data = columns
        assert [(s.num_heads, s.num_kv_heads) for s in shard.layer_specs] == [(4, 2), (2, 1), (4, 2)]
        parts.append(attention(x, cos_sin, attend))
    torch.testing.assert_close(sum(parts), whole, atol=1e-12, rtol=0)


def snapshot(model: Transformer) -> dict[str, Any]:
    """Identity of everything reachable in the modules' dictionaries, and the contents of every tensor."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            held = dict(enumerate(value)) if isinstance(value, list | tuple) else {"": value}
            held = value if isinstance(value, dict) else held
            state[f"{name}.{attribute}"] = {key: id(item) for key, item in held.items()}
    state["rope"] = {attribute: id(value) for attribute, value in vars(model.rope).items()}
    return state


def test_a_forward_leaves_nothing_in_the_model() -> None:
    model = model_in_float64("mistral")
    assert not list(model.buffers())
    before, contents = snapshot(model), {k: v.clone() for k, v in model.state_dict().items()}
    first = model(random_tokens(2, 6))
    model(random_tokens(9), torch.arange(9) + 40, RecordingAttend(model))
    model(random_tokens(1))
    assert snapshot(model) == before
    assert all(torch.equal(value, contents[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(random_tokens(2, 6)), first)
