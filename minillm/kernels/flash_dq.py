"""dQ of attention: program 3 of `flash_backward` (Triton).

The walk of the forward pass, picture and order of programs included (`flash_forward`), with dQ in the place of acc:

    dq = 0                                        in registers
    for each block of keys that is seen:
        p  = exp(q · kᵀ · scale − lse)            no maximum, no repair: lse is known
        ds = p ∘ (d_out · vᵀ − delta)
        dq += ds · k
"""

from __future__ import annotations

import triton
import triton.language as tl

from minillm.kernels.flash_forward import LENGTHS, LN_2
from minillm.kernels.flash_walk import is_visible, key_runs, load_tile, store_tile, tile_offsets


@triton.jit
def add_to_dq(  # type: ignore[no-untyped-def]
    dq,
    q,
    d_out,
    lse_log2,
    delta,
    k_ptr,
    v_ptr,
    first,
    stop,
    places,
    k_len,
    window,
    scale_log2,
    stride_kn,
    stride_kd,
    stride_vn,
    stride_vd,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """dq (queries, BLOCK_D), not yet scaled, with what keys first … stop − 1 add."""
    keys = tl.arange(0, BLOCK_K)
    k_offsets = tile_offsets(stride_kn, stride_kd, BLOCK_K, BLOCK_D)
    v_offsets = tile_offsets(stride_vn, stride_vd, BLOCK_K, BLOCK_V)
    k_ptr += first.to(tl.int64) * stride_kn
    v_ptr += first.to(tl.int64) * stride_vn
    for start in range(first, stop, BLOCK_K):
        k = load_tile(k_ptr + k_offsets, k_len - start, K_DIM, BLOCK_K, BLOCK_D, MASKED)
        v = load_tile(v_ptr + v_offsets, k_len - start, V_DIM, BLOCK_K, BLOCK_V, MASKED)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        weights = tl.exp2(scores * scale_log2 - lse_log2[:, None])
        if MASKED:
            visible = is_visible(places[:, None], start + keys[None, :], k_len, window, CAUSAL, HAS_WINDOW)
            weights = tl.where(visible, weights, 0.0)
        d_weights = tl.dot(d_out, tl.trans(v), input_precision="ieee")
        d_scores = weights * (d_weights - delta[:, None])
        dq = tl.dot(d_scores.to(k.dtype), k, dq, input_precision="ieee")
        k_ptr += BLOCK_K * stride_kn
        v_ptr += BLOCK_K * stride_vn
    return dq


@triton.jit(do_not_specialize=LENGTHS)
def dq_kernel(  # type: ignore[no-untyped-def]
    q_ptr,
    k_ptr,
    v_ptr,
    d_out_ptr,
    lse_log2_ptr,
    delta_ptr,
    dq_ptr,
    scale_log2,
    q_len,
    k_len,
    window,
    num_heads,
    group,
    stride_qb,
    stride_qn,
    stride_qh,
    stride_qd,
    stride_kb,
    stride_kn,
    stride_kh,
    stride_kd,
    stride_vb,
    stride_vn,
    stride_vh,
    stride_vd,
    stride_gb,
    stride_gn,
    stride_gh,
    stride_gd,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """dq, contiguous (batch, q_len, num_heads, K_DIM). Grid: (blocks of queries · num_heads · batch,)."""
    num_blocks = tl.cdiv(q_len, BLOCK_Q)
    program = tl.program_id(0)
    first_row = (num_blocks - 1 - program % num_blocks) * BLOCK_Q
    head_of_batch = (program // num_blocks).to(tl.int64)
    batch, head = head_of_batch // num_heads, head_of_batch % num_heads
    left = q_len - first_row
    q_ptr += batch * stride_qb + head * stride_qh + first_row.to(tl.int64) * stride_qn
    k_ptr += batch * stride_kb + head // group * stride_kh
    v_ptr += batch * stride_vb + head // group * stride_vh
    d_out_ptr += batch * stride_gb + head * stride_gh + first_row.to(tl.int64) * stride_gn
    q = load_tile(q_ptr + tile_offsets(stride_qn, stride_qd, BLOCK_Q, BLOCK_D), left, K_DIM, BLOCK_Q, BLOCK_D, True)
    d_out = load_tile(
        d_out_ptr + tile_offsets(stride_gn, stride_gd, BLOCK_Q, BLOCK_V), left, V_DIM, BLOCK_Q, BLOCK_V, True
    )
    rows = first_row + tl.arange(0, BLOCK_Q)
    lse_log2 = tl.load(lse_log2_ptr + head_of_batch * q_len + rows, mask=rows < q_len, other=float("inf"))
    delta = tl.load(delta_ptr + head_of_batch * q_len + rows, mask=rows < q_len, other=0.0)

    dq = tl.zeros((BLOCK_Q, BLOCK_D), dtype=tl.float32)
    places = rows + (k_len - q_len)
    first, full_first, full_stop, stop = key_runs(first_row, q_len, k_len, window, CAUSAL, HAS_WINDOW, BLOCK_Q, BLOCK_K)
    for run in tl.static_range(3):
        if run == 0:
            run_first, run_stop = first, full_first
        elif run == 1:
            run_first, run_stop = full_first, full_stop
        else:
            run_first, run_stop = full_stop, stop
        if run > 0 or HAS_WINDOW:
            dq = add_to_dq(
                dq, q, d_out, lse_log2, delta, k_ptr, v_ptr, run_first, run_stop, places, k_len, window, scale_log2,
                stride_kn, stride_kd, stride_vn, stride_vd,
                MASKED=run != 1, CAUSAL=CAUSAL, HAS_WINDOW=HAS_WINDOW,
                K_DIM=K_DIM, V_DIM=V_DIM, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D, BLOCK_V=BLOCK_V,
            )  # fmt: skip
    dq_ptr += ((batch * q_len + first_row) * num_heads + head) * K_DIM
    dq_ptr += tile_offsets(num_heads * K_DIM, 1, BLOCK_Q, BLOCK_D)
    store_tile(dq_ptr, dq * (scale_log2 * LN_2), left, K_DIM, BLOCK_Q, BLOCK_D)
