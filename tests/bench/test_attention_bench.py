"""`minillm bench attention`: times, shares and memory are of what it says, tables show them, files are whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minillm.attention import naive_attention
from minillm.bench import attention, attention_race
from minillm.bench.attention import FLASH, NAIVE, QUICK, V1, candidates, too_much
from minillm.bench.attention_check import Absence, Attention, Maker
from minillm.bench.attention_peers import FLEX, SDPA
from minillm.bench.attention_race import COMPUTE, READ, Probes, Race, race
from minillm.bench.attention_report import as_document, heading, table, verdict, write_plot
from minillm.bench.attention_shape import AttentionShape
from minillm.bench.compare import Comparison

CPU = torch.device("cpu")
GB, MIB = 10**9, 2**20
SHAPE = AttentionShape(1, 999, 999, num_heads=8, num_kv_heads=2, k_head_dim=64, v_head_dim=64)
FLOPS = 2 * 8 * (999 * 1000 // 2) * 128  # 1.023 GFLOP


def made_up(length: int = 999, **changes: object) -> Race:
    """Probes of 100 GFLOP/s and 10 GB/s; naive takes 0.25 s, flash 0.04, torch 0.02, each half and double of it too."""
    times = {NAIVE: 0.25, FLASH: 0.04, SDPA: 0.02}
    seconds = {name: [time / 2, time, time * 2] for name, time in times.items()}
    shape = replace(SHAPE, q_len=length, k_len=length)
    made = Race(
        shape=shape,
        dtype="float32",
        device="cpu",
        backward=False,
        comparison=Comparison({**seconds, READ: [0.1] * 3, COMPUTE: [0.01] * 3}, [100e9] * 3, 1),
        read_bytes=GB,
        compute_flops=GB,
        peak_bytes={NAIVE: 300 * MIB, FLASH: 7 * MIB, SDPA: 3 * MIB},
        absent={FLEX: Absence("no compiler"), V1: Absence("out is wrong by 3", is_wrong=True)},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_rates_shares_and_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_race, "device_cache_bytes", lambda device: 10**6)
    result = made_up()
    assert result.names == [NAIVE, FLASH, SDPA]
    assert result.flops == FLOPS and result.compute_rate == pytest.approx(100e9)
    assert result.read_rate == pytest.approx(10e9)
    assert result.compute_s() == pytest.approx(FLOPS / 100e9)
    moved = 4 * 999 * 64 * (8 + 2 + 2 + 8)
    assert result.move_s() == pytest.approx(moved / 10e9) and result.limit_s() == pytest.approx(FLOPS / 100e9)
    share = result.compute_share(FLASH)
    assert share is not None and share.median == pytest.approx(FLOPS / 0.04 / 100e9)
    assert result.read_share(FLASH).median == pytest.approx(4 * 999 * 64 * 4 / 0.04 / 10e9)
    assert made_up(backward=True).flops == 3 * FLOPS
    assert made_up(dtype="bfloat16").move_s() == pytest.approx(moved / 2 / 10e9)
    slow_memory = made_up(read_bytes=GB // 1000)
    assert slow_memory.limit_s() == slow_memory.move_s() == pytest.approx(moved / 10e6)


def test_without_a_compute_probe_and_in_the_cache() -> None:
    result = made_up(compute_flops=None)
    assert result.compute_share(FLASH) is None and result.compute_s() is None
    small = made_up(30)
    assert small.move_s() is None and small.limit_s() == small.compute_s()
    assert "stay in the cache" in table(small) and "no probe without numba" in table(made_up(30, compute_flops=None))


def test_the_table() -> None:
    lines = table(made_up(), already_said={FLEX: Absence("no compiler")}).splitlines()
    assert lines[0] == "999 tokens: 1.02 GFLOP; 3 rounds (1 discarded)"
    assert "computing 10.2 ms at 100 GFLOP/s (FMA probe)" in lines[1]
    assert lines[2].split() == ["ms", "×", "torch", "SDPA", "FMA", "probe", "extra", "MiB"]
    rows = [line.split() for line in lines[3:6]]
    assert rows[0] == ["naive", "250", "0.080", "(0.080–0.080)", "0.041", "(0.031–0.061)", "300.0"]
    assert rows[1] == ["flash_attention", "40", "0.50", "(0.50–0.50)", "0.26", "(0.19–0.38)", "7.0"]
    assert rows[2][:3] == ["torch", "SDPA", "20"] and rows[2][3] == "1.00"
    assert lines[6] == "  not timed: flash v1: WRONG, out is wrong by 3" and len(lines) == 7
    assert max(map(len, lines)) <= 100


def test_the_heading_and_the_verdict() -> None:
    absent = {"a": Absence("no"), "b": Absence("no"), "c": Absence("why", is_wrong=True)}
    text = heading(replace(SHAPE, window=1000), "bfloat16", backward=True, absent=absent)
    assert "forward and backward: causal, a window of 1,000 keys, bfloat16" in text
    assert "8 heads to 2 KV heads of 64" in text
    assert "not timed: a, b: no" in text and "not timed: c: WRONG, why" in text
    slower = made_up(50)
    slower.comparison.seconds[FLASH] = [0.03, 0.1, 0.08]
    assert "0.33 or more of torch SDPA's speed (least at 50 tokens); the goal is 0.5" in verdict([made_up(), slower])
    slower.comparison.seconds.pop(SDPA)
    assert "0.50 or more" in verdict([made_up(), slower]) and verdict([slower]) == ""
    assert "no peer" in table(slower)


def test_figures_survive_json_and_plot(tmp_path: Path) -> None:
    document = json.loads(json.dumps(as_document([made_up()], {"cpu": "none"}, {})))
    (result,) = document["results"]
    assert result["results"][FLASH]["over_sdpa"]["median"] == pytest.approx(0.5)
    assert result["results"][FLASH]["peak_bytes"] == 7 * MIB and result["flops"] == FLOPS
    assert result["absent"][V1] == {"reason": "out is wrong by 3", "is_wrong": True}
    assert result["comparison"]["seconds"][NAIVE] == [0.125, 0.25, 0.5]
    pytest.importorskip("matplotlib")
    write_plot([made_up(100), made_up(), made_up(3000, compute_flops=None)], tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


# ---- the race


class FakeProbe:
    """Both probes at once."""

    numbers = torch.zeros(1000)
    flops = 7

    def bytes_per_s(self, *, repeats: int = 3) -> float:
        return 1.0

    flops_per_s = bytes_per_s


def sleeper(log: list[tuple[int, ...]]) -> Maker:
    def make(shape: AttentionShape, device: torch.device) -> Attention:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            log.append(tuple(q.shape))
            return naive_attention(q, k, v)[0]

        return attend

    return make


def test_a_race_times_calls_not_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of calls is divided by their number; with gradients a call is both passes."""
    shape, log = AttentionShape(1, 40, 40, 2, 2, 8, 8), []
    monkeypatch.setattr(attention_race, "_seconds", lambda call, device: 0.01)

    def compare(
        calls: dict[str, Callable[[], object]], *, rounds: int, probe: Callable, on_round: Callable
    ) -> Comparison:
        assert probe() == 1.0
        log.clear()
        calls["it"]()
        return Comparison({name: [12.0] for name in calls}, [1.0], 0)

    monkeypatch.setattr(attention_race, "compare", compare)
    probes = Probes(FakeProbe(), FakeProbe())
    options = {"rounds": 1, "block_s": 0.04, "absent": {"gone": Absence("before")}}
    makers = {"it": sleeper(log), "gone": sleeper(log)}
    result = race(makers, shape, torch.float32, CPU, probes, watch_memory=True, **options)  # type: ignore[arg-type]
    assert log == [(1, 40, 2, 8)] * 4
    assert result.comparison.seconds == {"it": [3.0], READ: [12.0], COMPUTE: [12.0]}
    assert (result.read_bytes, result.compute_flops, result.dtype, result.device) == (4000, 7, "float32", "cpu")
    assert result.absent == {"gone": Absence("before")}
    assert result.peak_bytes["it"] >= 4 * 2 * 40 * 40
    both = race(makers, shape, torch.float32, CPU, probes, watch_memory=True, backward=True, **options)  # type: ignore[arg-type]
    assert both.backward and both.peak_bytes["it"] > result.peak_bytes["it"]
    assert race(makers, shape, torch.float32, CPU, Probes(FakeProbe(), None), **options).compute_flops is None  # type: ignore[arg-type]


