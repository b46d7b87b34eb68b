"""`minillm bench all`, 2: run the parts, each in a process of its own, and keep the report up to date.

    for each part:   finished before? keep it : run `minillm …`, show and keep what it prints     then write the report

A part that fails, or that takes its process along, costs nothing but itself. After each part report.json and report.md
are whole, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from minillm.bench.all_parts import Part, is_finished, load_json
from minillm.bench.all_report import REPORT_JSON, write_report
from minillm.perf.machine import describe_machine

KEPT_OF_STDERR = 2000  # characters, for the report of a failure
MINILLM = (sys.executable, "-X", "utf8", "-u", "-m", "minillm")  # -u: lines are shown when they are printed
Say = Callable[[str], object]


def run_all(
    parts: Sequence[Part],
    folder: Path,
    *,
    quick: bool = False,
    plot: bool = True,
    again: bool = False,
    say: Say = print,
) -> int:
    """Run those parts that aren't finished, or all with `again`; returns 0, or 1 if one of them failed.

    The folder is made. What parts print goes to `say` line by line, their stderr to this process's. Raises ValueError
    if the folder holds the report of another machine. KeyboardInterrupt ends the part that runs and passes through.
    """
    folder.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    document = load_json(folder / REPORT_JSON) or {"parts": {}}
    check_machine(document, machine, folder)
    document = {"machine": machine, "parts": dict(document["parts"])}
    failed = False
    for number, part in enumerate(parts, start=1):
        say(f"\n=== {number} of {len(parts)}: {part.name}")
        record = document["parts"].get(part.name)
        if not again and is_finished(part, record, folder, quick=quick, plot=plot):
            say(f"finished on {record['date']}: kept (--again measures anew)")
        else:
            document["parts"][part.name] = record = run_part(part, folder, quick=quick, plot=plot, say=say)
            write_report(document, folder)
        if record["status"] != "done":
            failed = True
            say(f"{part.name} failed: {record['problem']}")
    write_report(document, folder)
    return 1 if failed else 0


def check_machine(document: dict[str, Any], machine: dict[str, Any], folder: Path) -> None:
    """One report, one machine: raise ValueError if the folder's is of another."""
    before = document.get("machine", {})
    for key in ("cpu", "gpus", "usable_cpus"):
        if key in before and before[key] != machine[key]:
            raise ValueError(f"{folder} holds a report of {key} {before[key]}, this machine has {machine[key]}: --out")


def run_part(part: Part, folder: Path, *, quick: bool, plot: bool, say: Say) -> dict[str, Any]:
    """Run one part to its end; its record for the report. Its files of an earlier run are gone."""
    for suffix in ("json", "png", "txt"):
        (folder / f"{part.name}.{suffix}").unlink(missing_ok=True)
    shown = part.command(None, quick=quick, plot=plot)
    say("minillm " + " ".join(shown) + "\n")
    started = time.monotonic()
    exit_status, printed, errors = _run(part.command(folder.absolute(), quick=quick, plot=plot), say)
    (folder / f"{part.name}.txt").write_text(f"minillm {' '.join(shown)}\n{printed}", encoding="utf-8")
    record = {
        "title": part.title,
        "alt": part.alt,
        "command": shown,
        "status": "done",
        "exit_status": exit_status,
        "seconds": round(time.monotonic() - started, 1),
        "date": datetime.date.today().isoformat(),
        "has_plot": (folder / f"{part.name}.png").is_file(),
        "problem": "",
    }
    # The doctor's status 1 says that a check failed: the part itself has done its work.
    if exit_status != 0 and not (part.name == "doctor" and exit_status == 1):
        last = errors.strip().splitlines()[-1:] or [f"exit status {exit_status}"]
        record |= {"status": "failed", "problem": last[0]}
    elif load_json(folder / f"{part.name}.json") is None:
        record |= {"status": "failed", "problem": f"it left no {part.name}.json"}
    elif exit_status == 1:
        record |= {"status": "failed", "problem": "a check failed; its section says which"}
    return record


def _run(words: Sequence[str], say: Say) -> tuple[int, str, str]:
    """(exit status, stdout, end of stderr) of a minillm command; both are passed on as they come."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    with subprocess.Popen([*MINILLM, *words], **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        kept: list[str] = []
        forwarder = threading.Thread(target=_forward, args=(process.stderr, kept), daemon=True)
        forwarder.start()
        lines = []
        try:
            for raw in process.stdout:
                line = raw.decode("utf-8", "replace")
                lines.append(line)
                say(line.rstrip("\n"))
            exit_status = process.wait()
        except BaseException:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
        forwarder.join(timeout=5)
    return exit_status, "".join(lines), "".join(kept)[-KEPT_OF_STDERR:]


def _forward(stream: Any, kept: list[str]) -> None:
    """Pass on a progress bar as it is drawn."""
    while chunk := stream.read1(4096):
        text = chunk.decode("utf-8", "replace")
        kept.append(text)
        sys.stderr.write(text)
        sys.stderr.flush()
