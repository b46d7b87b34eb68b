"""Show the library's own source in a notebook."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import PurePath
from types import ModuleType
from typing import Any

from minillm.plots.display import in_notebook, publish


def source(obj: Callable[..., Any] | type | ModuleType, lines: tuple[int, int] | None = None) -> None:
    """Display the code of a function, class or module, highlighted; in a plain script, print it.

    lines  (first, last), counted from 1 at the object's first line (its first decorator), both shown; None shows all

    The first line displayed is a comment that names the file. Raises ValueError for lines that the object doesn't have.
    """
    code = source_text(obj, lines)
    if in_notebook():
        publish({"text/markdown": f"```python\n{code}\n```", "text/plain": code})
    else:
        print(code)


def source_text(obj: Callable[..., Any] | type | ModuleType, lines: tuple[int, int] | None = None) -> str:
    """What `source` displays, as text: the file's name in a comment, then the code without its common indent."""
    obj = inspect.unwrap(obj) if callable(obj) else obj
    parts = PurePath(inspect.getsourcefile(obj) or "").parts
    start = len(parts) - parts[::-1].index("minillm") - 1 if "minillm" in parts else -1
    where = "/".join(parts[start:])
    rows = inspect.cleandoc("\n" + inspect.getsource(obj)).splitlines()
    if lines is not None:
        first, last = lines
        if not 1 <= first <= last <= len(rows):
            raise ValueError(f"expected lines within 1 to {len(rows)} of {where}, got {first} to {last}")
        rows = inspect.cleandoc("\n" + "\n".join(rows[first - 1 : last])).splitlines()
    return "\n".join([f"# {where}", *rows])
