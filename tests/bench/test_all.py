"""`minillm bench all`: one report from parts that may fail or be interrupted, and nothing measured twice."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from minillm.bench import all_report, all_run
from minillm.bench.all_parts import BENCHES, DOCTOR, Part, chosen, in_order, is_finished, parts
from minillm.bench.all_report import markdown
from minillm.bench.all_run import run_all
from minillm.bench.all_tables import TABLES, markdown_table

RESULTS = Path(__file__).resolve().parents[2] / "book" / "results" / "cpu-epyc-2-cores"
# In place of minillm: does what the word after "bench" says, and logs that it did.
FAKE = """\
import json, sys, time
from pathlib import Path

words = sys.argv[1:]
name = words[1] if words[0] == "bench" else words[0]
with open(Path(__file__).with_name("log"), "a") as log:
    print(name, file=log)
print("a table of", name, flush=True)
if name == "crash":
    print("warning", file=sys.stderr)
    sys.exit("minillm: error: no such luck")
if name == "sleep":
    time.sleep(300)
if name != "silent":
    Path(words[words.index("--json") + 1]).write_text(json.dumps({"name": name}))
if "--plot" in words:
    Path(words[words.index("--plot") + 1]).write_bytes(b"PNG")
sys.exit(1 if name == "doctor" else 0)
"""


def part(name: str) -> Part:
    return Part(name, name.capitalize(), ("bench", name), 1, alt=f"Picture of {name}.")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the fake command lists what it ran; reports go to tmp_path / "out"."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setattr(all_run, "MINILLM", (sys.executable, "-u", str(script)))
    return tmp_path / "log"


def ran(log: Path) -> list[str]:
    names = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return names


def quiet(line: str) -> None:
    pass


def test_every_part_is_run_and_reported(log: Path, tmp_path: Path) -> None:
    folder, said = tmp_path / "out" / "deep", []
    assert run_all([part("one"), part("two")], folder, say=said.append) == 0
    assert ran(log) == ["one", "two"] and "a table of two" in said
    text = (folder / "report.md").read_text()
    for name in ("one", "two"):
        assert f"```text\na table of {name}\n```" in text and f"![Picture of {name}.]({name}.png)" in text
        assert f"```sh\nminillm bench {name} --json {name}.json --plot {name}.png\n```" in text
    report = json.loads((folder / "report.json").read_text())
    assert report["machine"]["python"] and report["minillm"]
    assert [record["status"] for record in report["parts"].values()] == ["done", "done"]
    assert sorted(file.name for file in folder.iterdir() if file.name.startswith(".")) == []


def test_a_failed_part_does_not_stop_the_others(log: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    work = [part("crash"), part("silent"), part("two")]
    assert run_all(work, tmp_path / "out", say=quiet) == 1
    assert ran(log) == ["crash", "silent", "two"] and "no such luck" in capfd.readouterr().err
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| [crash](#crash) | failed: minillm: error: no such luck |" in text and "This part failed" in text
    assert "left no silent.json" in text and "a table of two" in text
    assert run_all(work, tmp_path / "out", say=quiet) == 1  # what failed is tried again, what is done is kept
    assert ran(log) == ["crash", "silent"]


def test_a_doctor_that_finds_something_fails_but_is_reported(log: Path, tmp_path: Path) -> None:
    assert run_all([DOCTOR, part("two")], tmp_path / "out", say=quiet) == 1
    record = json.loads((tmp_path / "out" / "report.json").read_text())["parts"]["doctor"]
    assert record["problem"] == "a check failed; its section says which" and record["exit_status"] == 1


def test_what_is_finished_is_kept(log: Path, tmp_path: Path) -> None:
    folder, work = tmp_path / "out", [part("one"), part("two")]

    def runs(**options: bool) -> list[str]:
        assert run_all(work, folder, say=quiet, **options) == 0
        return ran(log)

    assert runs() == ["one", "two"] and runs() == []
    assert runs(again=True) == ["one", "two"]
    assert runs(quick=True) == ["one", "two"] and runs(quick=True) == []  # another command
    assert runs() == ["one", "two"]
    (folder / "one.png").unlink()
    assert runs() == ["one"]
    (folder / "two.json").write_text("{cut sho")
    assert runs() == ["two"]
    (folder / "two.txt").unlink()
    assert runs() == ["two"]
    assert runs(plot=False) == ["one", "two"] and "one.png" not in (folder / "report.md").read_text()


def test_only_adds_to_the_report_in_its_order(log: Path, tmp_path: Path) -> None:
    gemm, plan = (Part(bench.name, bench.title, bench.words) for bench in BENCHES if bench.name in ("gemm", "plan"))
    run_all([plan], tmp_path, say=quiet)
    run_all([gemm], tmp_path, say=quiet)
    text = (tmp_path / "report.md").read_text()
    assert 0 < text.index("## Matrix products") < text.index("## Predicted and measured")
    assert ran(log) == ["plan", "gemm"]


def test_an_interrupted_run_loses_the_running_part_only(log: Path, tmp_path: Path) -> None:
    work = [part("one"), part("sleep"), part("two")]

    def say(line: str) -> None:
        if line == "a table of sleep":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(work, tmp_path / "out", say=say)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["parts"]) == ["one"] and ran(log) == ["one", "sleep"]
    assert run_all([part("one"), part("two")], tmp_path / "out", say=quiet) == 0
    assert ran(log) == ["two"]


def test_a_report_has_one_machine(log: Path, tmp_path: Path) -> None:
    run_all([part("one")], tmp_path, say=quiet)
    report = json.loads((tmp_path / "report.json").read_text())
    report["machine"]["gpus"] = ["NVIDIA H200"]
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match="report of gpus.*NVIDIA H200.*--out"):
        run_all([part("one")], tmp_path, say=quiet)


# ---- parts


def test_parts_are_those_that_exist() -> None:
    assert [part.name for part in parts(["plan", "gemm"])] == ["doctor", "gemm", "plan"]
    new = parts(["gemm", "luck"])[-1]
    assert (new.name, new.words, new.minutes) == ("luck", ("bench", "luck"), None)
    assert in_order(["luck", "decode", "doctor"]) == ["doctor", "decode", "luck"]


def test_parts_by_name() -> None:
    all_parts = parts(["gemm", "plan"])
    assert [part.name for part in chosen(all_parts, ["plan", "doctor"])] == ["doctor", "plan"]
    with pytest.raises(ValueError, match="doctor, gemm, plan; got luck"):
        chosen(all_parts, ["luck", "gemm"])


def test_a_record_alone_is_not_finished(tmp_path: Path) -> None:
    one = part("one")
    record = {"status": "done", "command": one.command(None, quick=False, plot=False)}
    assert not is_finished(one, record, tmp_path, quick=False, plot=False)
    (tmp_path / "one.json").write_text("{}")
    (tmp_path / "one.txt").write_text("")
    assert is_finished(one, record, tmp_path, quick=False, plot=False)
    assert not is_finished(one, None, tmp_path, quick=False, plot=False)
    assert not is_finished(one, {**record, "status": "failed"}, tmp_path, quick=False, plot=False)


# ---- tables


def well_formed(text: str) -> bool:
    """Every table's rows have as many cells as its heading."""
    for block in text.split("\n\n"):
        lines = [line.replace("\\|", "") for line in block.splitlines() if line.startswith("|")]
        if len({line.count("|") for line in lines}) > 1:
            return False
    return True


