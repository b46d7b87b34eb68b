"""The kernels between the products for the build gate: a sample for every test run, and every block and pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.kernels.build import Build
from minillm.kernels.fused_loss import LARGEST_BLOCK as VOCAB_BLOCK
from minillm.kernels.fused_loss import loss_backward_kernel, loss_kernel
from minillm.kernels.fused_norm import norm_kernel
from minillm.kernels.fused_norm_backward import (
    LARGEST_SIZE,
    PART_COLUMNS,
    PART_ROWS,
    norm_backward_kernel,
    sum_parts_kernel,
)
from minillm.kernels.fused_rope import heads_a_block, rope_kernel
from minillm.kernels.fused_rows import warps_for
from minillm.kernels.fused_softmax import BLOCK_OF_LONG_ROW, softmax_backward_kernel, softmax_kernel
from minillm.kernels.fused_softmax import LARGEST_BLOCK as SOFTMAX_BLOCK
from minillm.kernels.fused_swiglu import LARGEST_BLOCK as SWIGLU_BLOCK
from minillm.kernels.fused_swiglu import swiglu_backward_kernel, swiglu_kernel

FP32, FP16, BF16 = "fp32", "fp16", "bf16"
DTYPES = (FP32, FP16, BF16)
FLOATS = frozenset({"inv_rms_ptr", "parts_ptr", "loss_ptr", "lse_ptr", "d_loss_ptr", "d_lse_ptr"})  # float32
ONES = frozenset({"stride_xc", "stride_rc", "stride_hc", "stride_yc", "stride_gc", "stride_uc", "stride_w"})
ROPE_ONES = frozenset({"stride_qd", "stride_kd", "stride_cd", "stride_sd"})


def row_build(kernel: Any, dtype: str, block: int, **constants: Any) -> Build:
    """A kernel of one block of a row, for tensors whose last dimension is contiguous."""
    return _build(kernel, dtype, {"BLOCK": block, **constants}, warps_for(block), ONES)


def sum_build(dtype: str) -> Build:
    """`sum_parts_kernel`."""
    return _build(sum_parts_kernel, dtype, {"BLOCK_R": PART_ROWS, "BLOCK_C": PART_COLUMNS}, 4, ONES)


def rope_build(dtype: str, head_dim: int, num_heads: int, *, back: bool = False) -> Build:
    """`rope_kernel` for up to `num_heads` heads."""
    block_h, block_d = heads_a_block(num_heads, head_dim)
    return _build(rope_kernel, dtype, {"BACK": back, "BLOCK_H": block_h, "BLOCK_D": block_d}, 4, ROPE_ONES)


def _build(kernel: Any, dtype: str, constants: Mapping[str, Any], num_warps: int, ones: frozenset[str]) -> Build:
    constants = {**constants, **{name: 1 for name in kernel.arg_names if name in ones}}

    def kind(name: str) -> str:
        if name == "targets_ptr":
            return "*i64"
        if name.endswith("_ptr"):
            return f"*{FP32 if name in FLOATS else dtype}"
        return FP32 if name == "eps" else "i32"

    settings = " ".join(f"{name}={value}" for name, value in constants.items() if name.isupper())
    return Build(
        label=f"{kernel.fn.__name__} {dtype} {settings}",
        kernel=kernel,
        signature={name: kind(name) for name in kernel.arg_names if name not in constants},
        constants=constants,
        num_warps=num_warps,
    )


def blocks_up_to(largest: int) -> list[int]:
    """16, 128, 1024 … and the largest."""
    return sorted({*(16 * 8**step for step in range(5) if 16 * 8**step < largest), largest})


# ---- samples, and everything


def norm_builds() -> list[Build]:
    """The hidden sizes of the course's own model and of large ones, with and without the addition."""
    return [
        row_build(norm_kernel, BF16, 4096, HAS_RESIDUAL=False),
        row_build(norm_kernel, FP16, 256, HAS_RESIDUAL=True),
        row_build(norm_kernel, FP32, LARGEST_SIZE, HAS_RESIDUAL=True),
    ]


def all_norm_builds() -> list[Build]:
    """Every dtype, blocks from the smallest to the largest."""
    return [
        row_build(norm_kernel, dtype, block, HAS_RESIDUAL=has_residual)
        for dtype in DTYPES
        for block in blocks_up_to(LARGEST_SIZE)
        for has_residual in (False, True)
    ]


def norm_gradient_builds() -> list[Build]:
    """Both launches."""
    return [
        row_build(norm_backward_kernel, BF16, 4096, HAS_RESIDUAL=True),
        row_build(norm_backward_kernel, FP32, LARGEST_SIZE, HAS_RESIDUAL=True),
        sum_build(BF16),
    ]


def all_norm_gradient_builds() -> list[Build]:
    """Every dtype, blocks from the smallest to the largest."""
    rows = [
        row_build(norm_backward_kernel, dtype, block, HAS_RESIDUAL=has_residual)
        for dtype in DTYPES
        for block in blocks_up_to(LARGEST_SIZE)
        for has_residual in (False, True)
    ]
    return rows + [sum_build(dtype) for dtype in DTYPES]


def rope_builds() -> list[Build]:
    """Head dims of 64 and 128, both directions."""
    return [rope_build(BF16, 128, 32), rope_build(FP16, 64, 8, back=True), rope_build(FP32, 128, 32)]


def all_rope_builds() -> list[Build]:
    """Every dtype, head dims up to 256, one head and many."""
    return [
        rope_build(dtype, head_dim, num_heads, back=back)
        for dtype in DTYPES
        for head_dim in (2, 64, 96, 128, 256)
        for num_heads in (1, 64)
        for back in (False, True)
    ]


def swiglu_builds() -> list[Build]:
    """Forward and backward."""
    return [
        row_build(swiglu_kernel, BF16, SWIGLU_BLOCK),
        row_build(swiglu_backward_kernel, FP16, SWIGLU_BLOCK),
        row_build(swiglu_backward_kernel, FP32, SWIGLU_BLOCK),
    ]


def all_swiglu_builds() -> list[Build]:
    """Every dtype and a range of blocks."""
    return [
        row_build(kernel, dtype, block)
        for kernel in (swiglu_kernel, swiglu_backward_kernel)
        for dtype in DTYPES
        for block in blocks_up_to(SWIGLU_BLOCK)
    ]


def softmax_builds() -> list[Build]:
    """Rows in one block and longer ones, forward and backward."""
    return [
        row_build(softmax_kernel, BF16, 1024, IN_ONE_BLOCK=True),
        row_build(softmax_kernel, FP32, SOFTMAX_BLOCK, IN_ONE_BLOCK=True),
        row_build(softmax_kernel, BF16, BLOCK_OF_LONG_ROW, IN_ONE_BLOCK=False),
        row_build(softmax_backward_kernel, FP32, SOFTMAX_BLOCK, IN_ONE_BLOCK=True),
        row_build(softmax_backward_kernel, FP16, BLOCK_OF_LONG_ROW, IN_ONE_BLOCK=False),
    ]


def all_softmax_builds() -> list[Build]:
    """Every dtype, a range of blocks, long rows."""
    passes = [*((block, True) for block in blocks_up_to(SOFTMAX_BLOCK)), (BLOCK_OF_LONG_ROW, False)]
    return [
        row_build(kernel, dtype, block, IN_ONE_BLOCK=in_one_block)
        for kernel in (softmax_kernel, softmax_backward_kernel)
        for dtype in DTYPES
        for block, in_one_block in passes
    ]


def loss_builds() -> list[Build]:
    """Both passes over a large vocabulary."""
    return [
        row_build(loss_kernel, BF16, VOCAB_BLOCK),
        row_build(loss_kernel, FP32, 256),
        row_build(loss_backward_kernel, BF16, VOCAB_BLOCK),
        row_build(loss_backward_kernel, FP32, VOCAB_BLOCK),
    ]


def all_loss_builds() -> list[Build]:
    """Every dtype and a range of blocks."""
    return [
        row_build(kernel, dtype, block)
        for kernel in (loss_kernel, loss_backward_kernel)
        for dtype in DTYPES
        for block in blocks_up_to(VOCAB_BLOCK)
    ]
