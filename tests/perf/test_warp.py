"""The simulated GPU: sectors, banks and operations by closed forms; the mistakes that it must find."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.perf.warp import KernelError, Run, bind, cuda, simulate
from minillm.perf.warp_requests import bank_passes, sectors_touched

STRIDE = 1  # read by the kernels here, replaced by `bind`


def numbers(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


# ---- requests


@settings(deadline=None)
@given(
    elements=st.lists(st.none() | st.integers(0, 500), max_size=32),
    itemsize=st.sampled_from([1, 2, 4, 8, 16]),
    shift=st.integers(0, 31),
)
def test_sectors_are_those_of_the_touched_bytes(elements: list[int | None], itemsize: int, shift: int) -> None:
    addresses = [None if element is None else element * itemsize + shift for element in elements]
    touched = {
        byte // 32 for address in addresses if address is not None for byte in range(address, address + itemsize)
    }
    assert sectors_touched(addresses, itemsize) == sorted(touched)


@settings(deadline=None)
@given(st.lists(st.none() | st.integers(0, 300), min_size=32, max_size=32))
def test_passes_are_the_fullest_bank(words: list[int | None]) -> None:
    passes = bank_passes([None if word is None else 4 * word for word in words], 4)
    columns = [len({word for word in words if word is not None and word % 32 == bank}) for bank in range(32)]
    assert passes == max(columns)


def test_wide_elements_take_turns_by_design() -> None:
    in_a_row = [8 * lane for lane in range(32)]
    assert bank_passes(in_a_row, 8) == 2  # half a warp at a time
    assert bank_passes([16 * lane for lane in range(32)], 16) == 4
    assert bank_passes([16 * lane for lane in range(32)], 8) == 4  # two-way conflict in each half
    assert bank_passes([2 * lane for lane in range(32)], 2) == 1  # two lanes a word


def copy_strided(source: Any, target: Any) -> None:
    i = cuda.grid(1)
    target[i] = source[i * STRIDE]


@pytest.mark.parametrize(("dtype", "stride", "expected"), [
    (np.float32, 1, 4), (np.float32, 2, 8), (np.float32, 8, 32), (np.float32, 100, 32),
    (np.float16, 1, 2), (np.float16, 16, 32), (np.float64, 1, 8), (np.float64, 3, 24), (np.int32, 1, 4),
])  # fmt: skip
def test_sectors_of_a_strided_load(dtype: type, stride: int, expected: int) -> None:
    """min(32, ⌈32 · stride · itemsize / 32⌉) for loads that start at a sector."""
    source = np.arange(64 * stride).astype(dtype)
    target = np.zeros(64, dtype)
    run = simulate(bind(copy_strided, STRIDE=stride), grid=2, block=32, args=(source, target))
    loads = run.traffic("global", "load")
    assert loads.requests == 2 and loads.sectors == 2 * expected and loads.sectors_per_request == expected
    assert loads.bytes_moved == 64 * expected and loads.bytes_requested == 64 * source.itemsize
    assert loads.efficiency == pytest.approx(source.itemsize / expected)
    assert np.array_equal(target, source[::stride]) and run.flops == 0


def test_lanes_that_take_no_part() -> None:
    def first_five(source: Any, target: Any) -> None:
        i = cuda.threadIdx.x
        if i < 5:
            target[i] = source[i]

    run = simulate(first_five, grid=1, block=40, args=(numbers(40), np.zeros(40, np.float32)))
    (load,) = run.select(kind="load")
    assert load.addresses == (0, 4, 8, 12, 16) + (None,) * 27 and load.bytes_requested == 20 and load.sectors == 1
    assert (load.array, load.warp, load.block, load.itemsize) == ("source", 0, (0, 0, 0), 4)


def test_lanes_are_counted_along_x_then_y_then_z() -> None:
    def where(target: Any) -> None:
        x, y, z = cuda.grid(3)
        target[x, y, z] = 1

    run = simulate(where, grid=(1, 1, 2), block=(4, 8, 2), args=(np.zeros((4, 8, 4), np.float32),))
    assert [(request.warp, request.block) for request in run.requests] == [
        (0, (0, 0, 0)),
        (1, (0, 0, 0)),
        (0, (0, 0, 1)),
        (1, (0, 0, 1)),
    ]
    strides = (8 * 4 * 4, 4 * 4, 4)
    assert run.requests[1].addresses[5] == 1 * strides[0] + 1 * strides[1] + 1 * strides[2]


def test_transposed_and_sliced_arrays_keep_their_strides() -> None:
    def read_row(source: Any, target: Any) -> None:
        i = cuda.threadIdx.x
        target[i] = source[1, i]

    whole = numbers(64, 64)
    for source, expected in ((whole, 4), (whole.T, 32), (whole[:, ::2], 8), (torch.from_numpy(whole).T, 32)):
        target = np.zeros(32, np.float32)
        run = simulate(read_row, grid=1, block=32, args=(source, target))
        assert run.traffic(array="source").sectors == expected and np.array_equal(target, np.asarray(source)[1, :32])


# ---- operations


def test_operations_on_loaded_numbers_are_counted() -> None:
    def polynomial(x: Any, y: Any, degree: int) -> None:
        i = cuda.grid(1)
        total = np.float32(0)
        for _ in range(degree):
            total = total * x[i] + 1
        y[i] = -(total - 2) / 4 if total > 0 else 1 - total

    x, y = np.abs(numbers(40)), np.zeros(40, np.float32)
    run = simulate(polynomial, grid=2, block=20, args=(x, y, 3))
    assert run.flops == 40 * (3 * 2 + 2)
    assert np.allclose(y, -((x * x + x + 1) - 2) / 4, atol=1e-6) and run.num_blocks == 2 and run.threads_per_block == 20


def test_numbers_keep_the_precision_of_their_array() -> None:
    def add_up(x: Any, y: Any) -> None:
        total = np.float16(0)
        for i in range(x.shape[0]):
            total += x[i]
        y[0] = total

    x, y = np.full(4096, 1, np.float16), np.zeros(1, np.float32)
    simulate(add_up, grid=1, block=1, args=(x, y))
    assert y[0] == 2048  # in float16, 2048 + 1 is 2048


# ---- shared memory and barriers


def reverse(x: Any) -> None:
    tile = cuda.shared.array(64, np.float32)
    i = cuda.threadIdx.x
    tile[i] = x[i]
    cuda.syncthreads()
    x[i] = tile[63 - i]


def test_a_barrier_lets_threads_exchange() -> None:
    x = numbers(64)
    expected = x[::-1].copy()
    run = simulate(reverse, grid=1, block=64, args=(x,))
    assert np.array_equal(x, expected)
    assert run.barriers == 1 and run.shared_bytes == 256 and run.traffic("shared").conflicts == 0
    assert [request.array for request in run.select("shared")] == ["shared 0"] * 4


def test_shared_arrays_lie_one_after_the_other_and_belong_to_a_block() -> None:
    def two_arrays(x: Any) -> None:
        first = cuda.shared.array((2, 32), np.float32)
        second = cuda.shared.array(32, np.float32)
        i = cuda.threadIdx.x
        first[1, i] = x[i]
        second[i] = x[i]
        cuda.syncthreads()
        x[i] = first[1, 31 - i] + second[i]

    x = numbers(32)
    expected = x[::-1] + x
    run = simulate(two_arrays, grid=1, block=32, args=(x,))
    assert np.array_equal(x, expected) and run.shared_bytes == 384
    assert run.select(array="shared 1")[0].addresses[:2] == (256, 260)
    simulate(reverse, grid=1, block=64, args=(numbers(64),))  # a new launch finds nothing of the old one


def test_accesses_are_told_apart_by_iteration_and_barrier() -> None:
    def steps(x: Any, y: Any) -> None:
        i = cuda.threadIdx.x
        for step in range(3):
            y[i] = x[i * (step + 1)] + x[i]
            cuda.syncthreads()

    run = simulate(steps, grid=1, block=32, args=(numbers(96), np.zeros(32, np.float32)))
    assert [request.sectors for request in run.select(array="x")] == [4, 4, 8, 4, 12, 4] and run.barriers == 3


def test_lanes_that_went_different_ways_meet_again_at_a_barrier_and_in_the_next_block() -> None:
    def diverge(x: Any, y: Any) -> None:
        i, total = cuda.threadIdx.x, np.float32(0)
        for step in range(2):
            for _ in range(1 + i % 2 if step == 0 else 1):
                total += x[i]
            cuda.syncthreads()
        y[cuda.grid(1)] = total

    run = simulate(diverge, grid=1, block=32, args=(numbers(32), np.zeros(32, np.float32)))
    active = [sum(address is not None for address in request.addresses) for request in run.select(array="x")]
    assert sorted(active) == [16, 32, 32]

    def first_block_diverges(x: Any, y: Any) -> None:
        i = cuda.threadIdx.x
        if cuda.blockIdx.x == 1 or i % 2 == 0:
            y[cuda.grid(1)] = x[i]

    run = simulate(first_block_diverges, grid=2, block=32, args=(numbers(32), np.zeros(64, np.float32)))
    active = [sum(address is not None for address in request.addresses) for request in run.select(array="x")]
    assert active == [16, 32]


# ---- mistakes


def no_barrier(x: Any) -> None:
    tile = cuda.shared.array(64, np.float32)
    i = cuda.threadIdx.x
    tile[i] = x[i]
    x[i] = tile[63 - i]


def no_second_barrier(x: Any) -> None:
    tile = cuda.shared.array(64, np.float32)
    i = cuda.threadIdx.x
    for _ in range(2):
        tile[i] = x[i]
        cuda.syncthreads()
        x[i] = tile[63 - i]


def all_write_one(x: Any) -> None:
    tile = cuda.shared.array(1, np.float32)
    tile[0] = x[cuda.threadIdx.x]


def never_written(x: Any) -> None:
    tile = cuda.shared.array((2, 64), np.float32)
    tile[0, cuda.threadIdx.x] = x[cuda.threadIdx.x]
    cuda.syncthreads()
    x[cuda.threadIdx.x] = tile[1, cuda.threadIdx.x]


def neighbours(x: Any) -> None:
    i = cuda.grid(1)
    x[i] = x[(i + 1) % 64]


def blocks_share_an_element(x: Any) -> None:
    if cuda.threadIdx.x == 0:
        x[0] = 1


def block_reads_what_another_writes(x: Any) -> None:
    i = cuda.grid(1)
    if cuda.blockIdx.x == 0:
        x[i + 32] = 1
    else:
        x[i - 32] = x[i]


def reads_then_writes(x: Any) -> None:
    i = cuda.threadIdx.x
    x[0]
    cuda.syncthreads()
    x[0]
    if i == 1:
        x[0] = 1


def divergent_barrier(x: Any) -> None:
    if cuda.threadIdx.x < 10:
        cuda.syncthreads()


def two_barriers(x: Any) -> None:
    if cuda.threadIdx.x < 10:
        cuda.syncthreads()
    else:
        cuda.syncthreads()


def too_far(x: Any) -> None:
    x[cuda.threadIdx.x + 1] = 0


def negative(x: Any) -> None:
    x[cuda.threadIdx.x - 1] = 0


def two_indices(x: Any) -> None:
    x[0, cuda.threadIdx.x] = 0


def too_much(x: Any) -> None:
    cuda.shared.array((128, 96), np.float32)
    cuda.shared.array(1, np.float32)


def unset_register(x: Any) -> None:
    mine = cuda.local.array(2, np.float32)
    mine[0] = x[cuda.threadIdx.x]
    x[cuda.threadIdx.x] = mine[1]


def far_register(x: Any) -> None:
    mine = cuda.local.array(2, np.float32)
    mine[2] = x[cuda.threadIdx.x]


def helper_with_a_barrier(x: Any) -> None:
    wait = cuda.syncthreads
    wait()


@pytest.mark.parametrize(("kernel", "message"), [
    (no_barrier, r"shared 0\[63\] is read, but nobody has written"),
    (no_second_barrier, r"race on shared 0\[31\]: thread 32 .* reads it, thread 31 .* has written it"),
    (all_write_one, r"race on shared 0\[0\]: thread 1 .* writes it, thread 0 .* has written it"),
    (never_written, r"shared 0\[1, 0\] is read, but nobody has written it"),
    (neighbours, r"race on x\[1\]: thread 1 .* writes it, thread 0 .* has read it"),
    (blocks_share_an_element, r"race on x\[0\]: thread 0 of block \(1, 0, 0\) writes it, .* block \(0, 0, 0\)"),
    (block_reads_what_another_writes, r"race on x\[32\]: .* reads it, thread 0 of block \(0, 0, 0\) has written it"),
    (reads_then_writes, r"race on x\[0\]: thread 1 .* writes it, thread 0 .* has read it"),
    (divergent_barrier, r"reached by all threads of the block together; thread 0 waits, 54 of 64"),
    (two_barriers, "reached by all threads"),
    (too_far, r"x\[64\] is outside of shape \(64,\)"),
    (negative, r"x\[-1\] is outside"),
    (two_indices, r"expected 1 indices for shape \(64,\), got \[0, 0\]"),
    (too_much, "49152 bytes taken, 4 more asked for, 49152 there"),
    (unset_register, r"local array is read at \[1\], never written"),
    (far_register, r"local array has shape \(2,\), got index \[2\]"),
    (helper_with_a_barrier, "must be a statement of the kernel itself"),
])  # fmt: skip
def test_mistakes_are_found(kernel: Callable[..., None], message: str) -> None:
    blocks = 2 if "block" in kernel.__name__ and "barrier" not in kernel.__name__ else 1
    with pytest.raises(KernelError, match=message):
        simulate(kernel, grid=blocks, block=64 // blocks, args=(numbers(64),))


def test_an_error_names_the_line() -> None:
    line = too_far.__code__.co_firstlineno + 1
    with pytest.raises(KernelError, match=f"^line {line}: "):
        simulate(too_far, grid=1, block=64, args=(numbers(64),))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6))
def test_races_are_those_of_a_brute_force_search(seed: int) -> None:
    """A random program of a few threads, blocks and barriers, against all pairs of its accesses."""
    choose = random.Random(seed)
    blocks, threads, phases = choose.choice([(1, 2), (1, 4), (2, 1), (3, 2)]) + (3,)
    num_elements, share_of_writes = choose.randint(1, 4), choose.choice([0.1, 0.5])
    program = {
        (block, thread, phase): [
            ("w" if choose.random() < share_of_writes else "r", choose.randrange(num_elements))
            for _ in range(choose.randrange(3))
        ]
        for block in range(blocks)
        for thread in range(threads)
        for phase in range(phases)
    }

    def kernel(x: Any) -> None:
        for phase in range(phases):
            for what, element in program[cuda.blockIdx.x, cuda.threadIdx.x, phase]:
                if what == "w":
                    x[element] = 1
                else:
                    x[element]
            cuda.syncthreads()

    accesses = [(*where, what, element) for where, steps in program.items() for what, element in steps]

    def clash(mine: tuple[Any, ...], theirs: tuple[Any, ...]) -> bool:
        same_thread, same_block, same_phase = mine[:2] == theirs[:2], mine[0] == theirs[0], mine[2] == theirs[2]
        unordered = not same_thread and (not same_block or same_phase)
        return unordered and mine[4] == theirs[4] and "w" in (mine[3], theirs[3])

    has_race = any(clash(mine, theirs) for mine in accesses for theirs in accesses)
    found = False
    try:
        simulate(kernel, grid=blocks, block=threads, args=(numbers(4),))
    except KernelError as error:
        found = "race" in str(error)
    assert found == has_race


# ---- what can be simulated


def test_kernels_of_factories_with_defaults_and_decorators() -> None:
    def factory(scale: float) -> Callable[..., None]:
        def kernel(x: Any, shift: float = 1.0) -> None:
            """Its text says cuda.syncthreads() and means nothing."""
            x[cuda.grid(1)] = x[cuda.grid(1)] * scale + shift

        return kernel

    x = np.ones(4, np.float32)
    simulate(factory(3.0), grid=1, block=4, args=(x,))
    assert x.tolist() == [4.0] * 4

    class Decorated:  # as numba's dispatchers keep the function
        py_func = staticmethod(factory(2.0))

    simulate(Decorated.py_func, grid=1, block=4, args=(x,))
    assert x.tolist() == [9.0] * 4


def test_bind_leaves_the_original_alone() -> None:
    bound = bind(copy_strided, STRIDE=2)
    assert bound.__globals__["STRIDE"] == 2 and STRIDE == 1 and bound.__name__ == "copy_strided"


@pytest.mark.parametrize(("kernel", "grid", "block", "args", "message"), [
    (reverse, 1, 1025, (numbers(64),), "1024 threads at most"),
    (reverse, 0, 64, (numbers(64),), "at least 1 for grid, got 0"),
    (reverse, 1, (1, 1, 1, 1), (numbers(64),), "1 to 3 sizes"),
    (reverse, 1, 64, (numbers(64), 1), "takes 1 arguments, got 2"),
    (reverse, 1, 64, (numbers(64)[::-1],), "runs backwards"),
    (len, 1, 1, (), "can't be read"),
    (eval("lambda x: None"), 1, 1, (numbers(1),), "can't be read|defined with `def`"),
])  # fmt: skip
def test_what_cannot_be_simulated(kernel: Any, grid: Any, block: Any, args: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(kernel, grid=grid, block=block, args=args)


def test_the_names_mean_nothing_outside() -> None:
    with pytest.raises(RuntimeError, match=r"cuda.threadIdx has a meaning only inside a kernel"):
        cuda.threadIdx  # noqa: B018


def test_report() -> None:
    x = numbers(64)
    run = simulate(reverse, grid=1, block=64, args=(x,))
    first = reverse.__code__.co_firstlineno
    lines = run.report().splitlines()
    assert [line.split()[:5] for line in lines[1:-1]] == [
        [str(first + 3), "x", "global", "load", "2"],
        [str(first + 3), "shared", "0", "shared", "store"],
        [str(first + 5), "x", "global", "store", "2"],
        [str(first + 5), "shared", "0", "shared", "load"],
    ]
    assert (
        lines[-1].startswith("512 bytes of global memory moved, 0 FLOPs") and "256 bytes of shared memory" in lines[-1]
    )
    assert Run((), 0, 0, 0, 1, 1).report().splitlines()[-1].startswith("0 bytes")
