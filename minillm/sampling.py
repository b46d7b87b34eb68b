"""From logits to the next token: filters, and one draw.

Every filter is a pure function on logits `(..., vocab_size)`: it returns new logits in which some tokens
weigh less or, at -inf, nothing. `process_logits` composes them in the order that `transformers` uses:

    repetition penalty → no-repeat n-gram → temperature → top-k → top-p → min-p

The order matters: each filter sees what the ones before it left, so top-p measures probabilities after the
temperature. Arithmetic is in float32, or in float64 when the logits are float64. At least one token always
survives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Dividing ordinary logits by less than this gains nothing over greedy decoding and ends in inf - inf.
MIN_TEMPERATURE = 1e-6


@dataclass(frozen=True)
class SamplingParams:
    """How to choose the tokens of one request, and when to stop. None means off.

    max_new_tokens        most tokens to generate, the ending one included
    temperature           divides the logits; 0 is greedy decoding (the most likely token, lowest id on ties)
    top_k                 keep the k most likely tokens (and ties with the k-th)
    top_p                 keep the fewest most likely tokens whose probabilities reach top_p
    min_p                 keep tokens at least min_p times as likely as the most likely one
    repetition_penalty    > 1 discourages tokens that the prompt or the output already has; 1 changes nothing
    no_repeat_ngram_size  n: no n tokens in a row appear twice in prompt and output together
    stop_token_ids        tokens that end generation, besides the model's own end-of-sequence tokens
    ignore_eos            generate on through the model's end-of-sequence tokens (stop_token_ids still end)

    Raises ValueError for a value outside its range.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name, (is_valid, expected) in _RULES.items():
            value = getattr(self, name)
            if not is_valid(value):
                raise ValueError(f"{name} must be {expected}, got {value!r}")
        # A list of stop tokens is welcome, but hashing needs a tuple.
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))


def _is_int(value: Any, at_least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_new_tokens": (lambda v: _is_int(v, 0), "an integer >= 0"),
    "temperature": (
        lambda v: _is_number(v) and (v == 0 or v >= MIN_TEMPERATURE),
        f"0 (greedy) or a number >= {MIN_TEMPERATURE}",
    ),
    "top_k": (lambda v: v is None or _is_int(v, 1), "None (off) or an integer >= 1"),
    "top_p": (lambda v: v is None or (_is_number(v) and 0 < v <= 1), "None (off) or a number in (0, 1]"),
    "min_p": (lambda v: v is None or (_is_number(v) and 0 <= v <= 1), "None (off) or a number in [0, 1]"),
    "repetition_penalty": (lambda v: v is None or (_is_number(v) and v > 0), "None (off) or a number > 0"),
    "no_repeat_ngram_size": (lambda v: v is None or _is_int(v, 1), "None (off) or an integer >= 1"),
    "stop_token_ids": (
        lambda v: isinstance(v, Sequence) and all(_is_int(token_id, 0) for token_id in v),
        "a sequence of integers >= 0",
    ),
    "ignore_eos": (lambda v: isinstance(v, bool), "True or False"),
}


def sample(
    logits: Tensor, params: SamplingParams, token_ids: Sequence[int], generator: torch.Generator | None = None
) -> int:
    """Choose the next token of one sequence.

    `logits` (vocab_size,) follow `token_ids`, the prompt and the output so far. A draw takes exactly one
    uniform number from `generator` (None = torch's default one) and inverts the cumulative distribution at
    it, so a sequence with a generator of its own gets the same tokens alone and in a batch. Greedy decoding
    draws nothing.

    Raises ValueError when logits with NaN or +inf leave no distribution to draw from.
    """
    if params.temperature == 0:
        return int(process_logits(logits, params, token_ids).argmax())
    cumulative = token_probs(logits, params, token_ids).double().cumsum(dim=-1)
    total_prob = cumulative[-1].item()
    if math.isnan(total_prob):
        raise ValueError("cannot sample: expected logits without NaN or +inf, and at least one above -inf")
    device = "cpu" if generator is None else generator.device
    uniform = torch.rand((), dtype=torch.float64, generator=generator, device=device).item()
    # right=True: the first token whose cumulative probability exceeds the target, never one of probability 0.
    return int(torch.searchsorted(cumulative, uniform * total_prob, right=True))


