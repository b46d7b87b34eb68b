"""The kernels between the products in the registry, and what torch has for the same thing.

`cross_entropy` is checked and timed with its backward pass: its own results are float32 whatever the logits are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.kernels import fused_bounds as bounds
from minillm.kernels import fused_builds as builds
from minillm.kernels import fused_oracles as oracles
from minillm.kernels import fused_problems as problems
from minillm.kernels.fused_loss import cross_entropy
from minillm.kernels.fused_norm import add_rms_norm, rms_norm
from minillm.kernels.fused_problems import gradients_of, loss_and_gradient, on_cpu, with_gradients
from minillm.kernels.fused_rope import rope
from minillm.kernels.fused_softmax import softmax
from minillm.kernels.fused_swiglu import swiglu, swiglu_halves
from minillm.kernels.gates import KernelEntry, Problem

# ---- torch's own


def torch_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """One kernel of torch's."""
    return F.rms_norm(x, weight.shape, weight, eps)


def torch_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Two."""
    added = x + residual
    return torch_rms_norm(added, weight, eps), added


def torch_softmax(x: Tensor) -> Tensor:
    """One."""
    return torch.softmax(x, dim=-1)


def torch_loss_and_gradient(logits: Tensor, targets: Tensor, d_loss: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    """Two forward, three backward. It doesn't give lse."""
    leaf = logits.detach().requires_grad_()
    loss = F.cross_entropy(leaf, targets, reduction="none")
    return torch.autograd.grad(loss, leaf, d_loss.to(loss))[0], loss.detach()


# ---- what is timed, on the GPU: a model with a hidden size of 4096 and 32 heads of 128


