"""Wrong solutions of chapter 08 that people write, each with the hint it deserves."""

from __future__ import annotations

import torch

from minillm.grading import edited, mistake

# ---- kv_bytes

edited(
    "kv_bytes",
    "counts keys and forgets values",
    replace={"keys_and_values = 2": "keys_and_values = 1"},
    hint="Each token leaves a key and a value behind, both of num_kv_heads · head_dim numbers.",
)
edited(
    "kv_bytes",
    "multiplies by the numbers and forgets their bytes",
    replace={" * bytes_per_number": ""},
    hint="The product so far counts numbers; a number in fp16 is 2 bytes.",
)
edited(
    "kv_bytes",
    "counts one layer",
    replace={"keys_and_values * num_layers": "keys_and_values"},
    hint="Every layer has keys and values of its own.",
)

# ---- flops_to_generate

edited(
    "flops_to_generate",
    "feeds the prompt as if it were one token",
    replace={"1 if cached and step > 0 else num_keys": "1 if cached else num_keys"},
    hint="The cache is empty at first: somebody has to compute the keys of the prompt. That is the prefill.",
)

@mistake(
    "flops_to_generate",
    "compares a cached token with itself only",
    hint="A cached token saves the work of the *old queries*. Its own query still meets every key so far: b * 1 * k.",
)
def flops_to_generate(prompt_len, num_new_tokens, a, b, *, cached):
    total = 0
    for step in range(num_new_tokens):
        num_queries = 1 if cached and step > 0 else prompt_len + step
        total += a * num_queries + b * num_queries * num_queries
    return total


edited(
    "flops_to_generate",
    "feeds the last token back although nobody asks for its successor",
    replace={"range(num_new_tokens)": "range(num_new_tokens + 1)"},
    hint="The first forward reads the prompt and already yields a token: n new tokens take n forwards.",
)
edited(
    "flops_to_generate",
    "does not let the sequence grow",
    replace={"prompt_len + step": "prompt_len"},
    hint="After s new tokens a query meets prompt_len + s keys.",
)
edited(
    "flops_to_generate",
    "leaves out the masked half of the scores",
    replace={"b * num_queries * num_keys": "b * num_queries * (num_queries + 1) // 2 + b * num_queries * (num_keys - num_queries)"},
    hint="The plain product computes masked pairs too; chapter 10 is about not doing so. Here every pair counts.",
)

# ---- append

edited(
    "append",
    "starts one slot too far",
    replace={"slab[seq_len:end] = new": "slab[seq_len + 1 : end + 1] = new[: len(slab) - seq_len - 1]"},
    hint="Slots count from 0: a slab that holds n tokens has its first free slot at n.",
)
edited(
    "append",
    "always writes at the beginning",
    replace={"slab[seq_len:end] = new": "slab[: len(new)] = new"},
    hint="The first seq_len slots are taken: writing there overwrites the past.",
)
edited(
    "append",
    "returns the whole slab, empty slots included",
    replace={"return slab[:end]": "return slab"},
    hint="Empty slots hold zeros. A zero key scores 0, not minus infinity, and takes its share of every softmax.",
)
edited(
    "append",
    "returns a copy",
    replace={"return slab[:end]": "return slab[:end].clone()"},
    hint="A slice is a view and costs nothing; a copy moves the whole cache once a layer and token.",
)
edited(
    "append",
    "writes before it checks",
    replace={"    if end > len(slab):\n": "    slab[seq_len:end] = new[: len(slab) - seq_len]\n    if end > len(slab):\n"},
    hint="Check first: a refused append must leave the slab as it was.",
)
edited(
    "append",
    "refuses the last slot",
    replace={"end > len(slab)": "end >= len(slab)"},
    hint="A slab of n slots holds n tokens: end == n still fits.",
)
edited(
    "append",
    "does not check for room",
    replace={
        "    if end > len(slab):\n        raise ValueError(f\"{end} tokens don't fit into {len(slab)} slots\")\n": "",
    },
    hint="Compare seq_len + len(new) with the capacity first, and raise a ValueError that says both.",
)

# ---- attend_to_cache

edited(
    "attend_to_cache",
    "scales by 1/sqrt(head_dim) whatever the caller says",
    replace={"* softmax_scale": "/ q.shape[-1] ** 0.5"},
    hint="softmax_scale is an argument: models differ (and MLA's is not 1/sqrt(head_dim)).",
)
edited(
    "attend_to_cache",
    "mask sized for the queries only (aligned top-left)",
    replace={"torch.arange(k_len - q_len, k_len)": "torch.arange(q_len)"},
    hint="The queries are the last q_len tokens: query i stands at position k_len - q_len + i, not at i.",
)
edited(
    "attend_to_cache",
    "no mask inside the chunk",
    replace={".masked_fill(is_future, float(\"-inf\"))": ""},
    hint="With several new tokens at once, the first of them must not see the others.",
)
edited(
    "attend_to_cache",
    "hides a token from itself",
    replace={"> positions[:, None]": ">= positions[:, None]"},
    hint="A token sees the keys up to and including its own.",
)
edited(
    "attend_to_cache",
    "forgets softmax_scale",
    replace={" * softmax_scale": ""},
    hint="Scores are multiplied by softmax_scale before the softmax.",
)
edited(
    "attend_to_cache",
    "masks with 0 instead of minus infinity",
    replace={'float("-inf")': "0.0"},
    hint="A score of 0 becomes exp(0) = 1 in the softmax: the future still gets its share.",
)

