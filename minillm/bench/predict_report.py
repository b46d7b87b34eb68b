"""The results of `minillm bench plan` as a table, as JSON, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minillm.bench.compare import Spread
from minillm.bench.predict import Forecast, Result

GOAL = 0.25  # largest error that a prediction is to have


def table(result: Result) -> str:
    """One model's forecasts in 100 columns, times in milliseconds."""
    comparison = result.comparison
    lines = [
        f"{result.size}, float32, {result.linears} linears: {result.num_parameters / 1e6:.1f} M parameters, "
        f"{len(comparison.probes)} rounds ({comparison.num_discarded} discarded), "
        f"read bandwidth {Spread.of(comparison.probes).median / 2**30:.1f} GiB/s",
        f"  {'ms':22}{'products':>10}{'attention':>11}{'the rest':>10}{'predicted':>11}{'measured':>10}"
        f"{'predicted/measured':>21}",
    ]
    for forecast in result.forecasts:
        ratio = forecast.ratio
        lines.append(
            f"  {name(forecast):22}{_ms(forecast.products_s):>10}{_ms(forecast.attention_s):>11}"
            f"{_ms(forecast.rest_s):>10}{_ms(forecast.predicted_s):>11}{_ms(forecast.measured_s):>10}"
            f"{f'{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})':>21}"
        )
    worst = max(result.forecasts, key=error)
    lines.append(f"  largest error {error(worst):.0%} ({name(worst)}); the goal is {GOAL:.0%}")
    if bounds := [forecast for forecast in result.forecasts if forecast.read_s is not None]:
        read = ", ".join(f"{forecast.step.batch_size}: {_ms(forecast.read_s or 0.0)}" for forecast in bounds)
        lines.append(f"  reading alone, by batch size (a bound, no prediction): {read} ms")
    return "\n".join(lines)


def error(forecast: Forecast) -> float:
    """|predicted ÷ measured − 1|, the median of the rounds."""
    return abs(forecast.ratio.median - 1)


def name(forecast: Forecast) -> str:
    """What the table calls a step."""
    step = forecast.step
    return f"prefill of {step.seq_len}" if step.query_len > 1 else f"decode, batch {step.batch_size}, {step.seq_len}"


def as_document(results: Sequence[Result], machine: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Everything measured, for JSON, in seconds; probes in bytes/s."""
    documents = [
        {
            "size": result.size,
            "linears": result.linears,
            "num_parameters": result.num_parameters,
            "forecasts": [
                {**asdict(forecast), "predicted_s": forecast.predicted_s, "error": error(forecast)}
                for forecast in result.forecasts
            ],
            "comparison": vars(result.comparison),
        }
        for result in results
    ]
    return {"machine": machine, "settings": settings, "results": documents}


def write_plot(results: Sequence[Result], file: Path) -> None:
    """A PNG, all of it or nothing: predicted against measured for each model, the pieces stacked. Raises ValueError
    without matplotlib.
    """
    try:
        from minillm import plots
    except ImportError as error:
        raise ValueError("--plot needs matplotlib: pip install minillm[plots]") from error
    fig, axes = plots.figure(7.2, 3.3 * len(results), nrows=len(results), squeeze=False)
    for ax, result in zip(axes[:, 0], results, strict=True):
        _plot(ax, result, plots)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=4)
    plots.save(fig, file, alt="Times of steps, predicted from pieces and measured, side by side for each step.")


def _plot(ax: Any, result: Result, plots: Any) -> None:
    """Bars relative to what was measured, so that steps of 1 ms and of 1 s are seen alike."""
    places = range(len(result.forecasts))
    bottoms = [0.0] * len(result.forecasts)
    for field, label, color in (
        ("products_s", "products", plots.BLUE),
        ("attention_s", "attention", plots.ORANGE),
        ("rest_s", "the rest", plots.PURPLE),
    ):
        heights = [getattr(forecast, field) / forecast.measured_s for forecast in result.forecasts]
        ax.bar(places, heights, 0.62, bottom=bottoms, color=color, label=label, zorder=2)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    ax.axhline(1.0, color=plots.INK, linewidth=1.4, label="measured", zorder=3)
    ax.axhspan(1 - GOAL, 1 + GOAL, color=plots.tint(plots.GREEN, 0.2), zorder=0)
    labels = [
        f"prefill\n{forecast.step.seq_len}" if forecast.step.query_len > 1 else f"batch\n{forecast.step.batch_size}"
        for forecast in result.forecasts
    ]
    ax.set_xticks(places, labels)
    ax.grid(axis="x", visible=False)
    ax.set_ylim(0, max(1.4, *(bottom * 1.08 for bottom in bottoms)))
    ax.set(ylabel="predicted / measured", title=result.size)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 0.1 else f"{seconds * 1e3:.1f}"
