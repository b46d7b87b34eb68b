"""Decoding: prefill the prompt, then one token at a time.

`generate_uncached` runs the whole sequence through the model for every token: slow, obviously right, the
oracle of the rest. `generate` keeps keys and values in a cache, so each step computes the new token only.
`generate_batch` decodes several prompts in one cache. Given the same generator state, all three choose the
same tokens.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from minillm.cache.contiguous import ContiguousCache
from minillm.config import ModelConfig
from minillm.model.transformer import Transformer
from minillm.sampling import SamplingParams, sample


@torch.inference_mode()
def generate_uncached(
    model: Transformer,
    prompt_token_ids: Sequence[int],
    params: SamplingParams = SamplingParams(),
    *,
    generator: torch.Generator | None = None,
) -> list[int]:
    """`generate` without a cache: every step recomputes the whole sequence. Same arguments, result and
    errors."""
    token_ids = check_prompt(model.config, prompt_token_ids)
    prompt_len = len(token_ids)
    for _ in range(num_tokens_to_generate(model.config, prompt_len, params)):
        tokens = torch.tensor([token_ids], device=model.embed_tokens.weight.device)
        logits = model(tokens)[0, -1]
        token_ids.append(sample(logits, params, token_ids, generator))
        if token_ids[-1] in ending_token_ids(model.config, params):
            break
    return token_ids[prompt_len:]


def generate(
    model: Transformer,
    prompt_token_ids: Sequence[int],
    params: SamplingParams = SamplingParams(),
    *,
    generator: torch.Generator | None = None,
) -> list[int]:
    """Continue a prompt; returns the new tokens only, the ending token included.

    Stops after `params.max_new_tokens`, after an end-of-sequence token of the model or one of
    `params.stop_token_ids`, and where prompt and output together fill the model's `max_seq_len`. `generator`
    makes the draws (None = torch's default one); greedy decoding makes none.

    Raises ValueError for a prompt that is empty, longer than `max_seq_len`, or has ids outside the
    vocabulary.
    """
    return list(decode_steps(model, prompt_token_ids, params, generator=generator))


@torch.inference_mode()
def decode_steps(
    model: Transformer,
    prompt_token_ids: Sequence[int],
    params: SamplingParams = SamplingParams(),
    *,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """The tokens of `generate`, each as soon as it is chosen.

    A generator: nothing runs, and nothing raises, before the first token is asked for.
    """
    token_ids = check_prompt(model.config, prompt_token_ids)
    num_new_tokens = num_tokens_to_generate(model.config, len(token_ids), params)
    cache = make_cache(model, batch_size=1, max_seq_len=len(token_ids) + num_new_tokens)
    new_token_ids = list(token_ids)  # the whole prompt first (prefill), then the token just chosen (decode)
    for _ in range(num_new_tokens):
        logits = last_logits(model, cache, [new_token_ids])[0]
        token_id = sample(logits, params, token_ids, generator)
        token_ids.append(token_id)
        yield token_id
        if token_id in ending_token_ids(model.config, params):
            return
        new_token_ids = [token_id]


@torch.inference_mode()
def generate_batch(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams] = SamplingParams(),
    *,
    generators: Sequence[torch.Generator | None] | None = None,
) -> list[list[int]]:
    """Continue several prompts of any lengths together; result i is what `generate` gives for prompt i alone.

    `params` is one for all prompts or one each; `generators` likewise holds one each, and each must be an
    object of its own for seeded draws to equal those made alone (None = torch's default one for all). A row
    that has ended leaves the batch, so the others do not pay for it.

    Raises ValueError as `generate` does, naming the prompt, and when the numbers of prompts, params and
    generators differ.
    """
    params = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
    generators = [None] * len(prompts) if generators is None else list(generators)
    if not len(prompts) == len(params) == len(generators):
        raise ValueError(
            "expected one SamplingParams for all or one per prompt, and one generator per prompt, got "
            f"{len(prompts)} prompts, {len(params)} params, {len(generators)} generators"
        )
    contexts = [check_prompt(model.config, prompt, f"prompt {i}") for i, prompt in enumerate(prompts)]
    limits = [num_tokens_to_generate(model.config, len(contexts[i]), params[i]) for i in range(len(prompts))]
    outputs: list[list[int]] = [[] for _ in prompts]

    def is_running(i: int) -> bool:
        has_ended = bool(outputs[i]) and outputs[i][-1] in ending_token_ids(model.config, params[i])
        return len(outputs[i]) < limits[i] and not has_ended

    active = [i for i in range(len(prompts)) if is_running(i)]  # row b of the cache serves prompt active[b]
    if not active:
        return outputs
    final_lens = [len(context) + limit for context, limit in zip(contexts, limits, strict=True)]
    cache = make_cache(model, batch_size=len(active), max_seq_len=max(final_lens))
    new_token_ids = [contexts[i] for i in active]
    while True:
        for i, logits in zip(active, last_logits(model, cache, new_token_ids), strict=True):
            outputs[i].append(sample(logits, params[i], contexts[i] + outputs[i], generators[i]))
        kept = [row for row, i in enumerate(active) if is_running(i)]
        if not kept:
            return outputs
        if len(kept) < len(active):
            cache.reorder(kept)
        active = [active[row] for row in kept]
        new_token_ids = [outputs[i][-1:] for i in active]


def last_logits(model: Transformer, cache: ContiguousCache, new_token_ids: Sequence[Sequence[int]]) -> Tensor:
    """Feed each row of the cache its new tokens, at least one; logits (batch, vocab_size) after the last.

    Advances the cache. Only the last positions meet the vocabulary: a prefill unembeds one token a row, not
    the prompt.
    """
    query_lens = [len(ids) for ids in new_token_ids]
    padded = [[*ids, *[0] * (max(query_lens) - len(ids))] for ids in new_token_ids]
    tokens = torch.tensor(padded, device=model.embed_tokens.weight.device)  # (batch, max(query_lens))
    attend = cache.begin(query_lens)
    hidden = model.hidden(model.embed(tokens), attend.positions, attend)
    cache.commit()
    last = hidden[range(len(query_lens)), [query_len - 1 for query_len in query_lens]]  # (batch, hidden_size)
    return model.unembed(last)


def make_cache(model: Transformer, *, batch_size: int, max_seq_len: int) -> ContiguousCache:
    """A contiguous cache for `model`, in the dtype and on the device of its embedding."""
    weight = model.embed_tokens.weight
    return ContiguousCache(
        model.layer_specs, batch_size, max_seq_len=max_seq_len, dtype=weight.dtype, device=weight.device
    )


def check_prompt(config: ModelConfig, prompt_token_ids: Sequence[int], name: str = "the prompt") -> list[int]:
    """The prompt as a new list of ints. Raises ValueError if it is empty, too long, or outside the
    vocabulary."""
    try:
        token_ids = [operator.index(token_id) for token_id in prompt_token_ids]
    except TypeError as error:
        raise ValueError(f"{name} must be a sequence of integer token ids: {error}") from error
    if not token_ids:
        raise ValueError(f"{name} is empty: expected at least one token")
    if len(token_ids) > config.max_seq_len:
        raise ValueError(f"{name} has {len(token_ids)} tokens: expected at most {config.max_seq_len} (max_seq_len)")
    outside = [token_id for token_id in token_ids if not 0 <= token_id < config.vocab_size]
    if outside:
        raise ValueError(f"{name} has token id {outside[0]}: expected ids from 0 to {config.vocab_size - 1}")
    return token_ids


def num_tokens_to_generate(config: ModelConfig, prompt_len: int, params: SamplingParams) -> int:
    """Most tokens that may follow the prompt: `max_new_tokens`, or fewer where `max_seq_len` comes first."""
    return min(params.max_new_tokens, config.max_seq_len - prompt_len)


def ending_token_ids(config: ModelConfig, params: SamplingParams) -> set[int]:
    """Tokens after which generation ends."""
    eos_token_ids = () if params.ignore_eos else config.eos_token_ids
    return {*params.stop_token_ids, *eos_token_ids}
