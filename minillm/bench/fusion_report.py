"""The results of `minillm bench fusion` as tables, as JSON, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minillm.bench.compare import Comparison
from minillm.bench.fusion import EAGER, Result


def table(result: Result) -> str:
    """One model's figures in 100 columns. Ratios are medians with quartiles; larger is faster."""
    lines = [
        f"{result.size}, {result.dtype}, {result.weights} weights, {result.device}, {result.num_threads} threads, "
        f"{len(result.decode.seconds[EAGER])} rounds",
        f"  {'':20}{'step ms':>9}  {'× eager':>17}"
        f"  {'prefill ms':>10}  {'× eager':>17}  {'calls':>5}  {'compile s':>9}",
    ]
    for name in result.decode.seconds:
        calls = result.calls.get(name)
        seconds = result.compile_s.get(name)
        lines.append(
            f"  {name:20}{result.step_s(name) * 1e3:9.3f}  {_ratio(result.decode, name):>17}"
            f"  {result.prefill.time(name).median * 1e3:10.2f}  {_ratio(result.prefill, name):>17}"
            f"  {'' if calls is None else calls:>5}  {'' if seconds is None else f'{seconds:.1f}':>9}"
        )
    lines += [f"  {name} skipped: {reason}" for name, reason in result.skipped.items()]
    lines.append(
        f"  a step behind {result.context_len} tokens; a prompt of {result.prefill_len}; calls: operations of the "
        "blocks' graph"
    )
    return "\n".join(lines)


def as_document(results: Sequence[Result], machine: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Everything measured, for JSON: machine, settings, times in seconds, and their ratios to eager's."""
    return {
        "machine": machine,
        "settings": settings,
        "results": [
            {
                **asdict(result),
                "step_s": {name: result.step_s(name) for name in result.decode.seconds},
                "decode_over_eager": _ratios(result.decode),
                "prefill_over_eager": _ratios(result.prefill),
            }
            for result in results
        ],
    }


def write_plot(results: Sequence[Result], file: Path) -> None:
    """A PNG, all of it or nothing: how many times as fast as eager each candidate is. ValueError without matplotlib."""
    from minillm import plots

    names = [name for name in dict.fromkeys(n for r in results for n in r.decode.seconds) if name != EAGER]
    fig, axes = plots.figure(7.2, 1.6 + 0.36 * len(results) * max(1, len(names)), ncols=2, sharey=True)
    places = {(result.size, name): -i for i, (result, name) in enumerate((r, n) for r in results for n in names)}
    for ax, title, which in zip(axes, ("decode step", "prefill"), ("decode", "prefill"), strict=True):
        for result in results:
            comparison: Comparison = getattr(result, which)
            for name in names:
                if name in comparison.seconds:
                    spread = comparison.speedup(name, over=EAGER)
                    error = [[spread.median - spread.low], [spread.high - spread.median]]
                    color = plots.SERIES[names.index(name)]
                    ax.barh(places[result.size, name], spread.median, xerr=error, color=color, height=0.7)
        ax.axvline(1.0, color=plots.INK, linewidth=1.0)
        ax.grid(axis="y", visible=False)
        ax.set(title=title, xlabel="speed / eager")
    labels = [f"{size}: {name}" if len(results) > 1 else name for size, name in places]
    axes[0].set_yticks(list(places.values()), labels)
    axes[0].tick_params(axis="y", length=0)
    plots.save(fig, file, alt=f"Speed of {', '.join(names)} over eager, for a decode step and a prefill.")


def _ratios(comparison: Comparison) -> dict[str, Any]:
    return {name: vars(comparison.speedup(name, over=EAGER)) for name in comparison.seconds if name != EAGER}


def _ratio(comparison: Comparison, name: str) -> str:
    if name == EAGER:
        return ""
    spread = comparison.speedup(name, over=EAGER)
    return f"{spread.median:.2f} ({spread.low:.2f}–{spread.high:.2f})"
