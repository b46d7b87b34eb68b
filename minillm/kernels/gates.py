"""The gates that every kernel passes: numbers, ahead-of-time builds, speed.

    1  numbers   `check_numbers(entry, dtype)`            in the interpreter on a CPU, and on a real GPU
    2  builds    `check_builds(entry, capability)`        compiled for sm_80 and sm_90, without a GPU
    3  speed     `measure_speed(entry)`                   on a real GPU, against the vendor's kernel

A kernel enters by one `KernelEntry` in `registry`; tests and `minillm doctor` go through the registry. Triton has one
mode a process (`processes`), so that gates 1 and 2 run in different ones.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Result = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Problem:
    """What a kernel is called with: `function(*args, **options)`."""

    name: str
    args: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class KernelEntry:
    """One kernel and how to judge it.

    function  the public function, on tensors of a GPU or of the CPU where the kernels are interpreted
    oracle    the same signature, written for the eye; gets float64 copies of the floating-point tensors
    problems  (dtype, device, large) -> problems; `large` adds those that only a GPU does quickly
    bound     (problem, exact result) -> the largest allowed |error| of each number, shaped like the result
    dtypes    that the kernel takes; the interpreter skips bfloat16, which it gets wrong
    builds    () -> ways to compile it, `build.Build`s: those to build always; `all_builds` every one that can be chosen
    vendor    the library's function for the same thing, and `speed_problem` (dtype) -> what both are timed on
    mode      "triton", or "numba" for thread-level kernels, which its simulator runs on a CPU
    """

    name: str
    function: Callable[..., Result]
    oracle: Callable[..., Result]
    problems: Callable[[torch.dtype, torch.device, bool], Sequence[Problem]]
    bound: Callable[[Problem, Tensor], Tensor]
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16)
    builds: Callable[[], Sequence[Any]] = tuple
    all_builds: Callable[[], Sequence[Any]] = tuple
    vendor: Callable[..., Any] | None = None
    speed_problem: Callable[[torch.dtype], Problem] | None = None
    mode: str = "triton"


@dataclass(frozen=True)
class NumberCheck:
    """The outcome of one problem: the largest error, absolute and as a share of what is allowed there."""

    kernel: str
    problem: str
    dtype: torch.dtype
    device: str
    max_error: float
    share_of_bound: float
    problem_found: str = ""  # an exception, a wrong shape or dtype, a NaN that shouldn't be there

    @property
    def passed(self) -> bool:
        return not self.problem_found and self.share_of_bound <= 1.0


@dataclass(frozen=True)
class Speed:
    """Seconds, medians of pairs timed one after the other; `ratio` is the median of vendor_s / ours_s."""

    kernel: str
    problem: str
    dtype: torch.dtype
    ours_s: float
    vendor_s: float
    ratio: float


def check_numbers(
    entry: KernelEntry, dtype: torch.dtype, device: torch.device | str = "cpu", *, large: bool = False
) -> list[NumberCheck]:
    """All problems of a kernel in one dtype. An exception is an outcome, too, and doesn't stop the others."""
    where = torch.device(device)
    return [_check(entry, problem, dtype, where) for problem in entry.problems(dtype, where, large)]


def check_builds(entry: KernelEntry, capability: int, *, every: bool = False) -> list[Any]:
    """The kernel built for sm_`capability`: a `build.Built` for each way, of which some may not have `passed`."""
    from minillm.kernels.build import build

    return [build(wanted, capability) for wanted in (entry.all_builds() if every else entry.builds())]


def measure_speed(entry: KernelEntry, dtype: torch.dtype, *, rounds: int = 20) -> Speed:
    """Ours and the vendor's in turn on a GPU. Raises ValueError without one, or for an entry without a vendor."""
    if entry.vendor is None or entry.speed_problem is None:
        raise ValueError(f"{entry.name} has nothing to be compared with")
    if not torch.cuda.is_available():
        raise ValueError("speed is measured on a GPU, and there is none")
    from triton.testing import do_bench

    problem = entry.speed_problem(dtype)
    functions = (entry.function, entry.vendor)
    pairs = []
    for _ in range(rounds):
        times = [
            do_bench(lambda f=f: f(*problem.args, **problem.options), warmup=5, rep=20, return_mode="median")
            for f in functions
        ]
        pairs.append((times[0] / 1e3, times[1] / 1e3))
    return Speed(
        kernel=entry.name,
        problem=problem.name,
        dtype=dtype,
        ours_s=statistics.median(ours for ours, _ in pairs),
        vendor_s=statistics.median(vendor for _, vendor in pairs),
        ratio=statistics.median(vendor / ours for ours, vendor in pairs),
    )


def _check(entry: KernelEntry, problem: Problem, dtype: torch.dtype, device: torch.device) -> NumberCheck:
    max_error = share = 0.0
    try:
        before = [arg.clone() if isinstance(arg, Tensor) else arg for arg in problem.args]
        results = _as_tuple(entry.function(*problem.args, **problem.options))
        exact = _as_tuple(entry.oracle(*map(_widened, before), **problem.options))
        found = _changed_arguments(problem.args, before)
        for number, (result, wanted) in enumerate(zip(results, exact, strict=True)):
            # The first result has the dtype of the inputs; others, a log-sum-exp say, may be float32.
            if number == 0 and result.dtype != dtype:
                found = found or f"dtype {result.dtype}, expected {dtype}"
            one_error, one_share, one_found = compare(result, wanted, entry.bound(problem, wanted))
            max_error, share, found = max(max_error, one_error), max(share, one_share), found or one_found
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    return NumberCheck(entry.name, problem.name, dtype, str(device), max_error, share, found)


def compare(result: Tensor, exact: Tensor, bound: Tensor) -> tuple[float, float, str]:
    """(largest error, largest share of the bound, what is wrong besides) of a result against a float64 one.

    NaN and ±infinity, overflow in the result's dtype included, must stand at the same places in both.
    """
    if result.shape != exact.shape:
        return 0.0, 0.0, f"shape {tuple(result.shape)}, expected {tuple(exact.shape)}"
    result, exact, bound = result.detach().cpu(), exact.cpu(), bound.cpu()
    rounded = exact.to(result.dtype)
    special = ~rounded.isfinite()
    same = torch.where(special, (result == rounded) | (result.isnan() & rounded.isnan()), result.isfinite())
    if not bool(same.all()):
        place = tuple((~same).nonzero()[0].tolist())
        return 0.0, 0.0, f"{result[place].item()} at {list(place)}, expected {rounded[place].item()}"
    error = (result.double() - exact).abs()[~special]
    allowed = bound.expand(exact.shape)[~special]
    if error.numel() == 0:
        return 0.0, 0.0, ""
    share = torch.where(error == 0, 0.0, error / allowed)
    return float(error.max()), float(share.max()), ""


def _as_tuple(result: Result) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _widened(arg: Any) -> Any:
    return arg.double() if isinstance(arg, Tensor) and arg.is_floating_point() else arg


def _changed_arguments(args: Sequence[Any], before: Sequence[Any]) -> str:
    for number, (arg, old) in enumerate(zip(args, before, strict=True)):
        if isinstance(arg, Tensor) and not torch.equal(arg.nan_to_num(), old.nan_to_num()):
            return f"argument {number} was changed"
    return ""
