"""FlashAttention-2's forward pass (Triton).

                       keys ►
                    Kᵀ ┌──────┬──────┬──────┬──────┐
                       │      │ ▓▓▓▓ │      │      │          one program: BLOCK_Q queries of one head
                       └──────┴──────┴──────┴──────┘
        Q ┌────────┐   S ┌────┬──────┬──────┬──────┐          top, total, acc = −inf, 0, 0       in registers
          │        │     │ █  │  ▓   │      │      │          for each block of keys that is seen:
          ├────────┤     ├────┼──────┼──────┼──────┤              load k                         shared memory, ahead
          │ ▓▓▓▓▓▓ │     │ █  │  █   │  ▓   │skip  │              s   = q · kᵀ                    tensor cores
          ├────────┤     ├────┼──────┼──────┼──────┤              top, total, acc repaired       registers
          │        │     │ █  │  █   │  █   │  ▓   │              load v
          └────────┘     └────┴──────┴──────┴──────┘              acc += exp(s − top) · v        tensor cores
                      █ no mask   ▓ masked                    out, lse = acc / total, top + log total

Dao 2023 (arXiv:2307.08691), algorithm 1; comments give its lines. Scores never leave the chip. Full tiles and boundary
tiles run through one function compiled twice, so that the many full ones pay for no mask. exp is 2 to the power of x ·
log2 e, since the hardware has that; log2 e goes into the scale, and results are natural-log all the same.

Programs start in the order of their numbers. The blocks of one head stand together, so that those running at the same
time find its K and V in L2, as do the heads of a group. Under a causal mask the last block sees the most keys: it comes
first, and the short ones fill the gaps at the end.

FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608) goes on where this stops, on Hopper: some warps only load, with
the copy engine, while others compute (warp specialisation); two groups of warps take turns, one at the softmax while
the other's products are on the tensor cores (ping-pong), and within a group the next product starts before this softmax
is done; FP8 products with a scale a block and rotated inputs. None of that is here: this kernel overlaps loads with
computing by the compiler's pipeline, and softmax with products only as far as several programs share an SM.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minillm.kernels.flash_tiles import INTERPRETER_TILE, FlashTile, forward_tiles, padded_dim
from minillm.kernels.flash_walk import is_visible, key_runs, load_tile, store_tile, tile_offsets
from minillm.kernels.launch import capability, is_interpreting, on_device

LOG2_E = math.log2(math.e)
LENGTHS = ("q_len", "k_len", "window")  # change from call to call: no new code for 1 or for multiples of 16
LN_2 = tl.constexpr(math.log(2.0))


@triton.jit
def attend_to_keys(  # type: ignore[no-untyped-def]
    acc,
    total,
    top,
    q,
    k_ptr,
    v_ptr,
    first,
    stop,
    places,
    k_len,
    window,
    scale_log2,
    stride_kn,
    stride_kd,
    stride_vn,
    stride_vd,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    FIXED_TOP: tl.constexpr,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """The state of some queries after keys first … stop − 1 as well, of one head, whose K and V begin at the pointers.

    acc (queries, BLOCK_V), total (queries), top (queries) are Σ 2^(s − top) v, Σ 2^(s − top) and max s for s = q k ·
    scale_log2, with float32 sums. `places` (queries) is where each query stands among the keys. FIXED_TOP leaves `top`
    as it comes in.
    """
    keys = tl.arange(0, BLOCK_K)
    k_offsets = tile_offsets(stride_kn, stride_kd, BLOCK_K, BLOCK_D)
    v_offsets = tile_offsets(stride_vn, stride_vd, BLOCK_K, BLOCK_V)
    k_ptr += first.to(tl.int64) * stride_kn
    v_ptr += first.to(tl.int64) * stride_vn
    for start in range(first, stop, BLOCK_K):  # lines 6 and 7
        k = load_tile(k_ptr + k_offsets, k_len - start, K_DIM, BLOCK_K, BLOCK_D, MASKED)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")  # line 8, not yet scaled
        if MASKED:
            visible = is_visible(places[:, None], start + keys[None, :], k_len, window, CAUSAL, HAS_WINDOW)
            scores = tl.where(visible, scores, float("-inf"))
        if FIXED_TOP:
            weights = tl.exp2(scores * scale_log2 - top[:, None])
        else:
            new_top = tl.maximum(top, tl.max(scores, axis=1) * scale_log2)  # line 9
            safe_top = new_top
            if MASKED:  # a row that has seen no key yet: −inf − −inf would be NaN
                safe_top = tl.where(new_top == float("-inf"), 0.0, new_top)
            weights = tl.exp2(scores * scale_log2 - safe_top[:, None])
            repair = tl.exp2(top - safe_top)
            total = total * repair
            acc = acc * repair[:, None]
            top = new_top
        total += tl.sum(weights, axis=1)
        v = load_tile(v_ptr + v_offsets, k_len - start, V_DIM, BLOCK_K, BLOCK_V, MASKED)
        if FIXED_TOP and v.dtype == tl.float16:
            # Weights far from 1 leave float16's range; tf32 has as many digits and float32's range.
            acc = tl.dot(weights, v.to(tl.float32), acc, input_precision="tf32")
        else:
            acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee")  # line 10
        k_ptr += BLOCK_K * stride_kn
        v_ptr += BLOCK_K * stride_vn
    return acc, total, top


@triton.jit(do_not_specialize=LENGTHS)
def flash_forward_kernel(  # type: ignore[no-untyped-def]
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    scale_log2,
    q_len,
    k_len,
    window,
    num_heads,
    group,
    stride_qb,
    stride_qn,
    stride_qh,
    stride_qd,
    stride_kb,
    stride_kn,
    stride_kh,
    stride_kd,
    stride_vb,
    stride_vn,
    stride_vh,
    stride_vd,
    stride_ob,
    stride_on,
    stride_oh,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out (batch, q_len, num_heads, V_DIM), the last dimension contiguous, and lse (batch, num_heads, q_len).

    Grid: (blocks of queries · num_heads · batch,), blocks of one head together, the last block first.
    """
    num_blocks = tl.cdiv(q_len, BLOCK_Q)
    program = tl.program_id(0)
    first_row = (num_blocks - 1 - program % num_blocks) * BLOCK_Q
    head_of_batch = (program // num_blocks).to(tl.int64)  # 64 bits for all that follows from it
    batch, head = head_of_batch // num_heads, head_of_batch % num_heads
    q_ptr += batch * stride_qb + head * stride_qh + first_row.to(tl.int64) * stride_qn
    k_ptr += batch * stride_kb + head // group * stride_kh
    v_ptr += batch * stride_vb + head // group * stride_vh
    out_ptr += batch * stride_ob + head * stride_oh + first_row.to(tl.int64) * stride_on

    left = q_len - first_row
    q = load_tile(q_ptr + tile_offsets(stride_qn, stride_qd, BLOCK_Q, BLOCK_D), left, K_DIM, BLOCK_Q, BLOCK_D, True)
    acc = tl.zeros((BLOCK_Q, BLOCK_V), dtype=tl.float32)  # line 5
    total = tl.zeros((BLOCK_Q,), dtype=tl.float32)
    top = tl.full((BLOCK_Q,), float("-inf"), dtype=tl.float32)
    rows = first_row + tl.arange(0, BLOCK_Q)
    places = rows + (k_len - q_len)
    first, full_first, full_stop, stop = key_runs(first_row, q_len, k_len, window, CAUSAL, HAS_WINDOW, BLOCK_Q, BLOCK_K)
    for run in tl.static_range(3):
        # The window's edge, full tiles, the diagonal and the tail.
        if run == 0:
            run_first, run_stop = first, full_first
        elif run == 1:
            run_first, run_stop = full_first, full_stop
        else:
            run_first, run_stop = full_stop, stop
        if run > 0 or HAS_WINDOW:
            acc, total, top = attend_to_keys(
                acc, total, top, q, k_ptr, v_ptr, run_first, run_stop, places, k_len, window, scale_log2,
                stride_kn, stride_kd, stride_vn, stride_vd,
                MASKED=run != 1, CAUSAL=CAUSAL, HAS_WINDOW=HAS_WINDOW, FIXED_TOP=False,
                K_DIM=K_DIM, V_DIM=V_DIM, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D, BLOCK_V=BLOCK_V,
            )  # fmt: skip

    # Lines 12 and 13; a row without keys gives 0 and −inf.
    safe_total = tl.where(total == 0.0, 1.0, total)
    out = acc / safe_total[:, None]
    lse = (top + tl.log2(safe_total)) * LN_2
    store_tile(out_ptr + tile_offsets(stride_on, 1, BLOCK_Q, BLOCK_V), out, left, V_DIM, BLOCK_Q, BLOCK_V)
    tl.store(lse_ptr + head_of_batch * q_len + rows, lse, mask=rows < q_len)


def flash_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    window: int | None,
    softmax_scale: float,
    tile: FlashTile | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, lse) by the kernel of this file; arguments as `flash.flash_attention`, unchecked, softmax_scale > 0.

    tile   None tries `flash_tiles.forward_tiles` on the spot, once for each class of lengths and layout, and keeps the
           fastest
    """
    (batch, q_len, num_heads, k_head_dim), (k_len, num_kv_heads, v_head_dim) = q.shape, v.shape[1:]
    out = q.new_empty((batch, q_len, num_heads, v_head_dim))
    lse = torch.empty((batch, num_heads, q_len), dtype=torch.float32, device=q.device)
    if lse.numel() == 0:
        return out, lse.transpose(1, 2)
    tile = INTERPRETER_TILE if tile is None and is_interpreting() else tile
    lengths = (q_len, k_len, 0 if window is None else window)
    arguments = (q, k, v, out, lse, softmax_scale * LOG2_E, *lengths, num_heads, num_heads // num_kv_heads)
    strides = (*q.stride(), *k.stride(), *v.stride(), *out.stride()[:3])
    constants = {
        "CAUSAL": causal,
        "HAS_WINDOW": window is not None,
        "K_DIM": k_head_dim,
        "V_DIM": v_head_dim,
        "BLOCK_D": padded_dim(k_head_dim),
        "BLOCK_V": padded_dim(v_head_dim),
    }

    def grid(sizes: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(q_len, sizes["BLOCK_Q"]) * num_heads * batch,)

    with on_device(q):
        if tile is None:
            tiles = forward_tiles(k_head_dim, v_head_dim, itemsize=q.element_size(), capability=capability(q.device))
            kernel = _tuned_kernel(tiles, _length_class(q_len), _length_class(k_len))
            kernel[grid](*arguments, *strides, **constants)
        else:
            flash_forward_kernel[grid](*arguments, *strides, **constants, **launch_options(tile))
    return out, lse.transpose(1, 2)


def launch_options(tile: FlashTile) -> dict[str, int]:
    """A tile as the kernels' constants and the compiler's options."""
    blocks = {"BLOCK_Q": tile.block_q, "BLOCK_K": tile.block_k}
    return {**blocks, "num_warps": tile.num_warps, "num_stages": tile.num_stages}


def _length_class(length: int) -> int:
    """Lengths up to the same power of two share a tile: a growing sequence isn't a new problem with every token."""
    return length.bit_length()


@cache
def _tuned_kernel(tiles: tuple[FlashTile, ...], q_class: int, k_class: int) -> Any:
    """The kernel behind an autotuner of its own for each class of lengths, which times the tiles at its first call."""
    configs = []
    for tile in tiles:
        options = launch_options(tile)
        num_warps, num_stages = options.pop("num_warps"), options.pop("num_stages")
        configs.append(triton.Config(options, num_warps=num_warps, num_stages=num_stages))
    key = ["group", "stride_qd", "stride_kd", "stride_vd", "CAUSAL", "HAS_WINDOW", "K_DIM", "V_DIM"]
    return triton.autotune(configs, key=key)(flash_forward_kernel)
