"""The decode loop over graphs: `generate_batch`, with a replay for each step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from minillm.generation.generate import check_prompt, ending_token_ids, num_tokens_to_generate
from minillm.generation.graph_decode import GraphDecoder
from minillm.sampling import SamplingParams, sample


@torch.inference_mode()
def generate_with_graphs(
    decoder: GraphDecoder,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams] = SamplingParams(),
    *,
    generators: Sequence[torch.Generator | None] | None = None,
) -> list[list[int]]:
    """Continue up to `decoder.batch_size` prompts together; arguments and result as of `generate_batch`.

    Empties the decoder's cache first. The prompts are prefilled in one eager forward; then every token is one replay. A
    row that has ended leaves: the rest moves up, and runs in a smaller graph as soon as one fits.

    Raises ValueError for more prompts than the decoder has rows, for prompts and limits that need more slots than it
    has, and as `generate_batch` does.
    """
    params = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
    generators = [None] * len(prompts) if generators is None else list(generators)
    if not len(prompts) == len(params) == len(generators) or len(prompts) > decoder.batch_size:
        raise ValueError(
            f"expected up to {decoder.batch_size} prompts, one SamplingParams for all or one per prompt, and one "
            f"generator per prompt, got {len(prompts)} prompts, {len(params)} params, {len(generators)} generators"
        )
    config = decoder.model.config
    contexts = [check_prompt(config, prompt, f"prompt {i}") for i, prompt in enumerate(prompts)]
    limits = [num_tokens_to_generate(config, len(contexts[i]), params[i]) for i in range(len(prompts))]
    for i, (context, limit) in enumerate(zip(contexts, limits, strict=True)):
        if len(context) + limit > decoder.cache.max_seq_len:
            raise ValueError(
                f"prompt {i} and its output need {len(context)} + {limit} slots: expected at most "
                f"{decoder.cache.max_seq_len}, the decoder's max_seq_len"
            )
    outputs: list[list[int]] = [[] for _ in prompts]

    def is_running(i: int) -> bool:
        has_ended = bool(outputs[i]) and outputs[i][-1] in ending_token_ids(config, params[i])
        return len(outputs[i]) < limits[i] and not has_ended

    active = [i for i in range(len(prompts)) if is_running(i)]  # row b of the cache serves prompt active[b]
    decoder.cache.crop([0] * decoder.batch_size)
    if not active:
        return outputs
    logits = decoder.prefill([contexts[i] for i in active])
    while True:
        for i, row in zip(active, logits, strict=True):
            outputs[i].append(sample(row, params[i], contexts[i] + outputs[i], generators[i]))
        kept = [row for row, i in enumerate(active) if is_running(i)]
        if not kept:
            return outputs
        if len(kept) < len(active):
            decoder.cache.reorder(kept)
        active = [active[row] for row in kept]
        logits = decoder.step([outputs[i][-1] for i in active])
