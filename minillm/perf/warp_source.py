"""A kernel's source made to run here: other values for its global names, barriers that a thread can wait at."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

Kernel = Callable[..., Any]


class _Names:
    """Stands for the module `numba.cuda` in a kernel's source until `simulate` or a compiler puts a real one there."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"cuda.{name} has a meaning only inside a kernel: run it with minillm.perf.warp.simulate")


cuda: Any = _Names()


def bind(kernel: Kernel, **names: Any) -> Kernel:
    """A copy of a kernel whose source sees other values for these global names: `bind(tiled, TILE=8)`."""
    copy = FunctionType(
        kernel.__code__, {**kernel.__globals__, **names}, kernel.__name__, kernel.__defaults__, kernel.__closure__
    )
    copy.__doc__ = kernel.__doc__
    return copy


class _BarriersYield(ast.NodeTransformer):
    """`cuda.syncthreads()` becomes `yield <line>`: a thread that can be left at its barrier and taken up again."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "cuda.syncthreads":
            return ast.copy_location(ast.Expr(ast.Yield(ast.Constant(node.lineno))), node)
        return node


def resumable(kernel: Kernel) -> tuple[CodeType, dict[str, Any]]:
    """The kernel's code with its barriers as `yield`, and the names that it sees. Lines keep their numbers."""
    function = getattr(kernel, "py_func", kernel)  # of a kernel that numba has decorated
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError) as error:
        raise ValueError(
            f"the source of the kernel {kernel!r} can't be read: define it with `def` in a file"
        ) from error
    tree = ast.parse(textwrap.dedent("".join(lines)))
    definition = tree.body[0]
    if not isinstance(definition, ast.FunctionDef):
        raise ValueError(f"expected a kernel defined with `def`, got {kernel!r}")
    definition.decorator_list.clear()
    ast.increment_lineno(tree, first - 1)
    tree = ast.fix_missing_locations(_BarriersYield().visit(tree))
    names = dict(function.__globals__)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        names[name] = cell.cell_contents  # what a factory gave the kernel
    module = compile(tree, function.__code__.co_filename, "exec", dont_inherit=True)
    return next(constant for constant in module.co_consts if isinstance(constant, CodeType)), names
