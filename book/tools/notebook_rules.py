"""What a chapter's notebook must keep to; each rule gives lines that say where and what.

The rules read the notebook and nothing else, except that two executions are compared by `differences`.
"""

from __future__ import annotations

import base64
import getpass
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nbformat import NotebookNode
from notebook_names import redefined
from notebook_pairing import ROOT

HEADINGS = (
    "Why",
    "Napkin",
    "The naive version",
    "The idea",
    "The real version",
    "Measured",
    "In production",
    "Exercises",
    "Check yourself",
    "Sources",
)
MOST_IMAGE_BYTES = 150 * 1024

IMAGE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<target>[^)\s]*)[^)]*\)")
TAG = re.compile(r"<img\b[^>]*>", re.IGNORECASE)
REMOTE = re.compile(r"(?:https?:)?//", re.IGNORECASE)
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)

ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}")
ABSOLUTE = re.compile(r"(?<![\w.:/~])/(?:home|Users|root|tmp|var|work|opt|usr|mnt|private)/[\w.-]+|\b[A-Z]:\\\\?\w+")
COMMON_USERS = {"root", "user", "runner", "admin", "test", "ubuntu", "student", "model"}

# A number with a unit of time or of speed. A space may be missing; "5 s" counts, "5 steps" doesn't.
CLOCK = re.compile(
    r"\d\s*(?:ns|µs|μs|us|ms|s|sec|secs|seconds?|min|minutes?)(?![\w-])"
    r"|\d\s*(?:[KMGT]i?B|[KMGT]?FLOPs?|tok|tokens|it)\s*/\s*s\b",
)
# Words with which an output says that its figures weren't measured by this very run.
NOT_MEASURED_HERE = re.compile(r"predict|bound|ideal|napkin|at most|at least|data sheet|measured on", re.IGNORECASE)


def problems(notebook: NotebookNode, exported: set[str]) -> list[str]:
    """Every breach of a rule in an executed notebook; `exported` are the names that cells must not redefine."""
    found = list(_headings(notebook))
    for place, cell in enumerate(notebook.cells, 1):
        rules = (_code_cell(cell, exported),) if cell.cell_type == "code" else (_images_in(cell.source),)
        found += [f"cell {place}: {problem}" for rule in rules for problem in rule]
    return found


def differences(fresh: NotebookNode, committed: NotebookNode) -> list[str]:
    """Where the outputs of two executions differ: text by its text, images by being there."""
    found = []
    pairs = zip(fresh.cells, committed.cells, strict=False)  # different cells are reported elsewhere
    for place, (new, old) in enumerate(pairs, 1):
        if new.cell_type != "code" or old.cell_type != "code" or new.source.rstrip() != old.source.rstrip():
            continue
        ours, theirs = _comparable(new), _comparable(old)
        if ours == theirs:
            continue
        if not theirs:
            found.append(f"cell {place}: its outputs are missing")
            continue
        changes = [(b, a) for a, b in zip(ours, theirs, strict=False) if a != b] or [(theirs[-1], ours[-1])]
        before, after = changes[0]
        found.append(f"cell {place}: another output than the committed one: {_excerpt(before, after)}")
    return found


def not_executed(notebook: NotebookNode) -> list[str]:
    """Code cells that never ran."""
    places = [
        place
        for place, cell in enumerate(notebook.cells, 1)
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None
    ]
    return [f"cell {', '.join(map(str, places))}: not executed"] if places else []


# ---- the form of the whole


def _headings(notebook: NotebookNode) -> Iterator[str]:
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    first = texts[0] if texts else ""
    if not re.match(r"# \d\d · \S", first):
        yield "cell 1: expected a title such as '# 08 · KV cache'"
    plain = "\n".join(re.sub(r"```.*?```", "", text, flags=re.DOTALL) for text in texts)
    found = re.findall(r"^## +(.+?) *$", plain, re.MULTILINE)
    missing = [name for name in HEADINGS if name not in found]
    unknown = [name for name in found if name not in HEADINGS]
    if missing:
        yield f"section missing: {', '.join(missing)}"
    if unknown:
        yield f"unknown section: {', '.join(unknown)} (a chapter's own are ###)"
    known = [name for name in found if name in HEADINGS]
    if known != [name for name in HEADINGS if name in found]:
        yield f"sections out of order: {', '.join(known)}"


