"""Programs of users of the meter, each beside what it must move in numbers: (read, written), by counting on paper."""

from __future__ import annotations

import math

from minillm.perf.meter import HbmTensor, Meter


def blocks_of(size: int, block: int) -> int:
    return -(-size // block)


# ---- softmax of the rows of a matrix (rows, columns)


def softmax_in_steps(meter: Meter, x: HbmTensor, *, block: int) -> HbmTensor:
    """A kernel an operation, every intermediate result through HBM."""
    rows, columns = x.shape
    largest, total = meter.empty("max", (rows, 1)), meter.empty("sum", (rows, 1))
    shifted, powers, y = (meter.empty(name, x.shape) for name in ("shifted", "powers", "Y"))

    def launch(name: str, step) -> None:  # type: ignore[no-untyped-def]
        with meter.kernel(name) as kernel:
            for i in range(0, rows, block):
                with kernel.program(i) as sram:
                    step(sram, slice(i, i + block))

    launch("max", lambda sram, part: sram.store(sram.load(x[part]).row_max(), largest[part]))
    launch("shift", lambda sram, part: sram.store(sram.load(x[part]) - sram.load(largest[part]), shifted[part]))
    launch("exp", lambda sram, part: sram.store(sram.load(shifted[part]).exp(), powers[part]))
    launch("sum", lambda sram, part: sram.store(sram.load(powers[part]).row_sum(), total[part]))
    launch("divide", lambda sram, part: sram.store(sram.load(powers[part]) / sram.load(total[part]), y[part]))
    return y


def softmax_in_steps_moved(rows: int, columns: int) -> tuple[int, int]:
    return 5 * rows * columns + 2 * rows, 3 * rows * columns + 2 * rows


def softmax_fused(meter: Meter, x: HbmTensor, *, block: int) -> HbmTensor:
    y = meter.empty("Y", x.shape)
    with meter.kernel("softmax") as kernel:
        for i in range(0, x.shape[0], block):
            with kernel.program(i) as sram:
                tile = sram.load(x[i : i + block])
                tile -= tile.row_max()
                tile.exp_()
                tile /= tile.row_sum()
                sram.store(tile, y[i : i + block])
    return y


def softmax_fused_moved(rows: int, columns: int) -> tuple[int, int]:
    return rows * columns, rows * columns


# ---- attention of one head: q (n, d), k and v (m, d)


def naive_attention(meter: Meter, q: HbmTensor, k: HbmTensor, v: HbmTensor, *, block: int) -> HbmTensor:
    """Three kernels with S and P in HBM between them; a program makes a block of rows from all of k, or all of v."""
    (n, d), m = q.shape, k.shape[0]
    s, p, o = meter.empty("S", (n, m)), meter.empty("P", (n, m)), meter.empty("O", (n, d))
    with meter.kernel("scores") as kernel:
        for i in range(0, n, block):
            with kernel.program(i) as sram:
                scores = sram.load(q[i : i + block]) @ sram.load(k).T
                scores *= 1 / math.sqrt(d)
                sram.store(scores, s[i : i + block])
    with meter.kernel("softmax") as kernel:
        for i in range(0, n, block):
            with kernel.program(i) as sram:
                tile = sram.load(s[i : i + block])
                tile -= tile.row_max()
                tile.exp_()
                tile /= tile.row_sum()
                sram.store(tile, p[i : i + block])
    with meter.kernel("values") as kernel:
        for i in range(0, n, block):
            with kernel.program(i) as sram:
                sram.store(sram.load(p[i : i + block]) @ sram.load(v), o[i : i + block])
    return o


def naive_attention_moved(n: int, m: int, d: int, *, block: int) -> tuple[int, int]:
    rounds = blocks_of(n, block)
    return n * d + 2 * rounds * m * d + 2 * n * m, 2 * n * m + n * d


def flash_v1(meter: Meter, q: HbmTensor, k: HbmTensor, v: HbmTensor, *, block_q: int, block_k: int) -> HbmTensor:
    """FlashAttention (Dao et al. 2022), algorithm 1: keys outside, queries inside; o, l and m go to HBM and back."""
    (n, d), m = q.shape, k.shape[0]
    o, sums, maxima = meter.empty("O", (n, d)), meter.empty("l", (n, 1)), meter.empty("m", (n, 1))
    with meter.kernel("start") as kernel:
        for i in range(0, n, block_q):
            with kernel.program(i) as sram:
                rows = min(block_q, n - i)
                sram.store(sram.zeros(rows, d), o[i : i + block_q])
                sram.store(sram.zeros(rows, 1), sums[i : i + block_q])
                sram.store(sram.full((rows, 1), -math.inf), maxima[i : i + block_q])
    with meter.kernel("flash v1") as kernel, kernel.program() as sram:
        for j in range(0, m, block_k):
            with sram.scope():
                k_tile, v_tile = sram.load(k[j : j + block_k]), sram.load(v[j : j + block_k])
                for i in range(0, n, block_q):
                    with sram.scope():
                        part = slice(i, i + block_q)
                        q_tile, acc = sram.load(q[part]), sram.load(o[part])
                        total, largest = sram.load(sums[part]), sram.load(maxima[part])
                        p = sram.matmul(q_tile, k_tile.T, name="S")
                        p *= 1 / math.sqrt(d)
                        new_largest = p.row_max().maximum_(largest)
                        p -= new_largest
                        p.exp_()
                        largest -= new_largest
                        total *= largest.exp_()
                        acc *= total  # undoes the division of the last visit
                        total += p.row_sum()
                        sram.matmul(p, v_tile, into=acc)
                        acc /= total
                        for tile, home in ((acc, o), (total, sums), (new_largest, maxima)):
                            sram.store(tile, home[part])
    return o


def flash_v1_moved(n: int, m: int, d: int, *, block_k: int) -> tuple[int, int]:
    """Each block of keys passes over all of q, o, l and m."""
    rounds = blocks_of(m, block_k)
    return 2 * m * d + rounds * n * (2 * d + 2), (rounds + 1) * n * (d + 2)


def flash_v2(meter: Meter, q: HbmTensor, k: HbmTensor, v: HbmTensor, *, block_q: int, block_k: int) -> HbmTensor:
    """FlashAttention-2 (Dao 2023), algorithm 1: queries outside, o divided once at the end and written once."""
    (n, d), m = q.shape, k.shape[0]
    o, lse = meter.empty("O", (n, d)), meter.empty("lse", (n, 1))
    with meter.kernel("flash v2") as kernel:
        for i in range(0, n, block_q):
            with kernel.program(i) as sram:
                q_tile = sram.load(q[i : i + block_q])
                q_tile *= 1 / math.sqrt(d)
                rows = q_tile.shape[0]
                acc, total = sram.zeros(rows, d, name="acc"), sram.zeros(rows, 1)
                largest = sram.full((rows, 1), -math.inf)
                for j in range(0, m, block_k):
                    with sram.scope():
                        k_tile, v_tile = sram.load(k[j : j + block_k]), sram.load(v[j : j + block_k])
                        p = sram.matmul(q_tile, k_tile.T, name="S")
                        new_largest = p.row_max().maximum_(largest)
                        p -= new_largest
                        p.exp_()
                        largest -= new_largest
                        largest.exp_()
                        total *= largest
                        total += p.row_sum()
                        acc *= largest
                        sram.matmul(p, v_tile, into=acc)
                        largest.copy_(new_largest)
                acc /= total
                sram.store(acc, o[i : i + block_q])
                sram.store(largest + total.log_(), lse[i : i + block_q])
    return o


def flash_v2_moved(n: int, m: int, d: int, *, block_q: int) -> tuple[int, int]:
    """Each block of queries passes over all of k and v."""
    return n * d + blocks_of(n, block_q) * 2 * m * d, n * d + n


def flash_v2_other_work(n: int, m: int, d: int, *, block_k: int) -> tuple[int, int]:
    """(elementwise FLOPs, special operations) of `flash_v2`, line by line.

    A block of scores: row_max and row_sum take width − 1 each, the subtraction width. The state of a row: a maximum, a
    subtraction, l · and l +, d products of the accumulator. Once a row: q · scale, o / l, m + log l.
    """
    rounds = blocks_of(m, block_k)
    return 3 * n * m - 2 * rounds * n + rounds * n * (4 + d) + 2 * n * d + n, n * m + rounds * n + n
