"""minillm: LLM inference, built from scratch.

Read the package in this order:

    config.py, hf_config.py    what a model looks like; Hugging Face's config.json
    attention/                 pure functions q, k, v -> (out, lse), beginning with the oracle
    model/                     the transformer and its checkpoints
    data/                      tokenizer, story corpus
    sampling.py                from logits to the next token
    cache/                     where keys and values stay between forwards
    generation/                from a prompt to its continuation
    training/                  where the bundled weights come from
    transform.py               features wrapped around a finished model
    gemm/, fast_linears.py,    matrix products on the CPU, and their use for decoding
    fused_blocks.py
    fusion/                    what fusing saves, and a backend for torch.compile that does it
    perf/, bench/              what the machine can do, and what was reached
    cli/                       the commands
    plots/, grading/           for the course: figures, and exercises that grade themselves

What is exported here is loaded when first used, so that `import minillm` takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minillm.config import ModelConfig
    from minillm.data.tokenizer import load_tokenizer
    from minillm.generation.generate import generate, generate_batch
    from minillm.generation.stream import generate_text, stream
    from minillm.model.checkpoint import load_model, save_model
    from minillm.sampling import SamplingParams

__version__ = "0.1.0"

__all__ = [
    "ModelConfig",
    "SamplingParams",
    "__version__",
    "generate",
    "generate_batch",
    "generate_text",
    "load_model",
    "load_tokenizer",
    "save_model",
    "stream",
]

_MODULE_OF = {
    "ModelConfig": "minillm.config",
    "SamplingParams": "minillm.sampling",
    "generate": "minillm.generation.generate",
    "generate_batch": "minillm.generation.generate",
    "generate_text": "minillm.generation.stream",
    "load_model": "minillm.model.checkpoint",
    "load_tokenizer": "minillm.data.tokenizer",
    "save_model": "minillm.model.checkpoint",
    "stream": "minillm.generation.stream",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'minillm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
