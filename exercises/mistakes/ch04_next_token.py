"""Wrong solutions of chapter 04 that people write, each with the hint it deserves."""

from __future__ import annotations

import math

import torch

from minillm.grading import edited, mistake

# ---- nucleus_size

edited(
    "nucleus_size",
    "rounds down: the crossing token is dropped",
    replace={"math.ceil(": "math.floor(", "- 1e-9": "+ 1e-9"},
    hint="The nucleus has to reach top_p. The token that crosses the line belongs to it: round up.",
)
edited(
    "nucleus_size",
    "uses ln p where ln(1 - p) belongs",
    replace={"math.log(1 - top_p)": "math.log(top_p)"},
    hint="r**n is what is left over after n tokens. The rest may weigh 1 - top_p at most.",
)
edited(
    "nucleus_size",
    "leaves out the temperature",
    replace={"-logit_step / temperature": "-logit_step"},
    hint="The logits are divided by the temperature first. It changes the ratio, and with it the nucleus.",
)
edited(
    "nucleus_size",
    "multiplies by the temperature",
    replace={"-logit_step / temperature": "-logit_step * temperature"},
    hint="A higher temperature flattens: the step between two logits shrinks to logit_step / temperature.",
)

edited(
    "nucleus_size",
    "pays a token for rounding",
    replace={" - 1e-9": ""},
    hint="Where the line is reached exactly, the quotient may come out as 1.0000000000000002. Subtract 1e-9 first.",
)

# ---- temperature_probs

edited(
    "temperature_probs",
    "multiplies by the temperature",
    replace={".double() / temperature)": ".double() * temperature)"},
    hint="Divide: a temperature below 1 must make differences larger.",
)


@mistake(
    "temperature_probs",
    "divides before it subtracts the maximum",
    hint="1000 / 1e-40 is infinite, and inf - inf is not a number. Subtract the largest logit first; 0 / T stays 0.",
)
def temperature_probs(logits, temperature):
    if temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    return (logits / temperature).softmax(dim=-1)


@mistake(
    "temperature_probs",
    "takes exponentials without subtracting the maximum",
    hint="exp(1000) is infinite. Softmax doesn't change when every logit is lowered by the same number.",
)
def temperature_probs(logits, temperature):  # noqa: F811
    if temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    weights = torch.exp(logits / temperature)
    return weights / weights.sum(dim=-1, keepdim=True)


edited(
    "temperature_probs",
    "has no case for temperature 0",
    replace={"temperature == 0:": "temperature < 0:"},
    hint="0 / 0 is not a number. Temperature 0 needs a line of its own: argmax.",
)


edited(
    "temperature_probs",
    "divides before it subtracts, in float64",
    replace={"((logits - largest).double() / temperature)": "(logits.double() / temperature)"},
    hint="float64 only moves the edge: 1e300 / 1e-40 is infinite there, too. Subtract the largest logit first.",
)
edited(
    "temperature_probs",
    "clamps the temperature",
    replace={".double() / temperature)": ".double() / max(temperature, 1e-6))"},
    hint="A tiny temperature is a temperature. Once the largest logit is subtracted, dividing by it is safe.",
)
edited(
    "temperature_probs",
    "takes the argmax over the whole batch",
    replace={
        "logits.argmax(dim=-1, keepdim=True)": (
            "(logits.argmax() % logits.shape[-1]).expand(logits.shape[:-1]).unsqueeze(-1)"
        )
    },
    hint="Every row has a winner of its own: argmax(dim=-1).",
)


@mistake(
    "temperature_probs",
    "shares the probability among equals at temperature 0",
    hint="Greedy decoding picks one token. argmax settles ties, a comparison with the maximum doesn't.",
)
def temperature_probs(logits, temperature):  # noqa: F811
    largest = logits.amax(dim=-1, keepdim=True)
    if temperature == 0:
        is_largest = (logits == largest).to(logits.dtype)
        return is_largest / is_largest.sum(dim=-1, keepdim=True)
    return ((logits - largest).double() / temperature).softmax(dim=-1).to(logits.dtype)


@mistake(
    "temperature_probs",
    "divides probabilities instead of logits",
    hint="The temperature divides logits. Dividing probabilities by a constant and normalising again changes nothing.",
)
def temperature_probs(logits, temperature):  # noqa: F811
    if temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    scaled = logits.softmax(dim=-1) / temperature
    return scaled / scaled.sum(dim=-1, keepdim=True)


