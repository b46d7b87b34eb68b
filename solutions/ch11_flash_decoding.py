"""Chapter 11: FlashDecoding and FlashDecoding++.

Complete the functions below, then run `python3 tasks.py grade ch11`. The chapter is
`chapters/11_flash_decoding.ipynb`; each task names the section that prepares it. Everything is about one KV head and
runs on a CPU; logarithms are natural, and nothing is timed: keys, bytes and FLOPs are counted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minillm.perf.meter import HbmTensor, Meter


def key_ranges(k_len: int, num_splits: int) -> list[slice]:
    """For free: k_len keys in min(num_splits, k_len) slices of nearly one length, none empty; no slice for no keys."""
    if k_len == 0:
        return []
    num_splits = min(num_splits, k_len)
    edges = [k_len * i // num_splits for i in range(num_splits + 1)]
    return [slice(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]


# ---- Task 1 (prediction): how many splits? Prepared by "How many splits?".


def choose_splits(
    units: int, k_len: int, num_sms: int, *, part_cost: int, launch_cost: int, max_splits: int
) -> tuple[int, int]:
    """(number of splits, predicted time of the step): the fastest of 1 … max_splits, the fewest splits if several are.

    units        pairs of a sequence and a KV head; each has k_len keys to read
    num_sms      SMs, each works on one program at a time; programs run in waves, and a partly filled wave takes as long
                 as a full one
    part_cost    what it costs a program to write, or to read, one partial result
    launch_cost  what each launch costs before its programs start, which the chapter's T(S) leaves out

    Times are counted in keys: reading a key and its value takes 1. With one split there is one launch, and no partial
    result. With more there is a second launch, in which one program a unit reads all partial results of its unit. The
    longest split of a launch decides how long its programs take.

    Example: 2 units, 100 keys, 8 SMs, part_cost 3, launch_cost 5. One split: 5 + 100 = 105. Four: 5 + 25 + 3 for one
    wave, then 5 + 4 · 3: 50. Five: two waves of 20 + 3, then 15, and 10 for the launches: 71. With max_splits=5, the
    answer is (4, 50).
    """
    # BEGIN SOLUTION
    merging_waves = math.ceil(units / num_sms)
    best = (1, launch_cost + merging_waves * k_len)
    for splits in range(2, max_splits + 1):
        waves = math.ceil(units * splits / num_sms)
        time = waves * (math.ceil(k_len / splits) + part_cost) + merging_waves * splits * part_cost + 2 * launch_cost
        if time < best[1]:
            best = (splits, time)
    return best
    # END SOLUTION


# ---- Task 2: split and merge on the meter. Prepared by "The naive version", "Any set of keys will do"
# and "What splitting costs".


def decode_on_meter(
    meter: Meter, q: HbmTensor, k: HbmTensor, v: HbmTensor, out: HbmTensor, *, num_splits: int, block_k: int
) -> tuple[Tensor, int, int]:
    """out = softmax(q kᵀ / sqrt(d)) v in one launch, or in two if the keys are split.

    Returns what lies in out then, `out.result()`, and the bytes read and written: `meter.total` has `bytes_read` and
    `bytes_written`.

    q (rows, d) are the query heads of one KV head at one token, k and v (k_len, d) the cache, out (rows, d) is empty;
    all lie in the meter's HBM. Every row sees every key. `key_ranges` says which keys belong to which split.

    One split: a launch of one program, which stores out. More: a first launch with one program a split, and a second
    with one program that merges. A program of the first launch stores out and lse of its keys into tensors that you
    make with `meter.empty(name, shape)` before the launch; the merging program loads each of them once. A program that
    walks over keys loads all of q once, and its keys in blocks of at most block_k, from the first to the last.

    Scores may be as large as 10,000. The tests' meters have room for 2·rows·d + 2·block_k·d + rows·block_k +
    4·rows numbers, so work in place and in scopes, as in chapter 10. A launch is `with meter.kernel(name) as kernel`,
    a program `with kernel.program(i) as p`. p has `load`, `zeros`, `full(shape, number)`, `matmul(a, b, into=c)`, which
    adds to c, `scope` and `store(tile, hbm)`; a tile has `T`, `row_max`, `row_sum`, `maximum_`, `exp_`, `log_`, `copy_`
    and the operators `@ *= += -= /=`.

    Example: 2 rows, d = 4, 10 keys. One split reads 8 + 80 numbers and writes 8. Two splits read 2 · 8 + 80 for the
    keys and 2 · 2 · (4 + 1) for the merge, and write 2 · 2 · (4 + 1) + 8.
    """
    # BEGIN SOLUTION
    rows, d = q.shape
    parts = key_ranges(k.shape[0], num_splits)
    is_split = len(parts) > 1
    outs = meter.empty("outs", (len(parts) * rows, d)) if is_split else out
    lses = meter.empty("lses", (len(parts) * rows, 1)) if is_split else None
    with meter.kernel("splits") as kernel:
        for s, part in enumerate(parts):
            with kernel.program(s) as sram:
                q_tile = sram.load(q)
                acc, row_sum = sram.zeros(rows, d), sram.zeros(rows, 1)
                row_max = sram.full((rows, 1), -math.inf)
                for start in range(part.start, part.stop, block_k):
                    block = slice(start, min(start + block_k, part.stop))
                    with sram.scope():
                        scores = q_tile @ sram.load(k[block]).T
                        scores *= 1 / math.sqrt(d)
                        new_max = scores.row_max()
                        new_max.maximum_(row_max)
                        row_max -= new_max
                        row_max.exp_()
                        row_sum *= row_max
                        acc *= row_max
                        row_max.copy_(new_max)
                        scores -= new_max
                        scores.exp_()
                        row_sum += scores.row_sum()
                        sram.matmul(scores, sram.load(v[block]), into=acc)
                acc /= row_sum
                sram.store(acc, outs[s * rows : (s + 1) * rows])
                if lses is not None:
                    row_sum.log_()
                    row_sum += row_max
                    sram.store(row_sum, lses[s * rows : (s + 1) * rows])
    if lses is None:
        return out.result(), meter.total.bytes_read, meter.total.bytes_written
    with meter.kernel("merge") as kernel, kernel.program(0) as sram:
        acc, total = sram.zeros(rows, d), sram.zeros(rows, 1)
        top = sram.full((rows, 1), -math.inf)
        for s in range(len(parts)):
            with sram.scope():
                weight = sram.load(lses[s * rows : (s + 1) * rows])
                new_top = weight.maximum(top)
                top -= new_top
                top.exp_()
                total *= top
                acc *= top
                top.copy_(new_top)
                weight -= new_top
                weight.exp_()
                total += weight
                part_out = sram.load(outs[s * rows : (s + 1) * rows])
                part_out *= weight
                acc += part_out
        acc /= total
        sram.store(acc, out)
    return out.result(), meter.total.bytes_read, meter.total.bytes_written
    # END SOLUTION


# ---- Task 3 (bug hunt): several tokens, a padded cache. Prepared by "Any set of keys will do" and "Rows of a tile".


def hasty_split_decode(q: Tensor, k: Tensor, v: Tensor, *, seq_len: int, num_splits: int) -> tuple[Tensor, Tensor]:
    """Somebody's draft of `split_decode`. `out` is right for one new token, a full cache, small scores."""
    q_len, group, d = q.shape
    rows = q.reshape(q_len * group, d)
    place = torch.arange(q_len * group) % q_len  # of each row's token
    if q_len == 1:
        place = place + k.shape[0] - 1
    size = math.ceil(k.shape[0] / num_splits)
    outs, lses = [], []
    for s in range(num_splits):
        keys = torch.arange(s * size, min((s + 1) * size, k.shape[0]))
        scores = rows @ k[keys].T / math.sqrt(d)
        scores = scores.masked_fill(keys[None, :] > place[:, None], -math.inf)
        outs.append(torch.softmax(scores, dim=1) @ v[keys])
        lses.append(torch.logsumexp(scores, dim=1))
    weights = torch.exp(torch.stack(lses))
    out = (weights[:, :, None] * torch.stack(outs)).sum(dim=0) / weights.sum(dim=0)[:, None]
    lse = torch.log2(weights.sum(dim=0))
    return out.reshape(q_len, group, -1), lse.reshape(q_len, group)


