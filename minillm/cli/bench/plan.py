"""`minillm bench plan`: time pieces of a step, predict whole steps from them, and measure those too."""

from __future__ import annotations

import argparse
import sys

from minillm.cli.bench.options import add_measuring_options, check_files, check_rounds, names
from minillm.cli.options import set_threads

DEFAULT_SIZES = "stories-5m,llama-70m"

EXAMPLES = """\
examples:
  minillm bench plan                                      some minutes on two cores
  minillm bench plan --sizes llama-70m --json out.json --plot out.png
  minillm bench plan --quick                              a few seconds; shows the form, not the speed

Matrix products, attention and the rest are timed apart and added up; whole steps are measured in the same rounds.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the measurement to `minillm bench`."""
    parser = subparsers.add_parser(
        "plan",
        help="predict decode steps and prefills from their pieces, then measure them",
        description="Predict decode steps and prefills on this CPU from their pieces, and measure both.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", metavar="A,B", help=f"models, by name (default {DEFAULT_SIZES}; with --quick: tiny)")
    add_measuring_options(
        parser,
        rounds="rounds to keep (default 20)",
        plot="draw predicted against measured (PNG)",
        quick="few rounds of a tiny model, to try the command",
    )
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure, print a table a model, then write the files; returns 0. Raises ValueError for bad options.

    Files are written at the end, whole or not at all: an interrupted run leaves none.
    """
    from dataclasses import asdict, replace

    import torch
    from tqdm import tqdm

    from minillm.bench.decode import SIZES
    from minillm.bench.predict import QUICK, Plan, measure
    from minillm.bench.predict_report import as_document, table, write_plot
    from minillm.bench.report import write_json
    from minillm.perf.machine import describe_machine
    from minillm.perf.probe import ReadProbe

    plan = QUICK if args.quick else Plan()
    if args.rounds is not None:
        plan = replace(plan, rounds=check_rounds(args.rounds))
    sizes = names(args.sizes or ("tiny" if args.quick else DEFAULT_SIZES))
    for size in sizes:
        if size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    check_files(args.json, args.plot)
    set_threads(args.threads)

    probe = ReadProbe(plan.probe_bytes)
    machine = describe_machine()
    print(f"{machine['cpu']}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    results = []
    with tqdm(total=len(sizes) * plan.rounds, unit="round", file=sys.stderr) as progress:
        for size in sizes:
            progress.set_description(size)
            results.append(measure(size, plan, probe, on_round=progress.update))
            progress.clear()
            print("\n" + table(results[-1]), flush=True)
    if args.json is not None:
        settings = {**asdict(plan), "threads": torch.get_num_threads(), "quick": args.quick}
        write_json(as_document(results, machine, settings), args.json)
    if args.plot is not None:
        write_plot(results, args.plot)
    return 0
