"""The attention kernels for the build gate: a sample for every test run, and all that they can choose from."""

from __future__ import annotations

from typing import Any

from minillm.kernels.build import Build
from minillm.kernels.flash_backward import ROWS_TO_PREPARE, prepare_kernel
from minillm.kernels.flash_dk_dv import dk_dv_kernel
from minillm.kernels.flash_dq import dq_kernel
from minillm.kernels.flash_forward import flash_forward_kernel, launch_options
from minillm.kernels.flash_split_kernels import decode_split_kernel, merge_splits_kernel
from minillm.kernels.flash_tiles import (
    TILES_64,
    TILES_128,
    TILES_256,
    TILES_FP32,
    FlashTile,
    backward_tiles,
    decode_tile,
    padded_dim,
)

FP32, FP16, BF16 = "fp32", "fp16", "bf16"
OTHER_POINTERS = {"seq_lens_ptr": "*i32", "redo_ptr": "*i8"}
FLOATS = frozenset({"lse_ptr", "d_lse_ptr", "lse_log2_ptr", "delta_ptr", "part_lse_ptr", "part_out_ptr"})  # float32


def tensor_cores(num_rows: int, dtype: str) -> dict[int, tuple[str, ...]]:
    """The instructions to expect: Hopper's wgmma takes 64 rows and four warps, what is smaller runs as on Ampere."""
    if dtype == FP32:
        return {}
    return {80: ("mma.sync",), 90: ("wgmma.mma_async" if num_rows >= 64 else "mma.sync",)}


def flash_build(
    kernel: Any, tile: FlashTile, dtype: str, k_head_dim: int, v_head_dim: int, *, causal: bool, windowed: bool = False
) -> Build:
    """`flash_forward_kernel`, `dk_dv_kernel` or `dq_kernel` for tensors whose last dimension is contiguous."""
    options = launch_options(tile)
    num_warps, num_stages = options.pop("num_warps"), options.pop("num_stages")
    constants = {
        **options,
        **{name: 1 for name in kernel.arg_names if name in ("stride_qd", "stride_kd", "stride_vd", "stride_gd")},
        "CAUSAL": causal,
        "HAS_WINDOW": windowed,
        "K_DIM": k_head_dim,
        "V_DIM": v_head_dim,
        "BLOCK_D": padded_dim(k_head_dim),
        "BLOCK_V": padded_dim(v_head_dim),
    }
    pattern = f"{'causal' if causal else 'full'}{' window' if windowed else ''}"
    sizes = f"{tile.block_q}×{tile.block_k} {num_warps} warps {num_stages} stages"
    return Build(
        label=f"{kernel.fn.__name__} {dtype} {k_head_dim}/{v_head_dim} {sizes} {pattern}",
        kernel=kernel,
        signature=signature_of(kernel, dtype, constants),
        constants=constants,
        num_warps=num_warps,
        num_stages=num_stages,
        expects=tensor_cores(tile.block_k if kernel is dk_dv_kernel else tile.block_q, dtype),
    )


def signature_of(kernel: Any, dtype: str, constants: dict[str, Any]) -> dict[str, str]:
    """Types by the names of the arguments: pointers, scales, integers."""

    def kind(name: str) -> str:
        if name in OTHER_POINTERS:
            return OTHER_POINTERS[name]
        if name.endswith("_ptr"):
            return f"*{FP32 if name in FLOATS else dtype}"
        return FP32 if name.endswith("_log2") else "i32"

    return {name: kind(name) for name in kernel.arg_names if name not in constants}


def prepare_build(dtype: str) -> Build:
    """`prepare_kernel`."""
    ones = dict.fromkeys(("stride_od", "stride_gd"), 1)
    constants = {**ones, "V_DIM": 128, "BLOCK_V": 128, "BLOCK_Q": ROWS_TO_PREPARE}
    signature = signature_of(prepare_kernel, dtype, constants)
    return Build(f"prepare_kernel {dtype}", prepare_kernel, signature, constants)


def split_build(num_rows: int, dtype: str, k_head_dim: int, v_head_dim: int, **variant: bool) -> Build:
    """`decode_split_kernel` for `num_rows` query rows a KV head; variant: FIXED_TOP, ONLY_REDO."""
    tile = decode_tile(num_rows, k_head_dim, v_head_dim, itemsize=4 if dtype == FP32 else 2)
    options = launch_options(tile)
    num_warps, num_stages = options.pop("num_warps"), options.pop("num_stages")
    constants = {
        **options,
        **dict.fromkeys(("stride_qd", "stride_kd", "stride_vd"), 1),
        **{"FIXED_TOP": False, "ONLY_REDO": False, **variant},
        "K_DIM": k_head_dim,
        "V_DIM": v_head_dim,
        "BLOCK_D": padded_dim(k_head_dim),
        "BLOCK_V": padded_dim(v_head_dim),
    }
    sizes = f"{tile.block_q}×{tile.block_k} {num_warps} warps {num_stages} stages"
    return Build(
        label=f"decode_split_kernel {dtype} {k_head_dim}/{v_head_dim} {sizes} {' '.join(variant)}",
        kernel=decode_split_kernel,
        signature=signature_of(decode_split_kernel, dtype, constants),
        constants=constants,
        num_warps=num_warps,
        num_stages=num_stages,
        expects=tensor_cores(tile.block_q, dtype),
    )


