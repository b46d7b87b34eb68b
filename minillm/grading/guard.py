"""What the student's code may not do while it is graded: call the answer, or make tensors that are too large."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minillm.grading.problems import CourseError, Forbidden, TooLarge
from minillm.grading.task import Task

MISSING = object()
RECORDER_FILE = str(Path(__file__).with_name("recorder.py"))  # its frames lie between the test and the student's code


class Guard:
    """Watches the calls of one test of `task`; `test_file` is the file name that the test's own frames carry."""

    def __init__(self, task: Task | None, test_file: str) -> None:
        self.task = task
        self.test_file = test_file
        self.is_running = False  # whether the student's code runs

    def limit(self, inputs: object) -> AbstractContextManager[object]:
        """While entered, tensors that are larger than the task allows raise TooLarge."""
        if self.task is None or self.task.max_elements is None:
            return nullcontext()
        return SizeLimit(self.task, inputs)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While entered, the forbidden names refuse calls from the student's code, wherever they were imported to."""
        with self.limit(()):
            torch.zeros(1)  # what torch loads on the first use of a limit isn't to be charged to the student's time
        with ExitStack() as stack:
            for name in self.task.forbids if self.task else ():
                for owner, key in [*forbidden_objects(name)]:
                    stack.enter_context(self._refuse(owner, key, name))
            yield

    @contextmanager
    def _refuse(self, owner: Any, key: str, name: str) -> Iterator[None]:
        original = getattr(owner, key)
        if isinstance(original, type):  # isinstance and inheritance must go on working: only making one is refused
            places: list[tuple[Any, str]] = [(original, "__init__")]
            original = vars(original).get("__init__", object.__init__)
        elif isinstance(owner, type):
            places = [(owner, key)]
        else:
            places = list(references(original))
        refusal = self._refusal(original, name)
        before = [(place, attribute, vars(place).get(attribute, MISSING)) for place, attribute in places]
        for place, attribute in places:
            setattr(place, attribute, refusal)
        try:
            yield
        finally:
            for place, attribute, value in before:
                if value is MISSING:
                    delattr(place, attribute)
                else:
                    setattr(place, attribute, value)

    def _refusal(self, original: Callable[..., Any], name: str) -> Callable[..., Any]:
        def refuse(*args: Any, **kwargs: Any) -> Any:
            if self.is_running and self._is_student(sys._getframe(1)):
                __tracebackhide__ = True
                task = self.task.name if self.task else ""
                raise Forbidden(f"{task} may not use {name}: that is what you are asked to write")
            return original(*args, **kwargs)

        functools.update_wrapper(refuse, original, updated=())
        return refuse

    def _is_student(self, frame: FrameType | None) -> bool:
        """Whether a call comes from the student's code and not from a function of the test that it was given."""
        while frame is not None and frame.f_code.co_filename != RECORDER_FILE:
            if frame.f_code.co_filename == self.test_file:
                return False
            frame = frame.f_back
        return True


def forbidden_objects(name: str) -> Iterator[tuple[Any, str]]:
    """(owner, attribute) of a dotted name; for a module, those of every function and class that it defines."""
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(parts[:split]))
            break
        except ModuleNotFoundError:
            continue
    else:
        raise CourseError(f"forbids: there is no {name!r}")
    if split == len(parts):
        for key, value in list(vars(owner).items()):
            if callable(value) and (getattr(value, "__module__", None) or "").startswith(name):
                yield owner, key
        return
    try:
        for part in parts[split:-1]:
            owner = getattr(owner, part)
        getattr(owner, parts[-1])
    except AttributeError:
        raise CourseError(f"forbids: there is no {name!r}") from None
    yield owner, parts[-1]


def references(target: object) -> Iterator[tuple[ModuleType, str]]:
    """Every module attribute that is this very object."""
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            for key, value in list(vars(module).items()):
                if value is target:
                    yield module, key


class SizeLimit(TorchDispatchMode):
    """Refuses results with more than `task.max_elements` elements; views of the inputs are free."""

    def __init__(self, task: Task, inputs: object) -> None:
        super().__init__()
        self.task = task
        tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
        self.inputs = {tensor.untyped_storage().data_ptr(): tensor.numel() for tensor in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        assert self.task.max_elements is not None
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.numel() > self.task.max_elements:
                if tensor.numel() <= self.inputs.get(tensor.untyped_storage().data_ptr(), 0):
                    continue
                shape = tuple(tensor.shape)
                raise TooLarge(
                    f"{self.task.name} made a tensor of {tensor.numel():,} elements, shape {shape}, in {func}; "
                    f"at most {self.task.max_elements:,} are allowed here"
                )
        return result
