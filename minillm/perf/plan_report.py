"""A `Plan` as text in fewer than 100 columns, and as a dictionary for JSON."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from minillm.perf.plan import Plan, Timed
from minillm.perf.precision import kv_cache_bytes_per_token

GIB = 2**30
WIDTH = 96


def report(plan: Plan) -> str:
    """Everything a `Plan` answers, for the terminal."""
    parts = [_title(plan), _memory(plan), _times(plan), _batches(plan), _operations(plan), _assumptions(plan)]
    return "\n".join(line.rstrip() for part in parts for line in [*part.splitlines(), ""]).rstrip()


def as_document(plan: Plan) -> dict[str, Any]:
    """The numbers of a `Plan` in bytes and seconds."""
    wanted, memory = plan.deployment, plan.memory
    return {
        "model": wanted.shape.name,
        "model_is_exact": wanted.shape.is_exact,
        "parameters": wanted.shape.num_parameters,
        "active_parameters": wanted.shape.num_active_parameters,
        "hardware": wanted.hardware.name,
        "peak_flops_per_s": wanted.hardware.peak(wanted.number_format),
        "bytes_per_s": wanted.hardware.bytes_per_s,
        "number_format": wanted.number_format,
        "tp_size": wanted.tp_size,
        "batch_size": wanted.batch_size,
        "prompt_len": wanted.prompt_len,
        "output_len": wanted.output_len,
        "precision": vars(wanted.precision),
        "assumptions": vars(wanted.assumptions),
        "fits": memory.fits,
        "memory_bytes": {**vars(memory), "left": memory.left},
        "ways_to_fit": list(plan.ways_to_fit),
        "largest_batch": plan.largest_batch,
        "compute_bound_from": plan.compute_bound_from,
        "linears_compute_bound_from": plan.linears_compute_bound_from,
        "ttft_s": plan.ttft_s,
        "ttft_batch_s": plan.ttft_batch_s,
        "itl_first_s": plan.first.seconds,
        "itl_last_s": plan.last.seconds,
        "itl_mean_s": plan.itl_mean_s,
        "tokens_per_s": plan.tokens_per_s,
        "most_tokens_per_s": plan.most_tokens_per_s,
        "decode_tokens_per_s": plan.decode_tokens_per_s,
        "prefill": _timed_document(plan.prefill),
        "decode": _timed_document(plan.middle),
    }


def _title(plan: Plan) -> str:
    wanted, precision = plan.deployment, plan.deployment.precision
    shape = wanted.shape
    active = ""
    if shape.num_active_parameters < shape.num_parameters:
        active = f", {_parameters(shape.num_active_parameters)} of them for each token"
    notes = "" if shape.is_exact else f"\n{shape.model_type!r} is unknown here and read as a Llama of its sizes."
    if wanted.seq_len > shape.max_seq_len:
        notes += f"\nThe model was made for {shape.max_seq_len} tokens, fewer than these {wanted.seq_len}."
    return (
        f"{shape.name}: {_parameters(shape.num_parameters)} parameters{active}\n"
        f"on {wanted.tp_size} × {wanted.hardware.name}: "
        f"{wanted.hardware.peak(wanted.number_format) / 1e12:,.4g} TFLOP/s ({wanted.number_format}), "
        f"{wanted.hardware.bytes_per_s / 1e9:,.4g} GB/s, {wanted.hardware.memory_bytes / GIB:,.4g} GiB each\n"
        f"{wanted.batch_size} request{'s' * (wanted.batch_size > 1)} of {wanted.prompt_len} + {wanted.output_len} "
        f"tokens; weights {precision.bits} bits, KV cache {8 * precision.kv_bytes:.0f} bits{notes}"
    )


def _memory(plan: Plan) -> str:
    wanted, memory = plan.deployment, plan.memory
    per_token = kv_cache_bytes_per_token(wanted.rank_shape, wanted.precision)
    tokens = f"{wanted.batch_size} × {wanted.seq_len} tokens × {per_token / 1024:,.4g} KiB"
    if memory.kv_cache < wanted.batch_size * math.floor(wanted.seq_len * per_token):
        tokens += ", less beyond a window"
    share = f"{wanted.assumptions.memory_share:.0%} of {wanted.hardware.memory_bytes / GIB:,.4g}"
    lines = [
        f"{'memory of each GPU' if wanted.tp_size > 1 else 'memory':30}{'GiB':>10}",
        _row("weights", memory.weights),
        _row("KV cache", memory.kv_cache, tokens),
        _row("activations and logits", memory.workspace),
        _row("to be used", memory.budget, share),
        _row("left" if memory.fits else "missing", abs(memory.left)),
    ]
    if memory.fits:
        lines.append(f"It fits. The largest batch that does: {plan.largest_batch:,}.")
    elif plan.ways_to_fit:
        lines.append(f"IT DOES NOT FIT. It would with {', or '.join(plan.ways_to_fit)}.")
    else:
        lines.append("IT DOES NOT FIT, nor would it with 4-bit weights, an 8-bit cache and 8 of these.")
    return "\n".join(lines)


def _times(plan: Plan) -> str:
    wanted = plan.deployment
    prompts = f"TTFT, all {wanted.batch_size} prompts at once"
    lines = [] if plan.memory.fits else ["If it did:"]
    lines.append(f"{'time':30}{'estimate':>12}{'at least':>12}   bound by")
    lines.append(_time_row("TTFT, one prompt alone", plan.prefill))
    if wanted.batch_size > 1:
        lines.append(_time_row(prompts, plan.prefill_batch))
    if wanted.output_len > 1:
        lines.append(_time_row("ITL at the first token", plan.first))
        lines.append(_time_row("ITL at the last token", plan.last))
        lines.append(f"{'ITL, mean':30}{_seconds(plan.itl_mean_s):>12}{_seconds(plan.least_itl_mean_s):>12}")
    most, least_itl = plan.most_tokens_per_s, plan.least_itl_mean_s
    lines.append(f"\n{'tokens per second':30}{'estimate':>12}{'at most':>12}")
    if wanted.output_len > 1:
        one, most_one = 1 / plan.itl_mean_s, 1 / least_itl
        lines.append(f"{'one request, decoding':30}{one:12,.1f}{most_one:12,.1f}")
        lines.append(
            f"{'all requests, decoding':30}{wanted.batch_size * one:12,.1f}{wanted.batch_size * most_one:12,.1f}"
        )
    lines.append(f"{'all, prompts included':30}{plan.tokens_per_s:12,.1f}{most:12,.1f}")
    return "\n".join(lines)


def _batches(plan: Plan) -> str:
    """From which batch on arithmetic, and no longer memory, limits a decode step, or why none does."""
    wanted = plan.deployment
    ridge = wanted.hardware.ridge(wanted.number_format)
    linears, step = plan.linears_compute_bound_from, plan.compute_bound_from
    text = f"Decoding reaches the ridge of {ridge:,.0f} FLOPs a byte: "
    if linears is None:
        text += "its matrix products at no batch, since narrow matrices move more activations than weights; "
    else:
        text += f"its matrix products from a batch of {linears:,}; "
    if step is not None:
        text += f"the whole step from a batch of {step:,}"
        text += "." if step <= plan.largest_batch else f" ({plan.largest_batch:,} fit)."
    else:
        attention = next(part for part, _ in plan.middle.operations if part.kind == "attention")
        text += (
            "the whole step at no batch, since each sequence reads a cache of its own, and attention stays at "
            f"{attention.intensity:.1f} FLOPs a byte."
        )
    return textwrap.fill(text, WIDTH)


def _operations(plan: Plan) -> str:
    heads = f"{'GFLOPs':>11}{'MiB':>11}{'FLOPs/B':>9}{'time':>6}"
    lines = [
        f"{'':20}{'prefill of one prompt':^37} {'a decode step, half-way':^37}",
        f"{'on each GPU' if plan.deployment.tp_size > 1 else '':20}{heads} {heads}",
    ]
    columns = [
        {part.name: (part, seconds) for part, seconds in step.operations} for step in (plan.prefill, plan.middle)
    ]
    totals = (plan.prefill.seconds, plan.middle.seconds)
    for name in columns[0]:
        cells = []
        for column, total_seconds in zip(columns, totals, strict=True):
            part, seconds = column[name]
            intensity = f"{part.intensity:9,.1f}" if part.flops else f"{'':9}"
            cells.append(
                f"{part.flops / 1e9:11,.1f}{part.num_bytes / 2**20:11,.1f}{intensity}{seconds / total_seconds:6.0%}"
            )
        lines.append(f"{name:20}{cells[0]} {cells[1]}")
    if plan.deployment.tp_size > 1:
        cells = [
            f"{'':11}{step.communication_bytes / 2**20:11,.1f}{'':9}{step.communication_s / step.seconds:6.0%}"
            for step in (plan.prefill, plan.middle)
        ]
        lines.append(f"{'all-reduces, sent':20}{cells[0]} {cells[1]}")
    return "\n".join(lines)


def _assumptions(plan: Plan) -> str:
    wanted, assumed = plan.deployment, plan.deployment.assumptions
    text = f"Estimates assume {assumed.mfu:.0%} of peak FLOP/s (--mfu) and {assumed.mbu:.0%} of bandwidth (--mbu)"
    if wanted.tp_size > 1:
        text += (
            f", and all-reduces of {assumed.all_reduce_s * 1e6:.0f} µs (--all-reduce-us) plus their bytes at "
            f"{wanted.hardware.link_bytes_per_s / 1e9:.0f} GB/s"
        )
    if wanted.hardware.num_cores and plan.middle.least_s < 1e-3:
        text += ". Launching kernels, some µs each, is not counted, and would be most of steps this short"
    text += ". At least, at most: full peaks, computing and moving overlapped, no byte moved twice."
    return textwrap.fill(text, WIDTH)


def _row(name: str, num_bytes: int, note: str = "") -> str:
    return f"{'  ' + name:30}{num_bytes / GIB:10,.3f}" + (f"   {note}" if note else "")


def _time_row(name: str, timed: Timed) -> str:
    return f"{name:30}{_seconds(timed.seconds):>12}{_seconds(timed.least_s):>12}   {timed.bound}"


def _seconds(seconds: float) -> str:
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms")):
        if seconds < limit:
            return f"{seconds * factor:,.1f} {unit}"
    return f"{seconds:,.2f} s"


def _parameters(count: int) -> str:
    return f"{count / 1e9:,.2f} B" if count >= 1e9 else f"{count / 1e6:,.1f} M"


def _timed_document(timed: Timed) -> dict[str, Any]:
    return {
        "seconds": timed.seconds,
        "least_s": timed.least_s,
        "bound": timed.bound,
        "communication_s": timed.communication_s,
        "communication_bytes": timed.communication_bytes,
        "operations": [{**vars(part), "seconds": seconds} for part, seconds in timed.operations],
    }
