"""`minillm plan`: does a model fit on a GPU, what limits it, how fast would it answer."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

EXAMPLES = """\
examples:
  minillm plan stories-5m --gpu A10
  minillm plan my-model/config.json --gpu H100 --batch 32 --prompt 4096 --output 512
  minillm plan my-model --gpu "A100 80GB" --tp 4 --bits 8 --kv-bits 8
  minillm plan my-model --gpu H100 --bits 8 --activation-bits 8     products in fp8
  minillm plan stories-5m --gpu this --bits 32                      this CPU, measured now

MODEL needs no weights: a config.json as on huggingface.co is enough.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the command to `minillm`. Options left at None take the defaults of `minillm.perf.plan`."""
    parser = subparsers.add_parser(
        "plan",
        help="does a model fit on a GPU, and how fast would it be",
        description="Predict memory, time to first token, time between tokens and throughput, without running it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="bundled name, folder, or config.json")
    parser.add_argument("--gpu", required=True, metavar="NAME", help='"H100", "A100 PCIe", "4090" …; this = this CPU')
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="requests side by side (default 1)")
    parser.add_argument("--prompt", type=int, default=512, metavar="N", help="tokens of a prompt (default 512)")
    parser.add_argument("--output", type=int, default=128, metavar="N", help="tokens of an answer (default 128)")
    parser.add_argument("--tp", type=int, default=1, metavar="N", help="GPUs that share each layer (default 1)")

    numbers = parser.add_argument_group("numbers")
    numbers.add_argument("--bits", type=int, default=16, metavar="N", help="of a weight: 32, 16, 8, 4 (default 16)")
    numbers.add_argument("--group-size", type=int, metavar="N", help="weights a scale (default 128 for 4 bits)")
    numbers.add_argument("--kv-bits", type=int, metavar="N", help="of the cache: 16, 8, 4 (default: as activations)")
    numbers.add_argument("--activation-bits", type=int, metavar="N", help="of products: 32, 16, 8 (default 16)")

    assumed = parser.add_argument_group("assumptions")
    assumed.add_argument("--mfu", type=float, metavar="X", help="share of peak FLOP/s reached (default 0.6)")
    assumed.add_argument("--mbu", type=float, metavar="X", help="share of bandwidth reached (default 0.7)")
    assumed.add_argument("--all-reduce-us", type=float, metavar="X", help="latency of an all-reduce (default 20)")
    assumed.add_argument("--memory-share", type=float, metavar="X", help="of memory to be used (default 0.9)")
    assumed.add_argument("--prefill-chunk", type=int, metavar="N", help="prompt tokens a forward (default 8192)")

    parser.add_argument("--threads", type=int, metavar="N", help="with --gpu this: CPU threads")
    parser.add_argument("--json", action="store_true", help="print numbers in bytes and seconds instead of text")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the operations under the roof (PNG)")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the plan; returns 0, whether it fits or not. Raises ValueError or OSError for bad input."""
    from minillm.cli.bench.options import check_files
    from minillm.cli.options import set_threads
    from minillm.perf.deployment import Assumptions
    from minillm.perf.hardware import find_hardware, this_machine
    from minillm.perf.model_shape import read_shape
    from minillm.perf.plan import plan
    from minillm.perf.plan_report import as_document, report

    chosen = {name: getattr(args, name) for name in ("mfu", "mbu", "memory_share", "prefill_chunk")}
    chosen["all_reduce_s"] = None if args.all_reduce_us is None else args.all_reduce_us * 1e-6
    assumptions = Assumptions(**{name: value for name, value in chosen.items() if value is not None})
    check_files(None, args.plot)
    shape = read_shape(args.model)
    set_threads(args.threads)
    hardware = this_machine() if args.gpu.lower() in ("this", "cpu") else find_hardware(args.gpu)
    result = plan(
        shape,
        hardware,
        batch_size=args.batch,
        prompt_len=args.prompt,
        output_len=args.output,
        bits=args.bits,
        group_size=args.group_size,
        activation_bits=args.activation_bits,
        kv_bits=args.kv_bits,
        tp_size=args.tp,
        assumptions=assumptions,
    )
    if args.plot is not None:
        from minillm.perf.roofline_plot import save_plan_plot

        save_plan_plot(result, args.plot)
    print(json.dumps(as_document(result), indent=2) if args.json else report(result))
    return 0
