"""Chapter 05: the cost model and the roofline. Run: python3 tasks.py grade ch05"""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from minillm.grading import Task, graded

CACHE = Task(
    "cache_bytes",
    hints=(
        "Which of the keys does the cache depend on? What does a layer keep for one token: how many things, how long?",
        "K and V for each KV head: 2 · num_kv_heads · head_dim numbers a layer. With latent attention: kv_lora_rank + "
        "qk_rope_head_dim, once.",
    ),
    forbids=("minillm.perf.model_shape.read_shape", "minillm.perf.formulas.kv_bytes_per_token"),
)
POINT = Task(
    "product_on_roof",
    hints=(
        "Three matrices cross the bus. How many numbers has each, and how many bits has each of its numbers?",
        "intensity = FLOPs / bytes; speed = min(peak, intensity · bandwidth); compare the two times.",
    ),
    forbids=("minillm.perf.formulas.gemm_intensity", "minillm.perf.roofline.attainable_flops_per_s"),
)
BLOCK = Task(
    "block_costs",
    hints=(
        "What depends on query_len, what on seq_len, what on neither? What on num_heads, what on num_kv_heads?",
        "Tokens = batch · query_len. A linear layer: 2 · tokens · in · out FLOPs, 2 · (in · out + tokens · (in + out)) "
        "bytes. New token number i (from 1) of a sequence sees seq_len - query_len + i tokens.",
    ),
    forbids=("minillm.perf.cost.operations",),
)
EXPERTS = Task(
    "expected_experts",
    hints=(
        "Look at one expert alone. What is the probability that no token visits it?",
        "An expert stays idle with probability (1 - chance) ** num_tokens; means of single experts add up.",
    ),
    forbids=("minillm.perf.formulas.experts_touched",),
)
SHEET = Task(
    "cost_sheet",
    hints=(
        "Check the units, then read each product aloud: what is counted, and how often is it moved?",
        "K and V; KV heads, at least one a card; 2 bytes; weights read once for the whole batch; 2 FLOPs; 2**30.",
    ),
)
PLAN = Task(
    "plan_decode",
    hints=(
        "How many requests fit, is one division. Then a function step_s(batch_size), and a search on it.",
        "Bisect: keep one batch that is fast enough and a larger one that isn't (or doesn't fit), halve the distance.",
    ),
    forbids=("minillm.perf.cost.operations",),
)

LLAMA_3_8B = dict(
    num_layers=32, hidden_size=4096, num_heads=32, num_kv_heads=8, head_dim=128, intermediate_size=14_336,
    vocab_size=128_256,
)  # fmt: skip


# ---- cache_bytes


@graded(CACHE, points=1)
def test_every_head_keeps_a_key_and_a_value(student):
    opt_66b = {"num_hidden_layers": 64, "hidden_size": 9216, "num_attention_heads": 72}
    assert student.cache_bytes(opt_66b, 1, 512) == 1.125 * 2**30
    llama_2_13b = {"num_hidden_layers": 40, "hidden_size": 5120, "num_attention_heads": 40, "num_key_value_heads": 40}
    assert student.cache_bytes(llama_2_13b, 1, 1) == 800 * 2**10
    assert student.cache_bytes(llama_2_13b, 3, 7, bytes_per_number=4) == 2 * 21 * 800 * 2**10


@graded(CACHE, points=1)
def test_query_heads_share_kv_heads(student):
    llama_3_8b = {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}
    assert student.cache_bytes(llama_3_8b, 1, 1) == 128 * 2**10
    example = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    assert student.cache_bytes(example, 3, 10) == 7680


@graded(CACHE, points=1)
def test_heads_may_be_wider_than_their_share_of_the_hidden_size(student):
    # Qwen3-32B: 64 heads of 128 numbers beside a hidden size of 5120.
    qwen = dict(num_hidden_layers=64, hidden_size=5120, num_attention_heads=64, num_key_value_heads=8, head_dim=128)
    assert student.cache_bytes(qwen, 1, 1) == 64 * 2 * 8 * 128 * 2


