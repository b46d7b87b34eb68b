"""C = A B on a GPU: which of the kernels makes it."""

from __future__ import annotations

from torch import Tensor

from minillm.kernels.few_rows import few_row_matmul
from minillm.kernels.gemm import tile_matmul
from minillm.kernels.gemm_persistent import can_describe, persistent_matmul
from minillm.kernels.gemm_tiles import FEW_ROWS
from minillm.kernels.launch import capability, num_sms

HOPPER = 90
PERSISTENT_TILE = 128  # C's edge in a tile of the persistent kernel


def matmul(a: Tensor, b: Tensor, *, precision: str = "ieee") -> Tensor:
    """C (m, n) of a (m, k) and b (k, n): float32, float16 or bfloat16 CUDA tensors of any strides.

    precision  of float32 products: "ieee", or "tf32" (10 bits of each factor, tensor cores). Sums are float32

    Up to 16 rows go to `few_row_matmul`; on Hopper, products on tensor cores with a tile for every SM go to
    `persistent_matmul`, if the copy engine can address them; the rest to `tile_matmul`. Raises ValueError for tensors
    that don't fit together, and for CPU tensors unless Triton interprets (TRITON_INTERPRET=1).
    """
    if a.dim() == 2 and a.shape[0] <= FEW_ROWS:
        return few_row_matmul(a, b, precision=precision)
    uses_tensor_cores = a.element_size() < 4 or precision == "tf32"
    if a.is_cuda and capability(a.device) >= HOPPER and uses_tensor_cores and fills_the_gpu(a, b):
        return persistent_matmul(a, b, precision=precision)
    return tile_matmul(a, b, precision=precision)


def fills_the_gpu(a: Tensor, b: Tensor) -> bool:
    """Whether C has a tile for each SM, and A, B and C can be described to the copy engine."""
    if a.dim() != 2 or b.dim() != 2 or not (can_describe(a) and can_describe(b)):
        return False
    tiles = -(-a.shape[0] // PERSISTENT_TILE) * -(-b.shape[1] // PERSISTENT_TILE)
    return tiles >= num_sms(a.device) and b.shape[1] * b.element_size() % 16 == 0
