"""Records what the functions and classes of a module return, raise and change, call by call.

Only calls from outside are recorded: how a student's functions call one another is their own business.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from enum import Enum
from types import FunctionType, GeneratorType, ModuleType
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from minillm.grading.fingerprint import Summary, summarize
from minillm.grading.guard import Guard

Record = dict[str, Summary]  # one call: its name, and what came of it

# Methods with underscores that a test calls by way of Python's syntax.
SYNTAX_METHODS = {"__init__", "__call__", "__getitem__", "__setitem__", "__len__", "__iter__", "__next__"}
SYNTAX_METHODS |= {"__contains__", "__enter__", "__exit__"}
_LAZY: tuple[Any, ...] = (GeneratorType, map, filter, zip, enumerate)
_LAZY += tuple(kind for kind in vars(itertools).values() if isinstance(kind, type))
SMALL = 1 << 20  # elements: arguments up to this size are compared before and after a call


class Recorder:
    """`attach(module)` wraps what the module defines; `records` grows while a test runs."""

    def __init__(self, guard: Guard) -> None:
        self.records: list[Record] = []
        self.guard = guard

    def attach(self, module: ModuleType) -> None:
        """Wrap the functions and classes that were defined in the module, in place."""
        for name, value in list(vars(module).items()):
            if isinstance(value, type):
                if value.__module__ == module.__name__ and not issubclass(value, Enum):
                    self._attach_class(value, module)
            elif _is_own(value, module):
                setattr(module, name, self._wrap(value, name, module))

    def _attach_class(self, cls: type, module: ModuleType) -> None:
        for name, value in list(vars(cls).items()):
            if name.startswith("_") and name not in SYNTAX_METHODS:
                continue
            inner = value.__func__ if isinstance(value, staticmethod | classmethod) else value
            if _is_own(inner, module):
                wrapped: Any = self._wrap(inner, f"{cls.__name__}.{name}", module)
                setattr(cls, name, type(value)(wrapped) if inner is not value else wrapped)

    def _wrap(self, function: Callable[..., Any], name: str, module: ModuleType) -> Callable[..., Any]:
        @functools.wraps(function)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if self.guard.is_running:
                return function(*args, **kwargs)
            record: Record = {"call": name}
            self.records.append(record)
            before = _Inputs(args, kwargs)
            try:
                with self._running(before.values):
                    result = function(*args, **kwargs)
            except BaseException as error:
                record["raised"] = type(error).__name__
                raise
            finally:
                record["changed"] = before.changes()
            return self._note(result, record, before, module)

        return recorded

    def _note(self, result: Any, record: Record, before: _Inputs, module: ModuleType) -> Any:
        """Put the result into its record. What does its work later is wrapped, so that it is recorded then."""
        if isinstance(result, _LAZY):
            items: list[Summary] = []
            record["items"] = items
            return self._follow(result, items, record)
        if isinstance(result, FunctionType) and _is_own(result, module):
            record["output"] = {"type": "function"}
            return self._wrap(result, f"{record['call']}()", module)
        record["output"] = summarize(result)
        record["shares"] = before.shared(result)
        return result

    def _follow(self, source: Iterator[Any], items: list[Summary], record: Record) -> Generator[Any, Any, Any]:
        """Hand on what a generator yields, recording as much of it as the test asks for."""
        __tracebackhide__ = True
        step: Callable[[], Any] = functools.partial(next, source)
        while True:
            try:
                with self._running(()):
                    item = step()
            except StopIteration as stop:
                record["output"] = summarize(stop.value)
                return stop.value
            except BaseException as error:
                record["raised"] = type(error).__name__
                raise
            items.append(summarize(item))
            try:
                sent = yield item
                send = getattr(source, "send", None)
                step = functools.partial(send, sent) if send and sent is not None else functools.partial(next, source)
            except GeneratorExit:
                if isinstance(source, GeneratorType):
                    with self._running(()):
                        source.close()
                raise
            except BaseException as error:
                if not isinstance(source, GeneratorType):
                    raise
                step = functools.partial(source.throw, error)

    @contextmanager
    def _running(self, inputs: object) -> Iterator[None]:
        was_running = self.guard.is_running
        self.guard.is_running = True
        try:
            with self.guard.limit(inputs):
                yield
        finally:
            self.guard.is_running = was_running


def _is_own(value: object, module: ModuleType) -> bool:
    """Whether a function, decorated or not, was defined in the module."""
    if isinstance(value, type) or not callable(value):
        return False
    return getattr(inspect.unwrap(value), "__globals__", None) is vars(module)


class _Inputs:
    """The arguments of a call, to see afterwards which of them it changed."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.values = (args, kwargs)
        self.tensors = [leaf for leaf in tree_leaves(self.values) if isinstance(leaf, torch.Tensor)]
        self.versions = [_version(tensor) for tensor in self.tensors]
        self.copies = [tensor.detach().clone() if tensor.numel() <= SMALL else None for tensor in self.tensors]
        self.containers = [value for value in (*args, *kwargs.values()) if isinstance(value, list | dict | set)]
        self.summaries = [summarize(container) for container in self.containers]

    def shared(self, result: object) -> list[bool]:
        """For each tensor of the result, whether it is a view of an argument or of what an argument holds."""
        held = [vars(value) for value in self.values[0] if hasattr(value, "__dict__")]
        tensors = [*self.tensors, *(leaf for leaf in tree_leaves(held) if isinstance(leaf, torch.Tensor))]
        storages = {_storage(tensor) for tensor in tensors}
        return [_storage(leaf) in storages for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]

    def changes(self) -> list[Summary]:
        """[position, summary] of each tensor and container that is not as before."""
        changed: list[Summary] = []
        for index, tensor in enumerate(self.tensors):
            copy, version = self.copies[index], self.versions[index]
            if (copy is not None and not _equal(copy, tensor)) or (copy is None and _version(tensor) != version):
                changed.append({"list": [{"number": index}, summarize(tensor)]})
        for index, container in enumerate(self.containers):
            if (after := summarize(container)) != self.summaries[index]:
                changed.append({"list": [{"number": -1 - index}, after]})
        return changed


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _equal(before: torch.Tensor, after: torch.Tensor) -> bool:
    if before.shape != after.shape or before.dtype != after.dtype:
        return False
    with torch.no_grad():
        return bool(((before == after) | ((before != before) & (after != after))).all())
