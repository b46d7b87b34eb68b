"""Chapter 11: FlashDecoding and FlashDecoding++. Run: python3 tasks.py grade ch11"""

from __future__ import annotations

import math

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minillm.grading import Task, graded
from minillm.perf.flops import count_flops
from minillm.perf.meter import Meter

INF = math.inf
DECODINGS = (
    "minillm.attention.naive_attention",
    "minillm.attention.flash_attention",
    "minillm.attention.flash_decoding",
    "minillm.attention.flash_decoding_unified",
    "minillm.attention.flash_decoding.decode_sequence",
    "minillm.attention.merge_many",
    "minillm.attention.merge_states",
    "torch.nn.functional.scaled_dot_product_attention",
)

SPLITS = Task(
    "choose_splits",
    hints=(
        "How many waves are units · splits programs on num_sms SMs? And what does one program of a wave take?",
        "ceil(units · s / num_sms) · (ceil(k_len / s) + part_cost) + ceil(units / num_sms) · s · part_cost for s > 1, "
        "and two launches; ceil(units / num_sms) · k_len and one launch for s = 1; a later s has to be strictly faster.",
    ),
    forbids=("minillm.attention.choose_num_splits",),
)
METER = Task(
    "decode_on_meter",
    hints=(
        "A program of the first launch is chapter 10's version 2 for one block of queries, on one slice of the keys. The "
        "merge is the same loop again: a part has the score lse, and its out is the value.",
        "Merge, for each part in a scope: weight = load(lse); the larger of it and top; repair total and acc; weight -= "
        "new top; exp_; total += weight; part_out *= weight; acc += part_out. At the end acc /= total.",
    ),
    forbids=("minillm.attention.metered_decoding.run_decoding",),
    seconds=20,
)
HUNT = Task(
    "split_decode",
    hints=(
        "Run the draft on the docstring's example. Then one token with large scores, then more splits than keys, then "
        "compare lse. Which row of `rows` belongs to which token?",
        "Row r is token r // group, at place seq_len - q_len + r // group. Splits divide seq_len keys and may be empty. "
        "Subtract 0 where lse is -inf. Merge relative to the largest lse. The log is natural.",
    ),
    forbids=DECODINGS,
    max_elements=1000,
)
UNIFIED = Task(
    "unified_decode",
    hints=(
        "First run: two sums per row over the splits. What does log(sum) say about lse - phi when exp overflows, and when "
        "everything underflows?",
        "fits = (log_sum > low) & (log_sum < high) & all numbers of the weighted sum finite; NaN fails every comparison. "
        "Then q[~fits] goes through the loop of the online softmax, and the results into those rows.",
    ),
    forbids=DECODINGS,
    max_elements=1200,
)
PICK = Task(
    "pick_kernel",
    hints=(
        "What does each kernel take at most? Which of its measured numbers of rows tells?",
        "rows = min(num_rows, the largest number of all). For each kernel with a number >= rows: its time at the smallest "
        "of those. The minimum over the kernels.",
    ),
)


def random(rng, *shape):
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def dense(q, k, v, hidden=None):
    """(out, lse) of rows (rows, d) with the whole score matrix, in float64; rows without keys give 0 and −inf."""
    q, k, v = q.double(), k.double(), v.double()
    scores = q @ k.T / math.sqrt(q.shape[1])
    if hidden is not None:
        scores = scores.masked_fill(hidden, -INF)
    return torch.softmax(scores, dim=1).nan_to_num(0.0) @ v, torch.logsumexp(scores, dim=1)


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


# ---- choose_splits


@graded(SPLITS, points=1)
def test_the_example_of_the_docstring(student):
    assert student.choose_splits(2, 100, 8, part_cost=3, launch_cost=5, max_splits=1) == (1, 105)
    assert student.choose_splits(2, 100, 8, part_cost=3, launch_cost=5, max_splits=5) == (4, 50)


@graded(SPLITS, points=1)
def test_one_user_with_64k_tokens_on_an_h100(student):
    # 8 KV heads: 16 splits are 128 programs, one wave; 33 are 264, two full waves, and twice the merging.
    found = student.choose_splits(8, 65536, 132, part_cost=8, launch_cost=100, max_splits=64)
    assert found == (16, 4096 + 8 + 16 * 8 + 200)
    found = student.choose_splits(8, 65536, 132, part_cost=4, launch_cost=0, max_splits=64)
    assert found == (33, 2 * (1986 + 4) + 33 * 4)


