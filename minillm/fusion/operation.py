"""One name and one order of arguments for each operation of a graph, however its author wrote it.

TorchDynamo records what was called: `x * y`, `torch.mul(x, y)` and `x.mul(y)` are three different nodes, and so are
`x.mean(-1, True)` and `x.mean(dim=-1, keepdim=True)`. To compare graphs they have to read alike:

    operation(node)  ->  Operation("mul", (x, y)),  Operation("mean", (x, -1, True))

What writes into its operand (`add_`, `operator.iadd`) keeps a name of its own: it isn't the same operation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import fx

# Arguments after the tensor, with the values they have when they aren't given.
DEFAULTS: dict[str, tuple[tuple[str, Any], ...]] = {
    "cat": (("dim", 0),),
    "chunk": (("chunks", None), ("dim", 0)),
    "getitem": (("index", None),),
    "mean": (("dim", None), ("keepdim", False)),
    "silu": (("inplace", False),),
    "sum": (("dim", None), ("keepdim", False)),
    "to": (("dtype", None),),
}
ALIASES = {"concat": "cat", "concatenate": "cat", "multiply": "mul", "true_divide": "div", "truediv": "div"}
CASTS = {"float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16}
COMMUTATIVE = {"add", "mul"}
KINDS = {
    "matmul": {"linear", "matmul", "mm", "bmm", "addmm", "einsum", "baddbmm"},
    "attention": {"scaled_dot_product_attention", "minillm::attend"},
    "reduction": {"mean", "sum", "amax", "max", "softmax", "log_softmax", "rms_norm", "layer_norm", "argmax"},
    "elementwise": {
        *("add", "sub", "mul", "div", "neg", "pow", "square", "rsqrt", "sqrt", "exp", "log", "cos", "sin", "silu"),
        *("sigmoid", "tanh", "to", "masked_fill", "where", "addcmul", "clamp", "lt", "le", "gt", "ge", "eq", "and"),
    },
    "fused": {"minillm::rms_norm", "minillm::add_rms_norm", "minillm::swiglu", "minillm::rope"},
    "copy": {"cat", "contiguous", "clone", "stack", "embedding", "index_select", "setitem", "roll", "flatten"},
    "view": {
        *("view", "reshape", "unsqueeze", "squeeze", "unflatten", "transpose", "permute", "chunk", "split"),
        *("expand", "getitem", "t"),
    },
}


class Operation(NamedTuple):
    """What a node computes, in a form that compares."""

    name: str
    arguments: tuple[Any, ...]  # nodes and constants; lists are tuples, slices ("slice", start, stop, step)


def operation(node: fx.Node) -> Operation | None:
    """The operation of a node, or None for inputs and outputs of the graph."""
    if node.op not in ("call_function", "call_method", "call_module"):
        return None
    name = _name(node)
    arguments, named = [_plain(argument) for argument in node.args], dict(node.kwargs)
    if name in CASTS and len(arguments) == 1 and not named:
        return Operation("to", (arguments[0], CASTS[name]))
    if name == "pow" and arguments[1:] == [2] and not named:
        return Operation("square", (arguments[0],))
    if name in DEFAULTS:
        for position, (keyword, default) in enumerate(DEFAULTS[name], start=1):
            if position >= len(arguments):
                arguments.append(_plain(named.pop(keyword, default)))
            if keyword == "dim":
                arguments[position] = _from_the_end(arguments[0], arguments[position])
    arguments += sorted((key, _plain(value)) for key, value in named.items())
    return Operation(name, tuple(arguments))


def kind(node: fx.Node) -> str | None:
    """ "matmul", "attention", "reduction", "elementwise", "fused", "copy", "view" or "other"; None for no operation.

    A view costs a call and moves nothing, if torch can help it.
    """
    found = operation(node)
    if found is None:
        return None
    return next((kind for kind, names in KINDS.items() if found.name in names), "other")


def tensor_of(node: Any) -> Any:
    """The example of a node's value that the tracer left, a tensor without numbers; None where there is none."""
    meta = node.meta if isinstance(node, fx.Node) else {}
    return meta.get("example_value", meta.get("val"))


def _name(node: fx.Node) -> str:
    target = node.target
    if isinstance(target, str):
        if node.op == "call_module":
            return f"module {target}"
        name = target
    elif isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        name = str(target._schema.name if isinstance(target, torch._ops.OpOverload) else target._qualified_op_name)
        name = name.removeprefix("aten::")
    else:
        name = getattr(target, "__name__", str(target))
    if name.startswith("__") and name.endswith("__"):
        name = name.strip("_")
    return ALIASES.get(name, name)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, slice):
        return ("slice", *(_plain(part) for part in (value.start, value.stop, value.step)))
    return value


def _from_the_end(of: Any, dim: Any) -> Any:
    """An axis counted from the last one, -1, where the number of axes is known; (-1,) is -1."""
    if isinstance(dim, tuple) and len(dim) == 1:
        dim = dim[0]
    tensor = tensor_of(of[0] if isinstance(of, tuple) and of else of)
    if isinstance(dim, int) and dim >= 0 and isinstance(tensor, torch.Tensor):
        return dim - tensor.dim()
    return dim
