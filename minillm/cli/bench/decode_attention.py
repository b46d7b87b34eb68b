"""`minillm bench decode-attention`: one token against a long cache, against the bandwidth that reads it."""

from __future__ import annotations

import argparse
import sys

from minillm.cli.bench.attention import add_device_options, describe_place, read_device_options, read_sizes
from minillm.cli.bench.gemm import read_size
from minillm.cli.bench.options import add_measuring_options, check_files, check_rounds, names
from minillm.cli.options import set_threads

EXAMPLES = """\
examples:
  minillm bench decode-attention                          some minutes on two cores
  minillm bench decode-attention --shapes GQA --batches 1 --contexts 4096,65536
  minillm bench decode-attention --dtype bf16 --json out.json --plot out.png
  minillm bench decode-attention --device cuda            bf16, with the kernels
  minillm bench decode-attention --quick                  a few seconds; shows the form, not the speed

Shares are those of a large array read in the same rounds with the same threads. Keys and values that fit the last
cache are "in cache": memory doesn't limit them. "Limit" below 1: arithmetic takes longer than reading. Everyone's
result is compared with the oracle in float64 first; a wrong one isn't timed, and the exit status is 1.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the measurement to `minillm bench`."""
    parser = subparsers.add_parser(
        "decode-attention",
        help="attention of one new token to a long cache, against the read bandwidth",
        description="Measure attention of one new token to a long cache: naive, FlashDecoding in torch, on cores and "
        "as a kernel, torch's, FlexAttention, interleaved with the read probe.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shapes", metavar="A,B", help="heads: GQA (32 to 8 of 128), MHA (32), MLA (absorbed); all")
    parser.add_argument("--batches", metavar="N,M", help="sequences (default 1,4,16)")
    parser.add_argument("--contexts", metavar="N,M", help="tokens in the cache (default 1024,4096,16384,65536)")
    parser.add_argument("--cache-mib", type=int, metavar="N", help="leave out larger caches (default: by memory)")
    add_device_options(parser)
    add_measuring_options(
        parser,
        rounds="rounds to keep (default 12)",
        plot="draw shares of the bandwidth against context (PNG)",
        quick="few rounds of short contexts, to try the command",
    )
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure, print a table a kind of heads, then write the files; returns 0, or 1 where somebody's result is wrong.

    Files are written at the end, whole or not at all: an interrupted run leaves none. Raises ValueError for bad
    options.
    """
    from dataclasses import asdict, replace

    import torch
    from tqdm import tqdm

    from minillm.bench.attention_race import Race, make_probes
    from minillm.bench.decode_attention import GPU, QUICK, Plan, check_all, measure, problems
    from minillm.bench.decode_attention_report import LEGEND, as_document, table, verdict, write_plot
    from minillm.bench.report import write_json
    from minillm.perf.machine import describe_machine

    device, dtype = read_device_options(args)
    plan = QUICK if args.quick else GPU if device.type == "cuda" else Plan()
    if args.rounds is not None:
        plan = replace(plan, rounds=check_rounds(args.rounds))
    if args.shapes is not None:
        plan = replace(plan, heads=tuple(dict.fromkeys(names(args.shapes))))
    if args.batches is not None:
        plan = replace(plan, batches=read_sizes(args.batches))
    if args.contexts is not None:
        plan = replace(plan, contexts=read_sizes(args.contexts))
    if args.cache_mib is not None:
        plan = replace(plan, cache_bytes=read_size(str(args.cache_mib)) * 2**20)
    work = problems(plan, dtype, device)
    if empty := [name for name, shapes in work.items() if not shapes]:
        raise ValueError(f"no cache of {', '.join(empty)} is small enough: shorten --contexts or raise --cache-mib")
    check_files(args.json, args.plot)
    set_threads(args.threads)

    probes = make_probes(device, dtype, probe_bytes=plan.probe_bytes, probe_s=plan.probe_s, probe_size=plan.probe_size)
    machine = describe_machine()
    print(f"{describe_place(device, machine)}\n{LEGEND}")
    results: dict[str, list[Race]] = {}
    is_wrong = False
    with tqdm(total=sum(map(len, work.values())) * plan.rounds, unit="round", file=sys.stderr) as progress:
        for name, shapes in work.items():
            absent = check_all(shapes[-1], dtype, device, plan)
            is_wrong |= any(absence.is_wrong for absence in absent.values())
            results[name] = []
            for shape in shapes:
                progress.set_description(f"{name} {shape.batch} × {shape.k_len}")
                results[name].append(
                    measure(shape, dtype, device, plan, probes, absent=absent, on_round=progress.update)
                )
            progress.clear()
            print("\n" + table(name, results[name], absent=absent), flush=True)
    print("\n" + "\n".join(verdict(name, races) for name, races in results.items()))
    if args.json is not None:
        settings = {**asdict(plan), "threads": torch.get_num_threads(), "quick": args.quick}
        write_json(as_document(results, machine, settings), args.json)
    if args.plot is not None:
        write_plot(results, args.plot)
    return 1 if is_wrong else 0
