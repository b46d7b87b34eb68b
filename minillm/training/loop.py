"""The training loop.

One update: take `grad_accum` batches, sum the gradients of their mean loss, clip, step AdamW at the scheduled rate.
Everything else (saving, logging, evaluating) hangs on from outside, in `run.py`.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
import torch.nn.functional as F
from torch import nn

from minillm.attention.full import Attend
from minillm.training.config import TrainConfig
from minillm.training.data import IGNORED_TARGET, Rows, batch_at
from minillm.training.optim import learning_rate, set_learning_rate

Batch = tuple[torch.Tensor, torch.Tensor]
AttendFor = Callable[[torch.Tensor], Attend]
"""From the inputs of a batch, (batch, seq_len) int64, to the attend that serves it."""


class DivergedError(ValueError):
    """The loss or the gradient is no longer a finite number."""


@dataclass(frozen=True)
class StepReport:
    """What one update did. `step` counts finished updates; `loss` is in nats per target; `grad_norm` is before
    clipping.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    elapsed_s: float


def train(
    model: nn.Module,
    rows: Rows,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    *,
    first_step: int = 0,
    attend_for: AttendFor | None = None,
    after_step: Callable[[StepReport], bool] = lambda report: True,
) -> int:
    """Trains `model` in place from update `first_step` to `config.steps`; returns the number of updates done in all.

    `model(tokens, positions, attend) -> logits (..., vocab_size)` keeps float32 weights; `config.dtype` is the
    precision of the products. `attend_for=None` is the model's own attention over whole rows. `after_step` is called
    after every update and ends the run early by returning False. Raises `DivergedError` when the loss is no longer
    finite; the weights are then those before the failing update.
    """
    model.train()
    for step in range(first_step, config.steps):
        started = time.perf_counter()
        lr = learning_rate(step, config)
        set_learning_rate(optimizer, lr)
        loss = accumulate_gradients(model, batches_of_step(rows, step, config), config, attend_for)
        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            raise DivergedError(f"update {step}: loss {loss}, gradient norm {float(grad_norm)}; try a lower --lr")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not after_step(StepReport(step + 1, loss, lr, float(grad_norm), time.perf_counter() - started)):
            return step + 1
    return config.steps


def batches_of_step(rows: Rows, step: int, config: TrainConfig) -> list[Batch]:
    """The `grad_accum` batches of update `step`: a pure function of the step, so that resuming needs no reader
    state.
    """
    first_row = step * config.rows_per_step
    return [batch_at(rows, first_row + i * config.batch_size, config.batch_size) for i in range(config.grad_accum)]


def accumulate_gradients(
    model: nn.Module, batches: list[Batch], config: TrainConfig, attend_for: AttendFor | None = None
) -> float:
    """Adds the gradient of the mean loss over all targets of `batches` to `.grad`; returns it in nats per target.

    Each batch contributes its *summed* loss divided by the targets of all batches. A mean of the batches' means would
    weigh a target in a half-empty batch twice as much as one in a full batch.
    """
    device = torch.device(config.device)
    num_targets = sum(int((targets != IGNORED_TARGET).sum()) for _, targets in batches)
    total = 0.0
    for inputs, targets in batches:
        inputs = inputs.to(device)
        attend = None if attend_for is None else attend_for(inputs)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bf16"):
            logits = model(inputs, torch.arange(inputs.shape[-1], device=device), attend)
        loss = summed_cross_entropy(logits, targets.to(device)) / num_targets
        loss.backward()
        total += float(loss.detach())
    return total


def summed_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum of −log softmax(logits)[target] in nats over the targets that are not `IGNORED_TARGET`, in float32.

    bfloat16 has 8 bits of precision: near 10 its neighbours are 0.06 apart, which is too coarse for a log-sum-exp.
    `logits` (..., vocab_size), `targets` (...) int64.
    """
    logits = logits.float().flatten(0, -2)  # (num_targets, vocab_size)
    return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED_TARGET, reduction="sum")


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C (SIGINT) or SIGTERM into a question: yields a function that says whether one came.

    The update in progress then finishes and can be saved. A second Ctrl-C raises `KeyboardInterrupt` at once.
    Effect: replaces both signal handlers while the block runs. Main thread only, as Python demands.
    """
    requested = False

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True

    signals = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(each, handle) for each in signals]
    try:
        yield lambda: requested
    finally:
        for each, handler in zip(signals, previous, strict=True):
            signal.signal(each, handler)
