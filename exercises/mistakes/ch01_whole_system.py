"""Wrong solutions of chapter 01 that people write, each with the hint it deserves."""

from __future__ import annotations

from itertools import pairwise

from minillm.grading import edited, mistake

# ---- predict_tokens_per_second

edited(
    "predict_tokens_per_second",
    "gives steps a second, not tokens",
    replace={"return batch_size / max": "return 1 / max"},
    hint="A step gives every request of the batch a token: batch_size tokens in all.",
)
edited(
    "predict_tokens_per_second",
    "reads the weights once for each request",
    replace={"(weight_bytes + batch_size * seq_len": "(batch_size * weight_bytes + batch_size * seq_len"},
    hint="Sharing the weights is the whole point of a batch: one step reads them once.",
)
edited(
    "predict_tokens_per_second",
    "lets the batch share keys and values",
    replace={"batch_size * seq_len * kv": "seq_len * kv"},
    hint="Each request has its own past, so each has its own keys and values to read.",
)
edited(
    "predict_tokens_per_second",
    "adds memory time and compute time",
    replace={"max(memory_s, compute_s)": "(memory_s + compute_s)"},
    hint="Reading and computing overlap: the step takes as long as the slower of the two, not as both in a row.",
)
edited(
    "predict_tokens_per_second",
    "forgets the arithmetic",
    replace={"max(memory_s, compute_s)": "memory_s"},
    hint="A large enough batch keeps the arithmetic units busy for longer than memory needs.",
)

# ---- bpe_encode


@mistake(
    "bpe_encode",
    "joins the leftmost pair, whatever its rank",
    hint="Rank decides first. Place only decides between two places of the same pair.",
)
def bpe_encode(word, merges):
    tokens = list(word)
    while True:
        places = [place for place, pair in enumerate(pairwise(tokens)) if pair in merges]
        if not places:
            return tokens
        place = min(places)
        tokens[place : place + 2] = [tokens[place] + tokens[place + 1]]


@mistake(
    "bpe_encode",
    "takes the longest known token from the left",
    hint="Longest match is another algorithm (WordPiece does that). BPE repeats the merges of its training, by rank.",
)
def bpe_encode(word, merges):  # noqa: F811
    known = {left + right for left, right in merges}
    tokens = []
    while word:
        length = max([1] + [n for n in range(2, len(word) + 1) if word[:n] in known])
        tokens.append(word[:length])
        word = word[length:]
    return tokens


@mistake(
    "bpe_encode",
    "goes through the word once",
    hint="What has been joined can be joined again: go on until no neighbours are a pair of `merges`.",
)
def bpe_encode(word, merges):  # noqa: F811
    tokens = list(word)
    rank_of = {pair: rank for rank, pair in enumerate(merges)}
    place = 0
    while place + 1 < len(tokens):
        if (tokens[place], tokens[place + 1]) in rank_of:
            tokens[place : place + 2] = [tokens[place] + tokens[place + 1]]
        place += 1
    return tokens


@mistake(
    "bpe_encode",
    "goes through the list once",
    hint="A late merge can make the part that an early one needs. After each join, look at the whole list again.",
)
def bpe_encode(word, merges):  # noqa: F811
    tokens = list(word)
    for pair in merges:
        place = 0
        while place + 1 < len(tokens):
            if (tokens[place], tokens[place + 1]) == tuple(pair):
                tokens[place : place + 2] = [tokens[place] + tokens[place + 1]]
            place += 1
    return tokens


@mistake(
    "bpe_encode",
    "expects that there is always a pair of neighbours",
    hint="One token has no neighbours, and min() of nothing raises ValueError: stop when no pair is left.",
)
def bpe_encode(word, merges):  # noqa: F811
    rank_of = {pair: rank for rank, pair in enumerate(merges)}
    tokens = list(word)
    while True:
        rank, place = min((rank_of.get(pair, len(merges)), place) for place, pair in enumerate(pairwise(tokens)))
        if rank == len(merges):
            return tokens
        tokens[place : place + 2] = [tokens[place] + tokens[place + 1]]


edited(
    "bpe_encode",
    "gives an empty token for the empty word",
    replace={"tokens = list(word)": "tokens = list(word) or [word]"},
    hint='"" has no characters, so it has no tokens: [] and not [""].',
)
edited(
    "bpe_encode",
    "joins equal pairs from the right",
    replace={
        "(rank_of[pair], place)": "(rank_of[pair], -place)",
        "_, place = min(candidates)": "place = -min(candidates)[1]",
    },
    hint='"aaa" with the pair (a, a) is "aa" and "a": of several places, the leftmost.',
)

