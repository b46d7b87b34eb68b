"""Chapter 08: the KV cache. Run: python3 tasks.py grade ch08"""

from __future__ import annotations

import pytest
import torch

from minillm import ModelConfig, load_model
from minillm.attention import naive_attention
from minillm.grading import Task, graded
from minillm.model import Transformer

BYTES = Task(
    "kv_bytes",
    hints=(
        "Every layer keeps something for every token. How many things, and how many numbers does each have?",
        "2 (K and V) · num_layers · num_kv_heads · head_dim numbers a token, times seq_len, times the bytes of a number.",
    ),
)
FLOPS = Task(
    "flops_to_generate",
    hints=(
        "Write down the forwards of the example one by one: how many queries, how many keys?",
        "Forward number s (from 0) sees prompt_len + s keys. Its queries: all of them without a cache; with one, 1, "
        "except in the first forward.",
    ),
)
APPEND = Task(
    "append",
    hints=("The free slots are those from seq_len on. Check before you write.", "slab[seq_len : seq_len + len(new)] = new"),
    forbids=("torch.cat", "torch.concat", "minillm.cache.ContiguousCache"),
)
ATTEND = Task(
    "attend_to_cache",
    hints=(
        "Draw the mask for q_len = 2 and k_len = 5. Which keys does the first of the two queries see?",
        "The queries stand at positions k_len - q_len ... k_len - 1. A key is in the future if its position is larger.",
    ),
    forbids=(
        "minillm.attention.naive_attention",
        "minillm.attention.dispatch.attention",
        "torch.nn.functional.scaled_dot_product_attention",
    ),
)
CACHE = Task(
    "KVCache",
    hints=(
        "begin only announces; __call__ writes and attends, once a layer; commit alone moves seq_len.",
        "Every layer of one forward writes at the same cache.seq_len. positions = arange(seq_len, seq_len + query_len).",
    ),
    forbids=(
        "minillm.cache.ContiguousCache",
        "minillm.attention.naive_attention",
        "minillm.attention.dispatch.attention",
        "torch.nn.functional.scaled_dot_product_attention",
    ),
    seconds=30,
)
GENERATE = Task(
    "greedy_generate",
    hints=(
        "Print cache.seq_len after each forward of hasty_generate, and the token that it feeds.",
        "Nothing is committed; the same token is fed every time; the loop makes one token too many.",
    ),
    forbids=("minillm.generate", "minillm.generation.generate.generate", "minillm.generation.generate.decode_steps"),
    seconds=30,
)


# ---- kv_bytes


@graded(BYTES, points=1)
def test_one_token_of_one_head_of_one_layer_keeps_a_key_and_a_value(student):
    assert student.kv_bytes(1, num_layers=1, num_kv_heads=1, head_dim=8, bytes_per_number=4) == 64


@graded(BYTES, points=1)
def test_gives_the_sizes_of_known_models(student):
    llama_2_13b = student.kv_bytes(1, num_layers=40, num_kv_heads=40, head_dim=128, bytes_per_number=2)
    llama_3_8b = student.kv_bytes(8192, num_layers=32, num_kv_heads=8, head_dim=128, bytes_per_number=2)
    opt_66b = student.kv_bytes(512, num_layers=64, num_kv_heads=72, head_dim=128, bytes_per_number=2)
    bundled = student.kv_bytes(512, num_layers=6, num_kv_heads=4, head_dim=32, bytes_per_number=4)
    assert (llama_2_13b, llama_3_8b, opt_66b) == (800 * 2**10, 2**30, 1.125 * 2**30)
    assert bundled == 3 * 2**20


# ---- flops_to_generate


@graded(FLOPS, points=1)
def test_without_a_cache_every_forward_reads_everything_again(student):
    assert student.flops_to_generate(2, 3, 10, 1, cached=False) == 24 + 39 + 56


@graded(FLOPS, points=1)
def test_with_a_cache_only_the_first_forward_reads_the_prompt(student):
    assert student.flops_to_generate(2, 3, 10, 1, cached=True) == 24 + 13 + 14


@graded(FLOPS, points=1)
def test_one_new_token_costs_the_same_with_and_without(student):
    for cached in (False, True):
        assert student.flops_to_generate(7, 1, 3, 5, cached=cached) == 3 * 7 + 5 * 7 * 7
        assert student.flops_to_generate(7, 0, 3, 5, cached=cached) == 0


@graded(FLOPS, points=1)
def test_agrees_with_multiplications_counted_one_by_one(student, rng):
    prompt_len, new, a, b = (int(x) for x in torch.randint(2, 9, (4,), generator=rng))
    for cached in (False, True):
        known, sequence, count = 0, prompt_len, 0
        for _ in range(new):
            for _query in range(sequence - known if cached else sequence):
                count += a
                for _key in range(sequence):
                    count += b
            known, sequence = sequence, sequence + 1
        assert student.flops_to_generate(prompt_len, new, a, b, cached=cached) == count


