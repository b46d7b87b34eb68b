"""The commands: grade, reset, progress, handout for everybody; stubs and prove for authors of chapters."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from pathlib import Path

from minillm.grading.course import Chapter, find_chapters, find_root
from minillm.grading.handout import make_handout
from minillm.grading.problems import CourseError
from minillm.grading.progress import Progress, progress_table
from minillm.grading.stubs import pristine_stub

EXAMPLES = """\
examples:
  python3 tasks.py grade                  all chapters
  python3 tasks.py grade ch08 --hints 1   chapter 08 (also: 08, 8), with mild hints
  python3 tasks.py reset ch08             back to the stub; your file is kept as .bak
  python3 tasks.py progress --read 08     note that chapter 08 is read, and show what is done
  python3 tasks.py handout ../course      what students get: no solutions
"""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 tasks.py", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)  # of the course; otherwise found from here
    parser.add_argument("--start", type=Path, default=Path(), help=argparse.SUPPRESS)  # what paths are relative to
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    grade = commands.add_parser("grade", help="run the exercises' tests and show the points")
    grade.add_argument("chapters", nargs="*", metavar="chNN")
    grade.add_argument("--hints", type=int, choices=(1, 2), nargs="?", const=1, default=0, help="1 mild, 2 also strong")
    grade.add_argument("--target", default="exercises", help="exercises (default), solutions, or a path")
    grade.add_argument("--json", action="store_true", help="print the scores as JSON (Gradescope's form) only")
    grade.add_argument("--score-json", type=Path, metavar="FILE", help="write that JSON to a file")
    grade.add_argument("-k", metavar="EXPRESSION", help="only tests whose names match")
    grade.add_argument("--pdb", action="store_true", help="stop in the debugger where a test fails")

    reset = commands.add_parser("reset", help="put a chapter's stub back, keeping a copy of your file")
    reset.add_argument("chapters", nargs="+", metavar="chNN")

    progress = commands.add_parser("progress", help="what is read and solved, and what comes next")
    progress.add_argument("--read", nargs="+", default=[], metavar="NN", help="note that these chapters are read")
    progress.add_argument("--unread", nargs="+", default=[], metavar="NN", help="take that back")

    handout = commands.add_parser("handout", help="write what students get into a new folder")
    handout.add_argument("directory", type=Path, metavar="DIR")
    handout.add_argument("chapters", nargs="*", metavar="chNN", help="only these chapters")
    handout.add_argument("--seed", type=int, default=0, help="the tests' random numbers start from it (default 0)")

    stubs = commands.add_parser("stubs", help="write exercises/chNN_topic.py from the solutions (for authors)")
    stubs.add_argument("chapters", nargs="*", metavar="chNN")
    stubs.add_argument("--check", action="store_true", help="write nothing, fail if a stub isn't current")

    prove = commands.add_parser("prove", help="stub 0 points, solution all, each mistake named (for authors)")
    prove.add_argument("chapters", nargs="*", metavar="chNN")
    return parser


def main(argv: list[str]) -> int:
    """Exit status: 0, 1 if something isn't right yet, 2 for a wrong request."""
    options = make_parser().parse_args(argv)
    try:
        root = options.root.resolve() if options.root else find_root(Path.cwd())
        run = {"grade": grade, "reset": reset, "progress": progress, "handout": handout, "stubs": stubs, "prove": prove}
        return run[options.command](root, options)
    except CourseError as error:
        print(f"{options.command}: {error}", file=sys.stderr)
        return 2


def grade(root: Path, options: argparse.Namespace) -> int:
    """Run pytest in this process and remember the points."""
    try:
        import pytest
    except ModuleNotFoundError:
        raise CourseError("pytest is needed: pip install pytest") from None
    chapters = find_chapters(root, options.chapters)
    if not chapters:
        raise CourseError(f"{root / 'exercises'} holds no tests")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scores.json"
        arguments = [str(chapter.tests) for chapter in chapters]
        exercises = root / "exercises"
        arguments += [f"--config-file={exercises / 'pytest.ini'}", f"--rootdir={exercises}"]
        arguments += ["-q", "--no-header", "-p", "no:cacheprovider"]
        is_path = options.target not in ("exercises", "solutions")
        target = (options.start / options.target).resolve() if is_path else options.target
        arguments += [f"--target={target}", f"--score-json={file}"]
        arguments += [f"--hints={options.hints}"] if options.hints else []
        arguments += ["-k", options.k] if options.k else []
        arguments += ["--pdb"] if options.pdb else []
        silence = contextlib.redirect_stdout(io.StringIO()) if options.json else contextlib.nullcontext()
        with silence:
            status = int(pytest.main(arguments))
        text = file.read_text(encoding="utf-8") if file.exists() else ""
    if options.json:
        print(text, end="")
    if options.score_json and text:
        (options.start / options.score_json).write_text(text, encoding="utf-8")
    if options.target == "exercises" and not options.k and text:
        Progress(root).note_grades(chapters, text)
    return status


def reset(root: Path, options: argparse.Namespace) -> int:
    for chapter in find_chapters(root, options.chapters):
        print(reset_chapter(chapter))
    return 0


def reset_chapter(chapter: Chapter) -> str:
    """Restore the stub; say what became of the student's file."""
    stub = pristine_stub(chapter)
    name = chapter.show(chapter.student)
    if not chapter.student.exists():
        chapter.student.write_text(stub, encoding="utf-8")
        return f"{name} was missing: here is the stub again"
    before = chapter.student.read_bytes()
    if before == stub.encode():
        return f"{name} is the untouched stub already"
    number = 0
    while True:  # an earlier copy is never overwritten
        backup = chapter.student.with_name(f"{chapter.name}.py.bak{number or ''}")
        if not backup.exists():
            break
        number += 1
    backup.write_bytes(before)
    chapter.student.write_text(stub, encoding="utf-8")
    return f"{name} is the stub again; yours is kept as {chapter.show(backup)}"


def progress(root: Path, options: argparse.Namespace) -> int:
    record = Progress(root)
    record.note_read(options.read, True)
    record.note_read(options.unread, False)
    print(progress_table(root, record))
    return 0


def handout(root: Path, options: argparse.Namespace) -> int:
    chapters = find_chapters(root, options.chapters)
    print(make_handout(root, (options.start / options.directory).resolve(), chapters, options.seed))
    return 0


def stubs(root: Path, options: argparse.Namespace) -> int:
    """Write or compare the committed stubs."""
    stale = []
    for chapter in find_chapters(root, options.chapters):
        if not chapter.solution.exists():
            raise CourseError(f"{chapter.show(chapter.solution)} is missing")
        stub = pristine_stub(chapter)
        current = chapter.student.read_text(encoding="utf-8") if chapter.student.exists() else ""
        if stub == current:
            continue
        stale.append(chapter.show(chapter.student))
        if not options.check:
            chapter.student.write_text(stub, encoding="utf-8", newline="\n")
            print(f"wrote {stale[-1]}")
    if options.check and stale:
        print(f"not what the solutions generate: {', '.join(stale)}; run `python3 tasks.py stubs`", file=sys.stderr)
        return 1
    return 0


def prove(root: Path, options: argparse.Namespace) -> int:
    from minillm.grading.prove import prove_chapter

    failed = False
    for chapter in find_chapters(root, options.chapters):
        try:
            proof = prove_chapter(chapter)
        except CourseError as error:
            print(error)
            failed = True
            continue
        print(proof.summary(), flush=True)
        failed |= bool(proof.problems())
    return int(failed)
