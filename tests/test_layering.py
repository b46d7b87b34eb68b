"""The architecture as a test: who may import whom, read from the sources without importing them."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 300

# From the bottom up. A part imports its own level and the levels below it, never one above.
LEVELS = [
    {"config", "hf_config", "attention", "gemm", "perf", "data", "plots"},
    {"kernels"},
    {"model", "sampling", "transform", "fast_linears", "fused_blocks", "fusion"},
    {"cache"},
    {"quant", "sparsity", "lora", "parallel", "distill"},
    {"generation", "training"},
    {"engine"},
    {"bench", "grading"},
    {"cli", "__main__"},
    {"__init__"},  # the public API: a door for users, not for the package itself
]
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}
NEVER_ONE_ANOTHER = LEVELS[4]
UPWARD_EXCEPTIONS = {("attention/dispatch.py", "kernels")}
ENVIRONMENT_EXCEPTIONS = {
    "bench/recorded.py",  # whether it measures or reads is the executing tool's business
    "kernels/processes.py",  # Triton and numba have no other switch; it sets variables of its own child only
}

CORE_LIBRARIES = {"torch", "numpy", "einops", "safetensors", "tokenizers", "tqdm"}
OPTIONAL_LIBRARIES = {"numba", "triton", "matplotlib", "PIL", "IPython", "fastapi", "uvicorn", "pydantic"}
GRADERS = {"pytest", "_pytest"}  # only grading is built on pytest
PEERS = {"transformers", "peft"}  # only bench compares with them

PLANS = {f"engine/{name}.py" for name in ("request", "block_manager", "prefix_cache", "scheduler")}
LATER_FEATURES = re.compile(
    r"paged|quant|(?<!q_)(?<!kv_)lora|tensor_parallel|kv_cache|use_cache|is_prefill", re.IGNORECASE
)


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import, lazy ones and those for type checkers included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "." * node.level + (node.module or "")
            elif node.module == "minillm":  # a part by name, or something of the public API
                for name in {alias.name for alias in node.names} - {"__version__"}:
                    yield node.lineno, f"minillm.{name if name in LEVEL else '__init__'}"
            else:
                yield node.lineno, node.module or ""


def violations(path: str, source: str) -> list[str]:
    """What the file `path` (inside minillm/, with slashes) does that the architecture forbids."""
    parts = PurePosixPath(path).parts
    part = parts[0].removesuffix(".py")
    if part not in LEVEL:
        return [f"{path}: {part!r} has no level; give it one in {Path(__file__).name}"]
    found = []
    num_lines = len(source.splitlines())
    if num_lines > MAX_LINES:
        found.append(f"{path}: {num_lines} lines, at most {MAX_LINES}")
    tree = ast.parse(source)
    for line, module in imported_modules(tree):
        if problem := import_problem(path, part, module):
            found.append(f"{path}:{line}: {problem}")
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if LEVEL[part] < LEVEL["cli"] and path not in ENVIRONMENT_EXCEPTIONS and reads_environment(node):
            found.append(f"{path}:{line}: reads an environment variable below the CLI")
        if part == "model" and (name := name_of(node)) and LATER_FEATURES.search(name):
            found.append(f"{path}:{line}: {name!r} belongs to a feature that wraps the model from outside")
    return found


def import_problem(path: str, part: str, module: str) -> str | None:
    names = module.split(".")
    if module.startswith("."):
        return f"relative import {module}: write the full name"
    if names[0] in PEERS:
        return None if part == "bench" else f"{names[0]} is for tests and the bench peer only"
    if names[0] in GRADERS:
        return None if part == "grading" else f"{names[0]} is for grading only"
    if names[0] != "minillm":
        known = names[0] in sys.stdlib_module_names | CORE_LIBRARIES | OPTIONAL_LIBRARIES
        if path in PLANS and names[0] == "torch":
            return "a plan is pure Python: no torch here"
        return None if known else f"{names[0]} is no dependency of the package"
    target = names[1] if len(names) > 1 else "__init__"
    if target not in LEVEL:
        return f"{module} has no level"
    if LEVEL[target] > LEVEL[part] and (path, target) not in UPWARD_EXCEPTIONS:
        return f"{part} (level {LEVEL[part]}) imports {target} (level {LEVEL[target]}), which is above it"
    if target != part and {target, part} <= NEVER_ONE_ANOTHER:
        return f"{part} imports {target}: these never know one another"
    if part == "model" and target == "attention" and module != "minillm.attention.full":
        return f"the model imports {module}: only the stateless default attend may be known here"
    return None


def reads_environment(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return ast.unparse(node) in {"os.environ", "os.getenv"}
    names = node.names if isinstance(node, ast.ImportFrom) and node.module == "os" else []
    return any(alias.name in {"environ", "getenv"} for alias in names)


def name_of(node: ast.AST) -> str | None:
    """The identifier that a node introduces or uses; text in docstrings and comments doesn't count."""
    for field in ("id", "attr", "arg", "name"):
        if isinstance(name := getattr(node, field, None), str):
            return name
    return None


