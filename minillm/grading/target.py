"""The module under test: the student's file, the solution, a stub, or a mistake, loaded afresh for every test."""

from __future__ import annotations

import ast
import linecache
import sys
import tokenize
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from minillm.grading.problems import MissingName, Unusable


class StudentModule(ModuleType):
    """A module that says clearly what it lacks."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise MissingName(f"{self.__dict__['label']} has no {name!r}: was it renamed or deleted?")


@dataclass(frozen=True)
class Patch:
    """A definition that replaces one of the module's, and the names that it needs beside the module's own."""

    definition: ast.stmt
    filename: str
    names: dict[str, Any]


@dataclass(frozen=True)
class Target:
    """Source text that can be loaded. `label` is how messages call it, `filename` what tracebacks show."""

    label: str
    source: str
    filename: str
    patches: tuple[Patch, ...] = field(default=())

    def load(self, module_name: str) -> StudentModule:
        """Execute the source in a new module. Unusable, with file and line, if that fails."""
        module = StudentModule(module_name)
        module.__dict__.update(label=self.label, __file__=self.filename)
        sys.modules[module_name] = module  # dataclasses and pickle look their module up
        if not Path(self.filename).exists():
            linecache.cache[self.filename] = (len(self.source), None, self.source.splitlines(True), self.filename)
        try:
            code = compile(self.source, self.filename, "exec", dont_inherit=True)
            exec(code, module.__dict__)
            for patch in self.patches:
                for name, value in patch.names.items():
                    module.__dict__.setdefault(name, value)
                tree = ast.Module([patch.definition], [])
                exec(compile(tree, patch.filename, "exec", dont_inherit=True), module.__dict__)
        except SyntaxError as error:
            raise Unusable(self._syntax_message(error)) from None
        except Exception as error:
            raise Unusable(self._import_message(error)) from None
        return module

    def _syntax_message(self, error: SyntaxError) -> str:
        line = (error.text or "").rstrip("\n")
        pointer = " " * (error.offset - 1) + "^" if error.text and error.offset else ""
        return f"{self.label}, line {error.lineno}: {error.msg}\n    {line}\n    {pointer}".rstrip()

    def _import_message(self, error: Exception) -> str:
        lines = [entry for entry in traceback.extract_tb(error.__traceback__) if entry.filename == self.filename]
        place = f", line {lines[-1].lineno}" if lines else ""
        code = f"\n    {lines[-1].line}" if lines and lines[-1].line else ""
        return f"{self.label}{place}: the file can't be imported: {type(error).__name__}: {error}{code}"


def read_target(path: Path, label: str) -> Target:
    """The target of a file on disk. Unusable if it is missing or no text."""
    try:
        with tokenize.open(path) as file:  # honours a coding line; UTF-8 otherwise
            return Target(label, file.read(), str(path))
    except FileNotFoundError:
        raise Unusable(f"{label} is missing: `python3 tasks.py reset` with the chapter's number restores it") from None
    except (SyntaxError, UnicodeDecodeError) as error:
        raise Unusable(f"{label} is no UTF-8 text: {error}") from None
