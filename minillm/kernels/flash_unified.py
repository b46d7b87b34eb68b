"""FlashDecoding++ on a GPU: one maximum for all scores, chosen in advance, and a second run where it doesn't fit.

    1  splits, top = φ       no maximum over a tile, no repair of acc and total: products and exps alone
    2  merge, check          redo[row] = whether lse − φ left the band, or a sum overflowed
    3  splits, exactly       only the programs that find a row to redo; the others end at once
    4  merge                 only the rows to redo

All four are launched whatever happens, so that the host needn't look and a CUDA graph can hold them. Hong et al. 2023
(arXiv:2311.01282), §3; why a band of sums, and which: `minillm.attention.unified_max`. Weights aren't near 1 here: in
float16 their products are tf32's, which has float16's digits and float32's range. The parts are merged like others: of
the synchronised update that the paper saves, what is left is one maximum over the splits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minillm.attention.unified_max import UnifiedResult, safe_band
from minillm.kernels.flash_decode import DecodeStep, check_decoding


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
    """`minillm.attention.flash_decoding_unified` on a GPU: same arguments and results.

    Tensors as of `flash_decode.flash_decoding`. phi is in the unit of the scaled scores; band (low, high) None =
    the safe one of float32, which is also the widest allowed. Raises ValueError if a gradient would be needed, for a
    phi that isn't finite, for a band that is empty or too wide, and for what `flash_decoding` refuses.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise ValueError("flash_decoding_unified is for inference: call it under torch.no_grad(), or flash_decoding")
    lengths = check_decoding(q, k, v, num_splits=num_splits, seq_lens=seq_lens)
    widest = safe_band(torch.float32)
    low, high = band or widest
    if not math.isfinite(phi) or not widest[0] <= low < high <= widest[1]:
        raise ValueError(
            f"expected a finite phi and a band within ({widest[0]:.1f}, {widest[1]:.1f}), got phi={phi}, band={band}"
        )
    step = DecodeStep(q, k, v, lengths, num_splits=num_splits, softmax_scale=softmax_scale)
    step.attend(fixed_top=phi)
    step.merge(band=(phi + low, phi + high))
    step.attend(only_redo=True)
    step.merge(only_redo=True)
    # A row without keys is found, too, and stays what it was.
    fell_back = step.redo.bool() & (step.lse > -math.inf)
    return UnifiedResult(step.out, step.lse.transpose(1, 2), fell_back.transpose(1, 2))
