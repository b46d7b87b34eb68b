"""Freed memory stays: a prefill repeated fetches no new pages. In children, for the setting holds for the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from minillm.perf.freed_memory import keep_freed_memory

FAULTS = """
import resource, sys, torch
from minillm import load_model
from minillm.bench.pieces import whole_step
from minillm.perf.freed_memory import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
prefill = whole_step(load_model(), 1, 384, 384)
for _ in range(2):  # the first ones fetch what the others use
    prefill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    prefill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    child = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
    return int(child.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_a_prefill_repeated_fetches_no_pages() -> None:
    by_default = page_faults("default")
    if by_default < 4000:
        pytest.skip("this system keeps freed memory, or maps large pages, of its own accord")
    assert page_faults("keep") < by_default / 10


def test_elsewhere_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False


def test_less_than_a_page() -> None:
    with pytest.raises(ValueError, match="at least a page of 4096 bytes, got 10"):
        keep_freed_memory(10)
