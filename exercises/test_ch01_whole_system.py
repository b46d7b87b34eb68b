"""Chapter 01: the whole system. Run: python3 tasks.py grade ch01"""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from tokenizers.models import BPE

from minillm.grading import Task, graded

PREDICT = Task(
    "predict_tokens_per_second",
    hints=(
        "How long does memory need for one step, and how long do the arithmetic units? Which of them waits?",
        "memory_s = (weights + batch · seq_len · KV) / bandwidth; compute_s = batch · FLOPs / peak; take the larger.",
    ),
)
BPE_ENCODE = Task(
    "bpe_encode",
    hints=(
        "Look at all neighbouring pairs of the present tokens. Which are in `merges`, and at which rank?",
        "In a loop: candidates = [(rank, place), …]; join the pair of min(candidates); stop when there is none.",
    ),
    forbids=("minillm.data.bpe.apply_merges", "minillm.data.bpe.apply_merges_naive"),
)
DECODE = Task(
    "decode_loop",
    hints=(
        "Run the broken one by hand: what does the model see, what counts as the limit, what happens to the prompt?",
        "Keep the new tokens in a list of their own. Feed prompt + new tokens, append the argmax, then look for EOS.",
    ),
    forbids=("minillm.generate", "minillm.generation.generate.generate_uncached"),
)
METRICS = Task(
    "request_metrics",
    hints=(
        "n tokens have n - 1 gaps. Which of the four numbers know about the arrival?",
        "p99: sort the gaps; place = 0.99 · (n - 1); interpolate between gaps[floor(place)] and the next one.",
    ),
)
SIMULATE = Task(
    "simulate_static_batches",
    hints=(
        "Keep one clock and one queue sorted by arrival. When may a batch start, and which requests are in it?",
        "now = max(now, first arrival queued); batch = the first batch_size with arrival <= now; now += max(lengths) · "
        "step_time_s(len(batch)); all of the batch are answered now.",
    ),
)

ONE_REQUEST = dict(batch_size=1, seq_len=1, weight_bytes=1000.0, kv_bytes_per_token=0.0)
ONE_REQUEST |= dict(flops_per_token=1.0, bytes_per_s=500.0, flops_per_s=1e9)


# ---- predict_tokens_per_second


@graded(PREDICT, points=1)
def test_a_thousand_bytes_at_500_bytes_a_second_are_half_a_token_a_second(student):
    assert student.predict_tokens_per_second(**ONE_REQUEST) == pytest.approx(0.5)
    # The example: 1,800 bytes at 900 bytes/s, four tokens.
    example = dict(batch_size=4, seq_len=20, weight_bytes=1000, kv_bytes_per_token=10)
    example |= dict(flops_per_token=50, bytes_per_s=900, flops_per_s=400)
    assert student.predict_tokens_per_second(**example) == pytest.approx(2.0)


@graded(PREDICT, points=1)
def test_weights_are_shared_by_the_batch_and_kv_is_not(student):
    # 1000 bytes of weights and 8 · 25 · 10 bytes of KV: 3,000 bytes, 6 s, 8 tokens.
    got = student.predict_tokens_per_second(**ONE_REQUEST | dict(batch_size=8, seq_len=25, kv_bytes_per_token=10.0))
    assert got == pytest.approx(8 / 6)


@graded(PREDICT, points=2)
def test_arithmetic_bounds_large_batches(student):
    # Llama-3.1-8B in bf16 on an H100 SXM: 7.5 billion weights of 2 bytes, 2 FLOPs each.
    h100 = dict(weight_bytes=15e9, kv_bytes_per_token=131_072, flops_per_token=15e9, bytes_per_s=3.35e12)
    h100 |= dict(flops_per_s=989e12)
    # 256 requests of 1,000 tokens: memory needs 14.5 ms, arithmetic 3.9 ms.
    long = student.predict_tokens_per_second(batch_size=256, seq_len=1000, **h100)
    # 1,024 requests of 10 tokens: memory needs 4.9 ms, arithmetic 15.5 ms.
    short = student.predict_tokens_per_second(batch_size=1024, seq_len=10, **h100)
    assert long == pytest.approx(256 / 0.0144937, rel=1e-4)
    assert short == pytest.approx(989e12 / 15e9, rel=1e-9)