# ---- decode_loop


@mistake(
    "decode_loop",
    "six bugs, as found",
    hint="Follow the example by hand: what does the model see, what is compared with max_new_tokens, what is returned?",
)
def decode_loop(next_logits, prompt, max_new_tokens, eos_token_ids):
    token_ids = prompt
    while len(token_ids) < max_new_tokens:
        logits = next_logits(token_ids[-1:])
        token_id = max(logits)
        if token_id in eos_token_ids:
            break
        token_ids.append(token_id)
    return token_ids


edited(
    "decode_loop",
    "stops before the ending token is part of the result",
    replace={
        "new_token_ids.append(logits.index(max(logits)))": "token_id = logits.index(max(logits))",
        "if new_token_ids[-1] in eos_token_ids:\n            break": "if token_id in eos_token_ids:\n            break\n"
        "        new_token_ids.append(token_id)",
    },
    hint="Append first, then look: the caller wants to know that the sequence has ended, and not been cut.",
)
edited(
    "decode_loop",
    "counts the prompt as output",
    replace={"len(new_token_ids) < max_new_tokens": "len(token_ids) + len(new_token_ids) < max_new_tokens"},
    hint="max_new_tokens limits the new tokens only: a long prompt must not shorten the answer.",
)
edited(
    "decode_loop",
    "returns the prompt with the answer",
    replace={"return new_token_ids": "return token_ids + new_token_ids"},
    hint="The caller has the prompt already.",
)
edited(
    "decode_loop",
    "shows the model the last token only",
    replace={"next_logits(token_ids + new_token_ids)": "next_logits((token_ids + new_token_ids)[-1:])"},
    hint="The model has no memory of its own: what it does not see in this call, it does not know.",
)
edited(
    "decode_loop",
    "writes into the caller's prompt",
    replace={
        "token_ids = list(prompt)": "token_ids = prompt",
        "next_logits(token_ids + new_token_ids)": "next_logits(token_ids)",
        "new_token_ids.append(logits.index(max(logits)))": "new_token_ids.append(logits.index(max(logits)))\n"
        "        token_ids.append(new_token_ids[-1])",
    },
    hint="`token_ids = prompt` is a second name for the caller's list, not a copy: list(prompt).",
)
edited(
    "decode_loop",
    "always gives at least one token",
    replace={
        "while len(new_token_ids) < max_new_tokens:": "while True:",
        "in eos_token_ids:": "in eos_token_ids or len(new_token_ids) >= max_new_tokens:",
    },
    hint="Zero new tokens is a request like any other (to score a prompt, say): check the limit before the model runs.",
)
edited(
    "decode_loop",
    "gives equal logits to the highest id",
    replace={"logits.index(max(logits))": "len(logits) - 1 - logits[::-1].index(max(logits))"},
    hint="Of equal logits the lowest id wins: the rule of argmax, and what makes greedy decoding repeatable.",
)
edited(
    "decode_loop",
    "ends on an ending token anywhere",
    replace={
        "if new_token_ids[-1] in eos_token_ids:": "if any(t in eos_token_ids for t in token_ids + new_token_ids):"
    },
    hint="A prompt may hold ending tokens (between two turns of a chat). Only a token just chosen ends the answer.",
)

# ---- request_metrics

edited(
    "request_metrics",
    "takes the first token's clock reading for the TTFT",
    replace={"token_times_s[0] - arrival_s": "token_times_s[0]"},
    hint="Times are readings of a clock that did not start with the request: subtract the arrival.",
)
edited(
    "request_metrics",
    "divides the gaps by the number of tokens",
    replace={"sum(gaps_s) / len(gaps_s)": "sum(gaps_s) / len(token_times_s)"},
    hint="n tokens have n - 1 gaps.",
)
edited(
    "request_metrics",
    "puts the TTFT into the mean gap",
    replace={"sum(gaps_s) / len(gaps_s)": "(token_times_s[-1] - arrival_s) / len(token_times_s)"},
    hint="The mean gap knows nothing of the arrival: (last token - first token) / (n - 1).",
)
edited(
    "request_metrics",
    "starts the clock at the first token",
    replace={"(token_times_s[-1] - arrival_s)": "(token_times_s[-1] - token_times_s[0])"},
    hint="The user waits from the arrival on: tokens_per_s counts the TTFT, too.",
)
edited(
    "request_metrics",
    "gives 0 where there is no gap",
    replace={'float("nan"), float("nan")': "0.0, 0.0"},
    hint="A gap of 0 s would be the best of all. One token has no gap: NaN.",
)