edited(
    "temperature_probs",
    "normalises the whole batch at once",
    replace={".softmax(dim=-1).to(": ".flatten().softmax(dim=0).view_as(logits).to("},
    hint="Every row is a distribution of its own: softmax over the last dimension.",
)

# ---- nucleus_mask

edited(
    "nucleus_mask",
    "drops the token that crosses the line",
    replace={"mass_before = probs.cumsum(dim=-1) - probs": "mass_before = probs.cumsum(dim=-1)"},
    hint="A token stays if the likelier ones *before* it don't suffice. Its own probability doesn't count against it.",
)
edited(
    "nucleus_mask",
    "sums up the probabilities unsorted",
    replace={
        "probs, token_of = logits.double().softmax(dim=-1).sort(dim=-1, descending=True)": (
            "probs = logits.double().softmax(dim=-1)\n    token_of = torch.arange(logits.shape[-1]).expand_as(logits)"
        )
    },
    hint="The fewest *most likely* tokens: sort by probability before the cumulative sum.",
)
edited(
    "nucleus_mask",
    "leaves the decision in sorted order",
    replace={"torch.zeros_like(is_kept).scatter(-1, token_of, is_kept)": "is_kept"},
    hint="Sorting moved the tokens. Position i of the mask must speak of token i: scatter it back.",
)
edited(
    "nucleus_mask",
    "sorts the unlikely tokens first",
    replace={"descending=True": "descending=False"},
    hint="The nucleus begins at the likeliest token.",
)
edited(
    "nucleus_mask",
    "goes on where the line is reached exactly",
    replace={"mass_before < top_p": "mass_before <= top_p + 0.05"},
    hint="Once the tokens so far sum to top_p, the next one is not needed.",
)
edited(
    "nucleus_mask",
    "keeps tokens of probability 0",
    replace={" & (probs > 0)": ""},
    hint="The sum of all may stay a digit below 1. Then top_p = 1.0 is never reached, and banned tokens slip in.",
)


@mistake(
    "nucleus_mask",
    "keeps every tie with the last token kept",
    hint="A threshold on probabilities keeps all equals. Decide by rank: no more tokens than needed.",
)
def nucleus_mask(logits, top_p):
    probs = logits.double().softmax(dim=-1)
    descending = probs.sort(dim=-1, descending=True).values
    mass_before = descending.cumsum(dim=-1) - descending
    last_kept = descending.masked_fill(~((mass_before < top_p) & (descending > 0)), math.inf).amin(dim=-1, keepdim=True)
    return probs >= last_kept


@mistake(
    "nucleus_mask",
    "drops the crossing token, and keeps one when none is left",
    hint="Keeping the first by force hides the mistake: with 0.6 and 0.3, top_p = 0.7 needs both.",
)
def nucleus_mask(logits, top_p):  # noqa: F811
    probs, token_of = logits.double().softmax(dim=-1).sort(dim=-1, descending=True)
    is_kept = (probs.cumsum(dim=-1) <= top_p) & (probs > 0)
    is_kept[..., 0] = True
    return torch.zeros_like(is_kept).scatter(-1, token_of, is_kept)


# ---- process

