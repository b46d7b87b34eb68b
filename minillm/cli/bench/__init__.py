"""`minillm bench WHAT`: one module for each thing measured, with `add_parser(subparsers)` and `run(args) -> int`.

Reading order: this file (choosing what to measure), `options` (what all share), then the measurements. A new one
is a module in `MEASUREMENTS`; `all` runs all of them.
"""

from __future__ import annotations

import argparse

from minillm.cli.bench import all as everything
from minillm.cli.bench import attention, decode, decode_attention, fusion, gemm, plan

MEASUREMENTS = (decode, gemm, plan, attention, decode_attention, fusion)

EXAMPLES = """\
examples:
  minillm bench decode                                    about ten minutes on two cores
  minillm bench gemm --sizes 1024                         a minute
  minillm bench plan                                      predicted against measured, some minutes
  minillm bench attention --lengths 1024                  a prompt's attention, a minute
  minillm bench decode-attention --shapes GQA             a step's attention, some minutes
  minillm bench fusion --candidates eager,fused           fused operators, a minute
  minillm bench all                                       everything, and one report of it
  minillm bench decode --quick                            a few seconds; shows the form, not the speed
  minillm bench decode --help

What is compared takes turns within one process; figures are medians over rounds.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the command, and a parser for each measurement, to `minillm`."""
    parser = subparsers.add_parser(
        "bench",
        help="measure speed against other libraries and the machine's limits",
        description="Measure speed, interleaved with other libraries and with probes of the machine.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    measurements = parser.add_subparsers(dest="what", metavar="WHAT", required=True, title="what to measure")
    for module in (*MEASUREMENTS, everything):
        module.add_parser(measurements)
    for measurement in measurements.choices.values():  # so that it counts behind the last word too
        measurement.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser
