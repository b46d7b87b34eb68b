"""C = A B in tiles on tensor cores (Triton).

                      k ►    B ┌───────┬───────┬───────┐
                               │       │ ▓▓▓▓▓ │       │ BLOCK_K rows at a time
                               │       │       │       │
                               └───────┴───────┴───────┘       one program makes one tile of C:
          A ┌───────────┐    C ┌───────┬───────┬───────┐
            │           │      │       │       │       │         acc = 0                  in registers, float32
            ├───────────┤      ├───────┼───────┼───────┤         for each BLOCK_K of k:
            │ ▓▓▓       │      │       │ █████ │       │             load a, b            into shared memory, ahead
            ├───────────┤      ├───────┼───────┼───────┤             acc += a · b         on tensor cores
            │           │      │       │       │       │         store acc
            └───────────┘      └───────┴───────┴───────┘

What the thread-level ladder did by hand, shared-memory tiles, register tiles, coalescing, Triton does for the block:
a program names a tile and its compiler shares it out to threads. Operands may have any strides; a transposed one
is only another pair of them.

Split-K: where C has fewer tiles than the GPU has SMs, several programs make one tile, each over its part of K, and
write float32 parts that a second kernel adds in a fixed order. No atomics: the same bits every time.

Few rows: `few_rows`. Persistent programs and the copy engine of Hopper: `gemm_persistent`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.gemm_tiles import INTERPRETER_TILE, TILES, Tile, choose_split_k, fitting_tiles
from minillm.kernels.launch import capability, check_tensors, is_interpreting, num_sms, on_device

PRECISIONS = ("ieee", "tf32")


@triton.jit
def tile_of_program(  # type: ignore[no-untyped-def]
    program, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr
):
    """(tile_m, tile_n) of a program number, in the grouped order that `order.grouped_order` draws."""
    tiles_m, tiles_n = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    group = program // (GROUP_M * tiles_n)
    first_m = group * GROUP_M
    rows = min(tiles_m - first_m, GROUP_M)  # of this group; the last one may be lower
    place = program % (GROUP_M * tiles_n)
    return first_m + place % rows, place // rows


@triton.jit
def matmul_kernel(  # type: ignore[no-untyped-def]
    a_ptr,
    b_ptr,
    c_ptr,
    m,
    n,
    k,
    stride_am,
    stride_ak,
    stride_bk,
    stride_bn,
    stride_split,
    stride_cm,
    stride_cn,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    SPLIT_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of C, or with SPLIT_K > 1 one part of its sum. Grid: (tiles of C, SPLIT_K)."""
    tile_m, tile_n = tile_of_program(tl.program_id(0), m, n, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    # Beyond the edge, load something that exists rather than mask every step: those results are never stored.
    a_rows = (rows % m).to(tl.int64)  # 64 bits: a large matrix has more than 2³¹ numbers
    b_columns = (columns % n).to(tl.int64)

    split = tl.program_id(1)
    k_of_split = tl.cdiv(tl.cdiv(k, BLOCK_K), SPLIT_K) * BLOCK_K
    first_k = split * k_of_split
    last_k = min(first_k + k_of_split, k)
    ks = first_k + tl.arange(0, BLOCK_K)
    a_tile_ptr = a_ptr + a_rows[:, None] * stride_am + ks[None, :].to(tl.int64) * stride_ak
    b_tile_ptr = b_ptr + ks[:, None].to(tl.int64) * stride_bk + b_columns[None, :] * stride_bn

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step_k in range(first_k, last_k, BLOCK_K):
        if EVEN_K:
            a = tl.load(a_tile_ptr)
            b = tl.load(b_tile_ptr)
        else:
            left = last_k - step_k
            a = tl.load(a_tile_ptr, mask=tl.arange(0, BLOCK_K)[None, :] < left, other=0.0)
            b = tl.load(b_tile_ptr, mask=tl.arange(0, BLOCK_K)[:, None] < left, other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
        a_tile_ptr += BLOCK_K * stride_ak
        b_tile_ptr += BLOCK_K * stride_bk

    c_tile_ptr = c_ptr + split.to(tl.int64) * stride_split
    c_tile_ptr += rows[:, None].to(tl.int64) * stride_cm + columns[None, :].to(tl.int64) * stride_cn
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    tl.store(c_tile_ptr, acc.to(c_ptr.dtype.element_ty), mask=inside)


@triton.jit
def sum_splits_kernel(  # type: ignore[no-untyped-def]
    parts_ptr, c_ptr, m, n, stride_split, stride_cm, stride_cn, SPLIT_K: tl.constexpr, BLOCK: tl.constexpr
):
    """C = the sum of SPLIT_K float32 parts (m, n), contiguous, always added from the first to the last."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < m.to(tl.int64) * n
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in range(SPLIT_K):
        acc += tl.load(parts_ptr + split * stride_split + places, mask=inside, other=0.0)
    c_places = c_ptr + places // n * stride_cm + places % n * stride_cn
    tl.store(c_places, acc.to(c_ptr.dtype.element_ty), mask=inside)


def tile_matmul(
    a: Tensor, b: Tensor, *, precision: str = "ieee", tile: Tile | None = None, split_k: int | None = None
) -> Tensor:
    """C (m, n) = A B by the kernel of this file.

    a (m, k), b (k, n)  float32, float16 or bfloat16 on one GPU (or the CPU where Triton interprets), of any strides
    precision           of float32 products: "ieee", or "tf32", which keeps 10 bits of each factor and uses tensor
                        cores. 16-bit products are exact. Sums are float32, rounded once to the dtype of a
    tile                None tries `gemm_tiles.TILES` on the spot, once for each shape and dtype, and keeps the fastest
    split_k             programs for each tile of C; None chooses by the number of tiles and SMs

    Raises ValueError for other tensors or precisions.
    """
    check_matmul(a, b, precision)
    c = a.new_empty((a.shape[0], b.shape[1]))
    multiply_into(c, a, b, precision=precision, tile=tile, split_k=split_k)
    return c


def multiply_into(
    c: Tensor, a: Tensor, b: Tensor, *, precision: str, tile: Tile | None = None, split_k: int | None = None
) -> None:
    """`tile_matmul` without its checks, into a C of any strides."""
    (m, k), n = a.shape, b.shape[1]
    if m == 0 or n == 0:
        return
    if tile is None and is_interpreting():
        tile = INTERPRETER_TILE
    if split_k is None:
        # Before tuning, a middling tile stands for the one that will be chosen.
        split_k = choose_split_k(m, n, k, tile or Tile(128, 128, 64, 4, 4), num_sms(a.device))
    parts = c if split_k == 1 else torch.empty((split_k, m, n), dtype=torch.float32, device=a.device)
    stride_split = 0 if split_k == 1 else parts.stride(0)

    def grid(sizes: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(m, sizes["BLOCK_M"]) * triton.cdiv(n, sizes["BLOCK_N"]), split_k

    arguments = (a, b, parts, m, n, k, *a.stride(), *b.stride(), stride_split, *parts.stride()[-2:])
    with on_device(a):
        if tile is None:
            _tuned_kernel()[grid](*arguments, SPLIT_K=split_k, PRECISION=precision)
        else:
            even_k = k % tile.block_k == 0
            options = launch_options(tile)
            matmul_kernel[grid](*arguments, SPLIT_K=split_k, EVEN_K=even_k, PRECISION=precision, **options)
        if split_k > 1:
            sum_splits_kernel[(triton.cdiv(m * n, 1024),)](
                parts, c, m, n, stride_split, *c.stride(), SPLIT_K=split_k, BLOCK=1024
            )


def launch_options(tile: Tile) -> dict[str, int]:
    """A tile as the kernel's constants and the compiler's options."""
    constants = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k, "GROUP_M": tile.group_m}
    return {**constants, "num_warps": tile.num_warps, "num_stages": tile.num_stages}


def check_matmul(a: Tensor, b: Tensor, precision: str) -> None:
    """Raise ValueError unless the kernels can multiply these."""
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"expected a (m, k) and b (k, n), got {tuple(a.shape)} and {tuple(b.shape)}")
    if precision not in PRECISIONS:
        raise ValueError(f"expected precision {' or '.join(map(repr, PRECISIONS))}, got {precision!r}")
    check_tensors(a=a, b=b)


@cache
def _tuned_kernel() -> Any:
    """The kernel behind Triton's autotuner: it times the fitting tiles at the first product of each shape."""
    configs = []
    for tile in TILES:
        options = launch_options(tile)
        num_warps, num_stages = options.pop("num_warps"), options.pop("num_stages")
        configs.append(triton.Config(options, num_warps=num_warps, num_stages=num_stages))
    even_k = triton.heuristics({"EVEN_K": lambda arguments: arguments["k"] % arguments["BLOCK_K"] == 0})
    tune = triton.autotune(
        configs,
        key=["m", "n", "k", "stride_ak", "stride_bn", "SPLIT_K", "PRECISION"],
        prune_configs_by={"early_config_prune": _prune},
    )
    return tune(even_k(matmul_kernel))


def _prune(configs: list[Any], arguments: dict[str, Any], *, PRECISION: str, **_: Any) -> list[Any]:
    """The autotuner hands over positional arguments as a dictionary, constants by keyword."""
    a, m, n, k = (arguments[name] for name in ("a_ptr", "m", "n", "k"))
    device, itemsize = capability(a.device), a.element_size()
    fitting = fitting_tiles(TILES, m, n, k, itemsize=itemsize, capability=device, precision=PRECISION)
    return [config for tile, config in zip(TILES, configs, strict=True) if tile in fitting]
