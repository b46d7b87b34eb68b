"""Count the floating-point operations of matrix products while a function runs.

torch's own counter, taught the fused attention of the CPU, which it would otherwise count as nothing. Only products
are counted (2 FLOPs for a multiplication and its addition); norms, activations and softmax are left out, as is usual.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def count_flops(call: Callable[[], object]) -> int:
    """FLOPs of the matrix products in `call()`, attention included.

    Attention counts every pair of a query and a key, those hidden by a mask too: 2 · q_len · k_len · (k_head_dim +
    v_head_dim) for each query head. Products inside numba kernels are not seen.
    """
    cpu_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={cpu_attention: _attention_flops}) as counter:
        call()
    return counter.get_total_flops()


def _attention_flops(
    q_shape: tuple[int, ...],
    k_shape: tuple[int, ...],
    v_shape: tuple[int, ...],
    *args: Any,
    out_shape: Any = None,
    **kwargs: Any,
) -> int:
    # k and v may come with fewer heads than q (grouped queries); each query head multiplies all the same.
    batch, num_heads = q_shape[:2]
    return sdpa_flop_count(q_shape, (batch, num_heads, *k_shape[2:]), (batch, num_heads, *v_shape[2:]))
