"""The table agrees with itself: peaks follow from cores and clocks; names are forgiving, and unknown ones refused."""

from __future__ import annotations

import pytest

from minillm.perf import gpus
from minillm.perf.gpus import GPUS
from minillm.perf.hardware import FORMATS, GIB, find_hardware, peak_bytes_per_s, peak_flops_per_s, this_machine


def test_a10_peaks_from_clocks() -> None:
    """The worked example: 2 · 9216 · 1.695 GHz, and 384 wires at 2 · 6.251 GHz."""
    assert peak_flops_per_s(2, 9216, 1.695e9) == pytest.approx(31.2e12, rel=2e-3)
    assert peak_bytes_per_s(6.251e9, 384) == pytest.approx(600e9, rel=1e-3)
    assert gpus.A10.peak("fp32") == 31.2e12 and gpus.A10.bytes_per_s == 600e9


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_peaks_follow_from_cores_and_clock(gpu: gpus.Hardware) -> None:
    assert gpu.num_cores is not None and gpu.clock_hz is not None
    assert gpu.num_cores % gpu.num_sms == 0 and gpu.num_cores // gpu.num_sms in (64, 128)
    assert peak_flops_per_s(2, gpu.num_cores, gpu.clock_hz) == pytest.approx(gpu.peak("fp32"), rel=0.01)
    # Tensor cores: a whole number of FLOPs a clock in each SM, a power of two, at a clock within 10 % of the other.
    for number_format in ("bf16", "fp8", "int8"):
        if getattr(gpu.peaks, number_format) is None:
            continue
        flops = gpu.peak(number_format) / gpu.num_sms / gpu.clock_hz
        assert any(flops == pytest.approx(2**power, rel=0.1) for power in range(9, 15)), (number_format, flops)
    assert gpu.peak("bf16") == gpu.peak("fp16") and gpu.peak("bf16") >= 2 * gpu.peak("fp32")


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_every_gpu_is_complete_and_sourced(gpu: gpus.Hardware) -> None:
    memory = int(gpu.name.split()[-1].removesuffix("GB"))
    assert gpu.memory_bytes == memory * GIB
    assert gpu.l2_bytes and gpu.shared_memory_bytes and 0 < gpu.link_bytes_per_s < gpu.bytes_per_s
    said = " ".join(source.figures for source in gpu.sources)
    for figure in ("peaks", "bandwidth", "memory", "SMs", "cores", "clock", "L2", "shared memory"):
        assert figure in said or (figure == "clock" and "MHz" in said), figure
    assert any("PCI Express" in source.figures or "NVLink" in source.figures for source in gpu.sources)
    assert all(source.title and source.url.startswith("https://") for source in gpu.sources)
    assert gpu.bytes_per_s < (gpu.l2_bytes_per_s or float("inf"))


def test_compute_grew_faster_than_bandwidth() -> None:
    """FLOPs a byte at the ridge: A100 156/2.039, H100 989/3.35; the H200 has the same cores and more bandwidth."""
    a100, h100, h200 = (find_hardware(name).ridge("bf16") for name in ("a100", "h100", "h200"))
    assert a100 == pytest.approx(153.0, abs=0.1) and h100 == pytest.approx(295.3, abs=0.1)
    assert h200 == pytest.approx(206.1, abs=0.1)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("a10", "A10 24GB"),
        ("A100", "A100 SXM 80GB"),
        ("a100-40", "A100 SXM 40GB"),
        ("A100-SXM4-40GB", "A100 SXM 40GB"),
        ("A100-PCIE-40GB", "A100 PCIe 40GB"),
        ("a100 pcie", "A100 PCIe 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB"),
        ("h100", "H100 SXM 80GB"),
        ("H100-SXM", "H100 SXM 80GB"),
        ("NVIDIA H100 80GB SXM5", "H100 SXM 80GB"),
        ("h100pcie", "H100 PCIe 80GB"),
        ("H200", "H200 SXM 141GB"),
        ("4090", "RTX 4090 24GB"),
        ("rtx-4090", "RTX 4090 24GB"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090 24GB"),
        ("l4", "L4 24GB"),
        ("NVIDIA L4 Tensor Core GPU", "L4 24GB"),
    ],
)
def test_names_are_forgiving(typed: str, name: str) -> None:
    assert find_hardware(typed).name == name


@pytest.mark.parametrize("typed", ["", "a", "100", "a1000", "a100 16GB", "h100 hbm", "l40", "80gb", "this", "4090 sxm"])
def test_unknown_names(typed: str) -> None:
    with pytest.raises(ValueError, match=r"no hardware .*A10 24GB.*H200 SXM 141GB"):
        find_hardware(typed)


def test_every_name_of_the_table_finds_its_row() -> None:
    assert [find_hardware(gpu.name) for gpu in GPUS] == list(GPUS)
    assert len({gpu.name for gpu in GPUS}) == len(GPUS)


def test_formats_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="A10 24GB computes in fp32, tf32, fp16, bf16, int8; got 'fp8'"):
        gpus.A10.peak("fp8")
    with pytest.raises(ValueError, match="got 'int3'"):
        gpus.A10.peak("int3")
    assert {name for name in FORMATS if getattr(gpus.H100_SXM.peaks, name)} == set(FORMATS)


def test_this_machine() -> None:
    pytest.importorskip("numba")
    here = this_machine(num_threads=1, probe_bytes=2**22)
    assert here.num_sms == 1 and here.memory_bytes > 2**28
    assert 1e8 < here.peak("fp32") < 1e13 and 1e8 < here.bytes_per_s < 1e13
    assert here.peak("bf16") == here.peak("fp32") and here.link_bytes_per_s == 0