# ---- KVCache

edited(
    "KVCache",
    "positions start at 0 in every forward",
    replace={"torch.arange(self.seq_len, self.seq_len + query_len)": "torch.arange(query_len)"},
    hint="The new tokens stand behind those held: positions start at seq_len. RoPE turns by absolute positions.",
)
edited(
    "KVCache",
    "moves on in begin, so that an uncommitted forward counts",
    replace={
        "        return Attend(self, torch.arange(self.seq_len, self.seq_len + query_len))": (
            "        positions = torch.arange(self.seq_len, self.seq_len + query_len)\n"
            "        self.seq_len += query_len\n"
            "        return Attend(self, positions)"
        ),
        "        self.seq_len += self.query_len\n        self.query_len = 0": "        pass",
    },
    hint="begin only announces. Until commit, seq_len stays, and the attend writes behind it.",
)
edited(
    "KVCache",
    "crop does not move the end",
    replace={"        self.seq_len = seq_len\n": "        pass\n"},
    hint="To forget is to move seq_len back; the slots behind it are simply written again.",
)
edited(
    "KVCache",
    "counts the slots of the queries only",
    replace={"if self.seq_len + query_len > len(self.k[0])": "if query_len > len(self.k[0])"},
    hint="What must fit is what is held already plus what is new.",
)
edited(
    "Attend",
    "stores keys and forgets values",
    replace={
        "append(self.cache.v[layer_idx], self.cache.seq_len, v)": "self.cache.v[layer_idx][: self.cache.seq_len + len(v)]"
    },
    task="KVCache",
    hint="Both slabs are written: the values of old tokens are needed as much as their keys.",
)
edited(
    "Attend",
    "KV heads tiled instead of repeated",
    replace={
        "keys[:, head // group], values[:, head // group]": "keys[:, head % num_kv_heads], values[:, head % num_kv_heads]"
    },
    task="KVCache",
    hint="Neighbouring query heads share a KV head: 0 0 1 1, not 0 1 0 1.",
)
edited(
    "Attend",
    "attends to the new tokens only",
    replace={
        "keys[:, head // group], values[:, head // group]": "k[:, head // group], v[:, head // group]"
    },
    task="KVCache",
    hint="What append returns is the past and the present; k and v alone are the present.",
)
edited(
    "Attend",
    "rotates keys that are rotated already",
    replace={
        "keys = append(self.cache.k[layer_idx], self.cache.seq_len, k)": (
            "from minillm.config import RopeConfig\n"
            "        from minillm.model.rope import Rope, rotate\n"
            "        cos_sin = Rope(RopeConfig(), k.shape[-1]).cos_sin(self.positions, k.dtype)\n"
            "        keys = append(self.cache.k[layer_idx], self.cache.seq_len, rotate(k, *cos_sin))"
        )
    },
    task="KVCache",
    hint="Keys arrive rotated to their positions. Rotated again, they stand at twice their distance.",
)

# ---- greedy_generate


@mistake(
    "greedy_generate",
    "forgets to commit",
    hint="Without commit the cache stays empty: every forward starts at position 0 and overwrites the last.",
)
def greedy_generate(model, cache, prompt, num_new_tokens):
    token_ids, pending = [], prompt
    for _ in range(num_new_tokens):
        attend = cache.begin(len(pending))
        logits = model(torch.tensor(pending), attend.positions, attend)
        pending = [int(logits[-1].argmax())]
        token_ids += pending
    return token_ids


edited(
    "greedy_generate",
    "commits the prompt and no token after it",
    replace={"        cache.commit()\n": "        if pending is prompt:\n            cache.commit()\n"},
    hint="Each forward whose tokens should stay is followed by a commit, those of one token too.",
)
edited(
    "greedy_generate",
    "commits the tokens and not the prompt",
    replace={"        cache.commit()\n": "        if pending is not prompt:\n            cache.commit()\n"},
    hint="The forward over the prompt needs a commit as well: without it the first token overwrites the prompt's slots.",
)
edited(
    "greedy_generate",
    "feeds the first new token again and again",
    replace={"pending = [int(logits[-1].argmax())]\n        token_ids += pending": "token_ids.append(int(logits[-1].argmax()))\n        pending = token_ids[:1]"},
    hint="The token to feed is the one chosen last: new_token_ids[-1:].",
)
edited(
    "greedy_generate",
    "feeds all new tokens every time",
    replace={"pending = [int(logits[-1].argmax())]\n        token_ids += pending": "token_ids.append(int(logits[-1].argmax()))\n        pending = list(token_ids)"},
    hint="The earlier ones are in the cache already; fed again, they stand there twice.",
)
edited(
    "greedy_generate",
    "makes one token too many",
    replace={"range(num_new_tokens)": "range(num_new_tokens + 1)"},
    hint="num_new_tokens tokens take num_new_tokens forwards, the prompt's included.",
)
edited(
    "greedy_generate",
    "takes the first row of the logits",
    replace={"logits[-1]": "logits[0]"},
    hint="After the prompt, logits has a row for each of its tokens; the next token follows from the last one.",
)
