"""Cross-entropy without probabilities in memory, and its gradient (Triton).

    logits of a row ►                                 forward: a program a row, a block at a time
    ┌───────┬───────┬───────┬───┐                       top, total, online (`fused_softmax`)
    │ ▓▓▓ ► │     · │       │   │                       lse = top + log(total)         one number a row, kept
    └───────┴─────┼─┴───────┴───┘                       loss = lse − logits[target]
                  target                              backward: a program a block of a row
                                                        (exp(x − lse) − [column = target]) · d_loss

                                    launches    numbers read + written, for N logits     memory besides the logits
    torch, eager: forward               2        2 N    log-probabilities are written    N
    torch, eager: backward              3        4 N    zeros, scatter; softmax's own    2 N more
    fused: forward                      1        1 N                                     2 a row
    fused: backward                     1        2 N                                     N, in place 0

The logits of 8192 tokens and a vocabulary of 128256 are 2 GiB in 16 bits, so that N is what decides about the batch
that fits. Milakov and Gimelshein 2018 (arXiv:1805.02867), algorithm 3. Gradients over the logits, as `in_place` writes
them, are an idea of Liger Kernel (Hsu et al. 2024, arXiv:2410.10989; src/liger_kernel/ops/cross_entropy.py), which
writes them in the forward pass already and later multiplies by the gradient that arrives. Its next step, the product
with the lm_head and the loss in pieces of the batch, so that all logits never exist together, is not made here.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from minillm.kernels.fused_oracles import IGNORED
from minillm.kernels.fused_rows import as_rows, row_block, warps_for
from minillm.kernels.fused_softmax import add_to_total
from minillm.kernels.launch import check_tensors, on_device

LARGEST_BLOCK = 4096  # of the vocabulary at a time


@triton.jit
def loss_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    targets_ptr,
    loss_ptr,
    lse_ptr,
    vocab_size,
    ignore_index,
    stride_xr,
    stride_xc,
    BLOCK: tl.constexpr,
):
    """loss and lse (rows,) float32 of one row; targets (rows,) contiguous. Grid: (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride_xr
    columns = tl.arange(0, BLOCK).to(tl.int64)
    top = tl.full((), float("-inf"), dtype=tl.float32)
    total = tl.full((), 0.0, dtype=tl.float32)
    for first in range(0, vocab_size, BLOCK):
        inside = first + columns < vocab_size
        x = tl.load(logits_ptr + (first + columns) * stride_xc, mask=inside, other=float("-inf")).to(tl.float32)
        top, total = add_to_total(top, total, x)
    is_empty = top == float("-inf")
    lse = tl.where(is_empty, float("-inf"), top + tl.log(total))

    target = tl.load(targets_ptr + row).to(tl.int64)
    exists = (target >= 0) & (target < vocab_size)  # else memory that is no logit would be read
    picked = tl.load(logits_ptr + target * stride_xc, mask=exists, other=float("nan")).to(tl.float32)
    loss = tl.where(is_empty & exists, float("inf"), lse - picked)
    tl.store(lse_ptr + row, lse)
    tl.store(loss_ptr + row, tl.where(target == ignore_index, 0.0, loss))


@triton.jit
def loss_backward_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    targets_ptr,
    lse_ptr,
    d_loss_ptr,
    d_lse_ptr,
    d_logits_ptr,
    vocab_size,
    ignore_index,
    stride_xr,
    stride_xc,
    stride_dr,
    BLOCK: tl.constexpr,
):
    """A block of a row of d_logits, which may be the logits' own memory: each number is read by its writer alone.

    Grid: (rows · blocks of the vocabulary,).
    """
    blocks = tl.cdiv(vocab_size, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    columns = (tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = columns < vocab_size
    target = tl.load(targets_ptr + row).to(tl.int64)
    lse = tl.load(lse_ptr + row)
    d_loss = tl.where(target == ignore_index, 0.0, tl.load(d_loss_ptr + row))
    d_lse = tl.load(d_lse_ptr + row)
    x = tl.load(logits_ptr + row * stride_xr + columns * stride_xc, mask=inside, other=0.0).to(tl.float32)
    d_logits = tl.exp(x - lse) * (d_loss + d_lse) - tl.where(columns == target, d_loss, 0.0)
    d_logits = tl.where(lse == float("-inf"), 0.0, d_logits)  # a row of −inf alone: nothing to learn from
    tl.store(d_logits_ptr + row * stride_dr + columns, d_logits.to(d_logits_ptr.dtype.element_ty), mask=inside)


def cross_entropy(
    logits: Tensor, targets: Tensor, *, ignore_index: int = IGNORED, in_place: bool = False
) -> tuple[Tensor, Tensor]:
    """(loss, lse) of each row, both float32: −log softmax(logits)[target], and log(sum(exp(logits))), natural.

    logits   (..., vocab_size)  float32, float16 or bfloat16 on one GPU (or the CPU where Triton interprets), of any
             strides
    targets  (...) integers on the same device. `ignore_index` gives a loss of 0 and no gradient but that of lse
    in_place write the gradient over the logits, which must be contiguous and no leaf. Saves numel · itemsize bytes of
             memory; time stays. The logits are gone after the backward pass: autograd raises RuntimeError if another
             node had kept them for its own (or if this backward runs twice), but whoever merely holds the tensor finds
             gradients in it

    Differentiable once in both results. A row of −inf alone has an infinite loss, lse −inf, and no gradient; a target
    that is no number of a logit and not ignored, a loss of NaN, since a check would make the host wait. Reads and
    writes 1 · numel · itemsize bytes forward and 2 backward against 2 and 4 in torch, 2 launches against 5: limited by
    memory. Raises ValueError for tensors that don't fit together, an empty vocabulary, and logits that can't be
    overwritten.
    """
    if logits.dim() == 0 or logits.shape[-1] == 0 or targets.shape != logits.shape[:-1]:
        shapes = f"{tuple(logits.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"expected logits (..., vocab_size), not empty, and targets (...), got {shapes}")
    if targets.dtype not in (torch.int32, torch.int64) or targets.device != logits.device:
        expected = f"int32 or int64 targets on {logits.device}"
        raise ValueError(f"expected {expected}, got {targets.dtype} on {targets.device}")
    check_tensors(logits=logits)
    if in_place and (not logits.is_contiguous() or (logits.is_leaf and logits.requires_grad)):
        raise ValueError("in_place: expected contiguous logits that another function made, got a view or a leaf")
    loss, lse = _CrossEntropy.apply(logits, targets, ignore_index, in_place)
    return loss, lse


class _CrossEntropy(torch.autograd.Function):
    """Keeps the logits and a number a row."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, ignore_index: int, in_place: bool) -> tuple[Tensor, Tensor]:
        targets = targets.contiguous()
        loss, lse = (torch.empty(targets.shape, dtype=torch.float32, device=logits.device) for _ in range(2))
        if num_rows := loss.numel():
            rows, vocab_size = as_rows(logits), logits.shape[-1]
            block = row_block(vocab_size, largest=LARGEST_BLOCK)
            with on_device(logits):
                loss_kernel[(num_rows,)](
                    rows, targets, loss, lse, vocab_size, ignore_index, *rows.stride(), BLOCK=block,
                    num_warps=warps_for(block),
                )  # fmt: skip
        ctx.save_for_backward(logits, targets, lse)
        ctx.ignore_index, ctx.in_place = ignore_index, in_place
        return loss, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor, d_lse: Tensor) -> Any:
        logits, targets, lse = ctx.saved_tensors
        d_loss, d_lse = d_loss.contiguous(), d_lse.contiguous()
        rows, vocab_size = as_rows(logits), logits.shape[-1]
        d_logits = (
            logits.detach() if ctx.in_place else torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        )
        if num_rows := targets.numel():
            block = row_block(vocab_size, largest=LARGEST_BLOCK)
            with on_device(logits):
                loss_backward_kernel[(num_rows * triton.cdiv(vocab_size, block),)](
                    rows, targets, lse, d_loss, d_lse, d_logits, vocab_size, ctx.ignore_index, *rows.stride(),
                    vocab_size, BLOCK=block, num_warps=warps_for(block),
                )  # fmt: skip
        if ctx.in_place:
            torch.autograd.graph.increment_version(logits)  # autograd doesn't see what a kernel writes
        return d_logits, None, None, None
