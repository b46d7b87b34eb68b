"""The demo's table: one greedy continuation, decoded by every registered method."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from minillm.bench.registry import DecodingMethod, decoding_methods
from minillm.model.transformer import Transformer
from minillm.perf.machine import last_cache_bytes
from minillm.perf.probe import ReadProbe
from minillm.perf.traffic import weight_bytes_per_step
from minillm.sampling import SamplingParams

HEADER = f"{'method':26}{'same text?':>12}{'tokens/s':>12}{'speed-up':>11}{'MiB per token':>16}{'bandwidth':>13}"


@dataclass(frozen=True)
class Row:
    """What one method did."""

    name: str
    is_identical: bool  # every sequence equals the first method's
    tokens_per_s: float
    speedup: float  # over the first method
    bytes_per_token: int  # averaged over the continuation
    bandwidth_share: float | None  # None: the weights fit the last cache, memory is not what limits


def run_methods(
    model: Transformer,
    prompt_token_ids: Sequence[int],
    num_new_tokens: int,
    *,
    methods: Sequence[DecodingMethod] | None = None,
    repeats: int = 2,
    probe_bytes: int = 256 * 2**20,
    on_method: Callable[[str], object] = lambda name: None,
) -> list[Row]:
    """Decode `num_new_tokens` tokens greedily with each method (None = all registered); the best of
    `repeats` times.
    """
    methods = decoding_methods() if methods is None else methods
    params = SamplingParams(max_new_tokens=num_new_tokens, temperature=0, ignore_eos=True)
    warm_up = SamplingParams(max_new_tokens=2, temperature=0, ignore_eos=True)
    in_cache = weight_bytes_per_step(model) < last_cache_bytes()
    bandwidth = None if in_cache else ReadProbe(probe_bytes).bytes_per_s()
    expected: list[int] = []
    rows: list[Row] = []
    for method in methods:
        on_method(method.name)
        prepared = method.prepare(model)
        method.decode(prepared, prompt_token_ids, warm_up)
        seconds = float("inf")
        for _ in range(repeats):
            started = time.perf_counter()
            sequences = method.decode(prepared, prompt_token_ids, params)
            seconds = min(seconds, time.perf_counter() - started)
        expected = expected or sequences[0]
        tokens_per_s = sum(map(len, sequences)) / seconds
        seq_lens = range(len(prompt_token_ids) + 1, len(prompt_token_ids) + len(sequences[0]) + 1)
        num_bytes = sum(method.bytes_per_token(prepared, seq_len) for seq_len in seq_lens) // len(seq_lens)
        rows.append(
            Row(
                name=method.name,
                is_identical=all(sequence == expected for sequence in sequences),
                tokens_per_s=tokens_per_s,
                speedup=tokens_per_s / (rows[0].tokens_per_s if rows else tokens_per_s),
                bytes_per_token=num_bytes,
                bandwidth_share=None if bandwidth is None else num_bytes * tokens_per_s / bandwidth,
            )
        )
    return rows


def table(rows: Iterable[Row]) -> str:
    """The rows as text, in fewer than 100 columns."""
    lines = [HEADER, "-" * len(HEADER)]
    for row in rows:
        same = "yes" if row.is_identical else "NO"
        share = "in cache" if row.bandwidth_share is None else f"{row.bandwidth_share:.0%}"
        lines.append(
            f"{row.name:26}{same:>12}{row.tokens_per_s:>12.0f}{row.speedup:>10.1f}×"
            f"{row.bytes_per_token / 2**20:>16.2f}{share:>13}"
        )
    return "\n".join(lines)
