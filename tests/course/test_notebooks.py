"""The notebooks tool: pairing, execution, staleness, and each rule of its check seen to fail."""

from __future__ import annotations

import base64
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

for package in ("jupytext", "nbclient", "ipykernel"):
    pytest.importorskip(package)

import nbformat  # noqa: E402
from nbformat import NotebookNode  # noqa: E402
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book" / "tools"))

import notebook_names as names  # noqa: E402
import notebook_pairing as pairing  # noqa: E402
import notebook_rules as rules  # noqa: E402
import notebooks  # noqa: E402

SECTIONS = "\n".join(f"# ## {name}\n#" for name in rules.HEADINGS)
GOOD = f"""\
# %% [markdown]
# # 09 · Tiny
#
# A promise.

# %%
from minillm import plots

print("first")
print("second")

# %% [markdown]
{SECTIONS}

# %%
fig, ax = plots.figure()
ax.plot([1, 2])
plots.show(fig, alt="A rising line.")
"""


def write_chapter(folder: Path, source: str, name: str = "09_tiny") -> pairing.Chapter:
    (folder / "src").mkdir(parents=True, exist_ok=True)
    chapter = pairing.Chapter(folder, name)
    chapter.source.write_text(source, encoding="utf-8", newline="\n")
    return chapter


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with one chapter that keeps every rule, executed; tests copy it."""
    folder = tmp_path_factory.mktemp("a course") / "chapters"
    write_chapter(folder, GOOD)
    assert notebooks.main([], folder) == 0
    yield folder


@pytest.fixture
def course(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "chapters"))


# ---- execution


def test_executing_again_gives_the_same_bytes(course: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notebook = course / "09_tiny.ipynb"
    before = notebook.read_bytes()
    assert notebooks.main(["9"], course) == 0
    assert "unchanged" in capsys.readouterr().out
    assert notebooks.main(["--all"], course) == 0
    assert notebook.read_bytes() == before
    out = capsys.readouterr().out
    assert " s  0." in out and "GiB" in out
    assert sorted(path.name for path in course.iterdir()) == ["09_tiny.ipynb", "src"]
    stored = pairing.read_notebook(notebook)
    assert stored.metadata.language_info == {"name": "python"} and "\r" not in before.decode()
    assert [output.output_type for output in stored.cells[1].outputs] == ["stream"]  # two prints, one output


def test_a_good_chapter_passes_the_check(course: Path) -> None:
    before = {path: path.read_bytes() for path in course.rglob("*") if path.is_file()}
    assert notebooks.main(["--check"], course) == 0
    assert {path: path.read_bytes() for path in course.rglob("*") if path.is_file()} == before


def test_a_failing_cell_leaves_the_notebook_as_it_was(course: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (course / "09_tiny.ipynb").read_bytes()
    write_chapter(course, GOOD.replace('print("second")', "1 / 0"))
    assert notebooks.main([], course) == 1
    assert (course / "09_tiny.ipynb").read_bytes() == before
    assert "09_tiny: cell 2: ZeroDivisionError: division by zero" in capsys.readouterr().err
    assert not list(course.glob(".*"))


def test_check_reports_every_problem_of_a_run(course: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stale cells, another output, standard error and a missing record show in one run."""
    path = course / "09_tiny.ipynb"
    path.write_text(path.read_text(encoding="utf-8").replace('"second\\n"', '"third\\n"'), encoding="utf-8")
    added = "\n# %%\nimport sys, os\nprint('careful', file=sys.stderr)\nprint(os.environ['MINILLM_RECORDED'])\n"
    write_chapter(course, GOOD + added)
    assert notebooks.main(["--check"], course) == 1
    lines = capsys.readouterr().err.splitlines()
    assert any("stale: its cells differ from" in line and "from cell 5 on" in line for line in lines)
    assert "09_tiny: cell 2: another output than the committed one: 'third' became 'second'" in lines
    assert any("cell 5: writes to stderr: careful" in line for line in lines)


def test_records_are_made_once_and_stale_when_replaced(tmp_path: Path) -> None:
    cell = (
        "\n# %%\nfrom minillm.bench.recorded import recorded\n"
        "print(recorded('x', lambda: 7).values, recorded('x', lambda: 8).live)\n"
    )
    chapter = write_chapter(tmp_path / "chapters", GOOD + cell)
    assert notebooks.main([], chapter.folder) == 0
    stored = pairing.read_notebook(chapter.notebook)
    assert stored.cells[-1].outputs[0].text == "7 False\n"
    assert notebooks.staleness(chapter, stored) == []
    record = chapter.folder / "measured" / "x.json"
    record.write_text(record.read_text().replace("7", "9"))
    assert notebooks.staleness(chapter, stored) == [
        "stale: library code or records that it uses have changed since its execution"
    ]


