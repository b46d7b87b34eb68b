"""Rows that break the kernels between the products: all of their problems."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minillm.kernels.flash_problems import Inputs
from minillm.kernels.fused_oracles import IGNORED
from minillm.kernels.gates import Problem

HUGE = {torch.float16: 3e4, torch.bfloat16: 1e15, torch.float32: 1e15}  # whose squares float32 still holds
Function = Callable[..., Any]


def on_cpu(oracle: Function) -> Function:
    """An oracle on CPU copies of its tensors."""

    def on_the_cpu(*args: Any, **options: Any) -> Any:
        return oracle(*(arg.cpu() if isinstance(arg, Tensor) else arg for arg in args), **options)

    return on_the_cpu


def gradients_of(function: Function, *, inputs: int, constants: int = 0) -> Callable[..., tuple[Tensor, ...]]:
    """(inputs, constants, gradients of the results) -> gradients of the inputs."""

    def gradients(*args: Tensor, **options: Any) -> tuple[Tensor, ...]:
        return results_and_gradients(function, *args, inputs=inputs, constants=constants, **options)[1]

    return gradients


def loss_and_gradient(function: Function) -> Function:
    """(logits, targets, d_loss, d_lse) -> (d_logits, loss, lse)."""

    def both(*args: Tensor, **options: Any) -> tuple[Tensor, ...]:
        results, grads = results_and_gradients(function, *args, inputs=1, constants=1, **options)
        return grads[0], *(result.detach() for result in results)

    return both


def results_and_gradients(
    function: Function, *args: Tensor, inputs: int, constants: int, **options: Any
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Of `function(*inputs, *constants)`, for the gradients behind them in args."""
    leaves = [x.detach().requires_grad_() for x in args[:inputs]]
    with torch.enable_grad():
        results = function(*leaves, *args[inputs : inputs + constants], **options)
        results = (results,) if isinstance(results, Tensor) else tuple(results)
        arriving = [grad.to(result) for grad, result in zip(args[inputs + constants :], results, strict=True)]
        return results, torch.autograd.grad(results, leaves, arriving)


# ---- problems


def norm_problems(dtype: torch.dtype, device: torch.device, large: bool) -> list[Problem]:
    """Widths that are no powers of two, one row, one column, nothing, any strides, numbers huge, tiny and 0."""
    make = Inputs(dtype, device)
    shapes = [(3, 64), (1, 100), (5, 1), (37,), (2, 3, 96), (2, 2, 2, 10), (40, 20), (0, 16), (4, 0), (2, 1500)]
    if large:
        shapes += [(1000, 5120), (4096, 4096), (70, 16384), (3, 16383), (50000, 64)]
    rows = {"×".join(map(str, shape)): make.normal(*shape) for shape in shapes}
    rows |= {
        "every second": make.normal(10, 60)[::2, ::2],
        "by columns": make.normal(50, 6).T,
        "batch inside": make.normal(5, 2, 33).transpose(0, 1),
        "one row repeated": make.normal(1, 48).expand(9, 48),
        "huge": HUGE[dtype] * make.normal(3, 70).clamp(-1.0, 1.0),
        "tiny": 1e-4 * make.normal(3, 70),
        "one huge number": torch.cat((make.normal(3, 69), torch.full_like(make.normal(3, 1), HUGE[dtype])), dim=-1),
        "zeros": torch.zeros_like(make.normal(2, 40)),
    }
    problems = [
        Problem(name, (x, 1.0 + make.normal(x.shape[-1])), {"eps": 1e-3 if x.shape[-1] % 2 else 1e-5})
        for name, x in rows.items()
    ]
    x = make.normal(3, 50)
    return [*problems, Problem("a large eps, weights by twos", (x, make.normal(100)[::2]), {"eps": 0.5})]


def norm_problems_with_infinities(dtype: torch.dtype, device: torch.device, large: bool) -> list[Problem]:
    """`norm_problems`, and a row with NaN and one with infinity beside one without."""
    x = Inputs(dtype, device).normal(3, 40)
    x[0, 3], x[2, 5] = math.nan, math.inf
    odd = Problem("NaN and infinity", (x, torch.ones_like(x[0])), {"eps": 1e-5})
    return [*norm_problems(dtype, device, large), odd]


def add_norm_problems(dtype: torch.dtype, device: torch.device, large: bool) -> list[Problem]:
    """With a residual of other strides; it takes x nearly away in one of them."""
    make = Inputs(dtype, device)
    problems = []
    for problem in norm_problems(dtype, device, large):
        x, weight = problem.args
        residual = make.normal(*x.shape, 2)[..., 0]
        problems.append(Problem(problem.name, (x, residual, weight), problem.options))
    x = make.normal(3, 40)
    small = 2.0**-6 * make.normal(3, 40)
    return [*problems, Problem("hardly anything left", (x, small - x, make.normal(40)), {"eps": 1e-6})]


