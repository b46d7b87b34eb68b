"""Chapter 04: choosing the next token.

Complete the functions below, then run `python3 tasks.py grade ch04`. The chapter is `chapters/04_next_token.ipynb`;
each task names the section that prepares it. Everything here works on logits; no model is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# ---- Task 1 (prediction): how many tokens survive? Prepared by "The idea", top-p.


def nucleus_size(logit_step: float, temperature: float, top_p: float) -> int:
    """How many tokens top-p keeps when the logits fall by `logit_step` > 0 from each rank to the next.

    The vocabulary is endless. Logits 0, -s, -2s, -3s, ... divided by `temperature` > 0 give probabilities that shrink
    by the same factor r from rank to rank, a geometric distribution (1 - r), (1 - r) r, (1 - r) r², ...
    The nucleus is the fewest most likely tokens whose probabilities sum to `top_p` (0 < top_p < 1) or more.
    Find a closed form: no loop.

    Example: logit_step = ln 2 at temperature 1 gives probabilities 1/2, 1/4, 1/8, ... The first three sum to 0.875, the
    first four to 0.9375, so `nucleus_size(math.log(2), 1.0, 0.9) == 4`. At temperature 2 it is 7.

    Where the sum reaches top_p exactly, rounding must not cost a token more: ln 2, 1.0 and 0.75 give 2. Subtracting
    1e-9 before rounding up does it.
    """
    # BEGIN SOLUTION
    ratio = math.exp(-logit_step / temperature)
    # The first n tokens weigh 1 - ratio**n. It reaches top_p when ratio**n <= 1 - top_p.
    return math.ceil(math.log(1 - top_p) / math.log(ratio) - 1e-9)
    # END SOLUTION


# ---- Task 2: temperature. Prepared by "The idea", temperature.


def temperature_probs(logits: Tensor, temperature: float) -> Tensor:
    """The distribution to draw from: logits (..., vocab_size) -> probabilities of the same shape.

    Each row is softmax(row / temperature) and sums to 1. Temperature 0 is greedy decoding: probability 1 for the
    largest logit (the lowest id among equals), 0 for the rest.

    It must stay finite for every temperature >= 0, down to 1e-40, and for logits of any size; -inf stands for a banned
    token and gets probability 0. No row is all -inf.

    Example: logits [0, ln 2] give [1/3, 2/3] at temperature 1, [1/5, 4/5] at 0.5, [0, 1] at 0.
    """
    # BEGIN SOLUTION
    largest = logits.amax(dim=-1, keepdim=True)
    if temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    # Differences first: the largest becomes 0, and 0 divided by anything stays 0.
    return ((logits - largest).double() / temperature).softmax(dim=-1).to(logits.dtype)
    # END SOLUTION


# ---- Task 3: the nucleus. Prepared by "The idea", top-p.


def nucleus_mask(logits: Tensor, top_p: float) -> Tensor:
    """True for the tokens that top-p keeps: logits (..., vocab_size), in any order -> bool of the same shape.

    Kept are, in each row, the fewest most likely tokens whose probabilities sum to `top_p` or more: the token that
    crosses the line stays. So at least one is always kept, however small top_p > 0 is. Among equally likely tokens any
    may be kept, but no more of them than needed. A token of probability 0 (logit -inf) is never kept.

    Example: probabilities [0.1, 0.6, 0.3] and top_p = 0.7 keep [False, True, True], since 0.6 < 0.7 <= 0.6 + 0.3.

    Compute in float64: the sums then agree with those of the tests.
    """
    # BEGIN SOLUTION
    probs, token_of = logits.double().softmax(dim=-1).sort(dim=-1, descending=True)
    mass_before = probs.cumsum(dim=-1) - probs  # of the likelier tokens alone
    is_kept = (mass_before < top_p) & (probs > 0)
    return torch.zeros_like(is_kept).scatter(-1, token_of, is_kept)
    # END SOLUTION


# ---- Task 4 (bug hunt): the whole chain. Prepared by "The idea" (penalties, order) and "The real version".


def hasty_process(
    logits: Tensor,
    history: list[int],
    *,
    repetition_penalty: float = 1.0,
    no_repeat_ngram_size: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Tensor:
    """Somebody's draft of `process`. It runs, its output looks plausible, and it is wrong in eight ways."""
    logits = logits.clone()
    for token_id in history:
        logits[token_id] /= repetition_penalty
    if no_repeat_ngram_size is not None:
        n = no_repeat_ngram_size
        ending = history[-(n - 1) :]
        for start in range(len(history) - n):
            if history[start : start + n - 1] == ending:
                logits[history[start + n - 1]] = -math.inf
    if top_k is not None:
        logits[logits < logits.topk(top_k).values[-1]] = -math.inf
    if top_p < 1:
        logits[~nucleus_mask(logits, top_p)] = -math.inf
    if min_p > 0:
        logits[logits.softmax(dim=-1) < min_p] = -math.inf
    return logits / temperature