def split_decode(q: Tensor, k: Tensor, v: Tensor, *, seq_len: int, num_splits: int) -> tuple[Tensor, Tensor]:
    """`hasty_split_decode`, repaired: attention of the last q_len tokens of a sequence, its keys in splits. (out, lse).

    q (q_len, group, d): the new tokens, for each of the query heads that share this KV head. k (capacity, d) and v
    (capacity, dim) are slabs of a cache: keys 0 … seq_len − 1 are valid, those of the new tokens included; what stands
    behind them may be anything, NaN too. Token i is at place seq_len − q_len + i and sees the keys up to its own.

    Returns out (q_len, group, dim) and lse (q_len, group), natural log. Scores are q · k / sqrt(d) and may be as
    large as 10,000. There may be more splits than keys, and a split may lie behind the place of some tokens. If
    seq_len < q_len, the first tokens have no key: out is 0 and lse −inf, never NaN; seq_len may be 0. With more than
    one split no tensor of all rows times all keys is made.

    Example: q = [[[0.]], [[0.]]] (two tokens, one head), k = [[0.], [0.], [7.]], v = [[1.], [3.], [9.]], seq_len=2: the
    first token sees the first key, the second one both: out = [[[1.]], [[2.]]], lse = [[0.], [ln 2]].
    """
    # BEGIN SOLUTION
    q_len, group, d = q.shape
    rows = q.reshape(q_len * group, d)
    place = torch.arange(q_len * group) // group + seq_len - q_len
    size = math.ceil(seq_len / num_splits)
    outs, lses = [], []
    for s in range(num_splits):
        keys = torch.arange(min(s * size, seq_len), min((s + 1) * size, seq_len))
        scores = rows @ k[keys].T / math.sqrt(d)
        scores = scores.masked_fill(keys[None, :] > place[:, None], -math.inf)
        lse = torch.logsumexp(scores, dim=1)
        weights = torch.exp(scores - torch.where(lse == -math.inf, 0.0, lse)[:, None])
        outs.append(weights @ v[keys])
        lses.append(lse)
    parts = torch.stack(lses)
    lse = torch.logsumexp(parts, dim=0)
    weights = torch.exp(parts - torch.where(lse == -math.inf, 0.0, lse))
    out = (weights[:, :, None] * torch.stack(outs)).sum(dim=0)
    return out.reshape(q_len, group, -1), lse.reshape(q_len, group)
    # END SOLUTION


