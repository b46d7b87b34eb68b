"""The metered operations compute what torch computes, and count what their closed forms say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.config import PRESETS
from minillm.fusion.metered import VERSIONS, Blocks, cost, counted, run
from minillm.fusion.metered_layer import LayerShape, layer_cost, run_layer
from minillm.fusion.metered_norm import EPS
from minillm.model.norm import RMSNorm
from minillm.model.rope import rotate

ALL = [(name, version) for name, versions in VERSIONS.items() for version in versions]


def inputs_of(name: str, rows: int, size: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(rows * 100 + size)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) * 3

    if name == "rope":
        return numbers(3, rows, 2 * size), numbers(2, rows, 2 * size), numbers(rows, 2 * size), numbers(rows, 2 * size)
    if name == "cross_entropy":
        return numbers(rows, size), torch.randint(0, size, (rows,), generator=generator)
    weights = (numbers(size),) if "norm" in name else ()
    return *(numbers(rows, size) for _ in range(2 if name in ("add_rms_norm", "swiglu") else 1)), *weights


def oracle(name: str, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    if name == "swiglu":
        return [F.silu(inputs[0]) * inputs[1]]
    if name == "softmax":
        return [inputs[0].softmax(-1)]
    if name == "cross_entropy":
        logits, targets = inputs
        return [F.cross_entropy(logits, targets, reduction="none")[:, None], logits.logsumexp(-1, keepdim=True)]
    if name == "rope":
        q, k, cos, sin = inputs
        return [rotate(q, cos, sin), rotate(k, cos, sin)]
    total = inputs[0] + inputs[1] if name == "add_rms_norm" else inputs[0]
    norm = RMSNorm(total.shape[-1], EPS).double()
    norm.weight.data = inputs[-1]
    return [norm(total).detach(), total]


def shape_of(name: str, inputs: tuple[Tensor, ...]) -> tuple[int, ...]:
    return (5, *inputs[0].shape[1:]) if name == "rope" else tuple(inputs[0].shape)


@pytest.mark.parametrize(("name", "version"), ALL)
@settings(max_examples=12, deadline=None)
@given(rows=st.integers(1, 9), size=st.integers(1, 13), block_rows=st.integers(1, 5), columns=st.integers(1, 15))
def test_results_and_counts(name: str, version: str, rows: int, size: int, block_rows: int, columns: int) -> None:
    inputs = inputs_of(name, rows, size)
    blocks = Blocks(block_rows, columns)
    for stored_as, width in ((None, 8), (torch.float32, 4), (torch.bfloat16, 2)):
        meter, outputs = run(name, version, *inputs, blocks=blocks, stored_as=stored_as)
        for found, expected in zip(outputs, oracle(name, inputs), strict=False):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert counted(meter) == cost(name, version, shape_of(name, inputs), blocks=blocks, bytes_per_number=width)


def test_numbers_of_a_norm() -> None:
    """By hand: 6 rows of 10 numbers of 4 bytes, 3 rows a program, so that two programs read the weight."""
    eager, fused = (cost("rms_norm", version, (6, 10), blocks=Blocks(3)) for version in ("eager", "fused"))
    assert (eager.launches, eager.bytes_read, eager.bytes_written) == (6, 4 * (240 + 18 + 20), 4 * (180 + 18))
    assert (fused.launches, fused.bytes_read, fused.bytes_written) == (1, 4 * 80, 4 * 60)
    assert eager.flops == fused.flops == 4 * 60 + 6 + 6
    narrow = cost("rms_norm", "eager", (6, 10), blocks=Blocks(3), bytes_per_number=2)
    assert narrow.launches == 8 and narrow.bytes_read == 4 * (240 + 18) + 2 * (120 + 20)
    # x is read once and written once by the fused one; eager moves it more than three times as often.
    large = [cost("rms_norm", version, (4096, 4096), blocks=Blocks(4096)) for version in ("eager", "fused")]
    assert 3.4 < large[0].hbm_bytes / large[1].hbm_bytes < 3.6


def test_fusing_never_costs_traffic() -> None:
    for name in VERSIONS:
        shape = (5, 64, 32) if name == "rope" else (64, 32)
        eager, fused = cost(name, "eager", shape), cost(name, "fused", shape)
        assert fused.launches == 1 < eager.launches and 2 * fused.hbm_bytes <= 1.4 * eager.hbm_bytes, name


def test_long_rows_need_the_online_version() -> None:
    x = torch.randn(2, 3000)
    with pytest.raises(ValueError, match="SRAM"):
        run("softmax", "fused", x, sram_bytes=8 * 1024)
    meter, (found,) = run("softmax", "online", x, sram_bytes=8 * 1024, blocks=Blocks(2, 256))
    torch.testing.assert_close(found, x.softmax(-1))
    assert meter.total.bytes_read == 2 * x.numel() * 4


def test_online_softmax_repairs_growing_maxima() -> None:
    x = torch.tensor([[-700.0, -1.0, 0.0, 500.0, 1000.0], [1000.0, 500.0, 0.0, -1.0, float("-inf")]]).double()
    _, (found,) = run("softmax", "online", x, blocks=Blocks(2, 1))
    torch.testing.assert_close(found, x.softmax(-1))
    _, (loss, _) = run("cross_entropy", "fused", x, torch.tensor([3, 2]), blocks=Blocks(2, 2))
    torch.testing.assert_close(loss[:, 0], torch.tensor([500.0, 1000.0]).double())


@pytest.mark.parametrize("version", ["eager", "fused"])
def test_a_layer(version: str) -> None:
    shape = LayerShape(12, 20, 3, 2, 8)
    for tokens in (1, 5):
        assert counted(run_layer(shape, tokens, version)) == layer_cost(shape, tokens, version)
    assert layer_cost(shape, 1, version).launches == {"eager": 26, "fused": 4}[version]
    assert layer_cost(PRESETS["llama-70m"], 1, version).launches == {"eager": 26, "fused": 4}[version]


def test_traces_make_films() -> None:
    pytest.importorskip("matplotlib")
    from minillm.perf.meter.film import film_strip

    for name, version in ALL:
        meter, _ = run(name, version, *inputs_of(name, 6, 8), trace=True, blocks=Blocks(3, 4))
        assert 2 <= len(film_strip(meter, frames=3).axes) <= 3


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: run("norm", "eager"), "rms_norm: eager, fused"),
        (lambda: run("rms_norm", "online", torch.ones(2, 2)), "'online'"),
        (lambda: run("rms_norm", "eager", torch.ones(2, 2)), "x, weight"),
        (lambda: run("rms_norm", "eager", torch.ones(2, 2), torch.ones(1, 2)), "vector"),
        (lambda: cost("rope", "fused", (2, 3)), "head_dim"),
        (lambda: Blocks(0), "at least 1"),
        (lambda: run_layer(LayerShape(2, 2, 1, 1, 2), 1, "online"), "'online'"),
    ],
)
def test_refusals(call, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
