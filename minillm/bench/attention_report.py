"""The results of `minillm bench attention` as tables, as JSON, and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minillm.bench.attention import FLASH, NAIVE, OURS, V1, V2
from minillm.bench.attention_check import Absence
from minillm.bench.attention_peers import BACKENDS, FLEX, SDPA
from minillm.bench.attention_race import Race
from minillm.bench.attention_shape import AttentionShape
from minillm.bench.compare import Spread

GOAL = 0.5  # of the speed of torch's attention
GIGA, MIB, GIB = 1e9, 2**20, 2**30


def heading(shape: AttentionShape, dtype: str, *, backward: bool, absent: Mapping[str, Absence]) -> str:
    """What is measured, and who takes no part at any length."""
    rule = "causal" if shape.causal else "not causal"
    rule += "" if shape.window is None else f", a window of {shape.window:,} keys"
    lines = [
        f"attention of a text to itself, {'forward and backward' if backward else 'forward'}: {rule}, {dtype},",
        f"batch {shape.batch}, {heads(shape)}",
    ]
    return "\n".join([*lines, *absences(absent)])


def heads(shape: AttentionShape) -> str:
    """As "8 heads to 2 KV heads of 64"."""
    dims = f"{shape.k_head_dim}" if shape.k_head_dim == shape.v_head_dim else f"{shape.k_head_dim}/{shape.v_head_dim}"
    return f"{shape.num_heads} heads to {shape.num_kv_heads} KV head{'s' * (shape.num_kv_heads > 1)} of {dims}"


def absences(absent: Mapping[str, Absence]) -> list[str]:
    """A line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, absence in absent.items():
        by_reason.setdefault(f"{'WRONG, ' if absence.is_wrong else ''}{absence.reason}", []).append(name)
    return [f"  not timed: {', '.join(names)}: {reason}" for reason, names in by_reason.items()]


def table(race: Race, *, already_said: Mapping[str, Absence] | None = None) -> str:
    """One length in 90 columns. Ratios are medians with quartiles; larger is faster."""
    comparison = race.comparison
    probe = probe_name(race)
    lines = [
        f"{race.shape.q_len:,} tokens: {race.flops / GIGA:.3g} GFLOP; {len(comparison.probes)} rounds "
        f"({comparison.num_discarded} discarded)",
        f"  {limits(race)}",
        f"  {'':16}{'ms':>9}  {f'× {SDPA}':>20}  {probe if race.compute_flops else '':>20}{'extra MiB':>12}",
    ]
    for name in race.names:
        ratio = spread_text(comparison.speedup(name, over=SDPA)) if SDPA in race.names else "no peer"
        share = race.compute_share(name)
        peak = f"{race.peak_bytes[name] / MIB:12.1f}" if name in race.peak_bytes else ""
        lines.append(
            f"  {name:16}{ms(comparison.time(name).median):>9}  {ratio:>20}"
            f"  {spread_text(share) if share else '':>20}{peak}"
        )
    new = {name: absence for name, absence in race.absent.items() if name not in (already_said or {})}
    return "\n".join([*lines, *absences(new)])


def limits(race: Race) -> str:
    """The least time of a call: computing, moving, and the speeds of the probes they come from."""
    compute_s, move_s = race.compute_s(), race.move_s()
    computing, moving = "computing: no probe without numba", "q, k, v, out stay in the cache"
    if compute_s is not None and race.compute_rate is not None:
        computing = f"computing {ms(compute_s)} ms at {race.compute_rate / GIGA:,.0f} GFLOP/s ({probe_name(race)})"
    if move_s is not None:
        moving = f"moving {ms(move_s)} ms at {race.read_rate / GIB:.1f} GiB/s"
    return f"at least {computing}; {moving}"


def probe_name(race: Race) -> str:
    """The compute probe of the device: multiply-adds in float32 on a CPU, a matrix product on a GPU."""
    return "matmul probe" if race.device == "cuda" else "FMA probe" + (" fp32" if race.dtype != "float32" else "")


