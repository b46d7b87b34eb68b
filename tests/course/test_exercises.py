"""Each chapter's exercises: the stub earns nothing, the solution everything, each mistake is named.

The student's own files in exercises/ play no part: solving a task can't turn these tests red.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from minillm.grading.course import find_chapters
from minillm.grading.prove import prove_chapter

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = [chapter for chapter in find_chapters(ROOT) if chapter.solution.exists()]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.name)
def test_stub_solution_and_mistakes(chapter) -> None:
    proof = prove_chapter(chapter)
    assert not proof.problems(), "\n".join(proof.problems())


def test_every_test_file_has_its_solution_and_its_mistakes() -> None:
    for chapter in find_chapters(ROOT):
        assert chapter.solution.exists(), f"{chapter.name} has no solution"
        assert chapter.mistakes.exists(), f"{chapter.name} has no mistakes"
