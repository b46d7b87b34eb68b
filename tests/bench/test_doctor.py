"""The doctor's parts: each can fail, failures say what helps, and what is merely missing is no failure."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.bench import (
    doctor,
    doctor_children,
    doctor_cpu,
    doctor_devices,
    doctor_environment,
    doctor_kernel_table,
    doctor_kernels,
    doctor_probes,
)
from minillm.bench.doctor_children import BuildCheck, KernelInfo, sample
from minillm.bench.doctor_section import FAILED, NOT_CHECKED, OK, WIDTH, Check, Section, Settings, columns, explained
from minillm.bench.doctor_workers import Outcome, Task, run_tasks
from minillm.kernels.gates import NumberCheck, Speed
from minillm.kernels.processes import Worker

QUICK = Settings(quick=True)


def section_of(*checks: Check) -> Section:
    return Section("probes", "Probes", (), checks)


# ---- the report


def test_only_a_failure_makes_the_status_1() -> None:
    fine = section_of(Check("a", OK), Check("b", NOT_CHECKED, "no GPU", "buy one"))
    assert doctor.Diagnosis((fine,)).status == 0
    bad = section_of(Check("c", FAILED))
    assert doctor.Diagnosis((fine, bad)).status == 1 and doctor.Diagnosis((bad, fine)).status == 1


def test_the_verdict_names_failures_first_and_says_what_to_do_once() -> None:
    checks = [
        Check("good", OK),
        Check("left", NOT_CHECKED, "no numba", "install it"),
        Check("bad", FAILED, "off", "fix"),
    ]
    checks.append(Check("bad too", FAILED, "off", "fix"))
    lines = doctor.verdict(doctor.Diagnosis((section_of(*checks),)))
    text = "\n".join(lines)
    assert "1 checks: 1 probes" in lines[0] and "FAILED     bad: off" in text and "bad too: off" in text
    assert "Unchecked  left: no numba" in text
    assert text.index("bad") < text.index("left") < text.index("Next       fix") < text.index("install it")
    assert text.count("fix") == 1 and "demo" not in text


def test_with_nothing_wrong_it_says_where_to_begin() -> None:
    assert "minillm demo" in doctor.next_steps([], [])[0]


def test_a_section_that_breaks_is_a_failure_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Settings) -> Section:
        raise KeyError("surprise")

    monkeypatch.setattr(doctor_probes, "examine", broken)
    probes, devices = doctor.examine(["probes", "devices"], QUICK)
    assert [check.verdict for check in probes.checks] == [FAILED]
    assert "surprise" in probes.checks[0].found and "--only probes" in probes.checks[0].advice
    assert "surprise" in "\n".join(probes.lines)
    assert devices.name == "devices" and not devices.failed()


def test_sections_by_name() -> None:
    assert doctor.section_names(None) == list(doctor.SECTIONS)
    assert doctor.section_names(["cpu", "environment"]) == ["environment", "cpu"]
    with pytest.raises(ValueError, match="environment, devices.*got luck"):
        doctor.section_names(["luck", "cpu"])


def test_the_document_is_json_without_infinities() -> None:
    check = Check("a", FAILED, numbers={"share": math.inf, "rate": 2.5, "counts": (1, 2)})
    document = doctor.as_document(doctor.Diagnosis((section_of(check),)), {"cpu": None}, QUICK)
    again = json.loads(json.dumps(document, allow_nan=False))
    assert again["status"] == 1 and again["settings"]["quick"] is True
    assert again["sections"][0]["checks"][0]["numbers"] == {"share": "inf", "rate": 2.5, "counts": [1, 2]}


words = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=9)


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.tuples(words, words, st.lists(words, max_size=30).map(" ".join)), min_size=1, max_size=6))
def test_tables_keep_to_the_terminal_and_lose_nothing(rows: list[tuple[str, str, str]]) -> None:
    lines = columns(rows, right=(1,))
    assert all(len(line) <= WIDTH for line in lines)
    assert "".join(lines).replace(" ", "") == "".join("".join(row) for row in rows).replace(" ", "")
    start = 2 + max(len(row[0]) for row in rows) + 2
    end = start + max(len(row[1]) for row in rows)
    assert all(line[end - 1] != " " for line in lines if line[:4].strip())  # right-aligned


def test_explanations_name_what_failed_and_what_helps() -> None:
    lines = explained([Check("a", OK, "fine"), Check("b", FAILED, "wrong " * 40, "do this")])
    assert lines[0].startswith("  FAILED  b: wrong") and lines[-1].strip() == "do this" and "fine" not in str(lines)
    assert all(len(line) <= WIDTH for line in lines)


# ---- environment


def test_the_bundled_model_is_whole_and_says_its_sentence() -> None:
    assert doctor_environment.check_checksum().verdict == OK
    assert doctor_environment.check_sentence().verdict == OK


@torch.inference_mode()
def test_the_sentence_is_no_close_call() -> None:
    """Rounding on another machine must not change it."""
    from minillm import load_model, load_tokenizer

    tokenizer, model = load_tokenizer("stories-5m"), load_model("stories-5m")
    prompt = len(tokenizer.encode(doctor_environment.PROMPT))
    tokens = torch.tensor([tokenizer.encode(doctor_environment.PROMPT + doctor_environment.SENTENCE)])
    best = model(tokens)[0, prompt - 1 : -1].topk(2).values
    assert float((best[:, 0] - best[:, 1]).min()) > 0.13


def test_a_damaged_model_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minillm.hf_config.resolve_model_path", lambda name: tmp_path)
    assert doctor_environment.check_checksum().verdict == FAILED  # missing
    (tmp_path / "model.safetensors").write_bytes(b"half a file")
    check = doctor_environment.check_checksum()
    assert check.verdict == FAILED and "SHA-256" in check.found and "install minillm again" in check.advice


def test_another_sentence_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_environment, "SENTENCE", ", there was a little boy.")
    check = doctor_environment.check_sentence()
    assert check.verdict == FAILED and "girl" in check.found or "said" in check.found


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_environment, "installed", lambda name: False)
    for package in doctor_environment.PACKAGES:
        check = doctor_environment.check_package(package)
        assert check.verdict == (FAILED if package.needed else NOT_CHECKED)
        assert check.advice.startswith(f"pip install {package.install}")
    text = "\n".join(doctor_environment.examine(QUICK).lines)
    assert "missing  pip install 'minillm[fast]': fast CPU paths" in text


def test_a_package_without_a_spec_is_not_installed() -> None:
    assert doctor_environment.installed("torch") and not doctor_environment.installed("no_such_package")
    assert not doctor_environment.installed("no_such_package.inside")


# ---- devices and probes


def test_a_machine_without_a_gpu_is_fine() -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("a GPU is here")
    section = doctor_devices.examine(QUICK)
    assert [check.verdict for check in section.checks] == [NOT_CHECKED] and not section.failed()


def test_a_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(
        name="NVIDIA H200", total_memory=140 * 2**30, multi_processor_count=132, major=9, minor=0
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(doctor_devices, "driver", lambda: "570.1")
    section = doctor_devices.examine(QUICK)
    text = " ".join(" ".join(section.lines).split())
    assert "NVIDIA H200 140.0 GiB, 132 SMs, capability 9.0" in text and "driver 570.1" in text
    if not torch.cuda.is_available():  # found, but of no use
        assert section.failed() and "do driver and torch fit" in section.failed()[0].advice


def test_a_device_must_compute() -> None:
    assert doctor_devices.check_device("cpu").verdict == OK
    assert doctor_devices.check_device("meta").verdict == FAILED  # computes nothing


def test_a_copy_counts_what_is_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(doctor_probes.time, "perf_counter", lambda: float(next(clock)))  # each copy takes a second
    assert doctor_probes.copy_bytes_per_s(torch.device("cpu"), 1000) == 2000


def test_probes_have_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor_probes.product_flops_per_s(torch.device("cpu"), 32) > 0
    section = doctor_probes.examine(QUICK)
    assert not section.failed() and section.checks[0].numbers["measured"] > 1e8
    monkeypatch.setattr(doctor_probes, "installed", lambda name: False)
    section = doctor_probes.examine(QUICK)
    assert [check.verdict for check in section.checks] == [OK, NOT_CHECKED] and "fast" in section.checks[1].advice


def test_a_probe_beside_the_data_sheet() -> None:
    sheet = doctor_probes.find_sheet("NVIDIA H200")
    assert sheet is not None and sheet.bytes_per_s == 4800e9 and doctor_probes.find_sheet("Abacus 3") is None
    low = doctor_probes.measure("copying", "GB/s", lambda: 1e12, sheet.bytes_per_s)
    assert low.verdict == OK and "another program" in low.advice and low.numbers["unit"] == "B/s"
    good = doctor_probes.measure("copying", "GB/s", lambda: 4.5e12, sheet.bytes_per_s)
    assert good.advice == "" and doctor_probes._row(good)[1:] == ["4,500 GB/s", "4,800", "94%"]

    def full() -> float:
        raise torch.OutOfMemoryError("no room")

    failed = doctor_probes.measure("copying", "GB/s", full, None)
    assert failed.verdict == FAILED and "no room" in failed.found
    names = [name for name, *_ in doctor_probes.gpu_probes(torch.device("cuda", 0), sheet, quick=False)]
    assert names == ["cuda:0 copying", "cuda:0 products, bf16"]


# ---- fast paths on the CPU

needs_numba = pytest.mark.skipif(not doctor_environment.installed("numba"), reason="numba is not installed")
ALL_PATHS = {**doctor_cpu.PATHS, **doctor_cpu.MORE_PATHS}


@needs_numba
@pytest.mark.parametrize("name", ALL_PATHS)
def test_fast_paths_are_right_and_an_error_is_found(name: str) -> None:
    path = ALL_PATHS[name]()
    assert doctor_cpu.examine_path(name, lambda: path, rounds=1).verdict == OK
    size = 3e-2 if name.endswith("bf16") else 1e-3

    def wrong_fast() -> torch.Tensor:
        return path.fast() * (1 + size)

    check = doctor_cpu.examine_path(name, lambda: dataclasses.replace(path, fast=wrong_fast), rounds=1)
    assert check.verdict == FAILED and "times what is allowed" in check.found and check.numbers["share_of_allowed"] > 1


def path_with(fast: object) -> doctor_cpu.FastPath:
    ones = torch.ones(3, dtype=torch.float64)
    return doctor_cpu.FastPath(fast, lambda: ones, lambda exact: torch.full_like(exact, 1e-6), lambda: None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("result", "found"),
    [(torch.ones(2), "shape"), (torch.tensor([1.0, math.nan, 1.0]), "nan at [1]"), (torch.ones(3) + 1e-5, "allowed")],
)
def test_planted_wrong_paths(result: torch.Tensor, found: str) -> None:
    section = doctor_cpu.examine(
        QUICK, {"good": lambda: path_with(lambda: torch.ones(3)), "planted": lambda: path_with(lambda: result)}
    )
    assert [check.name for check in section.failed()] == ["planted"] and found in section.failed()[0].found
    assert "planted" in "\n".join(section.lines) and section.failed()[0].advice


def test_a_path_that_raises_does_not_stop_the_others() -> None:
    def no_compiler() -> doctor_cpu.FastPath:
        raise RuntimeError("no compiler")

    section = doctor_cpu.examine(QUICK, {"planted": no_compiler, "good": lambda: path_with(lambda: torch.ones(3))})
    assert [check.verdict for check in section.checks] == [FAILED, OK] and "no compiler" in section.checks[0].found


def test_being_slow_is_no_failure() -> None:
    def slow() -> torch.Tensor:
        time.sleep(0.01)
        return torch.ones(3)

    check = doctor_cpu.examine_path("slow", lambda: path_with(slow), rounds=2)
    assert check.verdict == OK and check.numbers["over_torch"] < 0.5


def test_without_numba_they_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_cpu, "installed", lambda name: False)
    section = doctor_cpu.examine(QUICK)
    assert [check.verdict for check in section.checks] == [NOT_CHECKED] and "minillm[fast]" in section.lines[0]


# ---- kernels: a verdict from outcomes

TASK = Task("k", "numbers", len, ())


def numbers(*shares: float, problem: str = "") -> Outcome:
    checks = [NumberCheck("k", f"p{i}", torch.float16, "cpu", 1e-3 * s, s) for i, s in enumerate(shares)]
    return Outcome(TASK, (checks, 9), problem)


def built(*problems: str) -> Outcome:
    return Outcome(TASK, ([BuildCheck("tile", 90, problem) for problem in problems], 7))


def test_a_right_kernel() -> None:
    speed = Outcome(TASK, Speed("k", "8192³", torch.bfloat16, 2e-3, 1.8e-3, 0.9))
    check = doctor_kernel_table.judge("k", "GPU", numbers(0.1, 0.7), built("", ""), speed)
    assert check.verdict == OK and check.numbers["share_of_allowed"] == 0.7 and check.numbers["problems"] == 9
    row = doctor_kernel_table.table([check])[1].split()
    assert row == ["k", "GPU", "7e-04", "70%", "2/2", "ok", "0.90"]


@pytest.mark.parametrize(
    ("outcomes", "found"),
    [
        ((numbers(0.1, 1.5),), "1 of 2 problems wrong, first “p1”, fp16"),
        ((numbers(problem="took more than 3 s"),), "took more than 3 s"),
        ((numbers(),), "no problem was checked"),
        ((numbers(0.1), built("", "needs 300000 bytes")), "build “tile” for sm_90: needs 300000 bytes"),
        ((numbers(0.1), Outcome(TASK, problem="died")), "builds: died"),
        ((numbers(0.1), None, Outcome(TASK, problem="no memory")), "speed: no memory"),
    ],
)
def test_a_kernel_that_fails_a_gate(outcomes: tuple[Outcome, ...], found: str) -> None:
    check = doctor_kernel_table.judge("k", "interpreter", *outcomes)
    assert check.verdict == FAILED and found in check.found and check.advice
    assert ("--timeout" in check.advice) == ("took more" in found)


def test_the_table_fits_with_the_longest_names() -> None:
    checks = [
        Check("flash_attention_gradients", FAILED, numbers={"where": "interpreter", "max_error": 1e-3,
              "share_of_allowed": 12.34, "builds_passed": 11, "builds_tried": 12, "over_vendor": 0.91})
    ]  # fmt: skip
    assert max(map(len, doctor_kernel_table.table(checks))) <= WIDTH


INFOS = [
    KernelInfo("t", "triton", (torch.float32, torch.float16, torch.bfloat16), True, True),
    KernelInfo("n", "numba", (torch.float32,), False, True),
]


def test_what_is_done_on_a_cpu_and_on_a_gpu() -> None:
    by_mode, builds, speeds = doctor_kernels.tasks_for(INFOS, Settings(), on_gpu=False)
    assert by_mode["triton"][0].args == ("t", (torch.float16,), "cpu", 6, False)
    assert by_mode["numba"][0].args == ("n", (torch.float32,), "cpu", 6, False)
    assert [task.args for task in builds] == [("t", (80, 90), 1)]
    by_mode, builds, speeds = doctor_kernels.tasks_for(INFOS, Settings(every=True), on_gpu=True)
    assert by_mode["triton"][0].args == ("t", INFOS[0].dtypes, "cuda", None, True)
    assert [task.args[1] for task in speeds] == [torch.bfloat16, torch.float32] and builds[0].args[2] is None
    assert doctor_kernels.interpreted_dtypes(INFOS[0].dtypes, True) == (torch.float32, torch.float16)


@given(items=st.lists(st.integers(), max_size=40, unique=True), most=st.one_of(st.none(), st.integers(1, 12)))
def test_samples_are_spread_over_all(items: list[int], most: int | None) -> None:
    chosen = sample(items, most)
    assert len(chosen) == (len(items) if most is None else min(most, len(items)))
    places = [items.index(item) for item in chosen]
    assert places == sorted(set(places))
    if most != 1 and items:
        assert chosen[0] == items[0] and chosen[-1] == items[-1]
        gaps = [b - a for a, b in zip(places, places[1:], strict=False)]
        assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("missing", ["triton", "numba"])
def test_without_triton_or_numba_kernels_are_not_checked(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_kernels, "installed", lambda name: name != missing)
    section = doctor_kernels.examine(QUICK)
    assert [check.verdict for check in section.checks] == [NOT_CHECKED] and not section.failed()
    assert (
        f"{missing} not installed" in section.checks[0].found and "pip install" in section.lines[0] + section.lines[-1]
    )


# ---- child processes


def test_outcomes_of_tasks_that_hang_die_and_raise() -> None:
    tasks = [
        Task("hangs", "numbers", time.sleep, (60,)),
        Task("dies", "numbers", os._exit, (3,)),
        Task("raises", "numbers", math.sqrt, (-1.0,)),
        Task("works", "numbers", math.sqrt, (9.0,)),
    ]
    seen: list[str] = []
    with Worker({}, before_import="no_such_module") as one, Worker({}, before_import="no_such_module") as two:
        lists = [(one, tasks), (two, [Task("beside", "builds", math.sqrt, (4.0,))])]
        outcomes = run_tasks(lists, timeout_s=4.0, start=os.getpid, on_task=lambda task: seen.append(task.kernel))
        assert two.process.is_alive()
    by_name = {outcome.task.kernel: outcome for outcome in outcomes}
    assert list(by_name) == ["hangs", "dies", "raises", "works", "beside"] and set(seen) == set(by_name)
    assert by_name["hangs"].problem == "took more than 4 s" and "exit code 3" in by_name["dies"].problem
    assert by_name["raises"].problem.startswith("ValueError") and by_name["works"].result == 3.0
    assert by_name["beside"].result == 2.0 and not two.process.is_alive()


def test_an_interruption_ends_the_children() -> None:
    """As Ctrl-C does: the main thread leaves while children are busy."""
    with Worker({}, before_import="no_such_module") as one, Worker({}, before_import="no_such_module") as two:
        busy = [Task("sleeps", "numbers", time.sleep, (300,))] * 2

        def on_task(task: Task) -> None:
            if task.kernel == "breaks":
                raise KeyboardInterrupt

        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            run_tasks([(one, [Task("breaks", "numbers", len, ())]), (two, busy)], timeout_s=300, on_task=on_task)
        assert time.monotonic() - started < 60 and (two.process is None or not two.process.is_alive())


def test_a_child_that_cannot_start_is_an_outcome() -> None:
    with Worker({}, before_import="no_such_module") as worker:
        start = functools.partial(math.sqrt, -1.0)
        outcomes = run_tasks([(worker, [Task("k", "numbers", len, ((),))])], timeout_s=30, start=start)
    assert "ValueError" in outcomes[0].problem


def test_the_kernels_list_has_what_the_registry_has() -> None:
    pytest.importorskip("triton")
    pytest.importorskip("numba")
    from minillm.kernels.registry import KERNELS

    assert [info.name for info in doctor_children.list_kernels()] == list(KERNELS)
