"""What `minillm bench plan` measures: pieces of a step, and whole steps that the pieces should add up to.

    predicted = products(rows) + attention(batch, tokens) + the rest(rows)

Pieces are timed at a few sizes and read off between them along straight lines; a whole step is never used for its own
prediction. Those of one size run in turn as they do in a step, each on a clock of its own: products alone, again and
again, would find weights in the nearest cache, and threads awake, that a step finds there no more. All sizes take turns
in the same rounds, and an error is the median over rounds of predicted ÷ measured, so that a machine that is slower for
a minute is slower for both.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from minillm.bench.compare import Comparison, Parts, Spread, compare
from minillm.bench.decode import fast_copy, load_size
from minillm.bench.pieces import Call, attention, products, the_rest, whole_step
from minillm.fast_linears import can_use_fast_linears
from minillm.model.transformer import Transformer
from minillm.perf.machine import last_cache_bytes
from minillm.perf.probe import ReadProbe
from minillm.perf.traffic import decode_bytes_per_step, weight_bytes_per_step


@dataclass(frozen=True)
class Plan:
    """How much is measured. Numbers of tokens beyond a model's `max_seq_len` are left out.

    rows         at which products and the rest are timed: tokens in one forward
    batch_sizes  of the decode steps; `decode_len` tokens in each sequence after the step
    decode_lens  at which attention of a decode step is timed
    prompt_lens  of the prefills, one sequence each; attention of a prefill is timed at each
    least_s      a candidate repeats its calls until they take this long
    """

    rounds: int = 20
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 64, 256, 512)
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    decode_len: int = 256
    decode_lens: tuple[int, ...] = (64, 512)
    prompt_lens: tuple[int, ...] = (32, 128, 384)
    least_s: float = 4e-3
    probe_bytes: int = 512 * 2**20


QUICK = Plan(
    rounds=2,
    rows=(1, 2, 16),
    batch_sizes=(1, 2),
    decode_len=12,
    decode_lens=(4, 24),
    prompt_lens=(8,),
    least_s=0.0,
    probe_bytes=4 * 2**20,
)


@dataclass(frozen=True)
class Step:
    """A whole step. In prefill `query_len` = `seq_len`, in decode it is 1."""

    batch_size: int
    query_len: int
    seq_len: int

    @property
    def num_rows(self) -> int:
        """Rows of its products."""
        return self.batch_size * self.query_len


@dataclass(frozen=True)
class Forecast:
    """A step's time, predicted from its pieces and measured; medians over the same rounds.

    ratio   predicted ÷ measured, in pairs of the same round
    read_s  bytes that it must read over the bandwidth read now: a bound, not a prediction. None if the weights stay in
            the cache, or for a prefill
    """

    step: Step
    products_s: float
    attention_s: float
    rest_s: float
    measured_s: float
    ratio: Spread
    read_s: float | None

    @property
    def predicted_s(self) -> float:
        return self.products_s + self.attention_s + self.rest_s


@dataclass(frozen=True)
class Result:
    """One model's forecasts and what they were made from."""

    size: str
    linears: str  # "fast" or "core"
    num_parameters: int
    forecasts: tuple[Forecast, ...]
    comparison: Comparison


def measure(size: str, plan: Plan, probe: ReadProbe, on_round: Callable[[], object] = lambda: None) -> Result:
    """Measure one model of `minillm.bench.decode.SIZES` in float32, with the fast linears where numba is installed."""
    model, _ = load_size(size, torch.float32)
    decode_lens = [n for n in plan.decode_lens if n <= model.config.max_seq_len]
    prompt_lens = [n for n in plan.prompt_lens if n <= min(model.config.max_seq_len, plan.rows[-1])]
    steps = [Step(batch, 1, min(plan.decode_len, decode_lens[-1])) for batch in plan.batch_sizes]
    steps += [Step(1, prompt_len, prompt_len) for prompt_len in prompt_lens]
    fast = fast_copy(model)
    turns = [*_turns(fast, plan, decode_lens, prompt_lens)]
    turns += [[(_whole(step), whole_step(fast, step.batch_size, step.query_len, step.seq_len))] for step in steps]
    candidates = {f"turn {number}": InTurn(turn, plan.least_s) for number, turn in enumerate(turns)}
    timed = compare(candidates, rounds=plan.rounds, probe=lambda: probe.bytes_per_s(repeats=2), on_round=on_round)
    parts = {name: times for name, times in timed.seconds.items() if name not in candidates}
    single = Comparison(parts, timed.probes, timed.num_discarded)
    return Result(
        size=size,
        linears="fast" if can_use_fast_linears() else "core",
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        forecasts=tuple(forecast(fast, step, single, plan.rows, decode_lens) for step in steps),
        comparison=single,
    )


