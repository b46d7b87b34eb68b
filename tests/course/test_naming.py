"""Summaries of values, and the choice of the mistake that explains a record."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from minillm.grading.fingerprint import distance, summarize
from minillm.grading.naming import Name, explain, records_distance


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
