"""The roof is the lower of two lines; times follow from it; the picture's labels keep clear of one another."""

from __future__ import annotations

from pathlib import Path

import pytest

from minillm.perf.cost import Operation, Phase, operations, total
from minillm.perf.gpus import A100_SXM_80GB, H100_SXM
from minillm.perf.hardware import Hardware, Peaks
from minillm.perf.model_shape import read_shape
from minillm.perf.roofline import attainable_flops_per_s, bound, least_seconds, operation_seconds

TOY = Hardware("toy", Peaks(fp32=50.0, bf16=100.0), bytes_per_s=10.0, memory_bytes=1000, num_sms=1)


def operation(flops: float, weight_bytes: float, activation_bytes: float = 0.0, kv_bytes: float = 0.0) -> Operation:
    return Operation("op", "linear", flops, weight_bytes, activation_bytes, kv_bytes)


def test_the_roof() -> None:
    assert TOY.ridge() == 10.0 and TOY.ridge("fp32") == 5.0
    assert [attainable_flops_per_s(x, TOY) for x in (0.5, 5, 10, 20)] == [5.0, 50.0, 100.0, 100.0]
    assert attainable_flops_per_s(20, TOY, "fp32") == 50.0


@pytest.mark.parametrize(
    ("flops", "what", "seconds"), [(50, "memory", 1.0), (100, "compute", 1.0), (400, "compute", 4.0)]
)
def test_time_of_an_operation(flops: float, what: str, seconds: float) -> None:
    part = operation(flops, weight_bytes=4, activation_bytes=3, kv_bytes=3)
    assert bound(part, TOY) == what
    assert operation_seconds(part, TOY) == seconds
    assert part.flops / operation_seconds(part, TOY) == attainable_flops_per_s(part.intensity, TOY)


def test_efficiency_lowers_each_side() -> None:
    part = operation(100, 10)
    assert operation_seconds(part, TOY, mfu=0.5) == 2.0 and operation_seconds(part, TOY, mbu=0.25) == 4.0
    assert operation_seconds(part, TOY, mfu=0.5, mbu=0.25) == 4.0


def test_the_least_overlaps_everything_and_keeps_activations_on_the_chip() -> None:
    parts = [operation(300, 5, activation_bytes=1000), operation(0, 5, kv_bytes=40)]
    assert least_seconds(parts, TOY) == 5.0  # 50 bytes of weights and KV; 300 FLOPs take 3
    assert least_seconds([operation(900, 5)], TOY) == 9.0
    for phase in (Phase.prefill(2, 200), Phase.decode(16, 300)):
        found = operations(read_shape("stories-5m"), phase)
        assert least_seconds(found, H100_SXM) <= sum(operation_seconds(part, H100_SXM) for part in found)


def test_batch_moves_the_products_and_leaves_attention() -> None:
    """The picture of chapter 05 in numbers."""
    shape = read_shape("stories-5m")
    intensity: dict[str, list[float]] = {"linear": [], "attention": []}
    for batch_size in (1, 8, 64, 512):
        found = operations(shape, Phase.decode(batch_size, 400))
        for kind, values in intensity.items():
            values.append(total(part for part in found if part.kind == kind).intensity)
    first, *others = intensity["attention"]
    assert first == pytest.approx(2, rel=0.01) and others == pytest.approx([first] * 3)
    assert intensity["linear"][0] == pytest.approx(1, rel=0.02)
    assert intensity["linear"] == sorted(intensity["linear"]) and intensity["linear"][2] > 30


@pytest.mark.parametrize("batch_sizes", [(1, 8, 64, 512), (1, 4, 16, 64, 256, 1000), (3,)])
@pytest.mark.parametrize("hardware", [H100_SXM, A100_SXM_80GB], ids=lambda hardware: hardware.name)
def test_labels_do_not_overlap(batch_sizes: tuple[int, ...], hardware: Hardware) -> None:
    pytest.importorskip("matplotlib")
    from minillm.perf.roofline_plot import roofline_plot

    shape = read_shape(
        {
            "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        }
    )  # fmt: skip
    fig = roofline_plot(shape, hardware, batch_sizes=batch_sizes)
    fig.canvas.draw()
    (ax,) = fig.axes
    boxes = [(text.get_text(), text.get_window_extent()) for text in ax.texts]
    boxes += [("legend", ax.get_legend().get_window_extent()), ("title", ax.title.get_window_extent())]
    assert {f"batch {batch_sizes[0]}", "any batch"} <= {text for text, _ in boxes}
    for i, (text, box) in enumerate(boxes):
        assert not [other for other, other_box in boxes[i + 1 :] if box.overlaps(other_box)], text
        assert text in ("legend", "title") or ax.get_window_extent().contains(*box.min)
    # Every dot lies on the roof.
    *dots, roof = ax.lines
    assert len(dots) == len(batch_sizes) + 3 and len(roof.get_xdata()) == 3
    for dot in dots:
        (x,), (y,) = dot.get_xdata(), dot.get_ydata()
        assert y * 1e12 == pytest.approx(attainable_flops_per_s(x, hardware))


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    from minillm.perf.roofline_plot import roofline_plot

    monkeypatch.setitem(sys.modules, "minillm.plots", None)
    monkeypatch.delattr("minillm.plots", raising=False)
    with pytest.raises(ValueError, match=r"minillm\[plots\]"):
        roofline_plot(read_shape("stories-5m"), H100_SXM)
