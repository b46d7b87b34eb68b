"""What the author of a chapter's tests writes: tasks, and the tests that earn points for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
MARK = "graded_as"  # attribute of a test function: its Graded


@dataclass(frozen=True)
class Task:
    """One thing to write in a chapter: a function or a class of the student's file.

    `hints` are (mild, strong). `forbids` names library functions, classes or modules (dotted) that would be the
    answer: calling one from the student's code fails with a clear message. `seconds` limits each of its tests.
    `max_elements` rejects any tensor with more elements that the student's code makes.
    """

    name: str
    hints: tuple[str, str] = ("", "")
    forbids: tuple[str, ...] = ()
    seconds: float = 10
    max_elements: int | None = None

    def __post_init__(self) -> None:
        for field in ("hints", "forbids"):
            if isinstance(getattr(self, field), str):
                raise TypeError(f"Task {self.name!r}: {field} must be a tuple of strings, not one string")


@dataclass(frozen=True)
class Graded:
    task: Task
    points: float


def graded(task: Task, points: float = 1) -> Callable[[Function], Function]:
    """Decorate a test that earns `points` for `task`; the cases of a parametrised test share them equally."""

    def mark(function: Function) -> Function:
        setattr(function, MARK, Graded(task, points))
        return function

    return mark


def graded_of(function: object) -> Graded | None:
    """What a test earns, None for a test that isn't graded."""
    return getattr(function, MARK, None)
