"""Plans against published throughput, against capacity counted by hand, and against themselves under changes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.perf.cost import Phase, operations, total
from minillm.perf.deployment import Assumptions, Deployment
from minillm.perf.hardware import GIB, find_hardware
from minillm.perf.model_shape import ModelShape, read_shape
from minillm.perf.plan import Plan, plan, prefill_phases, timed
from minillm.perf.plan_report import as_document, report
from minillm.perf.precision import Precision
from minillm.perf.sharding import communication, shard


def llama(**changes: Any) -> ModelShape:
    base = {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32,
    }  # fmt: skip
    return read_shape({**base, **changes})


LLAMA_2_7B = llama()
LLAMA_3_8B = llama(vocab_size=128256, intermediate_size=14336, num_key_value_heads=8)
LLAMA_2_70B = llama(
    hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8
)
MIXTRAL = llama(
    model_type="mixtral", intermediate_size=14336, num_key_value_heads=8, num_local_experts=8, num_experts_per_tok=2
)
A100, H100 = find_hardware("a100"), find_hardware("h100")

# Output tokens a second of all requests, NVIDIA/TensorRT-LLM 0.6.1, docs/source/performance.md ("Peak Throughput";
# there per GPU for the H100, here for all). fp8 on the H100, fp16 on the A100.
TENSORRT_LLM = [
    # model, GPU, GPUs, batch, prompt, output, tokens/s
    (LLAMA_2_7B, "a100", 1, 384, 128, 128, 5586),
    (LLAMA_2_7B, "a100", 1, 60, 128, 2048, 1928),
    (LLAMA_2_7B, "a100", 1, 52, 2048, 128, 591),
    (LLAMA_2_7B, "a100", 2, 64, 2048, 2048, 2 * 782),
    (LLAMA_2_70B, "a100", 4, 1280, 128, 128, 4 * 670),
    (LLAMA_2_70B, "a100", 4, 240, 128, 2048, 4 * 525),
    (LLAMA_2_70B, "a100", 4, 120, 2048, 128, 4 * 79),
    (LLAMA_2_7B, "h100", 1, 768, 128, 128, 19694),
    (LLAMA_2_7B, "h100", 1, 112, 128, 2048, 6818),
    (LLAMA_2_7B, "h100", 1, 80, 2048, 128, 2244),
    (LLAMA_2_7B, "h100", 1, 48, 2048, 2048, 2740),
    (LLAMA_2_70B, "h100", 2, 1024, 128, 128, 2 * 2657),
    (LLAMA_2_70B, "h100", 4, 480, 128, 2048, 4 * 1486),
    (LLAMA_2_70B, "h100", 2, 96, 2048, 128, 2 * 306),
    (LLAMA_2_70B, "h100", 2, 64, 2048, 2048, 2 * 547),
]
# Milliseconds to the first token of 2048, batch 1, the same document, "Low Latency" (0.5).
FIRST_TOKEN = [
    (LLAMA_2_7B, "a100", 1, 133),
    (LLAMA_2_70B, "a100", 4, 377),
    (LLAMA_2_7B, "h100", 1, 36),
    (LLAMA_2_70B, "h100", 4, 109),
]
# Tokens a second of one sequence after a prompt of 5 tokens, pytorch-labs/gpt-fast README, A100 80GB.
GPT_FAST = [
    (LLAMA_2_7B, 1, 16, None, 104.9),
    (LLAMA_2_7B, 1, 8, None, 155.58),
    (LLAMA_2_7B, 1, 4, 32, 196.8),
    (LLAMA_2_7B, 8, 16, None, 328.43),
    (LLAMA_2_70B, 1, 8, None, 19.13),
    (LLAMA_2_70B, 2, 16, None, 21.32),
    (LLAMA_2_70B, 8, 16, None, 62.5),
]


def test_published_throughput() -> None:
    """Everything published lies below the bound, and most of it near the estimate."""
    ratios = []
    for shape, gpu, tp_size, batch_size, prompt_len, output_len, published in TENSORRT_LLM:
        bits = 8 if gpu == "h100" else 16
        result = plan(
            shape, find_hardware(gpu), batch_size=batch_size, prompt_len=prompt_len, output_len=output_len, bits=bits,
            activation_bits=bits, kv_bits=bits, tp_size=tp_size,
        )  # fmt: skip
        assert published < result.most_tokens_per_s
        ratios.append(published / result.tokens_per_s)
        # What ran did fit, in all of the memory if not in 90 % of it.
        assert replace(result.deployment, assumptions=Assumptions(memory_share=1.0)).memory.fits
    assert max(ratios) < 1.3 and sum(ratio > 0.7 for ratio in ratios) == 12
    assert sorted(ratios)[7] == pytest.approx(1, abs=0.15)  # the median


@pytest.mark.parametrize(("shape", "gpu", "tp_size", "milliseconds"), FIRST_TOKEN)
def test_published_first_token_takes_longer_than_the_bound(
    shape: ModelShape, gpu: str, tp_size: int, milliseconds: float
) -> None:
    bits = 8 if gpu == "h100" else 16
    result = plan(
        shape, find_hardware(gpu), prompt_len=2048, output_len=1, bits=bits, activation_bits=bits, tp_size=tp_size
    )
    assert result.prefill.least_s < milliseconds / 1e3
    assert result.ttft_s * 1e3 == pytest.approx(milliseconds, rel=0.25)


def test_default_mfu_is_below_what_was_measured() -> None:
    for shape, _, tp_size, milliseconds in FIRST_TOKEN[:2]:
        flops = total(operations(shard(shape, tp_size), Phase.prefill(1, 2048))).flops
        assert 0.6 < flops / (milliseconds / 1e3) / A100.peak("bf16") < 0.7


@pytest.mark.parametrize(("shape", "tp_size", "bits", "group_size", "published"), GPT_FAST)
def test_published_decoding_stays_below_the_bound(
    shape: ModelShape, tp_size: int, bits: int, group_size: int | None, published: float
) -> None:
    result = plan(shape, A100, prompt_len=5, output_len=200, bits=bits, group_size=group_size, tp_size=tp_size)
    assert published < 1 / result.least_itl_mean_s
    if bits == 16 and tp_size == 1:
        assert published == pytest.approx(1 / result.itl_mean_s, rel=0.05)


# ---- memory


def test_memory_by_hand() -> None:
    result = plan(LLAMA_3_8B, H100, batch_size=32, prompt_len=4096, output_len=512)
    memory = result.memory
    assert memory.weights == 2 * 8_030_261_248
    assert memory.kv_cache == 32 * 4608 * 128 * 1024 == 18 * GIB
    assert memory.budget == int(0.9 * 80 * GIB)
    assert memory.left == memory.budget - memory.weights - memory.kv_cache - memory.workspace and memory.fits
    assert 0 < memory.workspace < 2 * GIB
    halved = plan(LLAMA_3_8B, H100, batch_size=32, prompt_len=4096, output_len=512, bits=8, kv_bits=8).memory
    assert halved.kv_cache == 9 * GIB and memory.weights / 2 < halved.weights < memory.weights / 2 * 1.2


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8000), st.integers(1, 2000), st.sampled_from(["a10", "l4", "h100"]), st.sampled_from([16, 8, 4]))
def test_the_largest_batch_is_the_largest(prompt_len: int, output_len: int, gpu: str, bits: int) -> None:
    precision = Precision(bits=bits)
    wanted = Deployment(LLAMA_3_8B, find_hardware(gpu), 1, prompt_len, output_len, precision)
    largest = wanted.largest_batch()
    if largest:
        assert replace(wanted, batch_size=largest).memory.fits
    assert not replace(wanted, batch_size=largest + 1).memory.fits


def test_ways_to_fit() -> None:
    def ways(shape: ModelShape, gpu: str, **options: Any) -> tuple[str, ...]:
        return plan(shape, find_hardware(gpu), prompt_len=512, output_len=128, **options).ways_to_fit

    assert ways(LLAMA_3_8B, "h100") == ()
    assert ways(MIXTRAL, "a100") == ("--bits 8", "--tp 2")
    assert ways(LLAMA_3_8B, "a10", batch_size=400) == ("--batch 73", "--tp 4")
    wide = {"hidden_size": 12288, "intermediate_size": 49152, "num_attention_heads": 96}
    (combined,) = ways(llama(num_hidden_layers=96, **wide), "l4")
    assert combined == "--bits 4 --kv-bits 8 --tp 8"
    assert ways(llama(num_hidden_layers=960, **wide), "l4") == ()
    assert "nor would it" in report(plan(llama(num_hidden_layers=960, **wide), H100, prompt_len=9, output_len=9))
    for shape, gpu, options in ((MIXTRAL, "a100", {}), (LLAMA_3_8B, "a10", {"batch_size": 400})):
        for way in ways(shape, gpu, **options):
            words = way.split()
            names = {"--batch": "batch_size", "--bits": "bits", "--tp": "tp_size", "--kv-bits": "kv_bits"}
            changed = {names[words[i]]: int(words[i + 1]) for i in range(0, len(words), 2)}
            hardware = find_hardware(gpu)
            assert plan(shape, hardware, prompt_len=512, output_len=128, **{**options, **changed}).memory.fits, way


# ---- time


def test_times_by_hand() -> None:
    """A decode step of one sequence on the A100: all weights and the cache, at 0.7 of 2039 GB/s."""
    result = plan(LLAMA_2_7B, A100, prompt_len=1, output_len=2)
    step = total(operations(LLAMA_2_7B, Phase.decode(1, 2)))
    assert result.first == result.last == result.middle
    assert result.first.seconds == pytest.approx(step.num_bytes / (0.7 * 2039e9))
    assert result.first.least_s == pytest.approx((step.weight_bytes + step.kv_bytes) / 2039e9)
    assert result.itl_mean_s == result.first.seconds
    assert result.tokens_per_s == pytest.approx(2 / (result.ttft_s + result.itl_mean_s))
    assert result.first.bound == "memory"
    long = plan(LLAMA_2_7B, A100, prompt_len=4096, output_len=1)
    assert long.prefill.bound == "compute"
    assert long.prefill.least_s == pytest.approx(total(operations(LLAMA_2_7B, Phase.prefill(1, 4096))).flops / 312e12)


def test_prompts_one_after_the_other() -> None:
    result = plan(LLAMA_2_7B, A100, batch_size=3, prompt_len=5000, output_len=2)  # chunks of 8192 hold one prompt
    one, three = result.prefill, result.prefill_batch
    assert three.seconds == pytest.approx(3 * one.seconds) and three.least_s == pytest.approx(3 * one.least_s)
    assert [(part * 3, 3 * seconds) for part, seconds in one.operations] == [
        (part, pytest.approx(seconds)) for part, seconds in three.operations
    ]
    assert result.ttft_s == one.seconds and result.ttft_batch_s == three.seconds


def test_the_mean_step_is_the_mean_of_all_steps() -> None:
    result = plan(LLAMA_3_8B, H100, batch_size=8, prompt_len=100, output_len=60)
    # The first token comes from the prefill: 59 steps, the first of which sees 101 tokens.
    every = [timed(result.deployment, [Phase.decode(8, seq_len)]) for seq_len in range(101, 160)]
    assert result.itl_mean_s == pytest.approx(sum(step.seconds for step in every) / 59, rel=1e-6)
    assert result.least_itl_mean_s == pytest.approx(sum(step.least_s for step in every) / 59, rel=1e-6)
    assert result.first.seconds == pytest.approx(every[0].seconds)
    assert result.last.seconds == pytest.approx(every[-1].seconds)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 50), st.integers(1, 60))
def test_chunks_cover_all_prompts(batch_size: int, prompt_len: int, chunk: int) -> None:
    phases = prefill_phases(batch_size, prompt_len, chunk)
    assert sum(phase.num_tokens for phase in phases) == batch_size * prompt_len
    assert all(phase.num_tokens <= chunk for phase in phases)
    assert sum(phase.num_pairs(None) for phase in phases) == batch_size * prompt_len * (prompt_len + 1) // 2
    assert sum(phase.batch_size * phase.num_logits for phase in phases) == batch_size


def test_where_decoding_turns_compute_bound() -> None:
    result = plan(LLAMA_3_8B, H100, prompt_len=4096, output_len=512)
    assert result.compute_bound_from is None  # every sequence brings a cache of its own
    batch = result.linears_compute_bound_from
    assert batch is not None
    for batch_size, expected in ((batch - 1, False), (batch, True)):
        found = operations(LLAMA_3_8B, Phase.decode(batch_size, 4352))
        linears = total(part for part in found if part.kind == "linear")
        assert (linears.intensity >= H100.ridge()) == expected
    # With next to nothing in the cache, the whole step gets there.
    short = plan(LLAMA_3_8B, A100, prompt_len=1, output_len=2)
    assert short.compute_bound_from is not None and short.compute_bound_from >= short.linears_compute_bound_from


def test_better_hardware_and_fewer_bits_are_never_slower() -> None:
    def itl(**options: Any) -> float:
        settings = {"hardware": A100, "batch_size": 16, "prompt_len": 1000, "output_len": 100, **options}
        return plan(LLAMA_2_70B, **settings).itl_mean_s

    assert itl(hardware=find_hardware("h200")) < itl(hardware=H100) < itl()
    assert itl(bits=4) < itl(bits=8) < itl()
    assert itl(kv_bits=8) < itl()
    assert itl(tp_size=8) < itl(tp_size=4) < itl(tp_size=2) < itl()
    assert itl(assumptions=Assumptions(mbu=1.0)) < itl()


# ---- several GPUs


@pytest.mark.parametrize("tp_size", [2, 4, 8])
@pytest.mark.parametrize("shape", [LLAMA_2_7B, LLAMA_2_70B, MIXTRAL], ids=lambda shape: str(shape.num_parameters))
def test_shards_add_up(shape: ModelShape, tp_size: int) -> None:
    part = shard(shape, tp_size)
    norms = sum(layer.num_norm_parameters for layer in shape.layers) + shape.final_norm_numbers
    routers = sum(m.num_parameters for layer in shape.layers for m in layer.matrices if m.name == "router")
    replicated = norms + routers
    assert tp_size * (part.num_parameters - replicated) == shape.num_parameters - replicated
    assert part.kv_numbers_per_token * tp_size == shape.kv_numbers_per_token
    phase = Phase.decode(4, 100)
    whole, shared = total(operations(shape, phase)), total(operations(part, phase))
    router_flops = sum(p.flops for p in operations(shape, phase) if p.name == "router")
    assert tp_size * (shared.flops - router_flops) == whole.flops - router_flops


def test_few_kv_heads_and_latents_are_copied() -> None:
    assert {layer.attention.num_kv_heads for layer in shard(llama(num_key_value_heads=2), 8).layers} == {1}
    latent = llama(
        model_type="deepseek_v3", moe_intermediate_size=256, n_routed_experts=8, num_experts_per_tok=2,
        kv_lora_rank=512, q_lora_rank=1536, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
    )  # fmt: skip
    assert shard(latent, 4).kv_numbers_per_token == latent.kv_numbers_per_token == 32 * 576


def test_all_reduces() -> None:
    """Two a layer, of 2 bytes · b · s · h; a rank of a ring of p sends 2(p − 1)/p of that."""
    exchange = communication(LLAMA_2_7B, Phase.prefill(2, 100), Precision(), 4)
    assert exchange.count == 64
    assert exchange.num_bytes == pytest.approx(64 * 2 * (3 / 4) * 2 * 2 * 100 * 4096)
    result = plan(LLAMA_2_7B, A100, batch_size=2, prompt_len=100, output_len=2, tp_size=4)
    assert result.prefill_batch.communication_bytes == pytest.approx(exchange.num_bytes)
    expected = 64 * 20e-6 + exchange.num_bytes / 300e9
    assert result.prefill_batch.communication_s == pytest.approx(expected)
    slow = plan(LLAMA_2_7B, find_hardware("a100 pcie"), prompt_len=2000, output_len=2, tp_size=8)
    assert slow.prefill.bound == "communication"
    assert plan(LLAMA_2_7B, A100, prompt_len=10, output_len=2).prefill.communication_s == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be"),
        ({"prompt_len": 0}, "prompt_len must be"),
        ({"output_len": 0}, "output_len must be"),
        ({"tp_size": 0}, "tp_size must be"),
        ({"tp_size": 3}, "can't be shared out to 3 ranks"),
        ({"tp_size": 64}, "can't be shared out to 64 ranks"),
        ({"bits": 7}, "bits must be"),
        ({"bits": 8, "activation_bits": 8, "hardware": replace(A100, peaks=replace(A100.peaks, int8=None))}, "int8"),
        ({"tp_size": 2, "hardware": replace(A100, link_bytes_per_s=0.0)}, "no link"),
        (
            {"shape": read_shape({"model_type": "gpt2", "vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 2})},
            "1024",
        ),
    ],
)
def test_impossible_deployments(options: dict[str, Any], message: str) -> None:
    settings = {"shape": LLAMA_2_7B, "hardware": A100, "prompt_len": 1000, "output_len": 100, **options}
    with pytest.raises(ValueError, match=message):
        plan(settings.pop("shape"), settings.pop("hardware"), **settings)


@pytest.mark.parametrize("wrong", [{"mfu": 0.0}, {"mbu": 1.1}, {"memory_share": -1}, {"prefill_chunk": 0}])
def test_impossible_assumptions(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Assumptions(**wrong)


# ---- text


PLANS: dict[str, Plan] = {
    "fits": plan(LLAMA_3_8B, H100, batch_size=32, prompt_len=4096, output_len=512),
    "does not": plan(MIXTRAL, A100, batch_size=300, prompt_len=512, output_len=128),
    "shared": plan(
        LLAMA_2_70B, H100, batch_size=1024, prompt_len=128, output_len=1, tp_size=8, bits=8, activation_bits=8
    ),
    "small": plan(read_shape("stories-5m"), find_hardware("4090"), prompt_len=1, output_len=2, bits=32),
}


@pytest.mark.parametrize("name", PLANS)
def test_report(name: str) -> None:
    result = PLANS[name]
    text = report(result)
    assert max(map(len, text.splitlines())) <= 100
    assert not [line for line in text.splitlines() if line != line.rstrip()]
    assert ("It fits" in text) == result.memory.fits != ("IT DOES NOT FIT" in text)
    assert f"{result.tokens_per_s:,.1f}" in text and "--mfu" in text
    assert ("all-reduces" in text) == (result.deployment.tp_size > 1)
    for part, _ in result.middle.operations:
        assert part.name in text
    document = json.loads(json.dumps(as_document(result), allow_nan=False))
    assert document["fits"] == result.memory.fits and document["ttft_s"] == result.ttft_s
    assert document["memory_bytes"]["weights"] == result.memory.weights


def test_report_says_why() -> None:
    assert "attention stays at 4.0" in " ".join(report(PLANS["fits"]).split())
    assert "--bits 8, or --tp 2" in report(PLANS["does not"]) and "12.88 B of them for each token" in report(
        PLANS["does not"]
    )
    guessed = plan(llama(model_type="novel"), H100, prompt_len=9, output_len=9)
    assert "'novel' is unknown here and read as a Llama" in report(guessed)
    windowed = plan(llama(model_type="mistral", sliding_window=100), H100, prompt_len=900, output_len=9)
    assert "beyond a window" in report(windowed) and "Launching kernels" not in report(windowed)
    assert "Launching kernels" in report(PLANS["small"])
    long = plan(llama(max_position_embeddings=100), H100, prompt_len=90, output_len=11)
    assert "made for 100 tokens, fewer than these 101" in report(long)
