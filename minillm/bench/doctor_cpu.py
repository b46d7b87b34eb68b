"""Doctor, part 4: the fast CPU paths against float64, and against torch for speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from minillm.bench.compare import compare
from minillm.bench.doctor_environment import installed
from minillm.bench.doctor_section import (
    FAILED,
    NOT_CHECKED,
    OK,
    Check,
    Section,
    Settings,
    brief,
    columns,
    explained,
    paragraph,
)
from minillm.kernels.gates import compare as compare_numbers

ADVICE = "run minillm bench --help without it; pip install -U numba, then delete the __pycache__ folders of minillm"
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}  # relative, of one rounding


@dataclass(frozen=True)
class FastPath:
    """One fast path with its inputs inside.

    fast   () -> its result
    exact  () -> the same in float64, by the plain path
    bound  exact result -> the error that is allowed for each number
    torch  () -> what a user would call without it, for the comparison of speed
    around what holds while all of them run, a number of threads say
    """

    fast: Callable[[], Tensor]
    exact: Callable[[], Tensor]
    bound: Callable[[Tensor], Tensor]
    torch: Callable[[], object]
    around: Callable[[], AbstractContextManager[None]] = nullcontext


def fast_linear(dtype: torch.dtype = torch.float32) -> FastPath:
    """One row times a weight of 2048 × 2048, as in a decode step."""
    from minillm.fast_linears import FastLinear

    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(2048, 2048, bias=False, dtype=dtype)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(2048, 2048, generator=generator))
    x = torch.randn(1, 2048, generator=generator).to(dtype)
    return FastPath(
        fast=partial(FastLinear(linear), x),
        exact=lambda: x.double() @ linear.weight.double().T,
        bound=partial(_product_bound, x, linear.weight.T),
        torch=partial(linear, x),
    )


def product(rung: str, num_threads: int | None) -> FastPath:
    """512³ by a rung of the ladder, against torch.mm on as many threads. None = torch's number."""
    from minillm.bench.gemm import torch_threads
    from minillm.gemm import LADDER

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    return FastPath(
        fast=partial(LADDER[rung], a, b),
        exact=lambda: a.double() @ b.double(),
        bound=partial(_product_bound, a, b),
        torch=partial(torch.mm, a, b),
        around=nullcontext if num_threads is None else partial(torch_threads, num_threads),
    )


def flat_product() -> FastPath:
    """8 rows, as of 8 sequences that decode together."""
    from minillm.gemm.flat import flat_matmul

    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(8, 2048, generator=generator), torch.randn(2048, 2048, generator=generator)
    return FastPath(
        fast=partial(flat_matmul, a, b),
        exact=lambda: a.double() @ b.double(),
        bound=partial(_product_bound, a, b),
        torch=partial(torch.mm, a, b),
    )


def decode_attention(dtype: torch.dtype = torch.float32) -> FastPath:
    """A query of 8 heads over 4096 keys of 2, for each of 4 sequences: 16 MiB in float32."""
    from minillm.attention.cpu_decoding import decode_on_cpu
    from minillm.attention.dispatch import attention
    from minillm.attention.naive import naive_attention

    generator = torch.Generator().manual_seed(0)
    q = torch.randn(4, 1, 8, 64, generator=generator).to(dtype)
    k, v = (torch.randn(4, 4096, 2, 64, generator=generator).to(dtype) for _ in range(2))
    return FastPath(
        fast=lambda: decode_on_cpu(q, k, v)[0],
        exact=lambda: naive_attention(q.double(), k.double(), v.double())[0],
        bound=lambda exact: 1e-5 + ROUNDING[dtype] * exact.abs(),
        torch=partial(attention, q, k, v),
    )


