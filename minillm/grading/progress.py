"""What a learner has read and solved: a small JSON file beside the exercises, and the table made from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minillm.grading.course import Chapter, find_chapters
from minillm.grading.problems import CourseError
from minillm.grading.score import number
from minillm.grading.table import bar, bar_characters


class Progress:
    """exercises/.progress.json: {"read": ["08"], "grades": {"ch08_kv_cache": [points, max_points]}}."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / "exercises" / ".progress.json"
        try:
            known = json.loads(self.file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            known = {}
        self.read: set[str] = set(known.get("read", []))
        self.grades: dict[str, list[float]] = dict(known.get("grades", {}))

    def save(self) -> None:
        data = {"read": sorted(self.read), "grades": self.grades}
        self.file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    def note_read(self, names: list[str], is_read: bool) -> None:
        """Mark chapters ("08", "ch08", "8") as read or not. CourseError for one that doesn't exist."""
        known = {entry["number"] for entry in overview(self.root)}
        for name in names:
            digits = name.lower().removeprefix("ch")[:2]
            wanted = f"{int(digits):02d}" if digits.isdigit() else name
            if wanted not in known:
                raise CourseError(f"no chapter {name!r}; there are {', '.join(sorted(known)) or 'none'}")
            (self.read.add if is_read else self.read.discard)(wanted)
        if names:
            self.save()

    def note_grades(self, chapters: list[Chapter], scores: str) -> None:
        """Keep the points of a run; `scores` is the text of its score file."""
        for chapter in chapters:
            tests = [test for test in json.loads(scores)["tests"] if test["name"].startswith(f"{chapter.name} ")]
            if tests:
                points, most = sum(test["score"] for test in tests), sum(test["max_score"] for test in tests)
                self.grades[chapter.name] = [round(points, 2), round(most, 2)]
        self.save()


def overview(root: Path) -> list[dict[str, Any]]:
    """Every chapter that has a page, exercises, or both: number, title, page, chapter of exercises."""
    pages = {page.name[:2]: page for page in sorted((root / "chapters").glob("[0-9][0-9]_*.ipynb"))}
    exercises = {chapter.number: chapter for chapter in find_chapters(root)}
    found = []
    for chapter_number in sorted(pages.keys() | exercises.keys()):
        page, chapter = pages.get(chapter_number), exercises.get(chapter_number)
        topic = page.stem[3:] if page else chapter.name[5:] if chapter else ""
        title = topic.replace("_", " ")
        found.append({"number": chapter_number, "title": title, "page": page, "chapter": chapter})
    return found


def progress_table(root: Path, progress: Progress) -> str:
    """One line a chapter, and what to do next."""
    import sys

    characters = bar_characters(getattr(sys.stdout, "encoding", None))
    entries = overview(root)
    if not entries:
        return "no chapters here yet"
    width = max(len(entry["title"]) for entry in entries)
    lines = [f" {'':2}  {'chapter':{width}}  read  {'points':>9}"]
    for entry in entries:
        is_read = "yes" if entry["number"] in progress.read else "-"
        grade = progress.grades.get(entry["chapter"].name) if entry["chapter"] else None
        if grade:
            points = f"{f'{number(grade[0])}/{number(grade[1])}':>9}  {bar(grade[0], grade[1], characters)}"
        else:
            points = f"{'-':>9}" if entry["chapter"] else f"{'none':>9}"
        lines.append(f" {entry['number']}  {entry['title']:{width}}  {is_read:>4}  {points}".rstrip())
    return "\n".join([*lines, "", next_step(entries, progress)])


def next_step(entries: list[dict[str, Any]], progress: Progress) -> str:
    """The first chapter that isn't read or not solved, and the command for it."""
    for entry in entries:
        chapter, label = entry["chapter"], f"chapter {entry['number']}, {entry['title']}"
        grade = progress.grades.get(chapter.name) if chapter else None
        if entry["number"] not in progress.read and not grade and entry["page"]:
            place = f"chapters/{entry['page'].name}"
            return f"Next: read {label}: {place}\n      then: python3 tasks.py progress --read {entry['number']}"
        if chapter and grade is None:
            return f"Next: the exercises of {label}: exercises/{chapter.name}.py\n      then: {_command(chapter)}"
        if chapter and grade is not None and grade[0] < grade[1]:
            missing = number(grade[1] - grade[0])
            return f"Next: {missing} points are open in {label}: {_command(chapter)} --hints 1"
    return "All of it is read and solved."


def _command(chapter: Chapter) -> str:
    return f"python3 tasks.py grade ch{chapter.number}"