def token_probs(logits: Tensor, params: SamplingParams, token_ids: Sequence[int]) -> Tensor:
    """The distribution that `sample` draws from: (..., vocab_size) -> (..., vocab_size), rows sum to 1.

    Greedy decoding (temperature 0) puts probability 1 on one token.
    """
    processed = process_logits(logits, params, token_ids)
    if params.temperature == 0:
        return torch.zeros_like(processed).scatter(-1, processed.argmax(dim=-1, keepdim=True), 1.0)
    return processed.softmax(dim=-1)


def process_logits(logits: Tensor, params: SamplingParams, token_ids: Sequence[int]) -> Tensor:
    """Apply the filters that `params` names, in their order: logits (..., vocab_size) -> the same shape.

    `token_ids` is the history that all rows share: the prompt and the output so far. At temperature 0 the
    filters after the n-gram ban are left out: none of them changes which token is the most likely.
    """
    processed = logits if logits.dtype == torch.float64 else logits.float()
    if params.repetition_penalty is not None:
        processed = penalize_repetition(processed, token_ids, params.repetition_penalty)
    if params.no_repeat_ngram_size is not None:
        processed = ban_repeated_ngrams(processed, token_ids, params.no_repeat_ngram_size)
    if params.temperature == 0:
        return processed
    processed = processed / params.temperature
    if params.top_k is not None:
        processed = keep_top_k(processed, params.top_k)
    if params.top_p is not None:
        processed = keep_top_p(processed, params.top_p)
    if params.min_p is not None:
        processed = keep_min_p(processed, params.min_p)
    return processed


def penalize_repetition(logits: Tensor, token_ids: Sequence[int], penalty: float) -> Tensor:
    """Weaken each token of `token_ids` once: logit / penalty, or logit * penalty where it is negative.

    Dividing a negative logit would raise it, hence two cases. Source: CTRL, arXiv:1909.05858, section 4.1
    (which has only the first).
    """
    seen = torch.tensor(sorted(set(token_ids)), dtype=torch.int64, device=logits.device)
    seen_logits = logits[..., seen]
    penalized = torch.where(seen_logits < 0, seen_logits * penalty, seen_logits / penalty)
    return logits.index_copy(-1, seen, penalized)


def ban_repeated_ngrams(logits: Tensor, token_ids: Sequence[int], ngram_size: int) -> Tensor:
    """Set to -inf every token that would complete an n-gram that `token_ids` already has.

    Where that would ban the whole vocabulary of a row, the row stays as it was: something has to come next.
    """
    prefix_start = len(token_ids) - (ngram_size - 1)
    if prefix_start < 1:
        return logits  # no earlier n-gram exists
    prefix = list(token_ids[prefix_start:])
    banned = {
        token_ids[end]
        for end in range(ngram_size - 1, len(token_ids))
        if list(token_ids[end - ngram_size + 1 : end]) == prefix
    }
    index = torch.tensor(sorted(banned), dtype=torch.int64, device=logits.device)
    remaining = logits.index_fill(-1, index, -math.inf)
    all_banned = remaining.isneginf().all(dim=-1, keepdim=True)
    return torch.where(all_banned, logits, remaining)


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Set to -inf every logit below the k-th largest; its ties stay. k beyond the vocabulary keeps all."""
    kth_largest = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < kth_largest, -math.inf)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Keep the fewest most likely tokens whose probabilities reach `top_p`; the token that crosses it stays.

    Nucleus sampling. Source: arXiv:1904.09751, section 3.1. Seen from the other end: a token goes when it and
    all less likely ones weigh at most 1 - top_p together. Summing from the small end also loses fewer digits.
    The stable sort makes the choice among equally likely tokens the same everywhere: lower ids go first.
    """
    ascending, token_of = logits.sort(dim=-1, stable=True)
    tail_mass = ascending.softmax(dim=-1).cumsum(dim=-1)
    is_dropped = tail_mass <= 1 - top_p
    is_dropped[..., -1] = False
    return logits.masked_fill(is_dropped.scatter(-1, token_of, is_dropped), -math.inf)


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Keep tokens at least `min_p` times as likely as the most likely one. Source: arXiv:2407.01082."""
    probs = logits.softmax(dim=-1)
    return logits.masked_fill(probs < min_p * probs.amax(dim=-1, keepdim=True), -math.inf)
