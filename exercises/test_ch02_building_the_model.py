"""Chapter 02: building the model. Run: python3 tasks.py grade ch02"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from minillm import ModelConfig, load_model
from minillm.config import RopeConfig
from minillm.grading import Task, graded
from minillm.hf_config import resolve_model_path
from minillm.model import Transformer
from minillm.model.hf_names import hf_name, plain_weights
from minillm.model.stored import ONE_FILE

COUNT = Task(
    "parameter_count",
    hints=(
        "Write down every matrix of one layer with its two sides. Which sides are num_heads * head_dim?",
        "Embedding V·h (twice if not tied); a layer 2·h·heads·d + 2·h·kv_heads·d + 3·h·m + 2·h; one h at the end.",
    ),
    forbids=("minillm.model.Transformer", "minillm.load_model"),
)
NORM = Task(
    "rms_norm",
    hints=(
        "Three steps: widen to float32, divide by the root, come back to the dtype of x. Where does eps stand?",
        "wide = x.to(torch.promote_types(x.dtype, torch.float32)); eps is added to the mean square, under the root.",
    ),
    forbids=("torch.nn.functional.rms_norm", "torch.rms_norm", "torch.nn.RMSNorm", "minillm.model.norm.RMSNorm"),
)
ROTATE = Task(
    "rotate",
    hints=(
        "Turn one pair (a, b) by an angle on paper: it is (a + ib)(cos + i sin). Which two dimensions are a and b?",
        "a, b = x.chunk(2, dim=-1); the result is cat(a cos - b sin, b cos + a sin). Speeds: theta**(-2i / head_dim).",
    ),
    forbids=("minillm.model.rope.rotate", "minillm.model.rope.Rope", "minillm.model.rope.frequencies"),
)
ATTENTION = Task(
    "grouped_attention",
    hints=(
        "Make one key and one value for every query head first, in the right order; then it is ordinary attention.",
        "k.repeat_interleave(group, dim=1) gives 0 0 1 1; k.repeat(1, group, 1) gives 0 1 0 1.",
    ),
    forbids=(
        "minillm.attention.naive_attention",
        "minillm.attention.dispatch.attention",
        "torch.nn.functional.scaled_dot_product_attention",
    ),
)
FEED_FORWARD = Task(
    "feed_forward",
    hints=(
        "Follow x: what is added to what at the end? Then compare the middle line with the formula of SwiGLU, twice.",
        "The stream is overwritten by its norm, and sigmoid of the wrong branch isn't silu of the gate. And +=?",
    ),
    forbids=("minillm.model.ffn.SwiGLU",),
)
FORWARD = Task(
    "forward",
    hints=(
        "Print the shapes after each step for two tokens. Check the parts alone first: tasks 2 to 5.",
        "Embed; per layer: norm, q k v, rotate q and k, attend, o_proj, add, feed_forward; last norm; head.",
    ),
    forbids=(
        "minillm.load_model",
        "minillm.model.Transformer",
        "minillm.model.transformer.Block",
        "minillm.model.gqa.GroupedQueryAttention",
        "minillm.attention.naive_attention",
        "torch.nn.functional.scaled_dot_product_attention",
    ),
    seconds=30,
)


# ---- parameter_count

LLAMA_3_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}


@graded(COUNT, points=1)
def test_counts_the_example_that_fits_on_a_napkin(student):
    shape = {"vocab_size": 10, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2}
    assert student.parameter_count({**shape, **heads, "tie_word_embeddings": True}) == 172
    assert student.parameter_count({**shape, **heads}) == 212  # not tied: a second matrix of 10 · 4


@graded(COUNT, points=1)
def test_llama_3_8b_and_llama_2_7b_to_the_last_parameter(student):
    llama_2_7b = {**LLAMA_3_8B, "vocab_size": 32_000, "intermediate_size": 11_008}
    llama_2_7b |= {"num_key_value_heads": None, "head_dim": None}  # as some files say what others leave out
    assert student.parameter_count(LLAMA_3_8B) == 8_030_261_248
    assert student.parameter_count(llama_2_7b) == 6_738_415_616


@graded(COUNT, points=1)
def test_heads_need_not_add_up_to_the_hidden_size(student):
    """Mistral NeMo: 32 heads of 128 numbers on a stream of 5,120."""
    config = {**LLAMA_3_8B, "vocab_size": 131_072, "hidden_size": 5120, "num_hidden_layers": 40, "head_dim": 128}
    with torch.device("meta"):
        built = Transformer(ModelConfig.from_hf({**config, "model_type": "llama"}))
    assert student.parameter_count(config) == sum(parameter.numel() for parameter in built.parameters())


# ---- rms_norm


@graded(NORM, points=1)
def test_three_and_four_by_hand(student):
    out = student.rms_norm(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 10.0]), 0.0)
    torch.testing.assert_close(out, torch.tensor([3.0, 40.0]) / math.sqrt(12.5))


@graded(NORM, points=1)
def test_eps_stands_under_the_root(student):
    out = student.rms_norm(torch.full((4,), 1e-3), torch.ones(4), 1e-6)
    torch.testing.assert_close(out, torch.full((4,), math.sqrt(0.5)))  # 1e-3 / sqrt(1e-6 + 1e-6)
    assert student.rms_norm(torch.zeros(4), torch.ones(4), 1e-6).tolist() == [0, 0, 0, 0]


@graded(NORM, points=1)
def test_every_token_is_normed_by_itself(student, rng):
    x = 3 + torch.randn(2, 5, 8, generator=rng, dtype=torch.float64)  # the mean is not zero, and stays
    weight = torch.randn(8, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(student.rms_norm(x, weight, 1e-5), F.rms_norm(x, (8,), weight, 1e-5))


@graded(NORM, points=1)
def test_bfloat16_is_rounded_once(student, rng):
    x = torch.randn(64, 256, generator=rng).bfloat16()
    out = student.rms_norm(x, torch.ones(256, dtype=torch.bfloat16), 1e-6)
    exact = F.rms_norm(x.double(), (256,), eps=1e-6)
    assert out.dtype == torch.bfloat16
    relative_error = ((out.double() - exact) / exact).abs().max()
    assert relative_error <= 1.01 * 2**-8, f"one rounding errs by at most 2^-8 = 0.0039, this by {relative_error:.4f}"


@graded(NORM, points=1)
def test_float16_survives_squares_above_its_largest_number(student):
    x = torch.tensor([300.0, -300.0], dtype=torch.float16)  # 300² = 90,000; float16 ends at 65,504
    assert student.rms_norm(x, torch.ones(2, dtype=torch.float16), 1e-6).tolist() == [1, -1]


# ---- rotate


def turned(x, positions, theta):
    """The definition, in complex numbers and float64: pair i times e^(i · p · theta^(-2i / head_dim))."""
    half = x.shape[-1] // 2
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double())
    speeds = torch.tensor([theta ** (-2 * i / x.shape[-1]) for i in range(half)], dtype=torch.float64)
    angles = positions.double()[:, None, None] * speeds
    pairs = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((pairs.real, pairs.imag), dim=-1)


@graded(ROTATE, points=1)
def test_two_pairs_by_hand(student):
    x = torch.tensor([1.0, 1.0, 0.0, 0.0])[None, None]
    expected = torch.tensor([math.cos(1), math.cos(0.1), math.sin(1), math.sin(0.1)])
    torch.testing.assert_close(student.rotate(x, torch.tensor([1]), 100.0)[0, 0], expected)


@graded(ROTATE, points=1)
def test_at_position_zero_nothing_turns(student, rng):
    x = torch.randn(3, 2, 8, generator=rng)
    torch.testing.assert_close(student.rotate(x, torch.zeros(3, dtype=torch.int64), 10_000.0), x)


@graded(ROTATE, points=1)
def test_each_token_turns_by_its_own_position(student, rng):
    x = torch.randn(6, 3, 16, generator=rng)
    positions = torch.tensor([0, 1, 1, 40, 7, 200])
    for theta in (100.0, 500_000.0):
        expected = turned(x, positions, theta).float()
        torch.testing.assert_close(student.rotate(x, positions, theta), expected, atol=1e-3, rtol=0)


@graded(ROTATE, points=1)
def test_scores_depend_on_the_distance_alone(student, rng):
    q, k = torch.randn(2, 1, 1, 32, generator=rng)

    def score(i, j):
        return float((student.rotate(q, torch.tensor([i]), 1e4) * student.rotate(k, torch.tensor([j]), 1e4)).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-3)
    assert score(9, 4) == pytest.approx(float((turned(q, torch.tensor([5]), 1e4) * k).sum()), abs=1e-3)


@graded(ROTATE, points=1)
def test_angles_of_bfloat16_inputs_are_not_bfloat16(student, rng):
    x = torch.randn(4, 2, 32, generator=rng).bfloat16()
    positions = torch.tensor([129, 257, 1001, 4001])  # bfloat16 would round each of them
    out = student.rotate(x, positions, 10_000.0)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), turned(x, positions, 10_000.0), atol=0.03, rtol=0)


# ---- grouped_attention


def dense(q, k, v):
    """PyTorch's own attention in the dtype given, heads in front."""
    heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))
    return F.scaled_dot_product_attention(*heads_first, is_causal=True, enable_gqa=True)[0].transpose(0, 1)


