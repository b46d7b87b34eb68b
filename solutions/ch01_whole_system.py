"""Chapter 01: the whole system on one page.

Complete the functions below, then run `python3 tasks.py grade ch01`. The chapter is
`chapters/01_whole_system.ipynb`; each task names the section that prepares it. No task needs torch: lists and numbers
are enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

# ---- Task 1 (prediction): how many tokens a second? Prepared by "Napkin" and "Many readers at once".


def predict_tokens_per_second(
    *,
    batch_size: int,
    seq_len: int,
    weight_bytes: float,
    kv_bytes_per_token: float,
    flops_per_token: float,
    bytes_per_s: float,
    flops_per_s: float,
) -> float:
    """Upper bound on the tokens a second that decoding gives to all `batch_size` requests together.

    One decode step gives each request one token. Memory and arithmetic units work at the same time, so the step takes
    as long as the slower of the two:

    - memory reads all weights once, whatever the batch size, and for each request the keys and values of its `seq_len`
      tokens, at `bytes_per_s`;
    - the arithmetic units do `flops_per_token` operations for each request, at `flops_per_s`.

    Example: batch_size=4, seq_len=20, weight_bytes=1000, kv_bytes_per_token=10, flops_per_token=50. Memory moves
    1000 + 4 · 20 · 10 = 1800 bytes: 2 s at 900 bytes/s. Arithmetic does 4 · 50 = 200 operations: 0.5 s at 400 a second.
    The step takes 2 s and gives 4 tokens: 2.0 tokens/s.
    """
    # BEGIN SOLUTION
    memory_s = (weight_bytes + batch_size * seq_len * kv_bytes_per_token) / bytes_per_s
    compute_s = batch_size * flops_per_token / flops_per_s
    return batch_size / max(memory_s, compute_s)
    # END SOLUTION


# ---- Task 2: from a word to tokens. Prepared by "Text becomes ids".


def bpe_encode(word: str, merges: Sequence[tuple[str, str]]) -> list[str]:
    """Cut `word` into tokens by byte-pair encoding; joined again they give the word.

    `merges` lists the pairs that the tokenizer has learned to join; a pair's place in the list is its rank. The word
    starts as single characters. As long as two neighbours are a pair of `merges`, join the pair of the lowest rank; of
    several places with that pair, the leftmost. `merges` may be any list, not only a learned one: a pair may stand
    before the pairs that make its parts.

    Example, with merges [("h", "e"), ("t", "h"), ("t", "he")]: "the" starts as t h e. Both ("t", "h") and ("h", "e")
    are there; ("h", "e") has rank 0 and goes first: t he. Then ("t", "he"): the result is ["the"].
    "that" gives ["th", "a", "t"], and "" gives [].
    """
    # BEGIN SOLUTION
    rank_of = {pair: rank for rank, pair in enumerate(merges)}
    tokens = list(word)
    while True:
        candidates = [(rank_of[pair], place) for place, pair in enumerate(pairwise(tokens)) if pair in rank_of]
        if not candidates:
            return tokens
        _, place = min(candidates)
        tokens[place : place + 2] = [tokens[place] + tokens[place + 1]]
    # END SOLUTION


# ---- Task 3 (bug hunt): from a prompt to its continuation. Prepared by "The naive version" and
# "The real version".


def broken_decode_loop(next_logits, prompt, max_new_tokens, eos_token_ids):
    """Here for you to read. It runs, it even gives tokens, and it has six bugs."""
    token_ids = prompt
    while len(token_ids) < max_new_tokens:
        logits = next_logits(token_ids[-1:])
        token_id = max(logits)
        if token_id in eos_token_ids:
            break
        token_ids.append(token_id)
    return token_ids


def decode_loop(
    next_logits: Callable[[list[int]], Sequence[float]],
    prompt: Sequence[int],
    max_new_tokens: int,
    eos_token_ids: Sequence[int],
) -> list[int]:
    """Greedy decoding: what `broken_decode_loop` was meant to be.

    `next_logits(token_ids)` takes a whole sequence and gives one number for each token of the vocabulary, by id: the
    larger, the likelier that token comes next. Choose the largest each time; of equal ones, the lowest id.

    Returns the new tokens only, without the prompt. Ends after `max_new_tokens` new tokens, or earlier when a token of
    `eos_token_ids` (the end-of-sequence tokens) has been chosen: that token is part of the result. The caller's
    `prompt` stays as it was. `next_logits` is expensive: it is called exactly once for each token returned.

    Example: with a model that always puts (last id + 1) first, prompt [3, 4] and eos_token_ids [7],
    `decode_loop(model, [3, 4], 10, [7])` gives [5, 6, 7] and `decode_loop(model, [3, 4], 2, [7])` gives [5, 6].
    """
    # BEGIN SOLUTION
    token_ids = list(prompt)
    new_token_ids: list[int] = []
    while len(new_token_ids) < max_new_tokens:
        logits = list(next_logits(token_ids + new_token_ids))
        new_token_ids.append(logits.index(max(logits)))
        if new_token_ids[-1] in eos_token_ids:
            break
    return new_token_ids
    # END SOLUTION


# ---- Task 4: what the user feels. Prepared by "One request on a clock".


class RequestMetrics(NamedTuple):
    """Four numbers about one request; times in seconds."""

    ttft_s: float
    itl_mean_s: float
    itl_p99_s: float
    tokens_per_s: float


def request_metrics(arrival_s: float, token_times_s: Sequence[float]) -> RequestMetrics:
    """The metrics of a request that arrived at `arrival_s` and whose tokens came at `token_times_s`.

    All times are readings of one clock. There is at least one token; the token times rise, and all are later than the
    arrival.

    ttft_s        from the arrival to the first token
    itl_mean_s    mean gap between consecutive tokens; NaN for a single token, which has no gap
    itl_p99_s     99th percentile of the gaps; NaN likewise. With the n gaps sorted and numbered from 0, it lies at
                  place 0.99 · (n - 1), linearly interpolated between the two gaps around that place
    tokens_per_s  tokens per second from the arrival to the last token

    Example: arrival 10.0, tokens at 10.5, 10.6, 10.8: TTFT 0.5 s. The gaps are 0.1 and 0.2 s: mean 0.15 s; the 99th
    percentile lies at place 0.99, so it is 0.1 + 0.99 · 0.1 = 0.199 s. 3 tokens in 0.8 s are 3.75 tokens/s.
    """
    # BEGIN SOLUTION
    ttft_s = token_times_s[0] - arrival_s
    tokens_per_s = len(token_times_s) / (token_times_s[-1] - arrival_s)
    gaps_s = sorted(later - earlier for earlier, later in pairwise(token_times_s))
    if not gaps_s:
        return RequestMetrics(ttft_s, float("nan"), float("nan"), tokens_per_s)
    place = 0.99 * (len(gaps_s) - 1)
    below = int(place)
    above = min(below + 1, len(gaps_s) - 1)
    itl_p99_s = gaps_s[below] + (place - below) * (gaps_s[above] - gaps_s[below])
    return RequestMetrics(ttft_s, sum(gaps_s) / len(gaps_s), itl_p99_s, tokens_per_s)
    # END SOLUTION


# ---- Task 5: a server that batches. Prepared by "Many readers at once" and "Measured".


def simulate_static_batches(
    arrivals_s: Sequence[float],
    output_lens: Sequence[int],
    batch_size: int,
    step_time_s: Callable[[int], float],
) -> tuple[list[float], float]:
    """Serve requests in static batches. Returns (latency of each request in seconds, tokens per second).

    Request i arrives at `arrivals_s[i]` and wants `output_lens[i]` tokens. There is at least one request, and each
    wants at least one token. Arrivals come in any order; latencies are returned in the order of the arguments.

    Whenever the server is free and requests are waiting, it takes those that have arrived longest ago (of equal
    arrivals, the lower index), at most `batch_size` of them, and starts at once: it does not wait for the batch to be
    full. With none waiting it idles until the next arrival, and takes all that arrive at that moment. A request that
    arrives exactly when the server gets free can join.

    A batch of b requests takes steps of `step_time_s(b)` seconds, as many as its longest request has tokens: the
    batch is static, so b stays what it was when it started. All its requests are answered when it ends. Reading the
    prompt is free here.

    The latency of a request runs from its arrival to its answer. The throughput counts the tokens that were asked for,
    from the first arrival to the last answer.

    Example: arrivals [0, 1, 2], output_lens [2, 4, 1], batch_size=2, step_time_s = lambda b: 1 + b. At 0 s only request
    0 is there: 2 steps of 2 s. At 4 s requests 1 and 2 start together: 4 steps of 3 s, until 16 s. Latencies
    [4, 15, 14]; 7 tokens in 16 s: 0.4375 tokens/s.
    """
    # BEGIN SOLUTION
    queue = sorted(range(len(arrivals_s)), key=lambda i: (arrivals_s[i], i))
    latencies_s = [0.0] * len(queue)
    now_s = first_arrival_s = arrivals_s[queue[0]]
    while queue:
        now_s = max(now_s, arrivals_s[queue[0]])
        batch = [i for i in queue[:batch_size] if arrivals_s[i] <= now_s]
        queue = queue[len(batch) :]
        now_s += max(output_lens[i] for i in batch) * step_time_s(len(batch))
        for i in batch:
            latencies_s[i] = now_s - arrivals_s[i]
    return latencies_s, sum(output_lens) / (now_s - first_arrival_s)
    # END SOLUTION
