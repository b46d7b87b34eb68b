"""The two halves of a decoding transformer block, each in one call (needs numba).

A decoded token runs through some thirty small operations a block. Each reads little and computes less; what they
cost is being called. Fused, the activations of a row stay in the first cache, and what remains is reading weights:

    project   x ─ RMSNorm ─┬─ wq ─ rotate ─ q
                           ├─ wk ─ rotate ─ k          (then the attend)
                           └─ wv ────────── v
    finish    attend's out ─ wo ─(+ x)─┬─ RMSNorm ─ silu(w_gate) · w_up ─ w_down ─(+)─ y
                                       └────────────────────────────────────────────┘

Every step that reads a weight is one parallel region; each thread takes its part of the outputs and does what follows
from them alone. Arithmetic is float32 throughout; results are rounded once when they are stored. Arguments are
addresses: wrong shapes read memory that isn't theirs, so `minillm.fused_blocks` checks them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray, njit, prange

from minillm.gemm.gemv import rows_of_w
from minillm.gemm.numbers import FASTMATH, narrow, pointer, widen

LIKE_FLOAT32 = np.empty(0, np.float32)
LIKE_BFLOAT16 = np.empty(0, np.uint16)
"""The first argument of both functions: an array of the stored type, bfloat16 as uint16."""


@njit(cache=True, nogil=True)
def project(
    like: Any, x: int, norm: int, wq: int, bq: int, wk: int, bk: int, wv: int, bv: int, cos: int, sin: int, q: int,
    k: int, v: int, rows: int, hidden_size: int, q_size: int, kv_size: int, head_dim: int, eps: float, num_threads: int,
) -> None:  # fmt: skip  # pragma: no cover (compiled)
    """x (rows, hidden_size) -> q (rows, q_size), k, v (rows, kv_size); cos, sin (rows, head_dim). 0 = no bias."""
    x_in = carray(pointer(x), (rows, hidden_size), like.dtype)
    normed = np.empty((rows, hidden_size), np.float32)
    for r in range(rows):
        _normalize(x_in[r], carray(pointer(norm), (hidden_size,), like.dtype), eps, normed[r])
    inputs = (
        normed,
        carray(pointer(wq), (q_size, hidden_size), like.dtype),
        carray(pointer(bq), (q_size if bq else 0,), like.dtype),
        carray(pointer(wk), (kv_size, hidden_size), like.dtype),
        carray(pointer(bk), (kv_size if bk else 0,), like.dtype),
        carray(pointer(wv), (kv_size, hidden_size), like.dtype),
        carray(pointer(bv), (kv_size if bv else 0,), like.dtype),
        carray(pointer(cos), (rows, head_dim), like.dtype),
        carray(pointer(sin), (rows, head_dim), like.dtype),
    )
    outputs = (
        np.empty((rows, q_size), np.float32),
        np.empty((rows, kv_size), np.float32),
        carray(pointer(q), (rows, q_size), like.dtype),
        carray(pointer(k), (rows, kv_size), like.dtype),
        carray(pointer(v), (rows, kv_size), like.dtype),
    )
    if num_threads == 1:
        _project_part(inputs, outputs, head_dim, 0, 1)
    else:
        _project_in_parallel(inputs, outputs, head_dim, num_threads)


@njit(cache=True, nogil=True, parallel=True)
def _project_in_parallel(
    inputs: Any, outputs: Any, head_dim: int, num_threads: int
) -> None:  # pragma: no cover (compiled)
    for part in prange(num_threads):
        _project_part(inputs, outputs, head_dim, part, num_threads)


@njit(cache=True, nogil=True)
def _project_part(
    inputs: Any, outputs: Any, head_dim: int, part: int, parts: int
) -> None:  # pragma: no cover (compiled)
    """Whole heads `part` of `parts`: a head is rotated by the thread that computed it."""
    normed, wq, bq, wk, bk, wv, bv, cos, sin = inputs
    wide_q, wide_k, q, k, v = outputs
    num_heads, num_kv_heads = wq.shape[0] // head_dim, wk.shape[0] // head_dim
    first, last = num_heads * part // parts * head_dim, num_heads * (part + 1) // parts * head_dim
    rows_of_w(normed, wq, bq, wide_q, first, last)
    _rotate(wide_q, cos, sin, q, first, last)
    first, last = num_kv_heads * part // parts * head_dim, num_kv_heads * (part + 1) // parts * head_dim
    rows_of_w(normed, wk, bk, wide_k, first, last)
    _rotate(wide_k, cos, sin, k, first, last)
    rows_of_w(normed, wv, bv, v, first, last)


@njit(cache=True, nogil=True)
def _rotate(wide: Any, cos: Any, sin: Any, out: Any, first: int, last: int) -> None:  # pragma: no cover (compiled)
    """`minillm.model.rope.rotate` of the heads in columns `first` to `last`."""
    rows, head_dim = cos.shape
    half = head_dim // 2
    for r in range(rows):
        for head in range(first, last, head_dim):
            for i in range(half):
                a, b = wide[r, head + i], wide[r, head + half + i]
                low = a * widen(cos[r, i]) - b * widen(sin[r, i])
                high = b * widen(cos[r, half + i]) + a * widen(sin[r, half + i])
                out[r, head + i] = narrow(low, out[r, head])
                out[r, head + half + i] = narrow(high, out[r, head])


@njit(cache=True, nogil=True)
def finish(
    like: Any, attended: int, x: int, wo: int, bo: int, norm: int, w_gate: int, b_gate: int, w_up: int, b_up: int,
    w_down: int, b_down: int, y: int, rows: int, hidden_size: int, q_size: int, intermediate_size: int, eps: float,
    num_threads: int,
) -> None:  # fmt: skip  # pragma: no cover (compiled)
    """attended (rows, q_size) and the block's input x (rows, hidden_size) -> its output y. 0 = no bias."""
    attended_in = carray(pointer(attended), (rows, q_size), like.dtype)
    wide = np.empty((rows, q_size), np.float32)
    for r in range(rows):
        for i in range(q_size):
            wide[r, i] = widen(attended_in[r, i])
    x_in = carray(pointer(x), (rows, hidden_size), like.dtype)
    residual = np.empty((rows, hidden_size), np.float32)
    normed = np.empty((rows, hidden_size), np.float32)
    gate = np.empty((rows, intermediate_size), np.float32)
    up = np.empty((rows, intermediate_size), np.float32)
    down = np.empty((rows, hidden_size), np.float32)
    out = (
        carray(pointer(wo), (hidden_size, q_size), like.dtype),
        carray(pointer(bo), (hidden_size if bo else 0,), like.dtype),
    )
    swiglu = (
        carray(pointer(w_gate), (intermediate_size, hidden_size), like.dtype),
        carray(pointer(b_gate), (intermediate_size if b_gate else 0,), like.dtype),
        carray(pointer(w_up), (intermediate_size, hidden_size), like.dtype),
        carray(pointer(b_up), (intermediate_size if b_up else 0,), like.dtype),
    )
    last = (
        carray(pointer(w_down), (hidden_size, intermediate_size), like.dtype),
        carray(pointer(b_down), (hidden_size if b_down else 0,), like.dtype),
    )
    y_out = carray(pointer(y), (rows, hidden_size), like.dtype)
    if num_threads == 1:
        _out_part(wide, x_in, out, residual, 0, 1)
    else:
        _out_in_parallel(wide, x_in, out, residual, num_threads)
    for r in range(rows):
        _normalize(residual[r], carray(pointer(norm), (hidden_size,), like.dtype), eps, normed[r])
    if num_threads == 1:
        _gate_part(normed, swiglu, gate, up, 0, 1)
        _down_part(gate, last, down, residual, y_out, 0, 1)
    else:
        _gate_in_parallel(normed, swiglu, gate, up, num_threads)
        _down_in_parallel(gate, last, down, residual, y_out, num_threads)


