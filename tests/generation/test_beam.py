"""Beam search against transformers, and against the list of all sequences."""

from __future__ import annotations

import itertools

import pytest
import torch

from minillm.generation import beam_search, generate
from minillm.sampling import SamplingParams

PROMPT = [3, 17, 5, 29, 11]
PAD_TOKEN_ID = 40  # what transformers fills up shorter rows with; not 0, which it takes for none


def transformers_beam_search(peer, prompt, *, num_beams, max_new_tokens, length_penalty):
    output = peer.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt)),
        do_sample=False,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=max_new_tokens,
        length_penalty=length_penalty,
        early_stopping=False,
        pad_token_id=PAD_TOKEN_ID,
        return_dict_in_generate=True,
        output_scores=True,
    )
    new_token_ids = [row[len(prompt) :] for row in output.sequences.tolist()]
    return new_token_ids, output.sequences_scores.tolist()


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 1.3, -0.5])
@pytest.mark.parametrize("num_beams", [2, 3, 5])
@pytest.mark.parametrize("num_eos_tokens", [0, 1, 3])
def test_equals_transformers(make_model, to_transformers, num_eos_tokens, num_beams, length_penalty):
    num_ended_early = 0
    for seed in range(3):
        # Tokens that the model likes, or no beam would ever end.
        likely = generate(make_model(seed), PROMPT, SamplingParams(temperature=0, max_new_tokens=8))
        model = make_model(seed, eos_token_ids=tuple(dict.fromkeys(likely[::-1]))[:num_eos_tokens])
        peer = to_transformers(model)
        for max_new_tokens in (1, 10):
            settings = {
                "num_beams": num_beams,
                "max_new_tokens": max_new_tokens,
                "length_penalty": length_penalty,
            }
            expected_ids, expected_scores = transformers_beam_search(peer, PROMPT, **settings)
            ours = beam_search(model, PROMPT, **settings)
            assert len(ours) == num_beams
            for (token_ids, score), padded, expected_score in zip(ours, expected_ids, expected_scores, strict=True):
                assert padded == token_ids + [PAD_TOKEN_ID] * (len(padded) - len(token_ids))
                assert score == pytest.approx(expected_score, abs=1e-4)
                num_ended_early += len(token_ids) < max_new_tokens
    if num_eos_tokens and length_penalty <= 1:  # above, the longest score best
        assert num_ended_early > 0, "the case must reach sequences that end early"


def all_sequences(model, prompt, max_new_tokens, length_penalty):
    """Every sequence that ends, with its score from one full forward, best first."""
    eos_token_ids, vocab = model.config.eos_token_ids, range(model.config.vocab_size)
    open_tokens = [token_id for token_id in vocab if token_id not in eos_token_ids]
    sequences = [list(ids) for ids in itertools.product(open_tokens, repeat=max_new_tokens)]
    for length in range(1, max_new_tokens + 1):
        for beginning in itertools.product(open_tokens, repeat=length - 1):
            sequences += [[*beginning, eos_token_id] for eos_token_id in eos_token_ids]
    scored = []
    for token_ids in sequences:
        log_probs = model(torch.tensor(prompt + token_ids)).log_softmax(dim=-1)
        total = sum(log_probs[len(prompt) - 1 + i, token_id].item() for i, token_id in enumerate(token_ids))
        scored.append((token_ids, total / len(token_ids) ** length_penalty))
    return sorted(scored, key=lambda ended: -ended[1])


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 1.7])
@pytest.mark.parametrize("eos_token_ids", [(), (2,), (0, 3)])
def test_with_enough_beams_it_finds_every_sequence_in_order(make_model, eos_token_ids, length_penalty):
    model = make_model(4, vocab_size=5, eos_token_ids=eos_token_ids)
    prompt, max_new_tokens = [1, 4], 3
    expected = all_sequences(model, prompt, max_new_tokens, length_penalty)
    found = beam_search(model, prompt, num_beams=5**3, max_new_tokens=max_new_tokens, length_penalty=length_penalty)
    assert [token_ids for token_ids, _ in found] == [token_ids for token_ids, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-10)


def test_one_beam_is_greedy(make_model):
    for seed in range(6):
        model = make_model(seed, eos_token_ids=(7, 19, 30, 2))
        ((token_ids, _),) = beam_search(model, PROMPT, num_beams=1, max_new_tokens=15)
        assert token_ids == generate(model, PROMPT, SamplingParams(temperature=0, max_new_tokens=15))


def test_more_beams_find_better_sequences_than_greedy(make_model):
    """Scores of fixed length can only be compared, not assumed: some prompt must gain from the search."""
    gains = []
    for seed in range(6):
        model = make_model(seed)
        (_, greedy), *_ = beam_search(model, PROMPT, num_beams=1, max_new_tokens=6)
        (_, best), *_ = beam_search(model, PROMPT, num_beams=8, max_new_tokens=6)
        gains.append(best - greedy)
    assert max(gains) > 0.01


def test_it_stops_at_max_seq_len(make_model):
    model = make_model(0, max_seq_len=8)
    assert {len(ids) for ids, _ in beam_search(model, PROMPT, num_beams=3, max_new_tokens=20)} == {3}
    assert beam_search(model, [1] * 8, num_beams=3, max_new_tokens=20) == [([], 0.0)]
    assert beam_search(model, PROMPT, num_beams=3, max_new_tokens=0) == [([], 0.0)]


@pytest.mark.parametrize("prompt, num_beams, max_new_tokens, message", [
    (PROMPT, 0, 5, "num_beams >= 1"),
    (PROMPT, 2, -1, "max_new_tokens >= 0"),
    ([], 2, 5, "is empty"),
    ([99], 2, 5, "token id 99"),
    ([1] * 49, 2, 5, "has 49 tokens"),
])  # fmt: skip
def test_bad_arguments_raise(make_model, prompt, num_beams, max_new_tokens, message):
    with pytest.raises(ValueError, match=message):
        beam_search(make_model(), prompt, num_beams=num_beams, max_new_tokens=max_new_tokens)