# ---- bpe_encode


@graded(BPE_ENCODE, points=1)
def test_the_example(student):
    merges = [("h", "e"), ("t", "h"), ("t", "he")]
    assert student.bpe_encode("the", merges) == ["the"]
    assert student.bpe_encode("that", merges) == ["th", "a", "t"]
    assert [student.bpe_encode(word, merges) for word in ("x", "")] == [["x"], []]


@graded(BPE_ENCODE, points=1)
def test_a_pair_may_come_before_its_parts_in_the_list(student):
    # The later merges make the "abc", and the "ab", that the first one joins.
    assert student.bpe_encode("abcd", [("abc", "d"), ("a", "b"), ("ab", "c")]) == ["abcd"]
    assert student.bpe_encode("abc", [("ab", "c"), ("a", "b")]) == ["abc"]
    assert student.bpe_encode("abab", [("ab", "ab"), ("a", "b")]) == ["abab"]


@graded(BPE_ENCODE, points=1)
def test_rank_decides_and_neither_place_nor_length(student):
    # From the left the first would be ab cd e, and by the latest merge ab c de. Of the second, bcd is a token as well.
    cuts = [
        student.bpe_encode("abcde", [("b", "c"), ("c", "d"), ("a", "b"), ("d", "e")]),
        student.bpe_encode("abcd", [("b", "c"), ("c", "d"), ("b", "cd")]),
    ]
    assert cuts == [["a", "bc", "de"], ["a", "bc", "d"]]
    # b c comes first; abcd, though a token of this tokenizer, can then no longer be reached.
    assert student.bpe_encode("abcd", [("b", "c"), ("a", "b"), ("c", "d"), ("ab", "cd")]) == ["a", "bc", "d"]
    merges = [("l", "o"), ("lo", "w"), ("e", "r"), ("low", "er")]
    assert [student.bpe_encode(word, merges) for word in ("lower", "slow")] == [["lower"], ["s", "low"]]


@graded(BPE_ENCODE, points=1)
def test_equal_pairs_join_from_the_left(student):
    assert student.bpe_encode("aaa", [("a", "a")]) == ["aa", "a"]
    assert student.bpe_encode("aaaaa", [("a", "a"), ("aa", "a")]) == ["aa", "aaa"]
    assert student.bpe_encode("ababa", [("a", "b"), ("b", "a")]) == ["ab", "ab", "a"]


@graded(BPE_ENCODE, points=1)
def test_equals_the_tokenizers_library_on_random_words(student):
    chance = random.Random(1)
    for alphabet in ("ab", "abcd", "aé€x"):
        tokens, merges = list(alphabet), []
        while len(merges) < 12:
            pair = (chance.choice(tokens), chance.choice(tokens))
            if pair[0] + pair[1] not in tokens and len(pair[0] + pair[1]) < 7:
                merges.append(pair)
                tokens.append(pair[0] + pair[1])
        library = BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
        for _ in range(40):
            word = "".join(chance.choices(alphabet, k=chance.randint(1, 16)))
            expected = [token.value for token in library.tokenize(word)]
            assert student.bpe_encode(word, merges) == expected, (word, merges)


# ---- decode_loop


