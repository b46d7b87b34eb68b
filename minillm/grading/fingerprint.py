"""A short summary of a value, and how far two of them lie apart.

A tensor becomes its dtype, shape, norm and a few projections on fixed random directions, in double precision: two
tensors with the same summary are, but for bad luck, the same tensor. Summaries are plain JSON, small, and tolerant:
a distance of 1 is what rounding in the tensor's dtype may make of the same calculation done in another order.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch

NUM_PROJECTIONS = 4
MAX_ELEMENTS = 1 << 20  # larger tensors are summarised by evenly spaced elements
MAX_DEPTH = 8
LONG_LIST = 8  # from this length on, a list of numbers is summarised like a tensor

# What rounding may change, relative to the norm. Numbers may come from float32 by `.item()`.
TOLERANCE = {"float64": 1e-8, "float32": 1e-4, "bfloat16": 2e-2, "float16": 4e-3}
NUMBER_TOLERANCE = 1e-4
SMALLEST_SCALE = 1e-6  # differences are never measured against less than this

Summary = Any  # JSON: None or a dictionary with one key for its kind


@functools.lru_cache(maxsize=16)
def directions(size: int) -> torch.Tensor:
    """(size, NUM_PROJECTIONS) fixed random numbers of variance 1. Uniform ones come out the same on any platform."""
    generator = torch.Generator().manual_seed(size)
    uniform = torch.rand(size, NUM_PROJECTIONS, generator=generator, dtype=torch.float64, device="cpu")
    return (uniform - 0.5) * math.sqrt(12)


def summarize(value: object, depth: int = 0) -> Summary:
    """The summary of anything that a function may take or return; of an unknown object only its type's name."""
    if isinstance(value, torch.Tensor):
        return summarize_tensor(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return summarize_tensor(torch.from_numpy(np.array(value)))
    if value is None:
        return None
    if isinstance(value, bool | np.bool_):
        return {"bool": bool(value)}
    if isinstance(value, int | float | np.number) and not isinstance(value, np.complexfloating):
        return {"number": int(value) if isinstance(value, int | np.integer) else float(value)}
    if isinstance(value, str | bytes):
        return {"text": hashlib.sha256(repr(value).encode()).hexdigest()[:12]}
    if depth > MAX_DEPTH:
        return {"type": type(value).__name__}
    if isinstance(value, Mapping):
        return {"dict": _by_key([[summarize(k, depth + 1), summarize(v, depth + 1)] for k, v in value.items()])}
    if isinstance(value, Set):
        return {"set": sorted((summarize(item, depth + 1) for item in value), key=repr)}
    if isinstance(value, Sequence) and not isinstance(value, range):
        if len(value) >= LONG_LIST and all(type(item) in (int, float) for item in value):
            return summarize_tensor(torch.tensor([float(item) for item in value], dtype=torch.float64), "list")
        return {"list": [summarize(item, depth + 1) for item in value]}
    if isinstance(value, range):
        return summarize(list(value), depth)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
        return {"dict": summarize(fields, depth + 1)["dict"]}
    return {"type": type(value).__name__}


def _by_key(pairs: list[list[Summary]]) -> list[list[Summary]]:
    return sorted(pairs, key=lambda pair: repr(pair[0]))


def summarize_tensor(tensor: torch.Tensor, kind: str | None = None) -> Summary:
    """`kind` stands for the dtype. A tensor of no dimensions counts as a number: `.item()` or not is taste."""
    with torch.no_grad():
        tensor = tensor.detach()
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor.resolve_conj())
        dtype = str(tensor.dtype).removeprefix("torch.")
        try:
            flat = tensor.to("cpu", torch.float64).to_dense().reshape(-1)
        except (RuntimeError, NotImplementedError):
            return {"type": "Tensor", "shape": list(tensor.shape)}  # meta tensors hold no numbers
        if tensor.dim() == 0:
            item = tensor.item()
            return {"bool": item} if isinstance(item, bool) else {"number": item}
        odd: list[int | str] = [int(flat.isnan().sum()), int((flat == math.inf).sum()), int((flat == -math.inf).sum())]
        if any(odd):
            places = [flat.isnan(), flat == math.inf, flat == -math.inf]
            odd += [_hash(place) for place in places]
            flat = torch.where(flat.isfinite(), flat, 0.0)
        if flat.numel() > MAX_ELEMENTS:
            flat = flat[:: -(-flat.numel() // MAX_ELEMENTS)]
        projections = (flat @ directions(flat.numel())).tolist() if flat.numel() else [0.0] * NUM_PROJECTIONS
        return {
            "tensor": kind or dtype,
            "shape": list(tensor.shape),
            "odd": odd,
            "norm": float(flat.norm()),
            "projections": [float(f"{number:.12g}") for number in projections],
        }


def _hash(mask: torch.Tensor) -> str:
    return hashlib.sha256(np.packbits(mask.numpy()).tobytes()).hexdigest()[:8]


def distance(a: Summary, b: Summary) -> float:
    """0 for equal, up to 1 for equal but for rounding, infinite for another kind, shape, dtype or text."""
    if a is None or b is None:
        return 0.0 if a is b else math.inf
    kind = next(iter(a))
    if kind != next(iter(b)):
        return math.inf
    if kind == "number":
        return _number_distance(a["number"], b["number"])
    if kind == "tensor":
        return _tensor_distance(a, b)
    if kind in ("list", "set"):
        return _all(a[kind], b[kind], distance)
    if kind == "dict":
        return _all(a["dict"], b["dict"], lambda p, q: max(distance(p[0], q[0]), distance(p[1], q[1])))
    return 0.0 if a == b else math.inf


def _all(a: list[Any], b: list[Any], apart: Any) -> float:
    if len(a) != len(b):
        return math.inf
    return max((apart(x, y) for x, y in zip(a, b, strict=True)), default=0.0)


def _number_distance(a: float, b: float) -> float:
    if a == b or (a != a and b != b):
        return 0.0
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b), SMALLEST_SCALE) / NUMBER_TOLERANCE


def _tensor_distance(a: dict[str, Any], b: dict[str, Any]) -> float:
    if any(a[key] != b[key] for key in ("tensor", "shape", "odd")):
        return math.inf
    pairs = zip([a["norm"], *a["projections"]], [b["norm"], *b["projections"]], strict=True)
    apart = max(abs(x - y) for x, y in pairs)
    scale = max(a["norm"], b["norm"], SMALLEST_SCALE * math.sqrt(math.prod(a["shape"])))
    return apart / scale / TOLERANCE.get(a["tensor"], 1e-6) if scale else 0.0
