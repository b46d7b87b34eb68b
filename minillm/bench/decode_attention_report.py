"""The results of `minillm bench decode-attention` as tables, as JSON, and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from minillm.bench.attention_check import Absence
from minillm.bench.attention_peers import FLEX, SDPA
from minillm.bench.attention_race import Race
from minillm.bench.attention_report import absences, heads, ms, probe_name, race_document
from minillm.bench.compare import Spread
from minillm.bench.decode_attention import ATTEND, CORES, NAIVE, OURS, SPLITS, UNIFIED, fits_last_cache

GOAL = 0.85  # of the read bandwidth
GIGA, MIB, GIB = 1e9, 2**20, 2**30

SHORT = {
    NAIVE: "naive",
    SPLITS: "splits",
    UNIFIED: "unified",
    CORES: "cores",
    ATTEND: "attend",
    SDPA: "SDPA",
    FLEX: "Flex",
}
LEGEND = (
    "splits: flash_decoding; unified: with one maximum for all splits; cores: decode_on_cpu;\n"
    "attend: attention(), what a cache calls: cores for large caches, else SDPA with heads as rows;\n"
    "SDPA, Flex: torch's, as they are called"
)


def table(name: str, races: Sequence[Race], *, absent: Mapping[str, Absence]) -> str:
    """One kind of heads in 100 columns: milliseconds, then shares of the read bandwidth; a row a problem."""
    shape, first = races[0].shape, races[0]
    columns = [column for column in SHORT if any(column in race.names for race in races)]
    head = f"  {'batch':>5}{'context':>9}{'K+V MiB':>9}"
    titles = "".join(f"{SHORT[column]:>8}" for column in columns)
    rates = f"read probe {_median([race.read_rate for race in races]) / GIB:,.1f} GiB/s"
    computes = [race.compute_rate for race in races if race.compute_rate is not None]
    if computes:
        rates += f", {probe_name(first)} {_median(computes) / GIGA:,.0f} GFLOP/s"
    rounds = [len(race.comparison.probes) for race in races]
    discarded = sum(race.comparison.num_discarded for race in races)
    lines = [
        f"{name}: {heads(shape)}{', v a part of k' if shape.v_from_k else ''}, {first.dtype}; "
        f"{min(rounds)} to {max(rounds)} rounds ({discarded} discarded)",
        f"  {rates}",
        *absences(absent),
        f"  milliseconds a step, and the least possible\n{head}{'least':>10}{titles}",
    ]
    for race in races:
        times = (ms(race.comparison.time(c).median) if c in race.names else "" for c in columns)
        lines.append(f"{_row(race)}{ms(limit_s(race)):>10}" + "".join(f"{time:>8}" for time in times))
    lines.append(f"  share of the read probe, and the largest possible\n{head}{'limit':>10}{titles}")
    for race in races:
        if in_cache(race):
            lines.append(f"{_row(race)}{'in cache':>10}")
            continue
        shares = (f"{race.read_share(c).median:.2f}" if c in race.names else "" for c in columns)
        lines.append(f"{_row(race)}{largest_share(race):10.2f}" + "".join(f"{share:>8}" for share in shares))
    for race in races:
        new = {who: absence for who, absence in race.absent.items() if who not in absent}
        lines += [line.replace("not timed", f"not timed at {_problem(race)}") for line in absences(new)]
    return "\n".join(lines)


def verdict(name: str, races: Sequence[Race]) -> str:
    """The fastest of ours where memory is the limit, worst problem and best."""
    best = [(spread.median, race, who) for race in races if (found := best_share(race)) for spread, who in [found]]
    if not best:
        return f"{name}: nothing here is limited by memory"
    low, high = min(best, key=lambda entry: entry[0]), max(best, key=lambda entry: entry[0])
    return (
        f"{name}: the fastest of ours reads at {low[0]:.2f} ({_problem(low[1])}, {SHORT[low[2]]}) to {high[0]:.2f} "
        f"({_problem(high[1])}, {SHORT[high[2]]})\n  of the read probe; the goal is {GOAL}"
    )


def best_share(race: Race) -> tuple[Spread, str] | None:
    """The largest share of the bandwidth that ours reached, and who; None where memory isn't the limit."""
    ours = [name for name in OURS if name in race.names]
    if in_cache(race) or largest_share(race) < 1 or not ours:
        return None
    who = max(ours, key=lambda name: race.read_share(name).median)
    return race.read_share(who), who


def read_s(race: Race) -> float:
    """Seconds that keys and values take at the read probe's speed."""
    return race.shape.kv_bytes(race.bytes_per_number) / race.read_rate


