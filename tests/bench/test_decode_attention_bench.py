"""`minillm bench decode-attention`: problems that fit, shares of the bandwidth, tables, verdicts, files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minillm.bench import decode_attention, decode_attention_report
from minillm.bench.attention_check import Absence
from minillm.bench.attention_peers import FLEX, SDPA
from minillm.bench.attention_race import COMPUTE, READ, Race
from minillm.bench.compare import Comparison
from minillm.bench.decode_attention import (
    CORES,
    HEADS,
    NAIVE,
    SPLITS,
    Plan,
    candidates,
    fits_last_cache,
    naive_is_too_much,
    problems,
)
from minillm.bench.decode_attention_report import (
    SHORT,
    as_document,
    best_share,
    in_cache,
    largest_share,
    limit_s,
    table,
    verdict,
    write_plot,
)

CPU = torch.device("cpu")
GB, MIB = 10**9, 2**20
TOKEN = 2 * 8 * 128 * 4  # bytes of a key and a value with GQA, in float32


@pytest.fixture(autouse=True)
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last cache holds 1 MiB."""
    monkeypatch.setattr(decode_attention, "device_cache_bytes", lambda device: MIB)


def made_up(heads: str = "GQA", batch: int = 1, k_len: int = 10_000, **changes: object) -> Race:
    """Probes of 10 GB/s and 100 GFLOP/s. naive takes 0.1 s, splits 0.02, cores 0.01, torch 0.04."""
    times = {NAIVE: 0.1, SPLITS: 0.02, CORES: 0.01, SDPA: 0.04, READ: 0.1, COMPUTE: 0.01}
    made = Race(
        shape=replace(HEADS[heads], batch=batch, k_len=k_len),
        dtype="float32",
        device="cpu",
        backward=False,
        comparison=Comparison({name: [time] * 3 for name, time in times.items()}, [10e9] * 3, 1),
        read_bytes=GB,
        compute_flops=GB,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_shares_and_limits() -> None:
    result = made_up()
    read_s = 10_000 * TOKEN / 10e9  # 8.2 ms
    assert result.read_share(CORES).median == pytest.approx(read_s / 0.01)
    assert result.read_share(NAIVE).median == pytest.approx(read_s / 0.1)
    assert limit_s(result) == pytest.approx(read_s) and largest_share(result) == 1 and not in_cache(result)
    assert made_up(dtype="bfloat16").read_share(CORES).median == pytest.approx(read_s / 2 / 0.01)
    found = best_share(result)
    assert found is not None and found[1] == CORES and found[0].median == pytest.approx(read_s / 0.01)


def test_arithmetic_can_be_the_limit() -> None:
    result = made_up("MLA")
    computing, reading = 10_000 * 2 * 16 * (576 + 512) / 100e9, 10_000 * 576 * 4 / 10e9
    assert computing > reading
    assert limit_s(result) == pytest.approx(computing)
    assert largest_share(result) == pytest.approx(reading / computing) and best_share(result) is None
    assert largest_share(made_up("MLA", compute_flops=None)) == 1


def test_in_the_cache_memory_is_no_limit() -> None:
    result = made_up(k_len=128)
    assert 128 * TOKEN == MIB and in_cache(result) and not in_cache(made_up(k_len=129))
    assert limit_s(result) == result.compute_s() and best_share(result) is None
    assert fits_last_cache(result.shape, 2, CPU) and not fits_last_cache(replace(result.shape, batch=2), 4, CPU)


def test_the_table() -> None:
    races = [made_up(k_len=100), made_up(), made_up(batch=16, absent={NAIVE: Absence("its copies need 9 GiB")})]
    races[2].comparison.seconds.pop(NAIVE)
    lines = table("GQA", races, absent={FLEX: Absence("no compiler")}).splitlines()
    assert lines[0] == "GQA: 32 heads to 8 KV heads of 128, float32; 3 to 3 rounds (3 discarded)"
    assert lines[1] == "  read probe 9.3 GiB/s, FMA probe 100 GFLOP/s"
    assert lines[2] == "  not timed: FlexAttention: no compiler"
    head = ["batch", "context", "K+V", "MiB", "least", "naive", "splits", "cores", "SDPA"]
    assert lines[4].split() == head
    assert lines[5].split()[:2] == ["1", "100"]
    assert lines[6].split() == ["1", "10,000", "78.1", "8.19", "100", "20", "10", "40"]
    assert lines[7].split() == ["16", "10,000", "1,250.0", "131", "20", "10", "40"]
    assert lines[10].endswith("in cache")
    assert lines[11].split() == ["1", "10,000", "78.1", "1.00", "0.08", "0.41", "0.82", "0.20"]
    assert lines[13] == "  not timed at batch 16 × 10,000: naive: its copies need 9 GiB"
    assert max(map(len, lines)) <= 100


def test_a_full_table_is_narrow() -> None:
    result = made_up("MLA", 16, 65536)
    for name in SHORT:
        result.comparison.seconds[name] = [1234.0] * 3
    assert max(map(len, table("MLA", [result], absent={}).splitlines())) <= 100
    assert "1 KV head of 576/512, v a part of k" in table("MLA", [result], absent={})


def test_the_verdict() -> None:
    worse = made_up(batch=4, k_len=1000)
    assert verdict("GQA", [made_up(k_len=3), made_up(), worse]) == (
        "GQA: the fastest of ours reads at 0.33 (batch 4 × 1,000, cores) to 0.82 (batch 1 × 10,000, cores)\n"
        "  of the read probe; the goal is 0.85"
    )
    assert "nothing here is limited by memory" in verdict("MLA", [made_up("MLA")])


def test_figures_survive_json_and_plot(tmp_path: Path) -> None:
    races = {"GQA": [made_up(k_len=100), made_up(), made_up(batch=4)], "MLA": [made_up("MLA")]}
    document = json.loads(json.dumps(as_document(races, {"cpu": "none"}, {})))
    first, second, _ = document["results"]["GQA"]
    assert first["in_cache"] and not second["in_cache"]
    assert second["kv_bytes"] == 10_000 * TOKEN
    assert second["read_shares"][CORES]["median"] == pytest.approx(10_000 * TOKEN / 10e9 / 0.01)
    assert second["results"][SPLITS]["over_sdpa"]["median"] == pytest.approx(2.0)
    pytest.importorskip("matplotlib")
    write_plot(races, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    write_plot({"GQA": [made_up(k_len=100)]}, tmp_path / "cache.png")


def test_problems_that_fit() -> None:
    plan = Plan(heads=("MHA", "GQA"), batches=(1, 4), contexts=(100, 1000), cache_bytes=4 * 1000 * TOKEN)
    found = problems(plan, torch.float32, CPU)
    assert list(found) == ["MHA", "GQA"]
    assert [(s.batch, s.k_len) for s in found["GQA"]] == [(1, 100), (1, 1000), (4, 100), (4, 1000)]
    assert [(s.batch, s.k_len) for s in found["MHA"]] == [(1, 100), (1, 1000), (4, 100)]
    assert len(problems(replace(plan, cache_bytes=8 * 1000 * TOKEN), torch.bfloat16, CPU)["MHA"]) == 4
    assert all(shape.q_len == 1 for shapes in found.values() for shape in shapes)
    with pytest.raises(ValueError, match="GQA, MHA, MLA, got 'LSH'"):
        problems(Plan(heads=("LSH",)), torch.float32, CPU)


def test_the_cache_is_a_part_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_attention, "device_memory_bytes", lambda device: 8 * GB)
    assert decode_attention.most_cache_bytes(CPU) == GB
    shape = replace(HEADS["GQA"], k_len=10_000)  # copies of 10,000 · 32 · 256 float32
    assert naive_is_too_much(shape, CPU) == "" and "GiB" in naive_is_too_much(replace(shape, batch=2), CPU)
    monkeypatch.setattr(decode_attention, "device_memory_bytes", lambda device: 800 * GB)
    assert decode_attention.most_cache_bytes(CPU) == 2 * 2**30


def test_the_candidates() -> None:
    names = list(candidates(decode_attention.QUICK))
    assert names == list(SHORT) and set(decode_attention.OURS) <= set(names)
    assert decode_attention_report.GOAL == 0.85
    with pytest.raises(ValueError, match="CPU cores"):
        candidates(Plan())[CORES](HEADS["GQA"], torch.device("cuda"))
