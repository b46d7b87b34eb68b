"""A chapter's two files, source and notebook, and whether the notebook is up to date.

The source, `chapters/src/NN_topic.py`, is what a maintainer edits; the notebook beside `src` is made from it. Into the
notebook's metadata goes a stamp: a hash over all that its outputs depend on.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
# Whoever loads the model depends on the weights, too.
LOADER, WEIGHTS = "minillm/model/checkpoint.py", "minillm/weights/stories-5m/model.safetensors"


@dataclass(frozen=True)
class Chapter:
    """`source` is chapters/src/<name>.py, `notebook` chapters/<name>.ipynb; either may be missing on disk."""

    folder: Path
    name: str

    @property
    def source(self) -> Path:
        return self.folder / "src" / f"{self.name}.py"

    @property
    def notebook(self) -> Path:
        return self.folder / f"{self.name}.ipynb"


def find_chapters(folder: Path) -> list[Chapter]:
    """Every chapter that has a source or a notebook, in order."""
    names = {path.stem for path in (*folder.glob("src/[0-9]*.py"), *folder.glob("[0-9]*.ipynb"))}
    return [Chapter(folder, name) for name in sorted(names)]


# ---- the notebook of a source


def read_notebook(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def notebook_of(chapter: Chapter) -> NotebookNode:
    """The notebook as its source says, without outputs. Cells keep the ids that they have in the notebook on disk."""
    notebook = jupytext.read(chapter.source, fmt="py:percent")
    old = read_notebook(chapter.notebook).cells if chapter.notebook.exists() else []
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = NotebookNode(kernelspec=kernel, language_info={"name": "python"}, minillm=NotebookNode())
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    kept = _matching_ids(old, notebook.cells)
    taken = set(kept.values())
    for place, cell in enumerate(notebook.cells):
        cell.id = kept.get(place) or _new_id(chapter.name, cell, taken)
        taken.add(cell.id)
        cell.metadata = NotebookNode({key: value for key, value in cell.metadata.items() if key == "tags"})
    return notebook


def contents(notebook: NotebookNode) -> list[tuple[str, str]]:
    """What source and notebook have in common: (type, text) of each cell."""
    return [(cell.cell_type, cell.source.rstrip()) for cell in notebook.cells]


def write_notebook(notebook: NotebookNode, path: Path) -> None:
    """All of it or nothing, with line feeds on every system."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes((nbformat.writes(notebook).rstrip("\n") + "\n").encode("utf-8"))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _matching_ids(old: list[NotebookNode], new: list[NotebookNode]) -> dict[int, str]:
    """Place in `new` -> id in `old`, for cells that stayed, and for those edited in place."""
    before = [(cell.cell_type, cell.source.rstrip()) for cell in old]
    after = [(cell.cell_type, cell.source.rstrip()) for cell in new]
    ids = {}
    for kind, i0, i1, j0, j1 in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal" or (kind == "replace" and i1 - i0 == j1 - j0):
            for i, j in zip(range(i0, i1), range(j0, j1), strict=True):
                if before[i][0] == after[j][0] and "id" in old[i]:
                    ids[j] = old[i].id
    return ids


def _new_id(name: str, cell: NotebookNode, taken: set[str]) -> str:
    """From the text, so that the same source gives the same notebook everywhere."""
    count = 0
    while True:
        text = f"{name}\0{cell.cell_type}\0{cell.source}\0{count}"
        candidate = hashlib.sha256(text.encode()).hexdigest()[:8]
        if candidate not in taken:
            return candidate
        count += 1


# ---- the stamp


def code_digest(chapter: Chapter, root: Path = ROOT) -> str:
    """Hash of the chapter's source and of the library files that it imports, directly or not."""
    files = library_files(chapter.source, root)
    if root / LOADER in files and (root / WEIGHTS).exists():
        files.append(root / WEIGHTS)
    return _digest([chapter.source, *files], root if chapter.source.is_relative_to(root) else chapter.folder)


def stamp(chapter: Chapter, code: str) -> str:
    """The stamp for a notebook: `code_digest` as it was when the execution began, and the records as they are now."""
    records = sorted((chapter.folder / "measured").glob("*.json"))
    names = recorded_names(chapter.source.read_text(encoding="utf-8"))
    if names is not None:
        records = [path for path in records if path.stem in names]
    return hashlib.sha256(f"{code}\0{_digest(records, chapter.folder)}".encode()).hexdigest()[:16]


def stamp_of(notebook: NotebookNode) -> str:
    return notebook.metadata.get("minillm", {}).get("stamp", "")


def recorded_names(source: str) -> set[str] | None:
    """The records a source reads, from its calls recorded("name", …); None where a name isn't written out."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "recorded" and node.args:
            if not isinstance(node.args[0], ast.Constant):
                return None
            names.add(str(node.args[0].value))
    return names


def library_files(source: Path, root: Path = ROOT) -> list[Path]:
    """The files of minillm that a Python file imports, directly or not, read from the sources without importing."""
    public = _public_modules(root)
    found: set[Path] = set()
    waiting = [source]
    while waiting:
        path = waiting.pop()
        for module in imported_modules(ast.parse(path.read_text(encoding="utf-8")), public):
            for file in _files_of(module, root):
                if file not in found:
                    found.add(file)
                    waiting.append(file)
    return sorted(found)


def imported_modules(tree: ast.AST, public: dict[str, str]) -> Iterator[str]:
    """Dotted names under minillm that a file imports or reaches by attributes (minillm.load_model, …).

    The names that minillm itself exports lead to their modules; `minillm/__init__.py`, which names them all, isn't
    followed.
    """
    for node in ast.walk(tree):
        names: Iterable[str] = ()
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        for name in names:
            parts = name.split(".")
            if parts[0] == "minillm" and len(parts) > 1:
                yield public.get(parts[1], name)


def _public_modules(root: Path) -> dict[str, str]:
    """Name exported by minillm -> the module it comes from."""
    tree = ast.parse((root / "minillm" / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.name: node.module for node in imports for alias in node.names if node.module.startswith("minillm.")}


def _files_of(module: str, root: Path) -> Iterator[Path]:
    """The files that a dotted name runs: each package's __init__ on the way, and the module."""
    folder = root / "minillm"
    for part in module.split(".")[1:]:
        if (file := folder / f"{part}.py").exists():
            yield file
            return
        folder /= part
        if not (folder / "__init__.py").exists():
            return
        yield folder / "__init__.py"


def _digest(files: Iterable[Path], base: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(base) if file.is_relative_to(base) else Path(file.name)
        content = file.read_bytes()
        if file.suffix in (".py", ".json"):
            content = content.replace(b"\r\n", b"\n")  # a checkout on Windows may have them
        digest.update(f"\0{name.as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
