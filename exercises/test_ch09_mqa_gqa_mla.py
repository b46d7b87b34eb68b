"""Chapter 09: MQA, GQA, MLA. Run: python3 tasks.py grade ch09"""

from __future__ import annotations

import math

import pytest
import torch

from minillm.attention import naive_attention
from minillm.attention.full import FullAttend
from minillm.cache import ContiguousCache
from minillm.config import MLAConfig, ModelConfig
from minillm.grading import Task, graded
from minillm.model import Transformer
from minillm.perf.flops import count_flops

COST = Task(
    "decode_cost",
    hints=(
        "Which heads multiply, and which heads are read? They are not the same number.",
        "FLOPs: 2 · keys · query heads · (k_head_dim + v_head_dim). Bytes: keys · KV heads · numbers kept · 2 or 4.",
    ),
)
RANK = Task(
    "heads_of_rank",
    hints=(
        "Deal out the query heads first. The KV heads follow: which one does the first of them read, which the last?",
        "group = num_heads // num_kv_heads, all devices together; KV heads from first // group to last // group.",
    ),
)
GROUPED = Task(
    "grouped_decode",
    hints=(
        "Which query heads read the same key? Give them an axis of their own, beside the KV heads.",
        "q.unflatten(0, (num_kv_heads, -1)): now which axes do q and K share, which is summed, which are kept?",
    ),
    forbids=(
        "minillm.attention.naive_attention",
        "minillm.attention.dispatch.attention",
        "torch.nn.functional.scaled_dot_product_attention",
    ),
    max_elements=70 * 2 * 6,  # K of the largest test; repeated to all heads it is 4 times that
)
POOL = Task(
    "pool_heads",
    hints=(
        "Give the weight four axes first: new head, head in its group, row in the head, column.",
        "unflatten(0, …) splits the rows and leaves a column axis alone, where there is one. Average over the group.",
    ),
    forbids=("minillm.model.convert_heads.pool_kv_heads",),
)
STEP = Task(
    "latent_step",
    hints=(
        "Compare the draft with the section line by line: what is normalised, what is cached, in which order are W_UK "
        "and W_UV stacked, how wide is a query head?",
        "Normalise the latent alone; rotate the shared key before it is stored; keys first, then values; scale by "
        "1 / sqrt(nope_dim + rope_dim).",
    ),
    forbids=("minillm.model.mla.MultiHeadLatentAttention", "minillm.model.mla.attend_naive"),
)
H, N, NOPE, ROPE, RANK_, V = 3, 128, 12, 8, 20, 16  # of the larger tests of absorbed_attention
ABSORBED = Task(
    "absorbed_attention",
    hints=(
        "q · (W_UK c) = (W_UKᵀ q) · c. What shape has W_UKᵀ q for all heads? Then do the same behind the sum.",
        "Once moved, a query is as wide as a cache row, and all heads have the same keys: the rows. Mix their first "
        "kv_lora_rank numbers; each head's W_UV then has one vector to expand.",
    ),
    forbids=(
        "minillm.attention.naive_attention",
        "minillm.attention.dispatch.attention",
        "minillm.model.mla.MultiHeadLatentAttention",
        "minillm.model.mla.attend_naive",
        "minillm.model.mla.attend_absorbed",
        "torch.nn.functional.scaled_dot_product_attention",
    ),
    max_elements=3 * N,  # the scores of all heads; the keys of a single head would be 12 · N
)


# ---- decode_cost


@graded(COST, points=1)
def test_query_heads_multiply_and_kv_heads_are_read(student):
    small = student.decode_cost(1, num_heads=4, num_kv_heads=2, k_head_dim=3, v_head_dim=5)
    flops, num_bytes = student.decode_cost(
        7, num_heads=12, num_kv_heads=4, k_head_dim=6, v_head_dim=10, bytes_per_number=4
    )
    assert small == (64, 32)
    assert (flops, num_bytes) == (7 * 12 * (6 + 10) * 2, 7 * 4 * (6 + 10) * 4)


