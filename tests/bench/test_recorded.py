"""Measurements: live for a reader, from the record while the outputs are made; and the library's source on show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from minillm.bench.recorded import MODE, describe_in_a_line, recorded
from minillm.bench.show import source, source_text
from minillm.sampling import SamplingParams


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(MODE, raising=False)


class Counter:
    calls = 0

    def __call__(self) -> dict[str, object]:
        self.calls += 1
        return {"call": self.calls, "pair": (1, 2), 3: torch.tensor([0.5, 1.5])}


def test_live_measures_each_time_and_writes_nothing(tmp_path: Path) -> None:
    measure = Counter()
    records = [recorded("times", measure) for _ in range(2)]
    assert [record.values["call"] for record in records] == [1, 2] and all(record.live for record in records)
    assert records[0].values == {"call": 1, "pair": [1, 2], "3": [0.5, 1.5]}
    assert list(tmp_path.iterdir()) == []


def test_use_measures_once_and_then_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODE, "use")
    measure = Counter()
    first, second = recorded("times", measure), recorded("times", measure)
    assert measure.calls == 1 and first == second and not first.live
    assert json.loads(Path("measured/times.json").read_text())["machine"] == first.machine


def test_use_names_the_machine_of_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODE, "use")
    Path("measured").mkdir()
    Path("measured/times.json").write_text('{"machine": "an abacus", "values": [1.5]}')
    record = recorded("times", Counter())
    assert (record.values, record.machine, record.live) == ([1.5], "an abacus", False)


def test_write_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODE, "write")
    measure = Counter()
    recorded("times", measure)
    assert recorded("times", measure).values["call"] == 2
    assert json.loads(Path("measured/times.json").read_text())["values"]["call"] == 2


def test_check_reads_and_never_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODE, "check")
    measure = Counter()
    with pytest.raises(FileNotFoundError, match="no record measured/times.json"):
        recorded("times", measure)
    Path("measured").mkdir()
    Path("measured/times.json").write_text('{"machine": "an abacus", "values": 1}')
    assert recorded("times", measure).values == 1 and measure.calls == 0


@pytest.mark.parametrize("name", ["", "../x", "a b", "a/b"])
def test_bad_names(name: str) -> None:
    with pytest.raises(ValueError, match="name of letters"):
        recorded(name, Counter())


def test_bad_modes_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="a set"):
        recorded("x", lambda: {1, 2})
    with pytest.raises(ValueError):
        recorded("x", lambda: float("nan"))
    monkeypatch.setenv(MODE, "yes")
    with pytest.raises(ValueError, match="live, use, write, check; got 'yes'"):
        recorded("x", Counter())


def test_a_machine_in_a_line() -> None:
    machine = {"architecture": "x86_64", "gpus": [], "usable_cpus": 4, "torch_threads": 1}
    machine |= {"cpu": "Intel(R) Core(TM) i7-8650U CPU @ 1.90GHz", "packages": {"torch": "2.13.0+cpu"}}
    assert describe_in_a_line(machine) == "Intel Core i7-8650U, 4 cores, 1 thread, torch 2.13.0"
    machine |= {"cpu": None, "gpus": ["NVIDIA H100", "NVIDIA H100"]}
    assert describe_in_a_line(machine) == "x86_64, GPU NVIDIA H100, 4 cores, 1 thread, torch 2.13.0"


def test_source_of_library_code(capsys: pytest.CaptureFixture[str]) -> None:
    text = source_text(describe_in_a_line)
    assert text.startswith("# minillm/bench/recorded.py\ndef describe_in_a_line(")
    assert source_text(describe_in_a_line, lines=(1, 1)) == "\n".join(text.splitlines()[:2])
    method = source_text(SamplingParams.__post_init__).splitlines()
    assert method[:2] == ["# minillm/sampling.py", "def __post_init__(self) -> None:"]
    with pytest.raises(ValueError, match="expected lines within 1 to"):
        source_text(describe_in_a_line, lines=(3, 99))
    source(describe_in_a_line)
    assert capsys.readouterr().out == text + "\n"