# ---- one cell


def _code_cell(cell: NotebookNode, exported: set[str]) -> Iterator[str]:
    for name in redefined(cell.source, exported):
        yield f"redefines {name}, which minillm exports"
    texts = []
    for output in cell.outputs:
        if output.output_type == "error":
            yield f"{output.ename}: {output.evalue}"
        elif output.output_type == "stream":
            if output.name == "stderr":
                yield f"writes to stderr: {_short(output.text)}"
            texts.append(output.text)
        else:
            yield from _image_output(output)
            for kind in ("text/plain", "text/markdown", "text/html"):
                if kind in output.data and not _is_source_or_alt(output, kind):
                    texts.append(output.data[kind])
                    if kind != "text/plain":
                        yield from _images_in(output.data[kind])
    yield from _text_output("\n".join(texts))


def _image_output(output: NotebookNode) -> Iterator[str]:
    for kind, data in output.data.items():
        if not kind.startswith("image/"):
            continue
        alt = output.metadata.get(kind, {}).get("alt", "")
        if not alt.strip():
            yield "an image without alternative text: use plots.show(fig, alt=…)"
        size = len(data) if kind == "image/svg+xml" else len(base64.b64decode(data))
        if size > MOST_IMAGE_BYTES:
            yield f"an image of {size / 1024:.0f} KiB, at most {MOST_IMAGE_BYTES // 1024}"


def _images_in(text: str) -> Iterator[str]:
    text = CODE.sub("", text)
    for match in IMAGE.finditer(text):
        if REMOTE.match(match["target"]):
            yield f"a remote image: {match['target']}"
        if not match["alt"].strip():
            yield f"an image without alternative text: {match['target']}"
    for tag in TAG.findall(text):
        if re.search(r"""\bsrc\s*=\s*["']?(?:https?:)?//""", tag, re.IGNORECASE):
            yield f"a remote image: {_short(tag)}"
        if not re.search(r"""\balt\s*=\s*(?:"[^"]*\S[^"]*"|'[^']*\S[^']*')""", tag, re.IGNORECASE):
            yield f"an image without alternative text: {_short(tag)}"


def _text_output(text: str) -> Iterator[str]:
    for pattern, what in ((ADDRESS, "a memory address"), (ABSOLUTE, "an absolute path")):
        if match := pattern.search(text):
            yield f"{what} in its output: {match[0]}"
    for place in {str(ROOT), str(Path.home()), tempfile.gettempdir()} - {"/"}:
        if place in text and not ABSOLUTE.search(text):
            yield f"an absolute path in its output: {place}"
    user = _user()
    if user and re.search(rf"\b{re.escape(user)}\b", text):
        yield f"the user's name in its output: {user}"
    match = CLOCK.search(text)
    if match and not NOT_MEASURED_HERE.search(text):
        line = text[text.rfind("\n", 0, match.start()) + 1 :].splitlines()[0]
        yield f"looks like a measured time: {_short(line)!r} (plot it with its record, or write 'predicted')"


# ---- helpers


def _is_source_or_alt(output: NotebookNode, kind: str) -> bool:
    """Library code shown, or an image's alternative text: neither is a result."""
    markdown = output.data.get("text/markdown", "")
    return markdown.startswith("```python\n# minillm/") or (kind == "text/plain" and "image/png" in output.data)


def _comparable(cell: NotebookNode) -> list[str]:
    texts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            texts.append(f"{output.name}: {output.text}")
        elif output.output_type == "error":
            texts.append(f"{output.ename}: {output.evalue}")
        else:
            for kind, data in sorted(output.data.items()):
                texts.append(f"{kind}: " + (data if kind.startswith("text/") else ""))
    return texts


def _excerpt(before: str, after: str) -> str:
    """The first lines that differ."""
    pairs = zip([*before.splitlines(), ""], [*after.splitlines(), ""], strict=False)
    old, new = next(((a, b) for a, b in pairs if a != b), (before, after))
    return f"{_short(old)!r} became {_short(new)!r}"


def _short(text: str, length: int = 70) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def _user() -> str:
    try:
        name = getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""
    return name if len(name) > 3 and name.lower() not in COMMON_USERS else ""
