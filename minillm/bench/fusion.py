"""What `minillm bench fusion` measures: a model as it is, with fused operators, and compiled by torch's inductor.

Prefill and a decode step of one model take turns under every candidate (see `compare`). All keep the attend outside the
graph (`minillm.fusion.outside`), so that they compile the same parts. The first call of each, which compiles, is timed
apart. A candidate whose logits aren't those of the model as it is isn't timed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from minillm.bench.compare import Comparison, compare
from minillm.bench.decode import load_size
from minillm.fusion.backend import Backend
from minillm.fusion.model import FusedModel, fuse
from minillm.fusion.patterns import PATTERNS
from minillm.generation.generate import last_logits, make_cache
from minillm.model.transformer import Transformer

EAGER, FUSED = "eager", "fused"
COMPILED = {"inductor": "inductor", "fused + inductor": "inductor", "max-autotune": "max-autotune-no-cudagraphs"}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}  # of logits, relative to the largest


@dataclass(frozen=True)
class Plan:
    """How much is measured: `steps` decode steps are one call, so that the clock has something to read."""

    rounds: int = 20
    prefill_len: int = 256
    context_len: int = 128  # tokens in the cache at a decode step
    steps: int = 8
    candidates: tuple[str, ...] = (EAGER, FUSED, *COMPILED)


QUICK = Plan(rounds=2, prefill_len=9, context_len=5, steps=2, candidates=(EAGER, FUSED))


@dataclass(frozen=True)
class Result:
    """Measurements of one model. Keys are candidates; `skipped` says why one isn't among them."""

    size: str
    dtype: str
    device: str
    weights: str  # "bundled" or "random"
    num_threads: int
    prefill_len: int
    context_len: int
    steps: int
    calls: dict[str, int]  # operations of the blocks' graph, for those that run it node by node
    differences: dict[str, float]  # of logits from eager's, relative to the largest
    compile_s: dict[str, float]  # the first prefill and the first step
    skipped: dict[str, str]
    prefill: Comparison
    decode: Comparison

    def step_s(self, name: str) -> float:
        """Median time of one decode step."""
        return self.decode.time(name).median / self.steps


def measure(
    size: str,
    dtype: torch.dtype,
    plan: Plan,
    *,
    device: torch.device | str = "cpu",
    on_round: Callable[[], object] = lambda: None,
) -> Result:
    """Measure one model; makes TorchDynamo forget what it compiled. Raises ValueError for unknown sizes and candidates.

    Candidates that can't be compiled here are skipped, with the reason in the result.
    """
    unknown = set(plan.candidates) - {EAGER, FUSED, *COMPILED}
    if unknown:
        raise ValueError(f"candidates must be of {', '.join((EAGER, FUSED, *COMPILED))}, got {', '.join(unknown)}")
    torch.compiler.reset()
    model, weights = load_size(size, dtype)
    model = model.to(device)
    skipped = {name: reason for name in plan.candidates if (reason := obstacle(name, torch.device(device)))}
    runners = {EAGER: Runner(model, plan)}
    compile_s: dict[str, float] = {}
    differences: dict[str, float] = {}
    expected = runners[EAGER].logits()
    for name in plan.candidates:
        if name == EAGER or name in skipped:
            continue
        runner = Runner(made(name, model), plan)
        started = time.perf_counter()
        try:
            found = runner.logits()
        except Exception as error:  # whatever a compiler may raise
            inner = getattr(error, "inner_exception", error)  # TorchDynamo wraps what a backend raises
            skipped[name] = f"{type(inner).__name__}: {str(inner).strip().partition(chr(10))[0][:120]}"
            continue
        compile_s[name] = time.perf_counter() - started
        differences[name] = max(
            float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)
        )
        if differences[name] > TOLERANCE[dtype]:
            skipped[name] = f"its logits differ by {differences[name]:.1e}"
            continue
        runners[name] = runner
    prefill = compare({name: r.prefill for name, r in runners.items()}, rounds=plan.rounds, on_round=on_round)
    decode = compare({name: r.decode for name, r in runners.items()}, rounds=plan.rounds, on_round=on_round)
    result = Result(
        size=size,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        weights=weights,
        num_threads=torch.get_num_threads(),
        prefill_len=plan.prefill_len,
        context_len=plan.context_len,
        steps=plan.steps,
        calls=_calls(runners),
        differences=differences,
        compile_s=compile_s,
        skipped=skipped,
        prefill=prefill,
        decode=decode,
    )
    torch.compiler.reset()
    return result


class Runner:
    """One candidate with a cache that is `context_len` tokens full. A call is over when its result is there."""

    def __init__(self, model: Any, plan: Plan) -> None:
        self.model = model
        self.plan = plan
        self.prompt = [1 + i % 50 for i in range(max(plan.prefill_len, plan.context_len))]
        self.cache = make_cache(self.model, batch_size=1, max_seq_len=plan.context_len + plan.steps)
        with torch.inference_mode():
            # Values don't matter for time, but they are those of the model itself, whatever the candidate.
            base: Any = getattr(model, "base", model)
            last_logits(base, self.cache, [self.prompt[: plan.context_len]])

    @torch.inference_mode()
    def prefill(self) -> Tensor:
        """A prompt of `prefill_len` tokens, up to the logits of its last one, (vocab_size,)."""
        cache = make_cache(self.model, batch_size=1, max_seq_len=self.plan.prefill_len)
        return self._done(last_logits(self.model, cache, [self.prompt[: self.plan.prefill_len]])[0])

    @torch.inference_mode()
    def decode(self) -> Tensor:
        """`steps` steps of one token each behind the context; the logits of the last, (vocab_size,)."""
        self.cache.crop([self.plan.context_len])
        for _ in range(self.plan.steps):
            logits = last_logits(self.model, self.cache, [[7]])
        return self._done(logits[0])

    def logits(self) -> list[Tensor]:
        """Those of a prefill and of a decode step, in float32."""
        return [self.prefill().float(), self.decode().float()]

    def _done(self, logits: Tensor) -> Tensor:
        if logits.is_cuda:
            torch.cuda.synchronize(logits.device)
        return logits


def made(name: str, model: Transformer) -> FusedModel:
    """The model behind one of the compiling candidates, over the same weights."""
    then: Backend | None = None if name == FUSED else inductor(COMPILED[name])
    return fuse(model, PATTERNS if name.startswith(FUSED) else (), then=then)


def inductor(mode: str) -> Backend:
    """Torch's code generator as a backend: "inductor" as it comes, or one of the modes of `torch.compile`."""

    def compile_graph(graph: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        from torch._inductor.compile_fx import compile_fx

        options = None if mode == "inductor" else torch._inductor.list_mode_options(mode)
        return compile_fx(graph, list(example_inputs), config_patches=options)  # type: ignore[return-value]

    return compile_graph


def obstacle(name: str, device: torch.device) -> str | None:
    """Why a candidate can't run here, or None: inductor writes C++ for a CPU, Triton for a GPU."""
    if name not in COMPILED:
        return None
    if device.type == "cpu" and not any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++")):
        return "no C++ compiler, which inductor needs (g++ or clang++)"
    return None


def _calls(runners: dict[str, Runner]) -> dict[str, int]:
    """Operations of the graph of the blocks: before fusing for the model as it is, after it for the fused one."""
    fused = runners.get(FUSED)
    if fused is None:
        return {}
    report = fused.model.reports[-1]
    return {EAGER: report.nodes_before, FUSED: report.nodes_after}
