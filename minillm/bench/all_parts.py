"""`minillm bench all`, 1: the parts of a report, and which of them are to be run.

Reading order: this file, `all_run` (one part in a process of its own, all of them in turn), `all_report` (report.json
and report.md) with `all_tables` (the tables in Markdown).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Part:
    """One section of the report.

    name     of its files: name.json, name.txt, and name.png where `has_plot`
    title    heading in the report
    words    the command behind `minillm`
    minutes  roughly, on two cores; None = nobody has timed it
    alt      what its picture shows, for those who can't see it
    """

    name: str
    title: str
    words: tuple[str, ...]
    minutes: float | None = None
    has_plot: bool = True
    alt: str = ""

    def command(self, folder: Path | None, *, quick: bool, plot: bool) -> list[str]:
        """What follows `minillm`; files without a folder in front if it is None, as the report shows it."""
        words = [*self.words, *(["--quick"] if quick else [])]
        words += ["--json", str((folder or Path()) / f"{self.name}.json")]
        if self.has_plot and plot:
            words += ["--plot", str((folder or Path()) / f"{self.name}.png")]
        return words


def _bench(name: str, title: str, minutes: float | None, alt: str) -> Part:
    return Part(name, title, ("bench", name), minutes, alt=alt)


DOCTOR = Part("doctor", "What works here", ("doctor",), 0.7, has_plot=False)
BENCHES = (
    _bench("gemm", "Matrix products", 6, "Speed of each rung of the ladder, and of products with few rows."),
    _bench("decode", "Decoding", 12, "Decoding speed against transformers, and the cost of more rows."),
    _bench("plan", "Predicted and measured", 5, "Times of steps, predicted from their pieces and measured."),
    _bench("attention", "Attention", None, "Attention by length: time of each implementation."),
    _bench("decode-attention", "Attention while decoding", None, "One query over long caches: time by length."),
    _bench("fusion", "Fusion", None, "A model before and after its operators are fused: time of a step."),
)
QUICK_MINUTES = 0.5


def in_order(names: Iterable[str]) -> list[str]:
    """Names of parts as the report lists them; unknown ones last."""
    order = [part.name for part in (DOCTOR, *BENCHES)]
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def parts(measurements: Iterable[str]) -> list[Part]:
    """The doctor, then every measurement that `minillm bench` has: those of `BENCHES` first, unknown ones by name."""
    there = list(measurements)
    known = [part for part in BENCHES if part.name in there]
    names = {part.name for part in known}
    others = [_bench(name, name.capitalize(), None, f"Results of minillm bench {name}.") for name in there]
    return [DOCTOR, *known, *(part for part in others if part.name not in names)]


def chosen(all_parts: Sequence[Part], only: Sequence[str] | None) -> list[Part]:
    """Those named, in the order of the report; None = all. Raises ValueError for an unknown name."""
    names = [part.name for part in all_parts]
    if only is None:
        return list(all_parts)
    if unknown := [name for name in only if name not in names]:
        raise ValueError(f"expected parts among {', '.join(names)}; got {', '.join(unknown)}")
    return [part for part in all_parts if part.name in only]


def is_finished(part: Part, record: dict[str, Any] | None, folder: Path, *, quick: bool, plot: bool) -> bool:
    """Whether an earlier run did this part by the same command and its files are still whole."""
    if record is None or record.get("status") != "done":
        return False
    if record.get("command") != part.command(None, quick=quick, plot=plot):
        return False
    if part.has_plot and plot and not (folder / f"{part.name}.png").is_file():
        return False
    return (folder / f"{part.name}.txt").is_file() and load_json(folder / f"{part.name}.json") is not None


def load_json(file: Path) -> Any:
    """The file's contents; None where it is missing or no JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