# ---- append


@graded(APPEND, points=1)
def test_new_tokens_follow_those_held_and_nothing_else_changes(student):
    slab = torch.zeros(5, 1, 2)
    slab[:2] = torch.tensor([[[1.0, 1.0]], [[2.0, 2.0]]])
    student.append(slab, 2, torch.tensor([[[3.0, 3.0]], [[4.0, 4.0]]]))
    assert slab[:, 0, 0].tolist() == [1, 2, 3, 4, 0]


@graded(APPEND, points=1)
def test_returns_a_view_of_what_is_held_now(student, rng):
    slab = torch.randn(6, 2, 3, generator=rng)
    held = student.append(slab, 1, torch.randn(3, 2, 3, generator=rng))
    assert held.shape == (4, 2, 3)
    torch.testing.assert_close(held, slab[:4])
    slab[0] = 7.0  # a copy would not notice
    assert held[0, 0, 0] == 7.0


@graded(APPEND, points=1)
def test_fills_the_slab_to_the_last_slot_and_refuses_one_more(student, rng):
    slab = torch.zeros(3, 1, 2)
    assert len(student.append(slab, 1, torch.randn(2, 1, 2, generator=rng))) == 3
    before = slab.clone()
    with pytest.raises(ValueError):
        student.append(slab, 2, torch.randn(2, 1, 2, generator=rng))
    assert torch.equal(slab, before), "a refused append must leave the slab as it was"


# ---- attend_to_cache


def oracle(q, k, v, softmax_scale):
    """The library's naive attention, which aligns the mask bottom-right, on one head."""
    out, _ = naive_attention(q[None, :, None], k[None, :, None], v[None, :, None], softmax_scale=softmax_scale)
    return out[0, :, 0]


@graded(ATTEND, points=1)
def test_two_queries_with_equal_scores_average_what_they_may_see(student):
    q, k = torch.zeros(2, 4), torch.zeros(4, 4)
    v = torch.tensor([[0.0], [6.0], [12.0], [18.0]])
    out = student.attend_to_cache(q, k, v, 1.0)
    assert out[:, 0].tolist() == [6.0, 9.0]  # the first sees keys 0, 1 and 2, the second all four


@graded(ATTEND, points=1)
def test_a_single_query_sees_every_key(student, rng):
    q, k, v = (torch.randn(n, 8, generator=rng, dtype=torch.float64) for n in (1, 9, 9))
    torch.testing.assert_close(student.attend_to_cache(q, k, v, 0.3), oracle(q, k, v, 0.3))


@graded(ATTEND, points=1)
def test_equals_ordinary_causal_attention_when_everything_is_new(student, rng):
    q, k, v = (torch.randn(7, 8, generator=rng, dtype=torch.float64) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5)
    torch.testing.assert_close(student.attend_to_cache(q, k, v, 0.5), expected)


@graded(ATTEND, points=2)
def test_a_chunk_in_the_middle_sees_the_past_and_its_own_past(student, rng):
    for q_len, k_len in ((2, 5), (4, 11), (10, 11)):
        q, k, v = (torch.randn(n, 8, generator=rng, dtype=torch.float64) for n in (q_len, k_len, k_len))
        torch.testing.assert_close(student.attend_to_cache(q, k, v, 0.3), oracle(q, k, v, 0.3))


# ---- KVCache