def fused_blocks() -> FastPath:
    """The logits of stories-5m after one new token in an empty cache."""
    from minillm.bench.decode import fused_copy, load_size
    from minillm.generation.generate import last_logits, make_cache

    plain, _ = load_size("stories-5m", torch.float32)
    exact, _ = load_size("stories-5m", torch.float64)
    fused = fused_copy(plain)

    def logits(model: torch.nn.Module) -> Tensor:
        found: Tensor = last_logits(model, make_cache(model, batch_size=1, max_seq_len=4), [[100]])  # type: ignore[arg-type]
        return found

    return FastPath(
        fast=partial(logits, fused),
        exact=partial(logits, exact),
        bound=lambda exact: torch.full_like(exact, 1e-4),
        torch=partial(logits, plain),
    )


PATHS: dict[str, Callable[[], FastPath]] = {
    "fast linear": fast_linear,
    "packed product, 1 thread": partial(product, "packed", 1),
    "packed product": partial(product, "threads", None),
    "flat product": flat_product,
    "decode attention": decode_attention,
    "fused blocks": fused_blocks,
}
"""By name, what makes each."""

MORE_PATHS: dict[str, Callable[[], FastPath]] = {
    "fast linear, bf16": partial(fast_linear, torch.bfloat16),
    "decode attention, bf16": partial(decode_attention, torch.bfloat16),
}
"""Looked at with `every`."""


def examine(settings: Settings, paths: Mapping[str, Callable[[], FastPath]] | None = None) -> Section:
    """Numbers and speed of every path; NOT_CHECKED without numba, since all of them are compiled by it."""
    title = "Fast paths on the CPU"
    if not installed("numba"):
        advice = "pip install 'minillm[fast]' brings numba: fast CPU paths, 2 to 3 times the speed of decoding"
        check = Check("fast CPU paths", NOT_CHECKED, "numba is not installed", advice)
        return Section("cpu", title, tuple(paragraph("Not checked: they need numba. " + advice)), (check,))
    if paths is None:
        paths = {**PATHS, **MORE_PATHS} if settings.every else PATHS
    checks = []
    for number, (name, make) in enumerate(paths.items()):
        settings.on_step(name, number, len(paths))
        checks.append(examine_path(name, make, rounds=2 if settings.quick else 9))
    rows = [["path", "error", "of allowed", "verdict", "× torch"], *map(_row, checks)]
    lines = columns(rows, right=(1, 2, 4))
    lines += ["", *paragraph("Errors are against float64. × torch: 2.0 means twice as fast as torch alone.")]
    return Section("cpu", title, (*lines, *explained(checks)), tuple(checks))


@torch.inference_mode()
def examine_path(name: str, make: Callable[[], FastPath], *, rounds: int) -> Check:
    """An error above what is allowed fails, and so does an exception; being slow does not."""
    try:
        path = make()
        with path.around():
            result, exact = path.fast(), path.exact()
            error, share, wrong = compare_numbers(result, exact, path.bound(exact))
            timed = compare({"fast": path.fast, "torch": path.torch}, rounds=rounds)
    except Exception as problem:
        return Check(name, FAILED, brief(problem), ADVICE)
    speedup = timed.speedup("fast", over="torch").median
    numbers = {"max_error": error, "share_of_allowed": share, "over_torch": speedup}
    if wrong or share > 1:
        found = wrong or f"error {error:.1e}, {share:.3g} times what is allowed"
        return Check(name, FAILED, found, ADVICE, numbers)
    return Check(name, OK, f"error {error:.1e}, {share:.0%} of what is allowed", numbers=numbers)


def _product_bound(a: Tensor, b: Tensor, exact: Tensor) -> Tensor:
    """|C − C64| ≤ (K + 1) · 2⁻²⁴ · |A| |B|, and one rounding of the result."""
    share = (a.shape[1] + 1) * 2.0**-24
    return share * (a.double().abs() @ b.double().abs()) + ROUNDING[a.dtype] * exact.abs()


def _row(check: Check) -> list[str]:
    if not check.numbers:
        return [check.name, "", "", check.verdict, ""]
    numbers = check.numbers
    cells = [f"{numbers['max_error']:.1e}", f"{numbers['share_of_allowed']:.0%}"]
    return [check.name, *cells, check.verdict, f"{numbers['over_torch']:.2f}"]
