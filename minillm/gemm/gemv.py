"""Products of a few rows with a matrix, y = x Wᵀ + bias: what one decoded token costs (needs numba).

A matrix–vector product reads each weight once for one multiply-add, so that its speed is the speed of reading
memory. Two things decide it: every core must stream its own part of W, and the cores must start quickly. Up to
four rows of x share each weight while it is in a register, which makes the second to fourth row almost free.

    W (out_features, in_features)      thread 0 ->  ═══════════  rows of W are contiguous: each thread walks
                                       thread 0 ->  ═══════════  whole rows from left to right and keeps one
                                       thread 1 ->  ═══════════  vector of partial sums for each pair of a row
                                       thread 1 ->  ═══════════  of x and a row of W
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray, njit, prange
from torch import Tensor

from minillm.gemm.numbers import FASTMATH, narrow, pointer, widen
from minillm.gemm.threads import threading_layer

# Starting the threads costs about 3 µs with OpenMP or TBB and 40 µs with numba's own workqueue. Below these sizes
# of W, in bytes, one core is done sooner.
_PARALLEL_FROM_BYTES = {"omp": 384 * 1024, "tbb": 384 * 1024, "workqueue": 4 * 1024 * 1024}


def few_row_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, num_threads: int = 0) -> Tensor:
    """`torch.nn.functional.linear(x, weight, bias)` for a few rows, without autograd.

    x            (..., in_features), contiguous or not; float32 or bfloat16, on the CPU
    weight       (out_features, in_features) of the same dtype, contiguous
    bias         (out_features,) of the same dtype, contiguous, or None
    num_threads  0 = torch's number of threads for a large weight, one for a small one

    Returns (..., out_features) in the dtype of x. Sums are kept in float32 and rounded once. Cost grows
    with the rows of x: made for up to about 8. Raises ValueError for shapes, dtypes or layouts other than
    these.
    """
    if not can_multiply(x, weight, bias):
        raise ValueError(
            "expected float32 or bfloat16 CPU tensors x (..., in_features), contiguous weight "
            "(out_features, in_features) and bias (out_features,), all of one dtype; got "
            f"{_describe(x)}, {_describe(weight)}, "
            f"{'no bias' if bias is None else _describe(bias)}"
        )
    threading_layer()
    return multiply(x, weight, bias, num_threads or threads_for(weight.nbytes))


def can_multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `few_row_linear` takes these tensors."""
    # Asked before each product of a decoded token, so written for few attribute look-ups.
    dtype = weight.dtype
    return (
        dtype in _KERNELS
        and x.dtype == dtype
        and x.is_cpu
        and weight.is_cpu
        and weight.dim() == 2
        and x.dim() >= 1
        and x.size(-1) == weight.size(1)
        and weight.is_contiguous()
        and (
            bias is None
            or (bias.dtype == dtype and bias.is_cpu and bias.shape == weight.shape[:1] and bias.is_contiguous())
        )
    )


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, num_threads: int) -> Tensor:
    """`few_row_linear` without its checks: wrong shapes or layouts read memory that isn't theirs."""
    out_features, in_features = weight.shape
    if not x.is_contiguous():
        x = x.contiguous()
    y = x.new_empty((*x.shape[:-1], out_features))
    # Addresses, because handing tensors to numba as arrays costs as much as a small product.
    _KERNELS[weight.dtype](
        x.data_ptr(),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        y.numel() // out_features,
        out_features,
        in_features,
        num_threads,
    )
    return y


def threads_for(num_bytes: int) -> int:
    """Threads that pay for weights of this size, from measured costs of starting them."""
    return torch.get_num_threads() if num_bytes >= _PARALLEL_FROM_BYTES[threading_layer()] else 1


@njit(fastmath=FASTMATH, cache=True, nogil=True)
def _dot(x: Any, w: Any, r: int, o: int) -> Any:  # pragma: no cover (compiled)
    total = np.float32(0)
    for k in range(x.shape[1]):
        total += x[r, k] * widen(w[o, k])
    return total


