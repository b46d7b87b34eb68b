"""What `minillm doctor` does: look at this machine part by part, then say plainly what works.

Reading order: this file (the parts, the verdict, the document for JSON), `doctor_section` (what a part hands back),
then the parts: `doctor_environment`, `doctor_devices`, `doctor_probes`, `doctor_cpu`, and `doctor_kernels` with
`doctor_kernel_table` (its rows), `doctor_workers` (processes side by side) and `doctor_children` (what they run). A new
part is a line in `SECTIONS`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from minillm.bench.doctor_section import FAILED, NOT_CHECKED, OK, Check, Section, Settings, brief, explained, paragraph

# By name: the module whose `examine(settings)` gives the section. Imported when it is asked for.
SECTIONS = {
    "environment": "minillm.bench.doctor_environment",
    "devices": "minillm.bench.doctor_devices",
    "probes": "minillm.bench.doctor_probes",
    "cpu": "minillm.bench.doctor_cpu",
    "kernels": "minillm.bench.doctor_kernels",
}
NOUNS = {
    "environment": "of the installation",
    "devices": "devices",
    "probes": "probes",
    "cpu": "fast CPU paths",
    "kernels": "GPU kernels",
}
BUG_ADVICE = "minillm doctor --only {name} --json - shows everything that was seen"


@dataclass(frozen=True)
class Diagnosis:
    """All sections of a run. `status` is the exit status: 0, or 1 if a check failed."""

    sections: tuple[Section, ...]

    @property
    def status(self) -> int:
        return 1 if any(section.failed() for section in self.sections) else 0

    def checks(self, verdict: str) -> list[Check]:
        """Those with that verdict, in the order of the report."""
        return [check for section in self.sections for check in section.checks if check.verdict == verdict]


def section_names(wanted: Sequence[str] | None) -> list[str]:
    """The sections to run, in the order of the report; None = all. Raises ValueError for an unknown name."""
    if wanted is None:
        return list(SECTIONS)
    if unknown := [name for name in wanted if name not in SECTIONS]:
        raise ValueError(f"expected sections among {', '.join(SECTIONS)}; got {', '.join(unknown)}")
    return [name for name in SECTIONS if name in wanted]


def examine(names: Sequence[str], settings: Settings) -> Iterator[Section]:
    """The sections one after the other, as they are done. One that breaks becomes a failed check of its own."""
    for name in names:
        try:
            run: Callable[[Settings], Section] = importlib.import_module(SECTIONS[name]).examine
            yield run(settings)
        except Exception as error:
            check = Check(name, FAILED, f"the examination broke off: {brief(error)}", BUG_ADVICE.format(name=name))
            yield Section(name, name.capitalize(), tuple(explained([check])), (check,))


def verdict(diagnosis: Diagnosis) -> list[str]:
    """The end of the report: what works, what failed, what couldn't be checked, what to do next."""
    failed, skipped = diagnosis.checks(FAILED), diagnosis.checks(NOT_CHECKED)
    passed = diagnosis.checks(OK)
    lines: list[str] = []
    if passed:
        counts = [
            f"{right} {NOUNS.get(section.name, section.name)}"
            for section in diagnosis.sections
            if (right := sum(check.verdict == OK for check in section.checks))
        ]
        lines += paragraph(f"{'Works':11}{len(passed)} checks: {', '.join(counts)}.", hanging=11)
    for number, check in enumerate(failed):
        word = "FAILED" if number == 0 else ""
        lines += paragraph(f"{word:11}{check.name}: {check.found}", hanging=11)
    for number, check in enumerate(skipped):
        word = "Unchecked" if number == 0 else ""
        lines += paragraph(f"{word:11}{check.name}: {check.found}", hanging=11)
    for number, advice in enumerate(next_steps(failed, skipped)):
        lines += paragraph(f"{'Next' if number == 0 else '':11}{advice}", hanging=11)
    return lines


def next_steps(failed: Sequence[Check], skipped: Sequence[Check]) -> list[str]:
    """What to do now: every advice once, failures first; with nothing failed, where to begin."""
    steps = list(dict.fromkeys(check.advice for check in (*failed, *skipped) if check.advice))
    if not failed:
        steps.insert(0, "minillm demo tells a story and compares ways of decoding")
    return steps


def as_document(diagnosis: Diagnosis, machine: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Everything that was seen, for JSON. Times in seconds, rates in bytes/s and FLOP/s, errors absolute."""
    chosen = {"quick": settings.quick, "every": settings.every, "timeout_s": settings.timeout_s}
    document = {
        "machine": machine,
        "settings": chosen,
        "status": diagnosis.status,
        "sections": [
            {
                "name": section.name,
                "title": section.title,
                "checks": [asdict(check) for check in section.checks],
                **section.data,
            }
            for section in diagnosis.sections
        ],
    }
    plain: dict[str, Any] = _plain(document)
    return plain


def _plain(value: Any) -> Any:
    """JSON has no infinities: they become text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
