"""Measuring warns when other programs keep the machine busy."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("nbclient")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "book" / "tools"))

import notebooks  # noqa: E402


@pytest.mark.skipif(not hasattr(os, "getloadavg"), reason="this system tells no load")
def test_a_busy_machine_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for load, warned in ((0.3, False), (1.9, False), (2.0, True), (9.5, True)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        warning = notebooks.busy_machine()
        assert (warning is not None) == warned
        assert warning is None or f"load {load}" in warning
