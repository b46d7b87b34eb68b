"""Chapter 10: online softmax and FlashAttention. Run: python3 tasks.py grade ch10"""

from __future__ import annotations

import math

import torch

from minillm.grading import Task, graded
from minillm.perf.flops import count_flops
from minillm.perf.meter import Meter

INF = math.inf
ATTENTIONS = (
    "minillm.attention.naive_attention",
    "minillm.attention.flash_attention",
    "minillm.attention.flash_attention_v1",
    "minillm.attention.flash_attention_v2",
    "minillm.attention.flash_decoding",
    "minillm.attention.online_attention",
    "minillm.attention.OnlineSoftmax",
    "torch.nn.functional.scaled_dot_product_attention",
)
MERGES = ("minillm.attention.merge_states", "minillm.attention.merge_many")

STEP = Task(
    "online_step",
    hints=(
        "What was summed so far is relative to the old maximum, the new tile to the new one. Which factor joins them?",
        "new_max = max(row_max, scores.amax(-1)); the old sums times exp(row_max - new_max), plus those of "
        "exp(scores - new_max). Where new_max is -inf, subtract 0 instead of it.",
    ),
    forbids=ATTENTIONS,
)
MERGE = Task(
    "merge_two",
    hints=(
        "exp(lse) is the sum of the weights of a part, exp(lse) · out the weighted sum of its values. Both add up.",
        "Subtract the larger lse of the two before exp, 0 where it is -inf; add it again after the log.",
    ),
    forbids=(*ATTENTIONS, *MERGES),
)
TILES = Task(
    "visited_tiles",
    hints=(
        "Two corners of a tile decide: is its first key visible to its last query? Its last key to its first query?",
        "Query i sees keys i + shift - window + 1 … i + shift, shift = k_len - q_len. Visited: first_key <= last_row + "
        "shift and last_key > first_row + shift - window. Full: last_key <= first_row + shift and first_key > last_row "
        "+ shift - window.",
    ),
    forbids=("minillm.attention.tiles.Tiles", "minillm.attention.metered_flash.visible_tiles"),
    max_elements=1_000_000,
)
PADDED = Task(
    "padded_flash",
    hints=(
        "Run the draft on the example, then on keys whose largest score comes first, and compare lse as well.",
        "Padding must weigh nothing: a score of -inf, not 0. All sums are relative to the new maximum, the tile's "
        "weights too. -inf - -inf is NaN, and so is 0 · NaN. The log is natural. A row without keys divides by 0.",
    ),
    forbids=ATTENTIONS,
    max_elements=600,
)
METER = Task(
    "flash_on_meter",
    hints=(
        "Outside, for a program: load q, make the sum and two columns. Inside, in a scope: load k and v, one step of "
        "the online softmax, matmul(…, into=acc). After the loop divide and store.",
        "row_max -= new_max; row_max.exp_() makes the repair in the place of the old maximum; row_max.copy_(new_max) "
        "ends the step. With causal the loop over j ends at the program's last row + 1.",
    ),
    forbids=(
        "minillm.attention.metered.run",
        "minillm.attention.metered.naive",
        "minillm.attention.metered_flash.v1",
        "minillm.attention.metered_flash.v2",
    ),
    seconds=20,
)
BACKWARD = Task(
    "flash_backward",
    hints=(
        "weights = exp(scores - lse) needs no maximum and no sum. delta = rowsum(d_out · out) is one number a row.",
        "d_scores = weights · (d_out vᵀ - delta) · scale; dv += weightsᵀ d_out, dk += d_scoresᵀ q, dq += d_scores k.",
    ),
    forbids=(*ATTENTIONS, "minillm.attention.flash_backward", "torch.autograd.grad", "torch.autograd.backward"),
    seconds=20,
    max_elements=2000,
)


