"""`minillm bench fusion`: a model as it is, with fused operators, and compiled by torch, side by side."""

from __future__ import annotations

import argparse
import sys

from minillm.cli.bench.options import add_measuring_options, check_files, check_rounds, names
from minillm.cli.options import read_device, read_dtype, set_threads

DEFAULT_SIZES = "stories-5m,llama-70m"

EXAMPLES = """\
examples:
  minillm bench fusion                                    some minutes on two cores, most of them compiling
  minillm bench fusion --sizes stories-5m --json out.json --plot out.png
  minillm bench fusion --candidates eager,fused           without torch's code generator
  minillm bench fusion --device cuda --dtype bf16         with the fused kernels
  minillm bench fusion --quick                            a few seconds; shows the form, not the speed

Everyone's logits are compared with those of the model as it is first; a wrong one isn't timed.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the measurement to `minillm bench`."""
    parser = subparsers.add_parser(
        "fusion",
        help="fused operators and torch.compile against eager torch",
        description="Measure a decode step and a prefill: eager, with fused operators, compiled by inductor.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", metavar="A,B", help=f"models, by name (default {DEFAULT_SIZES}; with --quick: tiny)")
    parser.add_argument(
        "--candidates", metavar="A,B", help="eager, fused, inductor, fused + inductor, max-autotune (default: all)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default cpu)")
    parser.add_argument("--dtype", default="fp32", help="fp32, bf16, fp16 (default fp32)")
    add_measuring_options(
        parser,
        rounds="rounds to keep (default 20)",
        plot="draw speeds over eager (PNG)",
        quick="few rounds of a tiny model, eager and fused, to try the command",
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
    from minillm.bench.fusion import COMPILED, EAGER, FUSED, QUICK, Plan, measure
    from minillm.bench.fusion_report import as_document, table, write_plot
    from minillm.bench.report import write_json
    from minillm.perf.machine import describe_machine

    plan = QUICK if args.quick else Plan()
    if args.rounds is not None:
        plan = replace(plan, rounds=check_rounds(args.rounds))
    if args.candidates is not None:
        plan = replace(plan, candidates=_candidates(args.candidates, (EAGER, FUSED, *COMPILED)))
    sizes = names(args.sizes or ("tiny" if args.quick else DEFAULT_SIZES))
    for size in sizes:
        if size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    device, dtype = read_device(args.device), read_dtype(args.dtype)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype must be fp32, bf16 or fp16, got {args.dtype!r}")
    check_files(args.json, args.plot)
    set_threads(args.threads)

    machine = describe_machine()
    print(f"{machine['cpu']}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    results = []
    with tqdm(total=len(sizes) * 2 * plan.rounds, unit="round", file=sys.stderr) as progress:
        for size in sizes:
            progress.set_description(size)
            results.append(measure(size, dtype, plan, device=device, on_round=lambda: progress.update()))
            progress.clear()
            print("\n" + table(results[-1]), flush=True)
    if args.json is not None:
        settings = {**asdict(plan), "threads": torch.get_num_threads(), "quick": args.quick}
        write_json(as_document(results, machine, settings), args.json)
    if args.plot is not None:
        write_plot(results, args.plot)
    return 0


def _candidates(text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The candidates in "fused,inductor", in the order known; eager is always among them, the others' measure."""
    given = names(text)
    for name in given:
        if name not in known:
            raise ValueError(f"candidates must be of {', '.join(known)}, got {name!r}")
    return tuple(name for name in known if name == known[0] or name in given)