def test_slow_and_failing_candidates_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(shape: AttentionShape, device: torch.device) -> Attention:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(attention_race, "_seconds", lambda call, device: 4.0)
    makers = {"slow": sleeper([]), "large": fails}
    shape = AttentionShape(1, 4, 4, 2, 2, 8, 8)
    result = race(makers, shape, torch.float32, CPU, Probes(FakeProbe(), None), rounds=1, block_s=0.0)
    assert result.names == []
    assert result.absent == {"slow": Absence("a call takes 4 s"), "large": Absence("out of memory")}


def test_no_gradient_is_recorded_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def make(shape: AttentionShape, device: torch.device) -> Attention:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            seen.append((torch.is_grad_enabled(), q.requires_grad))
            return naive_attention(q, k, v)[0]

        return attend

    shape = AttentionShape(1, 4, 4, 2, 2, 8, 8)
    for backward in (False, True):
        race(
            {"it": make}, shape, torch.float32, CPU, Probes(FakeProbe(), None), rounds=1, block_s=0.0, backward=backward
        )
        assert set(seen) == {(backward, backward)}
        seen.clear()


def test_the_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    names = list(candidates(QUICK))
    assert names[:5] == ["naive", "flash v1", "flash v2", "flash_attention", "torch SDPA"]
    assert {"SDPA math", "SDPA flash", "SDPA efficient", "SDPA cudnn", "FlexAttention"} == set(names[5:])


def test_what_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "device_memory_bytes", lambda device: 4 * 16 * 8 * 1000**2)
    fits, larger = replace(SHAPE, q_len=1000, k_len=1000), replace(SHAPE, q_len=1001, k_len=1001)
    for name in (NAIVE, "SDPA math"):
        assert too_much(name, fits, CPU) == ""
        assert "score matrix" in too_much(name, larger, CPU) and "score matrix" in too_much(
            name, fits, CPU, backward=True
        )
    assert too_much(V1, replace(SHAPE, q_len=64 * 70, k_len=64 * 70), CPU) == ""
    assert "5,041 tiles" in too_much(V1, replace(SHAPE, q_len=64 * 70 + 1, k_len=64 * 70 + 1), CPU)
    assert too_much(FLASH, replace(SHAPE, q_len=10**6, k_len=10**6), CPU) == ""