@graded(CACHE, points=1)
def test_latent_attention_keeps_576_numbers(student):
    deepseek_v3 = dict(num_hidden_layers=61, hidden_size=7168, num_attention_heads=128, num_key_value_heads=128)
    deepseek_v3 |= dict(kv_lora_rank=512, q_lora_rank=1536, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
    assert student.cache_bytes(deepseek_v3, 1, 1) == 61 * 576 * 2
    assert student.cache_bytes(deepseek_v3, 4, 100, bytes_per_number=1) == 400 * 61 * 576


# ---- product_on_roof


@graded(POINT, points=1)
def test_a_product_small_enough_to_count_by_hand(student):
    card = student.Card(memory_bytes=1e9, bytes_per_s=100.0, flops_per_s=1000.0)
    intensity, flops_per_s, bound = student.product_on_roof(2, 4, 8, card)
    assert (intensity, flops_per_s, bound) == (pytest.approx(128 / 112), pytest.approx(12800 / 112), "memory")
    assert student.product_on_roof(2, 4, 8, card, weight_bits=4)[0] == pytest.approx(2.0)


@graded(POINT, points=1)
def test_bytes_are_those_of_three_tensors(student, rng):
    for bits, dtype in ((16, torch.float16), (32, torch.float32)):
        rows, wide, out = (int(n) for n in torch.randint(1, 40, (3,), generator=rng))
        x, w = torch.zeros(rows, wide, dtype=dtype), torch.zeros(wide, out, dtype=dtype)
        num_bytes = x.nbytes + w.nbytes + (x @ w).nbytes
        card = student.Card(1e9, 1.0, 1e9)
        point = student.product_on_roof(rows, wide, out, card, weight_bits=bits, number_bits=bits)
        assert point.intensity == pytest.approx(2 * rows * wide * out / num_bytes)


@graded(POINT, points=1)
def test_many_rows_reach_the_roof_and_no_more(student):
    h100 = student.Card(80 * 2**30, 3.35e12, 989.4e12)
    slow, fast = (student.product_on_roof(rows, 8192, 8192, h100) for rows in (1, 4096))
    assert slow.bound == "memory" and slow.flops_per_s == pytest.approx(3.35e12 * 0.99976, rel=1e-4)
    assert fast.bound == "compute" and fast.flops_per_s == 989.4e12
    assert fast.intensity == pytest.approx(2 * 4096 * 8192**2 / (2 * (2 * 4096 * 8192 + 8192**2)))
    # On the ridge itself: 4 rows, 4 in, 4 out have 128 FLOPs and 96 bytes.
    assert student.product_on_roof(4, 4, 4, student.Card(1e9, 96.0, 128.0)).bound == "compute"


@graded(POINT, points=1)
def test_fewer_bits_reach_the_roof_with_fewer_rows(student):
    h100 = student.Card(80 * 2**30, 3.35e12, 989.4e12)
    first = {}
    for weight_bits in (16, 8, 4):
        points = (
            student.product_on_roof(rows, 8192, 8192, h100, weight_bits=weight_bits) for rows in itertools.count(1)
        )
        first[weight_bits] = 1 + next(i for i, point in enumerate(points) if point.bound == "compute")
    # rows · (1/ridge − (in + out) · 2 / (2 · in · out)) = weight bytes / 2, with the ridge at 295.3
    assert first == {16: 319, 8: 160, 4: 80}


# ---- block_costs


TINY = dict(num_layers=3, hidden_size=4, num_heads=4, num_kv_heads=1, head_dim=2, intermediate_size=6, vocab_size=11)


@graded(BLOCK, points=1)
def test_the_example(student):
    costs = student.block_costs(student.Model(**TINY), 1, 3, 5)
    assert tuple(costs["wk"]) == (48, 52)
    assert tuple(costs["attention"]) == (384, 160)
    assert sorted(costs) == sorted(["wq", "wk", "wv", "attention", "wo", "w_gate", "w_up", "w_down"])


@graded(BLOCK, points=1)
def test_linear_layers_agree_with_real_tensors(student):
    # Heads wider than their share of the hidden size, so that wq and wo are no squares.
    model = student.Model(
        3, hidden_size=8, num_heads=6, num_kv_heads=2, head_dim=4, intermediate_size=20, vocab_size=11
    )
    costs = student.block_costs(model, 3, 5, 9)
    sides = dict(wq=(8, 24), wk=(8, 8), wv=(8, 8), wo=(24, 8), w_gate=(8, 20), w_up=(8, 20), w_down=(20, 8))
    for name, (num_in, num_out) in sides.items():
        x, w = (torch.zeros(size, dtype=torch.bfloat16) for size in ((3 * 5, num_in), (num_out, num_in)))
        multiply_adds = x.shape[0] * w.numel()
        assert tuple(costs[name]) == (2 * multiply_adds, x.nbytes + w.nbytes + (x @ w.T).nbytes), name


@graded(BLOCK, points=2)
def test_attention_agrees_with_multiply_adds_counted_one_by_one(student):
    model = student.Model(1, hidden_size=24, num_heads=6, num_kv_heads=2, head_dim=6, intermediate_size=5, vocab_size=7)
    for batch_size, query_len, seq_len in ((1, 1, 1), (1, 5, 5), (2, 1, 6), (3, 4, 7)):
        multiply_adds = 0
        for _sequence, _head in itertools.product(range(batch_size), range(6)):
            for position in range(seq_len - query_len, seq_len):
                multiply_adds += sum(6 + 6 for key in range(seq_len) if key <= position)
        found = student.block_costs(model, batch_size, query_len, seq_len)["attention"]
        assert found[0] == 2 * multiply_adds, (batch_size, query_len, seq_len)


@graded(BLOCK, points=1)
def test_attention_moves_queries_results_and_the_cache(student):
    model = student.Model(1, hidden_size=24, num_heads=6, num_kv_heads=2, head_dim=6, intermediate_size=5, vocab_size=7)
    for batch_size, query_len, seq_len in ((1, 1, 1), (1, 5, 5), (2, 1, 6), (3, 4, 7)):
        q = torch.zeros(batch_size, query_len, 6, 6, dtype=torch.float16)
        new_k, cached_k = (torch.zeros(batch_size, n, 2, 6, dtype=torch.float16) for n in (query_len, seq_len))
        moved = 2 * q.nbytes + 2 * new_k.nbytes + 2 * cached_k.nbytes
        assert student.block_costs(model, batch_size, query_len, seq_len)["attention"][1] == moved


@graded(BLOCK, points=1)
def test_a_batch_moves_the_intensity_of_linear_layers_and_not_that_of_attention(student):
    model = student.Model(**LLAMA_3_8B)
    intensities = {}
    for batch_size in (1, 64):
        costs = student.block_costs(model, batch_size, 1, 4096)
        intensities[batch_size] = {name: cost[0] / cost[1] for name, cost in costs.items()}
    assert intensities[1]["w_up"] == pytest.approx(1.0, abs=1e-3)
    assert intensities[64]["w_up"] == pytest.approx(64 / (1 + 64 * (1 / 4096 + 1 / 14_336)), rel=1e-9)
    assert intensities[64]["attention"] == intensities[1]["attention"] == pytest.approx(4, rel=1e-2)


# ---- expected_experts


@graded(EXPERTS, points=1)
def test_the_example_and_the_edges(student):
    assert student.expected_experts([0.5, 0.5, 1.0], 2) == pytest.approx(2.5)
    assert student.expected_experts([0.5, 0.5, 1.0], 1) == pytest.approx(2.0)
    assert student.expected_experts([0.25] * 8, 0) == 0
    assert student.expected_experts([0.25] * 8, 10_000) == pytest.approx(8)


@graded(EXPERTS, points=1)
def test_agrees_with_every_way_to_choose_two_of_four(student):
    pairs = list(itertools.combinations(range(4), 2))  # equally likely: each expert has a chance of 1/2
    for num_tokens in (1, 2, 3):
        sizes = [len(set().union(*choice)) for choice in itertools.product(pairs, repeat=num_tokens)]
        assert student.expected_experts([0.5] * 4, num_tokens) == pytest.approx(sum(sizes) / len(sizes))


@graded(EXPERTS, points=1)
def test_favourites_leave_other_experts_idle(student):
    chance = random.Random(5)
    chances = [0.9, 0.6, 0.2, 0.15, 0.1, 0.05]
    trials, visited = 4000, 0
    for _ in range(trials):
        visited += len({i for _ in range(6) for i, each in enumerate(chances) if chance.random() < each})
    found = student.expected_experts(chances, 6)
    assert found == pytest.approx(visited / trials, abs=0.1)
    assert found < student.expected_experts([2 / 6] * 6, 6) - 1


# ---- cost_sheet


@graded(SHEET, points=1)
def test_one_card_one_sequence(student):
    model = student.Model(
        2, hidden_size=8, num_heads=2, num_kv_heads=2, head_dim=4, intermediate_size=16, vocab_size=32
    )
    # 2 · (4 · 8² + 3 · 8 · 16) + 32 · 8 = 1536 weights, 3072 bytes; 2 · 2 layers · 2 heads · 4 · 10 tokens: 640 bytes
    gib, step_s, tokens_per_s = student.cost_sheet(model, student.Card(1e6, 1856.0, 1e9), 1, 10, 1)
    assert (gib, step_s, tokens_per_s) == (pytest.approx(3712 / 2**30), pytest.approx(2.0), pytest.approx(0.5))
    # and when arithmetic is what it waits for: 2 · 1536 FLOPs
    assert student.cost_sheet(model, student.Card(1e6, 1e9, 1024.0), 1, 10, 1)[1] == pytest.approx(3.0)


@graded(SHEET, points=1)
def test_a_batch_shares_the_weights_and_not_the_cache(student):
    model = student.Model(**LLAMA_3_8B)
    card = student.Card(80 * 2**30, 3.35e12, 989.4e12)
    weights, cache = 2 * 7_504_658_432, 64 * 1000 * 131_072
    found = student.cost_sheet(model, card, 64, 1000, 1)
    assert found[0] == pytest.approx((weights + cache) / 2**30)
    assert found[1] == pytest.approx((weights + cache) / 3.35e12)
    assert found[2] == pytest.approx(64 * 3.35e12 / (weights + cache))


@graded(SHEET, points=1)
def test_cards_share_weights_and_kv_heads(student):
    model = student.Model(**LLAMA_3_8B)
    card = student.Card(80 * 2**30, 3.35e12, 989.4e12)
    found = student.cost_sheet(model, card, 64, 1000, 4)
    assert found[1] == pytest.approx((2 * 7_504_658_432 + 64 * 1000 * 131_072) / 4 / 3.35e12)
    # Two FLOPs for a weight and a sequence, once the batch is large and the texts are short:
    assert student.cost_sheet(model, card, 2048, 1, 4)[1] == pytest.approx(2048 * 2 * 7_504_658_432 / 4 / 989.4e12)


@graded(SHEET, points=2)
def test_no_card_holds_half_a_head(student):
    model = student.Model(**LLAMA_3_8B)
    card = student.Card(80 * 2**30, 3.35e12, 989.4e12)
    cache_of_a_head = 64 * 1000 * 131_072 / 8
    for tp_size in (8, 16, 32):
        gib = student.cost_sheet(model, card, 64, 1000, tp_size)[0]
        assert gib == pytest.approx((2 * 7_504_658_432 / tp_size + cache_of_a_head) / 2**30), tp_size


# ---- plan_decode


def step_seconds(sizes, batch_size, seq_len, bytes_per_s, flops_per_s):
    """The sum over operations, written down a second time."""
    hidden, q_size = sizes["hidden_size"], sizes["num_heads"] * sizes["head_dim"]
    kv_size, wide = sizes["num_kv_heads"] * sizes["head_dim"], sizes["intermediate_size"]

    def seconds(multiply_adds, numbers):
        return max(2 * multiply_adds / flops_per_s, 2 * numbers / bytes_per_s)

    def linear(num_in, num_out):
        return seconds(batch_size * num_in * num_out, num_in * num_out + batch_size * (num_in + num_out))

    attention = seconds(2 * batch_size * seq_len * q_size, 2 * batch_size * (q_size + kv_size * (seq_len + 1)))
    linears = linear(hidden, q_size) + linear(q_size, hidden) + 2 * linear(hidden, kv_size) + 3 * linear(hidden, wide)
    return sizes["num_layers"] * (linears + attention) + linear(hidden, sizes["vocab_size"])


@graded(PLAN, points=2)
def test_memory_or_the_deadline_sets_the_batch(student):
    card = student.Card(80 * 2**30, 3.35e12, 989.4e12)
    model = student.Model(**LLAMA_3_8B)
    # Weights take 14.96 of 72 GiB, a request of 4,608 tokens 0.5625 GiB: 101 fit.
    full = student.plan_decode(model, card, prompt_len=4096, output_len=512, itl_s=1.0)
    assert (full.batch_size, full.limit) == (101, "memory")
    hurried = student.plan_decode(model, card, prompt_len=4096, output_len=512, itl_s=0.010)
    assert (hurried.batch_size, hurried.limit) == (30, "itl")
    # Whatever the deadline says about 102 requests: they don't fit.
    just_in_time = 1.0001 * step_seconds(LLAMA_3_8B, 101, 4608, 3.35e12, 989.4e12)
    both = student.plan_decode(model, card, prompt_len=4096, output_len=512, itl_s=just_in_time)
    assert (both.batch_size, both.limit) == (101, "memory")
    for plan in (full, hurried):
        assert plan.step_s == pytest.approx(step_seconds(LLAMA_3_8B, plan.batch_size, 4608, 3.35e12, 989.4e12))
        assert plan.tokens_per_s == pytest.approx(plan.batch_size / plan.step_s)


@graded(PLAN, points=2)
def test_the_plan_holds_and_one_request_more_would_break_it(student):
    chance = random.Random(9)
    limits = set()
    for _ in range(20):
        sizes = dict(
            num_layers=chance.randint(1, 9), hidden_size=256, num_heads=8, num_kv_heads=chance.choice([1, 2, 8])
        )
        sizes |= dict(head_dim=64, intermediate_size=chance.randint(100, 900), vocab_size=chance.randint(500, 5000))
        prompt_len, output_len, itl_s = chance.randint(1, 900), chance.randint(1, 99), chance.uniform(1e-3, 4e-2)
        card = student.Card(chance.uniform(2e8, 2e9), chance.uniform(2e10, 9e10), chance.uniform(1e11, 9e12))
        batch_size, limit, *_ = student.plan_decode(
            student.Model(**sizes), card, prompt_len=prompt_len, output_len=output_len, itl_s=itl_s
        )

        def fits(count, sizes=sizes, card=card, seq_len=prompt_len + output_len):
            block = 2 * 256 * 64 * (8 + sizes["num_kv_heads"]) + 3 * 256 * sizes["intermediate_size"]
            weights = sizes["num_layers"] * block + 2 * sizes["vocab_size"] * 256
            cache = count * seq_len * sizes["num_layers"] * 2 * sizes["num_kv_heads"] * 64
            return 2 * (weights + cache) <= 0.9 * card.memory_bytes

        def step_s(count, sizes=sizes, card=card, seq_len=prompt_len + output_len):
            return step_seconds(sizes, count, seq_len, card.bytes_per_s, card.flops_per_s)

        assert fits(batch_size) and step_s(batch_size) <= itl_s * (1 + 1e-9)
        assert not fits(batch_size + 1) or step_s(batch_size + 1) > itl_s * (1 - 1e-9)
        assert limit == ("itl" if fits(batch_size + 1) else "memory")
        limits.add(limit)
    assert limits == {"itl", "memory"}


@graded(PLAN, points=1)
def test_refuses_what_cannot_be_served(student):
    model = student.Model(**LLAMA_3_8B)
    small, large = (student.Card(size * 2**30, 3.35e12, 989.4e12) for size in (16, 80))
    with pytest.raises(ValueError):  # 14.96 GiB of weights, 14.4 GiB to use
        student.plan_decode(model, small, prompt_len=10, output_len=10, itl_s=1.0)
    with pytest.raises(ValueError):  # 4.5 ms for the weights alone
        student.plan_decode(model, large, prompt_len=10, output_len=10, itl_s=0.004)
    alone = student.plan_decode(model, large, prompt_len=10, output_len=10, itl_s=0.004535)
    assert alone.batch_size >= 1


@graded(PLAN, points=1)
def test_finds_a_batch_of_a_million_without_trying_them_all(student):
    sizes = TINY | dict(num_layers=40)
    card = student.Card(1e12, 1e12, 1e13)
    for itl_s in (10.0, 0.1):
        plan = student.plan_decode(student.Model(**sizes), card, prompt_len=100, output_len=20, itl_s=itl_s)
        assert plan.batch_size > 500_000
        assert plan.limit == ("memory" if itl_s == 10.0 else "itl")
