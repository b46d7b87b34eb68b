"""`minillm bench attention`: attention of a prompt, ours and torch's, against what the machine can compute and move."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from minillm.cli.bench.gemm import read_size
from minillm.cli.bench.options import add_measuring_options, check_files, check_rounds, names
from minillm.cli.options import read_device, read_dtype, set_threads

if TYPE_CHECKING:
    import torch

EXAMPLES = """\
examples:
  minillm bench attention                                 some minutes on two cores
  minillm bench attention --lengths 512,2048 --backward --json out.json --plot out.png
  minillm bench attention --window 256 --heads 4 --kv-heads 4
  minillm bench attention --device cuda --dtype bf16      1k to 32k tokens, with the kernels
  minillm bench attention --quick                         a few seconds; shows the form, not the speed

Everyone's result is compared with the oracle in float64 first; a wrong one isn't timed, and the exit status is 1.
"Extra MiB" is the most that a call held beyond q, k and v. FLOPs are those of visible pairs alone.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the measurement to `minillm bench`."""
    parser = subparsers.add_parser(
        "attention",
        help="attention of a prompt: ours, torch's kernels, FlexAttention, the physical limit",
        description="Measure attention of a prompt: naive, FlashAttention 1 and 2, each of torch's kernels, "
        "FlexAttention and the machine's limits, interleaved.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--lengths", metavar="N,M", help="tokens (default 256,512,…,4096; on a GPU 1024,…,32768)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="sequences (default 1)")
    parser.add_argument("--heads", type=int, metavar="N", help="query heads (default 8; on a GPU 32)")
    parser.add_argument("--kv-heads", type=int, metavar="N", help="KV heads (default: a quarter of the heads)")
    parser.add_argument("--head-dim", type=int, metavar="N", help="numbers of a head (default 64; on a GPU 128)")
    parser.add_argument("--window", type=int, metavar="N", help="a query sees the last N keys only")
    parser.add_argument("--not-causal", action="store_true", help="every query sees every key")
    parser.add_argument("--backward", action="store_true", help="time forward and backward together")
    add_device_options(parser)
    add_measuring_options(
        parser,
        rounds="rounds to keep (default 12)",
        plot="draw time and memory against length (PNG)",
        quick="few rounds of short prompts, to try the command",
    )
    parser.set_defaults(run=run)
    return parser


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Where and in which dtype, for the measurements of attention."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default cpu)")
    parser.add_argument("--dtype", help="fp32, bf16, fp16 (default fp32; on a GPU bf16)")


def read_device_options(args: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """What `--device` and `--dtype` say. Raises ValueError for what can't be measured."""
    import torch

    device = read_device(args.device)
    if device.type == "mps":
        raise ValueError("attention is measured on a CPU or a CUDA GPU, got --device mps")
    dtype = read_dtype(args.dtype or ("bf16" if device.type == "cuda" else "fp32"))
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype must be fp32, bf16 or fp16, got {args.dtype!r}")
    return device, dtype


def read_sizes(text: str) -> tuple[int, ...]:
    """The sizes in "512,1024", ascending. Raises ValueError for anything but whole numbers from 1 on."""
    return tuple(sorted({read_size(name) for name in names(text)}))


def describe_place(device: torch.device, machine: dict) -> str:
    """The processor in one line."""
    import torch

    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{machine['cpu']}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def run(args: argparse.Namespace) -> int:
    """Measure, print a table a length, then write the files; returns 0, or 1 where somebody's result is wrong.

    Files are written at the end, whole or not at all: an interrupted run leaves none. Raises ValueError for bad
    options.
    """
    from dataclasses import asdict, replace

    import torch
    from tqdm import tqdm

    from minillm.bench.attention import GPU, QUICK, Plan, check_all, measure
    from minillm.bench.attention_race import make_probes
    from minillm.bench.attention_report import as_document, heading, table, verdict, write_plot
    from minillm.bench.attention_shape import AttentionShape
    from minillm.bench.report import write_json
    from minillm.perf.machine import describe_machine

    device, dtype = read_device_options(args)
    on_gpu = device.type == "cuda"
    plan = QUICK if args.quick else GPU if on_gpu else Plan()
    if args.rounds is not None:
        plan = replace(plan, rounds=check_rounds(args.rounds))
    if args.lengths is not None:
        plan = replace(plan, lengths=read_sizes(args.lengths))
    num_heads = (32 if on_gpu else 8) if args.heads is None else args.heads
    num_kv_heads = max(1, num_heads // 4) if args.kv_heads is None else args.kv_heads
    head_dim = (128 if on_gpu else 64) if args.head_dim is None else args.head_dim
    shapes = [
        AttentionShape(
            args.batch,
            length,
            length,
            num_heads,
            num_kv_heads,
            head_dim,
            head_dim,
            causal=not args.not_causal,
            window=args.window,
        )
        for length in plan.lengths
    ]
    check_files(args.json, args.plot)
    set_threads(args.threads)

    probes = make_probes(device, dtype, probe_bytes=plan.probe_bytes, probe_s=plan.probe_s, probe_size=plan.probe_size)
    machine = describe_machine()
    print(describe_place(device, machine))
    absent = check_all(shapes[-1], dtype, device, plan, backward=args.backward)
    dtype_name = str(dtype).removeprefix("torch.")
    print("\n" + heading(shapes[-1], dtype_name, backward=args.backward, absent=absent), flush=True)
    races = []
    with tqdm(total=len(shapes) * plan.rounds, unit="round", file=sys.stderr) as progress:
        for shape in shapes:
            progress.set_description(f"{shape.q_len} tokens")
            races.append(
                measure(
                    shape, dtype, device, plan, probes, backward=args.backward, absent=absent, on_round=progress.update
                )
            )
            progress.clear()
            print("\n" + table(races[-1], already_said=absent), flush=True)
    if text := verdict(races):
        print("\n" + text)
    if args.json is not None:
        settings = {**asdict(plan), "threads": torch.get_num_threads(), "quick": args.quick}
        write_json(as_document(races, machine, settings), args.json)
    if args.plot is not None:
        write_plot(races, args.plot)
    return 1 if any(absence.is_wrong for absence in absent.values()) else 0