@graded(ATTENTION, points=1)
def test_equal_scores_average_what_a_token_may_see(student):
    q, k = torch.zeros(3, 1, 2), torch.ones(3, 1, 2)
    v = torch.tensor([2.0, 4.0, 9.0]).reshape(3, 1, 1).expand(3, 1, 2)
    assert student.grouped_attention(q, k, v)[:, 0, 0].tolist() == pytest.approx([2, 3, 5])


@graded(ATTENTION, points=1)
def test_neighbouring_heads_share_a_kv_head(student):
    v = torch.tensor([10.0, 20.0]).reshape(1, 2, 1).expand(1, 2, 4)  # KV head 0 holds 10, KV head 1 holds 20
    out = student.grouped_attention(torch.zeros(1, 6, 4), torch.zeros(1, 2, 4), v)
    assert out[0, :, 0].tolist() == [10, 10, 10, 20, 20, 20]


@graded(ATTENTION, points=2)
def test_equals_torch_for_any_number_of_kv_heads(student, rng):
    for seq_len, num_heads, num_kv_heads, head_dim in ((1, 4, 2, 6), (7, 6, 2, 10), (9, 4, 4, 8), (8, 8, 1, 4)):
        q = torch.randn(seq_len, num_heads, head_dim, generator=rng, dtype=torch.float64)
        k, v = torch.randn(2, seq_len, num_kv_heads, head_dim, generator=rng, dtype=torch.float64)
        torch.testing.assert_close(student.grouped_attention(q, k, v), dense(q, k, v))


