"""Options that every measurement shares, and what they mean: `--rounds --threads --json --plot --quick`."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path


def add_measuring_options(parser: argparse.ArgumentParser, *, rounds: str, plot: str, quick: str) -> None:
    """Add the shared options. The three texts are the help of those whose meaning differs between measurements."""
    parser.add_argument("--rounds", type=int, metavar="N", help=rounds)
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every time, and the machine, to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help=plot)
    parser.add_argument("--quick", action="store_true", help=quick)


def check_rounds(rounds: int) -> int:
    """The number of rounds as it is. Raises ValueError below 1."""
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    return rounds


def check_files(json_file: Path | None, plot_file: Path | None) -> None:
    """Before minutes of measuring: can the files be written? FileNotFoundError without a folder for one, ValueError
    without matplotlib for the plot.
    """
    for file in (json_file, plot_file):
        if file is not None and not file.absolute().parent.is_dir():
            raise FileNotFoundError(f"no folder {file.absolute().parent} to write {file.name} to")
    if plot_file is not None and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install minillm[plots]")


def names(text: str) -> list[str]:
    """The names in "a,b". Raises ValueError where there is none."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise ValueError(f"expected names with commas between them, got {text!r}")
    return found