@graded(COST, points=1)
def test_is_what_products_and_slabs_really_are(student):
    num_heads, num_kv_heads, num_keys = 6, 2, 11
    k, v = torch.zeros(num_keys, num_kv_heads, 5), torch.zeros(num_keys, num_kv_heads, 3)
    q = torch.zeros(num_heads, 5)
    counted = 0
    for head in range(num_heads):
        keys, values = k[:, head // 3], v[:, head // 3]
        counted += count_flops(lambda: q[head : head + 1] @ keys.T)  # noqa: B023
        counted += count_flops(lambda: torch.zeros(1, num_keys) @ values)  # noqa: B023
    flops, num_bytes = student.decode_cost(
        num_keys,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        k_head_dim=5,
        v_head_dim=3,
        bytes_per_number=4,
    )
    assert (flops, num_bytes) == (counted, k.nbytes + v.nbytes)


@graded(COST, points=1)
def test_absorbed_latents_are_read_once_for_keys_and_values(student):
    """DeepSeek-V3 on 1000 tokens: 128 heads share keys of 512 + 64 numbers, whose first 512 are the value."""
    flops, num_bytes = student.decode_cost(
        1000, num_heads=128, num_kv_heads=1, k_head_dim=576, v_head_dim=512, v_from_k=True
    )
    assert num_bytes == 1000 * 576 * 2
    assert flops == 1000 * 128 * 2 * (576 + 512)


# ---- heads_of_rank


@graded(RANK, points=1)
def test_eight_heads_four_kv_heads_two_devices(student):
    dealt = [student.heads_of_rank(8, 4, 2, rank) for rank in range(2)]
    assert dealt == [(range(0, 4), range(0, 2)), (range(4, 8), range(2, 4))]


@graded(RANK, points=1)
def test_a_kv_head_is_held_by_every_device_that_reads_it(student):
    """Two KV heads, four devices: the first two hold one, the other two the other."""
    kv_heads = [student.heads_of_rank(8, 2, 4, rank)[1] for rank in range(4)]
    assert kv_heads == [range(0, 1), range(0, 1), range(1, 2), range(1, 2)]
    assert [student.heads_of_rank(16, 1, 8, rank)[1] for rank in range(8)] == [range(0, 1)] * 8


@graded(RANK, points=1)
def test_every_head_finds_its_key_for_all_divisions(student):
    for num_heads, num_kv_heads, tp_size in ((8, 8, 4), (12, 4, 2), (12, 4, 4), (32, 8, 16), (64, 8, 8), (6, 3, 1)):
        ranks = [student.heads_of_rank(num_heads, num_kv_heads, tp_size, rank) for rank in range(tp_size)]
        assert [head for query_heads, _ in ranks for head in query_heads] == list(range(num_heads))
        for query_heads, kv_heads in ranks:
            assert {head * num_kv_heads // num_heads for head in query_heads} == set(kv_heads)
            assert len(kv_heads) == max(1, num_kv_heads // tp_size)


@graded(RANK, points=1)
def test_refuses_what_does_not_divide(student):
    assert student.heads_of_rank(24, 4, 12, 11) == (range(22, 24), range(3, 4))
    for shape in ((8, 4, 3), (12, 4, 3), (12, 4, 6), (71, 1, 2)):
        try:
            dealt = student.heads_of_rank(*shape, 0)
        except ValueError:
            continue
        pytest.fail(f"heads_of_rank{(*shape, 0)} must raise ValueError, and returned {dealt}")


# ---- grouped_decode


def head_by_head(q, k, v, softmax_scale):
    group = q.shape[0] // k.shape[1]
    outs = []
    for head, query in enumerate(q):
        keys, values = k[:, head // group], v[:, head // group]
        outs.append(torch.softmax(keys @ query * softmax_scale, dim=0) @ values)
    return torch.stack(outs)


@graded(GROUPED, points=1)
def test_neighbours_share(student):
    """Head 1 looks at the second token only, the others average: 0 and 2 of one KV head, 10 and 30 of the other."""
    q = torch.tensor([[0.0], [100.0], [0.0], [0.0]])
    k = torch.tensor([[[0.0], [0.0]], [[1.0], [1.0]]])
    v = torch.tensor([[[0.0], [10.0]], [[2.0], [30.0]]])
    out = student.grouped_decode(q, k, v, 1.0)
    assert out[:, 0].tolist() == [1.0, 2.0, 20.0, 20.0]


@graded(GROUPED, points=1)
def test_multi_head_and_multi_query_are_the_two_ends(student, rng):
    for num_kv_heads in (6, 1):
        q = torch.randn(6, 5, generator=rng, dtype=torch.float64)
        k, v = (torch.randn(9, num_kv_heads, 5, generator=rng, dtype=torch.float64) for _ in range(2))
        torch.testing.assert_close(student.grouped_decode(q, k, v, 0.4), head_by_head(q, k, v, 0.4))


@graded(GROUPED, points=2)
def test_equals_naive_attention_without_repeating_k(student, rng):
    q = torch.randn(8, 6, generator=rng, dtype=torch.float64)
    k, v = (torch.randn(70, 2, 6, generator=rng, dtype=torch.float64) for _ in range(2))
    expected, _ = naive_attention(q[None, None], k[None], v[None], softmax_scale=0.7)
    torch.testing.assert_close(student.grouped_decode(q, k, v, 0.7), expected[0, 0])


# ---- pool_heads


@graded(POOL, points=1)
def test_four_heads_of_one_row_become_two(student):
    weight = torch.tensor([[1.0], [3.0], [10.0], [20.0]])
    assert student.pool_heads(weight, 2, head_dim=1).tolist() == [[2.0], [15.0]]


@graded(POOL, points=2)
def test_rows_of_neighbouring_heads_are_averaged_one_by_one(student, rng):
    for old, new, head_dim in ((6, 2, 4), (4, 4, 3), (4, 1, 5)):
        weight = torch.randn(old * head_dim, 7, generator=rng)
        pooled = student.pool_heads(weight, new, head_dim)
        assert pooled.shape == (new * head_dim, 7)
        group = old // new
        for head in range(new):
            for row in range(head_dim):
                members = [weight[(head * group + i) * head_dim + row] for i in range(group)]
                torch.testing.assert_close(pooled[head * head_dim + row], sum(members) / group)


@graded(POOL, points=1)
def test_pools_biases_and_refuses_unequal_groups(student, rng):
    bias = torch.randn(4 * 3, generator=rng)
    expected = torch.stack([(bias[0:3] + bias[3:6]) / 2, (bias[6:9] + bias[9:12]) / 2]).flatten()
    torch.testing.assert_close(student.pool_heads(bias, 2, 3), expected)
    with pytest.raises(ValueError):
        student.pool_heads(torch.zeros(4 * 3, 2), 3, 3)


# ---- latent_step


def latent_layer(rng, *, hidden=14, num_heads=3, rank=10, nope=6, rope=4, v_dim=5):
    """A layer of the library in float64 with random weights, and the pieces of it that a student gets."""
    config = ModelConfig(
        vocab_size=11, hidden_size=hidden, intermediate_size=8, num_layers=1, num_heads=num_heads,
        num_kv_heads=num_heads, head_dim=rope, max_seq_len=64,
        mla=MLAConfig(None, rank, nope, rope, v_dim), model_type="deepseek_v3",
    )  # fmt: skip
    model = Transformer(config).double().requires_grad_(False)
    attention = model.blocks[0].attention
    for parameter in attention.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64) * 0.6)
    weights = {
        "w_q": attention.wq.weight.unflatten(0, (num_heads, -1)),
        "w_down": attention.wkv_a.weight,
        "norm": attention.kv_norm.weight,
        "w_up": attention.wkv_b.weight.unflatten(0, (num_heads, -1)),
        "w_o": attention.wo.weight.unflatten(1, (num_heads, -1)),
    }
    return model, attention, weights


def feed(student, weights, xs):
    """The outputs of all tokens of a sequence, fed one by one, and the cache at the end."""
    w = student.LatentWeights(**weights)
    cache = torch.zeros(0, w.w_down.shape[0], dtype=xs.dtype)
    outs = []
    for position, x in enumerate(xs):
        out, cache = student.latent_step(x, position, cache, w)
        outs.append(out)
    return torch.stack(outs), cache


@graded(STEP, points=1)
def test_a_lonely_token_gets_its_own_value(student, rng):
    """One key has all the weight, whatever the score: only the values and the norm matter."""
    _, _, weights = latent_layer(rng)
    x = torch.randn(14, generator=rng, dtype=torch.float64)
    latent = weights["w_down"][:10] @ x
    latent = latent / (latent.square().mean() + 1e-6).sqrt() * weights["norm"]
    value = torch.einsum("hdr,r->hd", weights["w_up"][:, 6:], latent)  # behind the 6 rows of W_UK
    out, _ = feed(student, weights, x[None])
    torch.testing.assert_close(out[0], torch.einsum("mhd,hd->m", weights["w_o"], value))


def kept_by_both(student, rng):
    """The cache rows that the student keeps for six tokens, and the library's."""
    model, attention, weights = latent_layer(rng)
    xs = torch.randn(6, 14, generator=rng, dtype=torch.float64)
    cache = ContiguousCache(model.layer_specs, 1, dtype=torch.float64)
    attend = cache.begin([6])
    attention(xs[None], model.rope.cos_sin(torch.arange(6)[None], torch.float64), attend)
    _, kept = feed(student, weights, xs)
    assert kept.shape == (6, 10 + 4)
    return kept, cache.k[0][0, :6, 0]


@graded(STEP, points=1)
def test_the_latents_in_the_cache_are_those_that_the_library_keeps(student, rng):
    kept, expected = kept_by_both(student, rng)
    torch.testing.assert_close(kept[:, :10], expected[:, :10])


@graded(STEP, points=1)
def test_the_shared_keys_in_the_cache_are_those_that_the_library_keeps(student, rng):
    kept, expected = kept_by_both(student, rng)
    torch.testing.assert_close(kept[:, 10:], expected[:, 10:])


@graded(STEP, points=2)
def test_token_by_token_equals_the_whole_sequence_at_once(student, rng):
    for widths in ({}, {"num_heads": 2, "nope": 4, "rope": 6, "v_dim": 9, "rank": 7}):
        model, attention, weights = latent_layer(rng, **widths)
        attention.form = "naive"
        xs = torch.randn(7, 14, generator=rng, dtype=torch.float64)
        expected = attention(xs, model.rope.cos_sin(torch.arange(7), torch.float64), FullAttend([None]))
        out, _ = feed(student, weights, xs)
        torch.testing.assert_close(out, expected)


# ---- absorbed_attention


def expanded(q_nope, q_rope, cache, w_up, softmax_scale):
    """The naive form: keys and values of every head, then the library's naive attention."""
    num_heads, nope = q_nope.shape
    rank = w_up.shape[2]
    per_head = torch.einsum("hdr,nr->nhd", w_up, cache[:, :rank])
    k_rope = cache[:, None, rank:].expand(-1, num_heads, -1)
    k = torch.cat((per_head[..., :nope], k_rope), dim=-1)
    q = torch.cat((q_nope, q_rope), dim=-1)
    out, _ = naive_attention(q[None, None], k[None], per_head[None, ..., nope:], softmax_scale=softmax_scale)
    return out[0, 0]


def latent_problem(rng, num_heads=H, num_keys=N, nope=NOPE, rope=ROPE, rank=RANK_, v_dim=V):
    def random(*shape):
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    w_up = random(num_heads, nope + v_dim, rank) / rank**0.5
    return random(num_heads, nope), random(num_heads, rope), random(num_keys, rank + rope), w_up


@graded(ABSORBED, points=1)
def test_the_example_by_hand(student):
    """Keys 2 and 4, weights 1/4 and 3/4, values 5 and 10."""
    out = student.absorbed_attention(
        torch.tensor([[3.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0, 0.0], [2.0, 0.0]]),
        torch.tensor([[[2.0], [5.0]]]), math.log(3) / 6,
    )  # fmt: skip
    torch.testing.assert_close(out, torch.tensor([[8.75]]))


@graded(ABSORBED, points=1)
def test_position_is_read_from_the_shared_key(student, rng):
    """The queries have no part without position: only the rotated numbers decide where the heads look."""
    _, q_rope, cache, w_up = latent_problem(rng, num_keys=9)
    q_nope = torch.zeros(H, NOPE, dtype=torch.float64)
    expected = expanded(q_nope, q_rope, cache, w_up, 0.6)
    torch.testing.assert_close(student.absorbed_attention(q_nope, q_rope, cache, w_up, 0.6), expected)


@graded(ABSORBED, points=2)
def test_absorbed_equals_expanded_and_keeps_no_head(student, rng):
    for widths in ({}, {"num_heads": 2, "num_keys": 5, "nope": 3, "rope": 2, "rank": 7, "v_dim": 4}):
        problem = latent_problem(rng, **widths)
        torch.testing.assert_close(student.absorbed_attention(*problem, 0.4), expanded(*problem, 0.4))


@graded(ABSORBED, points=2)
def test_does_no_more_arithmetic_than_latents_need(student, rng):
    problem = latent_problem(rng)
    outs = []
    flops = count_flops(lambda: outs.append(student.absorbed_attention(*problem, 0.4)))
    torch.testing.assert_close(outs[0], expanded(*problem, 0.4))
    budget = 2 * H * (NOPE * RANK_ + N * (RANK_ + ROPE) + N * RANK_ + RANK_ * V)
    # The graders look at the result while we count; that is the tenth. Expanding costs ten times the budget.
    assert flops <= 1.1 * budget, f"{flops:,} FLOPs; absorbed attention needs {budget:,}"
