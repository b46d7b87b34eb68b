"""Named mistakes: the solution with one thing wrong, and the hint that whoever makes it deserves."""

from __future__ import annotations

import ast
import copy
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from minillm.grading.course import Chapter
from minillm.grading.problems import CourseError
from minillm.grading.target import Patch, Target

Definition = TypeVar("Definition")


@dataclass(frozen=True)
class Mistake:
    """A wrong version of `task`, ready to be loaded."""

    task: str
    name: str
    hint: str
    target: Target


@dataclass(frozen=True)
class _Note:
    """A call of `edited` or `mistake`, as the file of mistakes made it."""

    task: str
    name: str
    hint: str
    line: int
    where: str  # the definition to edit
    replace: Mapping[str, str] | None  # None: the definition below the line is the wrong version


_notes: list[_Note] = []  # of the file of mistakes that is being executed


def edited(where: str, name: str, *, replace: Mapping[str, str], hint: str, task: str | None = None) -> None:
    """A mistake as a textual edit of the solution: each key of `replace` must occur exactly once.

    Keys are looked for in the definition named `where` (its docstring left out) and, if not there, in the whole file.
    `task` is the task that loses the points, when it isn't named like the definition.
    """
    _notes.append(_Note(task or where, name, hint, sys._getframe(1).f_lineno, where, replace))


def mistake(task: str, name: str, *, hint: str) -> Callable[[Definition], Definition]:
    """A mistake as a full wrong version of a function or class; it sees the names of the solution."""
    _notes.append(_Note(task, name, hint, sys._getframe(1).f_lineno, "", None))
    return lambda definition: definition


def load_mistakes(chapter: Chapter) -> list[Mistake]:
    """The chapter's mistakes in the order of their file; none where there is no such file or no solution."""
    if not (chapter.mistakes.exists() and chapter.solution.exists()):
        return []
    source = chapter.mistakes.read_text(encoding="utf-8")
    filename = str(chapter.mistakes)
    tree = ast.parse(source, filename)
    names: dict[str, Any] = {"__name__": f"mistakes_{chapter.name}", "__file__": filename}
    _notes.clear()
    try:
        exec(compile(tree, filename, "exec", dont_inherit=True), names)
    except Exception as error:
        lines = [entry.lineno for entry in traceback.extract_tb(error.__traceback__) if entry.filename == filename]
        where = f"{chapter.show(chapter.mistakes)}, line {lines[-1] if lines else '?'}"
        raise CourseError(f"{where}: {type(error).__name__}: {error}") from error
    notes = list(_notes)
    solution = chapter.solution.read_text(encoding="utf-8")
    helpers = {key: value for key, value in names.items() if not key.startswith("__")}
    seen: set[tuple[str, str]] = set()
    found = []
    for note in notes:
        if (note.task, note.name) in seen:
            raise CourseError(f"{chapter.show(chapter.mistakes)}, line {note.line}: {note.name!r} is there twice")
        seen.add((note.task, note.name))
        label = f"{chapter.name} with the mistake {note.name!r}"
        if note.replace is None:
            patch = Patch(_definition_at(tree, note.line), filename, helpers)
            target = Target(label, solution, str(chapter.solution), (patch,))
        else:
            where = f"{chapter.show(chapter.mistakes)}, line {note.line}"
            target = Target(label, edit(solution, note.where, note.replace, where), f"<{label}>")
        found.append(Mistake(note.task, note.name, note.hint, target))
    return found


def _definition_at(tree: ast.Module, line: int) -> ast.stmt:
    """The definition that the decorator at `line` stands above, without its decorators of mistakes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            marks = [mark for mark in node.decorator_list if mark.lineno <= line <= (mark.end_lineno or 0)]
            if marks:
                bare = copy.copy(node)
                bare.decorator_list = [mark for mark in node.decorator_list if not _is_mistake(mark)]
                return bare
    raise CourseError(f"line {line}: @mistake must stand directly above a function or class")


def _is_mistake(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Call) and ast.unparse(decorator.func).split(".")[-1] == "mistake"


def edit(source: str, definition: str, replace: Mapping[str, str], where: str) -> str:
    """`source` with each key replaced. CourseError unless it occurs exactly once."""
    places = []
    first, last = _span(source, definition)
    for old, new in replace.items():
        inside = source.count(old, first, last)
        count = inside or source.count(old)
        if count != 1:
            raise CourseError(f"{where}: {old!r} occurs {count} times in the solution, and must occur once")
        places.append((source.index(old, first if inside else 0), old, new))
    for start, old, new in sorted(places, reverse=True):
        source = source[:start] + new + source[start + len(old) :]
    return source


def _span(source: str, definition: str) -> tuple[int, int]:
    """Where the code of a definition begins, after its docstring, and where it ends, in characters."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == definition:
            first = node.lineno - 1
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
                first = node.body[0].end_lineno or first
            return starts[first], starts[node.end_lineno or first]
    return 0, len(source)
