"""Chapter 06: matrix products. Run: python3 tasks.py grade ch06"""

from __future__ import annotations

from itertools import product

import pytest
import torch

from minillm.grading import Task, graded
from minillm.perf.meter import Meter

BYTES = Task(
    "bytes_moved",
    hints=(
        "How many tiles of C need a given row of A? How many need a given column of B?",
        "A is read once for each of the ceil(n / block_n) columns of tiles, B once for each of the ceil(m / block_m) rows "
        "of tiles; C is written once. In integers, ceil(a / b) is -(-a // b).",
    ),
)
SECTORS = Task(
    "count_sectors",
    hints=(
        "In which sector does the first byte of a number lie, in which the last?",
        "Put address // 32 … (address + itemsize - 1) // 32 of every active lane into a set, and count it.",
    ),
    forbids=("minillm.perf.warp_requests.sectors_touched", "minillm.perf.warp_requests.Request"),
)
TILE = Task(
    "choose_tile",
    hints=(
        "Try all pairs of sizes. For each: how many numbers are held, and how many FLOPs does a number loaded feed?",
        "held = block_m·block_n + num_stages·block_k·(block_m + block_n) numbers; the score is "
        "block_m·block_n / (block_m + block_n).",
    ),
)
LINEAR = Task(
    "linear_on_meter",
    hints=(
        "The rows of x are loaded outside of the loop over j; a view of that tile, rows[:, p:q], costs nothing.",
        "kernel → program(i) → load x[i : i + block_m] → for j, in a scope: zeros, for depth, in a scope: load the tile "
        "of weight, matmul(rows[:, …], tile.T, into=acc) → store.",
    ),
    forbids=("minillm.gemm.metered.run", "minillm.gemm.metered_tile.make_tile"),
    seconds=20,
)
ORDER = Task(
    "tile_of_program",
    hints=(
        "Write the numbers of the programs into a 3 × 2 grid by hand, in groups of 2. How high is the last group?",
        "A full group has group_m · tiles_n programs. Inside a group, divide and take the remainder by the rows that "
        "this group really has, min(group_m, tiles_m - first_m), and count from the group's own first program.",
    ),
    forbids=("minillm.kernels.order.grouped_order",),
)
PACKED = Task(
    "packed_matmul",
    hints=(
        "Which of the three parts fails? Panels: fill up with zeros to a whole number of panels, then a reshape and a "
        "transpose. Tails: where has C no room for a whole tile, and who adds the part that exists?",
        "A panel of A times a panel of B is always a whole tile. Let micro_kernel add it to a tile of zeros, and add "
        "tile[:rows, :columns] to the part of C that exists.",
    ),
    forbids=(
        "torch.matmul",
        "torch.mm",
        "torch.addmm",
        "torch.bmm",
        "torch.einsum",
        "torch.tensordot",
        "torch.nn.functional.linear",
        "torch.Tensor.__matmul__",
        "torch.Tensor.__rmatmul__",
        "torch.Tensor.matmul",
        "torch.Tensor.mm",
        "torch.Tensor.addmm_",
    ),
)


# ---- bytes_moved


def check_bytes(student, cases):
    """Each case: m, n, k, block_m, block_n, bytes_per_number, and the bytes expected."""
    found = [
        student.bytes_moved(m, n, k, block_m=block_m, block_n=block_n, bytes_per_number=size)
        for m, n, k, block_m, block_n, size, _ in cases
    ]
    for (m, n, k, block_m, block_n, bytes_per_number, expected), moved in zip(cases, found, strict=True):
        sizes = f"{m=}, {n=}, {k=}, {block_m=}, {block_n=}, {bytes_per_number=}"
        assert moved == expected, f"bytes_moved({sizes}) gave {moved}, expected {expected}"


@graded(BYTES, points=1)
def test_a_tile_reads_the_rows_and_columns_that_it_needs(student):
    assert student.bytes_moved(4, 4, 10, block_m=2, block_n=2) == 4 * 4 * (20 + 20 + 4)
    check_bytes(student, [(4, 4, 10, 1, 1, 1, 16 * (10 + 10 + 1)), (6, 4, 5, 3, 1, 2, 2 * 8 * (15 + 5 + 3))])


