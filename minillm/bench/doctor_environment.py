"""Doctor, part 1: versions, what is missing and what it would add, and the bundled model."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
import sys
from dataclasses import dataclass
from typing import Any

from minillm import __version__
from minillm.bench.doctor_section import FAILED, NOT_CHECKED, OK, Check, Section, Settings, brief, columns, explained


@dataclass(frozen=True)
class Package:
    """A library: what it is for, and the pip argument that brings it; `needed` ones are no extras."""

    name: str
    purpose: str
    install: str
    needed: bool = False


PACKAGES = (
    Package("torch", "everything", "minillm", needed=True),
    Package("numpy", "everything", "minillm", needed=True),
    Package("tokenizers", "tokenizers that aren't byte-level BPE", "minillm", needed=True),
    Package("numba", "fast CPU paths: 2 to 3 times the speed of decoding", "'minillm[fast]'"),
    Package("triton", "GPU kernels; without a GPU in an interpreter (Linux)", "'minillm[kernels]'"),
    Package("matplotlib", "figures and --plot", "'minillm[plots]'"),
    Package("transformers", "the library that minillm bench decode compares with", "transformers"),
    Package("jupyterlab", "the chapters as notebooks", "'minillm[notebooks]'"),
)

MODEL = "stories-5m"
# Of model.safetensors; and what greedy decoding must say, each token ahead of the next best by 0.13 or more.
WEIGHTS_SHA256 = "df41298485aa5eed15d123059524710c3972432cdce4095f74d89c4430258a58"
PROMPT = "Once upon a time"
SENTENCE = ", there was a little girl named Lily who lived in a small village by the forest."


def examine(settings: Settings) -> Section:
    """System, processor, memory, packages, model."""
    from minillm.perf.machine import describe_machine

    machine = describe_machine()
    lines = columns(system_rows(machine))
    package_checks = [check_package(package) for package in PACKAGES]
    lines += ["", *columns([[check.name, *_package_cells(check)] for check in package_checks])]
    settings.on_step("the bundled model", 0, 1)
    model_checks = [check_checksum(), check_sentence()]
    lines += ["", *columns([[check.name, check.verdict, check.found] for check in model_checks])]
    checks = [*package_checks, *model_checks]
    return Section("environment", "Environment", (*lines, *explained(checks)), tuple(checks), {"machine": machine})


def system_rows(machine: dict[str, Any]) -> list[list[str]]:
    """What the system says of itself, in the form (name, text)."""
    caches = ", ".join(f"{level} {_size(num_bytes)}" for level, num_bytes in machine["cache_bytes"].items())
    environment = "" if sys.prefix == sys.base_prefix else " of a virtual environment"
    cores = f"{machine['usable_cpus']} of {machine['logical_cpus']} logical cores usable"
    memory = machine["memory_bytes"]
    return [
        ["minillm", f"{__version__}, in Python {platform.python_version()}{environment}"],
        ["system", machine["system"]],
        ["processor", f"{machine['cpu'] or machine['architecture']}, {cores}"],
        ["vectors", f"{machine['cpu_capability']}, as torch sees it"],
        ["caches", caches or "unknown"],
        ["memory", _size(memory) if memory else "unknown"],
        ["threads", f"{machine['torch_threads']} for torch"],
    ]


def installed(name: str) -> bool:
    """Whether Python finds the package, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # ValueError: a module put in its place that has no spec
        return False


def check_package(package: Package) -> Check:
    """Present with its version, missing and not needed, or missing and needed."""
    if installed(package.name):
        return Check(package.name, OK, package.purpose, numbers={"version": _version(package.name)})
    advice = f"pip install {package.install} brings {package.name}: {package.purpose}"
    if package.needed:
        return Check(package.name, FAILED, "not installed, and nothing works without it", advice)
    return Check(package.name, NOT_CHECKED, "not installed", advice)


def check_checksum() -> Check:
    """Whether the bundled weights arrived whole."""
    from minillm.hf_config import resolve_model_path

    name, advice = "weights", "the file is damaged or another: install minillm again, or git checkout minillm/weights"
    try:
        data = (resolve_model_path(MODEL) / "model.safetensors").read_bytes()
    except (OSError, ValueError) as error:
        return Check(name, FAILED, brief(error), advice)
    found = hashlib.sha256(data).hexdigest()
    if found != WEIGHTS_SHA256:
        return Check(name, FAILED, f"{MODEL}: SHA-256 {found[:12]}…, expected {WEIGHTS_SHA256[:12]}…", advice)
    return Check(name, OK, f"{MODEL}: {len(data) / 1e6:.1f} MB, SHA-256 {found[:12]}…")


def check_sentence() -> Check:
    """Whether the plain model, without anything fast, continues a story as it must."""
    name, advice = "sentence", "see whether the weights are right; if they are, try another version of torch"
    try:
        from minillm.data import load_tokenizer
        from minillm.generation.generate import generate
        from minillm.model.checkpoint import load_model
        from minillm.sampling import SamplingParams

        tokenizer = load_tokenizer(MODEL)
        prompt, expected = tokenizer.encode(PROMPT), tokenizer.encode(PROMPT + SENTENCE)
        params = SamplingParams(max_new_tokens=len(expected) - len(prompt), temperature=0)
        said = tokenizer.decode(generate(load_model(MODEL), prompt, params))
    except Exception as error:
        return Check(name, FAILED, brief(error), advice)
    if said != SENTENCE:
        return Check(name, FAILED, f"said {said!r} and not {SENTENCE!r}", advice)
    return Check(name, OK, f"“{PROMPT}{said}”")


def _package_cells(check: Check) -> tuple[str, str]:
    if check.verdict == OK:
        return str(check.numbers["version"]), check.found
    return "missing", check.advice.partition(" brings ")[0] + check.advice.partition(check.name)[2]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "?"


def _size(num_bytes: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.4g} {name}"
    return f"{num_bytes} bytes"
