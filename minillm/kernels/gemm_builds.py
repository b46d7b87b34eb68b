"""The matrix products for the build gate: a sample for every test run, and all that the kernels can choose from."""

from __future__ import annotations

from minillm.kernels.build import Build
from minillm.kernels.few_rows import K_CONTIGUOUS, N_CONTIGUOUS, gemv_kernel
from minillm.kernels.gemm import launch_options, matmul_kernel, sum_splits_kernel
from minillm.kernels.gemm_persistent import matmul_persistent_kernel
from minillm.kernels.gemm_tiles import (
    PERSISTENT_TILES,
    TILES,
    Tile,
    few_rows_tile,
    fitting_persistent_tiles,
    fitting_tiles,
)

FP32, FP16, BF16 = "fp32", "fp16", "bf16"
COPY_ENGINE = {80: ("mma.sync",), 90: ("wgmma.mma_async", "cp.async.bulk.tensor")}


def tensor_cores(tile: Tile) -> dict[int, tuple[str, ...]]:
    """The instructions to expect. Hopper's wgmma makes 64 rows of C with four warps; below, it uses those of Ampere."""
    is_wide = tile.block_m >= 64 and tile.block_n >= 16 and tile.num_warps >= 4
    return {80: ("mma.sync",), 90: ("wgmma.mma_async" if is_wide else "mma.sync",)}


def tile_build(
    tile: Tile,
    dtype: str,
    *,
    precision: str = "ieee",
    split_k: int = 1,
    a_by_columns: bool = False,
    b_by_columns: bool = False,
    even_k: bool = True,
) -> Build:
    """`matmul_kernel` for operands stored by rows or columns, C by rows, K a multiple of the tile's or not."""
    options = launch_options(tile)
    num_warps, num_stages = options.pop("num_warps"), options.pop("num_stages")
    ones = ("stride_am" if a_by_columns else "stride_ak", "stride_bk" if b_by_columns else "stride_bn", "stride_cn")
    others = ("stride_ak" if a_by_columns else "stride_am", "stride_bn" if b_by_columns else "stride_bk", "stride_cm")
    layout = f"{' A by columns' if a_by_columns else ''}{' B by columns' if b_by_columns else ''}"
    return Build(
        label=f"matmul {dtype} {precision} {_described(tile)}{layout}{' split' if split_k > 1 else ''}",
        kernel=matmul_kernel,
        signature={
            "a_ptr": f"*{dtype}",
            "b_ptr": f"*{dtype}",
            "c_ptr": f"*{FP32 if split_k > 1 else dtype}",
            **dict.fromkeys(("m", "n", "k", "stride_split", *others), "i32"),
        },
        constants={
            **options,
            **dict.fromkeys(ones, 1),
            "SPLIT_K": split_k,
            "EVEN_K": even_k,
            "PRECISION": precision,
        },
        num_warps=num_warps,
        num_stages=num_stages,
        expects=tensor_cores(tile) if dtype != FP32 or precision == "tf32" else {},
    )


def sum_build(dtype: str) -> Build:
    """`sum_splits_kernel`."""
    integers = dict.fromkeys(("m", "n", "stride_split", "stride_cm"), "i32")
    signature = {"parts_ptr": "*fp32", "c_ptr": f"*{dtype}", **integers}
    return Build(f"sum of splits {dtype}", sum_splits_kernel, signature, {"stride_cn": 1, "SPLIT_K": 4, "BLOCK": 1024})


