"""`minillm doctor`: what works on this machine, checked."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  minillm doctor                              half a minute; the first time, which compiles, a minute
  minillm doctor --quick
  minillm doctor --only environment,devices
  minillm doctor --only kernels --all         every problem and every build: minutes
  minillm doctor --json report.json           also for programs; --json - prints nothing else

The exit status is 0 if nothing failed and 1 if something did. What is missing but not needed is no failure.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the command to `minillm`."""
    parser = subparsers.add_parser(
        "doctor",
        help="check what works on this machine, and how fast it is",
        description="Check the installation, devices, speed, fast CPU paths and every GPU kernel against an oracle.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="smaller samples of everything")
    size.add_argument("--all", action="store_true", help="every problem and build, large problems on a GPU: minutes")
    parser.add_argument("--only", metavar="A,B", help="environment, devices, probes, cpu, kernels (default all)")
    parser.add_argument("--json", metavar="FILE", help="write everything seen to FILE; - = standard output")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds a kernel's check may take (default 120)")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the report part by part; returns 0, or 1 if a check failed. Raises ValueError for bad options.

    The JSON file is written at the end, whole or not at all. With `--json -` the report for people goes to stderr.
    """
    import json

    from minillm.bench.doctor import Diagnosis, as_document, examine, section_names, verdict
    from minillm.bench.doctor_section import Settings
    from minillm.bench.report import write_json
    from minillm.cli.bench.options import check_files, names
    from minillm.cli.options import set_threads
    from minillm.perf.machine import describe_machine

    wanted = section_names(None if args.only is None else names(args.only))
    if args.timeout is not None and not args.timeout > 0:
        raise ValueError(f"timeout must be above 0 seconds, got {args.timeout:g}")
    timeout_s = args.timeout or (600.0 if args.all else 120.0)
    to_stdout = args.json == "-"
    json_file = None if args.json is None or to_stdout else Path(args.json)
    check_files(json_file, None)
    set_threads(args.threads)

    out = sys.stderr if to_stdout else sys.stdout
    progress = Progress()
    settings = Settings(quick=args.quick, every=args.all, timeout_s=timeout_s, on_step=progress.step)
    sections = []
    try:
        for section in examine(wanted, settings):
            progress.clear()
            sections.append(section)
            print(f"{len(sections)} {section.title}", *section.lines, "", sep="\n", file=out, flush=True)
    finally:
        progress.clear()
    diagnosis = Diagnosis(tuple(sections))
    print("Verdict", *verdict(diagnosis), sep="\n", file=out, flush=True)
    document = as_document(diagnosis, describe_machine(), settings)
    if json_file is not None:
        write_json(document, json_file)
    if to_stdout:
        print(json.dumps(document, indent=2))
    return diagnosis.status


class Progress:
    """One bar a section on stderr, if that is a terminal; gone when the section is printed."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._make: Callable[..., Any] | None = None

    def step(self, what: str, done: int, total: int) -> None:
        """Show what is done now, as step `done` of `total`."""
        if not sys.stderr.isatty():
            return
        from tqdm import tqdm

        if self._bar is None or self._bar.total != total:
            self.clear()
            form = "{percentage:3.0f}% {bar:20} {desc} {elapsed}"
            self._bar = tqdm(total=total, file=sys.stderr, leave=False, ncols=79, bar_format=form)
        self._bar.n = done
        self._bar.set_description_str(what)

    def clear(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