@graded(ATTENTION, points=1)
def test_scores_of_bfloat16_inputs_are_not_bfloat16(student, rng):
    q = 8 * torch.randn(16, 4, 32, generator=rng).bfloat16()  # scores in the tens, where bfloat16 has steps of 1/8
    k, v = torch.randn(2, 16, 2, 32, generator=rng).bfloat16()
    out = student.grouped_attention(q, k, v)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), dense(q.double(), k.double(), v.double()), atol=0.01, rtol=0.01)


# ---- feed_forward


@graded(FEED_FORWARD, points=1)
def test_one_number_by_hand(student):
    one = torch.ones(1)
    out = student.feed_forward(torch.tensor([[2.0]]), one, one[None], one[None], one[None], 0.0)
    assert out.tolist() == [[pytest.approx(2 + 1 / (1 + math.exp(-1)))]]


@graded(FEED_FORWARD, points=1)
def test_with_nothing_to_add_the_stream_passes_untouched(student, rng):
    x, norm = 5 * torch.randn(3, 4, generator=rng), torch.randn(4, generator=rng)
    gate, up = torch.randn(2, 6, 4, generator=rng)
    torch.testing.assert_close(student.feed_forward(x, norm, gate, up, torch.zeros(4, 6), 1e-6), x)


@graded(FEED_FORWARD, points=1)
def test_the_tensors_of_the_caller_stay_as_they_are(student, rng):
    x, norm = 5 * torch.randn(3, 4, generator=rng), torch.randn(4, generator=rng)
    gate, up = torch.randn(2, 6, 4, generator=rng)
    down = torch.randn(4, 6, generator=rng)
    before = x.clone()
    student.feed_forward(x, norm, gate, up, down, 1e-6)
    assert torch.equal(x, before), "x was written to, and another part of the program may still need it"


