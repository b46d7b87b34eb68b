"""Chapter 05: the cost model and the roofline.

Complete the functions below, then run `python3 tasks.py grade ch05`. The chapter is `chapters/05_cost_model.ipynb`;
each task names the section that prepares it. No task needs torch: numbers are enough. Nothing runs on a GPU; you
predict what one would do.

A *prediction* asks for a number before anything runs. A *bug hunt* hands you code that runs and is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Card(NamedTuple):
    """A GPU: bytes of memory, bytes/s from that memory, FLOP/s of its matrix units."""

    memory_bytes: float
    bytes_per_s: float
    flops_per_s: float


class Model(NamedTuple):
    """A Llama-like model: each block has wq, wk, wv, wo and the gated network w_gate, w_up, w_down; no biases."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int

    @property
    def num_weights(self) -> int:
        """Weights that one token meets: all blocks, and the output head of vocab_size rows. No norms, no embedding."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        network = 3 * self.hidden_size * self.intermediate_size
        return self.num_layers * (attention + network) + self.vocab_size * self.hidden_size


# ---- Task 1 (prediction): how large is the cache? Prepared by "Napkin".


def cache_bytes(config: Mapping[str, Any], num_sequences: int, seq_len: int, *, bytes_per_number: int = 2) -> int:
    """Bytes of the KV cache of `num_sequences` sequences of `seq_len` tokens each, for a model's `config.json`.

    `config` is that file as a dict. It always has num_hidden_layers, hidden_size and num_attention_heads. In every
    layer a token leaves one key and one value, of `head_dim` numbers each, for every KV head. Two keys may be missing:

    num_key_value_heads   missing = as many KV heads as heads
    head_dim              missing = hidden_size // num_attention_heads

    If there is a "kv_lora_rank", the model has multi-head latent attention. Then a token leaves, in every layer, one
    latent vector of kv_lora_rank numbers and one rotated key of qk_rope_head_dim numbers, for all heads together, and
    nothing else: keys and values are both made from the latent.

    Example: {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2} has heads
    of 16 numbers. A token leaves 2 layers · 2 (K and V) · 2 KV heads · 16 = 128 numbers. Three sequences of ten tokens,
    2 bytes a number: 3 · 10 · 128 · 2 = 7680 bytes.
    """
    raise NotImplementedError("cache_bytes: your code here")


# ---- Task 2 (prediction): one product under the roof. Prepared by "Intensity" and "The ridge is not the batch".


class Point(NamedTuple):
    """Where a product lies: FLOPs for each byte, FLOP/s at most, and what it waits for, "memory" or "compute"."""

    intensity: float
    flops_per_s: float
    bound: str


def product_on_roof(
    num_rows: int, in_features: int, out_features: int, card: Card, *, weight_bits: int = 16, number_bits: int = 16
) -> Point:
    """Where the product of `num_rows` tokens with a weight matrix lies under the roof of `card`.

    The inputs (num_rows, in_features), the weights (in_features, out_features) and the results (num_rows,
    out_features) cross the memory bus once each. A weight has `weight_bits` bits (quantized: 8 or 4; its scales are
    left out), an input or a result `number_bits`. A multiplication and its addition are 2 FLOPs; they run at
    `card.flops_per_s` at most, whatever the bits.

    `bound` is "compute" where computing takes at least as long as moving the bytes, else "memory".

    Example: 2 rows, 4 in, 8 out, 16 bits: 2 · 2 · 4 · 8 = 128 FLOPs, and 16 + 64 + 32 = 112 bytes. The intensity is
    1.143 FLOPs a byte. A card of 100 bytes/s and 1,000 FLOP/s reaches 114.3 FLOP/s: bound by memory. With
    weight_bits=4 the weights are 16 bytes, the intensity is 2.
    """
    raise NotImplementedError("product_on_roof: your code here")


# ---- Task 3: every operation of a block, in either phase. Prepared by "What a block costs".


class Cost(NamedTuple):
    """FLOPs, and bytes that cross the memory bus."""

    flops: int
    num_bytes: int


def block_costs(model: Model, batch_size: int, query_len: int, seq_len: int) -> dict[str, Cost]:
    """The cost of each operation in *one* block of `model`, numbers of 2 bytes.

    Each of `batch_size` sequences brings `query_len` new tokens and then holds `seq_len`: prefill has query_len ==
    seq_len, decode has query_len == 1, a chunk of a prompt lies between. Keys: "wq", "wk", "wv", "attention", "wo",
    "w_gate", "w_up", "w_down".

    A linear layer reads its weights once, reads its input for every new token and writes its result for every new
    token. Multiplying and adding are 2 FLOPs.

    Attention: a new token sees all earlier tokens of its own sequence and itself. For each such pair, each *query* head
    computes a score (head_dim multiply-adds) and adds up a value (head_dim multiply-adds). Pairs that the causal mask
    hides cost nothing, softmax neither. It reads the queries and writes results of the same size, for the new tokens.
    It also writes the keys and values of the new tokens into the cache, and reads those of all `seq_len` tokens from
    there, once, for each sequence.

    Example: hidden_size 4, 4 heads, 1 KV head, head_dim 2; 1 sequence with 3 new tokens, 5 in all. wk has 4 · 2
    weights: Cost(2 · 3 · 8, 2 · (8 + 3 · 4 + 3 · 2)) = Cost(48, 52). Attention has 3 + 4 + 5 = 12 pairs, each 4 heads ·
    (2 + 2) multiply-adds: 384 FLOPs. It moves 3 · 8 numbers of queries and as many of results, writes 3 · 4 of keys and
    values and reads 5 · 4: 80 numbers, 160 bytes.
    """
    raise NotImplementedError("block_costs: your code here")


# ---- Task 4 (prediction): how many experts does a batch wake? Prepared by "Experts".


def expected_experts(chances: Sequence[float], num_tokens: int) -> float:
    """How many different experts `num_tokens` tokens visit, on average.

    `chances[i]` is the probability that a token visits expert i. A token visits several, so the chances add up to
    the number of experts a token, not to 1. Routers have favourites: the chances differ. Tokens choose independently.

    Example: chances [0.5, 0.5, 1.0]: the third is visited by every token. Two tokens visit 0.75 + 0.75 + 1 = 2.5 on
    average; no tokens visit none.
    """
    raise NotImplementedError("expected_experts: your code here")


# ---- Task 5 (bug hunt): a cost sheet that sold the wrong hardware. Prepared by "Napkin" and "Several cards".


class Sheet(NamedTuple):
    """GiB taken on each card, seconds of a decode step, tokens a second of the whole batch."""

    gib_per_card: float
    step_s: float
    tokens_per_s: float


def hasty_sheet(model: Model, card: Card, batch_size: int, seq_len: int, tp_size: int) -> Sheet:
    """Here for you to read. It runs, its numbers look like numbers, and it has six mistakes."""
    kv_heads = model.num_heads / tp_size
    kv_bytes = 2 * batch_size * seq_len * model.num_layers * kv_heads * model.head_dim
    weights = model.num_weights / tp_size
    memory_s = batch_size * (2 * weights) / card.bytes_per_s + kv_bytes / card.bytes_per_s
    compute_s = batch_size * weights / card.flops_per_s
    step_s = max(memory_s, compute_s)
    return Sheet((2 * weights + kv_bytes) / 1e9, step_s, batch_size / step_s)


def cost_sheet(model: Model, card: Card, batch_size: int, seq_len: int, tp_size: int) -> Sheet:
    """`hasty_sheet`, repaired: the napkin for decoding `batch_size` sequences of `seq_len` tokens on `tp_size` cards.

    Each card holds an equal share of `model.num_weights` and of the KV heads; numbers have 2 bytes. With more cards
    than KV heads every card still needs a whole one: heads are then copied, one to a card. Either number divides the
    other.

    A step reads the card's weights and its part of the cache once, and meanwhile does 2 FLOPs for each of its weights
    and each sequence; it takes as long as the slower of the two. The FLOPs of attention and the time for communication
    are left out. One GiB is 2**30 bytes.

    Example: num_weights 2**30 in all, 1 layer, 4 heads, 2 KV heads, head_dim 64; 4 cards, 1 sequence of 2**20 tokens.
    Each card holds 1/2 GiB of weights and one KV head: 2**20 · 2 · 64 · 2 bytes = 1/4 GiB. gib_per_card is 0.75.
    """
    raise NotImplementedError("cost_sheet: your code here")


# ---- Task 6: a planner. Prepared by "What a block costs" and "The planner".


class DecodePlan(NamedTuple):
    """The largest batch, what stops the next larger one ("memory" or "itl"), seconds of its last step, tokens/s."""

    batch_size: int
    limit: str
    step_s: float
    tokens_per_s: float


def plan_decode(model: Model, card: Card, *, prompt_len: int, output_len: int, itl_s: float) -> DecodePlan:
    """The largest batch of equal requests that `card` can hold *and* serve fast enough.

    Memory: the weights, 2 bytes each, `model.num_weights` and the embedding table of vocab_size · hidden_size; and the
    keys and values of all prompt_len + output_len tokens of each request. Together at most 0.9 of the card's memory.

    Speed: the step that ends with sequences of prompt_len + output_len tokens takes at most `itl_s` seconds. Its
    time is the sum over its operations; each takes as long as the slower of its FLOPs and its bytes. The operations are
    those of `block_costs` (yours, from Task 3), in each of the layers, and the output head: a linear layer from
    hidden_size to vocab_size for the batch's tokens.

    The batch can be in the hundred thousands: don't try them one by one. A larger batch never takes less time.

    `limit` says what forbids batch_size + 1: "memory" if it doesn't fit (whether or not it would be fast enough), else
    "itl". tokens_per_s is batch_size / step_s. Raises ValueError if not even one request can be served.

    Example: with enough memory, and a deadline between the times of steps with 7 and with 8 requests: batch_size 7,
    limit "itl".
    """
    raise NotImplementedError("plan_decode: your code here")