def persistent_build(tile: Tile, dtype: str, *, precision: str = "ieee", b_by_columns: bool = False) -> Build:
    """`matmul_persistent_kernel`."""
    options = launch_options(tile)
    num_warps, num_stages = options.pop("num_warps"), options.pop("num_stages")
    b_block = [tile.block_n, tile.block_k] if b_by_columns else [tile.block_k, tile.block_n]
    return Build(
        label=f"persistent {dtype} {precision} {_described(tile)}{' B by columns' if b_by_columns else ''}",
        kernel=matmul_persistent_kernel,
        signature={
            "a_desc": f"tensordesc<{dtype}{[tile.block_m, tile.block_k]}>",
            "b_desc": f"tensordesc<{dtype}{b_block}>",
            "c_desc": f"tensordesc<{dtype}{[tile.block_m, tile.block_n]}>",
            **dict.fromkeys(("m", "n", "k", "num_programs"), "i32"),
        },
        constants={**options, "A_BY_COLUMNS": False, "B_BY_COLUMNS": b_by_columns, "PRECISION": precision},
        num_warps=num_warps,
        num_stages=num_stages,
        aligned=False,
        expects=COPY_ENGINE,
    )


def gemv_build(dtype: str, *, k_contiguous: bool) -> Build:
    """`gemv_kernel` for both layouts of B."""
    block_n, block_k = K_CONTIGUOUS if k_contiguous else N_CONTIGUOUS
    one, other = ("stride_bk", "stride_bn") if k_contiguous else ("stride_bn", "stride_bk")
    return Build(
        f"gemv {dtype} {block_n}×{block_k}",
        gemv_kernel,
        {"x_ptr": f"*{dtype}", "b_ptr": f"*{dtype}", "y_ptr": f"*{dtype}", "n": "i32", "k": "i32", other: "i32"},
        {"stride_xk": 1, one: 1, "stride_yn": 1, "BLOCK_N": block_n, "BLOCK_K": block_k},
    )


def tile_builds() -> list[Build]:
    """A sample: each dtype, tails of K, a transposed operand, split-K."""
    middling, small = Tile(128, 128, 64, 8, 3), Tile(64, 64, 32, 4, 5)
    return [
        tile_build(middling, FP16),
        tile_build(middling, BF16, even_k=False),
        tile_build(small, FP32),
        tile_build(small, FP32, precision="tf32", a_by_columns=True),
        tile_build(small, FP16, split_k=4),
        sum_build(FP16),
    ]


def all_tile_builds() -> list[Build]:
    """Every tile that the autotuner can try, in 16 bits (bfloat16 is built alike), float32 and tf32."""
    kinds = ((FP16, "ieee", 2), (FP32, "ieee", 4), (FP32, "tf32", 4))
    return [
        tile_build(tile, dtype, precision=precision)
        for dtype, precision, itemsize in kinds
        for tile in fitting_tiles(TILES, 4096, 4096, 4096, itemsize=itemsize, capability=80, precision=precision)
    ]


def few_row_builds() -> list[Build]:
    """Both layouts of B for one row; 8 and 16 rows as the transposed product, of a weight stored by rows."""
    gemvs = [gemv_build(dtype, k_contiguous=k_contiguous) for dtype in (FP16, FP32) for k_contiguous in (True, False)]
    few = [
        tile_build(few_rows_tile(rows, itemsize), dtype, split_k=8, b_by_columns=True)
        for rows in (8, 16)
        for dtype, itemsize in ((FP16, 2), (BF16, 2), (FP32, 4))
    ]
    return gemvs + few


def persistent_builds() -> list[Build]:
    """A sample: both layouts of B, the tile with the largest appetite."""
    return [
        persistent_build(PERSISTENT_TILES[-1], FP16),
        persistent_build(PERSISTENT_TILES[0], BF16, b_by_columns=True),
    ]


def all_persistent_builds() -> list[Build]:
    """Every tile in 16 bits and tf32, both layouts of B."""
    kinds = ((BF16, "ieee", 2), (FP32, "tf32", 4))
    return [
        persistent_build(tile, dtype, precision=precision, b_by_columns=b_by_columns)
        for dtype, precision, itemsize in kinds
        for tile in fitting_persistent_tiles(itemsize=itemsize, capability=90)
        for b_by_columns in (False, True)
    ]


def _described(tile: Tile) -> str:
    return f"{tile.block_m}×{tile.block_n}×{tile.block_k} {tile.num_warps} warps {tile.num_stages} stages"
