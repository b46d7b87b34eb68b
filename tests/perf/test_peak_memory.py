"""Peak memory of a call, against sizes known beforehand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.perf.peak_memory import peak_extra_bytes, peak_of

MIB = 2**20


def mib(count: int) -> torch.Tensor:
    return torch.empty(count * MIB, dtype=torch.uint8)


def test_results_and_what_lives_beside_them_count() -> None:
    def call() -> torch.Tensor:
        first = mib(1)
        second = mib(2)
        del first
        third = mib(4)  # 6 with the second
        del second
        return third

    assert peak_extra_bytes(call) == 6 * MIB
    assert peak_extra_bytes(lambda: mib(3)) == 3 * MIB
    assert peak_extra_bytes(lambda: None) == 0


def test_the_peak_may_be_before_the_end() -> None:
    def call() -> torch.Tensor:
        large = mib(8)
        del large
        return mib(1)

    assert peak_extra_bytes(call) == 8 * MIB


def test_what_was_there_before_does_not_count() -> None:
    kept = mib(16)
    assert peak_extra_bytes(lambda: kept.view(-1)[:10]) == 0
    assert peak_extra_bytes(lambda: kept.clone()) == 16 * MIB


def test_scratch_inside_an_operator_counts() -> None:
    """torch's fused attention returns out and lse, and needs tiles besides."""
    q = torch.randn(1, 2, 256, 32)
    results = q.nbytes + 4 * 2 * 256
    assert peak_extra_bytes(lambda: F.scaled_dot_product_attention(q, q, q)) > results


def test_backward_counts_what_is_kept() -> None:
    x = torch.ones(MIB // 4, requires_grad=True)

    def call() -> torch.Tensor:
        y = x.exp().exp()  # two results, kept for the backward
        return torch.autograd.grad(y, x, torch.ones_like(y))[0]

    assert 3 * MIB <= peak_extra_bytes(call) <= 6 * MIB


def test_exceptions_pass_and_leave_nothing_behind() -> None:
    with pytest.raises(ZeroDivisionError):
        peak_extra_bytes(lambda: 1 / 0)
    assert peak_extra_bytes(lambda: mib(1)) == MIB


def test_other_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="'meta'"):
        peak_extra_bytes(lambda: None, "meta")


def test_nothing_is_written(capfd: pytest.CaptureFixture[str]) -> None:
    peak_extra_bytes(lambda: mib(1))
    assert capfd.readouterr() == ("", "")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 3)), max_size=20))
def test_any_order_of_allocations(steps: list[tuple[int, int]]) -> None:
    """Each step makes a tensor of so many kilobytes and frees the oldest few."""
    expected = held = 0
    sizes: list[int] = []
    for size, frees in steps:
        held += size
        expected = max(expected, held)
        sizes.append(size)
        held -= sum(sizes[:frees])
        del sizes[:frees]

    def call() -> list[torch.Tensor]:
        alive: list[torch.Tensor] = []
        for size, frees in steps:
            alive.append(torch.empty(size * 1024, dtype=torch.uint8))
            del alive[:frees]
        return alive

    assert peak_extra_bytes(call) == 1024 * expected


def test_peak_of() -> None:
    assert peak_of([]) == 0 and peak_of([-5, 3]) == 0
    assert peak_of([4, 4, -6, 5]) == 8


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    kept = torch.empty(MIB, device="cuda")

    def call() -> torch.Tensor:
        large = torch.empty(8 * MIB, dtype=torch.uint8, device="cuda")
        del large
        return kept[:10].clone()

    assert peak_extra_bytes(call, "cuda") == 8 * MIB
