"""The results of `minillm bench gemm` as tables, as JSON, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minillm.bench.compare import Spread
from minillm.bench.gemm import NAIVE, ONE_THREAD, PACKED, READ, THREADS, TORCH, FlatResult, LadderResult
from minillm.gemm import LADDER
from minillm.perf.machine import last_cache_bytes

GIGA = 1e9


def ladder_table(result: LadderResult) -> str:
    """The rungs at one size, in 100 columns. Ratios are medians with quartiles; larger is faster."""
    n, threads = result.size, result.num_threads
    one, every = result.one_thread, result.all_threads
    probes = [Spread.of(comparison.probes).median / GIGA for comparison in (one, every)]
    read = result.read_bytes / every.time(READ).median
    lines = [
        f"{n} × {n} × {n}, float32, {len(one.probes)} and {len(every.probes)} rounds "
        f"({one.num_discarded} and {every.num_discarded} discarded)",
        f"  FMA probe {probes[0]:.1f} GFLOP/s on 1 thread, {probes[1]:.1f} on {threads}; "
        f"read probe {read / 2**30:.1f} GiB/s: {GIGA * probes[1] / read:.1f} FLOPs for each byte from memory",
        f"  {'rung':15}{'threads':>8}{'GFLOP/s':>9}  {'× rung below':>19}  {'expected':>10}  {'× torch':>17}"
        f"  {'FMA probe':>9}",
    ]
    below = ""
    for name in LADDER:
        gain = _spread(result.gain(name, over=below)) if below else ""
        lines.append(
            f"  {name:15}{threads if name == THREADS else 1:8}{result.flops_per_s(name) / GIGA:9.2f}"
            f"  {gain:>19}  {LADDER[name].expected_gain:>10}  {_spread(result.gain(name, over=TORCH)):>17}"
            f"  {result.fma_share(name).median:9.3f}"
        )
        below = name
    for comparison, count in ((one, 1), (every, threads)):
        share = comparison.probe_share(TORCH, result.flops(TORCH))
        lines.append(
            f"  {TORCH:15}{count:8}{result.torch_flops_per_s(comparison) / GIGA:9.2f}"
            f"  {'':19}  {'':10}  {'':17}  {share.median if share else 0:9.3f}"
        )
    if result.naive_rows < n:
        lines.append(f"  {NAIVE}: the first {result.naive_rows} rows of A only; it reads all of B for each")
    return "\n".join(lines)


def flat_table(result: FlatResult) -> str:
    """Milliseconds of products with few rows, the fastest of each marked."""
    bound = result.read_s() * 1e3
    in_cache = 4 * result.size**2 < last_cache_bytes()
    limit = "B stays in the cache" if in_cache else f"reading B takes {bound:.3g} ms at the read probe's speed"
    lines = [
        f"flat products (M, {result.size}) · ({result.size}, {result.size}), float32, "
        f"{result.num_threads} threads, {len(result.comparison.probes)} rounds "
        f"({result.comparison.num_discarded} discarded)",
        f"  milliseconds; {limit}",
        "  " + f"{'M':>5}" + "".join(f"{name:>12}" for name in result.names) + "   fastest",
    ]
    for rows in result.counts:
        times = (result.seconds(name, rows) for name in result.names)
        cells = "".join(f"{'':12}" if time is None else f"{time * 1e3:12.3g}" for time in times)
        lines.append(f"  {rows:5}{cells}   {result.fastest(rows)}")
    return "\n".join(lines)


def as_document(
    ladders: Sequence[LadderResult], flat: FlatResult, machine: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """Everything measured, for JSON: machine, settings, times in seconds, probes in FLOP/s."""
    return {
        "machine": machine,
        "settings": settings,
        "ladder": [_ladder_document(result) for result in ladders],
        "flat": {**vars(flat), "comparison": vars(flat.comparison), "read_s": flat.read_s()},
    }


def write_plot(ladders: Sequence[LadderResult], flat: FlatResult, file: Path) -> None:
    """A PNG, all of it or nothing: the ladder under the FMA probe at the largest size, and flat products by rows."""
    from minillm import plots

    result = max(ladders, key=lambda ladder: ladder.size)
    fig, (bars, lines) = plots.figure(12.0, 4.6, ncols=2, width_ratios=(1.15, 1))
    _plot_ladder(bars, result)
    _plot_flat(lines, flat)
    packed, naive = result.flops_per_s(PACKED), result.flops_per_s(NAIVE)
    plots.save(
        fig,
        file,
        alt=f"Rungs of the ladder of matrix products, from {naive / GIGA:.2g} to {packed / GIGA:.3g} GFLOP/s on one "
        "thread, against the FMA probe; and the time of flat products against their number of rows.",
    )


def _plot_ladder(ax: Any, result: LadderResult) -> None:
    from minillm import plots

    threads = result.num_threads
    shown = [(name, result.flops_per_s(name), plots.BLUE) for name in LADDER]
    torch_speeds = [result.torch_flops_per_s(c) for c in (result.one_thread, result.all_threads)]
    shown.insert(len(ONE_THREAD), (TORCH, torch_speeds[0], plots.ORANGE))
    shown.append((f"{TORCH}, {threads} threads" if threads > 1 else TORCH, torch_speeds[1], plots.ORANGE))
    names, speeds, colors = zip(*reversed(shown), strict=True)
    ax.barh(range(len(shown)), [speed / GIGA for speed in speeds], color=colors)
    edges = [(-0.45, 1.45, result.all_threads), (1.55, len(shown) - 0.45, result.one_thread)]
    roofs = [Spread.of(comparison.probes).median / GIGA for _, _, comparison in edges]
    for (low, high, _), roof in zip(edges, roofs, strict=True):
        ax.plot([roof, roof], [low, high], color=plots.GREEN, linestyle="--")
    ax.annotate(
        "FMA probe", (roofs[1], len(shown) - 1), (6, 0), textcoords="offset points", va="center", color=plots.GREEN
    )
    highest = max(*roofs, *(speed / GIGA for speed in speeds))
    for place, speed in enumerate(speeds):
        inside = speed / GIGA > highest / 30  # a long bar has room for its number, and the probe's line is near its end
        side, ink = (-4, plots.PAPER) if inside else (4, plots.INK)
        ax.annotate(
            f"{speed / GIGA:.3g}",
            (speed / GIGA, place),
            (side, 0),
            textcoords="offset points",
            va="center",
            ha="right" if inside else "left",
            color=ink,
        )
    ax.set_xscale("log")
    ax.set_xlim(min(speeds) / GIGA / 3, highest * 8)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_yticks(range(len(shown)), [f"{threads} threads" if name == THREADS else name for name in names])
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="GFLOP/s", title=f"{result.size} × {result.size} × {result.size}, float32")


def _plot_flat(ax: Any, result: FlatResult) -> None:
    from minillm import plots

    styles = {
        "flat": (plots.BLUE, "o"),
        PACKED: (plots.PURPLE, "s"),
        TORCH: (plots.ORANGE, "^"),
        "gemv": (plots.SKY, "D"),
    }
    for name in result.names:
        times = [(rows, time) for rows in result.counts if (time := result.seconds(name, rows)) is not None]
        color, marker = styles[name]
        ax.plot(
            *zip(*[(rows, time * 1e3) for rows, time in times], strict=True), color=color, marker=marker, label=name
        )
    if 4 * result.size**2 >= last_cache_bytes():
        ax.axhline(result.read_s() * 1e3, color=plots.GREEN, linestyle="--", label="reading B")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set_xticks(result.counts, [str(rows) for rows in result.counts])
    title = f"(M, {result.size}) · ({result.size}, {result.size}), {result.num_threads} threads"
    ax.set(xlabel="rows of A, M", ylabel="time (ms)", title=title)
    ax.set_ylim(top=ax.get_ylim()[1] * 3)  # room for the legend
    ax.legend(loc="upper left", ncols=2)


def _ladder_document(result: LadderResult) -> dict[str, Any]:
    rungs = {
        name: {
            "flops_per_s": result.flops_per_s(name),
            "fma_share": vars(result.fma_share(name)),
            "over_torch": vars(result.gain(name, over=TORCH)),
        }
        for name in LADDER
    }
    plain = {key: getattr(result, key) for key in ("size", "num_threads", "naive_rows", "read_bytes")}
    return {**plain, "rungs": rungs, "one_thread": vars(result.one_thread), "all_threads": vars(result.all_threads)}


def _spread(spread: Spread) -> str:
    digits = 3 if spread.median < 0.1 else 2 if spread.median < 10 else 1
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f}–{spread.high:.{digits}f})"
