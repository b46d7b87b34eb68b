"""Measurements in notebooks: taken live by a reader, read from a file while the committed outputs are made.

A time differs with every run, and a committed notebook must not. So a chapter's measurements are recorded once, on a
quiet machine, under `chapters/measured/`, and executing the chapters again gives the same bytes. A reader who runs the
notebook sees his own machine's figures.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.perf.machine import describe_machine
from minillm.plots.display import write_whole

MODE = "MINILLM_RECORDED"  # environment variable, set by the tool that executes the chapters and by nothing else
FOLDER = "measured"  # beside the notebook, whose folder is the kernel's working directory
MODES = ("live", "use", "write", "check")


@dataclass(frozen=True)
class Record:
    """What was measured and where.

    values   what `measure` returned, as JSON knows it: lists for tuples, strings for the keys of dictionaries
    machine  one line that describes the machine
    live     whether it was measured just now; False if it was read from the recorded file
    """

    values: Any
    machine: str
    live: bool


def recorded(name: str, measure: Callable[[], Any]) -> Record:
    """The measurement `name`: by calling `measure()`, or from its record.

    name     of the record's file, `measured/<name>.json` in the working directory: letters, digits, `_` and `-`
    measure  without arguments; returns numbers, text, lists and dictionaries (arrays and tensors become lists)

    The environment variable MINILLM_RECORDED says which: `live` (the default) measures and writes nothing, `use` reads
    the record and measures only where there is none yet, `write` measures anew and replaces it, `check` reads it and
    raises FileNotFoundError where there is none. Raises ValueError for another mode or a bad name, and TypeError for
    values that JSON doesn't know.
    """
    mode = os.environ.get(MODE, "live")
    if mode not in MODES:
        raise ValueError(f"expected {MODE} to be one of {', '.join(MODES)}; got {mode!r}")
    if not re.fullmatch(r"[\w-]+", name, re.ASCII):
        raise ValueError(f"expected a name of letters, digits, '_' and '-'; got {name!r}")
    file = Path(FOLDER, f"{name}.json")
    if mode == "check" and not file.exists():
        raise FileNotFoundError(f"no record {file.as_posix()}: execute this chapter without --check to measure it")
    if mode in ("use", "check") and file.exists():
        document = json.loads(file.read_text(encoding="utf-8"))
        return Record(document["values"], document["machine"], live=False)
    # Through JSON in any case, so that a live run sees the same types as a run from the record.
    values = json.loads(json.dumps(measure(), default=_plain, allow_nan=False))
    machine = describe_in_a_line(describe_machine())
    if mode != "live":
        file.parent.mkdir(exist_ok=True)
        content = json.dumps({"machine": machine, "values": values}, indent=1) + "\n"
        write_whole(file, content.encode("utf-8"))
    return Record(values, machine, live=mode == "live")


def describe_in_a_line(machine: dict[str, Any]) -> str:
    """A description of `minillm.perf.machine` in a few words: "AMD EPYC 7B13, 2 cores, 2 threads, torch 2.13.0"."""
    cpu = re.sub(r"\((?:R|TM|tm)\)|\s+(?:CPU|Processor)\b|\s+@.*", "", machine["cpu"] or machine["architecture"])
    words = [" ".join(cpu.split())]
    words += [f"GPU {name}" for name in machine["gpus"][:1]]
    for count, unit in ((machine["usable_cpus"], "core"), (machine["torch_threads"], "thread")):
        words.append(f"{count} {unit}" + ("" if count == 1 else "s"))
    words.append(f"torch {machine['packages']['torch'].partition('+')[0]}")
    return ", ".join(words)


def _plain(value: Any) -> Any:
    """Arrays, tensors and their scalars as lists and numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a measurement returns numbers, text, lists and dictionaries; got a {type(value).__name__}")
