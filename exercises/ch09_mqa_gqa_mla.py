"""Chapter 09: MQA, GQA, MLA.

Complete the functions below, then run `python3 tasks.py grade ch09`. The chapter is `chapters/09_mqa_gqa_mla.ipynb`;
each task names the section that prepares it. Everything here is about one layer and one sequence, without a batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from minillm.config import RopeConfig
from minillm.model.rope import Rope, rotate

# ---- Task 1 (prediction): what a step computes and reads. Prepared by "The naive version", "What it costs"
# and "The real version".


def decode_cost(
    num_keys: int,
    *,
    num_heads: int,
    num_kv_heads: int,
    k_head_dim: int,
    v_head_dim: int,
    v_from_k: bool = False,
    bytes_per_number: int = 2,
) -> tuple[int, int]:
    """(FLOPs, bytes of cache read) when one new token attends to `num_keys` cached tokens, in one layer.

    FLOPs are those of the scores and of the weighted sum, two for a multiplication and its addition; softmax and
    projections don't count. The cache is read once: for each token `num_kv_heads` keys of `k_head_dim` numbers and as
    many values of `v_head_dim`. With `v_from_k` a value is a slice of its key, and nothing more is kept or read for it.

    Example: 4 query heads, 2 KV heads, keys of 3 and values of 5 numbers, in fp16: one cached token costs
    `decode_cost(1, num_heads=4, num_kv_heads=2, k_head_dim=3, v_head_dim=5) == (64, 32)`.
    """
    raise NotImplementedError("decode_cost: your code here")


# ---- Task 2: who holds which heads? Prepared by "Shared heads".


def heads_of_rank(num_heads: int, num_kv_heads: int, tp_size: int, tp_rank: int) -> tuple[range, range]:
    """The query heads and the KV heads that device `tp_rank` of `tp_size` holds, as ranges of their global numbers.

    Query heads are dealt out in order, the same number to each device: device 0 gets the first ones. A device holds
    exactly the KV heads that its query heads read (query head h reads KV head h // (num_heads // num_kv_heads)). With
    more devices than KV heads, several devices hold the same one.

    Example: `heads_of_rank(8, 4, 2, 1) == (range(4, 8), range(2, 4))`: 4 query heads, 2 KV heads, each read by 2.
    `num_kv_heads` divides `num_heads`, and 0 ≤ tp_rank < tp_size: no need to check. Raises ValueError unless `tp_size`
    divides `num_heads`, and one of `tp_size` and `num_kv_heads` divides the other.
    """
    raise NotImplementedError("heads_of_rank: your code here")


# ---- Task 3: share without copying. Prepared by "The naive version".


def grouped_decode(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
    """Attention of one new token to all cached tokens, where groups of query heads share a KV head.

    q (num_heads, head_dim); k and v (num_keys, num_kv_heads, head_dim). Returns (num_heads, head_dim).
    Query head h reads KV head h // (num_heads // num_kv_heads). There is nothing to mask.

    K and V must not be repeated to `num_heads` heads, not even as a view: the graders reject any tensor that is larger
    than K and than the scores. Give q an axis for the group instead, or take the KV heads one by one.
    """
    raise NotImplementedError("grouped_decode: your code here")


# ---- Task 4: fewer heads for a finished model. Prepared by "Which heads may share?".


def pool_heads(weight: Tensor, num_kv_heads: int, head_dim: int) -> Tensor:
    """A projection wk or wv with `num_kv_heads` heads, each the mean of a group of neighbouring heads of `weight`.

    weight (old_num_kv_heads · head_dim, hidden_size), the rows of head 0 first; or a bias, the same without the last
    axis. Returns (num_kv_heads · head_dim, hidden_size), or the same without the last axis. Row i of a new head is the
    mean of the rows i of the heads in its group.

    Example: 4 heads of one row, [[1], [3], [10], [20]], pooled to 2: [[2], [15]].
    Raises ValueError if the old heads can't be divided into `num_kv_heads` groups of the same size.
    """
    raise NotImplementedError("pool_heads: your code here")


# ---- Task 5 (bug hunt): latent attention, step by step. Prepared by "Latent attention",
# "Why rotation is in the way" and "The real version".


class LatentWeights(NamedTuple):
    """One layer of latent attention. Queries are not compressed.

    w_q     (num_heads, nope_dim + rope_dim, hidden_size)   of each query head first the part without position
    w_down  (kv_lora_rank + rope_dim, hidden_size)          first the latent, then the key that all heads share
    norm    (kv_lora_rank,)                                 the weight of the latent's RMSNorm
    w_up    (num_heads, nope_dim + v_dim, kv_lora_rank)     of each head W_UK and W_UV, as `wkv_b` stacks them
    w_o     (hidden_size, num_heads, v_dim)
    """

    w_q: Tensor
    w_down: Tensor
    norm: Tensor
    w_up: Tensor
    w_o: Tensor

    @property
    def kv_lora_rank(self) -> int:
        return self.norm.shape[0]

    @property
    def rope_dim(self) -> int:
        return self.w_down.shape[0] - self.kv_lora_rank

    @property
    def nope_dim(self) -> int:
        return self.w_q.shape[1] - self.rope_dim

    @property
    def v_dim(self) -> int:
        return self.w_o.shape[2]


def unit_rms(x: Tensor) -> Tensor:
    """RMSNorm without its weight: x (n,) divided by the root of its mean square."""
    return x / (x.square().mean() + 1e-6).sqrt()


def rotate_to(x: Tensor, position: int) -> Tensor:
    """x (heads, rope_dim) -> the same, turned by RoPE to `position`."""
    return rotate(x, *Rope(RopeConfig(), x.shape[-1]).cos_sin(torch.tensor(position), x.dtype))


def hasty_latent_step(x: Tensor, position: int, cache: Tensor, w: LatentWeights) -> tuple[Tensor, Tensor]:
    """Somebody's draft of `latent_step`. It runs without an error, and it has four mistakes."""
    q_nope, q_rope = torch.einsum("hdm,m->hd", w.w_q, x).split((w.nope_dim, w.rope_dim), dim=-1)
    down = unit_rms(w.w_down @ x)
    latent, k_rope = down[: w.kv_lora_rank] * w.norm, down[w.kv_lora_rank :]
    cache = torch.cat((cache, torch.cat((latent, k_rope))[None]))
    expanded = torch.einsum("hdr,nr->nhd", w.w_up, cache[:, : w.kv_lora_rank])
    v, k_nope = expanded.split((w.v_dim, w.nope_dim), dim=-1)
    scores = torch.einsum("hd,nhd->hn", q_nope, k_nope)
    scores = scores + rotate_to(q_rope, position) @ cache[:, w.kv_lora_rank :].T
    weights = (scores * w.nope_dim**-0.5).softmax(dim=-1)
    return torch.einsum("mhd,hd->m", w.w_o, torch.einsum("hn,nhd->hd", weights, v)), cache


def latent_step(x: Tensor, position: int, cache: Tensor, w: LatentWeights) -> tuple[Tensor, Tensor]:
    """`hasty_latent_step`, repaired: one token through a layer of latent attention in the naive (expanded) form.

    x         (hidden_size,), the token's normalised hidden state; it stands at `position`
    cache     (num_keys, kv_lora_rank + rope_dim), a row for each earlier token
    Returns the layer's output (hidden_size,) and the cache with the row of this token behind the others.

    The row that the cache keeps for a token is the one that the chapter describes, and so are the scores. The new token
    sees itself too.
    """
    raise NotImplementedError("latent_step: your code here")


# ---- Task 6: absorbed. Prepared by "Absorption".


def absorbed_attention(q_nope: Tensor, q_rope: Tensor, cache: Tensor, w_up: Tensor, softmax_scale: float) -> Tensor:
    """Latent attention of one new token to `num_keys` cached tokens, without a key or a value of any head.

    q_nope  (num_heads, nope_dim)
    q_rope  (num_heads, rope_dim), rotated already, as the keys in the cache are
    cache   (num_keys, kv_lora_rank + rope_dim): of each token its latent, then the rotated key that all heads share
    w_up    (num_heads, nope_dim + v_dim, kv_lora_rank): of each head W_UK over W_UV
    Returns (num_heads, v_dim), the outputs of the heads before the projection w_o.

    The result is what expanding the cache to keys and values of all heads would give. The graders count. No tensor may
    be made that is larger than the scores of all heads, num_heads · num_keys numbers: no copy of the cache, no head's
    keys (views of the inputs are free; there are more keys than kv_lora_rank + rope_dim when they count, so that the
    queries fit). And with r = kv_lora_rank the products may not do more FLOPs than

        2 · num_heads · (nope_dim · r  +  num_keys · (r + rope_dim)  +  num_keys · r  +  r · v_dim)

    Example with one head, all widths 1: q_nope [[3]], q_rope [[0]], cache [[1, 0], [2, 0]], w_up [[[2], [5]]] and
    softmax_scale = ln(3) / 6: the keys are 2 and 4, the weights 1/4 and 3/4, the values 5 and 10, the output 8.75.
    """
    raise NotImplementedError("absorbed_attention: your code here")