@mistake(
    "request_metrics",
    "counts the wait for the first token as a gap between tokens",
    hint="The first wait is the TTFT. Gaps are between tokens: mixed together, prefill hides in the ITL.",
)
def request_metrics(arrival_s, token_times_s):
    times = [arrival_s, *token_times_s]
    gaps_s = sorted(later - earlier for earlier, later in pairwise(times))
    place = 0.99 * (len(gaps_s) - 1)
    below = int(place)
    above = min(below + 1, len(gaps_s) - 1)
    p99 = gaps_s[below] + (place - below) * (gaps_s[above] - gaps_s[below])
    ttft_s = token_times_s[0] - arrival_s
    tokens_per_s = len(token_times_s) / (token_times_s[-1] - arrival_s)
    return RequestMetrics(ttft_s, sum(gaps_s) / len(gaps_s), p99, tokens_per_s)  # noqa: F821


edited(
    "request_metrics",
    "takes the largest gap for the 99th percentile",
    replace={"gaps_s[below] + (place - below) * (gaps_s[above] - gaps_s[below])": "gaps_s[-1]"},
    hint="The maximum is one unlucky moment. The 99th percentile lies at place 0.99 · (n - 1) of the sorted gaps.",
)
edited(
    "request_metrics",
    "forgets to sort the gaps",
    replace={
        "sorted(later - earlier for earlier, later in pairwise(token_times_s))": "[b - a for a, b in "
        "pairwise(token_times_s)]"
    },
    hint="A percentile is a place in the sorted list; in order of time it is just some late gap.",
)

# ---- simulate_static_batches

edited(
    "simulate_static_batches",
    "waits until the batch is full",
    replace={
        "now_s = max(now_s, arrivals_s[queue[0]])": "now_s = max(now_s, arrivals_s[queue[:batch_size][-1]])",
    },
    hint="A lone request must not wait for company: the batch takes whoever is there when the server is free.",
)
edited(
    "simulate_static_batches",
    "serves requests that have not arrived yet",
    replace={"queue[:batch_size] if arrivals_s[i] <= now_s": "queue[:batch_size]"},
    hint="The batch starts now: only requests with arrival <= now can be in it.",
)
edited(
    "simulate_static_batches",
    "charges every batch as if it were full",
    replace={"step_time_s(len(batch))": "step_time_s(batch_size)"},
    hint="A batch of two costs step_time_s(2), also on a server that could hold eight.",
)
edited(
    "simulate_static_batches",
    "answers each request when its own tokens are done",
    replace={
        "now_s += max(output_lens[i] for i in batch) * step_time_s(len(batch))": "start_s = now_s\n"
        "        step_s = step_time_s(len(batch))\n        now_s += max(output_lens[i] for i in batch) * step_s",
        "latencies_s[i] = now_s - arrivals_s[i]": "latencies_s[i] = start_s + output_lens[i] * step_s - arrivals_s[i]",
    },
    hint="That is half of continuous batching (chapter 14). Here the batch is static: all are answered at its end.",
)
edited(
    "simulate_static_batches",
    "forgets the time in the queue",
    replace={
        "now_s += max(output_lens[i] for i in batch) * step_time_s(len(batch))": "start_s = now_s\n"
        "        now_s += max(output_lens[i] for i in batch) * step_time_s(len(batch))",
        "latencies_s[i] = now_s - arrivals_s[i]": "latencies_s[i] = now_s - start_s",
    },
    hint="Latency runs from the arrival, not from the start of the batch. Under load the queue is most of it.",
)
edited(
    "simulate_static_batches",
    "runs the batch for its first request's length",
    replace={"max(output_lens[i] for i in batch)": "output_lens[batch[0]]"},
    hint="A static batch runs until its longest request is done.",
)
edited(
    "simulate_static_batches",
    "takes the arguments to be in order of arrival",
    replace={"sorted(range(len(arrivals_s)), key=lambda i: (arrivals_s[i], i))": "list(range(len(arrivals_s)))"},
    hint="Arrivals come in any order: sort the indices by arrival, and return latencies in the order of the arguments.",
)
edited(
    "simulate_static_batches",
    "returns latencies in order of service",
    replace={
        "latencies_s[i] = now_s - arrivals_s[i]": "latencies_s.append(now_s - arrivals_s[i])",
        "[0.0] * len(queue)": "[]",
    },
    hint="latencies[i] belongs to arrivals_s[i]: write by index.",
)
edited(
    "simulate_static_batches",
    "measures throughput from time zero",
    replace={"(now_s - first_arrival_s)": "now_s"},
    hint="The clock did not start with the first request: throughput counts from the first arrival.",
)