# ---- the package


def source_files() -> list[str]:
    package = ROOT / "minillm"
    return sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py"))


@pytest.mark.parametrize("path", source_files())
def test_file_keeps_to_the_architecture(path: str) -> None:
    found = violations(path, (ROOT / "minillm" / path).read_text(encoding="utf-8"))
    assert not found, "\n".join(found)


def test_the_files_are_found() -> None:
    assert {"config.py", "model/transformer.py", "attention/naive.py"} <= set(source_files())


def test_public_api() -> None:
    """Every exported name is there, documented, and known to type checkers from where it is loaded."""
    import minillm

    tree = ast.parse((ROOT / "minillm" / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    typed = {alias.name: node.module for node in imports for alias in node.names}
    assert minillm._MODULE_OF.items() <= typed.items()
    assert {*minillm._MODULE_OF, "__version__"} == set(minillm.__all__)
    for name, module in minillm._MODULE_OF.items():
        value = getattr(minillm, name)
        assert value.__module__ == module and value.__doc__ and name in dir(minillm)
    assert not hasattr(minillm, "no_such_name")


# ---- the test can fail

BAD = [
    ("model/gqa.py", "from minillm.cache import ContiguousCache", "above it"),
    ("model/gqa.py", "from minillm.attention.flash import flash_attention", "default attend"),
    ("model/gqa.py", "from minillm import attention", "default attend"),
    ("model/gqa.py", "def forward(self, x, use_cache=False): ...", "from outside"),
    ("model/gqa.py", "class PagedAttention: ...", "from outside"),
    ("model/ffn.py", "self.lora_a = 1", "from outside"),
    ("data/tokenizer.py", "def f():\n    from minillm.model.checkpoint import load_model", "above it"),
    ("data/tokenizer.py", "if TYPE_CHECKING:\n    import minillm.model", "above it"),
    ("cache/paged.py", "from minillm import generate", "above it"),
    ("cache/paged.py", "import minillm", "above it"),
    ("generation/generate.py", "from minillm import engine", "above it"),
    ("quant/gptq.py", "from minillm.lora import LoRALinear", "never know"),
    ("lora/linear.py", "import minillm.parallel.tensor", "never know"),
    ("attention/naive.py", "from minillm.kernels import flash_attention", "above it"),
    ("engine/scheduler.py", "import torch", "no torch"),
    ("engine/block_manager.py", "from torch import Tensor", "no torch"),
    ("perf/probe.py", "import os\nos.environ['OMP_NUM_THREADS']", "environment"),
    ("perf/probe.py", "from os import getenv", "environment"),
    ("generation/generate.py", "import transformers", "only"),
    ("bench/decode.py", "import pytest", "grading only"),
    ("engine/runner.py", "from minillm.grading import Task", "above it"),
    ("training/loop.py", "import pandas", "no dependency"),
    ("training/loop.py", "from .data import shards", "full name"),
    ("sampling.py", "x = 1\n" * 301, "lines"),
    ("novelty/new.py", "x = 1", "no level"),
]

GOOD = [
    ("model/gqa.py", "from minillm.attention.full import FullAttend\nfrom minillm.model.rope import Rope"),
    ("model/mla.py", "def f(q_lora_rank, kv_lora_rank):\n    'Paged caches hold it.'"),
    ("attention/dispatch.py", "def f():\n    from minillm.kernels import flash_attention"),
    ("quant/gptq.py", "from minillm.quant.scales import f\nfrom minillm.transform import replace_linears"),
    ("generation/generate.py", "from minillm.cache import ContiguousCache\nfrom minillm import sampling"),
    ("engine/runner.py", "import torch"),
    ("bench/decode.py", "def peer():\n    import transformers"),
    ("grading/plugin.py", "import pytest\nfrom minillm.grading.task import Task"),
    ("cli/generate.py", "import os\nos.environ['X']\nfrom minillm import __version__"),
    ("sampling.py", "x = 1\n" * 300),
]


@pytest.mark.parametrize(("path", "source", "reason"), BAD)
def test_a_breach_is_found(path: str, source: str, reason: str) -> None:
    found = violations(path, source)
    assert len(found) == 1 and reason in found[0], found


@pytest.mark.parametrize(("path", "source"), GOOD)
def test_allowed_code_passes(path: str, source: str) -> None:
    assert violations(path, source) == []
