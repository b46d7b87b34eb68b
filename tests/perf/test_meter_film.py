"""A trace cut into beats, and its pictures."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image, ImageSequence

from minillm import plots
from minillm.perf.meter import Meter
from minillm.perf.meter.beats import beats
from minillm.perf.meter.film import animation, film_strip, show_animation
from minillm.perf.meter.frame import Sheet
from minillm.plots import display
from tests.perf.meter_programs import flash_v1, flash_v2

ROOT = Path(__file__).resolve().parents[2]
PLACES = {"A": (1, 0), "B": (0, 1), "C": (1, 1)}


def product(size: int = 4, block: int = 2) -> Meter:
    """C = A B by blocks, traced."""
    meter = Meter(1024, trace=True)
    a, b = (meter.hbm(name, torch.ones(size, size)) for name in "AB")
    c = meter.empty("C", (size, size))
    steps = range(0, size, block)
    with meter.kernel("product") as kernel:
        for i in steps:
            for j in steps:
                with kernel.program(i, j) as sram:
                    acc = sram.zeros(block, block, name="acc")
                    for k in steps:
                        with sram.scope():
                            a_tile = sram.load(a[i : i + block, k : k + block])
                            sram.matmul(a_tile, sram.load(b[k : k + block, j : j + block]), into=acc)
                    sram.store(acc, c[i : i + block, j : j + block])
    return meter


def attention(program: Any) -> Meter:
    meter = Meter(64 * 1024, trace=True)
    inputs = [meter.hbm(name, torch.randn(64, 16)) for name in "QKV"]
    program(meter, *inputs, block_q=16, block_k=32)
    return meter


def part(*bounds: int) -> tuple[tuple[int, int], ...]:
    return tuple(zip(bounds[::2], bounds[1::2], strict=True))


def test_the_beats_of_a_product() -> None:
    film = beats(product().trace)
    assert len(film) == 8
    first, second, third = film[:3]
    top_left = ("C", part(0, 2, 0, 2))
    assert first.loaded == (("A", part(0, 2, 0, 2)), ("B", part(0, 2, 0, 2)))
    assert (first.stored, first.target, first.written, first.kept) == ((), (top_left,), (), ())
    assert second.loaded == (("A", part(0, 2, 2, 4)), ("B", part(2, 4, 0, 2)))
    assert (second.stored, second.target, second.written) == ((top_left,), (), (top_left,))
    assert third.program == (0, 2) and third.target == (("C", part(0, 2, 2, 4)),)
    assert [beat.bytes_read for beat in film] == [32 * (i + 1) for i in range(8)]
    assert [beat.bytes_written for beat in film] == [16 * ((i + 1) // 2) for i in range(8)]
    assert first.held == (("acc", 16), ("A[0:2, 0:2]", 16), ("B[0:2, 0:2]", 16)) and first.sram_bytes == 48


def test_the_beats_of_flash_attention() -> None:
    v2 = beats(attention(flash_v2).trace)
    assert len(v2) == 4 * 2  # blocks of queries outside, of keys inside
    assert [name for name, _ in v2[0].loaded] == ["Q", "K", "V"]
    assert [name for name, _ in v2[1].loaded] == ["K", "V"]
    assert [name for name, _ in v2[1].kept] == ["Q"]
    assert [name for name, _ in v2[1].stored] == ["O", "lse"]
    v1 = [beat for beat in beats(attention(flash_v1).trace) if beat.kernel == "flash v1"]
    assert len(v1) == 2 * 4
    for first in (v1[0], v1[4]):  # of each block of keys
        assert [name for name, _ in first.loaded] == ["K", "V", "Q", "O", "l", "m"]
    assert [name for name, _ in v1[1].kept] == ["K", "V"]
    assert all([name for name, _ in beat.stored] == ["O", "l", "m"] for beat in v1)


def test_a_program_that_stores_nothing_has_no_target() -> None:
    meter = Meter(1024, trace=True)
    x, y = meter.hbm("X", torch.ones(4)), meter.empty("Y", (4,))
    with meter.kernel("k") as kernel:
        with kernel.program(0) as sram:
            sram.load(x)
        with kernel.program(1) as sram:
            tile = sram.load(x)
            sram.load(x[:2])
            sram.store(tile, y)
    targets = [[name for name, _ in beat.target] for beat in beats(meter.trace)]
    assert targets == [[], ["Y"], []]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)


def has_color(found: np.ndarray, color: str) -> bool:
    return bool((np.abs(found - np.round(255 * np.asarray(to_rgb(color)))).max(1) <= 6).sum() > 30)


def test_a_strip_shows_tiles_where_they_are() -> None:
    meter = product()
    fig = film_strip(meter, ("A", "B", "C"), frames=(0, 7), places=PLACES)
    assert len(fig.axes) == 2
    image = display.png(fig, "x")
    assert image == display.png(film_strip(meter, ("A", "B", "C"), frames=(0, 7), places=PLACES), "x")
    found = pixels(Image.open(io.BytesIO(image)))
    for color in (plots.BLUE, plots.ORANGE, plots.GREEN, plots.GREY, plots.tint(plots.GREEN, 0.4)):
        assert has_color(found, color)
    start = pixels(Image.open(io.BytesIO(display.png(film_strip(meter, frames=(0,)), "x"))))
    assert not has_color(start, plots.tint(plots.GREEN, 0.4))
    texts = [text.get_text() for text in fig.axes[1].texts]
    assert texts[:3] == ["A", "B", "C"] and "step 8: 320 B moved" in texts


def test_row_0_is_drawn_at_the_top() -> None:
    sheet = Sheet(10.0, 20.0, width=4.0, height=8.0, shape=(4, 8), color=plots.BLUE)
    assert sheet.part(part(0, 1, 2, 4)) == (11.0, 26.0, 1.0, 2.0)
    assert sheet.part(((5, 6), *part(0, 4, 0, 8))) == (10.0, 20.0, 4.0, 8.0)


def test_frames_are_spread_over_the_film() -> None:
    meter = attention(flash_v1)
    captions = [ax.texts[-1].get_text() for ax in film_strip(meter, ("Q", "O"), frames=3, kernel="flash v1").axes]
    assert [caption.split(":")[0] for caption in captions] == ["step 1", "step 5", "step 8"]
    assert film_strip(meter, frames=3).axes[0].texts[-1].get_text().startswith("start\nstep 1")
    assert len(film_strip(meter, frames=100).axes) == 4 + 8
    assert len(film_strip(meter, frames=1).axes) == 1
    for row in film_strip(meter, frames=6).axes:  # nothing overlaps
        box = row.get_position()
        assert 0 < box.x0 < box.x1 < 1 and 0 < box.y0 < box.y1 < 1


@pytest.mark.parametrize(("count", "name"), [(3, "tensor number"), (8, "tensor")])
def test_long_names_do_not_overlap(count: int, name: str) -> None:
    meter = Meter(1024, trace=True)
    tensors = [meter.hbm(f"{name} {i}", torch.ones(4, 1 + i % 3)) for i in range(count)]
    with meter.kernel("k") as kernel:
        for _ in range(3):
            with kernel.program() as sram:
                for tensor in tensors:
                    sram.load(tensor)
    fig = film_strip(meter)
    fig.canvas.draw()
    for ax in fig.axes:
        names = [text.get_window_extent() for text in ax.texts if type(text) is Text][:-1]
        assert len(names) == count + 1  # and SRAM
        for left, right in zip(names, names[1:], strict=False):
            assert left.x1 <= right.x0


def test_tensors_of_any_number_of_dimensions() -> None:
    meter = Meter(1024, trace=True)
    x, y, z = meter.hbm("X", torch.ones(2, 3, 8, 4)), meter.empty("Y", (8,)), meter.hbm("z", torch.tensor(2.0))
    with meter.kernel("k") as kernel, kernel.program() as sram:
        sram.store((sram.load(x[1, 2, :, 3]) * sram.load(z)).exp_(), y)
    image = display.png(film_strip(meter), "x")
    assert has_color(pixels(Image.open(io.BytesIO(image))), plots.BLUE)


def test_a_tensor_that_is_gone_is_left_out() -> None:
    meter = product()
    meter.free(meter.tensors["B"])
    assert [text.get_text() for text in film_strip(meter, frames=1).axes[0].texts[:2]] == ["A", "C"]


def test_an_animation_is_small_and_the_same_each_time() -> None:
    assert animation(product()) == animation(product())
    data = animation(product(8, 2), ("A", "B", "C"), places=PLACES)  # 64 beats, thinned out
    film = Image.open(io.BytesIO(data))
    assert film.format == "PNG" and film.size[0] == 504
    assert len(data) <= 150 * 1024
    still, *moving = [pixels(frame.copy()) for frame in ImageSequence.Iterator(film)]
    assert len(moving) == 32
    assert np.array_equal(still, moving[-1])  # where nothing moves, the end is shown
    assert has_color(still, plots.tint(plots.GREEN, 0.4))
    assert not np.array_equal(still, moving[0])


def test_the_animation_reaches_the_notebook_with_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(plots, "in_notebook", lambda: True)
    monkeypatch.setattr(plots, "publish", lambda data, metadata: shown.append((data, metadata)))
    film = animation(product())
    show_animation(film, alt="Tiles move.")
    ((data, metadata),) = shown
    assert data == {"image/png": base64.b64encode(film).decode(), "text/plain": "Tiles move."}
    assert metadata == {"image/png": {"alt": "Tiles move.", "width": 420}}
    with pytest.raises(ValueError, match="alternative text"):
        show_animation(film, alt=" ")


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="trace=True"):
        film_strip(Meter(100))
    with pytest.raises(ValueError, match="trace=True"):
        animation(Meter(100, trace=True))
    meter = product()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tensors": ("A", "Z")}, "of A, B, C; got Z"),
        ({"tensors": ()}, "got none"),
        ({"kernel": "softmax"}, "one of the kernels product, got softmax"),
        ({"places": {"A": (0, 0)}}, "expected a place for each of A, B, C, got A"),
        ({"frames": (0, 99)}, "frames between 0 and 7"),
        ({"frames": ()}, "frames between 0 and 7"),
        ({"frames": 0}, "at least 1 frame"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            film_strip(meter, **options)


def test_without_matplotlib_the_meter_works_and_the_film_names_the_extra() -> None:
    code = """
import sys
sys.modules["matplotlib"] = None
from minillm.perf.meter import Meter
Meter(10)
try:
    import minillm.perf.meter.film
except ValueError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert "pip install minillm[plots]" in result.stdout
