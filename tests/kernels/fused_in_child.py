"""What the tests of the kernels between the products ask child processes to run: it must be importable there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.runtime.interpreter import GridExecutor

from minillm.kernels import cross_entropy, rms_norm, swiglu
from minillm.kernels import fused_builds as builds
from minillm.kernels.build import build
from minillm.kernels.flash_problems import Inputs
from minillm.kernels.fused_norm import norm_forward
from minillm.kernels.fused_norm_backward import norm_backward
from minillm.kernels.fused_problems import results_and_gradients
from minillm.kernels.fused_rows import as_rows
from minillm.kernels.fused_softmax import softmax_backward, softmax_forward

GUARD = 7.0
SAMPLES = (
    builds.norm_builds,
    builds.norm_gradient_builds,
    builds.rope_builds,
    builds.swiglu_builds,
    builds.softmax_builds,
    builds.loss_builds,
)


def rope_arguments() -> tuple[Tensor, ...]:
    """q, k (2, 2, 3, 12) and tables (2, 1, 12) of any numbers."""
    normal = Inputs(torch.float32, torch.device("cpu")).normal
    return (*normal(2, 2, 2, 3, 12), *normal(2, 2, 1, 12))


def with_gradients(
    function: Callable[..., Any], *args: Any, inputs: int, constants: int = 0, **options: Any
) -> tuple[Tensor, ...]:
    """Results, then gradients of the first `inputs` arguments, for the gradients behind inputs and constants."""
    results, grads = results_and_gradients(function, *args, inputs=inputs, constants=constants, **options)
    return (*(result.detach() for result in results), *grads)


def launches(function: Callable[..., Any], *args: Any, **options: Any) -> tuple[int, int]:
    """How many kernels the forward and the backward pass launch."""
    count = 0
    start = GridExecutor.__call__

    def counted(self: Any, *grid_args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return start(self, *grid_args, **kwargs)

    leaves = [
        arg.detach().requires_grad_() if isinstance(arg, Tensor) and arg.is_floating_point() and arg.dim() != 3 else arg
        for arg in args
    ]
    with mock.patch.object(GridExecutor, "__call__", counted):
        results = function(*leaves, **options)
        forward = count
        results = (results,) if isinstance(results, Tensor) else results
        sum(result.sum() for result in results).backward()
    return forward, count - forward


def beside_guards(function: Callable[..., Any], *args: Any, **options: Any) -> bool:
    """Whether `with_gradients` leaves alone what lies behind every tensor that the kernels' functions allocate."""
    buffers: list[tuple[Tensor, int]] = []

    def empty(*shape: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        sizes = torch.Size(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        flat = torch.full((sizes.numel() + 40,), GUARD, dtype=dtype or torch.float32, device=device)
        buffers.append((flat, sizes.numel()))
        return flat[: sizes.numel()].view(sizes)

    def empty_like(x: Tensor) -> Tensor:
        return empty(x.shape, dtype=x.dtype, device=x.device)

    with mock.patch.object(torch, "empty", empty), mock.patch.object(torch, "empty_like", empty_like):
        with_gradients(function, *args, **options)
    return bool(buffers) and all(bool((flat[size:] == GUARD).all()) for flat, size in buffers)


def softmax_in_blocks(x: Tensor, dy: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """(y, dx) with blocks of at most `largest` numbers."""
    y = softmax_forward(x, largest)
    return y, softmax_backward(y, dy, largest)


def norm_parts(x: Tensor, weight: Tensor, dy: Tensor, num_sms: int) -> tuple[Tensor, Tensor]:
    """(dx, d_weight) as on a GPU of that many SMs."""
    from minillm.kernels import fused_norm_backward

    _, _, inv_rms = norm_forward(x, None, weight, 1e-5)
    with mock.patch.object(fused_norm_backward, "num_sms", lambda device: num_sms):
        return norm_backward(x, weight, inv_rms, dy, None)


def what_swiglu_keeps(gate: Tensor, up: Tensor) -> bool:
    """Whether it keeps its inputs and nothing else."""
    gate, up = gate.requires_grad_(), up.requires_grad_()
    kept = swiglu(gate, up).grad_fn.saved_tensors  # type: ignore[union-attr]
    return [x.data_ptr() for x in kept] == [gate.data_ptr(), up.data_ptr()]


def numbers_that_rms_norm_keeps(x: Tensor, weight: Tensor) -> int:
    """Besides x and weight."""
    y = rms_norm(x.requires_grad_(), weight, 1e-5)
    return sum(kept.numel() for kept in y.grad_fn.saved_tensors[2:])  # type: ignore[union-attr]


def loss_of_a_copy(
    logits: Tensor, targets: Tensor, d_loss: Tensor, d_lse: Tensor, *, in_place: bool
) -> tuple[Tensor, ...]:
    """(d_logits, loss, lse) of logits that another function made; −1 is ignored."""
    leaf = logits.detach().requires_grad_()
    loss, lse = cross_entropy(leaf.clone(), targets, ignore_index=-1, in_place=in_place)
    (grad,) = torch.autograd.grad((loss, lse), leaf, (d_loss, d_lse))
    return grad, loss.detach(), lse.detach()


def loss_in_place(logits: Tensor, targets: Tensor) -> tuple[Tensor, bool, str, str]:
    """(what the logits' memory holds afterwards, whether the gradient is that memory, what autograd says to a second
    backward pass, and to another function that had kept the logits)."""
    made = logits.requires_grad_() * 1.0
    arrived: list[Tensor] = []
    made.register_hook(arrived.append)
    squares = made.square()  # its gradient needs the logits as they were
    loss, _ = cross_entropy(made, targets, in_place=True)
    loss.mean().backward(retain_graph=True)
    messages = [_error(lambda result=result: result.sum().backward()) for result in (loss, squares)]
    return made.detach().clone(), arrived[0].data_ptr() == made.data_ptr(), *messages


def _error(function: Callable[[], Any]) -> str:
    try:
        function()
    except RuntimeError as error:
        return str(error)
    return ""


def loss_refuses_leaves(in_place: bool) -> None:
    """A parameter as logits."""
    cross_entropy(torch.ones(2, 3, requires_grad=True), torch.tensor([0, 1]), in_place=in_place)


def built_for_sizes_of_one(capability: int) -> list[tuple[str, int]]:
    """(label, spilled bytes) of each kernel for sizes and strides of 1, which Triton compiles as constants."""
    samples = {one.kernel: one for sample in SAMPLES for one in sample()}
    results = []
    for sample in samples.values():
        ones = [name for name, kind in sample.signature.items() if kind == "i32"]
        signature = {name: kind for name, kind in sample.signature.items() if name not in ones}
        constants = {**sample.constants, **dict.fromkeys(ones, 1)}
        built = build(dataclasses.replace(sample, signature=signature, constants=constants), capability)
        results.append((built.label, built.spilled_bytes))
    return results


def is_view(*shape: int, stride: tuple[int, ...]) -> bool:
    """Whether `as_rows` takes a tensor of these strides without a copy."""
    x = torch.zeros(1000).as_strided(shape, stride)
    return as_rows(x).data_ptr() == x.data_ptr()
