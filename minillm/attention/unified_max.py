"""FlashDecoding++: one maximum, chosen in advance, in place of the maximum of each row.

Hong et al. 2023 (arXiv:2311.01282), §3. Softmax stays the same whatever constant φ is subtracted from the scores; the
row's maximum is only the safest choice. With one φ for all splits, the sums of the splits simply add up, in any order:

    split s:   num_s = Σ exp(x_i − φ) · v_i        den_s = Σ exp(x_i − φ)
    at the end:   out = Σ num_s / Σ den_s          lse = φ + log Σ den_s

No maximum is searched, no split waits for another, nothing is rescaled (on an A100 that update takes 18.8 % of the
attention time of Llama-2-7B at 1,024 tokens, says the paper). The price: far above φ exp overflows, far below it
digits are lost. Both show in log Σ den = lse − φ, one number a row. A row where it leaves the safe band (low, high) is
computed again with maxima, exactly as `flash_decoding` does.

The paper tests every score against its band; a row is as safe as its sum, since a score far below the others weighs
nothing, so here the sum is tested: one comparison a row, and a hidden or irrelevant key causes no second run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minillm.attention.dispatch import gpu_kernel
from minillm.attention.flash_decoding import (
    check_decoding,
    decode_sequence,
    pack_rows,
    split_scores,
    unpack_rows,
)
from minillm.attention.splits import split_keys

ROOM = math.log(2.0**20)  # for a million keys whose weights are lost below, for values of a million above


class UnifiedResult(NamedTuple):
    """out and lse as of any attention, and which rows φ didn't fit: bool (batch, q_len, num_heads).

    All rows that share a KV head with such a row are computed again in the same tile.
    """

    out: Tensor
    lse: Tensor
    fell_back: Tensor


def flash_decoding_unified(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    phi: float = 0.0,
    band: tuple[float, float] | None = None,
    num_splits: int | None = None,
    softmax_scale: float | None = None,
    seq_lens: Tensor | Sequence[int] | None = None,
) -> UnifiedResult:
    """`flash_decoding` with one maximum φ for all splits, and an exact second run for the rows where φ doesn't fit.

    phi    in the unit of the scaled scores; see `choose_phi`
    band   (low, high): a row is kept if low < lse − phi < high; None = `safe_band` of the accumulating dtype, which
           is also the widest allowed

    Everything else as in `flash_decoding`, the kernel for CUDA tensors included. For inference: raises ValueError if
    a gradient would be needed, and for a phi that isn't finite or a band that is empty or too wide.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise ValueError("flash_decoding_unified is for inference: call it under torch.no_grad(), or flash_decoding")
    if (kernel := gpu_kernel("flash_decoding_unified", q)) is not None:
        result: UnifiedResult = kernel(
            q, k, v, phi=phi, band=band, num_splits=num_splits, softmax_scale=softmax_scale, seq_lens=seq_lens
        )
        return result
    lengths, num_splits = check_decoding(q, k, v, num_splits=num_splits, seq_lens=seq_lens)
    low, high = _checked_band(phi, band, torch.promote_types(q.dtype, torch.float32))
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    q_len, packed = q.shape[1], pack_rows(q, k.shape[2])  # (batch, num_kv_heads, group · q_len, dim)
    out = packed.new_zeros(*packed.shape[:3], v.shape[-1])
    lse = packed.new_zeros(packed.shape[:3])
    fell_back = torch.zeros_like(lse, dtype=torch.bool)
    for b, seq_len in enumerate(lengths):
        rows, k_b, v_b = packed[b], k[b, :seq_len], v[b, :seq_len]
        num, den = out[b], lse[b]  # sums of all splits, which need no order; turned into out and lse in place
        for keys in split_keys(seq_len, num_splits):
            weights = torch.exp(split_scores(rows, k_b, keys, q_len, scale) - phi)
            num += torch.bmm(weights, v_b[keys].transpose(0, 1).to(num.dtype))
            den += weights.sum(dim=-1)

        log_sum = den.log()
        fits = (log_sum > low) & (log_sum < high) & num.isfinite().all(dim=-1)
        num_visible = seq_len - q_len + 1 + torch.arange(rows.shape[1], device=q.device) % q_len
        sees_keys = num_visible > 0
        num.div_(den.unsqueeze(-1)).masked_fill_(~sees_keys.unsqueeze(-1), 0.0)
        den.copy_(log_sum + phi).masked_fill_(~sees_keys, -math.inf)

        fell_back[b] = ~fits & sees_keys
        heads = fell_back[b].any(dim=-1).nonzero().squeeze(-1)  # KV heads with a row to compute again
        if heads.numel():
            num[heads], den[heads] = decode_sequence(
                rows[heads], k_b[:, heads], v_b[:, heads], q_len, num_splits, scale
            )
    out, lse, fell_back = (unpack_rows(x, *q.shape[1:3]) for x in (out, lse.unsqueeze(-1), fell_back.unsqueeze(-1)))
    return UnifiedResult(out.to(q.dtype), lse.squeeze(-1), fell_back.squeeze(-1))


def safe_band(dtype: torch.dtype) -> tuple[float, float]:
    """(low, high) of lse − φ within which sums in `dtype` lose nothing: about (−57, 75) for float32.

    Above, exp and its sums must stay finite, times values of up to a million. Below, weights under the smallest normal
    number are lost: even a million of them must stay below the rounding of the sum.
    """
    info = torch.finfo(dtype)
    return math.log(info.tiny) - math.log(info.eps) + ROOM, math.log(info.max) - ROOM


def choose_phi(observed_lse: Tensor, *, band: tuple[float, float] | None = None) -> float:
    """φ from the lse of attention that was seen: puts their median into the middle of the band.

    observed_lse   of any shape, of a run of the model on typical text; rows without keys (−inf) are left out
    band           None = `safe_band(torch.float32)`

    Returns 0.0 if nothing was seen. What share of the rows then fits: `share_in_band`.
    """
    low, high = band or safe_band(torch.float32)
    seen = observed_lse[observed_lse.isfinite()]
    return seen.double().median().item() - (low + high) / 2 if seen.numel() else 0.0


def share_in_band(observed_lse: Tensor, phi: float, *, band: tuple[float, float] | None = None) -> float:
    """Share of the observed rows that need no second run. The method pays while it is close to 1."""
    low, high = band or safe_band(torch.float32)
    seen = observed_lse[observed_lse.isfinite()] - phi
    return ((seen > low) & (seen < high)).double().mean().item() if seen.numel() else 1.0


def _checked_band(phi: float, band: tuple[float, float] | None, dtype: torch.dtype) -> tuple[float, float]:
    widest = safe_band(dtype)
    low, high = band or widest
    if not math.isfinite(phi) or not widest[0] <= low < high <= widest[1]:
        raise ValueError(
            f"expected a finite phi and a band within ({widest[0]:.1f}, {widest[1]:.1f}), which is safe for sums in "
            f"{dtype}; got phi={phi}, band=({low}, {high})"
        )
    return low, high