edited(
    "process",
    "divides negative logits too",
    replace={
        "torch.where(logits[seen] < 0, logits[seen] * repetition_penalty, logits[seen] / repetition_penalty)": (
            "logits[seen] / repetition_penalty"
        )
    },
    hint="-2 / 2 = -1 is larger than -2: the token is rewarded for having been said. Multiply negative logits.",
)
edited(
    "process",
    "weakens a token once for every time it occurs",
    replace={
        "    logits[seen] = torch.where(logits[seen] < 0, logits[seen] * repetition_penalty, "
        "logits[seen] / repetition_penalty)\n": (
            "    for token_id in history:\n"
            "        logits[token_id] *= repetition_penalty if logits[token_id] < 0 else 1 / repetition_penalty\n"
        )
    },
    hint="Once a token, however often it occurs: go through set(history).",
)
edited(
    "process",
    "overwrites the caller's logits",
    replace={"    logits = logits.clone()\n": ""},
    hint="Indexed assignment writes in place. Clone first: the caller may still need the logits.",
)
edited(
    "process",
    "misses the last n-gram of the history",
    replace={"range(len(history) - n + 1)": "range(len(history) - n)"},
    hint="len - n + 1 n-grams fit into a history. The last one counts: after [5, 5], a third 5 would repeat '5 5'.",
)
edited(
    "process",
    "takes the whole history as the ending when n is 1",
    replace={"history[len(history) - (n - 1) :]": "history[-(n - 1) :]"},
    hint="history[-0:] is everything. For n = 1 the ending is empty, and every token seen completes a 1-gram.",
)
edited(
    "process",
    "bans the whole vocabulary",
    replace={"if not remaining.isneginf().all():": "if True:"},
    hint="Softmax over nothing but -inf is NaN. If every token would be banned, ban none.",
)
edited(
    "process",
    "applies the temperature last",
    replace={"    logits = logits / temperature\n": "", "    return logits\n": "    return logits / temperature\n"},
    hint="top-p and min-p look at probabilities, and the temperature changes those. It comes before them.",
)
edited(
    "process",
    "filters by top-p before top-k",
    replace={
        (
            "    if top_k is not None:\n"
            "        logits[logits < logits.topk(min(top_k, len(logits))).values[-1]] = -math.inf\n"
        ): "",
        "    if min_p > 0:\n": (
            "    if top_k is not None:\n"
            "        logits[logits < logits.topk(min(top_k, len(logits))).values[-1]] = -math.inf\n"
            "    if min_p > 0:\n"
        ),
    },
    hint="top-k first: what it leaves is normalised again before top-p sums it up.",
)
edited(
    "process",
    "penalises after the filters",
    replace={
        "    logits[seen] = torch.where(logits[seen] < 0, logits[seen] * repetition_penalty, "
        "logits[seen] / repetition_penalty)\n": "",
        "    return logits\n": (
            "    logits[seen] = torch.where("
            "logits[seen] < 0, logits[seen] * repetition_penalty, logits[seen] / repetition_penalty)\n    return logits\n"
        ),
    },
    hint="The penalty changes who is among the best. It comes first.",
)
edited(
    "process",
    "fails when k exceeds the vocabulary",
    replace={"min(top_k, len(logits))": "top_k"},
    hint="topk(50) of 4 tokens raises. Take the smaller of the two numbers.",
)
edited(
    "process",
    "keeps exactly k and drops a tie",
    replace={
        "logits[logits < logits.topk(min(top_k, len(logits))).values[-1]] = -math.inf": (
            "kept = logits.topk(min(top_k, len(logits))).indices\n"
            "        logits = torch.full_like(logits, -math.inf).index_copy(0, kept, logits[kept])"
        )
    },
    hint="Two tokens with the k-th logit have the same claim: compare with the k-th value, and both stay.",
)
edited(
    "process",
    "takes min-p for an absolute probability",
    replace={"probs < min_p * probs.max()": "probs < min_p"},
    hint="min_p = 0.5 means half as likely as the likeliest. An absolute line can leave nothing.",
)
edited(
    "process",
    "takes min-p for a cumulative one",
    replace={
        "        logits[probs < min_p * probs.max()] = -math.inf\n": (
            "        logits[~nucleus_mask(logits, 1 - min_p)] = -math.inf\n"
        )
    },
    hint="min-p compares each token with the likeliest one. No sum is involved.",
)

# ---- gumbel_draw

edited(
    "gumbel_draw",
    "forgets the outer minus sign",
    replace={"noise = -torch.log(": "noise = torch.log("},
    hint="-ln(-ln u) grows with u. Without the outer minus the noise has its long tail on the wrong side.",
)
edited(
    "gumbel_draw",
    "adds exponential noise",
    replace={"-torch.log(-torch.log(uniforms))": "-torch.log(uniforms)"},
    hint="-ln u is exponential noise: it is divided by probabilities, and the least wins. Logits take its -ln.",
)
edited(
    "gumbel_draw",
    "adds the noise to probabilities",
    replace={"logits + noise": "logits.softmax(dim=-1) + noise"},
    hint="The proof needs logits. A banned token has probability 0, not -inf, and could win.",
)
edited(
    "gumbel_draw",
    "adds the uniform numbers themselves",
    replace={"noise = -torch.log(-torch.log(uniforms))": "noise = uniforms"},
    hint="Uniform noise never exceeds 1: a token that is behind by more can't win at all. Gumbel noise has a tail.",
)
edited(
    "gumbel_draw",
    "draws one noise for the whole row",
    replace={"-torch.log(-torch.log(uniforms))": "-torch.log(-torch.log(uniforms[..., :1]))"},
    hint="The same number added to all logits changes nothing. Every token needs noise of its own.",
)
edited(
    "gumbel_draw",
    "ignores the uniforms",
    replace={"(logits + noise).argmax(dim=-1)": "torch.multinomial(logits.softmax(dim=-1), 1).squeeze(-1)"},
    hint="torch.multinomial throws numbers of its own. The given uniforms are to decide, and nothing else.",
)

