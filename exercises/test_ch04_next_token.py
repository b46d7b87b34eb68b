"""Chapter 04: choosing the next token. Run: python3 tasks.py grade ch04"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from minillm.grading import Task, graded

SIZE = Task(
    "nucleus_size",
    hints=(
        "With ratio r from rank to rank, what do the first n tokens weigh together? Sum the geometric series.",
        "1 - r**n >= top_p with r = exp(-logit_step / temperature). Solve for n, round up; both logs are negative.",
    ),
)
TEMPERATURE = Task(
    "temperature_probs",
    hints=(
        "Softmax does not change when the same number is subtracted from every logit of a row. Which number helps?",
        "Subtract the row's maximum before you divide by the temperature; treat temperature 0 apart, with argmax.",
    ),
    forbids=("minillm.sampling.token_probs", "minillm.sampling.process_logits"),
)
MASK = Task(
    "nucleus_mask",
    hints=(
        "Sort, sum up, decide, and undo the sorting. A token stays if the likelier ones before it do not suffice.",
        "mass_before = cumsum - probs; keep where mass_before < top_p; scatter that back to the tokens' places.",
    ),
    forbids=("minillm.sampling.keep_top_p", "minillm.sampling.process_logits"),
)
PROCESS = Task(
    "process",
    hints=(
        "Go through the draft line by line with the six steps beside it. Try a history with repeats, n = 1, a huge k.",
        "Penalty: once a token, by its sign. n-grams: range(len - n + 1), an empty ending for n = 1, never ban all. "
        "Temperature: before the filters. k: min with the vocabulary. min-p: relative to the largest probability.",
    ),
    forbids=(
        "minillm.sampling.process_logits",
        "minillm.sampling.penalize_repetition",
        "minillm.sampling.ban_repeated_ngrams",
        "minillm.sampling.keep_top_k",
        "minillm.sampling.keep_top_p",
        "minillm.sampling.keep_min_p",
    ),
)
GUMBEL = Task(
    "gumbel_draw",
    hints=(
        "Two logarithms, two minus signs. Both insides must be positive.",
        "(logits + noise).argmax(dim=-1), with noise = -log(-log(uniforms)).",
    ),
)
BEAM = Task(
    "beam_search",
    hints=(
        "Keep (token ids, total) pairs. Rank by total, score by total / length ** length_penalty: two orders.",
        "Each step: list all extensions, sort by total, move endings among the first num_beams to `finished`, and take "
        "the first num_beams others as the next beam.",
    ),
    forbids=("minillm.generation.beam_search", "minillm.generation.beam.beam_search"),
    seconds=20,
)


# ---- nucleus_size


@graded(SIZE, points=1)
def test_halving_probabilities_can_be_summed_by_hand(student):
    assert student.nucleus_size(math.log(2), 1.0, 0.9) == 4
    assert student.nucleus_size(math.log(2), 1.0, 0.3) == 1
    assert student.nucleus_size(math.log(2), 1.0, 0.75) == 2  # reached exactly
    assert student.nucleus_size(math.log(2), 2.0, 0.9) == 7
    assert student.nucleus_size(math.log(3), 1.0, 1 - 1 / 3) == 1  # exactly again, where rounding overshoots
    assert student.nucleus_size(0.5 * math.log(5), 0.5, 1 - 5**-6) == 6


@graded(SIZE, points=2)
def test_agrees_with_summing_one_token_after_another(student, rng):
    answers, expected = [], []
    for _ in range(40):
        step, temperature, top_p = (0.05 + 1.9 * torch.rand(3, generator=rng, dtype=torch.float64)).tolist()
        top_p = 0.05 + 0.475 * top_p
        ratio = math.exp(-step / temperature)
        mass, count = 0.0, 0
        while mass < top_p:
            mass += (1 - ratio) * ratio**count
            count += 1
        expected.append(count)
        answers.append(student.nucleus_size(step, temperature, top_p))
    assert answers == expected
    # ln 10 / 1e-6 = 2302585.09…: nobody wants to sum that up.
    assert student.nucleus_size(1e-6, 1.0, 0.9) == 2_302_586


# ---- temperature_probs


@graded(TEMPERATURE, points=1)
def test_a_lower_temperature_favours_the_likelier_token(student):
    logits = torch.tensor([0.0, math.log(2)], dtype=torch.float64)
    for temperature, expected in ((1.0, [1 / 3, 2 / 3]), (0.5, [1 / 5, 4 / 5]), (0.0, [0.0, 1.0])):
        torch.testing.assert_close(student.temperature_probs(logits, temperature).tolist(), expected)


@graded(TEMPERATURE, points=1)
def test_every_row_of_a_batch_is_a_distribution_of_its_own(student, rng):
    logits = 3 * torch.randn(2, 3, 5, generator=rng, dtype=torch.float64)
    probs = student.temperature_probs(logits, 0.7)
    weights = torch.exp(logits / 0.7)
    torch.testing.assert_close(probs, weights / weights.sum(dim=-1, keepdim=True))


@graded(TEMPERATURE, points=1)
def test_temperature_0_is_greedy_with_the_lowest_id_among_equals(student):
    logits = torch.tensor([[1.0, 4.0, 4.0], [-math.inf, -2.0, -3.0]])
    assert student.temperature_probs(logits, 0.0).tolist() == [[0, 1, 0], [0, 1, 0]]
    logits = torch.tensor([[0.0, 1.0, 0.0], [3.0, 1.0, 0.0]])  # each row has a winner of its own
    assert student.temperature_probs(logits, 0.0).tolist() == [[0, 1, 0], [1, 0, 0]]


@graded(TEMPERATURE, points=1)
def test_stays_finite_for_tiny_temperatures_and_huge_logits(student):
    logits = torch.tensor([1000.0, 999.0, -1000.0, -math.inf])
    at_1 = student.temperature_probs(logits, 1.0)
    torch.testing.assert_close(at_1, torch.tensor([math.e / (math.e + 1), 1 / (math.e + 1), 0, 0]))
    assert student.temperature_probs(logits, 1e-40).tolist() == [1, 0, 0, 0]
    below_zero = student.temperature_probs(torch.tensor([-2e4, -2e4 - 1]), 1e-36)
    assert below_zero.tolist() == [1, 0]
    assert student.temperature_probs(torch.tensor([1e35, 2e35, 0.0]), 1e-40).tolist() == [0, 1, 0]
    beyond_float64 = torch.tensor([1e300, 2e300, 0.0], dtype=torch.float64)
    assert student.temperature_probs(beyond_float64, 1e-40).tolist() == [0, 1, 0]
    # Tiny is not zero: the ratio of two probabilities is e^(1e-8 / 1e-8) = e.
    in_step = student.temperature_probs(torch.tensor([0.0, 1e-8], dtype=torch.float64), 1e-8)
    torch.testing.assert_close(in_step.tolist(), [1 / (math.e + 1), math.e / (math.e + 1)])


# ---- nucleus_mask


@graded(MASK, points=1)
def test_the_token_that_crosses_the_line_stays(student):
    logits = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64).log()
    assert student.nucleus_mask(logits, 0.5).tolist() == [False, True, False]
    assert student.nucleus_mask(logits, 0.7).tolist() == [False, True, True]


@graded(MASK, points=1)
def test_something_is_always_kept(student):
    logits = torch.tensor([2.0, 1.0, 0.0, 1.5])
    assert student.nucleus_mask(logits, 1e-9).tolist() == [True, False, False, False]


@graded(MASK, points=2)
def test_is_the_smallest_of_all_sets_that_reach_the_line(student, rng):
    for top_p in (0.2, 0.5, 0.8, 0.95):
        logits = 2 * torch.randn(3, 7, generator=rng, dtype=torch.float64)
        for row, mask in zip(logits, student.nucleus_mask(logits, top_p), strict=True):
            probs = (row.exp() / row.exp().sum()).tolist()
            kept = {token_id for token_id in range(7) if mask[token_id]}
            sets = (set(s) for size in range(1, 8) for s in itertools.combinations(range(7), size))
            reaching = [s for s in sets if sum(probs[i] for i in s) >= top_p]
            smallest = min(len(s) for s in reaching)
            assert kept == max((s for s in reaching if len(s) == smallest), key=lambda s: sum(probs[i] for i in s))


@graded(MASK, points=1)
def test_ties_keep_no_more_than_needed_and_banned_tokens_stay_out(student):
    logits = torch.tensor([0.0, -math.inf, 0.0, 0.0, -math.inf, 0.0])  # four tokens of 0.25
    assert int(student.nucleus_mask(logits, 0.1).sum()) == 1
    mask = student.nucleus_mask(logits, 0.6)
    assert int(mask.sum()) == 3
    assert not mask[1]
    assert student.nucleus_mask(logits, 0.999).tolist() == [True, False, True, True, False, True]
    ten_equals = torch.tensor([0.0] * 10 + [-math.inf])  # ten times 0.1 sums to less than 1 in float64
    assert student.nucleus_mask(ten_equals, 1.0).tolist() == [True] * 10 + [False]


# ---- process


def support(logits):
    """The ids of the tokens that are still in."""
    return (logits > -math.inf).nonzero().flatten().tolist()


@graded(PROCESS, points=1)
def test_the_penalty_weakens_every_seen_token_once(student):
    logits = torch.tensor([2.0, -2.0, 3.0, 0.0])
    processed = student.process(logits, [0, 1, 0, 0, 3], repetition_penalty=2.0)
    torch.testing.assert_close(processed, torch.tensor([1.0, -4.0, 3.0, 0.0]))
    assert logits.tolist() == [2, -2, 3, 0], "the caller's logits must stay as they are"


@graded(PROCESS, points=1)
def test_no_ngram_of_history_can_be_completed_again(student, rng):
    for n in (2, 3):
        for _ in range(20):
            history = torch.randint(3, (9,), generator=rng).tolist()
            known = {tuple(history[i : i + n]) for i in range(len(history) - n + 1)}
            expected = [t for t in range(4) if (*history[-(n - 1) :], t) not in known]
            processed = student.process(torch.zeros(4), history, no_repeat_ngram_size=n)
            assert support(processed) == expected


@graded(PROCESS, points=1)
def test_ngrams_of_one_token_and_histories_too_short_for_one(student):
    assert support(student.process(torch.zeros(4), [2, 0, 2], no_repeat_ngram_size=1)) == [1, 3]
    assert support(student.process(torch.zeros(4), [2], no_repeat_ngram_size=3)) == [0, 1, 2, 3]
    assert support(student.process(torch.zeros(4), [], no_repeat_ngram_size=2)) == [0, 1, 2, 3]


@graded(PROCESS, points=1)
def test_a_ban_of_everything_bans_nothing(student):
    processed = student.process(torch.tensor([1.0, 2.0]), [0, 1], no_repeat_ngram_size=1)
    torch.testing.assert_close(processed.softmax(dim=-1), torch.tensor([1.0, 2.0]).softmax(dim=-1))


@graded(PROCESS, points=2)
def test_each_filter_sees_what_the_ones_before_it_left(student):
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
    for top_p, kept in ((0.5, 2), (0.65, 2), (0.75, 3)):
        mask = student.nucleus_mask(logits, top_p).tolist()
        assert mask == [i < kept for i in range(4)], "process builds on your nucleus_mask: repair that first"
    # At temperature 4 the probabilities are 0.30, 0.28, 0.25, 0.21 …
    assert support(student.process(logits, [], temperature=4.0, top_p=0.65)) == [0, 1, 2]
    assert support(student.process(logits, [], temperature=0.25, top_p=0.65)) == [0]
    # … min-p's line falls with the temperature, too …
    assert support(student.process(logits, [], temperature=4.0, min_p=0.6)) == [0, 1, 2, 3]
    # … top-k leaves 0.4 : 0.3, and 0.4 / 0.7 alone reaches a half …
    assert support(student.process(logits, [], top_k=2, top_p=0.5)) == [0]
    # … and a token that the penalty pushed down is no longer among the two best.
    assert support(student.process(logits, [0], repetition_penalty=2.0, top_k=2)) == [1, 2]


@graded(PROCESS, points=1)
def test_ties_with_the_kth_stay_and_k_may_exceed_the_vocabulary(student):
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0])
    assert support(student.process(logits, [], top_k=2)) == [1, 2, 3]
    assert support(student.process(logits, [], top_k=50)) == [0, 1, 2, 3]


@graded(PROCESS, points=1)
def test_min_p_is_measured_against_the_likeliest_token(student):
    logits = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    assert support(student.process(logits, [], min_p=0.35)) == [0, 1, 2]  # the line is at 0.35 · 0.5
    assert support(student.process(logits, [], min_p=0.5)) == [1, 2]
    assert support(student.process(logits, [], min_p=1.0)) == [1]


# ---- gumbel_draw


@graded(GUMBEL, points=1)
def test_the_largest_sum_of_logit_and_noise_wins(student):
    logits = torch.tensor([[0.0, 0.0, math.log(3)], [0.0, 0.0, 0.0], [0.0, 1.5, -9.0], [0.0, 0.0, 5.0]])
    uniforms = torch.tensor([[0.5, 0.9, 0.2], [0.5, 0.9, 0.2], [0.1, 0.5, 0.5], [0.5, 0.9, 0.2]])
    assert student.gumbel_draw(logits, uniforms).tolist() == [1, 1, 1, 2]


@graded(GUMBEL, points=1)
def test_is_a_race_of_exponential_clocks(student, rng):
    """-ln u is an exponential waiting time; divided by its rate softmax(logits), the earliest clock wins."""
    logits = 2 * torch.randn(500, 6, generator=rng, dtype=torch.float64)
    logits[:, 4] = -math.inf
    uniforms = torch.rand(500, 6, generator=rng, dtype=torch.float64)
    expected = (-uniforms.log() / logits.softmax(dim=-1)).argmin(dim=-1)
    assert torch.equal(student.gumbel_draw(logits, uniforms), expected)


@graded(GUMBEL, points=1)
def test_draws_have_the_softmax_frequencies(student, rng):
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64).log()
    uniforms = torch.rand(40_000, 4, generator=rng, dtype=torch.float64)
    counts = torch.bincount(student.gumbel_draw(logits.expand(40_000, 4), uniforms), minlength=4).double()
    expected = 40_000 * logits.exp()
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 16.3, "three degrees of freedom: a right sampler exceeds this once in a thousand"


# ---- beam_search


def table_model(table, vocab_size, eos):
    """A `next_log_probs` of a table {new tokens: probabilities}; what is not in it ends for certain."""
    prompt_len = 2

    def next_log_probs(token_ids):
        certain_end = [1.0 if token_id == eos else 0.0 for token_id in range(vocab_size)]
        return torch.tensor(table.get(tuple(token_ids[prompt_len:]), certain_end), dtype=torch.float64).log()

    return next_log_probs


def random_model(seed, vocab_size, sharpness=1.5):
    """A `next_log_probs` whose distribution is another one for every prefix, and a list of the prefixes asked for."""
    asked = []

    def next_log_probs(token_ids):
        asked.append(tuple(token_ids))
        generator = torch.Generator().manual_seed(hash((seed, *token_ids)) % 2**31)
        return (sharpness * torch.randn(vocab_size, generator=generator, dtype=torch.float64)).log_softmax(dim=-1)

    return next_log_probs, asked


def all_continuations(next_log_probs, prompt, max_new_tokens, eos):
    """Brute force: (new tokens, total) of everything that ends, or is cut off, within max_new_tokens."""
    pending, ended = [((), 0.0)], []
    while pending:
        token_ids, total = pending.pop()
        for token_id, log_prob in enumerate(next_log_probs([*prompt, *token_ids]).tolist()):
            longer = (*token_ids, token_id), total + log_prob
            is_over = token_id == eos or len(longer[0]) == max_new_tokens
            (ended if is_over else pending).append(longer)
    return ended


PROMPT = [7, 7]
A_B_EOS = {(): [0.6, 0.4, 0.0], (0,): [0.5, 0.0, 0.5], (0, 0): [0.0, 0.0, 1.0]}  # after b, the end is certain


@graded(BEAM, points=1)
def test_two_beams_find_what_one_misses(student):
    model = table_model(A_B_EOS, vocab_size=3, eos=2)
    options = {"max_new_tokens": 3, "eos_token_id": 2, "length_penalty": 0.0}
    ((_, greedy_score),) = student.beam_search(model, PROMPT, num_beams=1, **options)
    assert math.isclose(greedy_score, math.log(0.3))
    (best, best_score), (_, second_score) = student.beam_search(model, PROMPT, num_beams=2, **options)
    assert list(best) == [1, 2]
    assert math.isclose(best_score, math.log(0.4))
    assert math.isclose(second_score, math.log(0.3))


@graded(BEAM, points=1)
def test_one_beam_takes_the_likeliest_token_each_time(student):
    next_log_probs, _ = random_model(seed=1, vocab_size=5)
    greedy = []
    while len(greedy) < 6:
        greedy.append(int(next_log_probs([3, *greedy]).argmax()))
    never = 99  # an ending token outside the vocabulary
    ((found, _),) = student.beam_search(next_log_probs, [3], num_beams=1, max_new_tokens=6, eos_token_id=never)
    assert list(found) == greedy


@graded(BEAM, points=2)
@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0])
def test_a_beam_wide_enough_is_brute_force(student, length_penalty):
    vocab_size, max_new_tokens, eos, prompt = 3, 4, 2, [0, 1, 1]
    next_log_probs, _ = random_model(seed=2, vocab_size=vocab_size)
    ended = all_continuations(next_log_probs, prompt, max_new_tokens, eos)
    expected = sorted(((total / len(ids) ** length_penalty, list(ids)) for ids, total in ended), reverse=True)
    found = student.beam_search(
        next_log_probs,
        prompt,
        num_beams=vocab_size**max_new_tokens,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos,
        length_penalty=length_penalty,
    )
    assert [list(token_ids) for token_ids, _ in found] == [token_ids for _, token_ids in expected]
    torch.testing.assert_close([score for _, score in found], [score for score, _ in expected])


@graded(BEAM, points=1)
def test_each_beam_is_the_best_of_all_extensions_of_the_one_before(student):
    vocab_size, num_beams, eos, prompt = 6, 3, 5, [2, 4]
    for seed in (3, 4, 5, 6):
        next_log_probs, asked = random_model(seed, vocab_size)
        student.beam_search(next_log_probs, prompt, num_beams=num_beams, max_new_tokens=5, eos_token_id=eos)
        by_length = {}
        for token_ids in asked:
            by_length.setdefault(len(token_ids) - len(prompt), set()).add(token_ids[len(prompt) :])
        assert by_length[0] == {()}
        assert not any(eos in token_ids[len(prompt) :] for token_ids in asked), "a finished continuation was extended"

        def total(token_ids):
            return sum(float(next_log_probs([*prompt, *token_ids[:i]])[token_ids[i]]) for i in range(len(token_ids)))

        for new_len in range(1, 5):
            extensions = [(*ids, t) for ids in by_length[new_len - 1] for t in range(vocab_size) if t != eos]
            assert by_length[new_len] == set(sorted(extensions, key=total)[-num_beams:])


@graded(BEAM, points=1)
def test_an_ending_counts_if_it_is_among_the_best_and_does_not_end_the_search(student):
    model = table_model({(): [0.6, 0.0, 0.4], (0,): [0.5, 0.3, 0.2]}, vocab_size=3, eos=2)
    options = {"num_beams": 1, "eos_token_id": 2}
    # The ending (0.4) is the second best extension, and one beam keeps the best only.
    ((found, score),) = student.beam_search(model, PROMPT, max_new_tokens=2, length_penalty=0.0, **options)
    assert list(found) == [0, 0]
    assert math.isclose(score, math.log(0.3))
    # The ending (0.35) is among the best two, and leaves its place in the beam to token 1.
    model = table_model({(): [0.4, 0.25, 0.35], (0,): [0.5, 0.3, 0.2], (1,): [0.1, 0.0, 0.9]}, vocab_size=3, eos=2)
    found = student.beam_search(model, PROMPT, num_beams=2, max_new_tokens=2, eos_token_id=2, length_penalty=1.0)
    assert [list(token_ids) for token_ids, _ in found] == [[1, 2], [0, 0]]
    # Here the ending is the best. The beam goes on without it, and the longer text has the better mean.
    model = table_model({(): [0.4, 0.1, 0.5]}, vocab_size=3, eos=2)
    ((found, score),) = student.beam_search(model, PROMPT, max_new_tokens=3, length_penalty=1.0, **options)
    assert list(found) == [0, 2]
    assert math.isclose(score, math.log(0.4) / 2)


@graded(BEAM, points=1)
def test_impossible_tokens_and_an_empty_beam_are_no_trouble(student):
    model = table_model({(): [0.0, 0.0, 1.0]}, vocab_size=3, eos=2)  # nothing but the end is possible
    found = student.beam_search(model, PROMPT, num_beams=4, max_new_tokens=5, eos_token_id=2)
    assert [(list(token_ids), score) for token_ids, score in found] == [([2], 0.0)]
