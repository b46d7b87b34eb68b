"""A graph on the CPU: what capturing a step means, in a hundred lines.

`Tape` runs a step once under a `TorchDispatchMode`, which sees every operation that reaches torch together with the
very tensors that it reads and writes. A replay does the same arithmetic on the same memory, and nothing else: no model,
no Python but a loop. A CUDA graph records launches the same way, and the same rules follow:

    inputs are addresses         copy new values into the captured tensor; a new tensor is not looked at
    Python ran once              numbers, lengths, branches are what they were at capture
    nothing may come back        a number of the device can't decide what Python does next: `CaptureError`
    memory stays                 intermediates live as long as the graph, in a pool of its own
    warm up first                what happens only the first time would be recorded for every time

Views cost nothing at replay: they name memory that is there already. Kinder than the original, a tape keeps whatever it
reads alive; a CUDA graph keeps its pool only, and reads a freed input all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CaptureError(RuntimeError):
    """A step does what a graph can't hold."""


class Tape:
    """A step that takes no arguments and returns tensors, recorded on the CPU.

    output       what the step returned; a replay overwrites it
    num_ops      operations of a replay
    num_views    operations of the step that only named memory, and are not repeated
    pool_bytes   memory that the capture allocated and the tape keeps
    """

    def __init__(self, step: Callable[[], Any], *, num_warmups: int = 2) -> None:
        """Run `step` num_warmups times, then once more and record it.

        Raises CaptureError when it asks for a number from a tensor (`item`, `if tensor`), for a shape that depends on
        numbers (`nonzero`, a boolean index), when it makes a tensor of Python numbers, or hands memory to code that
        torch doesn't see (NumPy, numba).
        """
        for _ in range(num_warmups):
            step()
        recorder = _Recorder()
        with _HandsOff(), recorder:
            self.output = step()
        self._ops = recorder.ops
        self.num_views = recorder.num_views
        self.pool_bytes = sum(recorder.pool.values())

    @property
    def num_ops(self) -> int:
        return len(self._ops)

    @torch.inference_mode()
    def replay(self) -> Any:
        """Repeat the operations on the captured memory; returns `output`."""
        for op in self._ops:
            op()
        return self.output


class _Recorder(TorchDispatchMode):
    """Lists each operation as a call without arguments that repeats it in place."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Callable[[], object]] = []
        self.num_views = 0
        self.pool: dict[int, int] = {}  # address -> bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (outputs := decomposed(self, func, args, kwargs)) is not NotImplemented:
            return outputs
        if reason := refusal(func, args):
            raise CaptureError(f"{func} can't be captured: {reason}")
        outputs = func(*args, **kwargs)
        if names_memory_only(func, (args, kwargs), outputs):
            self.num_views += 1
        elif func._schema.is_mutable:
            self.ops.append(partial(func, *args, **kwargs))
        else:
            self.ops.append(_into(outputs, func, args, kwargs))
            self.pool |= {_address(tensor): tensor.untyped_storage().nbytes() for tensor in _tensors(outputs)}
        return outputs


class _HandsOff(TorchFunctionMode):
    """Refuses the ways around the dispatcher: what reads or writes a tensor's memory there leaves no operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in {"tolist", "numpy", "data_ptr", "__array__", "__dlpack__"}:
            raise CaptureError(f"Tensor.{name} can't be captured: what is done with the memory is not seen by torch")
        return func(*args, **(kwargs or {}))


def decomposed(mode: TorchDispatchMode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a function that is made of other operations, and show `mode` those; NotImplemented if `func` isn't.

    Under inference_mode torch would show `linear` or `where(condition)` whole, and what happens inside not at all.
    """
    with mode:
        return func.decompose(*args, **kwargs)


def names_memory_only(func: Any, inputs: Any, outputs: Any) -> bool:
    """Whether an operation (an `OpOverload`) wrote nothing: a view, or something that isn't a tensor.

    A function like `reshape` gives a view when it can. With the same strides it can each time.
    """
    if func._schema.is_mutable:
        return False
    known = {_address(tensor) for tensor in _tensors(inputs)}
    return all(_address(tensor) in known for tensor in _tensors(outputs))


def refusal(func: Any, args: tuple[Any, ...]) -> str | None:
    """Why an operation (an `OpOverload`) can't be part of a graph; None if it can."""
    name = func.overloadpacket.__name__
    if torch.Tag.data_dependent_output in func.tags:
        return "it hands a number to Python, which runs at capture only. Keep it in a tensor (masks, torch.where)"
    if name in {"index", "index_put", "index_put_"}:  # data-dependent with boolean indices only
        if all(index.dtype not in (torch.bool, torch.uint8) for index in _tensors(args[1])):
            return None
        return "how many elements a boolean index names is known only when it runs. Use masked_fill or torch.where"
    if torch.Tag.dynamic_output_shape in func.tags:
        return "the shape of its result depends on numbers, and a graph's shapes are fixed"
    if name == "lift_fresh":
        return "it makes a tensor of Python numbers: fill one that exists, before the step"
    return None


def _into(outputs: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], object]:
    """A call that computes `func` again, into the memory of `outputs`."""
    if isinstance(outputs, Tensor):
        if (variant := _out_variant(func)) is not None:
            return partial(variant, *args, **kwargs, out=outputs)
        return lambda: outputs.copy_(func(*args, **kwargs))

    captured = list(_tensors(outputs))

    def recompute() -> None:
        for old, new in zip(captured, _tensors(func(*args, **kwargs)), strict=True):
            old.copy_(new)

    return recompute


def _out_variant(func: Any) -> Any | None:
    """The overload of an operation that writes its one result into a tensor `out`, where there is one."""

    def parameters(overload: Any) -> list[tuple[str, str]]:
        return [(a.name, str(a.type)) for a in overload._schema.arguments if not a.is_out]

    packet = func.overloadpacket
    for overload in (getattr(packet, name) for name in packet.overloads()):
        if [a.name for a in overload._schema.arguments if a.is_out] == ["out"]:
            if parameters(overload) == parameters(func):
                return overload
    return None


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
