"""Execute a notebook with the running Python, whatever Jupyter is set up to do on this machine."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from notebook_pairing import ROOT

LIMIT_S = 300  # for one cell: something hangs
STARTUP_S = 120

# Linux has the peak of this program alone (VmHWM); what `getrusage` says there may be that of the one that started it.
USAGE = """
import time as _t
try:
    import resource as _r, sys as _s
    _peak = _r.getrusage(_r.RUSAGE_SELF).ru_maxrss * (1 if _s.platform == "darwin" else 1024)
    if _s.platform == "linux":
        _peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
except ImportError:
    import psutil as _p
    _peak = _p.Process().memory_info().peak_wset
print(_peak, _t.process_time())
"""


class ExecutionFailed(Exception):
    """One line that says which cell failed and how; `details` is the traceback as text."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


@dataclass(frozen=True)
class Cost:
    """What a notebook takes: wall time from the kernel's start to its end, seconds on processors (of all threads
    together; the same on a busy machine), and the most memory that its process had.
    """

    seconds: float
    processor_s: float
    peak_bytes: int

    def __str__(self) -> str:
        return f"{self.seconds:5.1f} s  {self.peak_bytes / 2**30:4.2f} GiB"


class OnlyThisPython(KernelSpecManager):
    """Knows one kernel: ipykernel in the interpreter that runs this. Nothing has to be installed as a kernelspec."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [
            sys.executable,
            "-Xfrozen_modules=off",
            "-m",
            "ipykernel_launcher",
            "-f",
            "{connection_file}",
            "--log-level=ERROR",
        ]
        return KernelSpec(argv=argv, display_name="Python 3", language="python", name=kernel_name)


def execute(notebook: NotebookNode, folder: Path, recorded: str) -> Cost:
    """Run every cell of a notebook in `folder`, in place; `recorded` is the mode of minillm.bench.recorded.

    Raises ExecutionFailed with the first cell's error, and KeyboardInterrupt on Ctrl-C.
    """
    if sys.platform == "win32" and sys.version_info < (3, 14):
        asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy())
    notebook.cells.append(nbformat.v4.new_code_cell(USAGE, id="usage"))
    started: list[int] = []
    start = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            manager = AsyncKernelManager(
                kernel_name="python3",
                kernel_spec_manager=OnlyThisPython(),
                connection_file=str(Path(scratch, "kernel.json")),
            )
            client = NotebookClient(
                notebook,
                km=manager,
                timeout=LIMIT_S,
                startup_timeout=STARTUP_S,
                record_timing=False,
                store_widget_state=False,
                on_cell_start=lambda cell, cell_index: started.append(cell_index),
                resources={"metadata": {"path": str(folder)}},
            )
            error = _run(client, manager, environment(Path(scratch), recorded))
    finally:
        probe = notebook.cells.pop()
    if error is not None:
        raise _failure(started[-1] + 1 if started else 0, error) from None
    _tidy(notebook)
    peak_bytes, processor_s = probe.outputs[0].text.split()
    return Cost(time.monotonic() - start, float(processor_s), int(peak_bytes))


def _run(client: NotebookClient, manager: AsyncKernelManager, variables: dict[str, str]) -> Exception | None:
    """Execute in a thread of its own, so that Ctrl-C reaches this one at once on every system."""
    errors: list[Exception] = []

    def work() -> None:
        try:
            client.execute(env=variables, cleanup_kc=True)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.2)
    except KeyboardInterrupt:
        process = getattr(manager.provisioner, "process", None)
        if process is not None:
            process.kill()
        thread.join(15)
        raise
    return errors[0] if errors else None


def environment(scratch: Path, recorded: str) -> dict[str, str]:
    """The kernel's environment: this checkout's minillm, no settings of the user's, nothing that prints by itself."""
    (scratch / "matplotlibrc").write_text("")
    own = {
        "MINILLM_RECORDED": recorded,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONHASHSEED": "0",
        "PYTHONIOENCODING": "utf-8",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "IPYTHONDIR": str(scratch / "ipython"),
        "JUPYTER_NO_CONFIG": "1",
        "JUPYTER_CONFIG_DIR": str(scratch / "jupyter"),
        "MATPLOTLIBRC": str(scratch / "matplotlibrc"),
        "TQDM_DISABLE": "1",
        "NO_COLOR": "1",
    }
    return {**os.environ, **own}


def _failure(place: int, error: Exception) -> ExecutionFailed:
    """`place` is the number of the cell that ran last, counted from 1; 0 if none did."""
    if isinstance(error, CellExecutionError):
        return ExecutionFailed(f"cell {place}: {error.ename}: {_first_line(error.evalue)}", _plain(error.traceback))
    if isinstance(error, CellTimeoutError):
        return ExecutionFailed(f"cell {place}: longer than {LIMIT_S} s")
    if isinstance(error, DeadKernelError):
        return ExecutionFailed(f"cell {place}: the kernel died (out of memory?)")
    return ExecutionFailed(f"cell {place}: {type(error).__name__}: {_first_line(str(error))}")


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0]


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _tidy(notebook: NotebookNode) -> None:
    """Remove what differs between runs and machines: versions, and how the output was cut into messages."""
    notebook.metadata["language_info"] = NotebookNode(name="python")
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata.pop("execution", None)
        outputs: list[NotebookNode] = []
        for output in cell.outputs:
            output.pop("transient", None)
            before = outputs[-1] if outputs else None
            if before is not None and output.output_type == before.output_type == "stream":
                if before.name == output.name:
                    before.text += output.text
                    continue
            outputs.append(output)
        cell.outputs = outputs
