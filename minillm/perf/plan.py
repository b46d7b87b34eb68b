"""Plan a deployment: does a model fit on a GPU, what limits it, how many tokens a second.

    shape, hardware = read_shape("config.json"), find_hardware("h100")
    result = plan(shape, hardware, batch_size=32, prompt_len=4096, output_len=512)
    result.memory.fits, result.ttft_s, result.itl_mean_s, result.tokens_per_s, result.largest_batch

A time is the sum over operations of the longer of computing and moving, at shares of the peaks that real systems
reach (`Assumptions`). Beside it stands the least that physics allows. Text: `minillm.perf.plan_report`.

Held against what others published (tests/perf/test_plan.py): all 15 throughputs of Llama-2 that TensorRT-LLM lists for
A100 and H100 lie below the bound, 12 within 30 % of the estimate, and the others, of the 70B, below it; likewise times
to the first token, and decoding by gpt-fast.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from minillm.perf.cost import Operation, Phase, operations
from minillm.perf.deployment import DEFAULTS, MOST_SEQUENCES, Assumptions, Deployment, Memory
from minillm.perf.hardware import Hardware
from minillm.perf.model_shape import ModelShape
from minillm.perf.precision import Precision
from minillm.perf.roofline import least_seconds, operation_seconds
from minillm.perf.sharding import communication

SAMPLES = 17  # decode steps timed for the mean, evenly spaced over the output


@dataclass(frozen=True)
class Timed:
    """One or more forwards: their operations on one GPU, the time of each, and the time between GPUs.

    least_s  no implementation is faster
    bound    "compute", "memory" or "communication": where most of the time goes
    """

    operations: tuple[tuple[Operation, float], ...]
    communication_s: float
    communication_bytes: float
    least_s: float
    bound: str

    @property
    def seconds(self) -> float:
        """Estimated."""
        return sum(seconds for _, seconds in self.operations) + self.communication_s


@dataclass(frozen=True)
class Plan:
    """The answers.

    prefill             one prompt alone; prefill_batch: those of the whole batch, one chunk after the other
    first, middle, last steps of the whole batch at the start, in the middle and at the end of the output
    itl_mean_s          mean time of a step; least_itl_mean_s no implementation is faster
    largest_batch       that fits, 0 if none does
    compute_bound_from  batch from which the middle step computes longer than it moves; None = no batch does.
                        linears_compute_bound_from: its matrix products, without attention
    ways_to_fit         changes that would make it fit, where it doesn't
    """

    deployment: Deployment
    memory: Memory
    prefill: Timed
    prefill_batch: Timed
    first: Timed
    middle: Timed
    last: Timed
    itl_mean_s: float
    least_itl_mean_s: float
    largest_batch: int
    compute_bound_from: int | None
    linears_compute_bound_from: int | None
    ways_to_fit: tuple[str, ...]

    @property
    def ttft_s(self) -> float:
        """Until the first token of one request alone."""
        return self.prefill.seconds

    @property
    def ttft_batch_s(self) -> float:
        """Until the whole batch has its first tokens, when all requests come at once."""
        return self.prefill_batch.seconds

    @property
    def decode_tokens_per_s(self) -> float:
        """Of all requests together while they decode."""
        return self.deployment.batch_size / self.itl_mean_s

    @property
    def tokens_per_s(self) -> float:
        """Output tokens of the batch over the time from its prompts to its last token."""
        return self._throughput(self.ttft_batch_s, self.itl_mean_s)

    @property
    def most_tokens_per_s(self) -> float:
        """`tokens_per_s` that no implementation exceeds which prefills first and decodes then."""
        return self._throughput(self.prefill_batch.least_s, self.least_itl_mean_s)

    def _throughput(self, ttft_s: float, itl_s: float) -> float:
        wanted = self.deployment
        return wanted.batch_size * wanted.output_len / (ttft_s + (wanted.output_len - 1) * itl_s)


def plan(
    shape: ModelShape,
    hardware: Hardware,
    *,
    batch_size: int = 1,
    prompt_len: int,
    output_len: int,
    bits: int = 16,
    group_size: int | None = None,
    activation_bits: int | None = None,
    kv_bits: int | None = None,
    tp_size: int = 1,
    assumptions: Assumptions = DEFAULTS,
) -> Plan:
    """Plan `batch_size` requests of `prompt_len` + `output_len` tokens, served together by `tp_size` GPUs.

    bits, group_size, activation_bits, kv_bits: see `Precision`. Raises ValueError as `Deployment` and `Precision` do.
    """
    precision = Precision(bits, group_size, activation_bits=activation_bits, kv_bits=kv_bits)
    wanted = Deployment(shape, hardware, batch_size, prompt_len, output_len, precision, tp_size, assumptions)
    # The first token comes from the prefill; each step of decoding sees one token more.
    first, last = prompt_len + 1, max(prompt_len + 1, prompt_len + output_len - 1)
    middle = (first + last) // 2
    steps = {
        seq_len: timed(wanted, [Phase.decode(batch_size, seq_len)]) for seq_len in {middle, *_samples(first, last)}
    }
    chunk = assumptions.prefill_chunk
    return Plan(
        deployment=wanted,
        memory=wanted.memory,
        prefill=timed(wanted, prefill_phases(1, prompt_len, chunk)),
        prefill_batch=timed(wanted, prefill_phases(batch_size, prompt_len, chunk)),
        first=steps[first],
        middle=steps[middle],
        last=steps[last],
        itl_mean_s=_mean([(seq_len, steps[seq_len].seconds) for seq_len in _samples(first, last)]),
        least_itl_mean_s=_mean([(seq_len, steps[seq_len].least_s) for seq_len in _samples(first, last)]),
        largest_batch=wanted.largest_batch(),
        compute_bound_from=_compute_bound_from(wanted, middle, {"linear", "attention", "other"}),
        linears_compute_bound_from=_compute_bound_from(wanted, middle, {"linear"}),
        ways_to_fit=() if wanted.memory.fits else tuple(wanted.ways_to_fit()),
    )


def prefill_phases(batch_size: int, prompt_len: int, chunk: int) -> list[Phase]:
    """Forwards of at most `chunk` tokens that prefill all prompts: several prompts in one, or one in several."""
    if prompt_len <= chunk:
        together = chunk // prompt_len
        full, rest = divmod(batch_size, together)
        return [Phase.prefill(together, prompt_len)] * full + ([Phase.prefill(rest, prompt_len)] if rest else [])
    ends = [*range(chunk, prompt_len, chunk), prompt_len]
    starts = [0, *ends[:-1]]
    one = [
        Phase(1, end - start, end, num_logits=1 if end == prompt_len else 0)
        for start, end in zip(starts, ends, strict=True)
    ]
    return one * batch_size


def timed(wanted: Deployment, phases: Iterable[Phase]) -> Timed:
    """The time of one forward after the other on the deployment's GPUs."""
    assumed, hardware, number_format = wanted.assumptions, wanted.hardware, wanted.number_format
    sums: dict[str, tuple[Operation, float]] = {}
    time_of = {"compute": 0.0, "memory": 0.0, "communication": 0.0}
    sent = least_s = 0.0
    for phase, count in Counter(phases).items():
        parts = operations(wanted.rank_shape, phase, wanted.precision)
        least_s += count * least_seconds(parts, hardware, number_format)
        for part in parts:
            seconds = count * operation_seconds(part, hardware, number_format, mfu=assumed.mfu, mbu=assumed.mbu)
            computing = count * part.flops / (assumed.mfu * hardware.peak(number_format))
            time_of["compute" if computing >= seconds else "memory"] += seconds
            before, seconds_before = sums.get(part.name, (part * 0, 0.0))
            sums[part.name] = (before + part * count, seconds_before + seconds)
        exchange = communication(wanted.shape, phase, wanted.precision, wanted.tp_size)
        sent += count * exchange.num_bytes
        time_of["communication"] += count * exchange.count * assumed.all_reduce_s
    if sent:
        time_of["communication"] += sent / hardware.link_bytes_per_s
    return Timed(
        tuple(sums.values()),
        communication_s=time_of["communication"],
        communication_bytes=sent,
        least_s=least_s,
        bound=max(time_of, key=lambda resource: time_of[resource]),
    )