def planned_rows() -> list[str]:
    """Rows of decode steps as `minillm bench plan` printed them: predicted, measured and their ratio end the line."""
    rows = []
    for line in (RESULTS / "plan.txt").read_text(encoding="utf-8").splitlines():
        if found := re.match(r"  (decode, batch \d+), .* (\S+) +(\S+) +(\S+ \(\S+\))$", line):
            rows.append(f"| {' | '.join(found.groups())} |")
    return rows


@pytest.mark.parametrize(
    ("name", "file", "rows"),
    [
        ("decode", "decode-small", ["| stories-5m, float32 | core | 325.9 | 1.20 (1.18–1.22) | 1.07 (1.06–1.14) |"]),
        (
            "gemm",
            "gemm",
            [
                "| naive ijk | 0.85 | 0.6 | 0.35 | 0.004 (0.004–0.004) | 0% |",
                "| threads | 138.3 | 187.3 | 184.7 | 1.05 (1.00–1.09) | 81% |",
                "| 2 | 2.79 | 2.67 | 6.55 | 5.92 |",
            ],
        ),
        ("plan", "plan", planned_rows()),
    ],
)
def test_tables_of_recorded_results(name: str, file: str, rows: list[str]) -> None:
    """The figures are those of the text that the measurement itself printed."""
    text = TABLES[name](json.loads((RESULTS / f"{file}.json").read_text()))
    assert all(row in text for row in rows), text
    assert well_formed(text) and "| ---" in text


def test_the_doctors_tables() -> None:
    path_numbers = {"max_error": 1e-6, "share_of_allowed": 0.5, "over_torch": 2}
    kernel_numbers = {"where": "GPU", "builds_passed": 1, "builds_tried": 2}
    checks = {
        "probes": {"name": "CPU reading", "found": "30 GB/s", "numbers": {"measured": 3e10, "data_sheet": None}},
        "cpu": {"name": "flat product", "found": "", "numbers": path_numbers},
        "kernels": {"name": "rope", "found": "error 2 | 1", "numbers": kernel_numbers},
    }
    for check in checks.values():
        check["verdict"] = "FAILED" if check["name"] == "rope" else "ok"
    text = TABLES["doctor"]({"sections": [{"name": name, "checks": [check]} for name, check in checks.items()]})
    assert "| CPU reading | 30 GB/s | none known |" in text and "| flat product | 1.0e-06 | 50% | ok | 2.00 |" in text
    assert "| `rope` | GPU |  |  | 1 of 2 | FAILED |  |" in text and "- FAILED: rope" in text and well_formed(text)


def test_a_document_of_another_form_is_shown_as_printed(tmp_path: Path) -> None:
    (tmp_path / "gemm.txt").write_text("minillm bench gemm\nits table\n")
    assert all_report.tables("gemm", {"ladder": []}, tmp_path) == "```text\nits table\n```"
    assert all_report.tables("gemm", None, tmp_path / "nowhere") == ""


def test_markdown_tables_keep_bars_in_cells() -> None:
    assert markdown_table([["a", "b"], ["x|y", "1"]]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"


def test_the_report_warns_of_quick_runs(log: Path, tmp_path: Path) -> None:
    run_all([part("one")], tmp_path, quick=True, say=quiet)
    document = json.loads((tmp_path / "report.json").read_text())
    assert "not the speed" in markdown(document, tmp_path)
    document["parts"]["one"]["command"].remove("--quick")
    assert "not the speed" not in markdown(document, tmp_path)