@graded(BYTES, points=2)
def test_agrees_with_tiles_read_one_by_one_ragged_edges_included(student, rng):
    cases = []
    for m, n, k, block_m, block_n in [(5, 8, 3, 2, 3), *torch.randint(1, 13, (6, 5), generator=rng).tolist()]:
        numbers = 0
        for i, j in product(range(0, m, block_m), range(0, n, block_n)):
            rows, columns = len(range(m)[i : i + block_m]), len(range(n)[j : j + block_n])
            numbers += rows * k + k * columns + rows * columns
        cases.append((m, n, k, block_m, block_n, 2, 2 * numbers))
    check_bytes(student, cases)


# ---- count_sectors


def check_sectors(student, loads):
    """Each load: addresses, itemsize, and the sectors expected."""
    found = [student.count_sectors(addresses, itemsize) for addresses, itemsize, _ in loads]
    for (addresses, itemsize, expected), sectors in zip(loads, found, strict=True):
        assert sectors == expected, f"count_sectors({addresses}, {itemsize=}) gave {sectors}, expected {expected}"


@graded(SECTORS, points=1)
def test_neighbours_share_sectors_and_strangers_do_not(student):
    neighbours, strangers = [4 * lane for lane in range(32)], [256 * lane for lane in range(32)]
    halves = [2 * lane for lane in range(32)]
    check_sectors(student, [(neighbours, 4, 4), (strangers, 4, 32), ([64] * 32, 4, 1), (halves, 2, 2)])


@graded(SECTORS, points=1)
def test_a_shifted_load_and_a_wide_number_may_need_one_more(student):
    shifted, odd = [4 + 4 * lane for lane in range(32)], [33 + 4 * lane for lane in range(31)]
    check_sectors(student, [(shifted, 4, 5), ([28], 8, 2), ([24], 8, 1), (odd, 1, 4)])