def forecast(
    model: Transformer, step: Step, comparison: Comparison, rows: Sequence[int], decode_lens: Sequence[int]
) -> Forecast:
    """Add up the pieces of a step, round by round."""
    seconds = comparison.seconds
    per_round = []
    for i in range(len(comparison.probes)):
        per_rows = [
            interpolate(rows, [seconds[f"{piece} {n}"][i] for n in rows], step.num_rows)
            for piece in ("products", "rest")
        ]
        if step.query_len == 1:
            values = [seconds[f"attention {step.batch_size} {n}"][i] for n in decode_lens]
            attending = interpolate(decode_lens, values, step.seq_len)
        else:
            attending = seconds[f"attention {step.query_len}"][i]
        per_round.append((per_rows[0], attending, per_rows[1]))
    measured = seconds[_whole(step)]
    medians = [Spread.of([pieces[k] for pieces in per_round]).median for k in range(3)]
    read_s = None
    if step.query_len == 1 and weight_bytes_per_step(model) >= last_cache_bytes():
        num_bytes = decode_bytes_per_step(model, step.seq_len, batch_size=step.batch_size)
        read_s = num_bytes / Spread.of(comparison.probes).median
    return Forecast(
        step,
        products_s=medians[0],
        attention_s=medians[1],
        rest_s=medians[2],
        measured_s=comparison.time(_whole(step)).median,
        ratio=Spread.of([sum(pieces) / whole for pieces, whole in zip(per_round, measured, strict=True)]),
        read_s=read_s,
    )


def interpolate(xs: Sequence[int], ys: Sequence[float], x: int) -> float:
    """The value at `x` of straight lines through the points; beyond the last two, their line goes on. A single point
    is a constant.
    """
    if len(xs) == 1:
        return ys[0]
    right = min(max(1, bisect_left(xs, x)), len(xs) - 1)
    x0, x1, y0, y1 = xs[right - 1], xs[right], ys[right - 1], ys[right]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


class InTurn:
    """Calls that run one after the other, and again until `least_s` have passed, each on a clock of its own.

    Returns `Parts`: seconds of one call by name. A name that occurs twice gets its mean.
    """

    def __init__(self, turn: Sequence[tuple[str, Call]], least_s: float) -> None:
        self.turn = list(turn)
        self.repeats = 1
        self()  # compiles
        self.repeats = max(1, math.ceil(least_s / sum(self().values())))

    def __call__(self) -> Parts:
        seconds: dict[str, list[float]] = {name: [] for name, _ in self.turn}
        for _ in range(self.repeats):
            for name, call in self.turn:
                started = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - started)
        return Parts({name: sum(times) / len(times) for name, times in seconds.items()})


def _turns(
    model: Transformer, plan: Plan, decode_lens: Sequence[int], prompt_lens: Sequence[int]
) -> Iterator[list[tuple[str, Call]]]:
    """What is measured together: the pieces of one size, in the order of a step."""
    most_sequences = max(plan.batch_sizes)
    for rows in plan.rows:
        # As many sequences of one token up to the largest batch, one sequence beyond.
        shape = (rows, 1) if rows <= most_sequences else (1, rows)
        around = [(f"products {rows}", products(model, *shape)), (f"rest {rows}", the_rest(model, *shape))]
        turn = list(around)
        for seq_len in decode_lens if rows in plan.batch_sizes else ():
            turn += [(f"attention {rows} {seq_len}", attention(model, rows, 1, seq_len)), *around]
        yield turn
    for prompt_len in prompt_lens:
        yield [(f"attention {prompt_len}", attention(model, 1, prompt_len, prompt_len))]


def _whole(step: Step) -> str:
    return f"whole {step.batch_size} {step.query_len} {step.seq_len}"