def random(rng, *shape):
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def dense(q, k, v, hidden=None):
    """(out, lse) of one head with the whole score matrix; rows without keys give 0 and −inf."""
    scores = q @ k.T / math.sqrt(q.shape[1])
    if hidden is not None:
        scores = scores.masked_fill(hidden, -INF)
    weights = torch.softmax(scores, dim=1).nan_to_num(0.0)
    return weights @ v, torch.logsumexp(scores, dim=1)


def future(q_len, k_len):
    """True where a key lies beyond its query's place, aligned at the ends."""
    return torch.ones(q_len, k_len, dtype=torch.bool).triu(k_len - q_len + 1)


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


# ---- online_step


def start(rows, dim):
    row_sum, acc = (torch.zeros(*shape, dtype=torch.float64) for shape in ((rows,), (rows, dim)))
    return row_sum - INF, row_sum, acc


def steps(student, scores, values, sizes):
    """The state after tiles of these sizes."""
    state = start(scores.shape[0], values.shape[1])
    for tile, part in zip(scores.split(sizes, dim=1), values.split(sizes), strict=True):
        kept = [x.clone() for x in state]
        new_state = student.online_step(*state, tile, part)
        assert all(map(torch.equal, state, kept)), "row_max, row_sum and acc belong to the caller: return new tensors"
        state = new_state
    return state


@graded(STEP, points=1)
def test_the_example_of_the_docstring(student):
    state = start(1, 1)
    scores, values = torch.tensor([[2.0, 8.0, 16.0]]).double().log(), torch.tensor([[6.0], [1.0], [3.0]]).double()
    state = student.online_step(*state, scores[:, :2], values[:2])
    close(torch.cat([x.flatten() for x in state]), torch.tensor([math.log(8), 1.25, 2.5], dtype=torch.float64))
    state = student.online_step(*state, scores[:, 2:], values[2:])
    close(torch.cat([x.flatten() for x in state]), torch.tensor([math.log(16), 1.625, 4.25], dtype=torch.float64))


@graded(STEP, points=1)
def test_tiles_in_any_cut_give_the_attention_of_all_keys(student, rng):
    scores, values = 3 * random(rng, 4, 12), random(rng, 12, 5)
    for sizes in ([12], [5, 7], [1] * 12, [3, 1, 8]):
        row_max, row_sum, acc = steps(student, scores, values, sizes)
        close(acc / row_sum[:, None], torch.softmax(scores, dim=1) @ values)
        close(row_max, scores.amax(dim=1))
        close(row_max + row_sum.log(), torch.logsumexp(scores, dim=1))


@graded(STEP, points=1)
def test_huge_scores_neither_overflow_nor_vanish(student, rng):
    values = random(rng, 6, 3)
    scores = random(rng, 2, 6) + torch.tensor([[9000.0], [-9000.0]]).double()
    scores[:, 3:] += 1000  # and the maximum jumps
    kept = [x.clone() for x in (scores, values)]
    _, row_sum, acc = steps(student, scores, values, [3, 3])
    close(acc / row_sum[:, None], torch.softmax(scores, dim=1) @ values)
    assert torch.equal(scores, kept[0]) and torch.equal(values, kept[1])


@graded(STEP, points=1)
def test_hidden_keys_before_between_and_after(student, rng):
    scores, values = random(rng, 4, 9), random(rng, 9, 2)
    scores[0, :3] = -INF  # nothing in the first tile
    scores[1, 3:6] = -INF  # nothing in the second
    scores[2] = -INF  # nothing at all
    scores[3, 1::2] = -INF
    row_max, row_sum, acc = steps(student, scores, values, [3, 3, 3])
    assert (row_max[2], row_sum[2], acc[2].tolist()) == (-INF, 0, [0, 0])
    seen = torch.tensor([0, 1, 3])
    close((acc / row_sum[:, None])[seen], torch.softmax(scores[seen], dim=1) @ values)


# ---- merge_two


