"""The attention kernels in the registry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.kernels import flash_builds as builds
from minillm.kernels import flash_problems as problems
from minillm.kernels.flash import flash_attention
from minillm.kernels.flash_decode import flash_decoding
from minillm.kernels.flash_unified import flash_decoding_unified
from minillm.kernels.gates import KernelEntry, Problem


def fused_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True) -> tuple[Tensor, Tensor]:
    """torch's `scaled_dot_product_attention` of as many queries as keys, or of one query. It doesn't give lse."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    is_causal = causal and q.shape[2] > 1
    out = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2), out.new_zeros(())


def fused_gradients(q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, _: Tensor) -> Sequence[Tensor]:
    """Forward and backward of `fused_attention`; a gradient of lse is left out."""
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    out, _ = fused_attention(*inputs)
    return torch.autograd.grad(out, inputs, d_out)


def unified(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """`flash_decoding_unified` without the marks of its second run."""
    out, lse, _ = flash_decoding_unified(q, k, v, **options)
    return out, lse


def prefill(dtype: torch.dtype) -> Problem:
    """8192 tokens, causal, head_dim 128, on the GPU."""
    q, k, v = (torch.randn(2, 8192, 16, 128, device="cuda", dtype=torch.float32).to(dtype) for _ in range(3))
    return Problem("2 × 8192 tokens, 16 heads of 128, causal", (q, k, v))


def prefill_with_gradients(dtype: torch.dtype) -> Problem:
    """The same, with a gradient that arrives at out."""
    problem = prefill(dtype)
    q = problem.args[0]
    return Problem(problem.name, (*problem.args, torch.randn_like(q), torch.zeros(q.shape[:3], device="cuda")))


def decode(dtype: torch.dtype) -> Problem:
    """A cache of 2 GiB in 16 bits."""
    q = torch.randn(16, 1, 32, 128, device="cuda").to(dtype)
    k, v = (torch.randn(16, 32768, 8, 128, device="cuda", dtype=dtype) for _ in range(2))
    return Problem("16 × 32768 keys, 32 heads to 8 of 128", (q, k, v))


def entries() -> Sequence[KernelEntry]:
    """Forward, backward, decoding, decoding with one maximum."""
    return [
        KernelEntry(
            "flash_attention",
            flash_attention,
            oracle=problems.exact_attention,
            problems=problems.attention_problems,
            bound=problems.attention_bound,
            builds=builds.forward_builds,
            all_builds=builds.all_forward_builds,
            vendor=fused_attention,
            speed_problem=prefill,
        ),
        KernelEntry(
            "flash_attention_gradients",
            problems.gradients_of(flash_attention),
            oracle=problems.gradients_of(problems.exact_attention),
            problems=problems.gradient_problems,
            bound=problems.gradient_bound,
            builds=builds.backward_builds,
            all_builds=builds.all_backward_builds,
            vendor=fused_gradients,
            speed_problem=prefill_with_gradients,
        ),
        KernelEntry(
            "flash_decoding",
            flash_decoding,
            oracle=problems.exact_decoding,
            problems=problems.decoding_problems,
            bound=problems.decoding_bound,
            builds=builds.decoding_builds,
            all_builds=builds.all_decoding_builds,
            vendor=fused_attention,
            speed_problem=decode,
        ),
        KernelEntry(
            "flash_decoding_unified",
            unified,
            oracle=problems.exact_decoding,
            problems=problems.decoding_problems,
            bound=problems.decoding_bound,
            builds=builds.unified_builds,
            all_builds=builds.all_unified_builds,
            vendor=fused_attention,
            speed_problem=decode,
        ),
    ]
