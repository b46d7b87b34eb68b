"""Generation: with a cache as without one, in a batch as alone, and as transformers does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.generation.generate import (
    decode_steps,
    generate,
    generate_batch,
    generate_uncached,
    last_logits,
    make_cache,
)
from minillm.sampling import SamplingParams, sample

GREEDY = SamplingParams(temperature=0, max_new_tokens=20)
EVERYTHING = SamplingParams(
    max_new_tokens=20, temperature=1.4, top_k=20, top_p=0.95, min_p=0.01, repetition_penalty=1.2,
    no_repeat_ngram_size=2,
)  # fmt: skip
PROMPT = [3, 17, 5, 29, 11]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("changes", [
    {}, {"num_kv_heads": 1}, {"num_kv_heads": 4}, {"windows": (None, 4)}, {"qk_norm": True},
    {"tie_embeddings": True},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("params", [GREEDY, SamplingParams(max_new_tokens=20), EVERYTHING])
def test_cached_equals_uncached(make_model, changes, params):
    model = make_model(1, **changes)
    cached = generate(model, PROMPT, params, generator=seeded(7))
    assert cached == generate_uncached(model, PROMPT, params, generator=seeded(7))
    assert len(cached) == 20
    assert len(set(cached)) > 3, "a model that repeats itself proves little"


@settings(max_examples=25, deadline=None)
@given(chunks=st.lists(st.integers(1, 6), min_size=1, max_size=7), seed=st.integers(0, 3))
def test_any_chunking_of_the_prefill_gives_the_same_tokens(make_model, chunks, seed):
    model = make_model(seed, windows=(None, 3))
    prompt = torch.randint(0, 41, (sum(chunks),), generator=seeded(seed)).tolist()
    params = SamplingParams(max_new_tokens=5)
    token_ids, generator = list(prompt), seeded(9)
    cache = make_cache(model, batch_size=1, max_seq_len=len(prompt) + 5)
    with torch.inference_mode():
        start = 0
        for chunk in chunks:
            logits = last_logits(model, cache, [prompt[start : start + chunk]])
            torch.testing.assert_close(logits[0], model(torch.tensor(prompt[: start + chunk]))[-1], rtol=0, atol=1e-10)
            start += chunk
        for _ in range(5):
            token_ids.append(sample(logits[0], params, token_ids, generator))
            logits = last_logits(model, cache, [token_ids[-1:]])
    assert token_ids[len(prompt) :] == generate_uncached(model, prompt, params, generator=seeded(9))


@settings(max_examples=25, deadline=None)
@given(
    prompt_lens=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    params=st.lists(
        st.builds(
            SamplingParams,
            max_new_tokens=st.integers(0, 12),
            temperature=st.sampled_from([0, 0.7, 1.5]),
            top_k=st.sampled_from([None, 7]),
            repetition_penalty=st.sampled_from([None, 1.4]),
            no_repeat_ngram_size=st.sampled_from([None, 2]),
            stop_token_ids=st.sampled_from([(), (4, 5, 6)]),
            ignore_eos=st.booleans(),
        ),
        min_size=5,
        max_size=5,
    ),
)
def test_a_batch_equals_one_at_a_time(make_model, prompt_lens, seed, params):
    """Ragged prompts, own settings and generators; several end tokens, so rows leave at different steps."""
    model = make_model(2, eos_token_ids=(0, 1, 2, 3), windows=(5, None))
    prompts = [torch.randint(0, 41, (n,), generator=seeded(seed + i)).tolist() for i, n in enumerate(prompt_lens)]
    params = params[: len(prompts)]
    alone = [
        generate_uncached(model, prompt, p, generator=seeded(i))
        for i, (prompt, p) in enumerate(zip(prompts, params, strict=True))
    ]
    assert generate_batch(model, prompts, params, generators=[seeded(i) for i in range(len(prompts))]) == alone


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(max_new_tokens=20, top_p=0.9)])
def test_a_float32_batch_equals_one_at_a_time_until_two_tokens_are_nearly_tied(make_model, params):
    model = make_model(3, dtype=torch.float32)
    prompts = [PROMPT, [8], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [40, 0]]
    together = generate_batch(model, prompts, params, generators=[seeded(i) for i in range(4)])
    num_compared = 0
    for i, prompt in enumerate(prompts):
        alone = generate(model, prompt, params, generator=seeded(i))
        num_sure = len(alone)
        if params.temperature == 0:
            logits = model(torch.tensor(prompt + alone))[len(prompt) - 1 : -1]
            top_2 = logits.topk(2, dim=-1).values
            near_ties = (top_2[:, 0] - top_2[:, 1] < 1e-3).nonzero().flatten().tolist()
            num_sure = min([*near_ties, num_sure])
        assert together[i][:num_sure] == alone[:num_sure]
        num_compared += num_sure
    assert num_compared >= 40


def test_rows_that_ended_are_not_computed(make_model, monkeypatch):
    model = make_model(2)
    batch_sizes = []
    embed = model.embed
    monkeypatch.setattr(model, "embed", lambda tokens: batch_sizes.append(len(tokens)) or embed(tokens))
    params = [SamplingParams(max_new_tokens=n) for n in (3, 1, 0, 2)]
    generate_batch(model, [[1], [2, 3], [4], [5, 6, 7]], params)
    assert batch_sizes == [3, 2, 1]


def test_the_prefill_unembeds_one_row_only(make_model, monkeypatch):
    model = make_model(2)
    shapes = []
    unembed = model.unembed
    monkeypatch.setattr(model, "unembed", lambda h: shapes.append(tuple(h.shape)) or unembed(h))
    generate(model, PROMPT, SamplingParams(max_new_tokens=2))
    generate_batch(model, [PROMPT, [1, 2]], SamplingParams(max_new_tokens=1))
    assert shapes == [(1, 48), (1, 48), (2, 48)]


@pytest.mark.parametrize("eos_token_ids", [(), (7,), (7, 19, 23, 30, 2)])
@pytest.mark.parametrize("filters", [{}, {"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}])
def test_greedy_equals_transformers(make_model, to_transformers, eos_token_ids, filters):
    for seed in range(3):
        model = make_model(seed, eos_token_ids=eos_token_ids)
        expected = to_transformers(model).generate(
            torch.tensor([PROMPT]), attention_mask=torch.ones(1, len(PROMPT)), do_sample=False,
            max_new_tokens=25, pad_token_id=0, **filters,
        )  # fmt: skip
        params = SamplingParams(temperature=0, max_new_tokens=25, **filters)
        assert generate(model, PROMPT, params) == expected[0, len(PROMPT) :].tolist()


def test_end_tokens(make_model):
    params = SamplingParams(temperature=0, max_new_tokens=15)
    free = generate(make_model(5), PROMPT, params)
    ending = free[4]
    cut = free[: free.index(ending) + 1]  # the ending token is part of the output
    assert len(cut) < len(free)
    model = make_model(5, eos_token_ids=(40, ending))
    stop = SamplingParams(temperature=0, max_new_tokens=15, stop_token_ids=(ending,))
    ignoring = SamplingParams(temperature=0, max_new_tokens=15, ignore_eos=True)
    stop_ignoring = SamplingParams(temperature=0, max_new_tokens=15, ignore_eos=True, stop_token_ids=(ending,))
    for generate_one in (
        generate, generate_uncached, lambda model, prompt, params: generate_batch(model, [prompt], params)[0]
    ):  # fmt: skip
        assert generate_one(model, PROMPT, params) == cut
        assert generate_one(make_model(5), PROMPT, stop) == cut
        assert generate_one(model, PROMPT, ignoring) == free
        assert generate_one(model, PROMPT, stop_ignoring) == cut


@pytest.mark.parametrize("prompt_len, expected", [(1, 11), (10, 2), (11, 1), (12, 0)])
def test_generation_stops_at_max_seq_len(make_model, prompt_len, expected):
    model = make_model(0, max_seq_len=12)
    prompt = list(range(prompt_len))
    assert len(generate(model, prompt, GREEDY)) == expected
    assert generate_uncached(model, prompt, GREEDY) == generate(model, prompt, GREEDY)
    batch = generate_batch(model, [prompt, [1, 2, 3]], GREEDY)
    assert batch == [generate(model, prompt, GREEDY), generate(model, [1, 2, 3], GREEDY)]


@pytest.mark.parametrize("prompt, message", [
    ([], "is empty"),
    (list(range(13)), "has 13 tokens: expected at most 12"),
    ([1, 41], "token id 41: expected ids from 0 to 40"),
    ([-1], "token id -1"),
    ([1.5], "integer token ids"),
    ("text", "integer token ids"),
    (None, "integer token ids"),
])  # fmt: skip
def test_bad_prompts_raise(make_model, prompt, message):
    model = make_model(0, max_seq_len=12)
    # The prompt is checked even if nothing is to be generated.
    for params in (GREEDY, SamplingParams(max_new_tokens=0)):
        with pytest.raises(ValueError, match=message):
            generate(model, prompt, params)
        with pytest.raises(ValueError, match=message):
            generate_uncached(model, prompt, params)
        with pytest.raises(ValueError, match=f"prompt 1 .*{message}"):
            generate_batch(model, [[1], prompt], params)


def test_nothing_to_do(make_model):
    nothing = SamplingParams(max_new_tokens=0)
    assert generate(make_model(), PROMPT, nothing) == []
    assert generate_uncached(make_model(), PROMPT, nothing) == []
    assert generate_batch(make_model(), [PROMPT, [1]], nothing) == [[], []]
    assert generate_batch(make_model(), [], GREEDY) == []


def test_batch_arguments_of_different_lengths_raise(make_model):
    with pytest.raises(ValueError, match="2 prompts, 1 params, 2 generators"):
        generate_batch(make_model(), [[1], [2]], [GREEDY])
    with pytest.raises(ValueError, match="2 prompts, 2 params, 3 generators"):
        generate_batch(make_model(), [[1], [2]], GREEDY, generators=[None] * 3)


def test_arguments_are_left_alone_and_tensors_are_welcome(make_model):
    prompt = list(PROMPT)
    expected = generate(make_model(), prompt, GREEDY)
    generate_batch(make_model(), [prompt], GREEDY)
    generate_uncached(make_model(), prompt, GREEDY)
    assert prompt == PROMPT
    assert generate(make_model(), torch.tensor(PROMPT), GREEDY) == expected
    assert all(type(token_id) is int for token_id in expected)


def test_steps_come_one_at_a_time_and_leave_grad_mode_alone(make_model, monkeypatch):
    model = make_model()
    num_forwards = []
    embed = model.embed
    monkeypatch.setattr(model, "embed", lambda tokens: num_forwards.append(1) or embed(tokens))
    steps = decode_steps(model, PROMPT, GREEDY)
    assert len(num_forwards) == 0
    first = next(steps)
    assert len(num_forwards) == 1
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert [first, *steps] == generate(model, PROMPT, GREEDY)


def test_the_default_generator_is_used_without_one(make_model):
    params = SamplingParams(max_new_tokens=10)
    torch.manual_seed(4)
    first = generate(make_model(), PROMPT, params)
    torch.manual_seed(4)
    assert generate(make_model(), PROMPT, params) == first
    assert generate(make_model(), PROMPT, params) != first
