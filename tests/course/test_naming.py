"""Summaries of values, records of calls, and the choice of a mistake."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from minillm.grading.fingerprint import distance, summarize
from minillm.grading.guard import Guard
from minillm.grading.naming import Name, explain, records_distance
from minillm.grading.problems import Forbidden, TooLarge
from minillm.grading.recorder import Recorder
from minillm.grading.target import Target
from minillm.grading.task import Task


@dataclass
class Point:
    x: float
    y: float


x = torch.linspace(-1, 1, 12).reshape(3, 4)
SAME = [
    (x, x.clone()),
    (x, (x.double() * (1 + 1e-6)).float()),
    (x, x.T.contiguous().T),
    (torch.tensor([math.nan, 1.0]), torch.tensor([math.nan, 1.0])),
    (math.nan, math.nan),
    (math.inf, math.inf),
    (3, 3.0),
    (torch.tensor(2.5), 2.5),
    (np.arange(3), torch.arange(3)),
    ((1, 2), [1, 2]),
    ({"b": 1, "a": x}, {"a": x, "b": 1}),
    ({3, 1, 2}, {1, 2, 3}),
    (list(range(100)), tuple(range(100))),
    (Point(1, 2), Point(1, 2)),
    (x.bfloat16(), (x * 1.001).bfloat16()),
    (None, None),
]
DIFFERENT = [
    (x, x.T),
    (x, x.double()),
    (x, x.flip(0)),
    (x, x * 1.001),
    (x, x + torch.eye(3, 4) * 1e-2),
    (torch.tensor([math.nan, 1.0]), torch.tensor([1.0, math.nan])),
    (torch.tensor([math.inf, 1.0]), torch.tensor([-math.inf, 1.0])),
    (math.nan, 0.0),
    (math.inf, -math.inf),
    (3, 4),
    (True, 1),
    ("a", "b"),
    ([1, 2], [2, 1]),
    (list(range(100)), [1, 0, *range(2, 100)]),
    ({"a": 1}, {"b": 1}),
    (Point(1, 2), Point(2, 1)),
    (None, 0),
    (x, None),
    (x.bool(), ~x.bool()),
    (torch.arange(5), torch.arange(5).flip(0)),
]


@pytest.mark.parametrize(("a", "b"), SAME, ids=repr)
def test_equal_but_for_rounding(a, b) -> None:
    assert distance(summarize(a), summarize(b)) <= 1


@pytest.mark.parametrize(("a", "b"), DIFFERENT, ids=repr)
def test_different(a, b) -> None:
    assert distance(summarize(a), summarize(b)) > 1
    assert distance(summarize(b), summarize(a)) > 1


def test_a_summary_doesnt_disturb_the_random_numbers_or_the_value() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    value = torch.zeros(999, requires_grad=True)
    summarize(value)
    assert torch.equal(torch.rand(3), expected) and value._version == 0


# ---- recording

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


def record(value: object, call: str = "f") -> dict:
    return {"call": call, "changed": [], "output": summarize(value)}


def names(records: list, reference: list, **candidates: list) -> list[str]:
    made = [(Name("t", name, ""), entries) for name, entries in candidates.items()]
    return [name.name for name in explain(records, reference, made)]


def test_the_mistake_with_the_same_records_is_named() -> None:
    student, reference = [record(x * 2)], [record(x)]
    assert names(student, reference, a=[record(x * 2)], b=[record(x * 3)], c=[record(x)]) == ["a"]
    assert names(student, reference, b=[record(x * 3)]) == []


def test_a_result_like_the_references_is_no_mistake() -> None:
    assert names([record(x)], [record(x)], a=[record(x)]) == []
    assert names([record(x * 1.00001)], [record(x)], a=[record(x)]) == []


def test_a_small_deviation_needs_a_mistake_that_explains_it() -> None:
    """An eps of 1e-5 for 1e-6 is smaller than what rounding may do to other results."""
    student, reference = [record(x * 1.00002)], [record(x)]
    assert names(student, reference, eps=[record(x * 1.000020001)], other=[record(x * 0.99998)]) == ["eps"]


def test_the_kind_of_exception_and_the_number_of_calls_count() -> None:
    key, value = ({"call": "f", "changed": [], "raised": error} for error in ("KeyError", "ValueError"))
    assert names([key], [record(1)], a=[value], b=[key], c=[key, key]) == ["b"]
    assert records_distance([key], [key, key]) == math.inf
    assert records_distance([record(1, "f")], [record(1, "g")]) == math.inf


def test_nan_is_equal_to_nan() -> None:
    assert names([record(math.nan)], [record(0.0)], a=[record(math.nan)], b=[record(1.0)]) == ["a"]


def test_a_copy_for_a_view_is_named_though_its_values_are_right() -> None:
    view, copy = {**record(x), "shares": [True]}, {**record(x), "shares": [False]}
    assert names([copy], [view], a=[{**record(x * 2), "shares": [False]}], b=[copy], c=[view]) == ["b"]
    wrong = {**record(x * 2), "shares": [False]}
    assert names([wrong], [view], a=[{**wrong, "shares": [True]}]) == ["a"], "views or copies: the values decide first"


def test_views_of_arguments_and_of_what_objects_hold_are_told_from_copies() -> None:
    module, recorder, _ = load()
    held = module.Holder(torch.zeros(3, 3))
    held.row(), held.copy(), module.rows(torch.ones(2, 2)), module.outer(torch.ones(2))
    assert [record.get("shares") for record in recorder.records] == [[], [True], [False], [True], [False]]


def test_the_modules_loaded_are_found_by_pickle_and_dataclasses() -> None:
    module, _, _ = load()
    assert sys.modules["recorded_module"] is module
