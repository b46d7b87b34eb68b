"""FlashDecoding on a GPU: few queries, many keys, the keys split among the programs (Triton).

     q: the query heads of one KV head         keys of one sequence ►
        and its new tokens, as rows            │───── split 0 ─────│───── split 1 ─────│───── split 2 ─────│
     ┌────────────────┐                        ┌───────────────────┬───────────────────┬───────────────────┐
     │ head 0 token 0 │                        │ ▓▓ ►              │ ▓▓ ►              │ ▓▓ ►              │
     │ head 0 token 1 │  16 rows or more:      └───────────────────┴───────────────────┴───────────────────┘
     │ head 1 token 0 │  what tensor cores     program 0           program 1           program 2
     │       …        │  multiply at least     out_0, lse_0        out_1, lse_1        out_2, lse_2     float32
     └────────────────┘                                       merge: a program a row

Dao, Haziza, Massa, Sizov 2023 ("Flash-Decoding for long-context inference", PyTorch blog). A key is read once for all
rows of the tile; the loop over the keys is the forward pass's. A sequence's own length is read on the device and
divided among all of its programs, so that the host needn't know it and a captured CUDA graph serves growing sequences:
the number of programs follows from the shapes alone. A split without keys writes lse = −inf. The merge adds the splits
from the first to the last: the same bits every time.

Absorbed MLA is the case of one KV head, k_head_dim 576 and v_head_dim 512, V a slice of K. It is computed, though K is
read a second time as V (mostly from L2), and its tiles are padded to 1024.
"""

from __future__ import annotations

import triton
import triton.language as tl

from minillm.kernels.flash_forward import LN_2, attend_to_keys

LENGTHS = ("q_len", "k_len", "num_rows", "num_splits")  # as in `flash_forward`: no new code for special values


