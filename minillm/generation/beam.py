"""Beam search: keep the `num_beams` best unfinished sequences, extend each by every token, keep the best
again."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from minillm.generation.generate import check_prompt, last_logits, make_cache
from minillm.model.transformer import Transformer


@torch.inference_mode()
def beam_search(
    model: Transformer,
    prompt_token_ids: Sequence[int],
    *,
    num_beams: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
) -> list[tuple[list[int], float]]:
    """The best continuations found, as (new token ids, score), best first; at most `num_beams` of them.

    score = (sum of log-probabilities of the new tokens) / (number of new tokens) ** length_penalty: the
    end-of-sequence token counts, the prompt does not. 0 ranks by probability, which favours short sequences;
    larger values favour long ones. Sequences end at the model's end-of-sequence tokens, after
    `max_new_tokens`, or at `max_seq_len`.

    The search ends when `num_beams` sequences have ended and the best unfinished one, scored at its present
    length, is no better than the worst of them. That is `transformers.generate(num_beams=…,
    early_stopping=False)`, and a heuristic: with a positive length_penalty an unfinished sequence could still
    overtake.

    Raises ValueError for num_beams < 1, max_new_tokens < 0, and the prompts that `generate` refuses.
    """
    if num_beams < 1 or max_new_tokens < 0:
        raise ValueError(f"expected num_beams >= 1, max_new_tokens >= 0, got {num_beams}, {max_new_tokens}")
    prompt = check_prompt(model.config, prompt_token_ids)
    eos_token_ids = set(model.config.eos_token_ids)
    max_new_tokens = min(max_new_tokens, model.config.max_seq_len - len(prompt))
    if max_new_tokens == 0:
        return [([], 0.0)]

    # Of (1 + number of EOS tokens) * num_beams candidates, at least num_beams can go on.
    num_candidates = max(2, 1 + len(eos_token_ids)) * num_beams
    cache = make_cache(model, batch_size=1, max_seq_len=len(prompt) + max_new_tokens)
    # Unfinished: (new token ids, sum of log-probabilities); finished: (new token ids, score). Best first.
    beams: list[tuple[list[int], float]] = [([], 0.0)]
    finished: list[tuple[list[int], float]] = []
    new_token_ids = [prompt]
    for new_len in range(1, max_new_tokens + 1):
        logits = last_logits(model, cache, new_token_ids)  # (num live beams, vocab_size)
        log_probs = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(dim=-1)
        totals = log_probs + log_probs.new_tensor([[total] for _, total in beams])
        best = totals.flatten().topk(min(num_candidates, totals.numel()))

        survivors: list[tuple[list[int], float]] = []
        parents: list[int] = []
        for rank, (total, index) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            parent, token_id = divmod(index, totals.shape[1])
            token_ids = [*beams[parent][0], token_id]
            if token_id not in eos_token_ids and new_len < max_new_tokens:
                survivors.append((token_ids, total))
                parents.append(parent)
            elif rank < num_beams:  # the candidates beyond num_beams are there to go on, not to end
                finished.append((token_ids, total / new_len**length_penalty))

        finished = sorted(finished, key=lambda ended: -ended[1])[:num_beams]
        beams, parents = survivors[:num_beams], parents[:num_beams]
        if not beams:
            break
        best_unfinished_score = beams[0][1] / new_len**length_penalty
        if len(finished) == num_beams and best_unfinished_score <= finished[-1][1]:
            break
        cache.reorder(parents)
        new_token_ids = [token_ids[-1:] for token_ids, _ in beams]
    return finished
