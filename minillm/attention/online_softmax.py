"""Softmax in one pass less: from three passes over a row, to two, to attention in one.

The softmax of x_1 … x_n needs the row's maximum m (or exp overflows) and the sum l of exp(x_i − m). Both can be had
while the numbers stream by (Milakov and Gimelshein 2018, arXiv:1805.02867, algorithm 3): whenever the maximum grows,
what was summed so far is off by a known factor.

    m_new = max(m, x)        l_new = l · exp(m − m_new) + exp(x − m_new)

Attention weighs values with these numbers, and the weighted sum is repaired by the same factor. So one pass is
enough, with a state (m, l, acc) that doesn't grow with the length: this is what FlashAttention keeps on the chip.
The first three functions spell it for one row, a number at a time; `OnlineSoftmax` is the state of a tile of rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def safe_softmax(scores: Tensor) -> Tensor:
    """The softmax of one row (n,) in three passes: maximum, sum, division. Returns (n,)."""
    _expect_row(scores)
    row_max = -math.inf
    for x in scores.tolist():  # pass 1
        row_max = max(row_max, x)
    row_sum = 0.0
    for x in scores.tolist():  # pass 2
        row_sum += _exp(x - row_max)
    return _row([_exp(x - row_max) / (row_sum or 1.0) for x in scores.tolist()], scores)  # pass 3


def online_softmax(scores: Tensor) -> Tensor:
    """The softmax of one row (n,) in two passes: maximum and sum together, then division. Returns (n,)."""
    _expect_row(scores)
    row_max, row_sum = -math.inf, 0.0
    for x in scores.tolist():  # pass 1
        new_max = max(row_max, x)
        row_sum = row_sum * _exp(row_max - new_max) + _exp(x - new_max)
        row_max = new_max
    return _row([_exp(x - row_max) / (row_sum or 1.0) for x in scores.tolist()], scores)  # pass 2


def online_attention(scores: Tensor, values: Tensor) -> tuple[Tensor, float]:
    """softmax(scores) @ values in a single pass. scores (n,), values (n, v_head_dim).

    Returns out (v_head_dim,) and the row's log-sum-exp. The division by the sum happens once, at the end.
    """
    _expect_row(scores)
    if values.dim() != 2 or values.shape[0] != scores.shape[0]:
        raise ValueError(f"expected values ({scores.shape[0]}, v_head_dim), one a score, got {tuple(values.shape)}")
    row_max, row_sum, acc = -math.inf, 0.0, torch.zeros_like(values[0])
    for x, value in zip(scores.tolist(), values, strict=True):
        new_max = max(row_max, x)
        repair, weight = _exp(row_max - new_max), _exp(x - new_max)
        row_sum = row_sum * repair + weight
        acc = acc * repair + weight * value
        row_max = new_max
    return acc / (row_sum or 1.0), row_max + math.log(row_sum) if row_sum else -math.inf


class OnlineSoftmax:
    """The state of `rows` rows that see their keys tile by tile: the papers' m, l and the output so far.

    row_max, row_sum   m and l, (..., rows, 1), of the dtype and device of `like`: the largest score so far; the sum
                       of exp(score − m)
    acc                (..., rows, v_head_dim): the sum of exp(score − m) · value, not yet divided by l

    Works in place, without autograd.
    """

    def __init__(self, rows_shape: tuple[int, ...], v_head_dim: int, like: Tensor) -> None:
        self.row_max = like.new_full((*rows_shape, 1), -math.inf)
        self.row_sum = like.new_zeros((*rows_shape, 1))
        self.acc = like.new_zeros((*rows_shape, v_head_dim))

    def update(self, scores: Tensor, values: Tensor) -> None:
        """Take in a tile: scores (batch, rows, keys), −inf where hidden; values (batch, keys, v_head_dim).

        `scores` is overwritten with its weights, exp(score − m).
        """
        new_max = torch.maximum(self.row_max, scores.amax(dim=-1, keepdim=True))
        shift = finite(new_max)
        weights = scores.sub_(shift).exp_()
        repair = torch.exp(self.row_max - shift)  # 0 at the first tile, where the maximum was −inf
        self.row_sum.mul_(repair).add_(weights.sum(dim=-1, keepdim=True))
        self.acc.mul_(repair).baddbmm_(weights, values)
        self.row_max = new_max

    def result(self) -> tuple[Tensor, Tensor]:
        """out (..., rows, v_head_dim) and lse (..., rows) of the keys taken in so far; 0 and −inf without any."""
        return self.acc / nonzero(self.row_sum), (self.row_max + torch.log(self.row_sum)).squeeze(-1)


def finite(row_max: Tensor) -> Tensor:
    """A maximum that can be subtracted: 0 in place of the −inf of a row that has seen no key (−inf − −inf is NaN)."""
    return row_max.masked_fill(row_max == -math.inf, 0.0)


def nonzero(row_sum: Tensor) -> Tensor:
    """A sum that can be divided by: 1 in place of the 0 of a row that has seen no key."""
    return row_sum.masked_fill(row_sum == 0.0, 1.0)


def _expect_row(scores: Tensor) -> None:
    if scores.dim() != 1 or scores.numel() == 0:
        raise ValueError(f"expected one row of scores (n,), n at least 1, got shape {tuple(scores.shape)}")


def _exp(difference: float) -> float:
    # −inf − −inf is NaN: a hidden key before any visible one, which weighs nothing.
    return 0.0 if math.isnan(difference) else math.exp(difference)


def _row(numbers: list[float], like: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=like.dtype, device=like.device)
