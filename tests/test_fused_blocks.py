"""Fused blocks compute what the plain ones do, and step aside where they can't."""

from __future__ import annotations

import copy

import pytest
import torch

from minillm.cache import ContiguousCache
from minillm.fast_linears import can_use_fast_linears, use_fast_linears
from minillm.fused_blocks import FusedBlock, can_fuse, use_fused_blocks
from minillm.generation.generate import generate, generate_batch, generate_uncached
from minillm.model.checkpoint import load_model, save_model
from minillm.model.transformer import Transformer
from minillm.sampling import SamplingParams
from minillm.transform import replace_linears
from tests.helpers import tiny_model

pytestmark = pytest.mark.skipif(not can_use_fast_linears(), reason="numba is not installed")
FUSIBLE = ("llama", "mistral", "qwen2")


def fused_and_plain(family: str, dtype: torch.dtype) -> tuple[Transformer, Transformer]:
    plain = tiny_model(family, seed=3).to(dtype).requires_grad_(False)
    fused = use_fused_blocks(use_fast_linears(copy.deepcopy(plain)))
    assert all(isinstance(block, FusedBlock) for block in fused.blocks)
    return fused, plain


@pytest.mark.parametrize("family", FUSIBLE)
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 4), (5,)])
@torch.inference_mode()
def test_equals_the_plain_model_in_float64(family: str, shape: tuple[int, ...]) -> None:
    fused, plain = fused_and_plain(family, torch.float32)
    tokens = torch.randint(plain.config.vocab_size, shape, generator=torch.Generator().manual_seed(1))
    expected = copy.deepcopy(plain).double()(tokens)
    torch.testing.assert_close(fused(tokens).double(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", FUSIBLE)
@torch.inference_mode()
def test_bf16_is_no_worse_than_the_plain_model(family: str) -> None:
    fused, plain = fused_and_plain(family, torch.bfloat16)
    tokens = torch.randint(plain.config.vocab_size, (2, 3), generator=torch.Generator().manual_seed(1))
    exact = copy.deepcopy(plain).double()(tokens)
    error, plain_error = ((model(tokens) - exact).abs().max() for model in (fused, plain))
    assert error <= 2 * plain_error + 1e-5


@pytest.mark.parametrize("num_threads", [1, 7])
@torch.inference_mode()
def test_every_number_of_threads_computes_every_output(num_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fused, plain = fused_and_plain("llama", torch.float32)
    monkeypatch.setattr("minillm.gemm.gemv.threads_for", lambda num_bytes: num_threads)
    tokens = torch.tensor([[3, 1, 4]])
    torch.testing.assert_close(fused(tokens), plain(tokens), atol=2e-5, rtol=0)


def test_decodes_the_same_tokens_through_a_cache() -> None:
    fused, plain = fused_and_plain("qwen2", torch.float32)
    params = SamplingParams(max_new_tokens=12, temperature=0, ignore_eos=True)
    prompts = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [3, 4]]  # the first prefill is too long to be fused
    expected = [generate_uncached(plain, prompt, params) for prompt in prompts]
    assert [generate(fused, prompt, params) for prompt in prompts] == expected
    assert generate_batch(fused, prompts, params) == expected


@torch.inference_mode()
def test_positions_shared_by_rows_are_spread_to_each() -> None:
    fused, plain = fused_and_plain("llama", torch.float32)
    tokens = torch.tensor([[3, 1], [4, 1], [5, 9]])
    for model in (fused, plain):
        cache = ContiguousCache(model.layer_specs, 3)
        attend = cache.begin([2, 2, 2])
        logits = model(tokens, torch.tensor([[0, 1]]), attend)
        if model is fused:
            found = logits
    torch.testing.assert_close(found, logits, atol=2e-5, rtol=0)


def test_steps_aside_for_gradients_many_rows_and_other_dtypes() -> None:
    fused, plain = fused_and_plain("llama", torch.float32)
    for parameter in fused.parameters():
        parameter.requires_grad_(True)
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(fused(tokens), plain(tokens))
    fused(tokens).sum().backward()
    assert all(parameter.grad is not None for parameter in fused.blocks.parameters())
    with torch.inference_mode():
        many = torch.ones(9, 1, dtype=torch.int64)
        torch.testing.assert_close(fused(many), plain(many))
        assert fused.double()(tokens).dtype == torch.float64


def test_blocks_with_unknown_parts_stay_as_they_are() -> None:
    qwen3 = tiny_model("qwen3")  # normalises q and k
    assert not any(can_fuse(block) for block in qwen3.blocks)
    assert not any(isinstance(block, FusedBlock) for block in use_fused_blocks(qwen3).blocks)

    class Wrapped(torch.nn.Module):
        def __init__(self, base: torch.nn.Module) -> None:
            super().__init__()
            self.base, self.in_features, self.out_features = base, base.in_features, base.out_features

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.base(x)

        def dense_weight(self) -> torch.Tensor:
            return 2 * self.base.weight

    adapted = replace_linears(tiny_model("llama"), lambda name, linear: Wrapped(linear), match="blocks.0.attention.wq")
    assert [can_fuse(block) for block in adapted.blocks] == [False] + [True] * (len(adapted.blocks) - 1)


def test_a_fused_model_is_saved_as_the_plain_one(tmp_path) -> None:
    fused, plain = fused_and_plain("llama", torch.float32)
    save_model(fused, tmp_path)
    loaded = load_model(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), plain.parameters(), strict=True))