@njit(cache=True, nogil=True)
def _store_column(
    y: Any, r: int, o: int, start: Any, s0: Any, s1: Any, s2: Any, s3: Any
) -> None:  # pragma: no cover (compiled)
    y[r, o] = narrow(start + s0, y[r, o])
    y[r + 1, o] = narrow(start + s1, y[r, o])
    y[r + 2, o] = narrow(start + s2, y[r, o])
    y[r + 3, o] = narrow(start + s3, y[r, o])


@njit(fastmath=FASTMATH, cache=True, nogil=True)
def rows_of_w(x: Any, w: Any, bias: Any, y: Any, first: int, last: int) -> None:  # pragma: no cover (compiled)
    """y[:, first:last] of x (rows, in_features) float32. Accumulators are scalars: LLVM turns each into
    vectors.
    """
    rows, in_features = x.shape
    zero = np.float32(0)
    o = first
    while o < last:
        pair = min(o + 1, last - 1)  # two rows of W at a time; an odd last row is paired with itself
        start_0 = widen(bias[o]) if bias.size else zero
        start_1 = widen(bias[pair]) if bias.size else zero
        r = 0
        while r + 4 <= rows:
            s00, s10, s20, s30 = zero, zero, zero, zero  # s(row of x)(row of W)
            s01, s11, s21, s31 = zero, zero, zero, zero
            for k in range(in_features):
                w_0, w_1 = widen(w[o, k]), widen(w[pair, k])
                x_0, x_1, x_2, x_3 = x[r, k], x[r + 1, k], x[r + 2, k], x[r + 3, k]
                s00 += x_0 * w_0
                s01 += x_0 * w_1
                s10 += x_1 * w_0
                s11 += x_1 * w_1
                s20 += x_2 * w_0
                s21 += x_2 * w_1
                s30 += x_3 * w_0
                s31 += x_3 * w_1
            _store_column(y, r, o, start_0, s00, s10, s20, s30)
            _store_column(y, r, pair, start_1, s01, s11, s21, s31)
            r += 4
        while r < rows:
            # One row of W after the other: memory delivers one stream faster than two.
            y[r, o] = narrow(start_0 + _dot(x, w, r, o), y[r, o])
            y[r, pair] = narrow(start_1 + _dot(x, w, r, pair), y[r, o])
            r += 1
        o += 2


@njit(cache=True, nogil=True, parallel=True)
def _share_out(x: Any, w: Any, bias: Any, y: Any, num_threads: int) -> None:  # pragma: no cover (compiled)
    out_features = w.shape[0]
    for thread in prange(num_threads):
        rows_of_w(x, w, bias, y, out_features * thread // num_threads, out_features * (thread + 1) // num_threads)


@njit(cache=True, nogil=True)
def _float32(
    x: int, w: int, bias: int, y: int, rows: int, out_features: int, in_features: int, num_threads: int
) -> None:  # pragma: no cover (compiled)
    x_array = carray(pointer(x), (rows, in_features), np.float32)
    w_array = carray(pointer(w), (out_features, in_features), np.float32)
    bias_array = carray(pointer(bias), (out_features if bias else 0,), np.float32)
    y_array = carray(pointer(y), (rows, out_features), np.float32)
    if num_threads == 1:
        rows_of_w(x_array, w_array, bias_array, y_array, 0, out_features)
    else:
        _share_out(x_array, w_array, bias_array, y_array, num_threads)


@njit(cache=True, nogil=True)
def _bfloat16(
    x: int, w: int, bias: int, y: int, rows: int, out_features: int, in_features: int, num_threads: int
) -> None:  # pragma: no cover (compiled)
    narrow_x = carray(pointer(x), (rows, in_features), np.uint16)
    x_array = np.empty((rows, in_features), np.float32)
    for r in range(rows):
        for k in range(in_features):
            x_array[r, k] = widen(narrow_x[r, k])
    w_array = carray(pointer(w), (out_features, in_features), np.uint16)
    bias_array = carray(pointer(bias), (out_features if bias else 0,), np.uint16)
    y_array = carray(pointer(y), (rows, out_features), np.uint16)
    if num_threads == 1:
        rows_of_w(x_array, w_array, bias_array, y_array, 0, out_features)
    else:
        _share_out(x_array, w_array, bias_array, y_array, num_threads)


_KERNELS = {torch.float32: _float32, torch.bfloat16: _bfloat16}


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