@graded(SECTORS, points=1)
def test_any_order_and_lanes_that_take_no_part(student, rng):
    loads = [([None] * 32, 4, 0), ([0, None, 96, None, 4, 100], 4, 2), ([0, 4, 96, 100, 8], 4, 2), ([0], 4, 1)]
    for itemsize in (1, 2, 4, 8, 16):
        addresses = torch.randint(0, 2000, (32,), generator=rng).tolist()
        addresses[5] = None
        touched = {(a + i) // 32 for a in addresses if a is not None for i in range(itemsize)}
        loads.append((addresses, itemsize, len(touched)))
    check_sectors(student, loads)


# ---- choose_tile


@graded(TILE, points=1)
def test_the_example_with_one_buffer_and_with_two(student):
    assert student.choose_tile(4096, (8, 16, 32), block_k=8) == (16, 32)
    assert student.choose_tile(4096, (8, 16, 32), block_k=8, num_stages=2) == (16, 16)


@graded(TILE, points=1)
def test_a_tile_that_fills_the_memory_to_the_last_byte_fits(student):
    held = 32 * 32 + 16 * (32 + 32)
    assert student.choose_tile(4 * held, (16, 32), block_k=16) == (32, 32)
    assert student.choose_tile(4 * held - 1, (16, 32), block_k=16) == (16, 32)
    with pytest.raises(ValueError):
        student.choose_tile(100, (16, 32), block_k=16)


@graded(TILE, points=1)
def test_no_tile_that_fits_reads_less(student, rng):
    results = []
    for sram_kib, block_k, num_stages, bytes_per_number in ((48, 32, 1, 4), (48, 32, 2, 4), (227, 64, 3, 2), (20, 8, 4, 2)):
        sizes = (16 + 16 * torch.randperm(12, generator=rng)[:6]).tolist()
        fitting = []
        for block_m, block_n in product(sizes, sizes):
            held = block_m * block_n + num_stages * (block_m * block_k + block_k * block_n)
            if held * bytes_per_number <= sram_kib * 1024:
                fitting.append((block_m, block_n))
        tile = student.choose_tile(
            sram_kib * 1024, sizes, block_k=block_k, num_stages=num_stages, bytes_per_number=bytes_per_number
        )
        results.append((tile, fitting))
    for tile, fitting in results:
        assert tile in fitting
        loads = {(m, n): (m + n) / (m * n) for m, n in fitting}  # numbers of A and B for each multiply-add
        assert loads[tile] == pytest.approx(min(loads.values()))
        assert tile[0] <= tile[1]


# ---- linear_on_meter


PLENTY = 10_000  # numbers of room to spare


def run_linear(student, rng, m, n, k, block_m, block_n, block_k, *, rooms=(PLENTY, 0)):
    """The task with room to spare, where everybody's tile fits and is counted, and then on a meter whose SRAM has
    exactly the room that the docstring promises. Returns the last meter.
    """
    x, weight = torch.randn(m, k, generator=rng), torch.randn(n, k, generator=rng)
    block_m, block_n, block_k = min(block_m, m), min(block_n, n), min(block_k, k)
    sram_numbers = block_m * k + block_n * block_k + block_m * block_n
    for room in rooms:
        meter = Meter(4 * (sram_numbers + room), register_bytes=4 * block_m * block_n)
        x_hbm, weight_hbm, y = meter.hbm("x", x), meter.hbm("weight", weight), meter.empty("y", (m, n))
        counts = student.linear_on_meter(meter, x_hbm, weight_hbm, y, block_m=block_m, block_n=block_n, block_k=block_k)
        assert counts == meter.total
        torch.testing.assert_close(y.result(), x @ weight.T, rtol=1e-4, atol=1e-4)
    return meter


@graded(LINEAR, points=1)
def test_equals_x_times_the_transposed_weight(student, rng):
    run_linear(student, rng, 4, 6, 8, 2, 3, 4)
    run_linear(student, rng, 1, 1, 1, 1, 1, 1)


@graded(LINEAR, points=2)
def test_reads_x_once_and_weight_once_for_each_block_of_rows(student, rng):
    meter = run_linear(student, rng, 12, 8, 16, 4, 4, 8)
    assert meter.tensors["x"].bytes_read == 4 * 12 * 16
    assert meter.tensors["weight"].bytes_read == 4 * 3 * 8 * 16
    assert meter.tensors["y"].bytes_written == 4 * 12 * 8
    assert meter.total.hbm_bytes == 4 * (12 * 16 + 3 * 8 * 16 + 12 * 8)


@graded(LINEAR, points=1)
def test_holds_no_more_than_it_needs_even_with_room_to_spare(student, rng):
    meter = run_linear(student, rng, 6, 8, 12, 3, 4, 4, rooms=(PLENTY,))
    assert meter.total.peak_sram_bytes <= 4 * (3 * 12 + 4 * 4 + 3 * 4)


@graded(LINEAR, points=2)
def test_ragged_edges_in_one_launch_and_no_wasted_flops(student, rng):
    for m, n, k, *blocks in ((7, 5, 9, 3, 2, 4), (3, 20, 5, 8, 6, 2), (5, 3, 4, 2, 8, 8)):
        meter = run_linear(student, rng, m, n, k, *blocks)
        assert (meter.total.launches, meter.total.programs) == (1, -(-m // blocks[0]))
        assert meter.total.bytes_read == 4 * (m * k + -(-m // blocks[0]) * n * k)
        assert meter.total.matmul_flops == 2 * m * n * k


# ---- tile_of_program


def whole_order(student, tiles_m, tiles_n, group_m):
    programs = range(tiles_m * tiles_n)
    return [tuple(student.tile_of_program(program, tiles_m, tiles_n, group_m)) for program in programs]


@graded(ORDER, points=1)
def test_a_last_group_with_fewer_rows(student):
    assert whole_order(student, 3, 2, 2) == [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (2, 1)]


@graded(ORDER, points=1)
def test_every_tile_is_made_once_and_none_outside(student):
    for tiles_m, tiles_n, group_m in ((8, 8, 4), (9, 9, 3), (5, 7, 3), (7, 3, 4), (1, 6, 4), (6, 1, 4), (3, 5, 8)):
        order = whole_order(student, tiles_m, tiles_n, group_m)
        assert sorted(order) == list(product(range(tiles_m), range(tiles_n)))


@graded(ORDER, points=2)
def test_goes_down_the_group_then_right_then_to_the_next_group(student):
    for tiles_m, tiles_n, group_m in ((4, 6, 2), (5, 3, 2), (5, 7, 3), (7, 4, 3), (2, 5, 4), (4, 4, 1)):
        expected = sorted(
            product(range(tiles_m), range(tiles_n)), key=lambda tile: (tile[0] // group_m, tile[1], tile[0])  # noqa: B023
        )
        assert whole_order(student, tiles_m, tiles_n, group_m) == expected


# ---- packed_matmul


@graded(PACKED, points=1)
def test_panels_lie_in_the_order_of_reading(student):
    panels = student.pack_panels(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), 2)
    assert panels.tolist() == [[[1, 2], [4, 5]], [[3, 0], [6, 0]]]
    assert panels.is_contiguous()
    a = torch.arange(6.0).reshape(3, 2)  # packed as A: rows 0 and 1 side by side, then row 2 with a zero
    assert student.pack_panels(a.T, 2).flatten().tolist() == [0, 2, 1, 3, 4, 0, 5, 0]


@graded(PACKED, points=1)
def test_panels_can_be_unpacked_again(student, rng):
    for depth, columns, width in ((3, 8, 4), (1, 5, 3), (4, 2, 6), (5, 7, 1)):
        matrix = torch.randn(depth, columns, generator=rng, dtype=torch.float64)
        before = matrix.clone()
        panels = student.pack_panels(matrix, width)
        assert panels.dtype == matrix.dtype
        assert panels.shape == (-(-columns // width), depth, width)
        unpacked = torch.cat(list(panels), dim=1)
        assert torch.equal(unpacked[:, :columns], matrix)
        assert unpacked[:, columns:].count_nonzero() == 0
        assert torch.equal(matrix, before)


@graded(PACKED, points=1)
def test_a_micro_kernel_adds_outer_products(student, rng):
    tile = torch.full((2, 3), 10.0)
    student.micro_kernel(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0, 3.0]]), tile)
    assert tile.tolist() == [[11, 12, 13], [12, 14, 16]]
    a_panel, b_panel = torch.randn(5, 4, generator=rng), torch.randn(5, 6, generator=rng)
    tile = torch.randn(4, 6, generator=rng)
    expected = tile + a_panel.T @ b_panel
    student.micro_kernel(a_panel, b_panel, tile)
    torch.testing.assert_close(tile, expected)


@graded(PACKED, points=2)
def test_a_product_of_whole_tiles(student, rng):
    a, b = torch.randn(4, 6, generator=rng), torch.randn(6, 9, generator=rng)
    c = student.packed_matmul(a, b, tile_rows=2, tile_columns=3, block_k=3)
    torch.testing.assert_close(c, a @ b)


@graded(PACKED, points=1)
def test_packs_each_piece_once_and_makes_every_tile_with_the_micro_kernel(student, rng):
    packed, made = [], []
    pack_panels, micro_kernel = student.pack_panels, student.micro_kernel

    def watched_pack_panels(matrix, width):
        packed.append((*matrix.shape, width))
        return pack_panels(matrix, width)

    def watched_micro_kernel(a_panel, b_panel, tile):
        made.append((*a_panel.shape, *b_panel.shape, *tile.shape))
        return micro_kernel(a_panel, b_panel, tile)

    student.pack_panels, student.micro_kernel = watched_pack_panels, watched_micro_kernel
    try:
        a, b = torch.randn(5, 4, generator=rng), torch.randn(4, 7, generator=rng)
        student.packed_matmul(a, b, tile_rows=2, tile_columns=3, block_k=3)
    finally:
        student.pack_panels, student.micro_kernel = pack_panels, micro_kernel
    assert sorted(packed) == sorted([(3, 5, 2), (3, 7, 3), (1, 5, 2), (1, 7, 3)])  # k in pieces of 3 and 1
    assert sorted(made) == sorted([(3, 2, 3, 3, 2, 3)] * 9 + [(1, 2, 1, 3, 2, 3)] * 9)  # 3 panels of a, 3 of b


@graded(PACKED, points=3)
def test_a_product_with_tails_everywhere(student, rng):
    products = []
    for m, n, k, rows, columns, block_k in ((1, 1, 1, 4, 4, 4), (5, 7, 8, 2, 3, 3), (3, 10, 5, 4, 8, 2), (13, 6, 7, 12, 4, 16)):
        a = torch.randn(m, k, generator=rng, dtype=torch.float64)
        b = torch.randn(k, n, generator=rng, dtype=torch.float64)
        expected, before = a @ b, (a.clone(), b.clone())
        products.append((student.packed_matmul(a, b, tile_rows=rows, tile_columns=columns, block_k=block_k), expected))
        assert torch.equal(a, before[0]) and torch.equal(b, before[1])
    for c, expected in products:
        torch.testing.assert_close(c, expected)