def limit_s(race: Race) -> float:
    """The longer of reading keys and values and of computing with them; in the cache only computing counts."""
    return max(0.0 if in_cache(race) else read_s(race), race.compute_s() or 0.0)


def largest_share(race: Race) -> float:
    """The share of the read bandwidth that arithmetic leaves possible: 1 where memory is the limit."""
    return min(1.0, read_s(race) / (race.compute_s() or read_s(race)))


def in_cache(race: Race) -> bool:
    """Whether keys and values fit the last cache, so that shares of the bandwidth of memory mean nothing."""
    return fits_last_cache(race.shape, race.bytes_per_number, torch.device(race.device))


def as_document(
    races_by_heads: Mapping[str, Sequence[Race]], machine: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """Everything measured, for JSON: machine, settings, times in seconds, bytes of keys and values, shares."""
    results = {
        name: [
            {
                **race_document(race),
                "kv_bytes": race.shape.kv_bytes(race.bytes_per_number),
                "in_cache": in_cache(race),
                "limit_s": limit_s(race),
                "read_shares": {who: vars(race.read_share(who)) for who in race.names},
            }
            for race in races
        ]
        for name, races in races_by_heads.items()
    }
    return {"machine": machine, "settings": settings, "results": results}


def write_plot(races_by_heads: Mapping[str, Sequence[Race]], file: Path) -> None:
    """A PNG, all of it or nothing: share of the read bandwidth against context, heads by batch. Raises ValueError
    without matplotlib.
    """
    try:
        from minillm import plots
    except ImportError as error:
        raise ValueError("--plot needs matplotlib: pip install minillm[plots]") from error
    every = [race for races in races_by_heads.values() for race in races]
    batches = sorted({race.shape.batch for race in every})
    contexts = sorted({race.shape.k_len for race in every})
    fig, axes = plots.figure(
        2.2 + 3.2 * len(batches),
        1.4 + 2.5 * len(races_by_heads),
        nrows=len(races_by_heads),
        ncols=len(batches),
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    labels: dict[str, Any] = {}
    for (name, races), row in zip(races_by_heads.items(), axes, strict=True):
        for batch, ax in zip(batches, row, strict=True):
            _plot(ax, [race for race in races if race.shape.batch == batch], labels)
            ax.set_title(f"{name}, batch {batch}")
    axes[0, 0].set(xscale="log", ylim=(0, 1.15), xlim=(contexts[0] / 1.3, contexts[-1] * 1.3))
    axes[0, 0].set_xticks(contexts, [f"{n // 1024}k" if n % 1024 == 0 else f"{n:,}" for n in contexts])
    axes[0, 0].minorticks_off()
    fig.supxlabel("tokens in the cache", fontsize=12)
    fig.supylabel("share of the read bandwidth", fontsize=12)
    if labels:
        fig.legend(labels.values(), labels.keys(), loc="outside upper center", ncols=5)
    plots.save(
        fig,
        file,
        alt="Share of the read bandwidth at which a decode step's attention consumes keys and values, against the "
        f"tokens in the cache, for {', '.join(races_by_heads)} heads and batches of {', '.join(map(str, batches))}.",
    )


def _plot(ax: Any, races: Sequence[Race], labels: dict[str, Any]) -> None:
    from minillm import plots

    styles = {
        NAIVE: (plots.ORANGE, "o-"),
        SPLITS: (plots.BLUE, "o-"),
        UNIFIED: (plots.PURPLE, "D-"),
        CORES: (plots.SKY, "s-"),
        ATTEND: (plots.GREY, "^:"),
        SDPA: (plots.INK, "^-"),
        FLEX: (plots.YELLOW, "P-"),
    }
    from_memory = [race for race in races if not in_cache(race)]
    if not from_memory:
        text = "in cache" if races else "not measured"
        ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=plots.MUTED)
        return
    for who, (color, style) in styles.items():
        at = [race for race in from_memory if who in race.names]
        if at:
            (line,) = ax.plot(
                [race.shape.k_len for race in at],
                [race.read_share(who).median for race in at],
                style,
                color=color,
                linewidth=1.7,
            )
            labels.setdefault(who, line)
    limit = [largest_share(race) for race in from_memory]
    (line,) = ax.plot([race.shape.k_len for race in from_memory], limit, "--", color=plots.GREEN, marker="_")
    labels.setdefault("physical limit", line)


def _row(race: Race) -> str:
    size = race.shape.kv_bytes(race.bytes_per_number) / MIB
    return f"  {race.shape.batch:5}{race.shape.k_len:9,}{size:9,.1f}"


def _problem(race: Race) -> str:
    return f"batch {race.shape.batch} × {race.shape.k_len:,}"


def _median(numbers: list[float]) -> float:
    return Spread.of(numbers).median