@graded(MERGE, points=1)
def test_three_parts_of_two_and_one_part_of_six(student):
    out, lse = student.merge_two(
        torch.tensor([[2.0]]), torch.tensor([math.log(3)]), torch.tensor([[6.0]]), torch.tensor([0.0])
    )
    close(out, torch.tensor([[3.0]]), 1e-6)
    close(lse, torch.tensor([math.log(4)]), 1e-6)


@graded(MERGE, points=1)
def test_any_cut_and_any_order_give_attention_over_all_keys(student, rng):
    q, k, v = 2 * random(rng, 5, 8), 2 * random(rng, 12, 8), random(rng, 12, 3)
    a, b, c = (dense(q, k[part], v[part]) for part in (slice(0, 2), slice(2, 9), slice(9, 12)))
    whole = dense(q, k, v)
    for found in (
        student.merge_two(*student.merge_two(*a, *b), *c),
        student.merge_two(*a, *student.merge_two(*b, *c)),
        student.merge_two(*student.merge_two(*c, *a), *b),
    ):
        close(found[0], whole[0])
        close(found[1], whole[1])


@graded(MERGE, points=1)
def test_a_part_without_keys_changes_nothing_and_huge_scores_are_fine(student, rng):
    out, lse = random(rng, 4, 3), torch.tensor([1.0, 9000.0, -9000.0, -INF], dtype=torch.float64)
    out[3] = 0
    empty = torch.zeros(4, 3, dtype=torch.float64), torch.full((4,), -INF, dtype=torch.float64)
    for found in (student.merge_two(out, lse, *empty), student.merge_two(*empty, out, lse)):
        close(found[0], out)
        close(found[1], lse)
    found = student.merge_two(out, lse, out, lse)
    close(found[0], out)
    close(found[1], lse + math.log(2))


# ---- visited_tiles


@graded(TILES, points=1)
def test_small_triangles(student):
    assert student.visited_tiles(4, 4, block_q=2, block_k=2) == (1, 2)
    assert student.visited_tiles(4, 4, block_q=1, block_k=1) == (10, 0)
    assert student.visited_tiles(2, 5, block_q=2, block_k=2) == (2, 1)
    assert student.visited_tiles(1, 7, block_q=4, block_k=4) == (2, 0)