def random(*shapes: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Random tensors on the GPU."""
    return tuple(torch.randn(*shape, device="cuda", dtype=torch.float32).to(dtype) for shape in shapes)


def timed(*shapes: tuple[int, ...], **options: Any) -> Callable[[torch.dtype], Problem]:
    """A problem of random tensors of these shapes, named by the first."""

    def problem(dtype: torch.dtype) -> Problem:
        return Problem(" × ".join(map(str, shapes[0])), random(*shapes, dtype=dtype), options)

    return problem


def heads_to_turn(dtype: torch.dtype, *, with_gradients: bool = False) -> Problem:
    """q of 32 heads, k of 8, and gradients that arrive."""
    shapes = ((1, 8192, 32, 128), (1, 8192, 8, 128))
    (angles,) = random((8192, 1, 64), dtype=torch.float32)
    angles = torch.cat((angles, angles), dim=-1)
    args = (*random(*shapes, dtype=dtype), angles.cos().to(dtype), angles.sin().to(dtype))
    arriving = random(*shapes, dtype=dtype) if with_gradients else ()
    return Problem("8192 tokens, 32 + 8 heads of 128", (*args, *arriving))


def next_tokens(dtype: torch.dtype) -> Problem:
    """Logits of a large vocabulary, their mean loss."""
    (logits,) = random((4096, 128256), dtype=dtype)
    targets = torch.randint(128256, (4096,), device="cuda")
    d_loss = torch.full((4096,), 1 / 4096, device="cuda")
    return Problem("4096 × 128256, with gradient", (logits, targets, d_loss, torch.zeros_like(d_loss)))


ROWS, WEIGHT, GATES, SCORES = (8192, 4096), (4096,), (8192, 14336), (16384, 8192)


def entries() -> Sequence[KernelEntry]:
    """Each kernel, then its gradients: forward and backward together."""
    return [*norm_entries(), *rope_entries(), *swiglu_entries(), *softmax_entries(), loss_entry()]


def norm_entries() -> list[KernelEntry]:
    """RMSNorm with and without the addition."""
    gradients, add_gradients = partial(gradients_of, inputs=2), partial(gradients_of, inputs=3)
    forward = partial(KernelEntry, builds=builds.norm_builds, all_builds=builds.all_norm_builds)
    backward = partial(KernelEntry, builds=builds.norm_gradient_builds, all_builds=builds.all_norm_gradient_builds)
    return [
        forward(
            "rms_norm",
            rms_norm,
            oracle=on_cpu(oracles.rms_norm),
            problems=problems.norm_problems_with_infinities,
            bound=bounds.norm_bound,
            vendor=torch_rms_norm,
            speed_problem=timed(ROWS, WEIGHT, eps=1e-5),
        ),
        forward(
            "add_rms_norm",
            add_rms_norm,
            oracle=on_cpu(oracles.add_rms_norm),
            problems=problems.add_norm_problems,
            bound=bounds.add_norm_bound,
            vendor=torch_add_rms_norm,
            speed_problem=timed(ROWS, ROWS, WEIGHT, eps=1e-5),
        ),
        backward(
            "rms_norm_gradients",
            gradients(rms_norm),
            oracle=on_cpu(gradients(oracles.rms_norm)),
            problems=with_gradients(problems.norm_problems, like=(0,)),
            bound=bounds.norm_gradient_bound,
            vendor=gradients(torch_rms_norm),
            speed_problem=timed(ROWS, WEIGHT, ROWS, eps=1e-5),
        ),
        backward(
            "add_rms_norm_gradients",
            add_gradients(add_rms_norm),
            oracle=on_cpu(add_gradients(oracles.add_rms_norm)),
            problems=with_gradients(problems.add_norm_problems, like=(0, 0)),
            bound=bounds.norm_gradient_bound,
            vendor=add_gradients(torch_add_rms_norm),
            speed_problem=timed(ROWS, ROWS, WEIGHT, ROWS, ROWS, eps=1e-5),
        ),
    ]


def rope_entries() -> list[KernelEntry]:
    """torch has no kernel for it: the vendor is the ten launches of eager torch."""
    gradients = partial(gradients_of, inputs=2, constants=2)
    entry = partial(KernelEntry, builds=builds.rope_builds, all_builds=builds.all_rope_builds)
    return [
        entry(
            "rope",
            rope,
            oracle=on_cpu(oracles.rope),
            problems=problems.rope_problems,
            bound=bounds.rope_bound,
            vendor=oracles.rope,
            speed_problem=heads_to_turn,
        ),
        entry(
            "rope_gradients",
            gradients(rope),
            oracle=on_cpu(gradients(oracles.rope)),
            problems=with_gradients(problems.rope_problems, like=(0, 1)),
            bound=bounds.rope_gradient_bound,
            vendor=gradients(oracles.rope),
            speed_problem=partial(heads_to_turn, with_gradients=True),
        ),
    ]


def swiglu_entries() -> list[KernelEntry]:
    """Beside eager torch: silu, then the product."""
    gradients, of_halves = partial(gradients_of, inputs=2), partial(gradients_of, inputs=1)
    entry = partial(KernelEntry, builds=builds.swiglu_builds, all_builds=builds.all_swiglu_builds)
    return [
        entry(
            "swiglu",
            swiglu,
            oracle=on_cpu(oracles.swiglu),
            problems=problems.swiglu_problems,
            bound=bounds.swiglu_bound,
            vendor=oracles.swiglu,
            speed_problem=timed(GATES, GATES),
        ),
        entry(
            "swiglu_gradients",
            gradients(swiglu),
            oracle=on_cpu(gradients(oracles.swiglu)),
            problems=with_gradients(problems.swiglu_problems, like=(0,)),
            bound=bounds.swiglu_gradient_bound,
            vendor=gradients(oracles.swiglu),
            speed_problem=timed(GATES, GATES, GATES),
        ),
        entry(
            "swiglu_halves",
            of_halves(swiglu_halves),
            oracle=on_cpu(of_halves(oracles.swiglu_halves)),
            problems=problems.swiglu_halves_problems,
            bound=bounds.swiglu_gradient_bound,
            vendor=of_halves(oracles.swiglu_halves),
            speed_problem=timed((8192, 2 * 14336), GATES),
        ),
    ]


def softmax_entries() -> list[KernelEntry]:
    """Beside torch's own, which is one kernel."""
    gradients = partial(gradients_of, inputs=1)
    entry = partial(KernelEntry, builds=builds.softmax_builds, all_builds=builds.all_softmax_builds)
    return [
        entry(
            "softmax",
            softmax,
            oracle=on_cpu(oracles.softmax),
            problems=problems.softmax_problems_with_infinities,
            bound=bounds.softmax_bound,
            vendor=torch_softmax,
            speed_problem=timed(SCORES),
        ),
        entry(
            "softmax_gradients",
            gradients(softmax),
            oracle=on_cpu(gradients(oracles.softmax)),
            problems=with_gradients(problems.softmax_problems, like=(0,)),
            bound=bounds.softmax_gradient_bound,
            vendor=gradients(torch_softmax),
            speed_problem=timed(SCORES, SCORES),
        ),
    ]


def loss_entry() -> KernelEntry:
    """Loss, lse and the gradient of the logits."""
    return KernelEntry(
        "cross_entropy",
        loss_and_gradient(cross_entropy),
        oracle=on_cpu(loss_and_gradient(oracles.cross_entropy)),
        problems=problems.loss_problems,
        bound=bounds.loss_bound,
        builds=builds.loss_builds,
        all_builds=builds.all_loss_builds,
        vendor=torch_loss_and_gradient,
        speed_problem=next_tokens,
    )
