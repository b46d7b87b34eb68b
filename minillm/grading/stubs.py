"""From a solution to the stub that students start from: each region is replaced by `raise NotImplementedError`.

# BEGIN SOLUTION
return 2 * num_layers
# END SOLUTION
"""

from __future__ import annotations

import ast

from minillm.grading.course import Chapter
from minillm.grading.problems import CourseError

BEGIN, END = "# BEGIN SOLUTION", "# END SOLUTION"


def make_stub(source: str, label: str) -> str:
    """The source with its regions replaced. CourseError for regions that are unpaired or outside of a function."""
    functions = function_spans(ast.parse(source))
    stub: list[str] = []
    start = 0  # line of the open region, 0 outside
    for number, line in enumerate(source.splitlines(), start=1):
        text = line.strip()
        if text == BEGIN:
            if start:
                raise CourseError(f"{label}, line {number}: a region begins inside the one of line {start}")
            names = [name for name, first, last in functions if first < number <= last]
            if not names:
                raise CourseError(f"{label}, line {number}: a region must lie inside a function")
            start = number
            indent = line[: len(line) - len(line.lstrip())]
            stub.append(f'{indent}raise NotImplementedError("{names[-1]}: your code here")')
        elif text == END:
            if not start:
                raise CourseError(f"{label}, line {number}: {END} without {BEGIN}")
            start = 0
        elif not start:
            if "BEGIN SOLUTION" in line or "END SOLUTION" in line:
                raise CourseError(f"{label}, line {number}: write exactly {BEGIN!r} or {END!r}")
            stub.append(line)
    if start:
        raise CourseError(f"{label}, line {start}: {BEGIN} without {END}")
    result = "\n".join(stub) + "\n"
    compile(result, label, "exec", dont_inherit=True)
    return result


def function_spans(tree: ast.AST, prefix: str = "") -> list[tuple[str, int, int]]:
    """(qualified name, first line, last line) of every function, outer ones first."""
    spans = []
    for node in ast.iter_child_nodes(tree):
        name = f"{prefix}{getattr(node, 'name', '')}"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            spans.append((name, node.lineno, node.end_lineno or node.lineno))
        inner = f"{name}." if isinstance(node, ast.FunctionDef | ast.ClassDef) else prefix
        spans += function_spans(node, inner)
    return spans


def pristine_stub(chapter: Chapter) -> str:
    """The chapter's stub: generated from its solution, or the one that a handout brings."""
    if chapter.solution.exists():
        return make_stub(chapter.solution.read_text(encoding="utf-8"), chapter.show(chapter.solution))
    if chapter.pristine.exists():
        return chapter.pristine.read_text(encoding="utf-8")
    raise CourseError(f"{chapter.name}: neither {chapter.show(chapter.solution)} nor a pristine stub is here")
