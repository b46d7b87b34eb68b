"""Pages of highlighted source code, so that a chapter's links to the library open something to read.

A Markdown link to a file of the repository, `[contiguous.py](../minillm/cache/contiguous.py)`, becomes a link to its
page; without this it would be a download, or a missing page. A link to a package leads to its `__init__.py`, which
says in what order to read it. The API reference gets a [source] link for each entry. Pages are made only for files
that something links to.
"""

from __future__ import annotations

import importlib
import inspect
import posixpath
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from docutils import nodes
from sphinx.addnodes import desc_signature, download_reference, pending_xref
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.osutil import relative_uri

FOLDERS = ("minillm", "exercises", "solutions", "tests", "book", "README.md", "tasks.py")
LANGUAGES = {".py": "python", ".md": "markdown"}
PREFIX = "code"
# What a code host shows as a README is a page of its own here.
BOOK_PAGES = {
    "README.md#the-course": "book/chapters",
    "README.md": "book/index",
    "exercises/README.md": "book/exercises",
}


def page_of(file: PurePosixPath) -> str:
    """The page of a file, from the root of the book: minillm/config.py → code/minillm/config.py."""
    return f"{PREFIX}/{file}"


class SourceLinks(SphinxPostTransform):
    default_priority = 4  # before MyST looks for the targets of links

    def run(self, **kwargs: Any) -> None:
        if self.app.builder.format != "html":
            return
        for link in [*self.document.findall(download_reference), *self.document.findall(pending_xref)]:
            file, anchor = self.repository_file(link)
            page = BOOK_PAGES.get(f"{file}{anchor}") or BOOK_PAGES.get(str(file))
            if page is not None:
                link.replace_self(self.reference(page + ".html", link.children))
            elif file is not None:
                link.replace_self(self.source_reference(file, "", link.children))
        for signature in list(self.document.findall(desc_signature)):
            place = where_defined(signature.get("module", ""), signature.get("fullname", ""))
            if place is not None:
                file, line = place
                text = nodes.inline("", "[source]", classes=["viewcode-link"])
                signature.append(self.source_reference(file, f"#line-{line}", [text]))

    def repository_file(self, link: nodes.Element) -> tuple[PurePosixPath | None, str]:
        """(file, anchor) that a link from this page means; file None unless it is one that gets a page."""
        target, _, anchor = link["reftarget"].partition("#")
        anchor = anchor or link.get("reftargetid") or ""
        anchor = f"#{anchor}" if anchor else ""
        base = posixpath.dirname(self.env.docname)
        if link.get("refdomain") == "doc":  # from the root already, and without its suffix
            if target in self.env.found_docs:
                return None, ""
            target, base = f"{target}.md", ""
        path = target.lstrip("/") if target.startswith("/") else posixpath.normpath(posixpath.join(base, target))
        file = PurePosixPath(path)
        if (Path(self.app.srcdir) / file / "__init__.py").is_file():
            file = file / "__init__.py"
        is_ours = file.suffix in LANGUAGES and file.parts[0] in FOLDERS and (Path(self.app.srcdir) / file).is_file()
        return (file, anchor) if is_ours else (None, "")

    def source_reference(self, file: PurePosixPath, anchor: str, children: list[nodes.Node]) -> nodes.reference:
        pages: set[str] = self.env.__dict__.setdefault("source_pages", set())
        pages.add(str(file))
        return self.reference(page_of(file) + ".html" + anchor, children)

    def reference(self, address: str, children: list[nodes.Node]) -> nodes.reference:
        """A link to an address counted from the root of the book."""
        uri = relative_uri(self.app.builder.get_target_uri(self.env.docname), address)
        return nodes.reference("", "", *children, internal=True, refuri=uri)


def where_defined(module: str, name: str) -> tuple[PurePosixPath, int] | None:
    """(file, first line) of what `module.name` is, followed to the module that defines it."""
    try:
        value: Any = importlib.import_module(module)
        for part in name.split("."):
            value = getattr(value, part)
        value = inspect.unwrap(value.fget if isinstance(value, property) else value)
        defined_in = PurePosixPath(*inspect.getmodule(value).__name__.split("."))  # type: ignore[union-attr]
        line = inspect.getsourcelines(value)[1]
    except (ImportError, AttributeError, TypeError, OSError, ValueError):
        return None  # a constant, or a field of a dataclass
    package = Path(importlib.import_module("minillm").__file__ or "").parent.parent
    for file in (defined_in.with_suffix(".py"), defined_in / "__init__.py"):
        if (package / file).is_file():
            return file, max(1, line)
    return None


def make_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for every file linked to: its path as title, its code with numbered lines."""
    for name in sorted(app.env.__dict__.get("source_pages", ())):
        code = (Path(app.srcdir) / name).read_text(encoding="utf-8")
        highlighted = app.builder.highlighter.highlight_block(  # type: ignore[attr-defined]
            code, LANGUAGES[PurePosixPath(name).suffix], linenos="inline", lineanchors="line", location=name
        )
        body = f'<h1 class="source-title"><code>{name}</code></h1>{highlighted}'
        context = {"title": name, "body": body, "theme_secondary_sidebar_items": []}
        yield page_of(PurePosixPath(name)), context, "page.html"


def merge(app: Sphinx, env: Any, docnames: Any, other: Any) -> None:
    env.__dict__.setdefault("source_pages", set()).update(other.__dict__.get("source_pages", ()))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_post_transform(SourceLinks)
    app.connect("html-collect-pages", make_pages)
    app.connect("env-merge-info", merge)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
