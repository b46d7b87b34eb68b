"""`minillm bench all`, 3: report.json and report.md, written anew after each part."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

from minillm import __version__
from minillm.bench.all_parts import in_order, load_json
from minillm.bench.all_tables import TABLES, markdown_table
from minillm.bench.recorded import describe_in_a_line
from minillm.bench.report import write_json

REPORT_JSON, REPORT_MD = "report.json", "report.md"


def write_report(document: dict[str, Any], folder: Path) -> None:
    """Both files, each whole or as it was. `document` has `machine` and `parts`: records by name."""
    write_json({"minillm": __version__, **document}, folder / REPORT_JSON)
    partial = folder / f".{REPORT_MD}.partial"
    partial.write_text(markdown(document, folder), encoding="utf-8")
    os.replace(partial, folder / REPORT_MD)


def markdown(document: dict[str, Any], folder: Path) -> str:
    """The report for people. Pictures and files are named relative to the folder."""
    machine = document["machine"]
    records = {name: document["parts"][name] for name in in_order(document["parts"])}
    blocks = [f"# Measured on {describe_in_a_line(machine)}"]
    blocks.append(f"Made by `minillm bench all`, minillm {__version__}. Ratios are medians of pairs timed in turn.")
    if any("--quick" in record["command"] for record in records.values()):
        blocks.append("**Runs with `--quick` are of tiny problems: they show the form, not the speed.**")
    blocks += ["## Machine", markdown_table(machine_rows(machine), right=())]
    blocks += ["## Parts", markdown_table(part_rows(records), right=(2,))]
    for name, record in records.items():
        blocks += part_blocks(name, record, folder)
    return "\n\n".join(block for block in blocks if block) + "\n"


def machine_rows(machine: dict[str, Any]) -> list[list[str]]:
    """Name and value, a heading first."""
    caches = ", ".join(f"{level} {num_bytes // 1024:,} KiB" for level, num_bytes in machine["cache_bytes"].items())
    memory = machine["memory_bytes"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    rows = [
        ["", ""],
        ["processor", f"{machine['cpu'] or machine['architecture']}, {machine['cpu_capability']}"],
        ["cores, threads of torch", f"{machine['usable_cpus']}, {machine['torch_threads']}"],
        ["caches", caches or "unknown"],
        ["memory", f"{memory / 2**30:.1f} GiB" if memory else "unknown"],
        ["GPUs", ", ".join(machine["gpus"]) or "none"],
        ["system", machine["system"]],
        ["Python and packages", f"{machine['python']}; {packages}"],
    ]
    return rows


def part_rows(records: dict[str, Any]) -> list[list[str]]:
    """One row a part: how it ended and how long it took."""
    rows = [["part", "result", "minutes", "date"]]
    for name, record in records.items():
        result = "done" if record["status"] == "done" else f"failed: {record['problem']}"
        rows.append([f"[{name}](#{anchor(record['title'])})", result, f"{record['seconds'] / 60:.1f}", record["date"]])
    return rows


def part_blocks(name: str, record: dict[str, Any], folder: Path) -> list[str]:
    """Heading, tables, picture, and how to do it again."""
    blocks = [f"## {record['title']}"]
    if record["status"] != "done":
        blocks.append(f"**This part failed:** {escaped(record['problem'])}")
    data = load_json(folder / f"{name}.json")
    if data is not None:
        blocks.append(tables(name, data, folder))
    if record["has_plot"]:
        blocks.append(f"![{record['alt']}]({name}.png)")
    # Names and no links: a book that includes the report holds no such pages.
    files = f"`{name}.txt`" if data is None else f"`{name}.txt`; with every time: `{name}.json`"
    blocks.append(f"As printed: {files}. To do it again:")
    blocks.append(f"```sh\nminillm {shlex.join(record['command'])}\n```")
    return blocks


def tables(name: str, data: Any, folder: Path) -> str:
    """A part's tables in Markdown; what it printed, where there is no form for them or they don't fit it."""
    if name in TABLES:
        try:
            return TABLES[name](data)
        except (KeyError, TypeError, IndexError, ValueError):  # another version's file
            pass
    try:
        text = (folder / f"{name}.txt").read_text(encoding="utf-8")
    except OSError:
        return ""
    body = text.partition("\n")[2].strip("\n")
    return f"```text\n{body}\n```" if body else ""


def anchor(title: str) -> str:
    """The name by which Markdown's readers link to a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def escaped(text: str) -> str:
    """Text that Markdown leaves alone."""
    return re.sub(r"([\\`*_<>|\[\]])", r"\\\1", text)