@graded(SPLITS, points=1)
def test_a_full_gpu_and_a_short_text_are_not_split(student):
    assert student.choose_splits(264, 5000, 132, part_cost=4, launch_cost=7, max_splits=16) == (1, 10007)
    assert student.choose_splits(8, 12, 132, part_cost=4, launch_cost=0, max_splits=12) == (1, 12)
    assert student.choose_splits(2, 8, 4, part_cost=1, launch_cost=0, max_splits=8) == (2, 7)
    assert student.choose_splits(2, 8, 4, part_cost=1, launch_cost=2, max_splits=8) == (1, 10)


@graded(SPLITS, points=1)
def test_more_units_than_sms_merge_in_waves_too(student):
    # 5 units on 4 SMs: two waves of 30 keys. Three splits: 15 programs, 4 waves of 10 + 1, and two waves of merges.
    found = student.choose_splits(5, 30, 4, part_cost=1, launch_cost=2, max_splits=3)
    assert found == (3, 4 * 11 + 2 * 3 + 4)
    # Of 2 … 4 splits, without a price for parts, 2 and 4 are equally fast: fewer are better.
    assert student.choose_splits(6, 24, 12, part_cost=0, launch_cost=0, max_splits=4) == (2, 12)


# ---- decode_on_meter


def metered(student, rows, d, k_len, num_splits, block_k, rng, scale=1.0, spare=0):
    """(out, expected, meter); the meter has an SRAM of the docstring's size."""
    q, k, v = scale * random(rng, rows, d), random(rng, k_len, d), random(rng, k_len, d)
    numbers = 2 * rows * d + 2 * block_k * d + rows * block_k + 4 * rows + spare
    meter = Meter(8 * numbers, dtype=torch.float64)
    tensors = [meter.hbm(name, x) for name, x in zip("qkv", (q, k, v), strict=True)]
    out = meter.empty("out", (rows, d))
    found = student.decode_on_meter(meter, *tensors, out, num_splits=num_splits, block_k=block_k)
    assert isinstance(found, tuple) and len(found) == 3, "expected out.result(), bytes read, bytes written"
    torch.testing.assert_close(found[0], out.result(), equal_nan=True)
    assert tuple(found[1:]) == (meter.total.bytes_read, meter.total.bytes_written)
    return out.result(), dense(q, k, v)[0], meter


def check_numbers(meter, rows, d, k_len, num_splits):
    splits = min(num_splits, k_len)
    partial = splits * rows * (d + 1) if splits > 1 else 0
    expected = splits * rows * d + 2 * k_len * d + partial, rows * d + partial
    found = meter.total.bytes_read // 8, meter.total.bytes_written // 8
    if meter.tensors["q"].bytes_read // 8 > splits * rows * d:
        raise AssertionError("q is read more often than once a program: load it before the loop over its keys")
    assert found == expected, f"numbers (read, written): {found}, expected {expected}"


@graded(METER, points=1)
def test_one_split_is_one_launch(student, rng):
    out, expected, meter = metered(student, 2, 4, 10, 1, 4, rng)
    close(out, expected)
    check_numbers(meter, 2, 4, 10, 1)
    assert [kernel.programs for kernel in meter.kernels.values()] == [1]


@graded(METER, points=2)
def test_splits_are_merged_exactly(student, rng):
    for rows, d, k_len, num_splits, block_k in ((2, 4, 10, 2, 4), (4, 8, 50, 7, 4), (1, 3, 17, 5, 16), (3, 2, 3, 9, 2)):
        out, expected, _ = metered(student, rows, d, k_len, num_splits, block_k, rng, spare=400)
        close(out, expected)


@graded(METER, points=2)
def test_each_part_costs_its_bytes_and_no_more(student, rng):
    for rows, d, k_len, num_splits, block_k in ((2, 4, 10, 2, 4), (4, 8, 50, 7, 4), (3, 2, 3, 9, 2)):
        _, _, meter = metered(student, rows, d, k_len, num_splits, block_k, rng)
        check_numbers(meter, rows, d, k_len, num_splits)
        assert [kernel.programs for kernel in meter.kernels.values()] == [min(num_splits, k_len), 1]


@graded(METER, points=1)
def test_scores_may_be_large(student, rng):
    out, expected, _ = metered(student, 3, 4, 40, 6, 8, rng, scale=2000.0, spare=400)
    assert not out.isnan().any(), "out has NaN: is e to the power of a large lse taken somewhere, or of −inf − (−inf)?"
    close(out, expected, 1e-7)


# ---- split_decode


