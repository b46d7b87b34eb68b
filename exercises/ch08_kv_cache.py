"""Chapter 08: the KV cache.

Complete the functions below, then run `python3 tasks.py grade ch08`. The chapter is `chapters/08_kv_cache.ipynb`;
each task names the section that prepares it. Everything here is about one sequence, without a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

# ---- Task 1 (prediction): how many bytes? Prepared by "Napkin".


def kv_bytes(seq_len: int, *, num_layers: int, num_kv_heads: int, head_dim: int, bytes_per_number: int) -> int:
    """Bytes that the cache of one sequence of `seq_len` tokens occupies.

    Example: OPT-66B has 64 layers of 72 KV heads of 128 numbers. In fp16 (2 bytes a number), 512 tokens take 1.125 GiB:
    `kv_bytes(512, num_layers=64, num_kv_heads=72, head_dim=128, bytes_per_number=2) == 1.125 * 2**30`.
    """
    raise NotImplementedError("kv_bytes: your code here")


# ---- Task 2 (prediction): how much work? Prepared by "Napkin".


def flops_to_generate(prompt_len: int, num_new_tokens: int, a: int, b: int, *, cached: bool) -> int:
    """FLOPs to read a prompt of `prompt_len` tokens and choose `num_new_tokens` tokens after it.

    A forward over `q` new tokens, each of which is compared with `k` keys, costs `a * q + b * q * k`: `a` for the
    linear layers of one token, `b` for one query meeting one key (masked pairs are computed too, and count).

    The first forward reads the whole prompt and yields the first new token. Every later forward yields one more token:
    without a cache it reads the whole sequence so far again, with a cache only the token chosen last.
    The token chosen last of all is never fed back; with num_new_tokens == 0 nothing runs, and the answer is 0.

    Example, with prompt_len=2, num_new_tokens=3, a=10, b=1: without a cache the forwards have 2, 3 and 4 tokens and
    cost 24 + 39 + 56 = 119. With one, they have 2, 1 and 1 tokens and cost 24 + 13 + 14 = 51.
    """
    raise NotImplementedError("flops_to_generate: your code here")


# ---- Task 3: put new keys where they belong. Prepared by "The real version".


def append(slab: Tensor, seq_len: int, new: Tensor) -> Tensor:
    """Writes `new` behind the `seq_len` tokens that `slab` holds already, and returns all tokens held now.

    slab (capacity, num_kv_heads, head_dim) is written in place: slots seq_len, seq_len + 1, ... and no others
    new  (num_new_tokens, num_kv_heads, head_dim)

    Returns (seq_len + num_new_tokens, num_kv_heads, head_dim): a view of the slab, so that nothing is copied.
    Raises ValueError when the new tokens don't fit; the slab is then unchanged.
    """
    raise NotImplementedError("append: your code here")


# ---- Task 4: new queries meet old keys. Prepared by "The idea".


def attend_to_cache(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
    """Causal attention of the last `q_len` tokens of a sequence to all of its `k_len` tokens, one head.

    q (q_len, head_dim) belongs to the *last* q_len positions, 1 <= q_len <= k_len; k, v (k_len, head_dim) to all.
    The last query sees every key, the one before it all but one, and so on. Returns (q_len, head_dim).

    With q_len == k_len this is ordinary causal attention; with q_len == 1 there is nothing to mask.
    """
    raise NotImplementedError("attend_to_cache: your code here")


# ---- Task 5: a cache that runs the real model. Prepared by "The real version".


class KVCache:
    """Keys and values of one sequence, for every layer of a model.

    It is used like the library's, but for one sequence: `begin` takes a number, and nothing has a batch dimension::

        cache = KVCache(model.layer_specs, capacity=512)
        attend = cache.begin(len(prompt))                        # announces the new tokens
        logits = model(prompt, attend.positions, attend)         # prompt (num_tokens,) -> logits (num_tokens, vocab)
        cache.commit()                                           # cache.seq_len == len(prompt)

    The model calls `attend(layer_idx, q, k, v, softmax_scale)` once a layer. A forward that is not followed by `commit`
    leaves no trace: the next `begin` starts at the same `seq_len`. `crop` forgets the end of the sequence. A second
    `commit` after the same `begin` changes nothing.
    """

    def __init__(self, layer_specs: list, capacity: int) -> None:
        """`layer_specs[i].num_kv_heads` and `.k_head_dim` give the shape of layer i. Numbers are float32."""
        self.seq_len = 0
        self.query_len = 0  # announced by `begin`, not committed yet
        self.k = [torch.zeros(capacity, spec.num_kv_heads, spec.k_head_dim) for spec in layer_specs]
        self.v = [torch.zeros(capacity, spec.num_kv_heads, spec.v_head_dim) for spec in layer_specs]

    def begin(self, query_len: int) -> Attend:
        """An `Attend` for the next `query_len` tokens. Raises ValueError if they don't fit."""
        raise NotImplementedError("KVCache.begin: your code here")

    def commit(self) -> None:
        """The tokens of the last `begin` are part of the sequence now."""
        raise NotImplementedError("KVCache.commit: your code here")

    def crop(self, seq_len: int) -> None:
        """Forgets all but the first `seq_len` tokens. ValueError for more than there are, or a negative number."""
        raise NotImplementedError("KVCache.crop: your code here")


class Attend:
    """The attend of one forward: stores the new keys and values, attends to all so far.

    `positions` (query_len,) int64 are those of the new tokens. Keys and queries arrive rotated to them already.
    """

    def __init__(self, cache: KVCache, positions: Tensor) -> None:
        self.cache = cache
        self.positions = positions

    def __call__(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
        """q (query_len, num_heads, head_dim), k and v (query_len, num_kv_heads, head_dim) -> out, of q's shape.

        Query head h reads KV head h // (num_heads // num_kv_heads). Build on `append` and `attend_to_cache`.
        """
        raise NotImplementedError("Attend.__call__: your code here")


# ---- Task 6 (bug hunt): a loop that talks nonsense. Prepared by "The real version".


def hasty_generate(model, cache: KVCache, prompt: list[int], num_new_tokens: int) -> list[int]:
    """Somebody's draft of a greedy loop. It runs without an error, and it has three mistakes."""
    attend = cache.begin(len(prompt))
    logits = model(torch.tensor(prompt), attend.positions, attend)
    new_token_ids = [int(logits[-1].argmax())]
    while len(new_token_ids) <= num_new_tokens:
        attend = cache.begin(1)
        logits = model(torch.tensor(new_token_ids[:1]), attend.positions, attend)
        new_token_ids.append(int(logits[-1].argmax()))
    return new_token_ids


def greedy_generate(model, cache: KVCache, prompt: list[int], num_new_tokens: int) -> list[int]:
    """`hasty_generate`, repaired: the `num_new_tokens` most likely tokens after `prompt`, one after another.

    `cache` is a new cache with the interface of `KVCache`: yours from Task 5, or one that the tests bring. The prompt
    is fed in one forward, then each chosen token in one of its own; the last token chosen is not fed. At the end the
    cache holds `len(prompt) + num_new_tokens - 1` tokens. With num_new_tokens == 0 nothing runs, the result is [].
    """
    raise NotImplementedError("greedy_generate: your code here")
