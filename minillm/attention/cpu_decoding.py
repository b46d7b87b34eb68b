"""FlashDecoding on CPU cores (needs numba): one query a sequence, splits = threads, keys in the order of memory.

    keys of all sequences, end to end    |── sequence 0 ──|─ 1 ─|────── sequence 2 ──────|
    threads                              |────── thread 0 ──────|────── thread 1 ────────|

Each thread gets an equal share of the keys, wherever sequences begin and end, and walks over it in the order of
memory: all KV heads of a key, then the next key. A key is read once for all query heads of its group. A tile of scores
is weighed at a time, as in FlashAttention-2; the threads' results of a sequence are merged at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import carray, njit, prange
from torch import Tensor

from minillm.attention.flash_decoding import check_decoding, pack_rows, unpack_rows
from minillm.attention.merge import merge_many
from minillm.gemm.numbers import FASTMATH, pointer, widen
from minillm.gemm.threads import threading_layer

TILE = 64  # keys weighed at a time: their scores stay in the nearest cache, the repair of acc is rare


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
        if x.numel() and not (x[0, 0].is_contiguous() and all(step % x.shape[3] == 0 for step in x.stride()[:2])):
            raise ValueError(f"expected {name} as whole rows of heads, got {tuple(x.shape)}, strides {x.stride()}")
    batch, _, num_kv_heads, v_head_dim = v.shape
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    rows = (pack_rows(q.detach(), num_kv_heads) * scale).contiguous()  # (batch, num_kv_heads, group, dim) float32
    threading_layer()
    num_threads = num_threads or torch.get_num_threads()
    group = rows.shape[2]
    outs = torch.zeros(num_threads, batch, num_kv_heads, group, v_head_dim)
    lses = torch.full((num_threads, batch, num_kv_heads, group), -torch.inf)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    if starts[-1]:
        _KERNELS[q.dtype](
            rows.numpy(),
            k.data_ptr(),
            v.data_ptr(),
            np.array([[step // x.shape[3] for step in x.stride()[:2]] for x in (k, v)], dtype=np.int64),
            starts,
            outs.numpy(),
            lses.numpy(),
        )
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
def _score(q: Any, h: int, k: Any, row: int, scores: Any, j: int) -> None:  # pragma: no cover (compiled)
    """scores[h, :, j] of the key k[row] and the queries q[h] (group, dim) of its KV head, four at a time."""
    group, dim = q.shape[1], q.shape[2]
    zero = np.float32(0)
    r = 0
    while r + 4 <= group:
        s0, s1, s2, s3 = zero, zero, zero, zero
        for i in range(dim):
            number = widen(k[row, i])
            s0 += q[h, r, i] * number
            s1 += q[h, r + 1, i] * number
            s2 += q[h, r + 2, i] * number
            s3 += q[h, r + 3, i] * number
        scores[h, r, j], scores[h, r + 1, j], scores[h, r + 2, j], scores[h, r + 3, j] = s0, s1, s2, s3
        r += 4
    while r < group:
        s0 = zero
        for i in range(dim):
            s0 += q[h, r, i] * widen(k[row, i])
        scores[h, r, j] = s0
        r += 1


@njit(fastmath=FASTMATH, cache=True, nogil=True)
def _weigh(scores: Any, h: int, r: int, count: int, row_max: Any) -> Any:  # pragma: no cover (compiled)
    """Turn `count` scores of a row into exp(score − row_max); returns their sum."""
    total = np.float32(0)
    for j in range(count):
        scores[h, r, j] = _exp(scores[h, r, j] - row_max)
        total += scores[h, r, j]
    return total


@njit(fastmath=FASTMATH, cache=True, nogil=True)
def _add(weights: Any, h: int, j: int, v: Any, row: int, acc: Any) -> None:  # pragma: no cover (compiled)
    """acc[h] (group, v_head_dim) += weights[h, :, j] times the value v[row]."""
    for r in range(acc.shape[1]):
        weight = weights[h, r, j]
        for i in range(acc.shape[2]):
            acc[h, r, i] += weight * widen(v[row, i])


@njit(cache=True, nogil=True)
def _walk(
    q: Any, k: Any, v: Any, k_first: int, v_first: int, k_step: int, v_step: int, num_keys: int, acc: Any, lse: Any
) -> None:  # pragma: no cover (compiled)
    """One thread's part of one sequence: q (num_kv_heads, group, dim) against num_keys keys.

    k and v are matrices of all heads' rows: KV head h of key j is row k_first + j · k_step + h of k. Leaves lse
    (num_kv_heads, group) and acc (num_kv_heads, group, v_head_dim), given as zeros, divided by the sums.
    """
    num_kv_heads, group = q.shape[:2]
    row_max = np.full((num_kv_heads, group), -np.inf, dtype=np.float32)
    row_sum = np.zeros((num_kv_heads, group), dtype=np.float32)
    scores = np.empty((num_kv_heads, group, TILE), dtype=np.float32)
    for start in range(0, num_keys, TILE):
        count = min(TILE, num_keys - start)
        for j in range(count):
            for h in range(num_kv_heads):
                _score(q, h, k, k_first + (start + j) * k_step + h, scores, j)
        for h in range(num_kv_heads):
            for r in range(group):
                new_max = max(row_max[h, r], scores[h, r, :count].max())
                repair = np.exp(row_max[h, r] - new_max)
                row_sum[h, r] = row_sum[h, r] * repair + _weigh(scores, h, r, count, new_max)
                if repair != 1:
                    acc[h, r] *= repair
                row_max[h, r] = new_max
        for j in range(count):
            for h in range(num_kv_heads):
                _add(scores, h, j, v, v_first + (start + j) * v_step + h, acc)
    for h in range(num_kv_heads):
        for r in range(group):
            lse[h, r] = row_max[h, r] + np.log(row_sum[h, r])
            acc[h, r] /= row_sum[h, r]


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
                _walk(
                    q[b],
                    k,
                    v,
                    b * strides[0, 0] + begin * strides[0, 1],
                    b * strides[1, 0] + begin * strides[1, 1],
                    strides[0, 1],
                    strides[1, 1],
                    end - begin,
                    outs[thread, b],
                    lses[thread, b],
                )


@njit(cache=True, nogil=True)
def _num_rows(strides: Any, starts: Any, num_kv_heads: int) -> int:  # pragma: no cover (compiled)
    """Rows, one a KV head, from the first to behind the last one that is read."""
    rows = 0
    for b in range(starts.size - 1):
        if starts[b + 1] > starts[b]:
            rows = max(rows, b * strides[0] + (starts[b + 1] - starts[b] - 1) * strides[1] + num_kv_heads)
    return rows


@njit(cache=True, nogil=True)
def _float32(q: Any, k: int, v: int, strides: Any, starts: Any, outs: Any, lses: Any) -> None:  # pragma: no cover
    num_k, num_v = _num_rows(strides[0], starts, q.shape[1]), _num_rows(strides[1], starts, q.shape[1])
    k_rows = carray(pointer(k), (num_k, q.shape[3]), np.float32)  # type: ignore[call-arg]
    v_rows = carray(pointer(v), (num_v, outs.shape[4]), np.float32)
    _share_out(q, k_rows, v_rows, strides, starts, outs, lses)


@njit(cache=True, nogil=True)
def _bfloat16(q: Any, k: int, v: int, strides: Any, starts: Any, outs: Any, lses: Any) -> None:  # pragma: no cover
    num_k, num_v = _num_rows(strides[0], starts, q.shape[1]), _num_rows(strides[1], starts, q.shape[1])
    k_rows = carray(pointer(k), (num_k, q.shape[3]), np.uint16)  # type: ignore[call-arg]
    v_rows = carray(pointer(v), (num_v, outs.shape[4]), np.uint16)
    _share_out(q, k_rows, v_rows, strides, starts, outs, lses)


_KERNELS = {torch.float32: _float32, torch.bfloat16: _bfloat16}
