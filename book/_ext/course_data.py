"""The tables behind the book: chapters, terms, papers, and the graded tasks read from `exercises/`.

Standard library only, so that a test reads the same tables without Sphinx. Every loader raises ValueError for a table
that contradicts itself or the curriculum.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "book" / "data"
ROMAN = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII")


@dataclass(frozen=True)
class Chapter:
    """One of the thirty. `needs` holds the numbers of the chapters to know first."""

    number: int
    part: int  # from 0
    slug: str
    title: str
    about: str
    needs: tuple[int, ...]

    @property
    def docname(self) -> str:
        return f"chapters/{self.slug}"

    @property
    def label(self) -> str:
        return f"{self.number:02d} · {self.title}"

    def exists(self, root: Path = ROOT) -> bool:
        return (root / f"{self.docname}.ipynb").is_file()


@dataclass(frozen=True)
class Part:
    title: str
    about: str
    chapters: tuple[Chapter, ...]


@dataclass(frozen=True)
class Term:
    """`also` holds other names that chapters use; `chinese` one name or several, with ； between them."""

    term: str
    chinese: str
    chapter: int
    definition: str
    also: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.term, *self.also)


@dataclass(frozen=True)
class Paper:
    """`arxiv` is a number on arxiv.org, or None for a paper that has only a `venue`."""

    key: str
    authors: str
    year: int
    title: str
    arxiv: str | None
    venue: str | None
    chapters: tuple[int, ...]


@dataclass(frozen=True)
class GradedTask:
    """A task of a chapter's exercises: its function, what it asks for, its points and its number of tests."""

    name: str
    asks: str
    points: float
    tests: int


# ---- the tables


def load_parts(data: Path = DATA) -> tuple[Part, ...]:
    """The eight parts in order, chapters numbered from 1 through all of them."""
    parts: list[Part] = []
    number = 0
    for index, entry in enumerate(read(data / "curriculum.toml")["parts"]):
        chapters = []
        for row in entry["chapters"]:
            number += 1
            chapter = Chapter(number, index, row["slug"], row["title"], row["about"], tuple(row["needs"]))
            if not chapter.slug.startswith(f"{number:02d}_"):
                raise ValueError(f"expected a slug that begins with {number:02d}_, got {chapter.slug}")
            if any(need >= number or need < 1 for need in chapter.needs):
                raise ValueError(f"chapter {number} can need earlier chapters only, got {chapter.needs}")
            chapters.append(chapter)
        parts.append(Part(entry["title"], entry["about"], tuple(chapters)))
    return tuple(parts)


def load_chapters(data: Path = DATA) -> dict[int, Chapter]:
    """The chapters by number."""
    return {chapter.number: chapter for part in load_parts(data) for chapter in part.chapters}


def load_terms(data: Path = DATA) -> tuple[Term, ...]:
    """The glossary, sorted by term."""
    terms = [Term(**row | {"also": tuple(row.get("also", ()))}) for row in read(data / "glossary.toml")["terms"]]
    require_unique(data / "glossary.toml", [name.casefold() for term in terms for name in term.names])
    known = load_chapters(data)
    for term in terms:
        if term.chapter not in known:
            raise ValueError(f"{term.term!r} is of chapter {term.chapter}, which the curriculum doesn't have")
    return tuple(sorted(terms, key=lambda term: term.term.casefold()))


def load_papers(data: Path = DATA) -> tuple[Paper, ...]:
    """The bibliography, sorted by first author's surname and year: that is, by key."""
    papers = []
    for key, row in read(data / "bibliography.toml").items():
        if ("arxiv" in row) == ("venue" in row):
            raise ValueError(f"{key}: expected either an arXiv number or a venue")
        chapters = tuple(row["chapters"])
        papers.append(
            Paper(key, row["authors"], row["year"], row["title"], row.get("arxiv"), row.get("venue"), chapters)
        )
    require_unique(data / "bibliography.toml", [paper.arxiv for paper in papers if paper.arxiv])
    return tuple(sorted(papers, key=lambda paper: paper.key))


def require_unique(path: Path, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path.name}: more than once: {', '.join(twice)}")


def read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


# ---- the exercises, read without importing them


def graded_tasks(chapter: Chapter, root: Path = ROOT) -> list[GradedTask]:
    """The tasks that `exercises/test_chNN_topic.py` grades, in order; none when there is no such file.

    A task's points are those of its `@graded(TASK, points=...)` tests; what it asks for is the first sentence of its
    docstring in the stub.
    """
    tests = root / "exercises" / f"test_ch{chapter.slug}.py"
    if not tests.is_file():
        return []
    tree = ast.parse(tests.read_text(encoding="utf-8"))
    names = dict(task_names(tree))
    points = dict.fromkeys(names, 0.0)
    count = dict.fromkeys(names, 0)
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        for variable, worth in graded_by(function):
            points[variable] += worth
            count[variable] += 1
    asked = first_sentences(chapter, root)
    return [
        GradedTask(name, asked.get(name, ""), points[variable], count[variable]) for variable, name in names.items()
    ]


def task_names(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(variable, name of the task) of every `VARIABLE = Task("name", ...)`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and called(node.value) == "Task":
            target, name = node.targets[0], node.value.args[0]
            if isinstance(target, ast.Name) and isinstance(name, ast.Constant):
                yield target.id, name.value


def graded_by(function: ast.FunctionDef) -> Iterator[tuple[str, float]]:
    """(variable of the task, points) of every `@graded(VARIABLE, points=...)` on the test."""
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and called(decorator) == "graded":
            worth = [word.value for word in decorator.keywords if word.arg == "points"] or decorator.args[1:]
            yield decorator.args[0].id, float(ast.literal_eval(worth[0])) if worth else 1.0  # type: ignore[attr-defined]


def called(call: ast.Call) -> str:
    """The last part of the name of what is called."""
    return ast.unparse(call.func).rpartition(".")[2]


def first_sentences(chapter: Chapter, root: Path) -> dict[str, str]:
    """The first line of the docstring of every function and class of the stub, or else of the solution."""
    for path in (root / "exercises" / f"ch{chapter.slug}.py", root / "solutions" / f"ch{chapter.slug}.py"):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError):  # a student's file may be both
            continue
        kinds = (ast.FunctionDef, ast.ClassDef)
        nodes = [node for node in tree.body if isinstance(node, kinds)]
        return {node.name: (ast.get_docstring(node) or "").partition("\n\n")[0].replace("\n", " ") for node in nodes}
    return {}
