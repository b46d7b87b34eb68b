"""The results of `minillm bench decode` as a table, as JSON, and as a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from minillm.bench.compare import Comparison, Spread
from minillm.bench.decode import Result
from minillm.perf.machine import last_cache_bytes

COLUMNS = f"{'':14}{'tokens/s':>10}  {'× generate()':>20}  {'× loop':>20}  {'bandwidth':>18}"

# Okabe and Ito's palette: told apart with any colour vision.
COLOURS = {"core": "#0072B2", "fast": "#E69F00", "fused": "#D55E00", "peer loop": "#009E73"}
MARKERS = {"core": "o", "fast": "s", "fused": "D", "peer loop": "^"}


def table(result: Result) -> str:
    """One model's figures in 100 columns. Ratios are medians with quartiles; larger is faster."""
    megabytes = result.weight_bytes / 2**20
    discarded = result.decode.num_discarded
    lines = [
        f"{result.size}, {result.dtype}, {result.weights} weights: "
        f"{result.num_parameters / 1e6:.1f} M parameters, {megabytes:.1f} MiB",
        f"  decode, batch 1, {result.num_tokens} tokens, {len(result.decode.probes)} rounds ({discarded} discarded)",
        "  " + COLUMNS,
    ]
    for name in result.decode.seconds:
        tokens_per_s = result.num_tokens / result.decode.time(name).median
        ratios = [_ratio(result.decode, name, peer) for peer in ("peer generate", "peer loop")]
        lines.append(f"  {name:14}{tokens_per_s:10.1f}  {ratios[0]:>20}  {ratios[1]:>20}  {share(result, name):>18}")
    if result.prefill is not None:
        lines.append(f"  prefill of {result.prefill_len} tokens")
        for name in result.prefill.seconds:
            tokens_per_s = result.prefill_len / result.prefill.time(name).median
            lines.append(f"  {name:14}{tokens_per_s:10.1f}  {'':20}  {_ratio(result.prefill, name, 'peer loop'):>20}")
    if result.rows is not None:
        counts = "".join(f"{rows:>10}" for rows in result.row_counts)
        lines.append("  cost of a step in rows, one row = 1")
        lines.append(f"  {'rows':14}{counts}")
        for name, costs in row_costs(result).items():
            lines.append(f"  {name:14}" + "".join(f"{cost.median:10.2f}" for cost in costs))
    return "\n".join(lines)


def share(result: Result, name: str) -> str:
    """Share of the read bandwidth a decode ran at, or "in cache" where the weights fit the last cache."""
    if result.weight_bytes < last_cache_bytes():
        return "in cache"
    spread = result.decode.bandwidth_share(name, result.num_tokens * result.bytes_per_token)
    return "" if spread is None else _spread(spread)


def row_costs(result: Result) -> dict[str, list[Spread]]:
    """Time of a step of n rows over that of one row, for each candidate and each n of `result.row_counts`."""
    if result.rows is None:
        return {}
    names = dict.fromkeys(name.rpartition(" ")[0] for name in result.rows.seconds)
    first = result.row_counts[0]
    return {
        # speedup(over) divides the other's time by ours: here the many rows' time by the one row's.
        name: [result.rows.speedup(f"{name} {first}", over=f"{name} {rows}") for rows in result.row_counts]
        for name in names
    }


def as_document(results: Sequence[Result], machine: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Everything measured, for JSON: machine, settings, and each model's times in seconds and probes in
    bytes/s.
    """
    return {
        "machine": machine,
        "settings": settings,
        "results": [_result_document(result) for result in results],
    }


def write_json(document: dict[str, Any], file: Path) -> None:
    """Write a JSON file, all of it or nothing."""
    _write_whole(file, lambda path: path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8"))


def write_plot(results: Sequence[Result], file: Path) -> None:
    """A PNG, all of it or nothing: ratios to the peer, and the cost of rows. Raises ValueError without
    matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("--plot needs matplotlib: pip install minillm[plots]") from error
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    ratio_axes, row_axes = figure.subplots(1, 2)
    _plot_ratios(ratio_axes, results)
    _plot_rows(row_axes, results)
    _write_whole(file, lambda path: figure.savefig(path, format="png", dpi=150))


def _plot_ratios(axes: Any, results: Sequence[Result]) -> None:
    labels = [f"{result.size}\n{result.dtype}" for result in results]
    for offset, name in ((-0.27, "core"), (0.0, "fast"), (0.27, "fused")):
        places = [i for i, result in enumerate(results) if {name, "peer generate"} <= result.decode.seconds.keys()]
        spreads = [results[i].decode.speedup(name, over="peer generate") for i in places]
        heights = [spread.median for spread in spreads]
        errors = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
        axes.bar(
            [i + offset for i in places],
            heights,
            0.25,
            yerr=errors,
            capsize=3,
            color=COLOURS[name],
            label=name,
        )
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylabel("decoding speed / transformers generate() (ratio)")
    axes.set_title("Batch 1, greedy")
    axes.legend()


def _plot_rows(axes: Any, results: Sequence[Result]) -> None:
    styles = ("-", "--", ":", "-.", (0, (5, 1, 1, 1)))
    for i, result in enumerate(results):
        for name, costs in row_costs(result).items():
            axes.plot(
                result.row_counts,
                [cost.median for cost in costs],
                color=COLOURS[name],
                marker=MARKERS[name],
                markersize=4,
                linestyle=styles[i % len(styles)],
                label=f"{name}, {result.size} {result.dtype}",
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlabel("rows decoded together (sequences)")
    axes.set_ylabel("time of a step / time with one row (ratio)")
    axes.set_title("What more rows cost")
    axes.legend(fontsize=6)


def _ratio(comparison: Comparison, name: str, peer: str) -> str:
    return _spread(comparison.speedup(name, over=peer)) if peer in comparison.seconds else "no peer"


def _spread(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.low:.2f}–{spread.high:.2f})"


def _result_document(result: Result) -> dict[str, Any]:
    plain = {key: value for key, value in vars(result).items() if not isinstance(value, Comparison)}
    comparisons = {key: vars(value) for key, value in vars(result).items() if isinstance(value, Comparison)}
    ratios = {
        f"{name} / {peer}": vars(result.decode.speedup(name, over=peer))
        for name in result.decode.seconds
        for peer in ("peer generate", "peer loop")
        if peer in result.decode.seconds and not name.startswith("peer")
    }
    shares = {
        name: vars(spread)
        for name in result.decode.seconds
        if (spread := result.decode.bandwidth_share(name, result.num_tokens * result.bytes_per_token)) is not None
    }
    in_cache = result.weight_bytes < last_cache_bytes()
    return {**plain, "in_cache": in_cache, "decode_ratios": ratios, "bandwidth_shares": shares, **comparisons}


def _write_whole(file: Path, write: Callable[[Path], object]) -> None:
    partial = file.with_name(f".{file.name}.partial")
    try:
        write(partial)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