def with_gradients(problems: Function, *, like: tuple[int, ...]) -> Function:
    """The same problems with a gradient of other strides for each result, shaped like the arguments numbered."""

    def problems_with_gradients(dtype: torch.dtype, device: torch.device, large: bool) -> list[Problem]:
        make = Inputs(dtype, device)
        return [
            Problem(
                problem.name,
                (*problem.args, *(make.normal(2, *problem.args[number].shape)[1] for number in like)),
                problem.options,
            )
            for problem in problems(dtype, device, large)
        ]

    return problems_with_gradients


def rope_problems(dtype: torch.dtype, device: torch.device, large: bool) -> list[Problem]:
    """Dense, packed, single tokens; groups, more heads than a block; views; tables of every kind."""
    make = Inputs(dtype, device)

    def tables(*shape: int, dtype: torch.dtype = dtype) -> tuple[Tensor, Tensor]:
        angles = 10 * torch.randn(*shape[:-1], shape[-1] // 2, generator=make.generator, dtype=torch.float64)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype).to(device), angles.sin().to(dtype).to(device)

    def heads(*shape: int, num_kv_heads: int) -> tuple[Tensor, Tensor]:
        return make.normal(*shape), make.normal(*shape[:-2], num_kv_heads, shape[-1])

    wide_q, wide_k = heads(2, 3, 4, 48, num_kv_heads=1)
    inner_q, inner_k = make.normal(2, 4, 3, 16).transpose(1, 2), make.normal(2, 2, 16, 3).permute(0, 3, 1, 2)
    problems = [
        Problem("dense", (*heads(2, 3, 4, 16, num_kv_heads=2), *tables(2, 3, 1, 16))),
        Problem("positions alike in the batch", (*heads(2, 3, 4, 16, num_kv_heads=2), *tables(3, 1, 16))),
        Problem("positions alike in the sequence", (*heads(2, 3, 2, 16, num_kv_heads=2), *tables(2, 1, 1, 16))),
        Problem("packed", (*heads(4, 3, 32, num_kv_heads=1), *tables(4, 1, 32))),
        Problem("one token", (*heads(1, 1, 32, 128, num_kv_heads=8), *tables(1, 1, 128))),
        Problem("heads alone", (*heads(4, 6, num_kv_heads=2), *tables(1, 6))),
        Problem("three leading axes", (*heads(2, 1, 2, 2, 8, num_kv_heads=1), *tables(2, 1, 8))),
        Problem("head_dim 2", (*heads(2, 3, 2, num_kv_heads=3), *tables(2, 1, 2))),
        Problem("head_dim 96", (*heads(2, 5, 96, num_kv_heads=5), *tables(2, 1, 96))),
        Problem("more heads than a block", (*heads(1, 40, 64, num_kv_heads=70), *tables(1, 1, 64))),
        Problem("the last of wider heads", (wide_q[..., -16:], wide_k[..., -16:], *tables(2, 3, 1, 16))),
        Problem("heads before the sequence", (inner_q, inner_k, *tables(2, 3, 1, 16))),
        Problem("no tokens", (*heads(2, 0, 4, 8, num_kv_heads=2), *tables(0, 1, 8))),
        Problem("no heads of k", (*heads(3, 4, 8, num_kv_heads=0), *tables(3, 1, 8))),
        Problem("float32 tables", (*heads(3, 4, 8, num_kv_heads=2), *tables(3, 1, 8, dtype=torch.float32))),
        Problem("halves that differ", (*heads(3, 4, 8, num_kv_heads=2), *make.normal(2, 3, 1, 16)[..., ::2])),
    ]
    if large:
        problems.append(Problem("long", (*heads(2, 2000, 32, 128, num_kv_heads=8), *tables(2000, 1, 128))))
    return problems


def swiglu_problems(dtype: torch.dtype, device: torch.device, large: bool) -> list[Problem]:
    """Several blocks a row, one column, nothing, views, gates of ±3e4."""
    make = Inputs(dtype, device)
    shapes = [(3, 64), (1, 2049), (5, 1), (37,), (2, 3, 96), (0, 16), (4, 0), (2, 4500)]
    if large:
        shapes += [(4096, 11008), (7, 14337)]
    problems = [Problem("×".join(map(str, shape)), (make.normal(*shape), make.normal(*shape))) for shape in shapes]
    sign = torch.where(make.normal(3, 70) > 0, 1.0, -1.0).to(dtype)
    problems += [
        Problem("views", (make.normal(6, 80)[::2, ::2], make.normal(40, 3).T)),
        Problem("huge gates", (3e4 * sign, make.normal(3, 70))),
        Problem("gates to −120", (-120 * make.normal(3, 70).abs().clamp(max=1.0), make.normal(3, 70))),
    ]
    return problems


def swiglu_halves_problems(dtype: torch.dtype, device: torch.device, large: bool) -> list[Problem]:
    """A matrix of both, and views of wider ones, with a gradient of other strides that arrives."""
    make = Inputs(dtype, device)
    matrices = {"3×64": make.normal(3, 64), "1 + 1": make.normal(5, 2), "one row": make.normal(70)}
    matrices |= {"2×3×66": make.normal(2, 3, 66), "empty": make.normal(0, 8), "several blocks": make.normal(2, 9000)}
    matrices |= {"every second": make.normal(6, 80)[::2, ::2], "by columns": make.normal(40, 6).T}
    if large:
        matrices["4096×22016"] = make.normal(4096, 22016)
    return [Problem(name, (x, make.normal(*x.shape)[..., ::2])) for name, x in matrices.items()]


def softmax_rows(dtype: torch.dtype, device: torch.device, large: bool) -> dict[str, Tensor]:
    """Rows with a top at either end, −inf in some places or all, numbers at the end of the range."""
    make = Inputs(dtype, device)
    shapes = [(3, 64), (1, 100), (5, 1), (37,), (2, 3, 90), (0, 16), (3, 0), (2, 16384), (2, 16385), (1, 21000)]
    if large:
        shapes += [(4096, 4096), (300, 128256)]
    rows = {"×".join(map(str, shape)): make.normal(*shape) for shape in shapes}
    rising = torch.linspace(-100.0, 100.0, 20000).to(dtype).to(device)
    hidden = make.normal(4, 70)
    hidden[0], hidden[1, ::2], hidden[2, 1:] = -math.inf, -math.inf, -math.inf
    late = make.normal(1, 20000)
    late[0, :17000] = -math.inf
    top = torch.finfo(dtype).max
    ends = torch.tensor([[top, -top, 0.0], [top, top, -top]], dtype=dtype, device=device)
    return rows | {
        "rising": rising.expand(2, -1),
        "falling": rising.flip(0).unsqueeze(0),
        "some and all −inf": hidden,
        "−inf for several blocks": late,
        "a long row of −inf": torch.full_like(late, -math.inf),
        "±3e4": 3e4 * make.normal(3, 70).clamp(-2.0, 2.0),
        "the largest numbers": ends,
        "all alike": torch.full_like(make.normal(2, 50), 7.0),
        "every second": make.normal(6, 80)[::2, ::2],
        "by columns": make.normal(50, 6).T,
        "batch inside": make.normal(5, 2, 33).transpose(0, 1),
    }


def softmax_problems(dtype: torch.dtype, device: torch.device, large: bool) -> list[Problem]:
    """`softmax_rows`."""
    return [Problem(name, (x,)) for name, x in softmax_rows(dtype, device, large).items()]


def softmax_problems_with_infinities(dtype: torch.dtype, device: torch.device, large: bool) -> list[Problem]:
    """A row with NaN and one with +inf as well, which become NaN, beside one without."""
    x = Inputs(dtype, device).normal(3, 40)
    x[0, 3], x[2, 5] = math.nan, math.inf
    return [*softmax_problems(dtype, device, large), Problem("NaN and +inf", (x,))]


def loss_problems(dtype: torch.dtype, device: torch.device, large: bool) -> list[Problem]:
    """`softmax_rows` as logits with gradients; targets ignored, all of them, at −inf, missing; a vocabulary of 1."""
    make = Inputs(dtype, device)

    def problem(name: str, logits: Tensor, targets: Tensor | None = None, **options: Any) -> Problem:
        shape = logits.shape[:-1]
        if targets is None:
            targets = torch.randint(logits.shape[-1], shape, generator=make.generator).to(device)
        arriving = (torch.randn(shape, generator=make.generator).to(device) for _ in range(2))
        return Problem(name, (logits, targets, *arriving), options)

    def numbers(*values: int) -> Tensor:
        return torch.tensor(values, device=device)

    rows = softmax_rows(dtype, device, False)
    problems = [problem(name, x) for name, x in rows.items() if x.dim() > 1 and x.shape[-1]]
    problems += [
        problem("a vocabulary of 1", make.normal(3, 1)),
        problem("first and last of two blocks", make.normal(4, 5000), numbers(0, 4095, 4096, 4999)),
        problem("some ignored", make.normal(4, 50), numbers(3, IGNORED, 49, IGNORED)),
        problem("all ignored", make.normal(3, 50), numbers(IGNORED, IGNORED, IGNORED)),
        problem("another ignored, int32", make.normal(3, 50), numbers(0, 7, 0).int(), ignore_index=0),
        problem("targets of −inf", rows["some and all −inf"], numbers(0, 0, 5, IGNORED)),
        problem("−inf alone, ignored", rows["some and all −inf"], numbers(IGNORED, 1, 0, 0)),
        problem("no such target", make.normal(3, 50), numbers(50, -1, 10**12)),
        problem("no such target among −inf", rows["some and all −inf"], numbers(70, -1, 0, 0)),
        problem("two axes of rows", make.normal(2, 3, 40)),
        problem("targets by columns", make.normal(2, 3, 40), torch.arange(6, device=device).view(3, 2).T),
        problem("one row", make.normal(40), torch.tensor(7, device=device)),
        problem("no rows", make.normal(0, 8)),
    ]
    if large:
        problems.append(problem("large", make.normal(300, 128256)))
    return problems
