"""Where the parts of a course lie: the root holds exercises/, and where they aren't handed out, solutions/.

    exercises/test_ch08_kv_cache.py       the graded tests: a chapter exists when this file does
    exercises/ch08_kv_cache.py            the student's file, at first the stub
    exercises/mistakes/ch08_kv_cache.py   named mistakes
    solutions/ch08_kv_cache.py            the source of the stub

A handout has, for the last two, exercises/fingerprints/ch08_kv_cache.json and exercises/pristine/ch08_kv_cache.py.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from minillm.grading.problems import CourseError

TEST_FILE = re.compile(r"test_(ch\d\d\w*)\.py")


@dataclass(frozen=True)
class Chapter:
    """The files of one chapter. `name` is like "ch08_kv_cache"; `exercises` is the folder of its tests."""

    name: str
    exercises: Path

    @property
    def number(self) -> str:
        return self.name[2:4]

    @property
    def tests(self) -> Path:
        return self.exercises / f"test_{self.name}.py"

    @property
    def student(self) -> Path:
        return self.exercises / f"{self.name}.py"

    @property
    def mistakes(self) -> Path:
        return self.exercises / "mistakes" / f"{self.name}.py"

    @property
    def fingerprints(self) -> Path:
        return self.exercises / "fingerprints" / f"{self.name}.json"

    @property
    def pristine(self) -> Path:
        return self.exercises / "pristine" / f"{self.name}.py"

    @property
    def solution(self) -> Path:
        return self.exercises.parent / "solutions" / f"{self.name}.py"

    @property
    def seed(self) -> int:
        """What the random numbers of the tests start from: 0, or an instructor's own number."""
        settings = self.exercises / "course.json"
        return int(json.loads(settings.read_text(encoding="utf-8"))["seed"]) if settings.exists() else 0

    def show(self, path: Path) -> str:
        """A path as messages print it: seen from the root of the course."""
        try:
            return path.relative_to(self.exercises.parent).as_posix()
        except ValueError:
            return str(path)


def chapter_of(test_file: Path) -> Chapter | None:
    """The chapter that a test file grades, None if it is no such file."""
    match = TEST_FILE.fullmatch(test_file.name)
    return Chapter(match[1], test_file.parent) if match else None


def find_root(start: Path) -> Path:
    """The nearest folder, `start` or above it, that holds a course; otherwise the one that this package lies in."""
    for folder in (start, *start.parents):
        if (folder / "exercises" / "conftest.py").exists():
            return folder
    package_root = Path(__file__).resolve().parents[2]
    if (package_root / "exercises").is_dir():
        return package_root
    raise CourseError(f"no course here: {start} and the folders above it have no exercises/conftest.py")


def find_chapters(root: Path, wanted: list[str] | None = None) -> list[Chapter]:
    """All chapters in order, or those named ("ch08", "08", "8", "ch08_kv_cache"). CourseError for an unknown one."""
    files = sorted((root / "exercises").glob("test_ch*.py"))
    chapters = [chapter for file in files if (chapter := chapter_of(file))]
    if not wanted:
        return chapters
    return [_pick(chapters, name) for name in wanted]


def _pick(chapters: list[Chapter], name: str) -> Chapter:
    digits = name.lower().removeprefix("ch")
    for chapter in chapters:
        if name == chapter.name or (digits.isdigit() and int(digits) == int(chapter.number)):
            return chapter
    known = ", ".join(f"ch{chapter.number}" for chapter in chapters) or "none yet"
    raise CourseError(f"no exercises for chapter {name!r}; there are {known}")