class Counter:
    """A model that puts (last id + 1) first, with a vocabulary of 10; it keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, token_ids):
        self.asked.append(list(token_ids))
        return [1.0 if token_id == (token_ids[-1] + 1) % 10 else 0.5 for token_id in range(10)]


@graded(DECODE, points=1)
def test_gives_new_tokens_only_and_the_ending_one_too(student):
    assert student.decode_loop(Counter(), [3, 4], 10, [7]) == [5, 6, 7]
    assert student.decode_loop(Counter(), [3, 4], 10, [9, 6]) == [5, 6]


@graded(DECODE, points=1)
def test_the_limit_counts_new_tokens(student):
    assert student.decode_loop(Counter(), [3, 4], 2, [7]) == [5, 6]
    assert student.decode_loop(Counter(), [0, 1, 2, 3], 3, [9]) == [4, 5, 6]
    assert student.decode_loop(Counter(), [3], 0, [7]) == []
    # An ending token in the prompt is history: only a chosen one ends.
    assert student.decode_loop(Counter(), [7, 1], 3, [7]) == [2, 3, 4]


@graded(DECODE, points=1)
def test_the_model_sees_the_whole_sequence_once_for_each_token(student):
    def sums(token_ids):  # what comes next depends on every token so far, not on the last alone
        return [1.0 if token_id == sum(token_ids) % 10 else 0.0 for token_id in range(10)]

    assert student.decode_loop(sums, [1, 2, 4], 4, []) == [7, 4, 8, 6]
    model = Counter()
    student.decode_loop(model, [3, 4], 10, [7])
    assert model.asked == [[3, 4], [3, 4, 5], [3, 4, 5, 6]]


@graded(DECODE, points=1)
def test_the_prompt_stays_as_it_was(student):
    prompt = [3, 4]
    student.decode_loop(Counter(), prompt, 2, [])
    assert prompt == [3, 4]
    assert student.decode_loop(Counter(), (3, 4), 2, []) == [5, 6]  # and need not be a list


@graded(DECODE, points=1)
def test_equal_logits_go_to_the_lowest_id_and_all_may_be_negative(student):
    assert student.decode_loop(lambda token_ids: [-3.0, -1.0, -2.0, -1.0], [0], 2, []) == [1, 1]


# ---- request_metrics


@graded(METRICS, points=1)
def test_the_metrics_of_three_tokens(student):
    metrics = student.request_metrics(10.0, [10.5, 10.6, 10.8])
    assert metrics.ttft_s == pytest.approx(0.5)
    assert metrics.itl_mean_s == pytest.approx(0.15)
    assert metrics.itl_p99_s == pytest.approx(0.199)
    assert metrics.tokens_per_s == pytest.approx(3.75)


@graded(METRICS, points=1)
def test_a_single_token_has_no_gap(student):
    metrics = student.request_metrics(2.0, [2.25])
    assert metrics.ttft_s == pytest.approx(0.25)
    assert metrics.tokens_per_s == pytest.approx(4.0)
    assert math.isnan(metrics.itl_mean_s) and math.isnan(metrics.itl_p99_s)


@graded(METRICS, points=2)
def test_one_long_pause_shows_in_the_tail_and_equals_numpy(student):
    chance = np.random.default_rng(3)
    for num_tokens in (2, 7, 100, 101, 500):
        gaps = chance.uniform(0.01, 0.03, num_tokens - 1)
        gaps[num_tokens // 3 - 1] = 2.0  # a pause in the middle: the largest gap is not the last
        times = 5.0 + np.concatenate([[0.4], 0.4 + np.cumsum(gaps)])
        metrics = student.request_metrics(5.0, times.tolist())
        assert metrics.itl_mean_s == pytest.approx(float(np.diff(times).mean()))
        assert metrics.itl_p99_s == pytest.approx(float(np.percentile(np.diff(times), 99)))
        assert metrics.tokens_per_s == pytest.approx(num_tokens / (times[-1] - 5.0))


# ---- simulate_static_batches


def two_part_step(batch_size):
    return 0.010 + 0.002 * batch_size  # a part that the batch shares, and a part for each request


@graded(SIMULATE, points=1)
def test_the_example_by_hand(student):
    latencies_s, tokens_per_s = student.simulate_static_batches([0, 1, 2], [2, 4, 1], 2, lambda b: 1 + b)
    assert latencies_s == pytest.approx([4, 15, 14])
    assert tokens_per_s == pytest.approx(7 / 16)


@graded(SIMULATE, points=1)
def test_a_full_batch_that_arrives_together_obeys_latency_is_batch_times_length_over_throughput(student):
    for batch_size in (1, 2, 8):
        arrivals_s, lens = [3.0] * batch_size, [50] * batch_size
        latencies_s, tokens_per_s = student.simulate_static_batches(arrivals_s, lens, batch_size, two_part_step)
        assert latencies_s == pytest.approx([batch_size * 50 / tokens_per_s] * batch_size)
        assert latencies_s == pytest.approx([50 * two_part_step(batch_size)] * batch_size)


@graded(SIMULATE, points=1)
def test_a_batch_starts_without_waiting_to_be_full_and_the_server_may_idle(student):
    latencies_s, tokens_per_s = student.simulate_static_batches([0.0, 10.0, 30.0], [5, 5, 5], 4, lambda b: 1.0)
    assert [*latencies_s, tokens_per_s] == pytest.approx([5, 5, 5, 15 / 35])
    # Two that arrive together start together; one that arrives as the server gets free joins at once.
    latencies_s, _ = student.simulate_static_batches([1.0, 1.0, 5.0], [2, 2, 1], 2, lambda b: float(2 * b - 2 or 7))
    assert latencies_s == pytest.approx([4, 4, 7])
    latencies_s, _ = student.simulate_static_batches([0.0, 0.5, 2.0], [2, 3, 3], 2, lambda b: 1.0)
    assert latencies_s == pytest.approx([2, 4.5, 3])


@graded(SIMULATE, points=2)
def test_order_of_the_arguments_is_kept_and_order_of_arrival_is_served(student):
    # Request 1 came first and is alone at 0 s; then 2 (1 s) and 0 (2 s) together; 3 (2 s, higher index) is left over.
    latencies_s, tokens_per_s = student.simulate_static_batches([2, 0, 1, 2], [1, 3, 6, 2], 2, lambda b: b)
    assert latencies_s == pytest.approx([15 - 2, 3, 15 - 1, 17 - 2])
    assert tokens_per_s == pytest.approx(12 / 17)


@graded(SIMULATE, points=2)
def test_a_thousand_random_requests_against_an_event_by_event_oracle(student):
    chance = random.Random(7)
    arrivals_s, now_s = [], 100.0  # the clock does not start at 0
    for _ in range(1000):
        now_s += chance.expovariate(20.0)
        arrivals_s.append(now_s)
    chance.shuffle(arrivals_s)
    lens = [chance.randint(1, 40) for _ in arrivals_s]
    for batch_size in (1, 4, 16):
        answers_s = serve_event_by_event(arrivals_s, lens, batch_size)
        latencies_s, tokens_per_s = student.simulate_static_batches(arrivals_s, lens, batch_size, two_part_step)
        assert latencies_s == pytest.approx([answers_s[i] - arrivals_s[i] for i in range(1000)])
        assert tokens_per_s == pytest.approx(sum(lens) / (max(answers_s.values()) - min(arrivals_s)))


def serve_event_by_event(arrivals_s, lens, batch_size):
    """The same server told token by token: {request: time of its answer}."""
    not_yet = sorted(range(len(lens)), key=lambda i: (arrivals_s[i], i), reverse=True)
    waiting, running, answers_s, now_s = [], {}, {}, 0.0
    while len(answers_s) < len(lens):
        while not_yet and arrivals_s[not_yet[-1]] <= now_s:
            waiting.append(not_yet.pop())
        if not running:
            if not waiting:
                now_s = arrivals_s[not_yet[-1]]
                continue
            running = {request: lens[request] for request in waiting[:batch_size]}
            del waiting[:batch_size]
        now_s += two_part_step(len(running))
        running = {request: left - 1 for request, left in running.items()}
        if max(running.values()) == 0:
            answers_s |= dict.fromkeys(running, now_s)
            running = {}
    return answers_s
