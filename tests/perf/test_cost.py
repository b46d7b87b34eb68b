"""FLOPs against a counter on live forwards, bytes against live modules and caches, pairs against brute force."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm import load_model
from minillm.bench.decode import SIZES, random_model
from minillm.cache import ContiguousCache
from minillm.config import ModelConfig
from minillm.generation.generate import last_logits, make_cache
from minillm.model.transformer import Transformer
from minillm.perf.cost import Operation, Phase, operations, total
from minillm.perf.flops import count_flops
from minillm.perf.formulas import block_weight_bytes, experts_touched, gemm_bytes, gemm_flops, kv_cache_bytes
from minillm.perf.model_shape import read_shape
from minillm.perf.precision import Precision, kv_cache_bytes_per_token, stored_kv_bytes, stored_weight_bytes
from minillm.perf.traffic import decode_bytes_per_step, weight_bytes_per_step

FP32, FP16 = Precision(bits=32), Precision()
LATENT = {
    "model_type": "deepseek_v3", "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96,
    "moe_intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
    "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
    "q_lora_rank": 24, "kv_lora_rank": 32,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12, "n_group": 2, "topk_group": 1,
}  # fmt: skip
OPT = {
    "model_type": "opt", "vocab_size": 300, "hidden_size": 64, "ffn_dim": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 64,
}  # fmt: skip


def of_kind(parts: list[Operation], kind: str) -> Operation:
    return total(part for part in parts if part.kind == kind)


# ---- phases


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 30), st.one_of(st.none(), st.integers(1, 40)))
def test_pairs_and_keys_by_brute_force(batch_size: int, query_len: int, cached: int, window: int | None) -> None:
    phase = Phase(batch_size, query_len, cached + query_len)
    seen = [
        (query, key)
        for query in range(cached, cached + query_len)
        for key in range(query + 1)
        if window is None or query - key < window
    ]
    assert phase.num_pairs(window) == batch_size * len(seen)
    assert phase.num_keys_read(window) == batch_size * len({key for _, key in seen})


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 2, 1), (1, 1, 1, 2), (1, 1, 1, -1)])
def test_impossible_phases(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Phase(*numbers)


# ---- FLOPs


@pytest.mark.parametrize("size", ["tiny", "stories-5m"])
def test_flops_of_a_live_prefill(size: str) -> None:
    """The counter sees whole squares of scores; half of them, and the diagonal, are causal."""
    model, shape = live(size)
    batch_size, n = 2, 13
    tokens = [[1] * n] * batch_size

    def prefill() -> None:
        last_logits(model, make_cache(model, batch_size=batch_size, max_seq_len=n), tokens)

    parts = operations(shape, Phase.prefill(batch_size, n), FP32)
    attention = of_kind(parts, "attention").flops
    assert attention * 2 * n % (n + 1) == 0
    with torch.inference_mode():
        assert count_flops(prefill) == of_kind(parts, "linear").flops + attention * 2 * n // (n + 1)


@pytest.mark.parametrize("size", ["tiny", "stories-5m"])
def test_flops_of_a_live_decode_step(size: str) -> None:
    model, shape = live(size)
    cache = make_cache(model, batch_size=3, max_seq_len=20)
    with torch.inference_mode():
        last_logits(model, cache, [[1] * 11] * 3)
        counted = count_flops(lambda: last_logits(model, cache, [[1]] * 3))
    assert counted == total(operations(shape, Phase.decode(3, 12), FP32)).flops


def test_flops_of_experts_and_latents_in_transformers() -> None:
    """DeepSeek-V3's own code: MLA expanded, each token through its experts. All logits, and square attention."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(**LATENT, experts_implementation="eager", attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    n = 9
    with torch.inference_mode():
        counted = count_flops(lambda: model(torch.arange(n)[None], use_cache=False))
    parts = operations(read_shape(LATENT), Phase(1, n, n, num_logits=n), FP32)
    # Its rotation multiplies positions with frequencies as a matrix product: (rope_dim / 2, 1) × (1, n).
    rotation = gemm_flops(LATENT["qk_rope_head_dim"] // 2, n, 1)
    expected = of_kind(parts, "linear").flops + of_kind(parts, "attention").flops * 2 * n / (n + 1)
    assert counted in (expected, expected + rotation)


def test_flops_of_opt_in_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(**OPT, attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    n = 7
    with torch.inference_mode():
        counted = count_flops(lambda: model(torch.arange(n)[None], use_cache=False))
    parts = operations(read_shape(OPT), Phase(1, n, n, num_logits=n), FP32)
    assert counted == of_kind(parts, "linear").flops + of_kind(parts, "attention").flops * 2 * n / (n + 1)


def test_chunks_compute_what_a_whole_prefill_does() -> None:
    shape = read_shape("stories-5m")
    whole = total(operations(shape, Phase.prefill(2, 100)))
    chunks = [Phase(2, 40, 40, 0), Phase(2, 40, 80, 0), Phase(2, 20, 100, 1)]
    assert sum(total(operations(shape, chunk)).flops for chunk in chunks) == whole.flops


def test_absorbed_attention_multiplies_the_latents() -> None:
    """DeepSeek-V2, appendix on absorption: scores over 32 + 8 numbers, values of 32, for every head."""
    shape = read_shape(LATENT)
    step = {part.name: part for part in operations(shape, Phase.decode(2, 50), FP16)}
    assert step["attention"].flops == 3 * 2 * 2 * 50 * 4 * ((32 + 8) + 32)
    assert step["attention"].kv_bytes == 3 * 2 * (50 + 1) * (32 + 8) * 2
    for n in (1, 50):
        whole = {part.name: part for part in operations(shape, Phase.prefill(1, n), FP16)}
        assert whole["attention"].flops == 3 * 2 * (n * (n + 1) // 2) * 4 * ((16 + 8) + 12)
    chunk = {part.name: part for part in operations(shape, Phase(1, 2, 50), FP16)}
    assert chunk["attention"].flops == 3 * 2 * (49 + 50) * 4 * ((32 + 8) + 32)


# ---- bytes


def live(size: str) -> tuple[Transformer, object]:
    model = load_model(size) if size == "stories-5m" else random_model(SIZES[size], torch.float32)
    return model, read_shape(model.config.to_hf())


CONFIGS = {
    "plain": SIZES["tiny"],
    "untied": replace(SIZES["tiny"], tie_embeddings=False),
    "windows and biases": replace(
        SIZES["tiny"], tie_embeddings=False, model_type="qwen2", qkv_bias=True, windows=(None, 5)
    ),
    "norms of q and k": replace(SIZES["tiny"], model_type="qwen3", qk_norm=True),
    "one kv head": replace(SIZES["tiny"], num_kv_heads=1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_bytes_of_live_modules(config: ModelConfig, batch_size: int, dtype: torch.dtype) -> None:
    model, shape = random_model(config, dtype), read_shape(config.to_hf())
    precision = Precision(bits=32 if dtype == torch.float32 else 16)
    for seq_len in (1, 4, 5, 9):
        step = total(operations(shape, Phase.decode(batch_size, seq_len), precision))
        assert step.weight_bytes == weight_bytes_per_step(model, batch_size=batch_size)
        expected = decode_bytes_per_step(model, seq_len, batch_size=batch_size)
        assert step.weight_bytes + step.kv_bytes == expected
    assert stored_weight_bytes(shape, precision) == sum(p.nbytes for p in model.parameters())
    cache = ContiguousCache(model.layer_specs, 1, dtype=dtype)
    assert kv_cache_bytes_per_token(shape, precision) == cache.bytes_per_token


def test_stored_cache_stops_at_the_window() -> None:
    shape = read_shape(CONFIGS["windows and biases"].to_hf())
    of_a_layer = shape.kv_numbers_per_token  # of two layers, 16 bits each
    assert stored_kv_bytes(shape, FP16, 5) == 5 * of_a_layer * 2
    assert stored_kv_bytes(shape, FP16, 9) == (9 + 5) * of_a_layer
    assert stored_kv_bytes(shape, Precision(kv_bits=4), 9) == (9 + 5) * of_a_layer // 4


def test_a_prefill_writes_and_reads_its_cache_once() -> None:
    shape = read_shape("stories-5m")
    parts = operations(shape, Phase.prefill(3, 40), FP16)
    assert total(parts).kv_bytes == 2 * 3 * 40 * kv_cache_bytes_per_token(shape, FP16)
    assert total(operations(shape, Phase(3, 10, 40), FP16)).kv_bytes == (40 + 10) * 3 * kv_cache_bytes_per_token(
        shape, FP16
    )


def test_tables_are_read_a_row_a_token() -> None:
    (embedding,) = (part for part in operations(read_shape(OPT), Phase.prefill(2, 5), FP16) if part.name == "embedding")
    assert embedding.weight_bytes == 2 * 5 * (64 + 64) * 2 and embedding.activation_bytes == 2 * 5 * 64 * 2


def test_a_linear_is_a_gemm() -> None:
    shape = read_shape("stories-5m")
    (wq,) = (part for part in operations(shape, Phase.decode(8, 5), FP16) if part.name == "wq")
    assert wq.flops == 6 * gemm_flops(8, 256, 256) and wq.num_bytes == 6 * gemm_bytes(8, 256, 256)
    assert wq.intensity == wq.flops / wq.num_bytes


def test_napkin_formulas_are_this_model_in_small() -> None:
    """Both count the same where both apply: OPT's blocks without biases and norms, its cache to the byte."""
    shape = read_shape({**OPT, "enable_bias": False, "layer_norm_elementwise_affine": False})
    blocks = sum(matrix.num_parameters for layer in shape.layers for matrix in layer.matrices)
    assert 2 * blocks == block_weight_bytes(2, 64, 256)
    assert 5 * stored_kv_bytes(shape, FP16, 30 + 20) == kv_cache_bytes(5, 2, 64, 30, 20)


def test_elementwise_work_by_hand() -> None:
    """Per token: norms 2 · 2h, residual sums 2 · 3h, rotation twice what rotates, the activation; the last norm 2h."""

    def numbers(config: dict, num_layers: int) -> float:
        parts = {part.name: part for part in operations(read_shape(config), Phase.decode(3, 9), FP16)}
        hidden_size = config["hidden_size"]
        return (parts["norms, elementwise"].activation_bytes / 2 / 3 - 2 * hidden_size) / num_layers - 10 * hidden_size

    llama = live("tiny")[0].config.to_hf()  # 6 + 3 heads of 10, a network of 70
    assert numbers(llama, 2) == 2 * 9 * 10 + 3 * 70
    assert numbers(OPT, 2) == 2 * 256
    # One dense layer of 96, two of 2 experts and a shared one of 40; 4 heads and the shared key rotate 8 numbers each.
    assert numbers(LATENT, 3) == pytest.approx(2 * 5 * 8 + 3 * (96 + 2 * 3 * 40) / 3)


# ---- mixtures


def test_experts_read_as_expected() -> None:
    shape = read_shape(LATENT)
    for batch_size in (1, 5, 1000):
        step = {part.name: part for part in operations(shape, Phase.decode(batch_size, 3), FP16)}
        visited = experts_touched(8, 2, batch_size)
        assert step["experts.w_up"].weight_bytes == pytest.approx(2 * visited * 64 * 40 * 2)  # of two layers
        assert step["experts.w_up"].flops == 2 * (2 * batch_size) * 2 * 64 * 40
        assert step["shared.w_up"].weight_bytes == 2 * 64 * 40 * 2
        assert step["w_up"].weight_bytes == 64 * 96 * 2  # of the first layer, which is dense
    whole = stored_weight_bytes(shape, FP16)
    assert whole == 2 * shape.num_parameters


# ---- precision


def test_quantized_bytes_by_hand() -> None:
    shape = read_shape("stories-5m")
    matrix = next(m for m in shape.layers[0].matrices if m.name == "w_down")  # 256 rows of 704
    weights = 256 * 704
    assert Precision(bits=8).matrix_bytes(matrix) == weights + 256 * 2  # a scale a row
    assert Precision(bits=4).matrix_bytes(matrix) == weights / 2 + 256 * 6 * (16 + 4) / 8  # 704 = 5.5 groups of 128
    assert Precision(bits=4, group_size=32).matrix_bytes(matrix) == weights / 2 + 256 * 22 * 2.5
    assert Precision(bits=16).matrix_bytes(matrix) == 2 * weights
    four = stored_weight_bytes(shape, Precision(bits=4))
    plain = 2 * (2048 * 256 + 13 * 256)
    assert four == plain + sum(Precision(bits=4).matrix_bytes(m) for layer in shape.layers for m in layer.matrices)


def test_biases_and_routers_stay_as_they_are() -> None:
    opt, mixture = read_shape(OPT), read_shape(LATENT)
    bias = next(m for m in opt.layers[0].matrices if m.name == "wq")
    assert Precision(bits=8).matrix_bytes(bias) == 64 * 64 + 64 * 2 + 64 * 2
    router = next(m for m in mixture.layers[1].matrices if m.name == "router")
    assert Precision(bits=4).matrix_bytes(router) == 2 * 64 * 8
    assert Precision(bits=4).matrix_bytes(mixture.lm_head) == 2 * 64 * 300


def test_bytes_of_activations_and_cache() -> None:
    assert (FP32.activation_bytes, FP16.activation_bytes) == (4, 2)
    assert (FP32.kv_bytes, FP16.kv_bytes, Precision(kv_bits=8).kv_bytes) == (4, 2, 1)
    assert Precision(bits=8, activation_bits=8).activation_bytes == 2
    assert Precision(bits=8, activation_bits=8).kv_bytes == 2


@pytest.mark.parametrize("wrong", [{"bits": 5}, {"group_size": 0}, {"activation_bits": 4}, {"kv_bits": 3}])
def test_impossible_precisions(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Precision(**wrong)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 60), st.integers(0, 60), st.sampled_from([32, 16, 8, 4]))
def test_sums_hold(batch_size: int, query_len: int, cached: int, bits: int) -> None:
    """More tokens never cost less, fewer bits never more, and parts add up to the whole."""
    shape, precision = read_shape(LATENT), Precision(bits=bits)
    phase = Phase(batch_size, query_len, cached + query_len)
    parts = operations(shape, phase, precision)
    assert all(part.flops >= 0 and part.num_bytes > 0 for part in parts)
    assert len({part.name for part in parts}) == len(parts)
    whole = total(parts)
    larger = total(operations(shape, replace(phase, batch_size=batch_size + 1), precision))
    longer = total(operations(shape, replace(phase, seq_len=phase.seq_len + 1, query_len=query_len + 1), precision))
    for more in (larger, longer):
        assert more.flops > whole.flops and more.num_bytes > whole.num_bytes
    if bits < 32:
        assert total(operations(shape, phase, Precision(bits=2 * bits))).weight_bytes >= whole.weight_bytes
