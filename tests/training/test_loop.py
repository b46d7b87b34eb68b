"""The loop against the same mathematics written out, and against itself interrupted."""

from __future__ import annotations

import os
import signal
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minillm.training.attend import BlockedAttend, document_starts
from minillm.training.data import IGNORED_TARGET, Rows, TokenFile
from minillm.training.loop import (
    DivergedError,
    StepReport,
    accumulate_gradients,
    stop_requests,
    summed_cross_entropy,
    train,
)
from minillm.training.optim import build_optimizer, learning_rate
from minillm.training.state import find_checkpoints, load_checkpoint, save_checkpoint
from tests.training.tiny import tiny_config, tiny_model


def make_rows() -> Rows:
    random = np.random.default_rng(0)
    lengths = random.integers(4, 30, size=200)
    offsets = np.array([0, *accumulate(lengths.tolist())])
    return Rows(TokenFile(random.integers(0, 40, size=offsets[-1]).astype(np.uint16), offsets), 17)


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.grad for parameter in model.parameters()]


def test_accumulation_weighs_every_target_the_same() -> None:
    """Two batches of very unequal padding give the gradient of one batch that holds both."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(40, (4, 16), generator=generator)
    targets = torch.randint(40, (4, 16), generator=generator)
    targets[2:, 3:] = IGNORED_TARGET
    split, whole, by_hand = (tiny_model().double() for _ in range(3))
    config = tiny_config()
    split_loss = accumulate_gradients(split, [(inputs[:2], targets[:2]), (inputs[2:], targets[2:])], config)
    whole_loss = accumulate_gradients(whole, [(inputs, targets)], config)
    log_probs = torch.log_softmax(by_hand(inputs), dim=-1)
    kept = targets != IGNORED_TARGET
    loss = -log_probs[kept].gather(1, targets[kept][:, None]).mean()
    loss.backward()
    assert [split_loss, whole_loss] == pytest.approx([loss.item(), loss.item()], rel=1e-6)
    for a, b, c in zip(gradients(split), gradients(whole), gradients(by_hand), strict=True):
        torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(b, c, rtol=1e-5, atol=1e-6)


def test_cross_entropy_is_float32() -> None:
    logits = torch.randn(3, 5, 40, generator=torch.Generator().manual_seed(1)).mul(20).bfloat16()
    targets = torch.randint(40, (3, 5), generator=torch.Generator().manual_seed(2))
    loss = summed_cross_entropy(logits, targets)
    expected = F.cross_entropy(logits.double().flatten(0, 1), targets.flatten(), reduction="sum")
    assert loss.dtype == torch.float32 and float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_updates_equal_a_plain_loop() -> None:
    """Clipping, schedule and decay, each large enough to matter, against torch's unfused AdamW."""
    rows = make_rows()
    config = tiny_config(steps=6, lr=0.02, grad_clip=0.5, weight_decay=0.4, grad_accum=2)
    ours, plain = tiny_model(), tiny_model()
    reports: list[StepReport] = []
    train(
        ours,
        rows,
        build_optimizer(ours, config),
        config,
        after_step=lambda report: reports.append(report) or True,
    )
    matrices = [p for p in plain.parameters() if p.ndim >= 2]
    vectors = [p for p in plain.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.4}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, foreach=False, fused=False)
    for step in range(6):
        tokens = torch.from_numpy(np.stack([rows[step * 6 + i] for i in range(6)]))
        loss = F.cross_entropy(plain(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in plain.parameters()))
        assert reports[step].loss == pytest.approx(loss.item(), rel=1e-4)
        assert reports[step].grad_norm == pytest.approx(float(norm), rel=1e-4) and float(norm) > 0.5
        for parameter in plain.parameters():
            parameter.grad *= 0.5 / norm
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        optimizer.step()
        optimizer.zero_grad()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_resumed_run_is_bit_identical(tmp_path: Path, dtype: str) -> None:
    rows = make_rows()
    config = tiny_config(dtype=dtype, grad_accum=2)
    attend_for = (lambda inputs: BlockedAttend(document_starts(inputs, 0), block_q=8)) if dtype == "bf16" else None
    straight = tiny_model()
    assert train(straight, rows, build_optimizer(straight, config), config, attend_for=attend_for) == 12

    first = tiny_model()
    optimizer = build_optimizer(first, config)
    assert train(first, rows, optimizer, config, attend_for=attend_for, after_step=lambda report: report.step < 5) == 5
    save_checkpoint(tmp_path, step=5, model=first, optimizer=optimizer, settings_hash="h")
    second = tiny_model(seed=99)
    optimizer = build_optimizer(second, config)
    (path,) = find_checkpoints(tmp_path)
    step = load_checkpoint(path, model=second, optimizer=optimizer, settings_hash="h")
    assert step == 5
    train(second, rows, optimizer, config, attend_for=attend_for, first_step=step)
    for (name, a), b in zip(straight.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(first.embed_tokens.weight, second.embed_tokens.weight)


def test_loss_falls_in_bf16() -> None:
    """Rows that repeat one sentence are learnt by heart."""
    sentence = np.arange(16, dtype=np.uint16)
    rows = Rows(TokenFile(np.tile(sentence, 400), np.arange(0, 6401, 16)), 17)
    losses: list[float] = []
    model = tiny_model()
    config = tiny_config(steps=40, dtype="bf16", lr=0.02)
    train(
        model,
        rows,
        build_optimizer(model, config),
        config,
        after_step=lambda report: losses.append(report.loss) or True,
    )
    assert losses[0] > 3 and losses[-1] < 0.5
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_divergence_is_reported_before_it_reaches_the_weights() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.norm.weight.fill_(float("inf"))
    before = model.embed_tokens.weight.clone()
    config = tiny_config()
    with pytest.raises(DivergedError, match="lower --lr"):
        train(model, make_rows(), build_optimizer(model, config), config)
    assert torch.equal(model.embed_tokens.weight, before)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_second_insists(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    with stop_requests() as stop_requested:
        assert not stop_requested()
        os.kill(os.getpid(), signum)
        assert stop_requested()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signum)
    assert signal.getsignal(signum) is before
