"""`minillm bench all`: every measurement in its usual form, and one report of them."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from minillm.cli.bench.options import names

DEFAULT_FOLDER = Path("bench-results")

EXAMPLES = """\
examples:
  minillm bench all                           half an hour on two cores; see bench-results/report.md
  minillm bench all --dry-run                 what would be run, and for how long
  minillm bench all --only doctor,gemm --out results/my-machine
  minillm bench all --quick                   a few minutes; shows the form, not the speed

What was finished is kept: run the same command again after an interruption, and it goes on. Close other programs.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the measurement to `minillm bench`."""
    parser = subparsers.add_parser(
        "all",
        help="the doctor and every measurement, in one report",
        description="Run the doctor and every measurement, one after the other, and write report.json and report.md.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, metavar="DIR", default=DEFAULT_FOLDER, help="default bench-results")
    parser.add_argument("--only", metavar="A,B", help="parts by name: doctor, gemm, decode … (default all)")
    parser.add_argument("--quick", action="store_true", help="tiny problems and few rounds, to try the command")
    parser.add_argument("--again", action="store_true", help="measure anew what is finished")
    parser.add_argument("--dry-run", action="store_true", help="list the parts and stop")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the parts; returns 0, or 1 if one failed. Raises ValueError for bad options.

    The report is written after each part; Ctrl-C loses the one that runs.
    """
    from minillm.bench.all_parts import chosen, parts
    from minillm.bench.all_report import REPORT_JSON, REPORT_MD

    selected = chosen(parts(measurements()), None if args.only is None else names(args.only))
    has_matplotlib = importlib.util.find_spec("matplotlib") is not None
    if args.dry_run:
        print(listing(selected, args.out, quick=args.quick, plot=has_matplotlib, again=args.again))
        return 0
    from minillm.bench.all_run import run_all

    if not has_matplotlib:
        print("no pictures: matplotlib is not installed (pip install 'minillm[plots]')")
    try:
        status = run_all(selected, args.out, quick=args.quick, plot=has_matplotlib, again=args.again, say=say)
    except KeyboardInterrupt:
        say("\nFinished parts are kept: the same command goes on with the others.")
        raise
    say(f"\n{args.out / REPORT_MD} and {args.out / REPORT_JSON} are written.")
    return status


def measurements() -> list[str]:
    """What `minillm bench` can measure, by name."""
    from minillm.cli.bench import MEASUREMENTS

    subparsers = argparse.ArgumentParser().add_subparsers()
    for module in MEASUREMENTS:
        module.add_parser(subparsers)
    return list(subparsers.choices)


def listing(selected: list, folder: Path, *, quick: bool, plot: bool, again: bool) -> str:
    """A line a part: minutes on two cores, its command, and whether it is finished."""
    from minillm.bench.all_parts import QUICK_MINUTES, is_finished, load_json
    from minillm.bench.all_report import REPORT_JSON

    records = (load_json(folder / REPORT_JSON) or {"parts": {}})["parts"]
    lines, total, unknown = ["minutes  part"], 0.0, False
    for part in selected:
        minutes = QUICK_MINUTES if quick else part.minutes
        finished = not again and is_finished(part, records.get(part.name), folder, quick=quick, plot=plot)
        if finished:
            time = "done"
        else:
            time = "?" if minutes is None else f"{minutes:g}"
            total, unknown = total + (minutes or 0.0), unknown or minutes is None
        command = " ".join(["minillm", *part.words, *(["--quick"] if quick else [])])
        lines.append(f"{time:>7}  {part.name:18}{command}")
    lines.append(f"{f'{total:g}' + ('+' if unknown else ''):>7}  in all, on two cores; results go to {folder}")
    return "\n".join(lines)


def say(line: str) -> None:
    """Print at once, so that a reader of a pipe sees it too."""
    print(line, flush=True)
