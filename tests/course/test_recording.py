"""What is recorded of a student's calls, and what is refused while they run."""

from __future__ import annotations

import sys

import pytest
import torch

from minillm.grading.guard import Guard
from minillm.grading.problems import Forbidden, TooLarge
from minillm.grading.recorder import Recorder
from minillm.grading.target import Target
from minillm.grading.task import Task

x = torch.linspace(-1, 1, 12).reshape(3, 4)
SOURCE = """
import functools, torch
from dataclasses import dataclass

def outer(x):
    return inner(x) + 1

def inner(x):
    return 2 * x

def naturals():
    number = 0
    while True:
        received = yield number
        number += 1 if received is None else received

def fill(x, log):
    x[:1] = 7
    log.append("filled")

def fail(x):
    raise KeyError(x)

def scaler(factor):
    def scale(x):
        return factor * x
    return scale

@functools.lru_cache
def cached(x):
    return x

@dataclass
class Box:
    size: int

    @property
    def double(self):
        return 2 * self.size

    @classmethod
    def of(cls, size):
        return cls(size)

    def __call__(self, x):
        return self.grow(x)

    def grow(self, x):
        return x + self.size

class Holder:
    def __init__(self, x):
        self.rows = [x]

    def row(self):
        return self.rows[0][1]

    def copy(self):
        return self.rows[0].clone()

class Net(torch.nn.Module):
    def forward(self, x):
        return 3 * x

def softmax(x):
    return torch.softmax(x, 0)

def large(x):
    return (x[:, None] * x[None]).sum()

def wide(x):
    return x.expand(50, len(x))

def view(x):
    return x.T.reshape(-1)

def rows(x):
    return x.T[:].T

def calls(callback):
    return callback()

def lazily(x):
    for row in x:
        yield torch.softmax(row, 0)
"""


def load(task: Task | None = None):
    guard = Guard(task, __file__)
    recorder = Recorder(guard)
    module = Target("it.py", SOURCE, "<it>").load("recorded_module")
    recorder.attach(module)
    return module, recorder, guard


def test_only_calls_from_outside_are_recorded() -> None:
    module, recorder, _ = load()
    assert module.outer(3) == 7
    assert recorder.records == [{"call": "outer", "changed": [], "output": {"number": 7}, "shares": []}]


def test_an_endless_generator_is_recorded_as_far_as_it_is_read() -> None:
    module, recorder, _ = load()
    numbers = module.naturals()
    assert [next(numbers), next(numbers), numbers.send(5)] == [0, 1, 6]
    numbers.close()
    assert recorder.records[0]["items"] == [{"number": 0}, {"number": 1}, {"number": 6}]


def test_changes_of_arguments_and_exceptions_are_recorded() -> None:
    module, recorder, _ = load()
    module.fill(torch.zeros(3), log=[])
    with pytest.raises(KeyError):
        module.fail(1)
    filled, failed = recorder.records
    assert len(filled["changed"]) == 2 and filled["output"] is None
    assert failed["raised"] == "KeyError" and failed["changed"] == [] and "output" not in failed


def test_classes_closures_and_decorated_functions_are_recorded() -> None:
    module, recorder, _ = load()
    box = module.Box.of(2)
    assert (box(1), box.double, module.scaler(3)(2), module.cached(4)) == (3, 4, 6, 4)
    assert module.Net()(torch.ones(2)).tolist() == [3, 3]
    assert isinstance(box, module.Box)
    calls = [record["call"] for record in recorder.records]
    assert calls == ["Box.of", "Box.__call__", "scaler", "scaler()", "cached", "Net.forward"]


# ---- guarding


def test_a_forbidden_function_is_refused_to_the_student_and_not_to_the_test() -> None:
    module, recorder, guard = load(Task("softmax", forbids=("torch.softmax", "torch.nn.RMSNorm")))
    softmax = torch.softmax
    with guard.installed():
        assert torch.softmax(x, 0).shape == x.shape
        assert torch.nn.RMSNorm(3) is not None
        with pytest.raises(Forbidden, match="softmax may not use torch.softmax"):
            module.softmax(x)
        with pytest.raises(Forbidden):
            list(module.lazily(x))
        assert module.calls(lambda: torch.softmax(x, 0)).shape == x.shape
        with pytest.raises(Forbidden, match="RMSNorm"):
            module.calls(torch.nn.RMSNorm.__init__.__get__(object()))
    assert torch.softmax is softmax and torch.nn.RMSNorm(3) is not None
    assert recorder.records[0]["raised"] == "Forbidden"


def test_a_forbidden_method_and_a_forbidden_module() -> None:
    backward = vars(torch.Tensor)["backward"]
    _, _, guard = load(Task("t", forbids=("torch.Tensor.backward", "minillm.attention.naive")))
    from minillm import attention

    naive = attention.naive_attention
    with guard.installed():
        assert torch.Tensor.backward is not backward and attention.naive_attention is not naive
    assert torch.Tensor.backward is backward and attention.naive_attention is naive


def test_large_tensors_are_refused_and_views_of_the_inputs_are_not() -> None:
    module, _, _ = load(Task("large", max_elements=100))
    few, many = torch.ones(10), torch.ones(20, 20)
    assert module.large(few) == 100
    for function in (module.large, module.wide):
        with pytest.raises(TooLarge, match="at most 100"):
            function(torch.ones(11))
    assert torch.ones(200).sum() == 200, "the test itself may make any tensor"
    assert module.rows(many).shape == (20, 20)
    with pytest.raises(TooLarge):
        module.view(many)  # a copy


# ---- naming


def test_views_of_arguments_and_of_what_objects_hold_are_told_from_copies() -> None:
    module, recorder, _ = load()
    held = module.Holder(torch.zeros(3, 3))
    held.row(), held.copy(), module.rows(torch.ones(2, 2)), module.outer(torch.ones(2))
    assert [record.get("shares") for record in recorder.records] == [[], [True], [False], [True], [False]]


def test_the_modules_loaded_are_found_by_pickle_and_dataclasses() -> None:
    module, _, _ = load()
    assert sys.modules["recorded_module"] is module
