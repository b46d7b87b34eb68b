"""Sampling against transformers' logits processors, and against brute force on small vocabularies."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from minillm.sampling import (
    SamplingParams,
    ban_repeated_ngrams,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    process_logits,
    sample,
    token_probs,
)

VOCAB_SIZE = 29


def random_logits(seed: int, *shape: int, with_ties: bool = False) -> torch.Tensor:
    logits = 2.5 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return logits.round() if with_ties else logits


def transformers_processors(params: SamplingParams) -> LogitsProcessorList:
    """What `transformers.generate` builds from the same settings, in its order."""
    processors = LogitsProcessorList()
    if params.repetition_penalty is not None:
        processors.append(RepetitionPenaltyLogitsProcessor(float(params.repetition_penalty)))
    if params.no_repeat_ngram_size is not None:
        processors.append(NoRepeatNGramLogitsProcessor(params.no_repeat_ngram_size))
    processors.append(TemperatureLogitsWarper(float(params.temperature)))
    if params.top_k is not None:
        processors.append(TopKLogitsWarper(params.top_k))
    if params.top_p is not None:
        processors.append(TopPLogitsWarper(params.top_p))
    if params.min_p is not None:
        processors.append(MinPLogitsWarper(params.min_p))
    return processors


def optional(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | strategy


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    with_ties=st.booleans(),
    # Five ids in up to forty places: repeated tokens and repeated n-grams are the rule.
    token_ids=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    temperature=st.floats(0.05, 5.0),
    top_k=optional(st.integers(1, 2 * VOCAB_SIZE)),
    top_p=optional(st.floats(0.01, 1.0)),
    min_p=optional(st.floats(0.0, 1.0)),
    repetition_penalty=optional(st.floats(0.2, 4.0)),
    no_repeat_ngram_size=optional(st.integers(1, 4)),
)
def test_process_logits_equals_transformers(seed, with_ties, token_ids, **settings_):
    params = SamplingParams(**settings_)
    logits = random_logits(seed, 2, VOCAB_SIZE, with_ties=with_ties)
    history = torch.tensor([token_ids, token_ids])
    expected = transformers_processors(params)(history, logits.clone())
    processed = process_logits(logits, params, token_ids)
    torch.testing.assert_close(process_logits(logits[0], params, token_ids), processed[0], rtol=0, atol=0)
    if with_ties and params.top_p is not None:
        # Which of equal tokens top-p drops is up to the sort, and theirs is not stable. How many is not.
        expected, processed = expected.sort(dim=-1).values, processed.sort(dim=-1).values
    torch.testing.assert_close(processed, expected, rtol=0, atol=0)


def test_every_filter_leaves_its_argument_alone():
    logits = random_logits(0, 3, VOCAB_SIZE)
    before = logits.clone()
    penalize_repetition(logits, [1, 2], 1.5)
    ban_repeated_ngrams(logits, [1, 2, 1], 2)
    keep_top_k(logits, 3)
    keep_top_p(logits, 0.5)
    keep_min_p(logits, 0.5)
    token_probs(logits, SamplingParams(top_k=2), [1])
    assert torch.equal(logits, before)


def test_penalty_weakens_both_signs_and_counts_a_token_once():
    logits = torch.tensor([2.0, -2.0, 2.0, -2.0, 0.0])
    penalized = penalize_repetition(logits, [0, 1, 1, 0, 4], 1.25)
    assert penalized.tolist() == pytest.approx([1.6, -2.5, 2.0, -2.0, 0.0])
    assert torch.equal(penalize_repetition(logits, [], 1.25), logits)


@settings(max_examples=100, deadline=None)
@given(token_ids=st.lists(st.integers(0, 3), max_size=12), ngram_size=st.integers(1, 4))
def test_ngram_ban_by_brute_force(token_ids, ngram_size):
    """A token is banned exactly if appending it makes the last n-gram one that was there before."""
    vocab_size = 6

    def ngrams(ids: list[int]) -> list[tuple[int, ...]]:
        return [tuple(ids[i : i + ngram_size]) for i in range(len(ids) - ngram_size + 1)]

    remaining = ban_repeated_ngrams(torch.zeros(vocab_size), token_ids, ngram_size)
    for token_id in range(vocab_size):
        longer = ngrams([*token_ids, token_id])
        is_repeat = bool(longer) and longer[-1] in longer[:-1]
        assert (remaining[token_id] == -math.inf) == is_repeat


def test_ngram_ban_of_the_whole_vocabulary_is_lifted():
    logits = torch.tensor([[1.0, 3.0, 2.0], [0.0, 1.0, -math.inf]])
    assert torch.equal(ban_repeated_ngrams(logits, [0, 1, 2], 1), logits)
    # Row 1 has nothing left once 0 and 1 are banned; row 0 still has token 2.
    partly = ban_repeated_ngrams(logits, [0, 1], 1)
    assert partly.tolist() == [[-math.inf, -math.inf, 2.0], [0.0, 1.0, -math.inf]]
    params = SamplingParams(temperature=0, no_repeat_ngram_size=1)
    assert sample(torch.tensor([1.0, 3.0, 2.0]), params, [2, 1, 0]) == 1


@pytest.mark.parametrize("probs, top_p, kept", [
    ([0.5, 0.3, 0.15, 0.05], 0.4, {0}),
    ([0.5, 0.3, 0.15, 0.05], 0.6, {0, 1}),
    ([0.5, 0.3, 0.15, 0.05], 0.94, {0, 1, 2}),
    ([0.5, 0.3, 0.15, 0.05], 1e-9, {0}),
    ([0.5, 0.3, 0.15, 0.05], 1.0, {0, 1, 2, 3}),
    ([0.05, 0.15, 0.3, 0.5], 0.6, {2, 3}),
])  # fmt: skip
def test_top_p_keeps_the_token_that_crosses(probs, top_p, kept):
    filtered = keep_top_p(torch.tensor(probs).log(), top_p)
    assert set(filtered.isfinite().nonzero().flatten().tolist()) == kept


def test_top_k_keeps_ties_and_tolerates_k_beyond_the_vocabulary():
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0])
    assert keep_top_k(logits, 2).isfinite().tolist() == [False, True, True, True, False]
    assert torch.equal(keep_top_k(logits, 1000), logits)


@pytest.mark.parametrize("params", [
    SamplingParams(top_k=1),
    SamplingParams(top_p=1e-6),
    SamplingParams(min_p=1.0),
    SamplingParams(top_k=1, top_p=1e-6, min_p=1.0, temperature=1e-6),
    SamplingParams(temperature=1e-6),
    SamplingParams(temperature=0),
])  # fmt: skip
def test_the_harshest_settings_keep_the_most_likely_token(params):
    for seed in range(5):
        logits = random_logits(seed, VOCAB_SIZE)
        assert sample(logits, params, [0]) == int(logits.argmax())


def test_greedy_applies_penalty_and_ngram_ban_and_draws_nothing():
    logits = torch.tensor([3.0, 2.9, 1.0, 0.5])
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert sample(logits, SamplingParams(temperature=0), [0], generator) == 0
    assert sample(logits, SamplingParams(temperature=0, repetition_penalty=2.0), [0], generator) == 1
    ban = SamplingParams(temperature=0, no_repeat_ngram_size=2)
    assert sample(logits, ban, [2, 0, 2], generator) == 1
    assert torch.equal(generator.get_state(), state)
    assert sample(torch.tensor([1.0, 5.0, 5.0]), SamplingParams(temperature=0), [0]) == 1  # lowest id on ties


def test_token_probs_is_one_hot_at_temperature_0():
    logits = random_logits(3, 4, VOCAB_SIZE)
    probs = token_probs(logits, SamplingParams(temperature=0), [0])
    assert torch.equal(probs, torch.nn.functional.one_hot(logits.argmax(-1), VOCAB_SIZE).float())


def test_token_probs_by_brute_force():
    """Textbook definitions on plain floats: sort, walk, renormalise."""
    params = SamplingParams(temperature=0.7, top_k=6, top_p=0.8, min_p=0.12, repetition_penalty=1.3)
    for seed in range(30):
        logits = random_logits(seed, 9)
        token_ids = [seed % 9, (seed + 4) % 9]
        scores = logits.tolist()
        for i in set(token_ids):
            scores[i] = scores[i] * 1.3 if scores[i] < 0 else scores[i] / 1.3
        ranked = sorted(range(9), key=lambda i: -scores[i])[:6]
        weights = {i: math.exp(scores[i] / 0.7) for i in ranked}
        kept, mass = [], 0.0
        for i in ranked:
            if mass >= 0.8 * sum(weights.values()):
                break
            kept.append(i)
            mass += weights[i]
        kept = [i for i in kept if weights[i] >= 0.12 * weights[ranked[0]]]
        total = sum(weights[i] for i in kept)
        expected = [weights[i] / total if i in kept else 0.0 for i in range(9)]
        assert token_probs(logits, params, token_ids).tolist() == pytest.approx(expected, abs=1e-6)


def test_sample_follows_token_probs():
    """Chi-square at 20,000 draws: a share that is 10 % off for one common token is seen."""
    params = SamplingParams(temperature=1.3, top_k=5)
    logits = random_logits(7, 8)
    probs = token_probs(logits, params, [0])
    generator = torch.Generator().manual_seed(11)
    num_draws = 20_000
    counts = torch.zeros(8)
    for _ in range(num_draws):
        counts[sample(logits, params, [0], generator)] += 1
    possible = probs > 0
    assert counts[~possible].sum() == 0
    chi_square = ((counts - num_draws * probs)[possible] ** 2 / (num_draws * probs[possible])).sum()
    assert chi_square < 18.5  # 4 degrees of freedom, one in a thousand


@pytest.mark.parametrize("uniform, expected", [(0.0, 1), (0.4999, 1), (0.5, 3), (1 - 2**-53, 3)])
def test_sample_never_takes_a_token_of_probability_0(monkeypatch, uniform, expected):
    """Not even at the ends of [0, 1): tokens 0, 2 and 4 are out, 1 and 3 share evenly."""
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(uniform, dtype=torch.float64))
    assert sample(torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf]), SamplingParams(), [0]) == expected


def test_sample_depends_on_its_own_generator_only():
    logits = random_logits(5, 4, VOCAB_SIZE)
    params = SamplingParams(temperature=2.0)
    alone = []
    for row, seed in enumerate([5, 6, 7, 8]):
        generator = torch.Generator().manual_seed(seed)
        alone.append([sample(logits[row], params, [0], generator) for _ in range(10)])
    generators = [torch.Generator().manual_seed(seed) for seed in [5, 6, 7, 8]]
    together = [[sample(logits[row], params, [0], generators[row]) for row in range(4)] for _ in range(10)]
    assert alone == [list(draws) for draws in zip(*together, strict=True)]
    assert len({tuple(draws) for draws in alone}) == 4


def test_sample_uses_the_default_generator_without_one():
    logits = random_logits(5, VOCAB_SIZE)
    torch.manual_seed(3)
    first = [sample(logits, SamplingParams(), [0]) for _ in range(8)]
    torch.manual_seed(3)
    assert [sample(logits, SamplingParams(), [0]) for _ in range(8)] == first


@pytest.mark.parametrize("dtype, expected", [
    (torch.bfloat16, torch.float32), (torch.float16, torch.float32),
    (torch.float32, torch.float32), (torch.float64, torch.float64),
])  # fmt: skip
def test_arithmetic_is_float32_unless_logits_are_float64(dtype, expected):
    logits = random_logits(1, VOCAB_SIZE).to(dtype)
    assert process_logits(logits, SamplingParams(top_p=0.9), [0]).dtype == expected
    assert token_probs(logits, SamplingParams(temperature=0), [0]).dtype == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_raise(bad):
    with pytest.raises(ValueError, match="NaN"):
        sample(torch.tensor([0.0, bad, 1.0]), SamplingParams(), [0])


@pytest.mark.parametrize("name, value", [
    *itertools.product(["max_new_tokens"], [-1, 1.5, True, None]),
    *itertools.product(["temperature"], [-1, -0.1, math.nan, math.inf, 1e-9, None, "1"]),
    *itertools.product(["top_k"], [0, -1, 2.0, False]),
    *itertools.product(["top_p"], [0, -0.1, 1.1, math.nan, "0.9"]),
    *itertools.product(["min_p"], [-0.1, 1.1, math.nan]),
    *itertools.product(["repetition_penalty"], [0, -1.0, math.inf, math.nan]),
    *itertools.product(["no_repeat_ngram_size"], [0, -2, 1.5]),
    *itertools.product(["stop_token_ids"], [5, [-1], ["a"], None]),
    *itertools.product(["ignore_eos"], [1, None]),
])  # fmt: skip
def test_bad_params_raise_naming_the_field_and_the_value(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .*, got ") as error:
        SamplingParams(**{name: value})
    assert repr(value) in str(error.value)


def test_params_defaults_and_lists_of_stop_tokens():
    assert SamplingParams() == SamplingParams(128, 1.0, None, None, None, None, None, (), False)
    assert SamplingParams(stop_token_ids=[3, 4]).stop_token_ids == (3, 4)
    assert hash(SamplingParams(stop_token_ids=[3])) == hash(SamplingParams(stop_token_ids=(3,)))
    SamplingParams(max_new_tokens=0, temperature=0, top_p=1, min_p=0, repetition_penalty=1)
