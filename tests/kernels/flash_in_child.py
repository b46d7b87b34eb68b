"""What the attention tests ask child processes to run: it must be importable there."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels import flash_forward as forward
from minillm.kernels.flash import flash_attention
from minillm.kernels.flash_backward import flash_backward
from minillm.kernels.flash_decode import DecodeStep, flash_decoding
from minillm.kernels.flash_tiles import FlashTile
from minillm.kernels.flash_walk import key_runs, query_runs

Runs = tuple[int, int, int, int]


@triton.jit
def _runs_kernel(  # type: ignore[no-untyped-def]
    out_ptr,
    q_len,
    k_len,
    window,
    BY_KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    block = tl.program_id(0)
    if BY_KEYS:
        a, b, c, d = query_runs(block * BLOCK_K, q_len, k_len, window, CAUSAL, HAS_WINDOW, BLOCK_Q, BLOCK_K)
    else:
        a, b, c, d = key_runs(block * BLOCK_Q, q_len, k_len, window, CAUSAL, HAS_WINDOW, BLOCK_Q, BLOCK_K)
    tl.store(out_ptr + 4 * block, a)
    tl.store(out_ptr + 4 * block + 1, b)
    tl.store(out_ptr + 4 * block + 2, c)
    tl.store(out_ptr + 4 * block + 3, d)


def runs(
    q_len: int, k_len: int, causal: bool, window: int | None, block_q: int, block_k: int, *, by_keys: bool
) -> list[Runs]:
    """`key_runs` of each block of queries, or `query_runs` of each block of keys."""
    num_blocks = triton.cdiv(k_len, block_k) if by_keys else triton.cdiv(q_len, block_q)
    out = torch.full((num_blocks, 4), -1, dtype=torch.int32)
    _runs_kernel[(num_blocks,)](
        out,
        q_len,
        k_len,
        window or 0,
        BY_KEYS=by_keys,
        CAUSAL=causal,
        HAS_WINDOW=window is not None,
        BLOCK_Q=block_q,
        BLOCK_K=block_k,
    )
    return [(a, b, c, d) for a, b, c, d in out.tolist()]


def attention_and_gradients(
    q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, d_lse: Tensor, tile: FlashTile, **options: Any
) -> tuple[Tensor, ...]:
    """(out, lse, dq, dk, dv) by the kernels with one tile for all."""
    out, lse = forward.flash_forward(q, k, v, tile=tile, **options)
    return out, lse, *flash_backward(q, k, v, out, lse, d_out, d_lse, tiles=(tile, tile), **options)


def tuned_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, int]:
    """`flash_attention` through the autotuner as on a GPU, and how many tiles it tried. The clock prefers the last."""
    tried = 0

    def clock(call: Any, quantiles: Any) -> list[float]:
        nonlocal tried
        call()
        tried += 1
        return [1.0 / tried] * 3

    tune = triton.autotune

    def with_clock(*args: Any, **kwargs: Any) -> Any:
        return tune(*args, **kwargs, do_bench=clock)

    with (
        mock.patch.object(forward, "is_interpreting", lambda: False),
        mock.patch.object(triton, "autotune", with_clock),
    ):
        return flash_attention(q, k, v)[0], tried


def decoding_gradients(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, ...]:
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    out, lse = flash_decoding(*inputs, **options)
    return torch.autograd.grad(out.sin().sum() + lse.sin().sum(), inputs)


def decode_steps(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, num_splits: int) -> tuple[Tensor, ...]:
    """(out, lse, part_lse) for lengths that nobody has checked, as if they were read on a GPU only."""
    step = DecodeStep(q, k, v, lengths, num_splits=num_splits, softmax_scale=None)
    step.attend()
    step.merge()
    return step.out, step.lse, step.part_lse


def second_run(q: Tensor, k: Tensor, v: Tensor, redo: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(part_lse, lse, out) of a second run for some rows, where everything was 7 before."""
    lengths = torch.full((k.shape[0],), k.shape[1], dtype=torch.int32)
    step = DecodeStep(q, k, v, lengths, num_splits=2, softmax_scale=None)
    for buffer in (step.part_lse, step.part_out, step.lse, step.out):
        buffer.fill_(7.0)
    step.redo.copy_(redo)
    step.attend(only_redo=True)
    step.merge(only_redo=True)
    return step.part_lse, step.lse, step.out
