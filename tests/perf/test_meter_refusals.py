"""What can't be done on a GPU can't be done on the meter, and it says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.perf.meter import HbmTensor, Meter, Program


def setting(**options: Any) -> tuple[Meter, HbmTensor, HbmTensor]:
    meter = Meter(options.pop("sram_bytes", 256), **options)
    return meter, meter.hbm("X", torch.arange(16.0).reshape(4, 4)), meter.empty("Y", (4, 4))


def refused(action: Callable[[Program, HbmTensor, HbmTensor], object], message: str, **options: Any) -> None:
    meter, x, y = setting(**options)
    with pytest.raises(ValueError, match=message), meter.kernel("k") as kernel, kernel.program() as sram:
        action(sram, x, y)
    with meter.kernel("k") as kernel, kernel.program() as sram:  # and the meter goes on working
        sram.store(sram.load(x), y)
    assert torch.equal(y.result(), x.result())


def test_computing_in_hbm() -> None:
    lies = r"X(\[0:2, 0:4\])? lies in HBM: tile = sram.load\(X\["
    for action in (
        lambda s, x, y: x + 1,
        lambda s, x, y: 1 - x[:2],
        lambda s, x, y: x[:2] @ x[:2],
        lambda s, x, y: torch.ones(4, 4) * x,
        lambda s, x, y: torch.exp(x[:2]),
        lambda s, x, y: torch.stack([x]),
        lambda s, x, y: -x,
        lambda s, x, y: list(x),
        lambda s, x, y: torch.ones(4, 4) @ x[:2],
    ):
        refused(action, lies)
    load_it = "load it with sram.load"
    for action in (
        lambda s, x, y: s.load(x) + y,
        lambda s, x, y: s.load(x) + torch.ones(4),
        lambda s, x, y: s.matmul(s.load(x), x),
        lambda s, x, y: s.store(x, y),
        lambda s, x, y: s.load(x).copy_(torch.zeros(4, 4)),
        lambda s, x, y: s.load(x).maximum("1"),
    ):
        refused(action, load_it)
    refused(lambda s, x, y: torch.ones(4, 4) + s.load(x), "torch.* isn't counted")
    refused(lambda s, x, y: torch.softmax(s.load(x), -1), "torch.softmax on a tile isn't counted")
    refused(lambda s, x, y: s.load(x).masked_fill_(s.load(x), 0.0), "expected a bool torch tensor")


def test_a_tile_that_does_not_fit_says_who_is_in_its_way() -> None:
    def action(sram: Program, x: HbmTensor, y: HbmTensor) -> None:
        sram.load(x[:1])
        sram.zeros(3, 4, name="acc")
        sram.load(x)

    full = (
        r"X\[0:4, 0:4\] \(4, 4\) needs 64 bytes, but SRAM has 16 of 80 \(80 B\) free; held: X\[0:1, 0:4\] \(1, 4\) 16"
    )
    refused(action, full + r", acc \(3, 4\) 48", sram_bytes=80)
    refused(lambda s, x, y: s.load(x) + 1, "add .* needs 64 bytes", sram_bytes=100)
    refused(lambda s, x, y: s.load(x) @ s.load(x), "matmul .* needs 64 bytes", sram_bytes=150)
    registers = {"register_bytes": 16}
    refused(lambda s, x, y: s.zeros(5, in_registers=True), "register file has 16 of 16 .* held: nothing", **registers)
    meter, x, y = setting(sram_bytes=64)
    with meter.kernel("k") as kernel, kernel.program() as sram:
        tile = sram.load(x)  # exactly full
        tile += 1.0
        tile.exp_()
        sram.store(tile, y)
    assert meter.total.peak_sram_bytes == 64


def test_freed_tiles_and_tiles_of_others() -> None:
    def freed(use: Callable[[Program, Any], object]) -> Callable[[Program, HbmTensor, HbmTensor], object]:
        def action(sram: Program, x: HbmTensor, y: HbmTensor) -> object:
            tile, other = sram.load(x), sram.load(x)
            view = tile.T
            sram.free(tile)
            use(sram, tile)
            return view + other

        return action

    for use in (
        lambda s, t: t + 1,
        lambda s, t: t.exp_(),
        lambda s, t: t.row_max(),
        lambda s, t: s.free(t),
        lambda s, t: t @ t,
        lambda s, t: t.T,
        lambda s, t: t[0],
        lambda s, t: None,  # the view of a freed tile
    ):
        refused(freed(use), "was freed")

    meter, x, y = setting()
    with meter.kernel("k") as kernel:
        with kernel.program(0) as first:
            tile = first.load(x)
            with first.scope():
                inner = first.load(x)
            with pytest.raises(ValueError, match="was freed"):
                inner.exp()
        with kernel.program(1) as second:
            mine = second.load(x)
            for action in (
                lambda: second.store(tile, y),
                lambda: second.matmul(tile, tile),
                lambda: second.free(tile),
                lambda: mine + tile,
            ):
                with pytest.raises(ValueError, match="belongs to another program"):
                    action()
            with pytest.raises(ValueError, match="was freed"):
                tile += 1
            with pytest.raises(ValueError, match="works inside its with block"):
                first.load(x)


def test_shapes_that_do_not_fit() -> None:
    refused(lambda s, x, y: s.store(s.load(x[:2]), y), r"expected a tile of shape \(4, 4\) for Y.*got .*\(2, 4\)")
    refused(lambda s, x, y: s.store(s.load(x[0:1]), y[0]), r"shape \(4,\) for Y\[0, 0:4\]")
    refused(lambda s, x, y: s.load(x[:2]) + s.load(x[:3]), "don't fit together")
    refused(lambda s, x, y: s.load(x[:2]) @ s.load(x[:2]), r"\(m, k\) and \(k, n\)")
    refused(lambda s, x, y: s.matmul(s.load(x), s.load(x), into=s.zeros(4)), r"shape \(4, 4\) to add the product into")
    refused(lambda s, x, y: s.matmul(s.load(x), s.load(x), register_tile=(0, 1)), "at least 1 × 1")
    refused(lambda s, x, y: s.load(x[0]).T, "expected a matrix to transpose")
    refused(lambda s, x, y: s.load(x).item(), "expected a tile of one number")
    refused(lambda s, x, y: s.load(x)[[0, 1]], "expected slices and integers")
    refused(lambda s, x, y: 1 if s.load(x[0:1, 0:1]) else 0, "use tile.item")

    def grows(sram: Program, x: HbmTensor, y: HbmTensor) -> None:
        row = sram.load(x[:1])
        row += sram.load(x)

    refused(grows, "would change its shape")


def test_regions_outside_a_tensor() -> None:
    refused(lambda s, x, y: s.load(x[4:8]), r"X \(4, 4\) holds nothing at 4:8 of dimension 0, which has 4 entries")
    refused(lambda s, x, y: s.load(x[2:2]), "holds nothing")
    refused(lambda s, x, y: s.load(x[4]), "index 4 is outside dimension 0")
    refused(lambda s, x, y: s.load(x[:, -5]), "index -5 is outside dimension 1")
    refused(lambda s, x, y: s.load(x[::2]), "step 1")
    refused(lambda s, x, y: s.load(x[0, 0, 0]), "2 indices or fewer")
    refused(lambda s, x, y: s.load(x[torch.tensor([0, 1])]), "integers and slices")
    refused(lambda s, x, y: s.load(x[s.load(x[0, 0]) :]), "integers and slices")
    refused(lambda s, x, y: s.load(torch.ones(4)), "expected a region of HBM")
    other = Meter(100).hbm("X", torch.ones(4, 4))
    refused(lambda s, x, y: s.load(other), "X is no tensor of this meter")


@settings(max_examples=50, deadline=None)
@given(*[st.one_of(st.integers(-5, 4), st.slices(5)) for _ in range(2)])
def test_regions_are_those_of_torch(rows: int | slice, columns: int | slice) -> None:
    meter = Meter(10_000)
    data = torch.arange(20.0).reshape(5, 4)
    x = meter.hbm("X", data)
    try:
        expected = data[rows, columns]
        if expected.numel() == 0 or any(part.step not in (None, 1) for part in (rows, columns) if type(part) is slice):
            raise IndexError
    except (IndexError, ValueError):
        # A step of 2 over one entry is a step of 1 to some; what is refused is never wrong.
        with pytest.raises(ValueError):
            x[rows, columns]
        return
    (top, bottom), (left, right) = x[rows, columns].bounds
    assert torch.equal(data[top:bottom, left:right].reshape(expected.shape), expected)
    y = meter.empty("Y", tuple(expected.shape))
    with meter.kernel("k") as kernel, kernel.program() as sram:
        sram.store(sram.load(x[rows, columns]), y)
    assert torch.equal(y.result(), expected)
    assert x.bytes_read == y.bytes_written == 4 * expected.numel()


def test_reading_what_nobody_wrote() -> None:
    refused(lambda s, x, y: s.load(y), r"Y\[0:4, 0:4\] is read, but not all of it was ever written")

    def half(sram: Program, x: HbmTensor, y: HbmTensor) -> None:
        sram.store(sram.load(x[:2]), y[:2])
        sram.load(y[1])
        sram.load(y[1:3])

    refused(half, r"Y\[1:3, 0:4\] is read")
    refused(lambda s, x, y: s.atomic_add(s.load(x), y), "is read, but")
    meter, x, y = setting()
    with pytest.raises(ValueError, match="not all of it was ever written"):
        y.result()


@pytest.mark.parametrize(
    ("first", "second", "is_race"),
    [
        ("store", "store", True),
        ("store", "load", True),
        ("load", "store", True),
        ("add", "load", True),
        ("load", "add", True),
        ("add", "store", True),
        ("store", "add", True),
        ("load", "load", False),
        ("add", "add", False),
    ],
)
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(("same_program", "bystander"), [(True, False), (False, False), (False, True)])
def test_races(first: str, second: str, is_race: bool, overlap: bool, same_program: bool, bystander: bool) -> None:
    meter, x, _ = setting()

    def touch(sram: Program, what: str, region: Any) -> None:
        if what == "load":
            sram.load(region)
        elif what == "store":
            sram.store(sram.zeros(region.shape), region)
        else:
            sram.atomic_add(sram.zeros(region.shape), region)

    regions = (x[0:2, 1:3], x[1:3, 2:4] if overlap else x[2:4, 1:3])

    def launch() -> None:
        with meter.kernel("k") as kernel:
            with kernel.program(0, 5) as sram:
                touch(sram, first, regions[0])
                if same_program:
                    touch(sram, second, regions[1])
            if bystander:  # a third program that reads or adds where the first did must not hide it
                with kernel.program(7) as sram:
                    touch(sram, "load" if first == "load" else "add", regions[0] if first != "store" else x[3, 0:1])
            if not same_program:
                with kernel.program(1, 6) as sram:
                    touch(sram, second, regions[1])

    if is_race and overlap and not same_program:
        who = r"(program \(0, 5\)|another program)"
        with pytest.raises(ValueError, match=rf"race: program \(1, 6\) .* X\[1:3, 2:4\], and {who}"):
            launch()
    else:
        launch()
        launch()  # launches follow one another: what one left behind is no race for the next


def test_the_order_of_launches_programs_and_the_host() -> None:
    meter, x, y = setting()
    with meter.kernel("k") as kernel:
        with pytest.raises(ValueError, match="kernel k is still running"), meter.kernel("other"):
            pass
        for action in (lambda: meter.empty("Z", (1,)), lambda: meter.hbm("Z", torch.ones(1)), lambda: meter.free(x)):
            with pytest.raises(ValueError, match="allocated between launches"):
                action()
        with pytest.raises(ValueError, match="for the host, between launches"):
            x.result()
        with kernel.program(0) as sram:
            tile = sram.load(x)
            with pytest.raises(ValueError, match="still running: one with block ends"), kernel.program(1):
                pass
            sram.store(tile, y)
        with pytest.raises(ValueError, match="inside its with block"):
            kernel.program(2).load(x)
    with pytest.raises(ValueError, match="kernel k isn't running"), kernel.program(3):
        pass
    assert (meter.total.launches, meter.total.programs) == (1, 1)
    assert torch.equal(y.result(), x.result())


def test_an_error_of_ones_own_passes_through() -> None:
    meter, x, y = setting()
    with pytest.raises(ZeroDivisionError), meter.kernel("k") as kernel, kernel.program() as sram:
        with sram.scope():
            sram.load(x)
            _ = 1 // 0
    with meter.kernel("k") as kernel, kernel.program() as sram:
        assert sram.held_bytes == 0
        sram.store(sram.load(x), y)


def test_what_meters_and_tensors_expect() -> None:
    for options in ({"sram_bytes": 0}, {"hbm_bytes": -1}, {"register_bytes": 0}):
        with pytest.raises(ValueError, match="of at least 1"):
            Meter(**{"sram_bytes": 10, **options})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="floating-point dtype"):
        Meter(10, dtype=torch.int32)
    meter, x, _ = setting(hbm_bytes=200)
    with pytest.raises(ValueError, match="a tensor named X in HBM already"):
        meter.empty("X", (1,))
    with pytest.raises(ValueError, match=r"Z \(20,\) needs 80 bytes, but HBM has 72 of 200 .* held: X 64, Y 64"):
        meter.empty("Z", (20,))
    with pytest.raises(ValueError, match="expected Z as torch.float32, the meter's dtype, got torch.float64"):
        meter.hbm("Z", torch.ones(1, dtype=torch.float64))
    with pytest.raises(ValueError, match="expected a torch tensor for Z, got a list"):
        meter.hbm("Z", [1.0])  # type: ignore[arg-type]
    meter.free(x)
    meter.empty("Z", (20,))
    with pytest.raises(ValueError, match="X is no tensor of this meter"):
        meter.free(x)


def test_the_callers_tensors_stay_as_they_are() -> None:
    meter = Meter(1000)
    data = torch.arange(4.0)
    x = meter.hbm("X", data)
    with meter.kernel("k") as kernel, kernel.program() as sram:
        tile = sram.load(x)
        tile *= 2
        loaded_before = sram.load(x)
        sram.store(tile, x)
        assert loaded_before[3].item() == 3.0 and sram.load(x)[3].item() == 6.0
    x.result().zero_()
    data += 1
    assert x.result().tolist() == [0, 2, 4, 6]
