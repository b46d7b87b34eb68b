"""Latent attention and its checkpoints against `transformers`: DeepSeek-V2 and V3 with dense blocks."""

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
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as deepseek_v2

from minillm.generation.generate import generate
from minillm.model.checkpoint import CheckpointError, load_model, save_model
from minillm.model.mla import FORMS, use_latent_form
from minillm.sampling import SamplingParams
from tests.helpers import TOLERANCE
from tests.hf_models import DEEPSEEK_CASES, make_hf_model

TOKENS = torch.randint(97, (2, 24), generator=torch.Generator().manual_seed(0))
GREEDY_CASES = ["deepseek-v2", "deepseek-v2-yarn", "deepseek-v3-plain-queries", "deepseek-v3-yarn-halves"]
SAVED_AS = {"one file": {}, "sharded": {"max_shard_size": "20KB"}}


@pytest.fixture(autouse=True)
def quiet_transformers() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    yield


@functools.cache
def reference_logits(case: str) -> Tensor:
    """As `transformers` computes them in float64, with norms, softmax and V2's rotation in float32."""
    with torch.no_grad():
        return make_hf_model(case)(TOKENS).logits


@functools.cache
def exact_logits(case: str) -> Tensor:
    """The same in float64 throughout; only the angles of RoPE stay float32, on both sides."""
    hf_model = make_hf_model(case, attention="sdpa")
    for module in hf_model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(exact_norm, module)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(deepseek_v2.DeepseekV2RotaryEmbedding, "forward", exact_angles)
        patch.setattr(deepseek_v2, "apply_rotary_emb", exact_rotation)
        return hf_model(TOKENS).logits


def exact_norm(norm: Any, x: Tensor) -> Tensor:
    return norm.weight * (x / (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt())


def exact_angles(rotary: Any, x: Tensor, position_ids: Tensor) -> Tensor:
    angles = position_ids[..., None].float() * rotary.inv_freq
    cos, sin = angles.cos() * rotary.attention_scaling, angles.sin() * rotary.attention_scaling
    return torch.complex(cos.double(), sin.double())


def exact_rotation(q: Tensor, k: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    pairs = (torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * turns.unsqueeze(1) for x in (q, k))
    q, k = (torch.view_as_real(x).flatten(-2) for x in pairs)
    return q, k


@torch.no_grad()
@pytest.mark.parametrize("saved_as", SAVED_AS)
@pytest.mark.parametrize("case", DEEPSEEK_CASES)
def test_logits_equal_transformers(case: str, saved_as: str, tmp_path: Path) -> None:
    make_hf_model(case).save_pretrained(tmp_path, **SAVED_AS[saved_as])
    assert (tmp_path / "model.safetensors.index.json").exists() == (saved_as == "sharded")
    model, precise = load_model(tmp_path), load_model(tmp_path, dtype=torch.float64)
    for form in FORMS:
        use_latent_form(model, form)
        logits = model(TOKENS)
        assert (logits - reference_logits(case)).abs().max() < TOLERANCE[torch.float32]
        assert torch.equal(logits.argmax(-1), reference_logits(case).argmax(-1))
        use_latent_form(precise, form)
        assert (precise(TOKENS) - exact_logits(case)).abs().max() < 1e-10


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 40_000])
@pytest.mark.parametrize("case", DEEPSEEK_CASES)
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
        tolerance = 2e-5 if "halves" in case else 0.0  # reordered to be stored: other orders of summation
        torch.testing.assert_close(hf_model(TOKENS).logits, reference_logits(case), atol=tolerance, rtol=0)