@njit(cache=True, nogil=True, parallel=True)
def _out_in_parallel(
    wide: Any, x: Any, out: Any, residual: Any, num_threads: int
) -> None:  # pragma: no cover (compiled)
    for part in prange(num_threads):
        _out_part(wide, x, out, residual, part, num_threads)


@njit(cache=True, nogil=True)
def _out_part(wide: Any, x: Any, out: Any, residual: Any, part: int, parts: int) -> None:  # pragma: no cover (compiled)
    wo, bo = out
    first, last = wo.shape[0] * part // parts, wo.shape[0] * (part + 1) // parts
    rows_of_w(wide, wo, bo, residual, first, last)
    for r in range(wide.shape[0]):
        for o in range(first, last):
            residual[r, o] += widen(x[r, o])


@njit(cache=True, nogil=True, parallel=True)
def _gate_in_parallel(
    normed: Any, swiglu: Any, gate: Any, up: Any, num_threads: int
) -> None:  # pragma: no cover (compiled)
    for part in prange(num_threads):
        _gate_part(normed, swiglu, gate, up, part, num_threads)


@njit(cache=True, nogil=True)
def _gate_part(
    normed: Any, swiglu: Any, gate: Any, up: Any, part: int, parts: int
) -> None:  # pragma: no cover (compiled)
    w_gate, b_gate, w_up, b_up = swiglu
    first, last = w_gate.shape[0] * part // parts, w_gate.shape[0] * (part + 1) // parts
    rows_of_w(normed, w_gate, b_gate, gate, first, last)
    rows_of_w(normed, w_up, b_up, up, first, last)
    for r in range(normed.shape[0]):
        for o in range(first, last):
            g = gate[r, o]
            gate[r, o] = g / (np.float32(1) + np.float32(math.exp(-g))) * up[r, o]


@njit(cache=True, nogil=True, parallel=True)
def _down_in_parallel(
    gate: Any, last_layer: Any, down: Any, residual: Any, y: Any, num_threads: int
) -> None:  # pragma: no cover (compiled)
    for part in prange(num_threads):
        _down_part(gate, last_layer, down, residual, y, part, num_threads)


@njit(cache=True, nogil=True)
def _down_part(
    gate: Any, last_layer: Any, down: Any, residual: Any, y: Any, part: int, parts: int
) -> None:  # pragma: no cover (compiled)
    w_down, b_down = last_layer
    first, last = w_down.shape[0] * part // parts, w_down.shape[0] * (part + 1) // parts
    rows_of_w(gate, w_down, b_down, down, first, last)
    for r in range(gate.shape[0]):
        for o in range(first, last):
            y[r, o] = narrow(residual[r, o] + down[r, o], y[r, o])


@njit(cache=True, nogil=True, fastmath=FASTMATH)
def _normalize(x: Any, weight: Any, eps: float, out: Any) -> None:  # pragma: no cover (compiled)
    """RMSNorm of one row, (hidden_size,)."""
    total = np.float32(0)
    for i in range(x.size):
        value = widen(x[i])
        total += value * value
    scale = np.float32(1) / np.sqrt(total / np.float32(x.size) + np.float32(eps))
    for i in range(x.size):
        out[i] = widen(x[i]) * scale * widen(weight[i])
