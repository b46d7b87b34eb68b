"""Every registered kernel through its gates: numbers in the interpreter, builds ahead of time, a GPU if any."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("numba")

from minillm.kernels import registry
from minillm.kernels.gates import NumberCheck
from minillm.kernels.processes import Worker
from minillm.kernels.registry import KERNELS

INTERPRETED = [
    (name, dtype)
    for name, entry in KERNELS.items()
    for dtype in entry.dtypes
    if entry.mode == "triton" and dtype != torch.bfloat16  # the interpreter gets bfloat16 wrong
]
ON_GPU = [(name, dtype) for name, entry in KERNELS.items() for dtype in entry.dtypes]


def all_passed(checks: list[NumberCheck]) -> bool:
    bad = [str(check) for check in checks if not check.passed]
    assert checks and not bad, "\n".join(bad)
    return True


@pytest.mark.parametrize(("name", "dtype"), INTERPRETED)
def test_numbers_in_the_interpreter(name: str, dtype: torch.dtype, interpreter: Worker) -> None:
    assert all_passed(interpreter.call(registry.check_numbers, name, dtype))


@pytest.mark.parametrize("name", [name for name, entry in KERNELS.items() if entry.mode == "numba"])
def test_numbers_in_numbas_simulator(name: str, cuda_simulator: Worker) -> None:
    assert all_passed(cuda_simulator.call(registry.check_numbers, name, torch.float32))


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", [name for name, entry in KERNELS.items() if entry.builds()])
def test_builds(name: str, capability: int, compiler: Worker) -> None:
    builds = compiler.call(registry.check_builds, name, capability)
    assert [f"{built.label}: {built.problem}" for built in builds if not built.passed] == []
    assert all(0 < built.registers <= 255 for built in builds)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", [name for name, entry in KERNELS.items() if entry.all_builds()])
def test_every_build(name: str, capability: int, compiler: Worker, request: pytest.FixtureRequest) -> None:
    """Whatever the kernel can choose at run time fits, uses tensor cores, and spills next to nothing."""
    if "slow" not in request.config.option.markexpr:
        pytest.skip("builds every tile of the autotuner for a minute: pytest -m slow tests/kernels")
    if name == "persistent_matmul" and capability < 90:
        pytest.skip("made for Hopper: sm_80 builds a sample only")
    builds = compiler.call(registry.check_builds, name, capability, every=True)
    assert [f"{built.label}: {built.problem}" for built in builds if not built.passed] == []
    assert [f"{built.label}: {built.spilled_bytes}" for built in builds if built.spilled_bytes > 128] == []


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "dtype"), ON_GPU)
def test_numbers_on_the_gpu(name: str, dtype: torch.dtype, gpu: Worker) -> None:
    assert all_passed(gpu.call(registry.check_numbers, name, dtype, "cuda", large=True))


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name, entry in KERNELS.items() if entry.speed_problem])
def test_speed_on_the_gpu(name: str, gpu: Worker) -> None:
    """That it can be measured; how fast is for `minillm bench` and `minillm doctor` to say."""
    dtype = KERNELS[name].dtypes[-1]
    speed = gpu.call(registry.measure_speed, name, dtype, rounds=3)
    print(f"{name} {speed.problem} {dtype}: {speed.ratio:.2f} of the vendor's speed")
    assert speed.ours_s > 0 and speed.vendor_s > 0