# ---- pairing and stamps


def test_unpaired_files(course: Path, tmp_path: Path) -> None:
    chapter = pairing.Chapter(course, "09_tiny")
    chapter.source.unlink()
    assert notebooks.check(chapter) == ["unpaired: no 09_tiny.py"]
    lonely = write_chapter(tmp_path / "other", GOOD)
    assert notebooks.check(lonely) == ["unpaired: no 09_tiny.ipynb"]


def test_ids_stay_with_their_cells(tmp_path: Path) -> None:
    chapter = write_chapter(tmp_path, "# %%\na = 1\n\n# %%\nb = 2\n\n# %%\nc = 3\n")
    first = pairing.notebook_of(chapter)
    assert [cell.id for cell in first.cells] == [cell.id for cell in pairing.notebook_of(chapter).cells]
    pairing.write_notebook(first, chapter.notebook)
    write_chapter(tmp_path, "# %%\nnew = 0\n\n# %%\na = 1\n\n# %%\nb = 22\n\n# %%\nc = 3\n")
    ids = [cell.id for cell in pairing.notebook_of(chapter).cells]
    assert ids[1:] == [cell.id for cell in first.cells] and len(set(ids)) == 4
    write_chapter(tmp_path, "# %%\na = 1\n\n# %%\na = 1\n")
    assert len({cell.id for cell in pairing.notebook_of(chapter).cells}) == 2


def test_the_stamp_follows_imports(tmp_path: Path) -> None:
    package = tmp_path / "minillm"
    (package / "cache").mkdir(parents=True)
    (package / "__init__.py").write_text("from minillm.generate import generate\nfrom minillm.other import other\n")
    (package / "generate.py").write_text("import minillm.cache\n")
    (package / "cache" / "__init__.py").write_text("def f():\n    from minillm.cache.paged import Cache\n")
    for name in ("cache/paged.py", "cache/unused.py", "other.py"):
        (package / name).write_text("")
    chapter = write_chapter(tmp_path / "chapters", "import minillm\nminillm.generate()\n")
    files = pairing.library_files(chapter.source, tmp_path)
    assert [path.relative_to(package).as_posix() for path in files] == [
        "cache/__init__.py",
        "cache/paged.py",
        "generate.py",
    ]
    before = pairing.code_digest(chapter, tmp_path)
    (package / "other.py").write_text("x = 1\n")
    assert pairing.code_digest(chapter, tmp_path) == before
    (package / "cache" / "paged.py").write_bytes(b"\r\nx = 1\r\n")
    changed = pairing.code_digest(chapter, tmp_path)
    (package / "cache" / "paged.py").write_bytes(b"\nx = 1\n")
    assert before != changed == pairing.code_digest(chapter, tmp_path)


def test_records_named_in_a_source() -> None:
    assert pairing.recorded_names("recorded('a', f)\nbench.recorded('b', f)") == {"a", "b"}
    assert pairing.recorded_names("recorded(name, f)") is None


def test_selecting_chapters(tmp_path: Path) -> None:
    chapters = [pairing.Chapter(tmp_path, name) for name in ("01_one", "08_eight", "10_ten")]
    assert [chapter.name for chapter in notebooks.select(chapters, ["10", "ch08"])] == ["08_eight", "10_ten"]
    assert notebooks.select(chapters, []) == chapters
    assert notebooks.select(chapters, ["chapters/src/01_one.py"]) == chapters[:1]
    with pytest.raises(ValueError, match="no chapter '7'; there are 01_one, 08_eight, 10_ten"):
        notebooks.select(chapters, ["7"])


def test_costs_have_limits() -> None:
    assert notebooks.too_costly(notebooks.Cost(500.0, 149.0, 2**31)) == []  # a busy machine
    assert notebooks.too_costly(notebooks.Cost(80.0, 151.0, 2**32)) == [
        "takes 151 processor seconds, at most 150",
        "takes 4.0 GiB, at most 2",
    ]


# ---- rules, one by one


def notebook_with(*cells: NotebookNode) -> NotebookNode:
    sections = "\n\n".join(f"## {name}" for name in rules.HEADINGS)
    return new_notebook(cells=[new_markdown_cell("# 09 · Tiny"), new_markdown_cell(sections), *cells])


def printed(text: str, source: str = "f()", name: str = "stdout") -> NotebookNode:
    return new_code_cell(source, execution_count=1, outputs=[new_output("stream", name=name, text=text)])


def picture(data: bytes = b"png", **metadata: str) -> NotebookNode:
    data_bundle = {"image/png": base64.b64encode(data).decode()}
    return new_code_cell("f()", outputs=[new_output("display_data", data_bundle, metadata={"image/png": metadata})])


