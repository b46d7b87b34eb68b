"""`replace_linears` on nested, shared and tied modules; `FastLinear` against the layer it wraps."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from minillm.config import ModelConfig
from minillm.fast_linears import FastLinear, can_use_fast_linears, use_fast_linears
from minillm.model.transformer import Transformer
from minillm.transform import dense_weight, replace_linears

needs_numba = pytest.mark.skipif(not can_use_fast_linears(), reason="numba is not installed")


class Doubled(nn.Module):
    """A wrapper in the manner of all others: twice what `base` gives."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.base(x)

    def dense_weight(self) -> Tensor:
        return 2 * dense_weight(self.base)


def tiny_model(*, tie: bool = True) -> Transformer:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=61, hidden_size=24, intermediate_size=40, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6,
        max_seq_len=32, tie_embeddings=tie, qkv_bias=True,
    )  # fmt: skip
    return Transformer(config).eval()


def test_every_linear_once_with_its_name() -> None:
    model, names = tiny_model(), []
    expected = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    result = replace_linears(model, lambda name, linear: names.append(name) or Doubled(linear))
    assert result is model
    assert len(names) == len(set(names)) and set(names) == expected and "lm_head" in expected
    assert all(isinstance(model.get_submodule(name), Doubled) for name in names)


def test_tie_survives() -> None:
    model = replace_linears(tiny_model(), lambda name, linear: Doubled(linear))
    assert model.lm_head.base.weight is model.embed_tokens.weight


def test_match_and_none() -> None:
    model = replace_linears(tiny_model(), lambda _, linear: Doubled(linear), match="blocks.*.attention.w[qv]")
    wrapped = {name for name, module in model.named_modules() if isinstance(module, Doubled)}
    assert wrapped == {f"blocks.{i}.attention.w{letter}" for i in (0, 1) for letter in "qv"}
    before = model.lm_head
    replace_linears(model, lambda _, linear: None)
    assert model.lm_head is before and isinstance(model.blocks[0].attention.wq, Doubled)
    with pytest.raises(ValueError, match="no linear layer"):
        replace_linears(model, lambda _, linear: None, match="layers.*")


def test_transforms_compose_outside_in() -> None:
    model = tiny_model()
    for _ in range(2):
        replace_linears(model, lambda _, linear: Doubled(linear))
    wq = model.blocks[1].attention.wq
    assert isinstance(wq.base, Doubled) and isinstance(wq.base.base, nn.Linear)
    assert torch.equal(dense_weight(wq), 4 * wq.base.base.weight)
    assert model.layer_specs[0].num_heads == 4


def test_nested_containers_and_a_shared_layer() -> None:
    shared = nn.Linear(3, 3)
    model = nn.ModuleDict({"a": nn.Sequential(shared, nn.ReLU(), nn.Linear(3, 2)), "b": nn.ModuleList([shared])})
    calls: list[str] = []
    replace_linears(model, lambda name, linear: calls.append(name) or Doubled(linear))
    assert calls == ["a.0", "a.2"]
    assert model["a"][0] is model["b"][0] and isinstance(model["b"][0], Doubled)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="itself a linear"):
        replace_linears(nn.Linear(2, 2), lambda _, linear: None)
    with pytest.raises(ValueError, match="dense_weight"):
        dense_weight(nn.ReLU())


@needs_numba
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fast_model_equals_plain(dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    tokens = torch.randint(0, 61, (1, 7))
    with torch.inference_mode():
        expected = model(tokens).float()
        keys = model.state_dict()
        assert use_fast_linears(model) is model
        assert isinstance(model.lm_head, FastLinear) and model.lm_head.base.weight is model.embed_tokens.weight
        assert sum(t.numel() for t in model.parameters()) == sum(t.numel() for t in tiny_model().parameters())
        assert len(model.state_dict()) == len(keys)
        tolerance = 1e-5 if dtype == torch.float32 else 0.05
        torch.testing.assert_close(model(tokens).float(), expected, rtol=tolerance, atol=tolerance)
    before = model.lm_head
    assert use_fast_linears(model).lm_head is before


@needs_numba
def test_fast_linear_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel for a few rows without gradients, the layer itself for anything else."""
    from minillm.gemm import gemv

    calls: list[int] = []
    multiply = gemv.multiply
    monkeypatch.setattr(gemv, "multiply", lambda *args: calls.append(1) or multiply(*args))
    base = nn.Linear(10, 4)
    fast = FastLinear(base, max_rows=3)
    assert torch.equal(fast.dense_weight(), base.weight) and (fast.in_features, fast.out_features) == (10, 4)

    fast(torch.randn(1, 10)).sum().backward()
    assert base.weight.grad is not None and not calls
    with torch.no_grad():
        for shape, uses_kernel in [((3, 10), True), ((10,), True), ((1, 3, 10), True), ((4, 10), False)]:
            x = torch.randn(shape)
            torch.testing.assert_close(fast(x), base(x))
            assert bool(calls) == uses_kernel
            calls.clear()
        fast.double()
        assert fast(torch.randn(1, 10, dtype=torch.float64)).dtype == torch.float64 and not calls
        with pytest.raises(RuntimeError):
            fast.float()(torch.randn(1, 9))


@needs_numba
def test_fast_linear_sees_new_weights() -> None:
    """Weights are looked up at each call: a cast, an in-place load and an assigned load all take effect."""
    fast = FastLinear(nn.Linear(5, 3))
    x = torch.randn(1, 5)
    with torch.no_grad():
        for change in (
            lambda: fast.base.weight.mul_(2),
            lambda: fast.load_state_dict({"base.weight": torch.ones(3, 5), "base.bias": torch.ones(3)}),
            lambda: fast.load_state_dict({"base.weight": torch.zeros(3, 5), "base.bias": torch.ones(3)}, assign=True),
        ):
            change()
            torch.testing.assert_close(fast(x), fast.base(x))
        assert fast.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_without_numba_the_model_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    assert not can_use_fast_linears()
    model = use_fast_linears(tiny_model())
    assert isinstance(model.lm_head, nn.Linear)
