"""The tape: what a replay repeats, and the rules of CUDA graphs that it shows."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.cache import ContiguousCache, StaticCache
from minillm.fast_linears import can_use_fast_linears, use_fast_linears
from minillm.generation import CaptureError, Tape, capture
from tests.helpers import tiny_model


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


# ---- what a replay does

OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda x, y: x + y,
    "matmul": lambda x, y: x @ y.mT,
    "linear": torch.nn.functional.linear,
    "view": lambda x, y: x.T,
    "slice": lambda x, y: x[1:, :2] * y[0, 0],
    "reshape that copies": lambda x, y: x.T.reshape(-1) @ y.flatten(),
    "chunks": lambda x, y: torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1) - y,
    "two results": lambda x, y: x.topk(2).values.sum() + y.max(dim=0).indices,
    "softmax": lambda x, y: (x * y).softmax(-1),
    "another dtype": lambda x, y: (x.bfloat16() * y.bfloat16()).float(),
    "int index": lambda x, y: x[torch.zeros_like(x[0], dtype=torch.long)],
    "where": lambda x, y: torch.where(x > y, x, y),
    "masked": lambda x, y: x.masked_fill(y > 0, -1.0),
    "embedding": lambda x, y: torch.nn.functional.embedding((x[0] > 0).long(), y),
    "arange": lambda x, y: x + torch.arange(4) + torch.zeros(4) + torch.full((4,), 2.0),
    "attention": lambda x, y: torch.nn.functional.scaled_dot_product_attention(x[None], y[None], y[None]),
    "split": lambda x, y: torch.stack(x.split(2, dim=1)) * y[0, 0],
    "no-op cast": lambda x, y: x.float().contiguous() + y,
}


@given(st.lists(st.sampled_from(sorted(OPS)), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_replay_computes_what_the_step_computes(names: list[str], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(4, 4, generator=generator) for _ in range(2))
    state = torch.zeros(4, 4)

    def step() -> list[Tensor]:
        state.mul_(0.5).add_(x)  # state outlives steps, as a cache does
        return [OPS[name](state, y) for name in names]

    with torch.inference_mode():
        tape = Tape(step)
        addresses = [tensor.data_ptr() for tensor in tape.output]
        for _ in range(3):
            x.copy_(torch.randn(4, 4, generator=generator))
            y.copy_(torch.randn(4, 4, generator=generator))
            before = state.clone()
            replayed = [tensor.clone() for tensor in tape.replay()]
            after = state.clone()
            state.copy_(before)
            for ours, eager in zip(replayed, step(), strict=True):
                torch.testing.assert_close(ours, eager, rtol=0, atol=0)
            assert torch.equal(after, state)
            state.copy_(after)
            assert [tensor.data_ptr() for tensor in tape.replay()] == addresses
            state.copy_(after)


def test_no_python_of_the_step_runs_at_a_replay() -> None:
    runs = []
    x = torch.ones(3)
    tape = Tape(lambda: (runs.append(1), x + 1)[1], num_warmups=2)
    assert len(runs) == 3
    for _ in range(5):
        tape.replay()
    assert len(runs) == 3
    assert len(Tape(lambda: (runs.append(1), x + 1)[1], num_warmups=0).output) == 3 and len(runs) == 4


def test_views_are_not_repeated() -> None:
    x = torch.ones(4, 6)
    tape = Tape(lambda: x.view(2, 12).transpose(0, 1)[3:].unsqueeze(0) * 2)
    assert (tape.num_ops, tape.num_views) == (1, 4)
    assert tape.pool_bytes == 9 * 2 * 4


def test_the_pool_is_what_the_capture_allocated() -> None:
    state, x = torch.zeros(4), torch.ones(4)
    assert Tape(lambda: state.add_(x)).pool_bytes == 0
    assert Tape(lambda: state.add_(x * 2)[1:] + 1).pool_bytes == (4 + 3) * 4


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_a_captured_step_of_several_tokens_serves_any_lengths_and_trees(data: st.DataObject) -> None:
    """The verification of drafts: one capture, then other lengths and other masks in the same buffers."""
    with torch.inference_mode():
        model = tiny_model().double().requires_grad_(False)
        ours = StaticCache(model.layer_specs, 2, max_seq_len=20, dtype=torch.float64)
        theirs = ContiguousCache(model.layer_specs, 2, max_seq_len=20, dtype=torch.float64)
        tokens, masked = torch.zeros(2, 3, dtype=torch.long), data.draw(st.booleans())
        everything = torch.ones(3, 3, dtype=torch.bool)
        attend = ours.begin([3, 3], mask=everything if masked else None)
        tape = Tape(lambda: model(tokens, attend.positions, attend))
        for step in range(4):
            lens = [3, data.draw(st.integers(0, 3))][:: data.draw(st.sampled_from([1, -1]))]
            bits = data.draw(st.lists(st.booleans(), min_size=18, max_size=18))
            mask = torch.tensor(bits).reshape(2, 3, 3) if masked else None
            tokens.copy_(torch.randint(0, 97, (2, 3), generator=torch.Generator().manual_seed(step)))
            ours.begin(lens, mask=mask)
            replayed, attend_there = tape.replay(), theirs.begin(lens, mask=mask)
            eager = model(tokens, attend_there.positions, attend_there)
            for row, query_len in enumerate(lens):
                torch.testing.assert_close(replayed[row, :query_len], eager[row, :query_len], rtol=0, atol=1e-12)
            keep = [sorted(data.draw(st.sets(st.integers(0, n - 1)))) if n else [] for n in lens]
            ours.commit(keep=keep)
            theirs.commit(keep=keep)


# ---- the rules


def test_an_input_is_an_address() -> None:
    inputs = {"x": torch.tensor([1.0, 2.0])}
    tape = capture(lambda: inputs["x"] * 10, "cpu")
    inputs["x"] = torch.tensor([5.0, 6.0])  # another tensor: the graph doesn't know it
    assert tape.replay().tolist() == [10.0, 20.0]
    first = Tape(lambda: inputs["x"] * 10)
    inputs["x"].copy_(torch.tensor([7.0, 8.0]))  # the same memory
    assert first.replay().tolist() == [70.0, 80.0]
    assert tape.replay().tolist() == [10.0, 20.0]


def test_the_output_is_memory_too() -> None:
    x = torch.ones(2)
    tape = Tape(lambda: x * 2)
    first = tape.replay()
    x.fill_(3.0)
    assert tape.replay() is first and first.tolist() == [6.0, 6.0]


def test_numbers_and_branches_are_frozen() -> None:
    x, host = torch.arange(4.0), {"length": 2, "negate": False}

    def step() -> Tensor:
        total = x[: host["length"]].sum() * host["length"]
        return -total if host["negate"] else total

    tape = Tape(step)
    host |= {"length": 4, "negate": True}
    assert tape.replay().item() == 2.0
    assert step().item() == -24.0


def test_a_contiguous_cache_freezes_its_lengths() -> None:
    """Why decoding needs another cache: slices with Python numbers write to the slot of the capture for ever."""
    model = tiny_model().requires_grad_(False)
    cache = ContiguousCache(model.layer_specs, 1, max_seq_len=16)
    tokens = torch.tensor([[5]])
    attend = cache.begin([1])
    tape = Tape(lambda: model(tokens, attend.positions, attend)[0, -1])
    torch.testing.assert_close(tape.replay(), model(torch.tensor([5]))[-1])
    cache.commit()
    tokens.fill_(6)
    cache.begin([1])
    wrong = tape.replay()
    assert (wrong - model(torch.tensor([5, 6]))[-1]).abs().max() > 0.01
    torch.testing.assert_close(wrong, model(torch.tensor([6]))[-1])
    assert all(slab[0, 1].abs().max() == 0 for slab in cache.k)  # nothing was written where it belongs
    with pytest.raises(CaptureError, match="Python numbers"):
        Tape(lambda: model(tokens, (again := cache.begin([1])).positions, again))


REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "item": (lambda x: x * x[0].item(), "hands a number to Python"),
    "float": (lambda x: x * float(x[0]), "hands a number to Python"),
    "if": (lambda x: x if x.sum() > 0 else -x, "hands a number to Python"),
    "tensor as bound": (lambda x: x[: (x > 0).sum()], "hands a number to Python"),
    "equal": (lambda x: torch.equal(x, x), "hands a number to Python"),
    "nonzero": (lambda x: x.nonzero(), "shape of its result"),
    "where with one argument": (lambda x: torch.where(x > 0), "shape of its result"),
    "unique": (lambda x: x.unique(), "shape of its result"),
    "masked_select": (lambda x: x.masked_select(x > 0), "shape of its result"),
    "boolean index": (lambda x: x[x > 0], "boolean index"),
    "boolean store": (lambda x: x.clone().__setitem__(x > 0, x[:1]), "boolean index"),
    "new tensor": (lambda x: x + torch.tensor([1.0, 2.0, 3.0]), "Python numbers"),
    "list index": (lambda x: x[[0, 2]], "Python numbers"),
    "tolist": (lambda x: x.tolist(), "Tensor.tolist"),
    "numpy": (lambda x: x.numpy(), "Tensor.numpy"),
    "pointer": (lambda x: x.data_ptr(), "Tensor.data_ptr"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_what_a_graph_cannot_hold(name: str, mode: Callable[[], Any]) -> None:
    step, reason = REFUSED[name]
    with torch.inference_mode(False), mode():
        x = torch.tensor([1.0, 2.0, 3.0])
        step(x)
        with pytest.raises(CaptureError, match=f"can't be captured.*{reason}|{reason} can't be captured"):
            Tape(lambda: step(x))
        assert Tape(lambda: x + 1).replay().tolist() == [2.0, 3.0, 4.0]  # nothing is left behind


@pytest.mark.skipif(not can_use_fast_linears(), reason="numba is not installed")
def test_kernels_outside_of_torch_are_refused_and_not_forgotten() -> None:
    model = use_fast_linears(tiny_model().requires_grad_(False))
    with pytest.raises(CaptureError, match="data_ptr"):
        Tape(lambda: model(torch.ones(1, dtype=torch.long)))


def test_warming_up_keeps_what_happens_once_off_the_tape() -> None:
    class Lazy:
        table: Tensor | None = None

        def __call__(self) -> Tensor:
            if self.table is None:
                self.table = torch.tensor([1.0, 2.0]).exp()  # made at the first use
            return x * self.table

    x = torch.ones(2)
    with pytest.raises(CaptureError):
        Tape(Lazy(), num_warmups=0)
    assert Tape(Lazy(), num_warmups=1).num_ops == 1


def test_the_tape_keeps_its_memory() -> None:
    x = torch.ones(1000)
    refs = []

    def step() -> Tensor:
        middle = x * 2
        refs.append(weakref.ref(middle))
        return middle + 1

    tape = Tape(step)
    gc.collect()
    assert [ref() is None for ref in refs] == [True, True, False]  # two warm-ups, then the capture
    assert tape.pool_bytes == 2 * 4000
    del tape
    gc.collect()
    assert refs[-1]() is None


def test_graphs_are_for_cpu_and_cuda() -> None:
    with pytest.raises(ValueError, match="'meta'"):
        capture(lambda: None, "meta")
