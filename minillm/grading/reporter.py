"""The part of the plugin that listens to reports: points, the category of stubs, the table, the JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minillm.grading.outcome import grading_of
from minillm.grading.score import Scores
from minillm.grading.table import bar_characters, write_table


class Reporter:
    """Registered for one run of pytest."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.scores = Scores()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if grading := grading_of(report):
            self.scores.add(grading)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: Any) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
        """A stub is no failure to be explained: it has a category of its own, and one line in the table."""
        grading = grading_of(report)
        if grading and grading["state"] == "not started":
            return "not started", "-", ("NOT STARTED", {"yellow": True})
        return None

    def pytest_sessionfinish(self) -> None:
        file = self.config.getoption("--score-json", None)
        if file and not hasattr(self.config, "workerinput"):  # a worker of xdist knows only its own tests
            self.scores.write(self.config.invocation_params.dir / Path(file))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.scores.tasks:
            writer = terminalreporter._tw
            writer.line()
            characters = bar_characters(getattr(writer._file, "encoding", None))
            write_table(writer, self.scores, self.config.getoption("--hints", 0), characters)
