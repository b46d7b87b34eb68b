"""The process that grades: it hands a chapter's tests to a child, and replaces a child that hangs or dies."""

from __future__ import annotations

import json
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from minillm.grading.course import Chapter
from minillm.grading.outcome import new_grading
from minillm.grading.task import graded_of

START_SECONDS = 180.0  # to start Python, import torch and collect the tests, on a slow machine
IMPORT_SECONDS = 60.0  # to import the student's file
NAMING_SECONDS = 60.0  # to find out which mistake it was
UNGRADED_SECONDS = 60.0
CLOSE_SECONDS = 5.0  # to end by itself when there is nothing left to do
STARVED_FACTOR = 4  # how much longer a test may take on a machine that is busy with other things
SILENCE_SECONDS = 1.0  # how long after a child's death its last lines may take to arrive

CHILD = "import sys; sys.path.insert(0, sys.argv.pop(1)); from minillm.grading.child import main; sys.exit(main())"
PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])

Event = dict[str, Any]


class Child:
    """One running child and the events that it sends."""

    def __init__(self, arguments: list[str], directory: Path) -> None:
        self.num_done = 0
        self.errors = tempfile.TemporaryFile()  # a file can't fill up and block, as a pipe would
        command = [sys.executable, "-P", "-c", CHILD, PACKAGE_ROOT]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=directory, stdin=pipe, stdout=pipe, stderr=self.errors)
        self.events: queue.Queue[Event] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.send(arguments)

    def send(self, message: object) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it died already: `next` will notice

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # not ours: somebody wrote to the descriptor
            if isinstance(event, dict):
                self.events.put(event)

    def next(self, deadline: float) -> Event | None:
        """The next event; None when the deadline (of time.monotonic) passes or the child is dead and silent."""
        while True:
            is_dead = self.process.poll() is not None
            patience = min(0.2, deadline - time.monotonic())
            try:
                return self.events.get(timeout=SILENCE_SECONDS if is_dead else max(patience, 0.001))
            except queue.Empty:
                if is_dead or time.monotonic() > deadline:
                    return None

    def close(self) -> None:
        """Let it come to its end, or end it."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(timeout=CLOSE_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            pass
        self.kill()

    def kill(self) -> str:
        """End it, and return what it wrote to its standard error."""
        self.process.kill()
        self.process.wait()
        self.errors.seek(0)
        text = self.errors.read().decode(errors="replace")
        self.errors.close()
        return text


class ChildRun:
    """The tests of one chapter, one after the other, through as many children as it takes."""

    def __init__(self, config: pytest.Config, chapter: Chapter) -> None:
        self.config = config
        self.chapter = chapter
        self.child: Child | None = None
        self.verdict_for_all = ""  # why no further child is started

    def reports(self, item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
        """The reports of a test, the child's or, if it didn't live to send them, one that says why."""
        if self.verdict_for_all:
            return [self._failure(item, self.verdict_for_all)]
        if self.child is None:
            self.child = Child(self._arguments(), self.config.invocation_params.dir)
        next_id = nextitem.nodeid if nextitem is not None and nextitem.path == item.path else None
        self.child.send({"id": item.nodeid, "next": next_id, "seconds": seconds_of(item)})
        reports = self._follow(item)
        if reports is None:  # it died after the test before: of what that one left behind
            return self.reports(item, nextitem)
        if next_id is None:
            self.close()
        return reports

    def close(self) -> None:
        if self.child is not None:
            self.child.close()
            self.child = None

    def _arguments(self) -> list[str]:
        option = self.config.option
        arguments = [f"--rootdir={self.config.rootpath}", f"--tb={option.tbstyle}", "-v" * max(option.verbose, 0)]
        # The exercises' own settings, even if pytest was started with those of the project around them.
        beside = self.chapter.tests.parent / "pytest.ini"
        settings = beside if beside.is_file() else self.config.inipath
        if settings is not None:
            arguments.append(f"--config-file={settings}")
        if option.showlocals:
            arguments.append("--showlocals")
        arguments.append(f"--target={self.config.getoption('--target', 'exercises')}")
        return [str(self.chapter.tests), *(argument for argument in arguments if argument)]

    def _follow(self, item: pytest.Item) -> list[pytest.TestReport] | None:
        """Wait for what the child says about this test."""
        assert self.child is not None
        limit, phase = START_SECONDS, "starting"
        started, unnamed, cpu_s = time.monotonic(), None, None
        while True:
            event = self.child.next(started + patience(limit, time.monotonic() - started, cpu_s))
            if event is None:
                return self._lost(item, phase, limit, unnamed)
            if event.get("id") != item.nodeid:
                continue
            if event["event"] == "alive":
                cpu_s = event["cpu_s"] if phase == "running" else None
                continue
            started, cpu_s = time.monotonic(), None
            match event["event"]:
                case "start":
                    limit, phase = max(IMPORT_SECONDS, seconds_of(item)), "importing"
                case "loaded":
                    limit, phase = seconds_of(item), "running"
                case "naming":
                    limit, phase, unnamed = NAMING_SECONDS, "naming", event["reports"]
                case "done":
                    self.child.num_done += 1
                    return self._restored(event["reports"])

    def _restored(self, reports: list[Any]) -> list[pytest.TestReport]:
        restore = self.config.hook.pytest_report_from_serializable
        return [restore(config=self.config, data=data) for data in reports]

    def _lost(
        self, item: pytest.Item, phase: str, limit: float, unnamed: list[Any] | None
    ) -> list[pytest.TestReport] | None:
        """The child hangs or is dead: say so, and let the next test begin with a new one. None: begin this one anew."""
        assert self.child is not None
        status, num_done = self.child.process.poll(), self.child.num_done
        errors = self.child.kill()
        self.child = None
        if phase == "starting" and num_done:
            return None
        if unnamed is not None:
            return self._restored(unnamed)  # the failure is known, only its name isn't
        place = last_line_in(errors, self.chapter.student)
        where = f" in {self.chapter.show(self.chapter.student)}, {place}" if place else ""
        if status is None and phase == "importing":
            self.verdict_for_all = f"importing {self.chapter.show(self.chapter.student)} took over {limit:g} s"
            return [self._failure(item, self.verdict_for_all)]
        if phase == "starting":
            self.verdict_for_all = f"the process that runs the tests didn't start:\n{errors[-2000:].strip()}"
            return [self._failure(item, self.verdict_for_all)]
        if status is None:
            message = f"stopped after {limit:g} s{where}: is there an endless loop, or too much work?"
        else:
            message = f"the process that ran it ended ({exit_reason(status)}){where}"
        return [self._failure(item, message)]

    def _failure(self, item: pytest.Item, message: str) -> pytest.TestReport:
        report = pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords=dict.fromkeys(item.keywords, 1),
            outcome="failed",
            longrepr=message,
            when="call",
        )
        report.grading = new_grading(item, self.chapter, "stopped", message)  # type: ignore[attr-defined]
        return report


def patience(limit: float, elapsed: float, cpu_s: float | None) -> float:
    """How many seconds a phase may last: longer where the child gets less than half a core, as on a busy machine."""
    is_starved = cpu_s is not None and cpu_s < 0.5 * min(elapsed, limit)
    return limit * STARVED_FACTOR if is_starved else limit


def seconds_of(item: pytest.Item) -> float:
    graded = graded_of(getattr(item, "function", None))
    return graded.task.seconds if graded else UNGRADED_SECONDS


def last_line_in(traceback: str, file: Path) -> str:
    """The innermost place of the file in the calls that the child noted: "line 7 in attend", or empty."""
    latest = traceback[max(traceback.rfind("Timeout ("), 0) :]
    match = re.search(rf'File "[^"]*{re.escape(file.name)}", (line \d+ in \S+)', latest)
    return match[1] if match else ""


def exit_reason(status: int) -> str:
    if status < 0:
        return f"killed by signal {-status}"
    return f"exit status {status}" if status < 256 else f"exit status {status:#x}"
