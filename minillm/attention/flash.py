"""The attention to call for prefill and training: FlashAttention-2, on the CPU in torch, on a GPU as a kernel."""

from __future__ import annotations

from torch import Tensor

from minillm.attention.dispatch import gpu_kernel
from minillm.attention.flash_backward import tiled_attention
from minillm.attention.flash_v2 import flash_forward_v2

TILE_NUMBERS = 2**19  # scores of a tile, all heads together: 2 MiB in float32, what lies near a core or two
SMALLEST_BLOCK, LARGEST_BLOCK = 64, 256


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    softmax_scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`naive_attention` in O(N) memory, forward and backward; same arguments, results and errors.

    q (batch, q_len, num_heads, k_head_dim), k and v (batch, k_len, num_kv_heads, …). Returns out (batch, q_len,
    num_heads, v_head_dim) and lse (batch, q_len, num_heads). Differentiable in out and lse. CUDA tensors go to
    `minillm.kernels.flash_attention` if that is installed.
    """
    if (kernel := gpu_kernel("flash_attention", q)) is not None:
        return kernel(q, k, v, causal=causal, window=window, softmax_scale=softmax_scale)
    block = cpu_block(q.shape[0] * q.shape[2]) if q.dim() == 4 else SMALLEST_BLOCK
    return tiled_attention(
        flash_forward_v2,
        q,
        k,
        v,
        causal=causal,
        window=window,
        softmax_scale=softmax_scale,
        mask=None,
        block_q=block,
        block_k=block,
    )


def cpu_block(num_matrices: int) -> int:
    """Rows and columns of the tiles on a CPU, for batch · num_heads score matrices: a power of two.

    Large tiles keep the matrix products efficient and the interpreter idle; the scores of a tile should stay in the
    cache between the product, the exp and the next product. All matrices advance together, so they share it.
    """
    block = LARGEST_BLOCK
    while block > SMALLEST_BLOCK and num_matrices * block * block > TILE_NUMBERS:
        block //= 2
    return block
