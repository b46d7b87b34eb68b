"""The model and its loader against `transformers`: logits and greedy tokens of every supported family."""

from __future__ import annotations

import functools
import json
import logging
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from minillm.generation.generate import generate
from minillm.model.checkpoint import load_model, save_model
from minillm.sampling import SamplingParams
from tests.helpers import TOLERANCE
from tests.hf_models import CASES, make_hf_model

TOKENS = torch.randint(97, (2, 24), generator=torch.Generator().manual_seed(0))
GREEDY_CASES = [
    "llama-mha",
    "llama-llama3",
    "llama-yarn",
    "mistral-window",
    "qwen2-tied",
    "qwen2-windows",
    "qwen3",
]
SAVED_AS = {"one file": {}, "sharded": {"max_shard_size": "20KB"}}


@pytest.fixture(autouse=True)
def quiet_transformers() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    yield


@functools.cache
def reference_logits(case: str) -> Tensor:
    """As `transformers` computes them in float64, norms and softmax in float32: exact to about 1e-5."""
    with torch.no_grad():
        return make_hf_model(case)(TOKENS).logits


@functools.cache
def exact_logits(case: str) -> Tensor:
    """The same with float64 norms and softmax; only the angles of RoPE stay float32, on both sides."""
    hf_model = make_hf_model(case, attention="sdpa")
    with_exact_norms(hf_model)
    with torch.no_grad():
        return hf_model(TOKENS).logits


def with_exact_norms(hf_model: Any) -> None:
    def forward(norm: Any, x: Tensor) -> Tensor:
        return norm.weight * (x / (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt())

    for module in hf_model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(forward, module)


@torch.no_grad()
def assert_same_logits(path: Path, case: str) -> None:
    logits = load_model(path)(TOKENS)
    assert logits.dtype == torch.float32
    assert (logits - reference_logits(case)).abs().max() < TOLERANCE[torch.float32]
    assert torch.equal(logits.argmax(-1), reference_logits(case).argmax(-1))
    assert (load_model(path, dtype=torch.float64)(TOKENS) - exact_logits(case)).abs().max() < 1e-10


@pytest.mark.parametrize("saved_as", SAVED_AS)
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case: str, saved_as: str, tmp_path: Path) -> None:
    make_hf_model(case).save_pretrained(tmp_path, **SAVED_AS[saved_as])
    assert (tmp_path / "model.safetensors.index.json").exists() == (saved_as == "sharded")
    assert_same_logits(tmp_path, case)


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 40_000])
@pytest.mark.parametrize("case", CASES)
def test_transformers_opens_what_was_saved(
    case: str, shard_bytes: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_hf_model(case).save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs", dtype="auto")
    save_model(model, tmp_path / "ours", shard_bytes=shard_bytes)
    transformers.utils.logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        hf_model, info = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
        )
    transformers.utils.logging.disable_propagation()
    assert [record.getMessage() for record in caplog.records] == []
    assert not any(info.values()), info
    assert hf_model.dtype == torch.float64  # as config.json says
    with torch.no_grad():
        assert torch.equal(hf_model(TOKENS).logits, reference_logits(case))


@pytest.mark.parametrize(
    ("case", "without"),
    [(case, "rope_parameters") for case in CASES if "yarn" in case or "llama3" in case or "linear" in case]
    + [(case, "sliding_window") for case in CASES if "window" in case]
    + [("llama-theta-eps", "rms_norm_eps"), ("llama-theta-eps", "rope_parameters")],
)
def test_the_case_reaches_its_feature(case: str, without: str, tmp_path: Path) -> None:
    """A feature that could be left out of the configuration unnoticed would not be tested by its case."""
    make_hf_model(case).save_pretrained(tmp_path)
    hf_config = json.loads((tmp_path / "config.json").read_text())
    hf_config[without] = 1e-6 if without == "rms_norm_eps" else None
    (tmp_path / "config.json").write_text(json.dumps(hf_config))
    with torch.no_grad():
        assert (load_model(tmp_path)(TOKENS) - reference_logits(case)).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["llama-llama3", "mistral-window", "qwen2-windows", "qwen3"])
def test_half_precision_is_as_good_as_theirs(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    hf_model = make_hf_model(case)
    hf_model.save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype=dtype)
    with torch.no_grad():
        error = (model(TOKENS).double() - exact_logits(case)).abs()
        their_error = (hf_model.to(dtype)(TOKENS).logits.double() - exact_logits(case)).abs()
    assert error.max() <= 2 * their_error.max() + 1e-5
    assert error.mean() <= 1.2 * their_error.mean() + 1e-5


@pytest.mark.parametrize("case", GREEDY_CASES)
def test_greedy_tokens_equal_transformers(case: str, tmp_path: Path) -> None:
    hf_model = make_hf_model(case)
    hf_model.save_pretrained(tmp_path)
    hf_model.generation_config.eos_token_id = None
    model = load_model(tmp_path)
    params = SamplingParams(max_new_tokens=24, temperature=0.0, ignore_eos=True)
    num_compared = 0
    for prompt in (TOKENS[:1, :9], TOKENS[1:, :17]):
        expected, num_certain = their_greedy_tokens(hf_model, prompt)
        assert generate(model, prompt[0].tolist(), params)[:num_certain] == expected[:num_certain]
        num_compared += num_certain
    assert num_compared >= 24


@pytest.mark.parametrize("case", ["llama-mha", "mistral-window", "qwen2-tied", "qwen3"])
def test_both_stop_at_the_same_end_token(case: str, tmp_path: Path) -> None:
    """One of several end tokens, read from their folder, then written to ours."""
    hf_model = make_hf_model(case)
    prompt = TOKENS[:1, :9]
    hf_model.generation_config.eos_token_id = None
    endless, num_certain = their_greedy_tokens(hf_model, prompt)
    assert num_certain > 5
    end = endless[5]
    hf_model.generation_config.eos_token_id = [96, end]
    hf_model.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    assert model.config.eos_token_ids == (96, end)
    save_model(model, tmp_path / "ours")
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float64)

    expected = endless[: endless.index(end) + 1]
    assert their_greedy_tokens(reloaded, prompt)[0] == expected
    assert generate(model, prompt[0].tolist(), SamplingParams(temperature=0.0)) == expected


def their_greedy_tokens(hf_model: Any, prompt: Tensor) -> tuple[list[int], int]:
    """24 new tokens, and how many of them come before the two best logits first differ by less than 1e-3."""
    result = hf_model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=24,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = torch.stack(result.logits)[:, 0].topk(2).values
    uncertain = (best[:, 0] - best[:, 1] < 1e-3).tolist()
    new_tokens = result.sequences[0, prompt.shape[1] :].tolist()
    return new_tokens, uncertain.index(True) if True in uncertain else len(uncertain)
