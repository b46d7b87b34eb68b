"""`minillm bench decode`: our decoding against `transformers` and against the machine's read bandwidth."""

from __future__ import annotations

import argparse
import sys

from minillm.cli.bench.options import add_measuring_options, check_files, check_rounds, names
from minillm.cli.options import read_dtype, set_threads

DEFAULT_SIZES = "stories-5m,llama-70m,llama-420m"

EXAMPLES = """\
examples:
  minillm bench decode                                    about ten minutes on two cores
  minillm bench decode --sizes stories-5m --json out.json --plot out.png
  minillm bench decode --quick                            a few seconds; shows the form, not the speed

Shares of bandwidth come from reading a 512 MiB array in the same rounds with the same threads.
A model that fits the last cache is "in cache": memory doesn't limit it.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the measurement to `minillm bench`."""
    parser = subparsers.add_parser(
        "decode",
        help="decoding, rows and prefill against transformers",
        description="Measure decoding, the cost of rows, and prefill, interleaved with transformers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", metavar="A,B", help=f"models, by name (default {DEFAULT_SIZES}; with --quick: tiny)")
    parser.add_argument(
        "--dtypes", metavar="A,B", help="fp32, bf16 (default: both, fp32 alone for models under 64 MiB)"
    )
    add_measuring_options(
        parser,
        rounds="rounds to keep (default 20)",
        plot="draw ratios and the cost of rows (PNG)",
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

    from minillm.bench.decode import QUICK, SIZES, Plan, measure
    from minillm.bench.peer import can_use_peer
    from minillm.bench.report import as_document, table, write_json, write_plot
    from minillm.fast_linears import can_use_fast_linears
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
    work = [(size, dtype) for size in sizes for dtype in _dtypes(args.dtypes, size)]
    set_threads(args.threads)
    if not can_use_fast_linears():
        print('no "fast" rows: numba is not installed (pip install minillm[fast])', file=sys.stderr)
    if not can_use_peer():
        print("no peer: transformers is not installed (pip install transformers)", file=sys.stderr)

    probe = ReadProbe(plan.probe_bytes)
    machine = describe_machine()
    print(
        f"{machine['cpu']}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"read bandwidth {probe.bytes_per_s() / 2**30:.1f} GiB/s"
    )
    results = []
    with tqdm(total=len(work) * (plan.rounds + 2 * plan.side_rounds), unit="round", file=sys.stderr) as progress:
        for size, dtype in work:
            progress.set_description(f"{size} {dtype}")
            result = measure(size, dtype, plan, probe, on_round=lambda: progress.update())
            results.append(result)
            progress.clear()
            print("\n" + table(result), flush=True)
    if args.json is not None:
        settings = {**asdict(plan), "threads": torch.get_num_threads(), "quick": args.quick}
        write_json(as_document(results, machine, settings), args.json)
    if args.plot is not None:
        write_plot(results, args.plot)
    return 0


def _dtypes(text: str | None, size: str) -> list:
    """The dtypes to measure a size in. Raises ValueError for what the fast linears and the peer don't
    share.
    """
    import torch

    from minillm.bench.decode import SIZES

    if text is None:
        small = SIZES[size].hidden_size <= 256
        return [torch.float32] if small else [torch.float32, torch.bfloat16]
    dtypes = [read_dtype(name) for name in names(text)]
    if not set(dtypes) <= {torch.float32, torch.bfloat16}:
        raise ValueError(f"dtypes must be fp32 or bf16, got {text!r}")
    return dtypes
