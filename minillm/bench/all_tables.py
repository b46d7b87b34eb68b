"""`minillm bench all`, 4: tables in Markdown from the JSON documents of the measurements.

A measurement without an entry in `TABLES` is shown as it printed itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from minillm.bench.compare import Spread


def markdown_table(rows: Sequence[Sequence[str]], *, right: Sequence[int] | None = None) -> str:
    """The first row is the heading; every column but the first is right-aligned, or those in `right`."""
    columns = range(len(rows[0]))
    aligned = [i for i in columns if i > 0] if right is None else right
    rule = ["---:" if i in aligned else "---" for i in columns]
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (rows[0], rule, *rows[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def doctor_tables(document: dict[str, Any]) -> str:
    """Probes, fast paths, kernels, and what failed."""
    sections = {section["name"]: section["checks"] for section in document["sections"]}
    blocks = []
    if probes := [check for check in sections.get("probes", []) if check["numbers"]]:
        rows = [["", "measured", "data sheet"]]
        for check in probes:
            sheet = check["numbers"]["data_sheet"]
            rows.append([check["name"], check["found"], f"{sheet / 1e9:,.4g}" if sheet else "none known"])
        blocks.append(markdown_table(rows))
    if paths := sections.get("cpu"):
        rows = [["fast path", "error", "of allowed", "verdict", "× torch"]]
        for check in paths:
            numbers = check["numbers"]
            rows.append(
                [
                    check["name"],
                    _error(numbers.get("max_error")),
                    _percent(numbers.get("share_of_allowed")),
                    check["verdict"],
                    _number(numbers.get("over_torch")),
                ]
            )
        blocks.append(markdown_table(rows))
    if kernels := sections.get("kernels"):
        rows = [["kernel", "checked by", "error", "of allowed", "builds", "verdict", "× vendor"]]
        for check in kernels:
            numbers = check["numbers"]
            tried = numbers.get("builds_tried")
            rows.append(
                [
                    f"`{check['name']}`",
                    numbers.get("where", ""),
                    _error(numbers.get("max_error")),
                    _percent(numbers.get("share_of_allowed")),
                    f"{numbers['builds_passed']} of {tried}" if tried else "",
                    check["verdict"],
                    _number(numbers.get("over_vendor")),
                ]
            )
        blocks.append(markdown_table(rows))
    checks = [check for section in document["sections"] for check in section["checks"]]
    for verdict in ("FAILED", "not checked"):
        blocks += [f"- {verdict}: {check['name']}, {check['found']}" for check in checks if check["verdict"] == verdict]
    return "\n\n".join(blocks)


def decode_tables(document: dict[str, Any]) -> str:
    """Decoding at batch 1: tokens a second, ratios to the peer, share of bandwidth."""
    rows = [["model", "with", "tokens/s", "× `generate()`", "× loop", "bandwidth"]]
    for result in document["results"]:
        model = f"{result['size']}, {result['dtype']}"
        for name, seconds in result["decode"]["seconds"].items():
            share = result["bandwidth_shares"].get(name)
            rows.append(
                [
                    model,
                    name,
                    f"{result['num_tokens'] / Spread.of(seconds).median:.1f}",
                    *(_spread(result["decode_ratios"].get(f"{name} / peer {peer}")) for peer in ("generate", "loop")),
                    "in cache" if result["in_cache"] else _percent(share and share["median"]),
                ]
            )
            model = ""
    return markdown_table(rows, right=(2, 3, 4, 5))


def gemm_tables(document: dict[str, Any]) -> str:
    """The ladder at each size, then milliseconds of flat products."""
    sizes = [result["size"] for result in document["ladder"]]
    rows = [["rung", *(f"{size}³, GFLOP/s" for size in sizes), "× torch", "of the FMA probe"]]
    largest = document["ladder"][-1]["rungs"]
    for name in largest:
        speeds = [_significant(result["rungs"][name]["flops_per_s"] / 1e9) for result in document["ladder"]]
        last = largest[name]
        rows.append([name, *speeds, _spread(last["over_torch"]), _percent(last["fma_share"]["median"])])
    flat = document["flat"]
    seconds = flat["comparison"]["seconds"]
    names = list(dict.fromkeys(key.rpartition(" ")[0] for key in seconds if key[-1].isdigit()))
    times = [["rows", *(f"{name}, ms" for name in names)]]
    for count in flat["counts"]:
        cells = [seconds.get(f"{name} {count}") for name in names]
        times.append([str(count), *("" if cell is None else f"{Spread.of(cell).median * 1e3:.3g}" for cell in cells)])
    title = f"Products of few rows with a matrix of {flat['size']} × {flat['size']}:"
    return "\n\n".join([markdown_table(rows), title, markdown_table(times)])


def plan_tables(document: dict[str, Any]) -> str:
    """Steps, predicted and measured."""
    rows = [["model", "step", "predicted, ms", "measured, ms", "predicted ÷ measured"]]
    for result in document["results"]:
        model = result["size"]
        for forecast in result["forecasts"]:
            step = forecast["step"]
            is_prefill = step["query_len"] > 1
            name = f"prefill of {step['seq_len']}" if is_prefill else f"decode, batch {step['batch_size']}"
            times = [f"{forecast[key] * 1e3:.3g}" for key in ("predicted_s", "measured_s")]
            rows.append([model, name, *times, _spread(forecast["ratio"])])
            model = ""
    return markdown_table(rows, right=(2, 3, 4))


TABLES: dict[str, Callable[[Any], str]] = {
    "doctor": doctor_tables,
    "decode": decode_tables,
    "gemm": gemm_tables,
    "plan": plan_tables,
}


def _spread(spread: dict[str, float] | None) -> str:
    if not spread:
        return ""
    digits = 2 if spread["median"] >= 0.1 else 3
    median, low, high = (f"{spread[key]:.{digits}f}" for key in ("median", "low", "high"))
    return f"{median} ({low}–{high})"


def _significant(number: float) -> str:
    return f"{number:.1f}" if number >= 10 else f"{number:.2g}"


def _percent(share: Any) -> str:
    return f"{share:.0%}" if isinstance(share, float | int) else ""


def _error(error: Any) -> str:
    return f"{error:.1e}" if isinstance(error, float | int) else ""


def _number(ratio: Any) -> str:
    return f"{ratio:.2f}" if isinstance(ratio, float | int) else ""