@triton.jit(do_not_specialize=LENGTHS)
def decode_split_kernel(  # type: ignore[no-untyped-def]
    q_ptr,
    k_ptr,
    v_ptr,
    seq_lens_ptr,
    part_out_ptr,
    part_lse_ptr,
    redo_ptr,
    scale_log2,
    top_log2,
    q_len,
    k_len,
    num_kv_heads,
    num_rows,
    num_splits,
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
    FIXED_TOP: tl.constexpr,
    ONLY_REDO: tl.constexpr,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One split of one tile of rows: part_out (batch, num_kv_heads, num_rows, num_splits, V_DIM) and part_lse, the
    same without V_DIM, in units of log 2. Row r is token r % q_len of head r // q_len of the group.

    Grid: (tiles of rows · num_splits · batch · num_kv_heads,); tiles of rows that read the same keys stand together.
    `flash_unified` explains FIXED_TOP, top_log2, and ONLY_REDO with redo (batch, num_kv_heads, num_rows).
    """
    num_tiles = tl.cdiv(num_rows, BLOCK_Q)
    program = tl.program_id(0)
    rows = program % num_tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    split = program // num_tiles % num_splits
    head_of_batch = (program // num_tiles // num_splits).to(tl.int64)
    batch, kv_head = head_of_batch // num_kv_heads, head_of_batch % num_kv_heads
    numbers = head_of_batch * num_rows + rows  # of the rows among all
    if ONLY_REDO:
        redo = tl.load(redo_ptr + numbers, mask=rows < num_rows, other=0)
        if tl.max(redo.to(tl.int32), axis=0) == 0:
            return

    seq_len = tl.load(seq_lens_ptr + batch).to(tl.int32)
    seq_len = min(max(seq_len, 0), k_len)  # whatever it says, nothing beyond the cache is read
    keys_of_split = tl.cdiv(tl.cdiv(seq_len, num_splits), BLOCK_K) * BLOCK_K
    first = split * keys_of_split
    stop = min(first + keys_of_split, seq_len)
    # Every token sees the keys up to the first token's place: only what follows needs a mask.
    first_place = seq_len - q_len
    full_stop = min(max(first_place + 1, first) // BLOCK_K * BLOCK_K, stop // BLOCK_K * BLOCK_K)
    full_stop = max(full_stop, first)

    dims = tl.arange(0, BLOCK_D)
    group_head, token = rows // q_len, rows % q_len
    q_ptr += batch * stride_qb + kv_head * (num_rows // q_len) * stride_qh
    q_rows = token.to(tl.int64) * stride_qn + group_head.to(tl.int64) * stride_qh
    inside = (rows[:, None] < num_rows) & (dims[None, :] < K_DIM)
    q = tl.load(q_ptr + q_rows[:, None] + dims[None, :] * stride_qd, mask=inside, other=0.0)
    k_ptr += batch * stride_kb + kv_head * stride_kh
    v_ptr += batch * stride_vb + kv_head * stride_vh

    acc = tl.zeros((BLOCK_Q, BLOCK_V), dtype=tl.float32)
    total = tl.zeros((BLOCK_Q,), dtype=tl.float32)
    top = tl.zeros((BLOCK_Q,), dtype=tl.float32) + (top_log2 if FIXED_TOP else float("-inf"))
    places = first_place + token
    for run in tl.static_range(2):
        run_first, run_stop = (first, full_stop) if run == 0 else (full_stop, stop)
        acc, total, top = attend_to_keys(
            acc, total, top, q, k_ptr, v_ptr, run_first, run_stop, places, stop, 0, scale_log2,
            stride_kn, stride_kd, stride_vn, stride_vd,
            MASKED=run == 1, CAUSAL=True, HAS_WINDOW=False, FIXED_TOP=FIXED_TOP,
            K_DIM=K_DIM, V_DIM=V_DIM, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D, BLOCK_V=BLOCK_V,
        )  # fmt: skip

    is_empty = total == 0.0
    safe_total = tl.where(is_empty, 1.0, total)
    lse_log2 = tl.where(is_empty, float("-inf"), top + tl.log2(safe_total))
    parts = numbers * num_splits + split
    tl.store(part_lse_ptr + parts, lse_log2, mask=rows < num_rows)
    values = tl.arange(0, BLOCK_V)
    inside = (rows[:, None] < num_rows) & (values[None, :] < V_DIM)
    tl.store(part_out_ptr + parts[:, None] * V_DIM + values[None, :], acc / safe_total[:, None], mask=inside)


@triton.jit(do_not_specialize=("q_len", "num_rows", "num_splits"))
def merge_splits_kernel(  # type: ignore[no-untyped-def]
    part_out_ptr,
    part_lse_ptr,
    out_ptr,
    lse_ptr,
    redo_ptr,
    low_log2,
    high_log2,
    q_len,
    num_rows,
    num_kv_heads,
    num_splits,
    CHECK_BAND: tl.constexpr,
    ONLY_REDO: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """out (batch, q_len, num_heads, V_DIM) and lse (batch, num_heads, q_len), contiguous, from the parts of
    `decode_split_kernel`. Grid: (batch · num_heads · q_len,), in the order of the parts and of lse.
    """
    row = tl.program_id(0).to(tl.int64)
    if ONLY_REDO:
        if tl.load(redo_ptr + row) == 0:
            return
    part_lse_ptr += row * num_splits
    top = tl.full((), float("-inf"), dtype=tl.float32)
    for split in range(num_splits):
        top = tl.maximum(top, tl.load(part_lse_ptr + split))
    safe_top = tl.where(top == float("-inf"), 0.0, top)

    values = tl.arange(0, BLOCK_V)
    acc = tl.zeros((BLOCK_V,), dtype=tl.float32)
    total = tl.full((), 0.0, dtype=tl.float32)
    for split in range(num_splits):
        weight = tl.exp2(tl.load(part_lse_ptr + split) - safe_top)
        part = tl.load(part_out_ptr + (row * num_splits + split) * V_DIM + values, mask=values < V_DIM, other=0.0)
        acc += weight * part
        total += weight
    safe_total = tl.where(total == 0.0, 1.0, total)
    out = acc / safe_total
    lse_log2 = top + tl.log2(safe_total)
    if CHECK_BAND:
        # A comparison with NaN is false, too, and so is one with the sum of an infinite out.
        fits = (lse_log2 > low_log2) & (lse_log2 < high_log2) & (tl.sum(out * 0.0, axis=0) == 0.0)
        tl.store(redo_ptr + row, tl.where(fits, 0, 1).to(tl.int8))

    token, head_of_batch = row % q_len, row // q_len
    num_heads = num_kv_heads * (num_rows // q_len)
    batch, head = head_of_batch // num_heads, head_of_batch % num_heads
    out_ptr += ((batch * q_len + token) * num_heads + head) * V_DIM
    tl.store(out_ptr + values, out.to(out_ptr.dtype.element_ty), mask=values < V_DIM)
    tl.store(lse_ptr + row, lse_log2 * LN_2)
