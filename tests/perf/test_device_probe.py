"""The probes of a GPU, on the CPU: rates from known work and a clock that is made up."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from minillm.perf import device_probe
from minillm.perf.device_probe import DeviceReadProbe, MatmulProbe, device_cache_bytes, device_memory_bytes


def clock(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Readings take so long, one after the other."""
    ticks = chain.from_iterable((100.0 * i, 100.0 * i + taken) for i, taken in enumerate(seconds))
    monkeypatch.setattr(device_probe.time, "perf_counter", lambda: next(ticks))


def test_rates_are_of_the_best_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply, read = MatmulProbe("cpu", torch.float32, size=10), DeviceReadProbe("cpu", 4096)
    clock(monkeypatch, 4.0, 2.0, 8.0)
    assert multiply.flops_per_s() == pytest.approx(2 * 10**3 / 2.0)
    clock(monkeypatch, 0.5)
    assert read.bytes_per_s(repeats=1) == pytest.approx(4096 / 0.5)


def test_the_product_is_one() -> None:
    probe = MatmulProbe("cpu", torch.bfloat16, size=16)
    assert probe.a.dtype == torch.bfloat16
    probe.flops_per_s(repeats=1)
    torch.testing.assert_close(probe.out, probe.a @ probe.b)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        MatmulProbe("cpu", torch.float32, size=0)
    with pytest.raises(ValueError, match="at least 4096 bytes, got 3"):
        DeviceReadProbe("cpu", 3)
    with pytest.raises(ValueError, match="at least 1 repeat"):
        DeviceReadProbe("cpu", 4096).bytes_per_s(repeats=0)


def test_sizes_of_the_machine() -> None:
    cpu = torch.device("cpu")
    assert device_memory_bytes(cpu) > device_cache_bytes(cpu) > 2**15


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    assert 1e12 < MatmulProbe("cuda", torch.bfloat16).flops_per_s() < 1e16
    assert 1e11 < DeviceReadProbe("cuda").bytes_per_s() < 2e13
