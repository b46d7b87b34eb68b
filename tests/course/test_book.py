"""The book's tables and its small extensions, without building it: `python3 tasks.py verify` builds it."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXTENSIONS = ROOT / "book" / "_ext"


def load(path: Path) -> ModuleType:
    """A module by its path, under a name of its own: these files are no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def behind(chapters: dict, number: int) -> set[int]:
    """The numbers of all chapters that a chapter builds on."""
    return {step for need in chapters[number].needs for step in {need, *behind(chapters, need)}}


@pytest.fixture(scope="module")
def data() -> ModuleType:
    return load(EXTENSIONS / "course_data.py")


def test_there_are_thirty_chapters_in_eight_parts(data):
    assert len(data.load_parts()) == 8
    assert sorted(data.load_chapters()) == list(range(1, 31))


def test_the_readme_lists_the_same_eight_parts(data):
    rows = re.findall(r"^\| ([IV]+) · (.+?) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [(number, part.title) for number, part in zip(data.ROMAN, data.load_parts(), strict=True)]


def test_no_chapter_needs_what_its_needs_already_need(data):
    chapters = data.load_chapters()

    for chapter in chapters.values():
        indirect = {step for need in chapter.needs for step in behind(chapters, need)}
        assert not indirect & set(chapter.needs), chapter.slug


def test_the_chapters_say_that_they_need_what_the_table_says(data):
    chapters = data.load_chapters()

    for path in ROOT.glob("chapters/src/*.py"):
        (line,) = re.findall(r"^# Needs: (.*?) *·", path.read_text(encoding="utf-8"), re.MULTILINE)
        said = {int(number) for number in re.findall(r"\[(?:chapter )?(\d\d)\]", line)}
        assert said == behind(chapters, int(path.name[:2])), path.name


def test_every_notebook_and_every_exercise_belongs_to_a_chapter_of_the_table(data):
    slugs = {chapter.slug for chapter in data.load_chapters().values()}
    assert {path.stem for path in ROOT.glob("chapters/*.ipynb")} <= slugs
    assert {path.stem.removeprefix("test_ch") for path in ROOT.glob("exercises/test_ch*.py")} <= slugs


def test_the_glossary_is_sorted_complete_and_about_chapters_that_there_are(data):
    terms = data.load_terms()
    written = data.read(data.DATA / "glossary.toml")["terms"]
    assert [row["term"] for row in written] == [term.term for term in terms]
    for term in terms:
        assert term.chinese and term.definition.endswith("."), term
        assert term.definition.count(". ") == 0, f"one sentence, please: {term.term}"


def introduced_terms(source: str) -> list[tuple[str, str]]:
    """(term, Chinese) of each `**term** (中文)`, `**term** (English, 中文)` and `(**term**, 中文)` of a chapter."""
    text = " ".join(re.findall(r"^# (.*)", source, re.MULTILINE))
    bold, few_words = r"\*\*(?=\w)([^*]+?)(?<=\w)\*\*", r"(?: \w+){0,3}"
    found = [
        *re.findall(rf"{bold}{few_words} \(([^()*]*[\u4e00-\u9fff][^()*]*)\)", text),
        *re.findall(rf"\({bold}, ([^()*]*[\u4e00-\u9fff][^()*]*)\)", text),
    ]
    return [
        (term.casefold(), next(part for part in re.split(r"[,:] ", names) if re.search(r"[\u4e00-\u9fff]", part)))
        for term, names in found
    ]


def test_terms_are_found_in_each_form_that_chapters_write():
    page = (
        "# **a\n# b** (甲) and **c** (d, 乙).\n# (**e**,\n# 丙) **f** or g h (丁: i) **j** text **k**\n"
        "x = '**no** (代)'\n"
    )
    assert set(introduced_terms(page)) == {("a b", "甲"), ("c", "乙"), ("e", "丙"), ("f", "丁")}


def test_the_glossary_has_every_term_that_a_chapter_introduces(data):
    entries = {name.casefold(): term for term in data.load_terms() for name in term.names}
    first: dict[str, int] = {}
    for path in sorted(ROOT.glob("chapters/src/*.py")):
        for name, chinese in introduced_terms(path.read_text(encoding="utf-8")):
            entry = entries.get(name) or entries.get(name.removesuffix("s"))
            assert entry, f"{path.name}: {name} ({chinese}) is not in the glossary"
            said = entry.chinese.split("；")
            assert chinese in said, f"{path.name}: {name} ({chinese}) is {entry.chinese} in the glossary"
            first.setdefault(entry.term, int(path.name[:2]))
    assert first, "no chapter introduces anything: has the form changed?"
    for term in entries.values():
        chapter = first.get(term.term, term.chapter)
        assert chapter == term.chapter, f"{term.term} is introduced in chapter {chapter}, not {term.chapter}"


def test_papers_have_unique_keys_that_name_their_year_and_real_chapters(data):
    papers = data.load_papers()
    assert len({paper.key for paper in papers}) == len(papers)
    for paper in papers:
        assert re.fullmatch(rf"[a-z]+{paper.year}\w*", paper.key), paper.key
        assert paper.arxiv is None or re.fullmatch(r"\d{4}\.\d{5}", paper.arxiv), paper.key
        assert set(paper.chapters) <= set(data.load_chapters()) and paper.chapters, paper.key


def test_every_arxiv_number_in_the_library_and_the_chapters_is_in_the_bibliography(data):
    known = {paper.arxiv for paper in data.load_papers()}
    for path in [*(ROOT / "minillm").rglob("*.py"), *ROOT.glob("chapters/src/*.py"), *ROOT.glob("exercises/*.py")]:
        cited = set(re.findall(r"arxiv[:./a-z]*(\d{4}\.\d{5})", path.read_text(encoding="utf-8"), re.IGNORECASE))
        assert cited <= known, f"{path.relative_to(ROOT)}: {cited - known}"


def test_contradictions_in_a_table_are_told(data, tmp_path):
    for name in ("curriculum.toml", "glossary.toml"):
        (tmp_path / name).write_text((data.DATA / name).read_text(encoding="utf-8"), encoding="utf-8")
    terms = tmp_path / "glossary.toml"
    extra = '\n[[terms]]\nterm = "made-up"\nchinese = "x"\nchapter = {}\ndefinition = "A word."\n'
    good = terms.read_text(encoding="utf-8")
    terms.write_text(good + extra.format(31), encoding="utf-8")
    with pytest.raises(ValueError, match="chapter 31"):
        data.load_terms(tmp_path)
    terms.write_text(good + 2 * extra.format(1), encoding="utf-8")
    with pytest.raises(ValueError, match="more than once: made-up"):
        data.load_terms(tmp_path)


def test_tasks_and_points_are_read_from_the_test_files(data, tmp_path):
    (tmp_path / "exercises").mkdir()
    chapter = data.load_chapters()[8]
    (tmp_path / "exercises" / f"test_ch{chapter.slug}.py").write_text(
        'A = Task("first", hints=("x", "y"))\nB = Task("second")\n'
        "@graded(A, points=2)\ndef test_a(student): ...\n"
        "@graded(A, points=1.5)\n@pytest.mark.parametrize('n', [1, 2])\ndef test_b(student, n): ...\n"
        "@graded(B)\ndef test_c(student): ...\n"
        "def test_ungraded(): ...\n"
    )
    (tmp_path / "exercises" / f"ch{chapter.slug}.py").write_text('def first():\n    """Do it.\n\n    More."""\n')
    assert data.graded_tasks(chapter, tmp_path) == [
        data.GradedTask("first", "Do it.", 3.5, 2),
        data.GradedTask("second", "", 1.0, 1),
    ]


def test_a_students_broken_file_leaves_the_table_of_tasks_standing(data, tmp_path):
    (tmp_path / "exercises").mkdir()
    chapter = data.load_chapters()[1]
    (tmp_path / "exercises" / f"test_ch{chapter.slug}.py").write_text('A = Task("first")\n')
    (tmp_path / "exercises" / f"ch{chapter.slug}.py").write_text("def first(:\n")
    assert [task.name for task in data.graded_tasks(chapter, tmp_path)] == ["first"]


def test_the_configuration_is_python_that_loads():
    conf = load(ROOT / "book" / "conf.py")
    assert conf.nb_execution_mode == "off" and not conf.mathjax_path.startswith("http")
    assert conf.nb_ipywidgets_js == {}, "the default is loaded from a CDN"


def test_nothing_in_the_pages_sources_is_loaded_from_the_network():
    for path in [*ROOT.glob("book/*.md"), *ROOT.glob("book/_static/*")]:
        loads = re.findall(r"(?:src=|@import|url\()\W*https?://\S+", path.read_text(encoding="utf-8"))
        assert not loads, f"{path.name}: {loads}"


# ---- the extensions that need Sphinx


def test_docstrings_in_plain_text_become_restructured_text():
    docstrings = load_with_sphinx("docstrings")
    plain = "Reads `x` * 2 and |y|.\n\nnames   what each is\n        and more\nother   a second\n\n    a = b  # code"
    rst = "\n".join(docstrings.to_rst(plain.splitlines()))
    assert r"Reads \ ``x``\  \* 2 and \|y\|." in rst
    assert "- **names**: what each is\n  and more\n- **other**: a second" in rst
    assert "::\n\n    a = b  # code" in rst


def test_alternative_text_is_found_by_the_hash_of_the_picture():
    figures = load_with_sphinx("figures")
    png = b"not really a picture"
    data = {"image/png": base64.b64encode(png).decode()}
    spoken = {"data": data, "metadata": {"image/png": {"alt": "A curve that falls."}}}
    mute = {"data": {"image/png": base64.b64encode(b"other").decode()}, "metadata": {}}
    cells = [{"outputs": [spoken, mute]}, {"cell_type": "markdown"}]
    assert figures.alternative_texts({"cells": cells}) == {hashlib.sha256(png).hexdigest(): "A curve that falls."}


def test_every_figure_of_the_chapters_carries_alternative_text():
    for path in ROOT.glob("chapters/*.ipynb"):
        text = path.read_text(encoding="utf-8")
        assert text.count('"image/png": "') == text.count('"alt": "'), path.name


def load_with_sphinx(name: str) -> ModuleType:
    pytest.importorskip("sphinx", reason="the book's extensions need the extra `book`")
    return load(EXTENSIONS / f"{name}.py")
