"""Whether a model still is the one that was captured: a graph holds addresses, and reads them whatever they hold."""

from __future__ import annotations

from torch import nn


class ModelWatch:
    """Remembers the modules of a model, its parameters and buffers, and where their memory lies.

    In-place writes are no change: a replay reads the new numbers. Costs about 0.1 µs for each of them a check.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places = [
            (holder, name, value)
            for module in model.modules()
            for holder in (module._modules, module._parameters, module._buffers)
            for name, value in holder.items()
        ]
        tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
        self._addresses = [(tensor, tensor.data_ptr()) for tensor in tensors]
        self._names = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}

    def check(self) -> None:
        """Raise RuntimeError if a module, parameter or buffer was replaced or moved."""
        for holder, name, value in self._places:
            if holder.get(name) is not value:
                raise RuntimeError(f"the model's {name!r} was replaced after the capture; {_ADVICE}")
        for tensor, address in self._addresses:
            if tensor.data_ptr() != address:
                raise RuntimeError(f"the model's {self._names[id(tensor)]!r} was moved after the capture; {_ADVICE}")


_ADVICE = "a graph would read the old memory: make a new GraphDecoder"
