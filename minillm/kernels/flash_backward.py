"""The gradients of attention, in tiles: weights are computed again instead of being kept (Triton).

    1  prepare     a program a block of rows    delta = rowsum(dO ∘ O) − dlse                  two numbers a row
    2  dK, dV      a program a block of keys    for each head of the group, each block of queries that sees the keys:
                                                    Pᵀ  = exp(K Qᵀ · scale − lse)      dV += Pᵀ dO
                                                    dSᵀ = Pᵀ ∘ (V dOᵀ − delta)         dK += dSᵀ Q
    3  dQ          a program a block of queries for each block of keys that is seen:   dQ += dS K

Dao 2023 (arXiv:2307.08691), algorithm 2, made two: there one program a block of keys adds its share of dQ to memory by
atomics, whose order, and so the last bits, change from run to run. Here every sum is taken by one program in a fixed
order, and the scores are computed twice: 7 products a tile instead of 5. dK and dV of a head that several query heads
share are added up inside program 2. The gradient dlse that arrives at lse itself is part of delta: d lse / d S = P.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.flash_dk_dv import dk_dv_kernel
from minillm.kernels.flash_dq import dq_kernel
from minillm.kernels.flash_forward import LENGTHS, LN_2, LOG2_E, launch_options
from minillm.kernels.flash_tiles import INTERPRETER_TILE, FlashTile, backward_tiles, padded_dim
from minillm.kernels.flash_walk import load_tile, tile_offsets
from minillm.kernels.launch import is_interpreting, on_device

ROWS_TO_PREPARE = 32


@triton.jit(do_not_specialize=LENGTHS[:1])
def prepare_kernel(  # type: ignore[no-untyped-def]
    out_ptr,
    d_out_ptr,
    lse_ptr,
    d_lse_ptr,
    delta_ptr,
    lse_log2_ptr,
    q_len,
    num_heads,
    stride_ob,
    stride_on,
    stride_oh,
    stride_od,
    stride_gb,
    stride_gn,
    stride_gh,
    stride_gd,
    stride_lb,
    stride_ln,
    stride_lh,
    stride_hb,
    stride_hn,
    stride_hh,
    V_DIM: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """delta and lse · log2 e, both (batch, num_heads, q_len). Strides: o of out, g of d_out, l of lse, h of d_lse.

    Grid: (blocks of rows · num_heads · batch,).
    """
    num_blocks = tl.cdiv(q_len, BLOCK_Q)
    first_row = tl.program_id(0) % num_blocks * BLOCK_Q
    head_of_batch = (tl.program_id(0) // num_blocks).to(tl.int64)
    batch, head = head_of_batch // num_heads, head_of_batch % num_heads
    rows = first_row + tl.arange(0, BLOCK_Q)
    out_ptr += batch * stride_ob + head * stride_oh + first_row.to(tl.int64) * stride_on
    d_out_ptr += batch * stride_gb + head * stride_gh + first_row.to(tl.int64) * stride_gn
    left = q_len - first_row
    out = load_tile(out_ptr + tile_offsets(stride_on, stride_od, BLOCK_Q, BLOCK_V), left, V_DIM, BLOCK_Q, BLOCK_V, True)
    d_out = load_tile(
        d_out_ptr + tile_offsets(stride_gn, stride_gd, BLOCK_Q, BLOCK_V), left, V_DIM, BLOCK_Q, BLOCK_V, True
    )
    lse_ptr += batch * stride_lb + head * stride_lh
    d_lse_ptr += batch * stride_hb + head * stride_hh
    lse = tl.load(lse_ptr + rows.to(tl.int64) * stride_ln, mask=rows < q_len, other=float("-inf"))
    d_lse = tl.load(d_lse_ptr + rows.to(tl.int64) * stride_hn, mask=rows < q_len, other=0.0)

    delta = tl.sum(d_out.to(tl.float32) * out.to(tl.float32), axis=1) - d_lse
    results = head_of_batch * q_len + rows
    # A row without keys has weights of 0 in the masked tiles, but 0 times the NaN that may arrive at its lse is NaN.
    tl.store(delta_ptr + results, tl.where(lse == float("-inf"), 0.0, delta), mask=rows < q_len)
    tl.store(lse_log2_ptr + results, lse / LN_2, mask=rows < q_len)


def flash_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    d_out: Tensor,
    d_lse: Tensor,
    *,
    causal: bool,
    window: int | None,
    softmax_scale: float,
    tiles: tuple[FlashTile, FlashTile] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) in the dtype and shape of q, k, v, contiguous; arguments as of `flash_forward.flash_forward`.

    out, lse       what the forward pass returned, and d_out, d_lse the gradients that arrive at them, of any strides
    tiles          of dK and dV, of dQ; None = `flash_tiles.backward_tiles`

    The same bits every time.
    """
    (batch, q_len, num_heads, k_head_dim), (k_len, num_kv_heads, v_head_dim) = q.shape, v.shape[1:]
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta, lse_log2 = (torch.empty((batch, num_heads, q_len), device=q.device) for _ in range(2))
    if tiles is None:
        given = backward_tiles(k_head_dim, v_head_dim, itemsize=q.element_size())
        tiles = (INTERPRETER_TILE, INTERPRETER_TILE) if is_interpreting() else given
    dims = {"V_DIM": v_head_dim, "BLOCK_V": padded_dim(v_head_dim)}
    constants = {
        "CAUSAL": causal,
        "HAS_WINDOW": window is not None,
        "K_DIM": k_head_dim,
        "BLOCK_D": padded_dim(k_head_dim),
        **dims,
    }
    group = num_heads // num_kv_heads
    lengths = (q_len, k_len, 0 if window is None else window)
    inputs = (q, k, v, d_out, lse_log2, delta)
    scalars = (softmax_scale * LOG2_E, *lengths, num_heads, group)
    strides = (*q.stride(), *k.stride(), *v.stride(), *d_out.stride())
    with on_device(q):
        if num_programs := triton.cdiv(q_len, ROWS_TO_PREPARE) * num_heads * batch:
            prepare_kernel[(num_programs,)](
                out, d_out, lse, d_lse, delta, lse_log2, q_len, num_heads,
                *out.stride(), *d_out.stride(), *lse.stride(), *d_lse.stride(), **dims, BLOCK_Q=ROWS_TO_PREPARE,
            )  # fmt: skip
        if num_programs := triton.cdiv(k_len, tiles[0].block_k) * num_kv_heads * batch:
            dk_dv_kernel[(num_programs,)](*inputs, dk, dv, *scalars, *strides, **constants, **launch_options(tiles[0]))
        if num_programs := triton.cdiv(q_len, tiles[1].block_q) * num_heads * batch:
            dq_kernel[(num_programs,)](*inputs, dq, *scalars, *strides, **constants, **launch_options(tiles[1]))
    return dq, dk, dv
