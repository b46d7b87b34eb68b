"""Directives that write parts of pages from the tables of `course_data`.

    course-toc         the hidden tables of contents: one a part, of the chapters that exist
    course-chapters    all thirty by part; those to come are titles without a link
    course-graph       the drawn graph of what needs what
    course-tasks       the graded tasks and their points, read from exercises/
    course-glossary    the terms
    course-papers      the bibliography

A link from a chapter to one that is still to come becomes plain text, so that chapters may be written in any order.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from typing import Any

from course_data import ROMAN, ROOT, Chapter, Paper, graded_tasks, load_chapters, load_papers, load_parts, load_terms
from course_graph import draw_graph
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

PAGES_FROM_BOOK = "../chapters"  # book pages stand beside the chapters' folder


def link(chapter: Chapter, text: str) -> str:
    """Markdown: a link to a chapter that exists, else its text, marked as planned."""
    if chapter.exists():
        return f"[{text}]({PAGES_FROM_BOOK}/{chapter.slug}.ipynb)"
    return f'<span class="planned">{escape(text)}</span>'


def table_of_contents() -> str:
    """Hidden toctrees, captioned with the parts' titles."""
    blocks = []
    for number, part in zip(ROMAN, load_parts(), strict=True):
        entries = [f"{chapter.label} </{chapter.docname}>" for chapter in part.chapters if chapter.exists()]
        if entries:
            options = [":hidden:", f":caption: {number} · {part.title}", ""]
            blocks.append("\n".join(["```{toctree}", *options, *entries, "```"]))
    return "\n\n".join(blocks)


def chapter_list() -> str:
    """A heading and an introduction a part, then its chapters, each with its sentence."""
    lines = []
    for number, part in zip(ROMAN, load_parts(), strict=True):
        lines += [f"## Part {number}: {part.title[0].lower()}{part.title[1:]}", "", part.about, ""]
        for chapter in part.chapters:
            planned = "" if chapter.exists() else ' <span class="badge-planned">planned</span>'
            lines.append(f"- **{link(chapter, chapter.label)}**{planned}<br>{escape(chapter.about)}")
        lines.append("")
    return "\n".join(lines)


def task_table() -> str:
    """A table a chapter, for the chapters whose exercises are there."""
    lines: list[str] = []
    for chapter in load_chapters().values():
        tasks = graded_tasks(chapter)
        if not tasks:
            continue
        total = sum(task.points for task in tasks)
        lines += [f"### {link(chapter, chapter.label)}", "", f"`python3 tasks.py grade ch{chapter.number:02d}`", ""]
        lines += ["| Task | What it asks for | Points |", "|---|---|---:|"]
        lines += [f"| `{task.name}` | {cell(task.asks)} | {task.points:g} |" for task in tasks]
        lines += [f"| | **{len(tasks)} tasks, {sum(task.tests for task in tasks)} tests** | **{total:g}** |", ""]
    return "\n".join(lines) or "No exercises are here yet."


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("->", "→")


def glossary() -> str:
    """A table of all terms, each with an anchor."""
    chapters = load_chapters()
    rows = []
    for term in load_terms():
        anchor = re.sub(r"\W+", "-", term.term.casefold()).strip("-")
        chapter = link(chapters[term.chapter], f"{term.chapter:02d}")
        name = f'<span id="term-{anchor}">{", ".join([f"**{term.term}**", *term.also])}</span>'
        rows.append(f'| {name} | <span lang="zh">{term.chinese}</span> | {cell(term.definition)} | {chapter} |')
    return "\n".join(["| Term | Chinese | What it means | Ch. |", "|---|---|---|---|", *rows])


def bibliography() -> str:
    """A paragraph a paper with its key as anchor, so that a chapter can link to it."""
    chapters = load_chapters()

    def entry(paper: Paper) -> str:
        where = f"[arXiv:{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else paper.venue
        used = ", ".join(link(chapters[number], f"{number:02d}") for number in paper.chapters)
        authors = paper.authors if paper.authors.endswith(".") else f"{paper.authors}."
        return f"({paper.key})=\n\n{authors} {paper.year}. *{paper.title}.* {where}. Chapters: {used}."

    return "\n\n".join(f":::{{container}} paper\n{entry(paper)}\n:::" for paper in load_papers())


def markdown_directive(write: Callable[[], str]) -> type[SphinxDirective]:
    """A directive that stands for the Markdown that `write` returns."""

    class Written(SphinxDirective):
        def run(self) -> list[nodes.Node]:
            for path in [*sorted((ROOT / "book" / "data").glob("*.toml")), *sorted((ROOT / "exercises").glob("*.py"))]:
                self.env.note_dependency(str(path))
            self.env.note_reread()  # which chapters exist is not in any file
            return self.parse_text_to_nodes(write(), allow_section_headings=True)

    return Written


class Graph(SphinxDirective):
    """The graph of chapters as SVG in the page, so that it takes the page's colours and its titles are links."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        depth = self.env.docname.count("/")
        svg = draw_graph(load_parts(), lambda chapter: "../" * depth + chapter.docname + ".html")
        return [nodes.raw("", svg, format="html")]


class PlannedChapters(SphinxPostTransform):
    """A link to a chapter that is still to come becomes its text; other missing targets stay errors."""

    default_priority = 5  # before MyST looks for the targets

    def run(self, **kwargs: Any) -> None:
        chapters = load_chapters()
        for link in list(self.document.findall(pending_xref)):
            number = re.search(r"(?:^|/)(\d\d)_\w+\.ipynb(?:#.*)?$", link.get("reftarget", ""))
            chapter = chapters.get(int(number[1])) if number else None
            if chapter is not None and not chapter.exists():
                link.replace_self(nodes.inline("", "", *link.children, classes=["planned"]))


def setup(app: Sphinx) -> dict[str, bool]:
    pages = {
        "course-toc": table_of_contents,
        "course-chapters": chapter_list,
        "course-tasks": task_table,
        "course-glossary": glossary,
        "course-papers": bibliography,
    }
    for name, write in pages.items():
        app.add_directive(name, markdown_directive(write))
    app.add_directive("course-graph", Graph)
    app.add_post_transform(PlannedChapters)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