# ---- Task 4: one φ for all splits, and a second run where it doesn't fit. Prepared by "One number for every maximum".


def unified_decode(
    q: Tensor, k: Tensor, v: Tensor, *, phi: float, band: tuple[float, float], num_splits: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, lse, fell_back) of one KV head by FlashDecoding++: no maximum, unless φ turns out not to fit.

    q (rows, d), k (k_len, d), v (k_len, dim), float32; every row sees every key; scores are q · k / sqrt(d).
    band  (low, high): a row's first result is kept only if low < lse − phi < high

    First run, over the splits of `key_ranges`: sums of exp(score − phi) and of exp(score − phi) · value, simply added
    up. out (rows, dim) and lse (rows,) follow from them. fell_back (rows,) is True for the rows that can't be kept: the
    logarithm of the sum, lse − phi, is outside the band (infinite, if the sum is infinite or 0), or a number of the
    weighted sum isn't finite (large values overflow where weights don't). Second run, over the same splits: those rows,
    and no others, are computed again from q, k and v with maxima. Their scores may be as large as 10,000.

    Rows that are kept never meet a maximum: where all rows fit, the tests look for operations that search one. They
    count the FLOPs of products, too: a run over r rows costs 2·r·k_len·(d + dim). With more than one split no tensor of
    rows × k_len numbers may be made.

    Example: d = 1, q = [[1.], [200.]], k = [[0.], [1.]], v = [[0.], [4.]], phi = 0 and band (−5, 5). Row 0: the sum is
    1 + e, lse = ln(1 + e) = 1.313, kept, out 2.924. Row 1: e²⁰⁰ overflows; it falls back, and is (4, 200).
    """
    # BEGIN SOLUTION
    parts = key_ranges(k.shape[0], num_splits)
    scale = 1 / math.sqrt(q.shape[1])
    weighted, total = q.new_zeros(q.shape[0], v.shape[1]), q.new_zeros(q.shape[0])
    for part in parts:
        weights = torch.exp(q @ k[part].T * scale - phi)
        weighted += weights @ v[part]
        total += weights.sum(dim=1)
    log_sum = torch.log(total)
    fits = (log_sum > band[0]) & (log_sum < band[1]) & weighted.isfinite().all(dim=1)
    fell_back = ~fits
    out, lse = weighted / total[:, None], log_sum + phi
    if fell_back.any():
        rows = q[fell_back]
        row_max = rows.new_full((rows.shape[0],), -math.inf)
        row_sum, acc = torch.zeros_like(row_max), rows.new_zeros(rows.shape[0], v.shape[1])
        for part in parts:
            scores = rows @ k[part].T * scale
            new_max = torch.maximum(row_max, scores.amax(dim=1))
            weights, repair = torch.exp(scores - new_max[:, None]), torch.exp(row_max - new_max)
            row_sum = row_sum * repair + weights.sum(dim=1)
            acc = acc * repair[:, None] + weights @ v[part]
            row_max = new_max
        out[fell_back], lse[fell_back] = acc / row_sum[:, None], row_max + torch.log(row_sum)
    return out, lse, fell_back
    # END SOLUTION


# ---- Task 5: the right kernel for a shape. Prepared by "A table of kernels".


def pick_kernel(seconds: dict[str, dict[int, float]], num_rows: int) -> str:
    """The name of the kernel for a product of `num_rows` rows, from times measured once.

    seconds  by kernel, then by number of rows; not every kernel was measured at every number, as some are made for few
             rows only

    A product doesn't get slower when it loses a row. So a kernel takes at most as long as at the next larger number of
    rows (or the same) that it was measured at, and the kernel for which that is the least is taken; the first one in
    `seconds` if several are equal. A kernel that wasn't measured at that many rows or more is left out. Beyond the
    largest number of all, the times at that number decide.

    Example: seconds = {"gemv": {1: 7.0, 4: 10.0}, "flat": {1: 9.0, 4: 8.0, 16: 16.0}}. 1 row: gemv. 2, 3 and 4 rows:
    flat. 100 rows: flat.
    """
    # BEGIN SOLUTION
    rows = min(num_rows, max(max(times) for times in seconds.values()))
    at_most = {
        name: times[min(count for count in times if count >= rows)]
        for name, times in seconds.items()
        if max(times) >= rows
    }
    return min(at_most, key=lambda name: at_most[name])
    # END SOLUTION