@graded(TILES, points=1)
def test_a_prompt_of_a_hundred_thousand_tokens(student):
    assert student.visited_tiles(102_400, 102_400, block_q=256, block_k=256) == (400 * 399 // 2, 400)


def count_by_pairs(q_len, k_len, block_q, block_k, window):
    sees = ~future(q_len, k_len)
    if window is not None:
        sees &= ~torch.ones(q_len, k_len, dtype=torch.bool).tril(k_len - q_len - window)
    tiles = [tile for rows in sees.split(block_q) for tile in rows.split(block_k, dim=1)]
    full = sum(bool(tile.all()) for tile in tiles)
    return full, sum(bool(tile.any()) for tile in tiles) - full


@graded(TILES, points=2)
def test_agrees_with_pairs_looked_at_one_by_one(student, rng):
    cases = [(6, 6, 2, 2, 3), (9, 4, 2, 3, None), (5, 12, 3, 4, 1), (8, 8, 3, 3, 20)]
    for _ in range(12):
        lengths, blocks = (torch.randint(1, most, (2,), generator=rng).tolist() for most in (20, 6))
        cases.append((*lengths, *blocks, None))
        cases.append((*cases[-1][:4], int(torch.randint(1, 12, (), generator=rng))))
    found = [student.visited_tiles(q, k, block_q=p, block_k=r, window=w) for q, k, p, r, w in cases]
    assert [tuple(x) for x in found] == [count_by_pairs(*case) for case in cases]


# ---- padded_flash


@graded(PADDED, points=1)
def test_the_largest_score_may_come_first(student, rng):
    q, v = random(rng, 7, 4), random(rng, 10, 3)
    k = random(rng, 10, 4) * torch.linspace(6, 0.5, 10, dtype=torch.float64)[:, None]
    is_key = torch.ones(10, dtype=torch.bool)
    out, lse = dense(q, k, v)
    for block_q, block_k in ((7, 10), (3, 4), (2, 1)):
        found = student.padded_flash(q, k, v, is_key, block_q=block_q, block_k=block_k)
        close(found[0], out)
        close(found[1], lse)


@graded(PADDED, points=1)
def test_padding_after_the_keys_has_no_weight(student, rng):
    out, lse = student.padded_flash(
        torch.zeros(1, 1), torch.tensor([[0.0], [7.0], [0.0]]), torch.tensor([[1.0], [5.0], [3.0]]),
        torch.tensor([True, False, True]), block_q=1, block_k=2,
    )  # fmt: skip
    close(out, torch.tensor([[2.0]]), 1e-6)
    close(lse, torch.tensor([math.log(2)]), 1e-6)
    q, k, v = random(rng, 3, 4), random(rng, 8, 4), random(rng, 8, 2)
    k[6:], v[6:] = 1e3, 1e9  # padding may hold anything
    is_key = torch.arange(8) < 6
    found = student.padded_flash(q, k, v, is_key, block_q=2, block_k=4)
    close(found[0], dense(q, k[:6], v[:6])[0])
    close(found[1], dense(q, k[:6], v[:6])[1])


@graded(PADDED, points=1)
def test_a_prompt_padded_on_the_left(student, rng):
    q, k, v = random(rng, 3, 4), random(rng, 11, 4), random(rng, 11, 2)
    is_key = (torch.arange(11) >= 6) & (torch.arange(11) != 8)
    out, lse = dense(q, k[is_key], v[is_key])
    found = student.padded_flash(q, k, v, is_key, block_q=2, block_k=3)
    close(found[0], out)
    close(found[1], lse)


@graded(PADDED, points=1)
def test_padding_may_hold_nan_and_inf(student, rng):
    q, k, v = random(rng, 3, 4), random(rng, 9, 4), random(rng, 9, 2)
    is_key = torch.arange(9) % 3 != 1
    expected = dense(q, k[is_key], v[is_key])
    k[1], v[1], k[4], v[4], v[7] = INF, -INF, math.nan, math.nan, INF
    for block_q, block_k in ((3, 9), (2, 4)):
        found = student.padded_flash(q, k, v, is_key, block_q=block_q, block_k=block_k)
        close(found[0], expected[0])
        close(found[1], expected[1])


@graded(PADDED, points=1)
def test_nothing_but_padding(student, rng):
    found = student.padded_flash(
        random(rng, 3, 4), random(rng, 5, 4), random(rng, 5, 2), torch.zeros(5, dtype=torch.bool), block_q=2, block_k=2
    )
    assert found[0].tolist() == [[0, 0]] * 3 and found[1].tolist() == [-INF] * 3


@graded(PADDED, points=1)
def test_makes_no_score_matrix_and_picks_no_keys(student, rng):
    q, k, v = random(rng, 40, 4), random(rng, 50, 4), random(rng, 50, 4)  # 2000 pairs, tensors up to 600 numbers
    is_key = torch.arange(50) % 7 < 5  # some in every tile
    found = []
    flops = count_flops(lambda: found.extend(student.padded_flash(q, k, v, is_key, block_q=8, block_k=8)))
    close(found[0], dense(q, k[is_key], v[is_key])[0])
    assert flops >= 4 * 40 * 50 * 4, "two products for each tile, padding included: it is masked, not cut out"


# ---- flash_on_meter


def promised_room(q_len, k_len, d, block_q, block_k):
    """Numbers that fit into the SRAM, as the docstring says."""
    rows, keys = min(block_q, q_len), min(block_k, k_len)
    return 2 * rows * d + 2 * keys * d + rows * keys + 4 * rows


def run_on_meter(student, rng, q_len, k_len, d, block_q, block_k, causal=False, room_to_spare=0, apart=0.0):
    """The task on a meter with the SRAM that the docstring promises. Scores are about -apart² · sqrt(d)."""
    room = promised_room(q_len, k_len, d, block_q, block_k) + room_to_spare
    meter = Meter(8 * room, dtype=torch.float64, trace=True)
    q, k, v = 2 * random(rng, q_len, d) + apart, random(rng, k_len, d) - apart, random(rng, k_len, d)
    hbm = [meter.hbm(name, x) for name, x in (("q", q), ("k", k), ("v", v))]
    out = meter.empty("out", (q_len, d))
    counts = student.flash_on_meter(meter, *hbm, out, block_q=block_q, block_k=block_k, causal=causal)
    assert counts == meter.total
    close(out.result(), dense(q, k, v, future(q_len, k_len) if causal else None)[0])
    return meter


@graded(METER, points=1)
def test_one_program_and_one_tile(student, rng):
    run_on_meter(student, rng, 4, 6, 8, 4, 6)
    run_on_meter(student, rng, 1, 1, 2, 1, 1)


@graded(METER, points=1)
def test_bytes_of_k_and_v_once_for_each_block_of_queries(student, rng):
    meter = run_on_meter(student, rng, 12, 16, 8, 4, 4)
    by_tensor = {name: (tensor.bytes_read // 8, tensor.bytes_written // 8) for name, tensor in meter.tensors.items()}
    assert by_tensor["q"] == (12 * 8, 0), "a program loads its rows of q once, before the loop"
    assert by_tensor["out"] == (0, 12 * 8), "out is stored once, after the loop, and never read"
    assert by_tensor["k"] == by_tensor["v"] == (3 * 16 * 8, 0), "each of the 3 programs reads k and v once"
    assert meter.total.hbm_bytes == 8 * (2 * 12 * 8 + 2 * 3 * 16 * 8)
    assert (meter.total.launches, meter.total.programs) == (1, 3)


@graded(METER, points=1)
def test_holds_no_more_than_it_needs_even_with_room_to_spare(student, rng):
    meter = run_on_meter(student, rng, 8, 12, 4, 4, 3, room_to_spare=1000)
    assert meter.total.peak_sram_bytes <= 8 * promised_room(8, 12, 4, 4, 3), "free k, v and scores after each step"


@graded(METER, points=1)
def test_scores_far_below_zero(student, rng):
    run_on_meter(student, rng, 4, 6, 4, 2, 3, apart=30)  # exp(-1800) is 0
    run_on_meter(student, rng, 5, 5, 4, 2, 2, causal=True, apart=30)


@graded(METER, points=1)
def test_lengths_that_no_block_divides(student, rng):
    for q_len, k_len, d, block_q, block_k in ((7, 5, 3, 2, 4), (3, 11, 4, 8, 3), (5, 5, 4, 2, 2)):
        meter = run_on_meter(student, rng, q_len, k_len, d, block_q, block_k)
        assert meter.total.bytes_read == 8 * (q_len * d + -(-q_len // block_q) * 2 * k_len * d)
        assert meter.total.matmul_flops == 4 * q_len * k_len * d


@graded(METER, points=2)
def test_causal_loads_and_multiplies_only_what_is_seen(student, rng):
    for length, d, block_q, block_k in ((5, 4, 2, 2), (12, 4, 4, 4), (13, 4, 3, 5), (9, 3, 4, 2), (6, 2, 1, 3)):
        meter = run_on_meter(student, rng, length, length, d, block_q, block_k, causal=True)
        keys = pairs = boundary = 0
        for i in range(0, length, block_q):
            last = min(i + block_q, length)
            seen = min(-(-last // block_k) * block_k, length)  # whole blocks
            keys += seen
            pairs += seen * (last - i)
            boundary += sum(min(j + block_k, length) - 1 > i for j in range(0, seen, block_k))
        assert meter.total.matmul_flops <= 4 * pairs * d, "multiplies blocks of keys that no query of a program sees"
        assert meter.total.bytes_read <= 8 * (length * d + 2 * keys * d), "loads blocks of keys that nobody sees"
        assert meter.total.bytes_written == 8 * length * d
        masks = sum(event.name == "mask" for event in meter.trace)
        assert masks <= boundary, "masks blocks that all queries of a program see in full"


# ---- flash_backward


def gradients(rng, q_len, k_len, d, dim, causal):
    """q, k, v, out, lse, d_out and the gradients by autograd through the whole score matrix."""
    q, k, v = (2 * random(rng, n, m) for n, m in ((q_len, d), (k_len, d), (k_len, dim)))
    d_out = random(rng, q_len, dim)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out, lse = dense(*leaves, future(q_len, k_len) if causal else None)
    out.backward(d_out)
    return (q, k, v, out.detach(), lse.detach(), d_out), [x.grad for x in leaves]


def check_backward(student, rng, q_len, k_len, d, dim, block_q, block_k, causal):
    inputs, expected = gradients(rng, q_len, k_len, d, dim, causal)
    found = student.flash_backward(*inputs, block_q=block_q, block_k=block_k, causal=causal)
    for mine, theirs in zip(found, expected, strict=True):
        close(mine, theirs)


@graded(BACKWARD, points=1)
def test_two_keys_by_hand(student):
    q, k, v = torch.tensor([[1.0]]), torch.tensor([[0.0], [0.0]]), torch.tensor([[1.0], [3.0]])
    dq, dk, dv = student.flash_backward(
        q, k, v, torch.tensor([[2.0]]), torch.tensor([math.log(2)]), torch.tensor([[1.0]]),
        block_q=1, block_k=2, causal=False,
    )  # fmt: skip
    close(torch.cat([dq, dk, dv]), torch.tensor([[0.0], [-0.5], [0.5], [0.5], [0.5]]), 1e-6)


@graded(BACKWARD, points=1)
def test_one_tile_equals_autograd(student, rng):
    check_backward(student, rng, 6, 9, 4, 3, 6, 9, causal=False)
    check_backward(student, rng, 5, 5, 4, 4, 5, 5, causal=True)


@graded(BACKWARD, points=1)
def test_many_tiles_and_tails_equal_autograd(student, rng):
    for q_len, k_len, block_q, block_k in ((6, 8, 2, 4), (7, 10, 3, 4), (5, 3, 1, 2)):
        check_backward(student, rng, q_len, k_len, 4, 5, block_q, block_k, causal=False)


@graded(BACKWARD, points=1)
def test_causal_with_more_keys_than_queries(student, rng):
    for q_len, k_len, block_q, block_k in ((8, 8, 2, 2), (9, 9, 2, 4), (5, 12, 2, 3), (9, 10, 4, 3)):
        check_backward(student, rng, q_len, k_len, 4, 3, block_q, block_k, causal=True)


@graded(BACKWARD, points=2)
def test_five_products_for_each_visited_tile_and_no_score_matrix(student, rng):
    length, d, block = 96, 16, 16  # 9216 pairs, tensors up to 2000 numbers
    tiles = length // block
    for causal, visited in ((False, tiles * tiles), (True, tiles * (tiles + 1) // 2)):
        inputs, expected = gradients(rng, length, length, d, d, causal)
        found = []
        flops = count_flops(
            lambda: found.extend(student.flash_backward(*inputs, block_q=block, block_k=block, causal=causal))  # noqa: B023
        )
        for mine, theirs in zip(found, expected, strict=True):
            close(mine, theirs)
        assert flops < 5.5 * 2 * visited * block * block * d, "more than five products for each tile that is seen"
