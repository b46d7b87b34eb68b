"""Docstrings as pages: the library writes them as plain text with `code`, and this turns them into reStructuredText.

    a paragraph                   stays one, with every character that reStructuredText would read escaped
    `name`                        code
    name   what it is             two columns with two spaces or more between them: a list of definitions
    - an item                     a list
    deeper than the paragraph     a block of text as it stands
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

from sphinx.application import Sphinx

ROW = re.compile(r"(\S(?:.{0,36}?\S)?) {2,}([^#\s].*)")  # not code with a comment behind it
ITEM = re.compile(r"(?:[-*]|\d+\.) +(.*)")


def to_rst(lines: list[str]) -> list[str]:
    """The docstring's lines, dedented, as reStructuredText."""
    out: list[str] = []
    for block in blocks(lines):
        out += [*render(block), ""]
    return out


def blocks(lines: list[str]) -> list[list[str]]:
    """Runs of lines between blank lines; a line indented after one that isn't, or the reverse, begins a new one."""
    found: list[list[str]] = [[]]
    for line in lines:
        previous = found[-1]
        if not line.strip():
            found.append([])
        elif previous and is_item(line) and not is_item(previous[0]) and indent(previous[0]) == indent(line):
            found.append([line])
        else:
            previous.append(line.rstrip())
    return [block for block in found if block]


def render(block: list[str]) -> list[str]:
    first = block[0]
    if is_item(first) and not indent(first):
        return items(block)
    if all(ROW.fullmatch(line.strip()) or indent(line) > indent(first) for line in block):
        return definitions(block)
    if indent(first):
        return ["::", "", *("    " + line for line in textwrap.dedent("\n".join(block)).splitlines())]
    return [escape(line.strip()) for line in block]


def items(block: list[str]) -> list[str]:
    out: list[str] = []
    for line in block:
        match = ITEM.fullmatch(line)
        out.append(f"- {escape(match[1])}" if match else f"  {escape(line.strip())}")
    return out


def definitions(block: list[str]) -> list[str]:
    """Rows `name   what it is`, with continuation lines indented deeper, as a field list."""
    out: list[str] = []
    for line in textwrap.dedent("\n".join(block)).splitlines():
        match = ROW.fullmatch(line)
        if match and not indent(line):
            out += [f"- **{strip_code(match[1])}**: {escape(match[2])}"]
        else:
            out.append(f"  {escape(line.strip())}")
    return out


def strip_code(text: str) -> str:
    return re.sub(r"([\\*_`|<>:])", r"\\\1", text.replace("`", ""))


def escape(text: str) -> str:
    """`code` as ``code``; in between, nothing that means something to reStructuredText."""
    parts = re.split(r"(`[^`]+`)", text)
    plain = [re.sub(r"([\\*_|`])", r"\\\1", part) for part in parts[::2]]
    code = [f"\\ ``{part[1:-1]}``\\ " for part in parts[1::2]]
    return "".join(text for pair in zip(plain, [*code, ""], strict=True) for text in pair)


def is_item(line: str) -> bool:
    return ITEM.fullmatch(line.strip()) is not None


def indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def rewrite(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    lines[:] = to_rst(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", rewrite)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
