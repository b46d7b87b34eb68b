"""What an instructor gives out: chapters, tests and stubs; no solutions, and of the mistakes only fingerprints."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from tqdm import tqdm

from minillm.grading.course import Chapter, find_chapters
from minillm.grading.problems import CourseError
from minillm.grading.stubs import pristine_stub

LIBRARY = ("minillm", "tasks.py", "pyproject.toml", "constraints.txt", ".gitignore")
TEXTS = ("README.md", "LICENSE", "LICENSE-TEXT.md")  # the package is built with them
MACHINERY = ("conftest.py", "pytest.ini", "README.md", "AGENTS.md", ".gitignore")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".ipynb_checkpoints", "*.bak*")


def make_handout(root: Path, directory: Path, chapters: list[Chapter], seed: int) -> str:
    """Write the handout; return what was written. CourseError if the directory holds something already."""
    from minillm.grading.prove import prove_chapter

    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise CourseError(f"{directory} is not empty: name a new folder")
    if root == directory or root in directory.parents:
        raise CourseError(f"{directory} lies inside the course itself: name a folder beside it")
    for chapter in chapters:
        if not chapter.solution.exists():
            raise CourseError(f"{chapter.show(chapter.solution)} is missing: a handout is made where solutions are")

    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder) / "course"
        fingerprints = {}
        bar = tqdm(chapters, desc="proving each mistake", unit="chapter", disable=None)  # on a terminal only
        for chapter in (_stage(chapter, stage, seed) for chapter in bar):
            bar.set_postfix_str(chapter.name)
            proof = prove_chapter(chapter, every=True)
            if problems := proof.problems():
                raise CourseError(f"{chapter.name} isn't ready to be handed out:\n  " + "\n  ".join(problems))
            fingerprints[chapter.name] = proof.fingerprints()

    directory.mkdir(parents=True, exist_ok=True)
    for name in (*LIBRARY, *TEXTS):
        _copy(root / name, directory / name)
    left_out = {chapter.number for chapter in find_chapters(root)} - {chapter.number for chapter in chapters}
    for page in sorted(path for path in (root / "chapters").rglob("*") if path.is_file()):
        is_scratch = bool({"__pycache__", ".ipynb_checkpoints"} & {*page.parts})
        if page.name.removeprefix("ch")[:2] not in left_out and not is_scratch:
            _copy(page, directory / page.relative_to(root))
    target = directory / "exercises"
    for name in MACHINERY:
        _copy(root / "exercises" / name, target / name)
    (target / "course.json").write_text(json.dumps({"seed": seed}) + "\n", encoding="utf-8")
    for chapter in chapters:
        out = Chapter(chapter.name, target)
        for path in (out.fingerprints, out.pristine):
            path.parent.mkdir(parents=True, exist_ok=True)
        _copy(chapter.tests, out.tests)
        stub = pristine_stub(chapter)
        out.student.write_text(stub, encoding="utf-8", newline="\n")
        out.pristine.write_text(stub, encoding="utf-8", newline="\n")
        out.fingerprints.write_text(json.dumps(fingerprints[chapter.name]) + "\n", encoding="utf-8")
    names = ", ".join(f"ch{chapter.number}" for chapter in chapters)
    return f"{directory}: {names}; stubs, tests, fingerprints of {_count(fingerprints)} mistakes, no solutions"


def _stage(chapter: Chapter, stage: Path, seed: int) -> Chapter:
    """A copy of the chapter with the handout's seed, to take the fingerprints in."""
    copy = Chapter(chapter.name, stage / "exercises")
    for name in ("conftest.py", "pytest.ini"):
        _copy(chapter.exercises / name, copy.exercises / name)
    _copy(chapter.tests, copy.tests)
    _copy(chapter.mistakes, copy.mistakes)
    _copy(chapter.solution, copy.solution)
    (copy.exercises / "course.json").write_text(json.dumps({"seed": seed}), encoding="utf-8")
    return copy


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=LEFT_OUT)
    elif source.exists():
        shutil.copyfile(source, target)


def _count(fingerprints: dict[str, dict[str, list[object]]]) -> int:
    return sum(len(entry["mistakes"]) for entry in fingerprints.values())
