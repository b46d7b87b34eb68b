"""`minillm bench gemm` multiplies what it says, counts what it multiplied, and writes whole files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("numba")

from minillm.bench import gemm
from minillm.bench.compare import Comparison
from minillm.bench.gemm import NAIVE, ONE_THREAD, PACKED, QUICK, READ, THREADS, TORCH, FlatResult, LadderResult
from minillm.bench.gemm_report import as_document, flat_table, ladder_table, write_plot
from minillm.gemm import LADDER
from minillm.perf.probe import ReadProbe

ROOT = Path(__file__).resolve().parents[2]
FLOPS = 2 * 1000**3


def made_up_ladder() -> LadderResult:
    """Size 1000; the naive loop does 10 rows. On one thread a probe of 100 GFLOP/s, with three threads of 300."""
    one = {name: [0.1, 0.2, 0.4] for name in ONE_THREAD} | {NAIVE: [0.5, 1.0, 2.0], TORCH: [0.05, 0.1, 0.2]}
    every = {PACKED: [0.1] * 2, THREADS: [0.02, 0.04], TORCH: [0.04] * 2, READ: [0.5] * 2}
    return LadderResult(
        size=1000,
        num_threads=3,
        naive_rows=10,
        read_bytes=10**9,
        one_thread=Comparison(one, [100e9] * 3, 1),
        all_threads=Comparison(every, [300e9] * 2, 0),
    )


def made_up_flat() -> FlatResult:
    times = {"gemv 1": 1.0, "flat 1": 2.0, "packed 1": 3.0, "torch.mm 1": 4.0, "flat 99": 0.7, "packed 99": 0.3}
    seconds = {name: [time] * 3 for name, time in times.items()}
    return FlatResult(1000, 2, (1, 99), 10**9, Comparison(seconds | {READ: [0.25] * 3}, [1e9] * 3, 0))


def test_speeds_and_ratios() -> None:
    result = made_up_ladder()
    assert result.flops(NAIVE) == FLOPS // 100 and result.flops(PACKED) == FLOPS
    assert result.flops_per_s(NAIVE) == pytest.approx(20e6) and result.flops_per_s(PACKED) == pytest.approx(10e9)
    assert result.gain("reordered ikj", over=NAIVE).median == pytest.approx(500)  # 5 times as fast, 100 times the rows
    assert result.gain(NAIVE, over=TORCH).median == pytest.approx(0.001)
    assert result.gain("tiled", over=TORCH).median == pytest.approx(0.5)
    threads = result.gain(THREADS, over=PACKED)
    assert (threads.low, threads.median, threads.high) == pytest.approx((3.125, 3.75, 4.375))
    assert result.fma_share(PACKED).median == pytest.approx(0.1)
    assert result.fma_share(NAIVE).median == pytest.approx(0.0002)
    assert result.fma_share(THREADS).median == pytest.approx((1 / 3 + 1 / 6) / 2)
    assert result.torch_flops_per_s(result.all_threads) == pytest.approx(50e9)


def test_flat_products() -> None:
    result = made_up_flat()
    assert result.names == ["gemv", "flat", "packed", "torch.mm"]
    assert result.fastest(1) == "gemv" and result.fastest(99) == "packed"
    assert result.seconds("gemv", 99) is None and result.seconds("flat", 99) == 0.7
    assert result.read_s() == pytest.approx(0.001)  # 4 MB of B at 4 GB/s


def test_tables_say_what_was_measured() -> None:
    table = ladder_table(made_up_ladder())
    assert "3 and 2 rounds (1 and 0 discarded)" in table
    assert "FMA probe 100.0 GFLOP/s on 1 thread, 300.0 on 3" in table and "first 10 rows of A only" in table
    (ikj,) = [line for line in table.splitlines() if line.startswith("  reordered ikj")]
    assert ikj.split()[2:5] == ["1", "10.00", "500.0"] and "10 to 100×" in ikj and ikj.endswith("0.100")
    (threads,) = [line for line in table.splitlines() if line.startswith("  threads")]
    assert threads.split()[1:3] == ["3", "66.67"] and "× cores" in threads
    assert [line.split()[1] for line in table.splitlines() if line.startswith("  torch.mm")] == ["1", "3"]
    flat = flat_table(made_up_flat()).splitlines()
    assert flat[-2].split() == ["1", "1e+03", "2e+03", "3e+03", "4e+03", "gemv"]
    assert flat[-1].split() == ["99", "700", "300", "packed"]


def test_figures_survive_json_and_plot(tmp_path: Path) -> None:
    document = as_document([made_up_ladder()], made_up_flat(), {"cpu": "none"}, {})
    assert json.loads(json.dumps(document))["ladder"][0]["rungs"][PACKED]["fma_share"]["median"] == pytest.approx(0.1)
    pytest.importorskip("matplotlib")
    times = {f"{name} {rows}": [0.1 * rows] for name in ("flat", PACKED, TORCH) for rows in (1, 8)}
    flat = FlatResult(1000, 2, (1, 8), 10**9, Comparison({**times, READ: [0.1]}, [1e9], 0))
    write_plot([made_up_ladder()], flat, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def capture(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Callable[[], object]], int, float]]:
    """Instead of being timed, candidates are handed out, with torch's threads and the probe's reading at that point."""
    seen = []

    def compare(candidates: dict, *, rounds: int, probe: Callable, on_round: Callable) -> Comparison:
        seen.append((candidates, torch.get_num_threads(), probe()))
        return Comparison({name: [1.0] for name in candidates}, [1.0], 0)

    monkeypatch.setattr(gemm, "compare", compare)
    return seen


def test_the_ladder_measured_is_the_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = capture(monkeypatch)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        result = gemm.measure_ladder(37, QUICK, ReadProbe(4096))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    (one, one_threads, _), (every, all_threads, _) = seen
    assert (one_threads, all_threads, result.num_threads) == (1, 2, 2)
    assert set(one) == {*LADDER, TORCH} - {THREADS} and set(every) == {PACKED, THREADS, TORCH, READ}
    expected = one[TORCH]()
    assert isinstance(expected, torch.Tensor) and expected.shape == (37, 37)
    for name, candidate in (one | every).items():
        if name != READ:
            torch.testing.assert_close(candidate(), expected)
    assert result.naive_rows == 37
    assert (
        gemm.measure_ladder(40, gemm.Plan(naive_flops=2 * 40 * 40 * 7 + 5, probe_s=1e-4), ReadProbe(4096)).naive_rows
        == 7
    )
    assert seen[-2][0][NAIVE]().shape == (7, 40)  # type: ignore[attr-defined]


def test_flat_candidates_multiply_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = capture(monkeypatch)
    result = gemm.measure_flat(gemm.Plan(flat_size=50, flat_counts=(3, 16, 17), probe_s=1e-4), ReadProbe(4096))
    ((candidates, _, _),) = seen
    assert result.names == ["gemv", "flat", PACKED, TORCH]
    assert {name for name in candidates if "17" in name} == {"flat 17", "packed 17", "torch.mm 17"}
    for rows in (3, 16, 17):
        expected = candidates[f"{TORCH} {rows}"]()
        for name in ("gemv", "flat", PACKED):
            if f"{name} {rows}" in candidates:
                torch.testing.assert_close(candidates[f"{name} {rows}"](), expected, atol=1e-4, rtol=1e-4)


def run_command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "minillm", "bench", "gemm", *args], cwd=ROOT, capture_output=True, text=True, timeout=110
    )


def test_quick_run_writes_tables_json_and_picture(tmp_path: Path) -> None:
    json_file, png_file = tmp_path / "out.json", tmp_path / "out.png"
    result = run_command(
        "--quick", "--sizes", "48,65", "--threads", "1", "--json", str(json_file), "--plot", str(png_file)
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 110
    assert re.findall(r"^(\d+) × \1 × \1", result.stdout, re.MULTILINE) == ["48", "65"]
    for name in LADDER:
        assert result.stdout.count(f"\n  {name} ") == 2
    document = json.loads(json_file.read_text(encoding="utf-8"))
    assert document["settings"]["threads"] == 1 and document["machine"]["torch_threads"] == 1
    assert [ladder["size"] for ladder in document["ladder"]] == [48, 65]
    assert document["flat"]["counts"] == [1, 8, 9]
    assert png_file.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.png"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--sizes", "0"], "whole number of at least 1, got '0'"),
        (["--sizes", "64,big"], "got 'big'"),
        (["--sizes", ","], "expected names"),
        (["--rounds", "0"], "rounds must be at least 1"),
        (["--threads", "0"], "threads must be at least 1"),
        (["--json", "nowhere/at/all.json"], "no folder"),
    ],
)
def test_bad_options(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from minillm.cli import main

    assert main(["bench", "gemm", "--quick", *args]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and len(captured.err.splitlines()) == 1 and captured.out == ""


def test_without_numba(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib.util

    from minillm.cli import main

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "numba" else find(name, *rest))
    assert main(["bench", "gemm", "--quick"]) == 2
    captured = capsys.readouterr()
    assert "minillm[fast]" in captured.err and len(captured.err.splitlines()) == 1 and captured.out == ""


def test_an_interrupted_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minillm.cli import main

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gemm, "compare", interrupted)
    threads = torch.get_num_threads()
    files = ["--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")]
    assert main(["bench", "gemm", "--quick", *files]) == 130
    assert list(tmp_path.iterdir()) == [] and torch.get_num_threads() == threads
