"""dK and dV of attention: program 2 of `flash_backward` (Triton).

                     queries ►
                  Qᵀ, dOᵀ ┌──────┬──────┬──────┐
                          │      │ ▓▓▓▓ │      │        one program: BLOCK_K keys of one KV head
                          └──────┴──────┴──────┘
     K, V ┌────────┐   Pᵀ ┌──────┬──────┬──────┐        dk, dv = 0                                  in registers
          │        │      │  ▓   │  █   │  █   │        for each query head of the group:
          ├────────┤      ├──────┼──────┼──────┤            for each block of queries that sees the keys:
          │ ▓▓▓▓▓▓ │      │ skip │  ▓   │  █   │                load q, d_out, lse, delta
          └────────┘      └──────┴──────┴──────┘                pᵀ, dsᵀ
                      █ no mask   ▓ masked                      dv += pᵀ · d_out;  dk += dsᵀ · q

A product's left factor lies in registers. With keys as the rows of the tiles, Pᵀ and dSᵀ, left factors of the sums, are
what the products before them leave there.
"""

from __future__ import annotations

import triton
import triton.language as tl

from minillm.kernels.flash_forward import LENGTHS, LN_2
from minillm.kernels.flash_walk import is_visible, load_tile, query_runs, store_tile, tile_offsets


@triton.jit
def add_to_dk_dv(  # type: ignore[no-untyped-def]
    dk,
    dv,
    k,
    v,
    q_ptr,
    d_out_ptr,
    lse_log2_ptr,
    delta_ptr,
    first,
    stop,
    keys,
    q_len,
    k_len,
    window,
    scale_log2,
    stride_qn,
    stride_qd,
    stride_gn,
    stride_gd,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """dk (keys, BLOCK_D), not yet scaled, and dv (keys, BLOCK_V) with what queries first … stop − 1 of a head add."""
    rows = tl.arange(0, BLOCK_Q)
    q_offsets = tile_offsets(stride_qn, stride_qd, BLOCK_Q, BLOCK_D)
    d_out_offsets = tile_offsets(stride_gn, stride_gd, BLOCK_Q, BLOCK_V)
    q_ptr += first.to(tl.int64) * stride_qn
    d_out_ptr += first.to(tl.int64) * stride_gn
    for start in range(first, stop, BLOCK_Q):
        q = load_tile(q_ptr + q_offsets, q_len - start, K_DIM, BLOCK_Q, BLOCK_D, True)
        # Beyond the last query, +∞ for lse makes weights of 0.
        lse_log2 = tl.load(lse_log2_ptr + start + rows, mask=start + rows < q_len, other=float("inf"))
        delta = tl.load(delta_ptr + start + rows, mask=start + rows < q_len, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision="ieee")  # (keys, queries)
        weights = tl.exp2(scores * scale_log2 - lse_log2[None, :])
        if MASKED:
            places = start + rows + (k_len - q_len)
            visible = is_visible(places[None, :], keys[:, None], k_len, window, CAUSAL, HAS_WINDOW)
            weights = tl.where(visible, weights, 0.0)
        d_out = load_tile(d_out_ptr + d_out_offsets, q_len - start, V_DIM, BLOCK_Q, BLOCK_V, True)
        dv = tl.dot(weights.to(d_out.dtype), d_out, dv, input_precision="ieee")
        d_weights = tl.dot(v, tl.trans(d_out), input_precision="ieee")
        d_scores = weights * (d_weights - delta[None, :])
        dk = tl.dot(d_scores.to(q.dtype), q, dk, input_precision="ieee")
        q_ptr += BLOCK_Q * stride_qn
        d_out_ptr += BLOCK_Q * stride_gn
    return dk, dv


@triton.jit(do_not_specialize=LENGTHS)
def dk_dv_kernel(  # type: ignore[no-untyped-def]
    q_ptr,
    k_ptr,
    v_ptr,
    d_out_ptr,
    lse_log2_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
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
    """dk, dv, contiguous (batch, k_len, num_kv_heads, …). Grid: (blocks of keys · num_kv_heads · batch,), the block of
    keys that the most queries see first, which is the first.
    """
    num_blocks = tl.cdiv(k_len, BLOCK_K)
    num_kv_heads = num_heads // group
    first_key = tl.program_id(0) % num_blocks * BLOCK_K
    head_of_batch = (tl.program_id(0) // num_blocks).to(tl.int64)
    batch, kv_head = head_of_batch // num_kv_heads, head_of_batch % num_kv_heads
    left = k_len - first_key
    k_ptr += batch * stride_kb + kv_head * stride_kh + first_key.to(tl.int64) * stride_kn
    v_ptr += batch * stride_vb + kv_head * stride_vh + first_key.to(tl.int64) * stride_vn
    k = load_tile(k_ptr + tile_offsets(stride_kn, stride_kd, BLOCK_K, BLOCK_D), left, K_DIM, BLOCK_K, BLOCK_D, True)
    v = load_tile(v_ptr + tile_offsets(stride_vn, stride_vd, BLOCK_K, BLOCK_V), left, V_DIM, BLOCK_K, BLOCK_V, True)
    dk = tl.zeros((BLOCK_K, BLOCK_D), dtype=tl.float32)
    dv = tl.zeros((BLOCK_K, BLOCK_V), dtype=tl.float32)
    keys = first_key + tl.arange(0, BLOCK_K)
    first, full_first, full_stop, stop = query_runs(
        first_key, q_len, k_len, window, CAUSAL, HAS_WINDOW, BLOCK_Q, BLOCK_K
    )
    for head_of_group in range(group):
        head = kv_head * group + head_of_group
        head_q_ptr = q_ptr + batch * stride_qb + head * stride_qh
        head_d_out_ptr = d_out_ptr + batch * stride_gb + head * stride_gh
        head_rows = (batch * num_heads + head) * q_len
        for run in tl.static_range(3):
            # The diagonal, full tiles and the tail, the window's edge. Each copy of the loop costs registers.
            if run == 0:
                run_first, run_stop = first, full_first
            elif run == 1:
                run_first, run_stop = full_first, full_stop
            else:
                run_first, run_stop = full_stop, stop
            if run == 1 or (run == 0 and CAUSAL) or HAS_WINDOW:
                dk, dv = add_to_dk_dv(
                    dk, dv, k, v, head_q_ptr, head_d_out_ptr, lse_log2_ptr + head_rows, delta_ptr + head_rows,
                    run_first, run_stop, keys, q_len, k_len, window, scale_log2,
                    stride_qn, stride_qd, stride_gn, stride_gd,
                    MASKED=run != 1, CAUSAL=CAUSAL, HAS_WINDOW=HAS_WINDOW,
                    K_DIM=K_DIM, V_DIM=V_DIM, BLOCK_Q=BLOCK_Q, BLOCK_D=BLOCK_D, BLOCK_V=BLOCK_V,
                )  # fmt: skip
    first_number = (batch * k_len + first_key) * num_kv_heads + kv_head  # in heads
    dk_ptr += first_number * K_DIM + tile_offsets(num_kv_heads * K_DIM, 1, BLOCK_K, BLOCK_D)
    dv_ptr += first_number * V_DIM + tile_offsets(num_kv_heads * V_DIM, 1, BLOCK_K, BLOCK_V)
    store_tile(dk_ptr, dk * (scale_log2 * LN_2), left, K_DIM, BLOCK_K, BLOCK_D)
    store_tile(dv_ptr, dv, left, V_DIM, BLOCK_K, BLOCK_V)
