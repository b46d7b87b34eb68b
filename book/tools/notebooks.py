"""Make the chapters' notebooks from their sources, and check them.

    python book/tools/notebooks.py                  execute what has changed since its last execution
    python book/tools/notebooks.py 08 --all         chapter 08, changed or not
    python book/tools/notebooks.py 08 --measure     take its measurements anew, on a quiet machine
    python book/tools/notebooks.py --check          execute all, change nothing, fail where a rule is broken

A notebook is replaced when its execution has succeeded, and not before. Exit status: 0, 1 for a failed cell or a broken
rule, 2 for bad arguments, 130 for Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from nbformat import NotebookNode
from notebook_kernel import Cost, ExecutionFailed, execute
from notebook_names import exported_names
from notebook_pairing import (
    ROOT,
    Chapter,
    code_digest,
    contents,
    find_chapters,
    notebook_of,
    read_notebook,
    stamp,
    stamp_of,
    write_notebook,
)
from notebook_rules import differences, not_executed, problems

MOST_PROCESSOR_S = 150  # of all threads: some 90 s on two cores. Wall time depends on what else the machine does
MOST_BYTES = 2 * 2**30
CHAPTERS = ROOT / "chapters"


def build(chapter: Chapter, *, measure: bool = False, always: bool = False) -> list[str]:
    """Bring one notebook up to date; returns what is wrong with the result. Raises ExecutionFailed."""
    if not chapter.source.exists():
        return [f"no source {_shown(chapter.source)}"]
    code = code_digest(chapter)
    if not (measure or always) and is_current(chapter, code):
        _say(f"{chapter.name:28} unchanged")
        return []
    _say(f"{chapter.name:28} …", end="")
    notebook = notebook_of(chapter)
    cost = execute(notebook, chapter.folder, "write" if measure else "use")
    notebook.metadata.minillm.stamp = stamp(chapter, code)
    write_notebook(notebook, chapter.notebook)
    _say(f" {cost}")
    return problems(notebook, exported_names()) + too_costly(cost)


def check(chapter: Chapter) -> list[str]:
    """Everything wrong with one chapter, its notebook executed anew in memory; changes no file."""
    for path in (chapter.source, chapter.notebook):
        if not path.exists():
            return [f"unpaired: no {_shown(path)}"]
    committed = read_notebook(chapter.notebook)
    found = staleness(chapter, committed) + not_executed(committed)
    found += problems(committed, exported_names())
    _say(f"{chapter.name:28} …", end="")
    fresh = notebook_of(chapter)
    try:
        cost = execute(fresh, chapter.folder, "check")
    except ExecutionFailed as error:
        _say(" failed")
        return [*found, str(error)]
    _say(f" {cost}")
    found += differences(fresh, committed) + too_costly(cost)
    found += [problem for problem in problems(fresh, exported_names()) if problem not in found]
    return found


def is_current(chapter: Chapter, code: str) -> bool:
    """Whether the notebook is what executing its source now would give."""
    if not chapter.notebook.exists():
        return False
    notebook = read_notebook(chapter.notebook)
    return stamp_of(notebook) == stamp(chapter, code) and contents(notebook) == contents(notebook_of(chapter))


def staleness(chapter: Chapter, committed: NotebookNode) -> list[str]:
    ours, theirs = contents(notebook_of(chapter)), contents(committed)
    if ours != theirs:
        pairs = enumerate(zip(ours, theirs, strict=False), 1)
        place = next((place for place, (a, b) in pairs if a != b), min(len(ours), len(theirs)) + 1)
        return [f"stale: its cells differ from {_shown(chapter.source)}, from cell {place} on"]
    if stamp_of(committed) != stamp(chapter, code_digest(chapter)):
        return ["stale: library code or records that it uses have changed since its execution"]
    return []


def too_costly(cost: Cost) -> list[str]:
    found = []
    if cost.processor_s > MOST_PROCESSOR_S:
        found.append(f"takes {cost.processor_s:.0f} processor seconds, at most {MOST_PROCESSOR_S}")
    if cost.peak_bytes > MOST_BYTES:
        found.append(f"takes {cost.peak_bytes / 2**30:.1f} GiB, at most {MOST_BYTES / 2**30:.0f}")
    return found


def busy_machine() -> str | None:
    """A warning if other programs keep this machine busy: what is measured now would be recorded too slow."""
    cores = os.cpu_count() or 1
    if not hasattr(os, "getloadavg") or (load := os.getloadavg()[0]) < cores / 2:
        return None
    return f"this machine is busy (load {load:.1f} on {cores} cores): measure again when it is quiet"


def select(chapters: list[Chapter], wanted: Sequence[str]) -> list[Chapter]:
    """Those named by number or name: 8, 08, ch08, 08_kv_cache, or a path. Raises ValueError for an unknown one."""
    chosen = []
    for word in wanted:
        name = Path(word).stem
        number = re.fullmatch(r"(?:ch)?(\d{1,2})", name)
        found = [
            chapter
            for chapter in chapters
            if chapter.name == name or (number and chapter.name.startswith(f"{int(number[1]):02d}_"))
        ]
        if not found:
            known = ", ".join(chapter.name for chapter in chapters) or "none"
            raise ValueError(f"no chapter {word!r}; there are {known}")
        chosen += found
    return [chapter for chapter in chapters if chapter in chosen] if wanted else chapters


def main(argv: Sequence[str] | None = None, folder: Path = CHAPTERS) -> int:
    parser = argparse.ArgumentParser(
        prog="notebooks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("chapters", nargs="*", metavar="NN", help="chapters by number; all without one")
    parser.add_argument("--all", action="store_true", help="execute unchanged chapters, too")
    parser.add_argument("--measure", action="store_true", help="replace the recorded measurements")
    parser.add_argument("--check", action="store_true", help="execute, compare, and apply the rules; write nothing")
    options = parser.parse_args(argv)
    if options.check and (options.measure or options.all):
        parser.error("--check goes without --measure and --all: it executes everything and writes nothing")
    try:
        chapters = select(find_chapters(folder), options.chapters)
    except ValueError as error:
        parser.error(str(error))
    if options.measure and (warning := busy_machine()):
        _say(warning)
    found: list[str] = []
    try:
        for chapter in chapters:
            found += [f"{chapter.name}: {problem}" for problem in _process(chapter, options)]
    except KeyboardInterrupt:
        _say("\ninterrupted; the notebooks that were not finished are as before")
        return 130
    if found:
        print(*found, sep="\n", file=sys.stderr)
        print(f"{len(found)} problem{'s' * (len(found) > 1)}", file=sys.stderr)
    return 1 if found else 0


def _process(chapter: Chapter, options: argparse.Namespace) -> list[str]:
    if options.check:
        return check(chapter)
    try:
        return build(chapter, measure=options.measure, always=options.all)
    except ExecutionFailed as error:
        _say(" failed")
        print(error.details, file=sys.stderr)
        return [f"{error} (the notebook on disk is as before)"]


def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, flush=True)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    sys.exit(main())