def tiny_model(num_kv_heads: int = 2) -> Transformer:
    """Three layers, random weights that are large enough for attention to matter."""
    config = ModelConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_layers=3,
        num_heads=4,
        num_kv_heads=num_kv_heads,
        head_dim=8,
        max_seq_len=64,
    )
    model = Transformer(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


@torch.inference_mode()
def feed(model, cache, tokens, chunk_lens):
    """Logits of `tokens`, fed in chunks."""
    logits, start = [], 0
    for chunk_len in chunk_lens:
        attend = cache.begin(chunk_len)
        logits.append(model(tokens[start : start + chunk_len], attend.positions, attend))
        cache.commit()
        start += chunk_len
    return torch.cat(logits)


@graded(CACHE, points=1)
def test_positions_go_on_where_the_sequence_ended(student):
    model = tiny_model()
    cache = student.KVCache(model.layer_specs, capacity=16)
    assert cache.begin(3).positions.tolist() == [0, 1, 2]
    feed(model, cache, torch.tensor([1, 2, 3]), [3])
    assert cache.seq_len == 3
    assert cache.begin(2).positions.tolist() == [3, 4]


@graded(CACHE, points=1)
def test_only_commit_makes_tokens_count(student):
    model = tiny_model()
    cache = student.KVCache(model.layer_specs, capacity=16)
    attend = cache.begin(3)
    with torch.inference_mode():
        model(torch.tensor([1, 2, 3]), attend.positions, attend)
    assert cache.seq_len == 0
    cache.commit()
    cache.commit()
    assert cache.seq_len == 3


@graded(CACHE, points=2)
def test_any_chunking_gives_the_logits_of_one_forward(student, rng):
    model = tiny_model()
    tokens = torch.randint(50, (12,), generator=rng)
    with torch.inference_mode():
        expected = model(tokens)
    for chunk_lens in ([12], [5, 7], [1] * 12, [4, 1, 1, 6]):
        cache = student.KVCache(model.layer_specs, capacity=12)
        torch.testing.assert_close(feed(model, cache, tokens, chunk_lens), expected, rtol=1e-4, atol=1e-4)


@graded(CACHE, points=1)
def test_an_uncommitted_forward_and_a_crop_leave_no_trace(student, rng):
    model = tiny_model(num_kv_heads=1)
    tokens = torch.randint(50, (10,), generator=rng)
    cache = student.KVCache(model.layer_specs, capacity=16)
    feed(model, cache, tokens[:4], [4])
    attend = cache.begin(5)
    with torch.inference_mode():
        model(torch.randint(50, (5,), generator=rng), attend.positions, attend)  # a forward nobody wants
    feed(model, cache, torch.randint(50, (3,), generator=rng), [3])
    cache.crop(4)
    with torch.inference_mode():
        expected = model(tokens)[4:]
    torch.testing.assert_close(feed(model, cache, tokens[4:], [2, 4]), expected, rtol=1e-4, atol=1e-4)


@graded(CACHE, points=1)
def test_refuses_what_does_not_fit(student):
    model = tiny_model()
    cache = student.KVCache(model.layer_specs, capacity=4)
    feed(model, cache, torch.tensor([1, 2, 3]), [3])
    with pytest.raises(ValueError):
        cache.begin(2)
    with pytest.raises(ValueError):
        cache.crop(4)
    with pytest.raises(ValueError):
        cache.crop(-1)
    assert cache.seq_len == 3


@graded(CACHE, points=1)
def test_your_cache_runs_the_bundled_model(student, rng):
    model = load_model()
    tokens = torch.randint(model.config.vocab_size, (24,), generator=rng)
    with torch.inference_mode():
        expected = model(tokens)
    cache = student.KVCache(model.layer_specs, capacity=32)
    torch.testing.assert_close(feed(model, cache, tokens, [20, 1, 1, 2]), expected, rtol=1e-3, atol=1e-3)


# ---- greedy_generate


class CountingCache:
    """A cache that recomputes everything and counts: slow, right, and it notices who forgets to commit."""

    def __init__(self, model):
        self.model, self.seq_len, self.fed, self.forwards = model, 0, [], []

    def begin(self, query_len):
        self.query_len = query_len
        return self

    @property
    def positions(self):
        return torch.arange(self.seq_len, self.seq_len + self.query_len)

    def commit(self):
        self.seq_len += self.query_len

    def __call__(self, tokens, positions, attend):
        """Stands in for the model: the logits that the bigger sequence would give."""
        self.forwards.append(tokens.tolist())
        self.fed = self.fed[: int(positions[0])] + tokens.tolist()
        with torch.inference_mode():
            return self.model(torch.tensor(self.fed))[-len(tokens) :]


def greedy_by_recomputation(model, prompt, num_new_tokens):
    token_ids = list(prompt)
    with torch.inference_mode():
        for _ in range(num_new_tokens):
            token_ids.append(int(model(torch.tensor(token_ids))[-1].argmax()))
    return token_ids[len(prompt) :]


@graded(GENERATE, points=1)
def test_zero_and_one_token(student):
    model = tiny_model()
    cache = CountingCache(model)
    assert student.greedy_generate(cache, cache, [1, 2, 3], 0) == []
    assert cache.forwards == []
    assert student.greedy_generate(cache, cache, [1, 2, 3], 1) == greedy_by_recomputation(model, [1, 2, 3], 1)


@graded(GENERATE, points=1)
def test_chooses_the_tokens_that_recomputing_everything_chooses(student, rng):
    model = tiny_model()
    prompt = torch.randint(50, (6,), generator=rng).tolist()
    cache = CountingCache(model)
    assert student.greedy_generate(cache, cache, prompt, 8) == greedy_by_recomputation(model, prompt, 8)


@graded(GENERATE, points=1)
def test_feeds_the_prompt_once_and_then_one_token_at_a_time(student, rng):
    prompt = torch.randint(50, (5,), generator=rng).tolist()
    cache = CountingCache(tiny_model())
    new = student.greedy_generate(cache, cache, prompt, 4)
    assert cache.forwards == [prompt, new[:1], new[1:2], new[2:3]]
    assert cache.seq_len == len(prompt) + 3
