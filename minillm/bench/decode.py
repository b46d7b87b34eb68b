"""What `minillm bench decode` measures, for one model at a time: decoding, the cost of rows, prefill.

Everything about one model is interleaved (see `compare`) and shares one set of weights in memory: ours as
it is ("core"), with the fast linears ("fast"), with fused blocks too ("fused"), and the peer, called in a bare loop
and through `generate()`. All decode greedily from a prompt of one token, so that n new tokens are n steps of one row.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from minillm.bench.compare import Comparison, compare
from minillm.bench.peer import can_use_peer, make_peer, peer_generate, peer_loop
from minillm.config import PRESETS, ModelConfig
from minillm.fast_linears import can_use_fast_linears, use_fast_linears
from minillm.fused_blocks import use_fused_blocks
from minillm.generation.generate import generate, last_logits, make_cache
from minillm.model.checkpoint import load_model
from minillm.model.transformer import Transformer
from minillm.perf.probe import ReadProbe
from minillm.perf.traffic import decode_bytes_per_step, weight_bytes_per_step
from minillm.sampling import SamplingParams

SIZES = {
    # Small enough for tests, and not divisible by anything.
    "tiny": replace(
        PRESETS["stories-5m"],
        vocab_size=301,
        hidden_size=48,
        intermediate_size=70,
        num_layers=2,
        num_heads=6,
        num_kv_heads=3,
        head_dim=10,
    ),
    **PRESETS,
}


@dataclass(frozen=True)
class Plan:
    """How much is measured. Tokens are decoded per call; a model of more weights gets fewer, see
    `num_tokens`.
    """

    rounds: int = 20
    side_rounds: int = 7  # rounds for rows and prefill
    most_tokens: int = 64
    row_counts: tuple[int, ...] = (1, 2, 4, 8, 32)
    prefill_len: int = 256
    probe_bytes: int = 512 * 2**20


QUICK = Plan(rounds=2, side_rounds=1, most_tokens=3, row_counts=(1, 2), prefill_len=16, probe_bytes=4 * 2**20)


@dataclass(frozen=True)
class Result:
    """Measurements of one model in one dtype, under the names "core", "fast", "fused", "peer loop", "peer generate"."""

    size: str
    dtype: str
    weights: str  # "bundled" or "random"
    num_parameters: int
    weight_bytes: int
    bytes_per_token: int  # moved by an average step of `decode`
    num_tokens: int  # decoded in each call of `decode`
    decode: Comparison
    row_steps: int
    rows: Comparison | None  # keys "fast 4": `row_steps` steps of 4 rows
    prefill_len: int
    prefill: Comparison | None
    row_counts: tuple[int, ...] = field(default=())


def load_size(size: str, dtype: torch.dtype) -> tuple[Transformer, str]:
    """The bundled model of that name if there is one, else random weights of that shape; ("bundled" |
    "random").

    Raises ValueError for an unknown size.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    try:
        return load_model(size, dtype=dtype), "bundled"
    except FileNotFoundError:
        return random_model(SIZES[size], dtype), "random"