def decoded(student, q_len, group, d, seq_len, capacity, num_splits, rng, scale=1.0, dim=3):
    """((out, lse), (out, lse) by the whole matrix); behind seq_len the slabs hold NaN."""
    q, k, v = scale * random(rng, q_len, group, d), random(rng, capacity, d), random(rng, capacity, dim)
    k[seq_len:], v[seq_len:] = math.nan, math.nan
    found = student.split_decode(q, k, v, seq_len=seq_len, num_splits=num_splits)
    outs, lses = [], []
    for i in range(q_len):
        seen = max(0, seq_len - q_len + i + 1)
        out, lse = dense(q[i], k[:seen], v[:seen])
        outs.append(out)
        lses.append(lse)
    return found, (torch.stack(outs), torch.stack(lses))


@graded(HUNT, points=1)
def test_the_example(student):
    q, k, v = torch.zeros(2, 1, 1), torch.tensor([[0.0], [0.0], [7.0]]), torch.tensor([[1.0], [3.0], [9.0]])
    out, lse = student.split_decode(q, k, v, seq_len=2, num_splits=1)
    close(out.flatten(), torch.tensor([1.0, 2.0]), 1e-6)
    close(lse.flatten(), torch.tensor([0.0, math.log(2)]), 1e-6)


@graded(HUNT, points=1)
def test_out_and_lse_of_one_token_in_a_padded_cache(student, rng):
    for seq_len, capacity, num_splits in ((20, 20, 4), (13, 20, 3)):
        found, expected = decoded(student, 1, 4, 5, seq_len, capacity, num_splits, rng)
        close(found[0], expected[0])
        close(found[1], expected[1])


@graded(HUNT, points=1)
def test_several_tokens_of_several_heads(student, rng):
    for q_len, group in ((3, 2), (2, 3), (4, 1)):
        found, expected = decoded(student, q_len, group, 5, 17, 24, 3, rng)
        close(found[0], expected[0])
        close(found[1], expected[1])
    found, expected = decoded(student, 4, 4, 3, 120, 128, 12, rng)  # 16 rows · 120 keys would be too large a tensor
    close(found[0], expected[0])


@graded(HUNT, points=1)
def test_large_scores(student, rng):
    found, expected = decoded(student, 2, 2, 4, 30, 32, 4, rng, scale=5000.0)
    close(found[0], expected[0], 1e-6)
    close(found[1], expected[1])


@graded(HUNT, points=2)
def test_splits_without_keys_and_tokens_without_keys(student, rng):
    for q_len, seq_len, num_splits in ((1, 10, 6), (2, 3, 8), (5, 6, 6), (4, 2, 2), (2, 0, 3)):
        found, expected = decoded(student, q_len, 2, 3, seq_len, 12, num_splits, rng)
        assert not (found[0].isnan().any() or found[1].isnan().any()), "NaN: is −inf taken from −inf somewhere?"
        close(found[0], expected[0])
        close(found[1], expected[1])


# ---- unified_decode