# ---- beam_search

edited(
    "beam_search",
    "counts every ending as finished",
    replace={
        "for token_ids, total in extensions[:num_beams]:": ("for rank, (token_ids, total) in enumerate(extensions):"),
        " or new_len == max_new_tokens:": " or (new_len == max_new_tokens and rank < num_beams):",
    },
    hint="An ending counts only if it is among the best num_beams extensions of its step. Rank first.",
)
edited(
    "beam_search",
    "stops when enough have finished",
    replace={"        beam = [": "        if len(finished) >= num_beams:\n            break\n        beam = ["},
    hint="A longer continuation may still get the better score. Go on until the limit, or until the beam is empty.",
)
edited(
    "beam_search",
    "lets finished continuations go on",
    replace={
        "[extension for extension in extensions if extension[0][-1] != eos_token_id][:num_beams]": (
            "extensions[:num_beams]"
        )
    },
    hint="A continuation that has ended is kept aside. Nothing follows its ending token.",
)
edited(
    "beam_search",
    "lets finished continuations take places in the beam",
    replace={
        "[extension for extension in extensions if extension[0][-1] != eos_token_id][:num_beams]": (
            "[extension for extension in extensions[:num_beams] if extension[0][-1] != eos_token_id]"
        )
    },
    hint="The next beam is the best num_beams of those that do NOT end. First leave the endings out, then cut.",
)
edited(
    "beam_search",
    "forgets EOS in the length",
    replace={
        "total / new_len**length_penalty": (
            "total / max(1, new_len - (token_ids[-1] == eos_token_id)) ** length_penalty"
        )
    },
    hint="The ending token's log-probability is in the total, so the token counts in the length.",
)
edited(
    "beam_search",
    "counts the prompt in the length",
    replace={"total / new_len**length_penalty": "total / (len(prompt) + new_len) ** length_penalty"},
    hint="The total has no log-probabilities of the prompt. Its length must not count either.",
)
edited(
    "beam_search",
    "multiplies by the length",
    replace={"total / new_len**length_penalty": "total * new_len**length_penalty"},
    hint="A mean divides. Totals are negative: multiplying would punish length a second time.",
)
edited(
    "beam_search",
    "ignores the length penalty",
    replace={"total / new_len**length_penalty": "total"},
    hint="score = total / length ** length_penalty; 0 gives the bare total, 1 the mean.",
)
edited(
    "beam_search",
    "cuts each parent's extensions separately",
    replace={
        "        extensions.sort(key=lambda extension: -extension[1])\n": (
            "        extensions.sort(key=lambda extension: -extension[1])\n"
            "        share = max(1, num_beams // len(beam))\n"
            "        parents = [parent for parent, _ in beam]\n"
            "        ranks = [[e for e in extensions if e[0][:-1] == parent][:share] for parent in parents]\n"
            "        extensions = sorted(sum(ranks, []), key=lambda extension: -extension[1])\n"
        )
    },
    hint="All extensions of all parents compete for the same places. A good parent may have all of them.",
)
edited(
    "beam_search",
    "ranks by the last token instead of the total",
    replace={"([*token_ids, token_id], total + log_prob)": "([*token_ids, token_id], log_prob)"},
    hint="A continuation is as likely as all its tokens together: add the log-probabilities up.",
)
edited(
    "beam_search",
    "throws away what is cut off at the end",
    replace={" or new_len == max_new_tokens:": ":"},
    hint="After max_new_tokens, unfinished continuations among the best count as they are.",
)
edited(
    "beam_search",
    "takes impossible tokens along",
    replace={"            if log_prob > -math.inf\n": ""},
    hint="A total of -inf is no continuation at all. Leave such extensions out before ranking.",
)
edited(
    "beam_search",
    "returns the worst first",
    replace={"sorted(finished, key=lambda ended: -ended[1])": "sorted(finished, key=lambda ended: ended[1])"},
    hint="Best first: scores are negative, and the best is the one nearest to zero.",
)