@pytest.mark.parametrize("case", DEEPSEEK_CASES)
def test_saving_gives_back_every_bit(case: str, tmp_path: Path) -> None:
    """Rows that the loader reorders are put back; a checkpoint in halves is stored interleaved like the others."""
    make_hf_model(case).save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs", dtype="auto")
    save_model(model, tmp_path / "ours")
    theirs, ours = (load_file(tmp_path / folder / "model.safetensors") for folder in ("theirs", "ours"))
    theirs.pop("lm_head.weight" if model.config.tie_embeddings else "", None)
    assert sorted(ours) == sorted(theirs)
    changed = {name.rpartition(".")[0].rpartition(".")[2] for name in ours if not torch.equal(ours[name], theirs[name])}
    assert changed == ({"q_b_proj", "kv_a_proj_with_mqa"} if "halves" in case else set())
    reloaded = load_model(tmp_path / "ours", dtype="auto")
    assert reloaded.config == model.config
    for name, tensor in reloaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("deepseek-v2-yarn", {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}),
        ("deepseek-v3-yarn", {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}),
        ("deepseek-v3-linear", {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}),
        ("deepseek-v2-biases", {"rms_norm_eps": 1e-6}),
        ("deepseek-v3-biases", {"rms_norm_eps": 1e-6}),
        ("deepseek-v3", {"rope_interleave": False}),
        ("deepseek-v3-halves", {"rope_interleave": True}),
    ],
)
def test_the_case_reaches_its_feature(case: str, change: dict[str, Any], tmp_path: Path) -> None:
    make_hf_model(case).save_pretrained(tmp_path)
    hf_config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(hf_config | change))
    with torch.no_grad():
        assert (load_model(tmp_path)(TOKENS) - reference_logits(case)).abs().max() > 1e-3


def test_the_mscales_are_reached(tmp_path: Path) -> None:
    """mscale reaches the rotated part, mscale_all_dim the whole score: leaving out either must show."""
    for case in ("deepseek-v2-yarn", "deepseek-v3-yarn"):
        make_hf_model(case).save_pretrained(tmp_path)
        hf_config = json.loads((tmp_path / "config.json").read_text())
        for name in ("mscale", "mscale_all_dim"):
            changed = hf_config | {"rope_parameters": {**hf_config["rope_parameters"], name: 0.0}}
            (tmp_path / "config.json").write_text(json.dumps(changed))
            with torch.no_grad():
                assert (load_model(tmp_path)(TOKENS) - reference_logits(case)).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", ["deepseek-v2-yarn", "deepseek-v3"])
def test_half_precision_is_as_good_as_theirs(case: str, form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    hf_model = make_hf_model(case)
    hf_model.save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype=dtype)
    use_latent_form(model, form)
    with torch.no_grad():
        error = (model(TOKENS).double() - exact_logits(case)).abs()
        their_error = (hf_model.to(dtype)(TOKENS).logits.double() - exact_logits(case)).abs()
    assert error.max() <= 2 * their_error.max() + 1e-5
    assert error.mean() <= 1.2 * their_error.mean() + 1e-5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", GREEDY_CASES)
def test_greedy_tokens_equal_transformers(case: str, form: str, tmp_path: Path) -> None:
    """Both sides decode with their caches."""
    hf_model = make_hf_model(case)
    hf_model.save_pretrained(tmp_path)
    hf_model.generation_config.eos_token_id = None
    model = load_model(tmp_path)
    use_latent_form(model, form)
    params = SamplingParams(max_new_tokens=24, temperature=0.0, ignore_eos=True)
    num_compared = 0
    for prompt in (TOKENS[:1, :9], TOKENS[1:, :17]):
        expected, num_certain = their_greedy_tokens(hf_model, prompt)
        assert generate(model, prompt[0].tolist(), params)[:num_certain] == expected[:num_certain]
        num_compared += num_certain
    assert num_compared >= 24


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


def test_mixtures_of_experts_are_refused_in_one_line(tmp_path: Path) -> None:
    make_hf_model("deepseek-v3").save_pretrained(tmp_path)
    hf_config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(hf_config | {"first_k_dense_replace": 1}))
    with pytest.raises(CheckpointError, match="the layers from 1 on are mixtures of experts") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_projection_is_named(tmp_path: Path) -> None:
    make_hf_model("deepseek-v3").save_pretrained(tmp_path)
    hf_config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(hf_config | {"q_lora_rank": None}))
    with pytest.raises(CheckpointError, match=r"tensor model\.layers\.0\.self_attn\.q_proj\.weight"):
        load_model(tmp_path)
