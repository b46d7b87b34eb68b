"""Kernels for GPUs: thread by thread in CUDA-Python, tile by tile in Triton, and the gates that they pass.

Triton (`pip install minillm[kernels]`, Linux) is imported at the first use of a Triton kernel; without a GPU its
kernels run on CPU tensors if TRITON_INTERPRET=1 is set before.

Reading order: `simt` (matrix products, thread level); `order`, `gemm_tiles`, `gemm` (tiles on tensor cores),
`gemm_persistent`, `few_rows`, `dispatch` (`matmul`, which chooses among them), with `launch` under them; attention:
`flash_walk` (which tiles are visited), `flash_tiles`, `flash_forward`, `flash_backward` with `flash_dk_dv` and
`flash_dq`, `flash` (the differentiable function); decoding: `flash_split_kernels`, `flash_decode`, `flash_unified`;
what stands between the products: `fused_oracles`, `fused_rows`, `fused_norm` with `fused_norm_backward`, `fused_rope`,
`fused_swiglu`, `fused_softmax`, `fused_loss`; then the gates: `gates`, `build`, `processes`, `registry` with
`gemm_entries`, `flash_entries` and `fused_entries`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minillm.kernels.dispatch import matmul
    from minillm.kernels.few_rows import few_row_matmul
    from minillm.kernels.flash import flash_attention
    from minillm.kernels.flash_decode import flash_decoding
    from minillm.kernels.flash_unified import flash_decoding_unified
    from minillm.kernels.fused_loss import cross_entropy
    from minillm.kernels.fused_norm import add_rms_norm, rms_norm
    from minillm.kernels.fused_rope import rope
    from minillm.kernels.fused_softmax import softmax
    from minillm.kernels.fused_swiglu import swiglu, swiglu_halves
    from minillm.kernels.gemm import tile_matmul
    from minillm.kernels.gemm_persistent import persistent_matmul

_MODULE_OF = {
    "add_rms_norm": "minillm.kernels.fused_norm",
    "cross_entropy": "minillm.kernels.fused_loss",
    "few_row_matmul": "minillm.kernels.few_rows",
    "flash_attention": "minillm.kernels.flash",
    "flash_decoding": "minillm.kernels.flash_decode",
    "flash_decoding_unified": "minillm.kernels.flash_unified",
    "matmul": "minillm.kernels.dispatch",
    "persistent_matmul": "minillm.kernels.gemm_persistent",
    "rms_norm": "minillm.kernels.fused_norm",
    "rope": "minillm.kernels.fused_rope",
    "softmax": "minillm.kernels.fused_softmax",
    "swiglu": "minillm.kernels.fused_swiglu",
    "swiglu_halves": "minillm.kernels.fused_swiglu",
    "tile_matmul": "minillm.kernels.gemm",
}

__all__ = [
    "add_rms_norm",
    "cross_entropy",
    "few_row_matmul",
    "flash_attention",
    "flash_decoding",
    "flash_decoding_unified",
    "matmul",
    "persistent_matmul",
    "rms_norm",
    "rope",
    "softmax",
    "swiglu",
    "swiglu_halves",
    "tile_matmul",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_MODULE_OF[name]), name)
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("triton"):
            raise
        raise ValueError(f"{name} needs Triton (Linux only): pip install 'minillm[kernels]'") from error
