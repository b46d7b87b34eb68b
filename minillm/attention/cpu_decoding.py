"""FlashDecoding on CPU cores (needs numba): one query a sequence, splits = threads, keys in the order of memory.

    keys of all sequences, end to end    |── sequence 0 ──|─ 1 ─|────── sequence 2 ──────|
    threads                              |────── thread 0 ──────|────── thread 1 ────────|

Each thread gets an equal share of the keys, wherever sequences begin and end, and walks over it in the order of
memory: all KV heads of a key, then the next key. A key is read once for all query heads of its group. A tile of scores
is weighed at a time, as in FlashAttention-2; the threads' results of a sequence are merged at the end. The two products
are those of `cpu_tiles`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import carray, njit, prange
from torch import Tensor

from minillm.attention.cpu_tiles import LANES, largest, make_mix, make_scores
from minillm.attention.flash_decoding import check_decoding, pack_rows, unpack_rows
from minillm.attention.merge import merge_many
from minillm.gemm.numbers import FASTMATH, pointer, widen
from minillm.gemm.threads import threading_layer

TILE = 64  # keys weighed at a time: their scores and values stay in the near caches, the repair of acc is rare
ROWS = 4  # query heads computed together; a group of several is filled up to a multiple

_scores, _mix_4, _mix_1 = make_scores(ROWS, 2), make_mix(ROWS, 4), make_mix(ROWS, 1)


def decode_on_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    softmax_scale: float | None = None,
    seq_lens: Tensor | Sequence[int] | None = None,
    num_threads: int = 0,
) -> tuple[Tensor, Tensor]:
    """`flash_decoding` of one query a sequence, without autograd. q (batch, 1, num_heads, k_head_dim).

    q, k, v      float32 or bfloat16, one dtype, on the CPU; the heads of one key in k and v are contiguous. Slices of
                 a cache along batch and length are read in place
    num_threads  0 = torch's number of threads

    Sums are kept in float32. Raises ValueError for other shapes, dtypes or layouts.
    """
    lengths, _ = check_decoding(q, k, v, num_splits=1, seq_lens=seq_lens)
    if q.shape[1] != 1 or q.dtype not in _KERNELS or not (q.dtype == k.dtype == v.dtype) or not q.is_cpu:
        raise ValueError(
            "expected q (batch, 1, num_heads, dim) and k, v as float32 or bfloat16 CPU tensors of one dtype, got "
            f"{q.dtype} {tuple(q.shape)}, {k.dtype} and {v.dtype} on {q.device}"
        )
    for name, x in (("k", k), ("v", v)):
        if x.numel() and not x[0, 0].is_contiguous():
            raise ValueError(f"expected {name} as whole rows of heads, got {tuple(x.shape)}, strides {x.stride()}")
    batch, _, num_kv_heads, v_head_dim = v.shape
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    packed = pack_rows(q.detach(), num_kv_heads) * scale  # (batch, num_kv_heads, group, dim) float32
    group = packed.shape[2]
    rows = torch.zeros(batch, num_kv_heads, 1 if group == 1 else -(-group // ROWS) * ROWS, packed.shape[3])
    rows[:, :, :group] = packed
    threading_layer()
    num_threads = num_threads or torch.get_num_threads()
    outs = torch.zeros(num_threads, *rows.shape[:3], v_head_dim)
    lses = torch.full((num_threads, batch, num_kv_heads, group), -torch.inf)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    if starts[-1]:
        _KERNELS[q.dtype](
            rows.numpy(),
            k.data_ptr(),
            v.data_ptr(),
            np.array([x.stride()[:2] for x in (k, v)], dtype=np.int64),
            starts,
            outs.numpy(),
            lses.numpy(),
        )
    outs = outs[..., :group, :]
    out, lse = merge_many(outs, lses)
    out, lse = (unpack_rows(x, 1, q.shape[2]) for x in (out, lse.unsqueeze(-1)))
    return out.to(q.dtype), lse.squeeze(-1)


@njit(fastmath={"contract"}, cache=True, nogil=True)
def _exp(x: Any) -> Any:  # pragma: no cover (compiled)
    """exp of a float32 that is 0 or less, to 1e-7, in operations that LLVM turns into vectors; NaN stays NaN.

    2ⁿ · e^rest with n = round(x / ln 2): a polynomial of the rest, and n put into the exponent's bits. Below −87, where
    float32 ends, it is e^−87: nothing beside the weight 1 of the largest score.
    """
    x = np.float32(-87.0) if x < np.float32(-87.0) else x
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    rest = (x - n * np.float32(0.693359375)) - n * np.float32(-2.12194440e-4)  # ln 2 in two parts
    series = np.float32(1 / 720)
    series = series * rest + np.float32(1 / 120)
    series = series * rest + np.float32(1 / 24)
    series = series * rest + np.float32(1 / 6)
    series = series * rest + np.float32(1 / 2)
    series = series * rest + np.float32(1)
    series = series * rest + np.float32(1)
    return series * np.uint32(np.uint32(np.int32(n) + np.int32(127)) << np.uint32(23)).view(np.float32)


@njit(fastmath=FASTMATH, cache=True, nogil=True)
def _weigh(scores: Any, count: int, row_max: Any) -> Any:  # pragma: no cover (compiled)
    """Turn `count` scores of a row into exp(score − row_max); returns their sum."""
    total = np.float32(0)
    for j in range(count):
        scores[j] = _exp(scores[j] - row_max)
        total += scores[j]
    return total


# The four below are written into `_walk` where it calls them, and compiled with its freedoms: a call of numba's costs
# as much as the work on one key.
@njit(inline="always")
def _score_one(q: Any, k: Any) -> Any:  # pragma: no cover (compiled)
    """q · k, of one row: the compiler finds the vectors."""
    score = np.float32(0)
    for i in range(q.size):
        score += q[i] * widen(k[i])
    return score


@njit(inline="always")
def _mix_one(weight: Any, v: Any, acc: Any) -> None:  # pragma: no cover (compiled)
    """acc += weight · v, of one row."""
    for i in range(acc.size):
        acc[i] += weight * widen(v[i])


@njit(inline="always")
def _score(
    q: Any, r: int, dim: int, k: Any, k_at: int, v: Any, v_at: int, out: Any, out_at: int
) -> None:  # pragma: no cover (compiled)
    """out[out_at], TILE numbers further on for the next row, = scores of a key for ROWS rows of q from r on."""
    whole = dim // LANES * LANES
    _scores(whole, q, r * dim, dim, k, k_at, v, v_at, out, out_at, TILE)
    if whole < dim:  # what fills no vector
        for row in range(ROWS):
            for i in range(whole, dim):
                out[out_at + row * TILE] += q[(r + row) * dim + i] * widen(k[k_at + i])


@njit(inline="always")
def _mix(
    weights: Any, at: int, count: int, v: Any, v_at: int, v_step: int, acc: Any, r: int, v_dim: int
) -> None:  # pragma: no cover (compiled)
    """acc (…, v_dim), ROWS rows from r on, += weights[at :], TILE numbers a row, times `count` values."""
    i, place = 0, r * v_dim
    while i + 4 * LANES <= v_dim:
        _mix_4(count, weights, at, TILE, v, v_at + i, v_step, acc, place + i, v_dim)
        i += 4 * LANES
    while i + LANES <= v_dim:
        _mix_1(count, weights, at, TILE, v, v_at + i, v_step, acc, place + i, v_dim)
        i += LANES
    if i < v_dim:  # what fills no vector
        for row in range(ROWS):
            for j in range(count):
                for column in range(i, v_dim):
                    value = widen(v[v_at + j * v_step + column])
                    acc[place + row * v_dim + column] += weights[at + row * TILE + j] * value


@njit(fastmath=FASTMATH, cache=True, nogil=True)
def _walk(
    q: Any, k: Any, v: Any, k_at: int, v_at: int, k_step: int, v_step: int, num_keys: int, acc: Any, lse: Any
) -> None:  # pragma: no cover (compiled)
    """One thread's part of one sequence: q (num_kv_heads, padded, dim) against num_keys keys; `padded` is a group,
    filled up.

    KV head h of key j begins at k[k_at + j · k_step + h · dim]. Leaves lse (num_kv_heads, group), and acc
    (num_kv_heads, padded, v_dim), given as zeros, divided by the sums.
    """
    num_kv_heads, padded, dim = q.shape
    group, v_dim = lse.shape[1], acc.shape[2]
    all_q, all_acc = q.reshape(-1), acc.reshape(-1)
    row_max = np.full((num_kv_heads, group), -np.inf, dtype=np.float32)
    row_sum = np.zeros((num_kv_heads, group), dtype=np.float32)
    scores = np.zeros((num_kv_heads * padded, TILE), dtype=np.float32)
    all_scores = scores.reshape(-1)
    for start in range(0, num_keys, TILE):
        count = min(TILE, num_keys - start)
        k_tile, v_tile = k_at + start * k_step, v_at + start * v_step
        for j in range(count):
            for h in range(num_kv_heads):
                k_key, v_key = k_tile + j * k_step + h * dim, v_tile + j * v_step + h * v_dim
                if padded == 1:
                    scores[h, j] = _score_one(q[h, 0], k[k_key : k_key + dim])
                    continue
                for r in range(h * padded, (h + 1) * padded, ROWS):
                    _score(all_q, r, dim, k, k_key, v, v_key, all_scores, r * TILE + j)
        for h in range(num_kv_heads):
            for g in range(group):
                row = scores[h * padded + g]
                new_max = max(row_max[h, g], _largest(row, count))
                repair = np.exp(row_max[h, g] - new_max)
                row_sum[h, g] = row_sum[h, g] * repair + _weigh(row, count, new_max)
                if repair != 1:
                    acc[h, g] *= repair
                row_max[h, g] = new_max
        if padded == 1:  # a single row leaves acc in the nearest cache: v can go in the order of memory
            for j in range(count):
                for h in range(num_kv_heads):
                    v_key = v_tile + j * v_step + h * v_dim
                    _mix_one(scores[h, j], v[v_key : v_key + v_dim], acc[h, 0])
            continue
        for h in range(num_kv_heads):
            for r in range(h * padded, (h + 1) * padded, ROWS):
                _mix(all_scores, r * TILE, count, v, v_tile + h * v_dim, v_step, all_acc, r, v_dim)
    for h in range(num_kv_heads):
        for g in range(group):
            lse[h, g] = row_max[h, g] + np.log(row_sum[h, g])
            acc[h, g] /= row_sum[h, g]


@njit(cache=True, nogil=True)
def _largest(scores: Any, count: int) -> Any:  # pragma: no cover (compiled)
    """The largest of the first `count` of TILE scores; the others are overwritten."""
    filled = (count + LANES - 1) // LANES * LANES
    for j in range(count, filled):
        scores[j] = -np.inf
    return largest(scores, 0, filled)  # type: ignore[call-arg]


@njit(cache=True, nogil=True, parallel=True)
def _share_out(
    q: Any, k: Any, v: Any, strides: Any, starts: Any, outs: Any, lses: Any
) -> None:  # pragma: no cover (compiled)
    num_threads, batch = outs.shape[0], outs.shape[1]
    for thread in prange(num_threads):
        first, last = starts[-1] * thread // num_threads, starts[-1] * (thread + 1) // num_threads
        for b in range(batch):
            begin, end = max(first, starts[b]) - starts[b], min(last, starts[b + 1]) - starts[b]
            if begin < end:
                k_at, v_at = b * strides[0, 0] + begin * strides[0, 1], b * strides[1, 0] + begin * strides[1, 1]
                k_step, v_step = strides[0, 1], strides[1, 1]
                _walk(q[b], k, v, k_at, v_at, k_step, v_step, end - begin, outs[thread, b], lses[thread, b])


@njit(cache=True, nogil=True)
def _num_numbers(strides: Any, starts: Any, a_key: int) -> int:  # pragma: no cover (compiled)
    """Numbers from the first to behind the last one that is read; a key has `a_key` of them."""
    numbers = 0
    for b in range(starts.size - 1):
        if starts[b + 1] > starts[b]:
            numbers = max(numbers, b * strides[0] + (starts[b + 1] - starts[b] - 1) * strides[1] + a_key)
    return numbers


@njit(cache=True, nogil=True)
def _float32(q: Any, k: int, v: int, strides: Any, starts: Any, outs: Any, lses: Any) -> None:  # pragma: no cover
    num_k = _num_numbers(strides[0], starts, q.shape[1] * q.shape[3])
    num_v = _num_numbers(strides[1], starts, q.shape[1] * outs.shape[4])
    keys = carray(pointer(k), num_k, np.float32)  # type: ignore[call-arg]
    _share_out(q, keys, carray(pointer(v), num_v, np.float32), strides, starts, outs, lses)


@njit(cache=True, nogil=True)
def _bfloat16(q: Any, k: int, v: int, strides: Any, starts: Any, outs: Any, lses: Any) -> None:  # pragma: no cover
    num_k = _num_numbers(strides[0], starts, q.shape[1] * q.shape[3])
    num_v = _num_numbers(strides[1], starts, q.shape[1] * outs.shape[4])
    keys = carray(pointer(k), num_k, np.uint16)  # type: ignore[call-arg]
    _share_out(q, keys, carray(pointer(v), num_v, np.uint16), strides, starts, outs, lses)


_KERNELS = {torch.float32: _float32, torch.bfloat16: _bfloat16}
