"""Counting what a step costs the host."""

from __future__ import annotations

import pytest
import torch

from minillm.generation import GraphDecoder, count_step
from minillm.generation.generate import last_logits, make_cache
from minillm.generation.graph_counts import StepCounts, count_launches
from tests.helpers import tiny_model


def called(depth: int) -> None:
    if depth:
        called(depth - 1)


def test_python_calls() -> None:
    few, many = (count_step(lambda depth=depth: called(depth)).python_calls for depth in (0, 10))
    assert many == few + 10


def test_operations_and_those_that_compute() -> None:
    x = torch.ones(4, 4)
    counts = count_step(lambda: x.T.reshape(2, 8).add_(1).view(-1)[3:] * 2)
    # t or transpose; reshape copies (clone) and views; add_; view; slice; mul
    assert counts.computing_ops == 3 and 6 <= counts.torch_ops <= 8
    assert count_step(lambda: None) == StepCounts(python_calls=1, torch_ops=0, computing_ops=0)
    linear = count_step(lambda: torch.nn.functional.linear(x, x))
    assert linear.computing_ops == 1  # one product; the transpose of the weight names memory


def test_a_replay_repeats_no_views_and_enters_no_module() -> None:
    model = tiny_model().requires_grad_(False)
    cache = make_cache(model, batch_size=1, max_seq_len=16)
    eager = count_step(lambda: last_logits(model, cache, [[3]]))
    decoder = GraphDecoder(model, 1, 16)
    replayed = count_step(lambda: decoder.step([3]))
    tape = decoder._graphs[1]
    assert eager.torch_ops > 1.2 * replayed.torch_ops
    assert replayed.python_calls < eager.python_calls
    assert tape.num_ops < replayed.computing_ops < tape.num_ops + 60  # the rest fills buffers, and copies results


def test_launches_need_a_gpu() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="CUDA"):
            count_launches(lambda: None)


def test_a_step_that_fails_leaves_no_profiler_behind() -> None:
    import sys

    before, runs = sys.getprofile(), []

    def fail_later() -> None:
        runs.append(1)
        if len(runs) > 1:
            raise ValueError("as planned")

    with pytest.raises(ValueError, match="as planned"):
        count_step(fail_later)
    assert sys.getprofile() is before