FENCED = "```python\n# minillm/sampling.py\nsleep(5) # 5 s\n```"
SHOWN = new_code_cell("f()", outputs=[new_output("display_data", {"text/markdown": FENCED})])

BROKEN = [
    (new_code_cell("f()", outputs=[new_output("error", ename="E", evalue="v", traceback=[])]), "E: v"),
    (printed("hm", name="stderr"), "writes to stderr: hm"),
    (picture(), "an image without alternative text"),
    (picture(alt=" "), "an image without alternative text"),
    (picture(data=bytes(200_000), alt="x"), "an image of 195 KiB"),
    (new_markdown_cell("![](a.png)"), "an image without alternative text: a.png"),
    (new_markdown_cell("![x](https://a.b/c.png)"), "a remote image: https://a.b/c.png"),
    (new_markdown_cell('<img src="//a.b/c.png" alt="x">'), "a remote image"),
    (new_markdown_cell('<img src="c.png">'), "an image without alternative text"),
    (printed("<Model at 0x7f12ab34cd>"), "a memory address"),
    (printed("saved /home/ann/x.bin"), "an absolute path in its output: /home/ann"),
    (printed("saved C:\\Users\\ann"), "an absolute path"),
    (printed(f"in {ROOT}"), "an absolute path"),
    (printed("step: 12.3 ms"), "looks like a measured time: 'step: 12.3 ms'"),
    (printed("12s"), "looks like a measured time"),
    (printed("31.5 GiB/s"), "looks like a measured time"),
    (printed("90 tokens/s"), "looks like a measured time"),
    (printed("", source="def naive_attention(q, k, v): ..."), "redefines naive_attention"),
    (printed("", source="%matplotlib inline\nif True:\n    generate, x = 1, 2"), "redefines generate"),
    (printed("", source="from somewhere import f as load_model"), "redefines load_model"),
    (new_markdown_cell("## Extra"), "unknown section: Extra"),
]

FINE = [
    picture(alt="A line."),
    new_markdown_cell("![A tree](tree.png) and `![](x)` and <img src='a.png' alt='A tree'>\n\n### More"),
    printed("predicted: 12.3 ms a step"),
    printed("5 steps, 3 spans, 16 KiB, 2 ms-free words, see a/b and minillm/cache"),
    printed("", source="from minillm import generate\nfrom minillm.attention import naive_attention"),
    printed("", source="def mine():\n    generate = 1\n[generate for generate in 'ab']\nf(sample=1)"),
    SHOWN,
]


@pytest.mark.parametrize(("cell", "problem"), BROKEN)
def test_a_breach_is_found(cell: NotebookNode, problem: str) -> None:
    found = rules.problems(notebook_with(cell), names.exported_names())
    assert len(found) == 1 and problem in found[0], found


@pytest.mark.parametrize("cell", FINE)
def test_what_is_allowed_passes(cell: NotebookNode) -> None:
    assert rules.problems(notebook_with(cell), names.exported_names()) == []


def test_headings() -> None:
    notebook = notebook_with()
    sections = notebook.cells[1].source
    notebook.cells[1].source = sections.replace("## Napkin", "")
    assert rules.problems(notebook, set()) == ["section missing: Napkin"]
    notebook.cells[1].source = (
        sections.replace("## Why", "## X").replace("## Napkin", "## Why").replace("## X", "## Napkin")
    )
    assert "sections out of order: Napkin, Why" in rules.problems(notebook, set())[0]
    notebook.cells[0].source = "# Tiny"
    assert "expected a title" in rules.problems(notebook, set())[0]


def test_missing_outputs_and_differences() -> None:
    fresh = notebook_with(printed("a\nb"), picture(alt="x"))
    committed = notebook_with(new_code_cell("f()"), picture(b"other", alt="x"))
    assert rules.not_executed(committed) == ["cell 3, 4: not executed"]
    assert rules.differences(fresh, committed) == ["cell 3: its outputs are missing"]
    committed = notebook_with(printed("a\nc"), new_code_cell("f()", outputs=[new_output("stream", text="x")]))
    found = rules.differences(fresh, committed)
    assert found[0] == "cell 3: another output than the committed one: 'c' became 'b'"
    assert "cell 4: another output" in found[1]
    assert rules.differences(fresh, fresh) == []


def test_exported_names() -> None:
    exported = names.exported_names()
    assert {"generate", "load_model", "naive_attention", "beam_search", "ContiguousCache", "BPETokenizer"} <= exported
    assert {"keep_top_p", "replace_linears"} <= exported
    assert not exported & {"cells", "tokens", "fig", "torch", "Sequence", "annotations"}


def test_notebooks_on_disk_are_valid(course: Path) -> None:
    nbformat.validate(pairing.read_notebook(course / "09_tiny.ipynb"))
