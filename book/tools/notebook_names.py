"""Names that minillm exports, and whether a cell takes one of them for something else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from notebook_pairing import ROOT

NOT_THE_LIBRARY = {"plots", "grading", "bench", "cli"}


def redefined(source: str, exported: set[str]) -> list[str]:
    """Exported names that a cell binds at its top level to something else than the library's."""
    try:
        tree = ast.parse(re.sub(r"^\s*[%!].*$", "pass", source, flags=re.MULTILINE))
    except SyntaxError:
        return []  # the execution reports it
    return sorted({name for name in _bound(tree.body) if name in exported})


def _bound(body: list[ast.stmt]) -> Iterator[str]:
    """Names bound by statements of a cell, those in loops and conditions included, those in functions not."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement.name
            continue
        if isinstance(statement, ast.Import | ast.ImportFrom):
            ours = isinstance(statement, ast.ImportFrom) and (statement.module or "").split(".")[0] == "minillm"
            for alias in statement.names:
                name = alias.asname or alias.name.split(".")[0]
                if name != "minillm" and not (ours and name == alias.name):
                    yield name
            continue
        hidden: set[ast.AST] = set()
        for node in ast.walk(statement):  # breadth first: a scope is seen before what is in it
            if node in hidden:
                continue
            if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
                hidden.update(ast.walk(node))
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield node.name
                hidden.update(ast.walk(node))
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id


def exported_names(root: Path = ROOT) -> set[str]:
    """Public names of minillm, of its packages and of its single modules, read from the sources.

    The names of `plots` and of the tools around the library are left out: a variable may well be called `cells`.
    """
    package = root / "minillm"
    found: set[str] = set()
    for path in sorted(package.glob("*/__init__.py")):
        if path.parent.name not in NOT_THE_LIBRARY:
            found |= _imported_from_minillm(path)
    submodules = {path.stem for path in (*package.glob("*"), *package.glob("*/*.py"))}
    found -= submodules
    for path in sorted(package.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    found |= _imported_from_minillm(package / "__init__.py")
    return {name for name in found if not name.startswith("_")}


def _imported_from_minillm(path: Path) -> set[str]:
    imports = [
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)
    ]
    ours = [node for node in imports if (node.module or "").split(".")[0] == "minillm"]
    return {alias.asname or alias.name for node in ours for alias in node.names}
