"""The command `minillm`: one module per command, each with `add_parser(subparsers)` and `run(args) -> int`.

Reading order: this file (choosing a command, the policy for errors), `options` (shared options), then the
commands. The modules import torch and the package only inside `run`, so that help and mistakes on the command
line answer at once.

Policy: `ValueError` and `OSError` are the user's to put right and become one line on stderr, exit status 2.
Ctrl-C ends with 130. Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from minillm import __version__
from minillm.cli import bench, demo, doctor, generate, plan, train
from minillm.perf.freed_memory import keep_freed_memory

COMMANDS = (generate, train, plan, bench, doctor, demo)

EXAMPLES = """\
examples:
  minillm generate "Once upon a time"
  minillm train --out my-run --tokens 1_000_000
  minillm plan stories-5m --gpu H100
  minillm bench decode --sizes stories-5m
  minillm doctor
  minillm generate --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None = that of the process); returns the exit status.

    0: done. 2: bad input, described in one line on stderr. 130: interrupted. 141: the reader of the output
    left.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode shows "?" and goes on
    debug = "--debug" in argv
    try:
        args = make_parser().parse_args(argv)
        keep_freed_memory()
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        if debug:
            raise
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more while it ends; it must not find the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError) as error:
        if debug:
            raise
        print(f"minillm: error: {one_line(error)}", file=sys.stderr)
        return 2


def make_parser() -> argparse.ArgumentParser:
    """The parser with every command."""
    parser = Parser(
        prog="minillm",
        description="LLM inference, built from scratch.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"minillm {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")
    for command_module in COMMANDS:
        command_module.add_parser(subparsers)
    for command in subparsers.choices.values():  # so that it counts behind the command too
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def one_line(error: Exception) -> str:
    """The message of an exception without line breaks; for system errors, what happened and to which file."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split()) or type(error).__name__