def merge_build(dtype: str, **variant: bool) -> Build:
    """`merge_splits_kernel`; variant: CHECK_BAND, ONLY_REDO."""
    constants = {"CHECK_BAND": False, "ONLY_REDO": False, **variant, "V_DIM": 128, "BLOCK_V": 128}
    signature = signature_of(merge_splits_kernel, dtype, constants)
    return Build(f"merge_splits_kernel {dtype} {' '.join(variant)}", merge_splits_kernel, signature, constants)


# ---- samples, and everything


def forward_builds() -> list[Build]:
    """The first tiles of the common head dims, a window, padded and unequal head dims, float32."""
    return [
        flash_build(flash_forward_kernel, TILES_64[0], BF16, 64, 64, causal=True),
        flash_build(flash_forward_kernel, TILES_128[1], FP16, 128, 128, causal=True),
        flash_build(flash_forward_kernel, TILES_128[1], BF16, 128, 128, causal=False),
        flash_build(flash_forward_kernel, TILES_128[1], FP16, 96, 96, causal=True, windowed=True),
        flash_build(flash_forward_kernel, TILES_256[2], FP16, 192, 128, causal=True),
        flash_build(flash_forward_kernel, TILES_FP32[64][0], FP32, 64, 64, causal=True),
    ]


def all_forward_builds() -> list[Build]:
    """Every tile that the autotuner can try on any GPU; those for 64 and 128 with a window as well."""
    halves = ((64, TILES_64), (128, TILES_128), (256, TILES_256))
    kinds = [(FP16, dim, tile, False) for dim, tiles in halves for tile in tiles]
    kinds += [(FP32, dim, tile, False) for dim, tiles in TILES_FP32.items() for tile in tiles]
    kinds += [(FP16, dim, tile, True) for dim, tiles in halves[:2] for tile in tiles]
    return [
        flash_build(flash_forward_kernel, tile, dtype, dim, dim, causal=True, windowed=windowed)
        for dtype, dim, tile, windowed in kinds
    ]


def backward_builds() -> list[Build]:
    """Both kernels for the common head dims, and what comes before them."""
    return [prepare_build(BF16), *_backward(FP16, 64), *_backward(BF16, 128), *_backward(FP32, 64)]


def all_backward_builds() -> list[Build]:
    """Every tile, those of 16 bits with a window as well."""
    kinds = ((FP16, False), (FP16, True), (FP32, False))
    return [
        build
        for dtype, windowed in kinds
        for dim in (64, 128, 256)
        for build in _backward(dtype, dim, windowed=windowed)
    ]


def _backward(dtype: str, dim: int, *, windowed: bool = False) -> list[Build]:
    tiles = backward_tiles(dim, dim, itemsize=4 if dtype == FP32 else 2)
    kernels = zip((dk_dv_kernel, dq_kernel), tiles, strict=True)
    return [flash_build(kernel, tile, dtype, dim, dim, causal=True, windowed=windowed) for kernel, tile in kernels]


def decoding_builds() -> list[Build]:
    """One query of a group of 4, absorbed MLA with 16 heads, float32, and the merge."""
    return [
        split_build(4, BF16, 128, 128),
        split_build(16, FP16, 576, 512),
        split_build(1, FP32, 64, 64),
        merge_build(BF16),
    ]


def all_decoding_builds() -> list[Build]:
    """Every tile of the usual head dims."""
    sizes = [(rows, dim, dim) for rows in (1, 32, 64) for dim in (64, 128, 256)] + [(128, 576, 512)]
    halves = [split_build(rows, FP16, *dims) for rows, *dims in sizes]
    return halves + [split_build(1, FP32, *dims) for dims in ((64, 64), (128, 128), (256, 256), (576, 512))]


def unified_builds() -> list[Build]:
    """The run with one maximum in each kind of arithmetic, the second run, and the merges of both."""
    first = [split_build(4, dtype, 128, 128, FIXED_TOP=True) for dtype in (FP16, BF16, FP32)]
    second = [split_build(4, BF16, 128, 128, ONLY_REDO=True), merge_build(BF16, ONLY_REDO=True)]
    return [*first, *second, merge_build(BF16, CHECK_BAND=True)]


def all_unified_builds() -> list[Build]:
    """Tiles of 16 and 64 rows with one maximum."""
    sizes = [(rows, dim) for rows in (1, 64) for dim in (64, 128)]
    return [split_build(rows, dtype, dim, dim, FIXED_TOP=True) for dtype in (FP16, BF16) for rows, dim in sizes]