def process(
    logits: Tensor,
    history: list[int],
    *,
    repetition_penalty: float = 1.0,
    no_repeat_ngram_size: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Tensor:
    """`hasty_process`, repaired: logits (vocab_size,) -> new logits of the same shape, -inf for tokens that are out.

    `history` is the prompt and the output so far. `logits` themselves stay as they are. In this order:

    1. repetition penalty: each token of `history` is weakened once, however often it occurs. Its logit is divided by
       the penalty if positive, multiplied by it if negative.
    2. no-repeat n-gram: every token that would complete an n-gram that `history` has already (n >= 1) is out. If no
       finite logit would be left, nothing is banned: something has to come next.
    3. temperature (> 0 here): divide.
    4. top-k: the k largest stay, and ties with the k-th. A k beyond the vocabulary keeps all.
    5. top-p: the nucleus stays. Build on `nucleus_mask`.
    6. min-p: tokens at least `min_p` times as likely as the likeliest stay.

    Examples: history [7, 3, 7] and n = 2 ban token 3, because "7 3" was there; history [5, 5] and n = 2 ban token 5;
    n = 1 bans every token of the history. Probabilities [0.5, 0.3, 0.2] and min_p = 0.5 keep the first two, since
    the line is at 0.5 · 0.5 = 0.25.
    """
    # BEGIN SOLUTION
    seen = torch.tensor(sorted(set(history)), dtype=torch.int64)
    logits = logits.clone()
    logits[seen] = torch.where(logits[seen] < 0, logits[seen] * repetition_penalty, logits[seen] / repetition_penalty)
    if no_repeat_ngram_size is not None:
        n = no_repeat_ngram_size
        ending = history[len(history) - (n - 1) :]
        remaining = logits.clone()
        for start in range(len(history) - n + 1):
            if history[start : start + n - 1] == ending:
                remaining[history[start + n - 1]] = -math.inf
        if not remaining.isneginf().all():
            logits = remaining
    logits = logits / temperature
    if top_k is not None:
        logits[logits < logits.topk(min(top_k, len(logits))).values[-1]] = -math.inf
    if top_p < 1:
        logits[~nucleus_mask(logits, top_p)] = -math.inf
    if min_p > 0:
        probs = logits.softmax(dim=-1)
        logits[probs < min_p * probs.max()] = -math.inf
    return logits
    # END SOLUTION


# ---- Task 5: a draw without a sum. Prepared by "The idea", drawing.


def gumbel_draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token a row by the Gumbel-max trick: logits (..., vocab_size) -> token ids (...), int64.

    `uniforms` (..., vocab_size) are independent and uniform on (0, 1), both ends excluded: one for each token. Turned
    into Gumbel noise -ln(-ln u) and added to the logits, they make the place of the largest sum a sample from
    softmax(logits). They are the only source of chance: equal uniforms give equal tokens.
    A banned token (-inf) never wins, whatever its number.

    Example: logits [0, 0, ln 3] and uniforms [0.5, 0.9, 0.2] have noise [0.37, 2.25, -0.48] and sums
    [0.37, 2.25, 0.62]: token 1 wins, although token 2 is three times as likely.
    """
    # BEGIN SOLUTION
    noise = -torch.log(-torch.log(uniforms))
    return (logits + noise).argmax(dim=-1)
    # END SOLUTION


# ---- Task 6: beam search. Prepared by "The idea", search.


def beam_search(
    next_log_probs: Callable[[list[int]], Tensor],
    prompt: Sequence[int],
    *,
    num_beams: int,
    max_new_tokens: int,
    eos_token_id: int,
    length_penalty: float = 1.0,
) -> list[tuple[list[int], float]]:
    """The best continuations of `prompt` that a beam of `num_beams` finds: (new token ids, score), best first.

    `next_log_probs(token_ids)` gives the log-probabilities (vocab_size,) of the token after `token_ids`, which are
    the prompt and new tokens. The beam begins as one empty continuation with total 0. Each step:

    1. extend every continuation in the beam by every token; its total is the sum of its new tokens' log-probabilities.
       Extensions of probability 0 (total -inf) don't count;
    2. rank all extensions by total. Those among the best `num_beams` that end in `eos_token_id` are finished: they are
       kept aside and never extended;
    3. the best `num_beams` extensions that do not end in `eos_token_id` are the next beam.

    After `max_new_tokens` steps what is among the best `num_beams` counts as finished, with or without an ending. The
    search ends there, or earlier if the beam is empty.

    score = total / (number of new tokens) ** length_penalty. The ending token counts, the prompt does not. Returned are
    the `num_beams` finished continuations with the best scores, or fewer if there are fewer.

    Example, with tokens a = 0, b = 1, EOS = 2: after the prompt, a has probability 0.6, b 0.4. After a: a 0.5, EOS 0.5.
    After b: EOS 1. With max_new_tokens = 2, a beam of 1 follows a and finds a continuation of probability 0.3;
    a beam of 2 also follows b and finds [1, 2], of probability 0.4: with length_penalty = 0 its score is ln 0.4.
    """
    # BEGIN SOLUTION
    beam: list[tuple[list[int], float]] = [([], 0.0)]
    finished: list[tuple[list[int], float]] = []
    for new_len in range(1, max_new_tokens + 1):
        extensions = [
            ([*token_ids, token_id], total + log_prob)
            for token_ids, total in beam
            for token_id, log_prob in enumerate(next_log_probs([*prompt, *token_ids]).tolist())
            if log_prob > -math.inf
        ]
        extensions.sort(key=lambda extension: -extension[1])
        for token_ids, total in extensions[:num_beams]:
            if token_ids[-1] == eos_token_id or new_len == max_new_tokens:
                finished.append((token_ids, total / new_len**length_penalty))
        beam = [extension for extension in extensions if extension[0][-1] != eos_token_id][:num_beams]
    return sorted(finished, key=lambda ended: -ended[1])[:num_beams]
    # END SOLUTION