@graded(FEED_FORWARD, points=2)
def test_equals_the_formula_in_float64(student, rng):
    x = 3 * torch.randn(5, 8, generator=rng, dtype=torch.float64)
    norm = torch.randn(8, generator=rng, dtype=torch.float64)
    gate, up = torch.randn(2, 12, 8, generator=rng, dtype=torch.float64)
    down = torch.randn(8, 12, generator=rng, dtype=torch.float64)
    h = F.rms_norm(x, (8,), norm, 0.1)
    expected = x + F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)
    torch.testing.assert_close(student.feed_forward(x, norm, gate, up, down, 0.1), expected)


# ---- forward


def random_model(rng, **changes):
    """A small Llama with random weights, norms included: (config, weights by their names in a checkpoint, model)."""
    shape = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 36, "num_layers": 3, "max_seq_len": 64}
    heads = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
    model = Transformer(ModelConfig(**{**shape, **heads, **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = torch.randn(parameter.shape, generator=rng)
            parameter.copy_(1 + 0.4 * spread if "norm" in name else 0.3 * spread)
    weights = {hf_name(name): tensor.detach() for name, tensor in plain_weights(model)}
    if model.config.tie_embeddings:
        del weights["lm_head.weight"]
    return model.config, weights, model


@graded(FORWARD, points=1)
def test_with_silent_layers_the_embedding_goes_through_the_last_norm_to_the_head(student, rng):
    config, weights, _ = random_model(rng, num_layers=2)
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] = torch.zeros_like(weights[name])
    x = weights["model.embed_tokens.weight"][torch.tensor([3, 1, 3])]
    expected = F.rms_norm(x, (24,), weights["model.norm.weight"], config.norm_eps) @ weights["lm_head.weight"].T
    logits = student.forward(weights, config, torch.tensor([3, 1, 3]))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@graded(FORWARD, points=2)
def test_equals_the_library_on_random_weights(student, rng):
    config, weights, model = random_model(rng)
    tokens = torch.randint(40, (12,), generator=rng)
    with torch.inference_mode():
        expected = model(tokens)
        logits = student.forward(weights, config, tokens)
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


@graded(FORWARD, points=2)
def test_takes_every_number_from_the_config(student, rng):
    for changes in (
        {"tie_embeddings": True, "norm_eps": 0.3},
        {"head_dim": 4, "num_kv_heads": 1, "rope": RopeConfig(theta=50.0)},
        {"num_heads": 3, "num_kv_heads": 3, "num_layers": 1},
    ):
        config, weights, model = random_model(rng, **changes)
        tokens = torch.randint(40, (9,), generator=rng)
        with torch.inference_mode():
            expected = model(tokens)
            logits = student.forward(weights, config, tokens)
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


@graded(FORWARD, points=2)
def test_your_own_model_gives_the_logits_of_the_library_on_the_bundled_weights(student, rng):
    from safetensors.torch import load_file

    model = load_model()
    weights = {name: tensor.float() for name, tensor in load_file(resolve_model_path("stories-5m") / ONE_FILE).items()}
    tokens = torch.randint(model.config.vocab_size, (40,), generator=rng)
    with torch.inference_mode():
        expected = model(tokens)
        logits = student.forward(weights, model.config, tokens)
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
