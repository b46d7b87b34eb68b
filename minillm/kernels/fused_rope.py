"""Rotary position embedding of q and k in one launch (Triton).

    head_dim        ◄── half ──►◄── half ──►
    q of a token   ┌────────────┬────────────┐ ─┐     a program: a block of heads of one token, of q or of k
        head 0     │ ▓ a        │ ▓ b        │  │       a' = a · cos − b · sin        a pair is i and i + half
        head 1     │ ▓          │ ▓          │  ├►      b' = b · cos + a · sin
        head 2     │            │            │  │     cos and sin of the token are loaded once for the heads of a block
    k   head 0     ├────────────┼────────────┤ ─┘
                   └────────────┴────────────┘

In eager torch each of q and k takes five launches (· cos, minus, cat, · sin, plus) that read and write 10 numbers for
each of its own; here both take one launch together, and 2 numbers:

                        launches    bytes for N numbers of q and k, T of the tables
    eager                  10        (10 N + 4 T) · itemsize
    fused                   1        ( 2 N + 2 T) · itemsize, what q and k have in common of the tables read from L2

The gradient of a rotation is the rotation back, by −θ: the same kernel. Su et al. 2021 (arXiv:2104.09864), eq. 34.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from minillm.kernels.launch import check_tensors, on_device

PAIRS_A_BLOCK = 1024  # of numbers that turn together; 8 a thread with four warps


@triton.jit
def rope_kernel(  # type: ignore[no-untyped-def]
    q_ptr,
    k_ptr,
    cos_ptr,
    sin_ptr,
    q_out_ptr,
    k_out_ptr,
    seq_len,
    num_heads,
    num_kv_heads,
    half,
    stride_qb,
    stride_qn,
    stride_qh,
    stride_qd,
    stride_kb,
    stride_kn,
    stride_kh,
    stride_kd,
    stride_cb,
    stride_cn,
    stride_cd,
    stride_sb,
    stride_sn,
    stride_sd,
    BACK: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """q_out and k_out, contiguous (batch, seq_len, heads, 2 · half). Grid: (batch · seq_len · blocks of heads,)."""
    q_blocks, k_blocks = tl.cdiv(num_heads, BLOCK_H), tl.cdiv(num_kv_heads, BLOCK_H)
    block = tl.program_id(0) % (q_blocks + k_blocks)
    token = (tl.program_id(0) // (q_blocks + k_blocks)).to(tl.int64)
    batch, place = token // seq_len, token % seq_len
    dims = tl.arange(0, BLOCK_D)
    cos_ptr += batch * stride_cb + place * stride_cn
    sin_ptr += batch * stride_sb + place * stride_sn
    cos_a = tl.load(cos_ptr + dims * stride_cd, mask=dims < half, other=0.0).to(tl.float32)
    cos_b = tl.load(cos_ptr + (dims + half) * stride_cd, mask=dims < half, other=0.0).to(tl.float32)
    sin_a = tl.load(sin_ptr + dims * stride_sd, mask=dims < half, other=0.0).to(tl.float32)
    sin_b = tl.load(sin_ptr + (dims + half) * stride_sd, mask=dims < half, other=0.0).to(tl.float32)
    if BACK:  # the transpose of the rotation; where both halves of the tables are alike, the angle −θ
        sin_a, sin_b = -sin_b, -sin_a

    if block < q_blocks:
        q_ptr += batch * stride_qb + place * stride_qn
        q_out_ptr += token * num_heads * half * 2
        turn_heads(
            q_ptr, q_out_ptr, cos_a, cos_b, sin_a, sin_b, block * BLOCK_H, num_heads, half, stride_qh, stride_qd,
            BLOCK_H=BLOCK_H, BLOCK_D=BLOCK_D,
        )  # fmt: skip
    else:
        k_ptr += batch * stride_kb + place * stride_kn
        k_out_ptr += token * num_kv_heads * half * 2
        turn_heads(
            k_ptr, k_out_ptr, cos_a, cos_b, sin_a, sin_b, (block - q_blocks) * BLOCK_H, num_kv_heads, half,
            stride_kh, stride_kd, BLOCK_H=BLOCK_H, BLOCK_D=BLOCK_D,
        )  # fmt: skip


@triton.jit
def turn_heads(  # type: ignore[no-untyped-def]
    x_ptr,
    out_ptr,
    cos_a,
    cos_b,
    sin_a,
    sin_b,
    first_head,
    num_heads,
    half,
    stride_h,
    stride_d,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Heads first_head … of one token: out contiguous (heads, 2 · half)."""
    heads = first_head + tl.arange(0, BLOCK_H)
    dims = tl.arange(0, BLOCK_D)
    inside = (heads < num_heads)[:, None] & (dims < half)[None, :]
    places = heads[:, None].to(tl.int64) * stride_h + dims[None, :] * stride_d
    a = tl.load(x_ptr + places, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + places + half * stride_d, mask=inside, other=0.0).to(tl.float32)
    results = out_ptr + heads[:, None] * half * 2 + dims[None, :]
    turned_a = a * cos_a[None, :] - b * sin_a[None, :]
    turned_b = b * cos_b[None, :] + a * sin_b[None, :]
    tl.store(results, turned_a.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(results + half, turned_b.to(out_ptr.dtype.element_ty), mask=inside)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q and k turned by position, in one launch; differentiable once in q and k.

    q (..., num_heads, head_dim), k (..., num_kv_heads, head_dim)  the same leading axes; float32, float16 or bfloat16
                  on one GPU (or the CPU where Triton interprets). Of any strides, with up to two leading axes; more
                  are merged, which may cost a copy
    cos, sin (..., 1, head_dim)  broadcastable to q and k, as `model.rope.Rope.cos_sin` gives them: of the dtype of q
                  or of float32; no gradient flows into them

    Dimensions i and i + head_dim / 2 are a pair. Computed in float32 and rounded once (eager torch rounds three times).
    Returns contiguous tensors. Reads and writes 2 numbers for each of q and k against 10, 1 launch against 10: limited
    by memory, for a single token by the launch. Raises ValueError for tensors that don't fit together, and for tables
    that need a gradient.
    """
    check_rope(q, k, cos, sin)
    q_out, k_out = _Rope.apply(q, k, cos, sin)
    return q_out, k_out


def rotate_both(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> tuple[Tensor, Tensor]:
    """`rope_kernel` without checks; `back` is the way back."""
    outs = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    head_dim = q.shape[-1]
    cos, sin = (table.expand(*q.shape[:-2], 1, head_dim) for table in (cos, sin))
    q, k, cos, sin = (in_batches(x) for x in (q, k, cos, sin))
    (batch, seq_len, num_heads, _), num_kv_heads = q.shape, k.shape[2]
    half = head_dim // 2
    block_h, block_d = heads_a_block(max(num_heads, num_kv_heads), head_dim)
    blocks = triton.cdiv(num_heads, block_h) + triton.cdiv(num_kv_heads, block_h)
    if num_programs := batch * seq_len * blocks * (half > 0):
        with on_device(q):
            rope_kernel[(num_programs,)](
                q, k, cos, sin, *outs, seq_len, num_heads, num_kv_heads, half, *q.stride(), *k.stride(),
                cos.stride(0), cos.stride(1), cos.stride(3), sin.stride(0), sin.stride(1), sin.stride(3),
                BACK=back, BLOCK_H=block_h, BLOCK_D=block_d, num_warps=4,
            )  # fmt: skip
    return outs[0], outs[1]


def heads_a_block(num_heads: int, head_dim: int) -> tuple[int, int]:
    """(heads, pairs of a head) of a block, powers of two: all heads, if they aren't too many."""
    block_d = triton.next_power_of_2(max(head_dim // 2, 1))
    return min(triton.next_power_of_2(max(num_heads, 1)), max(PAIRS_A_BLOCK // block_d, 1)), block_d


def in_batches(x: Tensor) -> Tensor:
    """x (..., heads, dim) as (batch, seq_len, heads, dim): axes of 1 added, or leading ones merged."""
    if x.dim() <= 4:
        return x[(None,) * (4 - x.dim())]
    return x.reshape(-1 if x.numel() else 0, *x.shape[-3:])


def check_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Raise ValueError unless the kernel can turn these."""
    shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, cos, sin))
    if q.dim() < 2 or k.shape[:-2] != q.shape[:-2] or k.shape[-1:] != q.shape[-1:] or q.shape[-1] % 2:
        raise ValueError(f"expected q (..., num_heads, head_dim), k (..., num_kv_heads, head_dim), even, got {shapes}")
    wanted = (*q.shape[:-2], 1, q.shape[-1])
    for table in (cos, sin):
        fits = 2 <= table.dim() <= q.dim() and table.shape[-1] == q.shape[-1]
        if not fits or any(have not in (1, want) for have, want in zip(table.shape[::-1], wanted[::-1], strict=False)):
            raise ValueError(f"expected cos and sin (..., 1, head_dim), broadcastable to q and k, got {shapes}")
    if cos.requires_grad or sin.requires_grad:
        raise ValueError("expected cos and sin without gradients: the kernel gives none")
    check_tensors(q=q, k=k)
    check_tensors(cos=cos, sin=sin)
    if cos.device != q.device or cos.dtype not in (q.dtype, torch.float32):
        raise ValueError(f"expected cos and sin in {q.dtype} or float32 on {q.device}, got {cos.dtype} on {cos.device}")


class _Rope(torch.autograd.Function):
    """Keeps the tables."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return rotate_both(q, k, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_q: Tensor, d_k: Tensor) -> Any:
        return *rotate_both(d_q, d_k, *ctx.saved_tensors, back=True), None, None