def _compute_bound_from(wanted: Deployment, seq_len: int, kinds: set[str]) -> int | None:
    """The smallest batch whose decode step has more FLOPs for each byte than the ridge, at full peaks."""

    def computes_longer(batch_size: int) -> bool:
        found = operations(wanted.rank_shape, Phase.decode(batch_size, seq_len), wanted.precision)
        parts = [part for part in found if part.kind in kinds]
        intensity = sum(part.flops for part in parts) / sum(part.num_bytes for part in parts)
        return intensity >= wanted.hardware.ridge(wanted.number_format)

    if not computes_longer(MOST_SEQUENCES):
        return None
    below, above = 0, MOST_SEQUENCES
    while above - below > 1:
        half = (below + above) // 2
        below, above = (below, half) if computes_longer(half) else (half, above)
    return above


def _samples(first: int, last: int) -> list[int]:
    count = min(SAMPLES, last - first + 1)
    return sorted({first + (last - first) * i // max(1, count - 1) for i in range(count)})


def _mean(points: list[tuple[int, float]]) -> float:
    """The mean of a function between its first and last point, straight lines between them."""
    if len(points) == 1:
        return points[0][1]
    pairs = list(zip(points, points[1:], strict=False))
    area = sum((y0 + y1) / 2 * (x1 - x0) for (x0, y0), (x1, y1) in pairs)
    return area / (points[-1][0] - points[0][0])
