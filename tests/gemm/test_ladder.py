"""Every rung against float64 with the bound |C - C64| <= K · 2⁻²⁴ · |A| |B| of verification.md, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.gemm import LADDER, Rung

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["naive ijk", "reordered ikj", "tiled", "register tile", "packed", "threads", "flat"]
# Tile edges of this machine and of others, block edges, primes, one.
SIZES = st.one_of(st.integers(1, 50), st.sampled_from([1, 12, 13, 31, 32, 33, 47, 48, 49, 64, 96, 97, 101]))


def multiply(name: str, a: Tensor, b: Tensor) -> Tensor:
    pytest.importorskip("numba")
    if name == "flat":
        from minillm.gemm.flat import flat_matmul

        return flat_matmul(a, b, num_threads=1)
    return LADDER[name](a, b)


def check(a: Tensor, b: Tensor, c: Tensor) -> None:
    exact, magnitude = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    assert c.dtype == torch.float32 and c.shape == exact.shape and c.is_contiguous()
    assert bool(((c.double() - exact).abs() <= a.shape[1] * 2.0**-24 * magnitude).all())


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(m=SIZES, k=SIZES, n=SIZES, seed=st.integers(0, 2**16))
def test_equals_float64(name: str, m: int, k: int, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(m, k, generator=generator), torch.randn(k, n, generator=generator)
    before = a.clone(), b.clone()
    check(a, b, multiply(name, a, b))
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("m", "k", "n"),
    [
        (5, 1000, 70),  # several blocks of k
        (203, 400, 37),  # several blocks of A, the last one short
        (2, 67, 2113),  # several blocks of columns
        (97, 385, 2049),  # one more than a block of each
    ],
)
def test_more_than_one_block(name: str, m: int, k: int, n: int) -> None:
    torch.manual_seed(m)
    a, b = torch.randn(m, k), torch.randn(k, n)
    check(a, b, multiply(name, a, b))


@pytest.mark.parametrize("name", NAMES)
def test_a_product_of_one_addend_is_exact(name: str) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(29, 1), torch.randn(1, 83)
    assert torch.equal(multiply(name, a, b), a * b)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("m", "k", "n"), [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0), (0, 0, 2)])
def test_nothing_to_add(name: str, m: int, k: int, n: int) -> None:
    assert torch.equal(multiply(name, torch.ones(m, k), torch.ones(k, n)), torch.zeros(m, n))


@pytest.mark.parametrize("name", NAMES)
def test_any_strides(name: str) -> None:
    torch.manual_seed(1)
    a, b = torch.randn(26, 45), torch.randn(45, 67)
    expected = multiply(name, a, b)
    for other_a in (a.T.contiguous().T, torch.stack([a, a], dim=2)[:, :, 1], torch.cat([a, a])[:26], a.flip(0).flip(0)):
        for other_b in (b.T.contiguous().T, torch.stack([b, -b], dim=1).reshape(90, 67)[::2]):
            assert torch.equal(multiply(name, other_a, other_b), expected)
    column = torch.randn(45, 1).expand(45, 30)  # a stride of 0
    check(a, column, multiply(name, a, column))
    check(a, a.T, multiply(name, a, a.T))  # both operands in the same memory


@pytest.mark.parametrize("name", NAMES)
def test_nan_and_infinity_stay_in_their_rows_and_columns(name: str) -> None:
    torch.manual_seed(2)
    a, b = torch.rand(41, 43) + 0.5, torch.rand(43, 101) + 0.5
    a[7, 3], a[40, 42] = float("nan"), float("inf")
    b[0, 100], b[42, 11], b[5, 64], b[9, 64] = float("nan"), float("-inf"), float("inf"), float("-inf")
    c, expected = multiply(name, a, b), a.double() @ b.double()
    assert torch.equal(c.isnan(), expected.isnan())
    infinite = expected.isinf()
    assert torch.equal(c.isinf(), infinite) and torch.equal(c[infinite], expected[infinite].float())
    assert expected.isnan().sum() > 100 and expected.isinf().sum() > 100 and expected.isfinite().sum() > 3000


@pytest.mark.parametrize("name", NAMES[:-1])
def test_what_was_in_c_does_not_matter(name: str) -> None:
    pytest.importorskip("numba")
    torch.manual_seed(4)
    a, b, c = torch.randn(15, 600), torch.randn(600, 70), torch.full((15, 70), float("nan"))
    a[0, 0] = float("nan")  # and a number that can't be used stays in its row
    LADDER[name].function(a.numpy(), b.numpy(), c.numpy())
    assert c[0].isnan().all()
    check(a[1:], b, c[1:])


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_is_refused(name: str) -> None:
    a, b = torch.ones(2, 3), torch.ones(3, 4)
    for bad_a, bad_b, message in [
        (a, torch.ones(4, 3), r"a \(M, K\) and b \(K, N\), got \(2, 3\) and \(4, 3\)"),
        (a.double(), b, "float32 matrices on the CPU, got torch.float64"),
        (a, b.to(torch.bfloat16), "float32 matrices on the CPU"),
        (torch.ones(3), b, "float32 matrices on the CPU"),
        (a, b[None], "float32 matrices on the CPU"),
        (a.to("meta"), b, "on meta"),
        (a.numpy(), b, "got ndarray"),
    ]:
        with pytest.raises(ValueError, match=message):
            multiply(name, bad_a, bad_b)


@pytest.mark.parametrize("num_threads", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 5, 1), (13, 400, 300), (250, 33, 31), (3, 7, 1000)])
def test_any_number_of_threads(num_threads: int, m: int, k: int, n: int) -> None:
    pytest.importorskip("numba")
    from minillm.gemm import packed, threaded
    from minillm.gemm.flat import flat_matmul

    torch.manual_seed(3)
    a, b = torch.randn(m, k), torch.randn(k, n)
    one, several = torch.full((m, n), float("nan")), torch.full((m, n), float("nan"))
    packed.multiply(a.numpy(), b.numpy(), one.numpy())
    threaded.multiply(a.numpy(), b.numpy(), several.numpy(), num_threads)
    check(a, b, one)
    assert torch.equal(one, several)  # each number is summed in the same order
    assert torch.equal(flat_matmul(a, b, num_threads=num_threads), flat_matmul(a, b, num_threads=1))


def test_parts_are_near_square_and_all_there() -> None:
    pytest.importorskip("numba")
    from minillm.gemm.threaded import part_grid

    assert part_grid(1000, 1000, 1) == (1, 1)
    assert part_grid(1000, 1000, 4) == (2, 2)
    assert part_grid(10, 1000, 4) == (1, 4) and part_grid(1000, 10, 4) == (4, 1)
    assert part_grid(1000, 600, 6) == (3, 2) and part_grid(600, 1000, 6) == (2, 3)
    assert part_grid(500, 500, 7) in ((1, 7), (7, 1))


def test_threads_follow_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    from minillm.gemm import threaded

    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(threaded, "_multiply_parts", lambda a, b, c, down, across: seen.append((down, across)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    LADDER["threads"](torch.ones(2, 2), torch.ones(2, 900))
    assert seen == [(1, 5)]


def test_the_ladder_describes_itself() -> None:
    assert list(LADDER) == NAMES[:-1]
    for name, rung in LADDER.items():
        assert isinstance(rung, Rung) and rung.name == name and rung.what_changed and rung.expected_gain and rung.why


@pytest.mark.parametrize("name", NAMES[:-1])
def test_each_loop_nest_says_what_changed(name: str) -> None:
    pytest.importorskip("numba")
    doc = LADDER[name].function.__doc__ or ""
    assert "c (M, N) = a (M, K) · b (K, N)" in doc
    assert name == "naive ijk" or ("What changed: " in doc and "What it gains: " in doc)


def test_without_numba_the_names_are_there_and_a_call_says_what_is_missing() -> None:
    code = (
        "import sys; sys.modules['numba'] = None; sys.modules['llvmlite'] = None; import torch\n"
        "from minillm.gemm import LADDER\nassert len(LADDER) == 6\n"
        "for rung in LADDER.values():\n"
        "    try: rung(torch.ones(1, 1), torch.ones(1, 1))\n"
        "    except ValueError as error: assert 'minillm[fast]' in str(error)\n"
        "    else: raise AssertionError(rung.name)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=100)