def random_model(config: ModelConfig, dtype: torch.dtype) -> Transformer:
    """Random weights that keep activations in range; speed does not depend on what they are."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    model.to_empty(device="cpu")
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02, generator=generator) if parameter.dim() > 1 else parameter.fill_(1.0)
    return model.eval()


def fast_copy(model: Transformer) -> Transformer:
    """A model with fast linears over the same parameters: the modules are copied, the weights are not."""
    shared = {id(parameter): parameter for parameter in model.parameters()}
    return use_fast_linears(copy.deepcopy(model, shared))


def fused_copy(model: Transformer) -> Transformer:
    """A model with fast linears and fused blocks over the same parameters."""
    return use_fused_blocks(fast_copy(model))


def num_tokens(weight_bytes: int, most_tokens: int) -> int:
    """Tokens a call: as many as move about 4 GiB, between 4 and `most_tokens`."""
    return max(min(4, most_tokens), min(most_tokens, 4 * 2**30 // weight_bytes))


def measure(
    size: str, dtype: torch.dtype, plan: Plan, probe: ReadProbe, on_round: Callable[[], object] = lambda: None
) -> Result:
    """Measure one model. Uses torch's number of threads throughout; `on_round` is called after each round."""
    model, weights = load_size(size, dtype)
    ours = {"core": model}
    if can_use_fast_linears():
        ours |= {"fast": fast_copy(model), "fused": fused_copy(model)}
    peer = make_peer(model) if can_use_peer() else None
    weight_bytes = weight_bytes_per_step(model)
    tokens = num_tokens(weight_bytes, plan.most_tokens)
    row_steps = max(1, tokens // 4)

    def with_probe(candidates: dict[str, Callable[[], object]], rounds: int) -> Comparison:
        return compare(candidates, rounds=rounds, probe=lambda: probe.bytes_per_s(repeats=2), on_round=on_round)

    decode = with_probe(decode_candidates(ours, peer, tokens), plan.rounds)
    rows = with_probe(row_candidates(ours, peer, plan.row_counts, row_steps), plan.side_rounds)
    prefill = with_probe(prefill_candidates(ours, peer, plan.prefill_len), plan.side_rounds)
    return Result(
        size=size,
        dtype=str(dtype).removeprefix("torch."),
        weights=weights,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        weight_bytes=weight_bytes,
        bytes_per_token=sum(decode_bytes_per_step(model, n + 1) for n in range(tokens)) // tokens,
        num_tokens=tokens,
        decode=decode,
        row_steps=row_steps,
        rows=rows,
        prefill_len=plan.prefill_len,
        prefill=prefill,
        row_counts=plan.row_counts,
    )


def decode_candidates(ours: dict[str, Transformer], peer: Any, tokens: int) -> dict[str, Callable[[], object]]:
    """Greedy decoding of `tokens` tokens after a prompt of one."""
    prompt, params = [1], SamplingParams(max_new_tokens=tokens, temperature=0, ignore_eos=True)
    candidates: dict[str, Callable[[], object]] = {
        name: partial(generate, model, prompt, params) for name, model in ours.items()
    }
    if peer is not None:
        candidates["peer loop"] = partial(peer_loop, peer, prompt, tokens)
        candidates["peer generate"] = partial(peer_generate, peer, prompt, tokens)
    return candidates


def row_candidates(
    ours: dict[str, Transformer], peer: Any, row_counts: tuple[int, ...], steps: int
) -> dict[str, Callable[[], object]]:
    """`steps` steps of each number of sequences side by side, the best token of each fed back."""
    candidates: dict[str, Callable[[], object]] = {}
    for rows in row_counts:
        for name, model in ours.items():
            candidates[f"{name} {rows}"] = partial(decode_rows, model, rows, steps)
        if peer is not None:
            candidates[f"peer loop {rows}"] = partial(peer_loop, peer, [1], steps, batch_size=rows)
    return candidates


@torch.inference_mode()
def decode_rows(model: Transformer, rows: int, steps: int) -> None:
    """Decode `steps` tokens for each of `rows` sequences in one cache."""
    cache = make_cache(model, batch_size=rows, max_seq_len=steps)
    new_token_ids = [[1]] * rows
    for _ in range(steps):
        logits = last_logits(model, cache, new_token_ids)
        new_token_ids = logits.argmax(dim=-1, keepdim=True).tolist()


def prefill_candidates(ours: dict[str, Transformer], peer: Any, prefill_len: int) -> dict[str, Callable[[], object]]:
    """A prompt of `prefill_len` tokens, up to the logits of its last one."""
    prompt = [1 + i % 50 for i in range(prefill_len)]

    @torch.inference_mode()
    def prefill(model: Transformer) -> None:
        last_logits(model, make_cache(model, batch_size=1, max_seq_len=prefill_len), [prompt])

    candidates: dict[str, Callable[[], object]] = {name: partial(prefill, model) for name, model in ours.items()}
    if peer is not None:
        candidates["peer loop"] = partial(peer_loop, peer, prompt, 1)
    return candidates