class Operations(TorchDispatchMode):
    """The names of all operations that torch executes."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))


MAXIMA = {
    "amax",
    "aminmax",
    "max",
    "maximum",
    "fmax",
    "logsumexp",
    "_softmax",
    "_log_softmax",
    "sort",
    "topk",
    "logaddexp",
}
BAND = (-57.0, 75.0)


def tensors(rng, rows=4, k_len=50, d=8, dim=3):
    """float32 q, k, v whose scores are about 1."""
    return tuple(random(rng, *shape).float() for shape in ((rows, d), (k_len, d), (k_len, dim)))


def check(result, q, k, v, fell_back, tolerance=1e-4):
    out, lse = dense(q, k, v)
    assert result[2].tolist() == fell_back
    close(result[0].double(), out, tolerance)
    close(result[1].double(), lse, tolerance)


@graded(UNIFIED, points=1)
def test_rows_that_fit_need_no_maximum(student, rng):
    q, k, v = tensors(rng)
    for phi in (0.0, 6.0, -10.0):
        with Operations() as seen:
            result = student.unified_decode(q, k, v, phi=phi, band=BAND, num_splits=4)
        check(result, q, k, v, [False] * 4)
        assert not seen.names & MAXIMA, f"these search for a maximum: {sorted(seen.names & MAXIMA)}"


@graded(UNIFIED, points=2)
def test_rows_far_above_and_far_below_phi_fall_back(student, rng):
    q, k, v = tensors(rng)
    k[:, 0] = 1.0
    q[1, 0] += 400.0 * math.sqrt(8)  # all scores of the row rise by 400: exp overflows
    q[2, 0] -= 400.0 * math.sqrt(8)  # and fall: everything is 0
    result = student.unified_decode(q, k, v, phi=0.0, band=BAND, num_splits=4)
    check(result, q, k, v, [False, True, True, False], 1e-3)
    q[1, 0] += 9600.0 * math.sqrt(8)
    result = student.unified_decode(q, k, v, phi=0.0, band=BAND, num_splits=3)
    check(result, q, k, v, [False, True, True, False], 1e-3)


@graded(UNIFIED, points=1)
def test_the_band_decides_about_lse_minus_phi(student, rng):
    q, k, v = tensors(rng, rows=3)
    k[:, 0] = 1.0
    q[:, 0] = torch.tensor([0.0, 30.0, -30.0]) * math.sqrt(8)
    for phi, band, fell_back in (
        (0.0, (-20.0, 20.0), [False, True, True]),
        (30.0, (-20.0, 20.0), [True, False, True]),
        (0.0, (-45.0, 20.0), [False, True, False]),
        (-20.0, (-20.0, 60.0), [False, False, False]),
    ):
        check(student.unified_decode(q, k, v, phi=phi, band=band, num_splits=4), q, k, v, fell_back)


@graded(UNIFIED, points=1)
def test_an_outlier_in_a_value_falls_back(student, rng):
    q, k, v = tensors(rng)
    k[:, 0] = 1.0
    q[0, 0] += 70.0 * math.sqrt(8)  # a sum of about e^74 is inside the band
    v[5, 1] = 1e9  # but not times this
    out, lse, fell_back = student.unified_decode(q, k, v, phi=0.0, band=BAND, num_splits=4)
    assert fell_back.tolist() == [True, False, False, False]
    expected = dense(q, k, v)
    close(out.double() / expected[0], torch.ones(4, 3).double(), 1e-3)
    close(lse.double(), expected[1], 1e-3)


@graded(UNIFIED, points=1)
def test_only_the_rows_that_do_not_fit_are_computed_twice(student, rng):
    q, k, v = tensors(rng, rows=6, k_len=400)
    k[:, 0] = 1.0
    for num_bad in (0, 1, 3):
        bad = q.clone()
        bad[:num_bad, 0] += 300.0 * math.sqrt(8)
        flops = count_flops(lambda: student.unified_decode(bad, k, v, phi=0.0, band=BAND, num_splits=5))  # noqa: B023
        expected = 2 * (6 + num_bad) * 400 * (8 + 3)
        assert expected <= flops < expected + 1000  # one row more is 8,800


# ---- pick_kernel

TABLE = {
    "gemv": {1: 7.0, 2: 7.2, 4: 10.0, 8: 17.0},
    "flat": {1: 9.8, 2: 7.2, 4: 7.3, 8: 8.0, 16: 16.0, 32: 30.0},
    "packed": {1: 15.0, 2: 16.0, 4: 16.0, 8: 17.0, 16: 18.0, 32: 19.0},
}


@graded(PICK, points=1)
def test_the_fastest_where_it_was_measured(student):
    assert [student.pick_kernel(TABLE, rows) for rows in (1, 4, 8, 16, 32)] == [
        "gemv",
        "flat",
        "flat",
        "flat",
        "packed",
    ]
    assert student.pick_kernel(TABLE, 2) == "gemv"  # a tie
    assert student.pick_kernel({"b": {1: 2.0}, "a": {1: 2.0}}, 1) == "b"


@graded(PICK, points=1)
def test_in_between_each_kernels_next_larger_number_decides(student):
    assert [student.pick_kernel(TABLE, rows) for rows in (3, 5, 12, 17, 24)] == [
        "flat",
        "flat",
        "flat",
        "packed",
        "packed",
    ]
    assert student.pick_kernel({"a": {4: 1.0, 16: 9.0}, "b": {4: 2.0, 8: 3.0, 16: 4.0}}, 6) == "b"
    assert student.pick_kernel({"a": {4: 3.0, 16: 3.5}, "b": {4: 2.0, 8: 4.0, 16: 5.0}}, 6) == "a"  # at most 3.5


@graded(PICK, points=1)
def test_beyond_the_table_the_largest_decides(student):
    assert student.pick_kernel(TABLE, 500) == "packed"
    assert student.pick_kernel({"few": {1: 1.0, 8: 2.0}, "many": {16: 5.0}}, 17) == "many"