def verdict(races: Sequence[Race]) -> str:
    """How `flash_attention` compares with torch's at the length where it does worst; "" if one of them is missing."""
    ratios = [
        (race.comparison.speedup(FLASH, over=SDPA).median, race.shape.q_len)
        for race in races
        if {FLASH, SDPA} <= set(race.names)
    ]
    if not ratios:
        return ""
    ratio, length = min(ratios)
    return f"{FLASH}: {ratio:.2f} or more of {SDPA}'s speed (least at {length:,} tokens); the goal is {GOAL}"


def as_document(races: Sequence[Race], machine: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Everything measured, for JSON: machine, settings, times in seconds, probes in FLOP/s, memory in bytes."""
    return {"machine": machine, "settings": settings, "results": [race_document(race) for race in races]}


def race_document(race: Race) -> dict[str, Any]:
    """One problem: what was timed, what it must compute and move, and each candidate's figures."""
    results = {}
    for name in race.names:
        share = race.compute_share(name)
        results[name] = {
            "seconds": vars(race.comparison.time(name)),
            "over_sdpa": vars(race.comparison.speedup(name, over=SDPA)) if SDPA in race.names else None,
            "compute_share": vars(share) if share else None,
            "peak_bytes": race.peak_bytes.get(name),
        }
    return {
        "shape": asdict(race.shape),
        "dtype": race.dtype,
        "device": race.device,
        "backward": race.backward,
        "flops": race.flops,
        "least_bytes": race.shape.least_bytes(race.bytes_per_number, backward=race.backward),
        "flops_per_s": race.compute_rate,
        "read_bytes_per_s": race.read_rate,
        "limit_s": race.limit_s(),
        "results": results,
        "absent": {name: absence._asdict() for name, absence in race.absent.items()},
        "comparison": vars(race.comparison),
    }


def write_plot(races: Sequence[Race], file: Path) -> None:
    """A PNG, all of it or nothing: time and memory against length. Raises ValueError without matplotlib."""
    try:
        from minillm import plots
    except ImportError as error:
        raise ValueError("--plot needs matplotlib: pip install minillm[plots]") from error
    fig, (times, memory) = plots.figure(11.0, 5.0, ncols=2)
    lengths = [race.shape.q_len for race in races]
    styles = {
        NAIVE: (plots.ORANGE, "o-"),
        V1: (plots.SKY, "s-"),
        V2: (plots.PURPLE, "D-"),
        FLASH: (plots.BLUE, "o-"),
        SDPA: (plots.INK, "o-"),
        **{name: (plots.GREY, style) for name, style in zip(BACKENDS, ("v:", "^:", "<:", ">:"), strict=True)},
        FLEX: (plots.YELLOW, "P-"),
    }
    for name, (color, style) in styles.items():
        at = [race for race in races if name in race.names]
        width = 2.6 if name == FLASH else 1.5
        x = [race.shape.q_len for race in at]
        if at:
            times.plot(
                x, [race.comparison.time(name).median * 1e3 for race in at], style, color=color, label=name, lw=width
            )
        if at and all(name in race.peak_bytes for race in at):
            memory.plot(x, [race.peak_bytes[name] / MIB for race in at], style, color=color, lw=width)
    if all(race.limit_s() for race in races):
        limit = [race.limit_s() * 1e3 for race in races]
        times.plot(lengths, limit, "--", color=plots.GREEN, label="physical limit")
    for ax in (times, memory):
        ax.set(xscale="log", yscale="log", xlabel="tokens")
        ax.set_xticks(lengths, [f"{length:,}" for length in lengths])
        ax.minorticks_off()
        ax.yaxis.set_major_formatter("{x:g}")
    times.set(ylabel="ms a call", title="time")
    memory.set(ylabel="MiB beyond q, k, v", title="memory")
    fig.legend(*times.get_legend_handles_labels(), loc="outside upper center", ncols=6)
    shape = races[0].shape
    plots.save(
        fig,
        file,
        alt=f"Time and memory of attention against the number of tokens, {heads(shape)}: {', '.join(OURS)}, torch's "
        "kernels, and the physical limit.",
    )


def ms(seconds: float) -> str:
    """Milliseconds with three digits."""
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:,.0f}"


def spread_text(spread: Spread) -> str:
    """Median and quartiles."""
    digits = 3 if spread.median < 0.1 else 2 if spread.median < 10 else 1
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f}–{spread.high:.{digits}f})"
