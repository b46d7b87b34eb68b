"""`minillm bench gemm`: the ladder of matrix products against torch and against what the cores can do."""

from __future__ import annotations

import argparse
import sys

from minillm.cli.bench.options import add_measuring_options, check_files, check_rounds, names
from minillm.cli.options import set_threads

EXAMPLES = """\
examples:
  minillm bench gemm                                      some minutes on two cores
  minillm bench gemm --sizes 1024 --json out.json --plot out.png
  minillm bench gemm --quick                              a few seconds; shows the form, not the speed

"FMA probe" is the share of multiply-adds on registers alone, on as many threads, in the same rounds.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the measurement to `minillm bench`."""
    parser = subparsers.add_parser(
        "gemm",
        help="matrix products, from three loops to all cores, against torch",
        description="Measure every rung of the ladder of matrix products, torch, and flat products, interleaved.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", metavar="N,M", help="of the square products (default 512,1024,2048)")
    add_measuring_options(
        parser,
        rounds="rounds to keep (default 20)",
        plot="draw the ladder at the largest size, and flat products (PNG)",
        quick="few rounds of small products, to try the command",
    )
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure, print a table a size and one of flat products, then write the files; returns 0.

    Files are written at the end, whole or not at all: an interrupted run leaves none. Raises ValueError for bad
    options and without numba.
    """
    import importlib.util
    from dataclasses import asdict, replace

    import torch
    from tqdm import tqdm

    from minillm.bench.gemm import QUICK, Plan, measure_flat, measure_ladder
    from minillm.bench.gemm_report import as_document, flat_table, ladder_table, write_plot
    from minillm.bench.report import write_json
    from minillm.perf.machine import describe_machine
    from minillm.perf.probe import ReadProbe

    plan = QUICK if args.quick else Plan()
    if args.rounds is not None:
        plan = replace(plan, rounds=check_rounds(args.rounds))
    if args.sizes is not None:
        plan = replace(plan, sizes=tuple(read_size(name) for name in names(args.sizes)))
    check_files(args.json, args.plot)
    if importlib.util.find_spec("numba") is None:
        raise ValueError("the ladder of matrix products needs numba: pip install minillm[fast]")
    set_threads(args.threads)

    read_probe = ReadProbe(plan.probe_bytes)
    machine = describe_machine()
    print(f"{machine['cpu']}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    ladders = []
    with tqdm(total=(2 * len(plan.sizes) + 1) * plan.rounds, unit="round", file=sys.stderr) as progress:
        for size in plan.sizes:
            progress.set_description(f"size {size}")
            ladders.append(measure_ladder(size, plan, read_probe, on_round=progress.update))
            progress.clear()
            print("\n" + ladder_table(ladders[-1]), flush=True)
        progress.set_description("flat products")
        flat = measure_flat(plan, read_probe, on_round=progress.update)
        progress.clear()
        print("\n" + flat_table(flat), flush=True)
    if args.json is not None:
        settings = {**asdict(plan), "threads": torch.get_num_threads(), "quick": args.quick}
        write_json(as_document(ladders, flat, machine, settings), args.json)
    if args.plot is not None:
        write_plot(ladders, flat, args.plot)
    return 0


def read_size(text: str) -> int:
    """A size such as "1024". Raises ValueError for anything but a whole number from 1 on."""
    try:
        size = int(text)
    except ValueError:
        size = 0
    if size < 1:
        raise ValueError(f"a size must be a whole number of at least 1, got {text!r}")
    return size
