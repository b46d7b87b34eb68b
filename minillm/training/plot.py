"""The loss curve of a run as a picture. Needs matplotlib, which the core does not."""

from __future__ import annotations

from pathlib import Path

from minillm.training.state import read_records


def plot_losses(log_path: Path, image_path: Path, *, title: str = "") -> bool:
    """Draws `log.jsonl` as `image_path`; returns False, and draws nothing, where matplotlib is not installed.

    Shown over the tokens trained on: training loss, held-out loss, and where the log knows it the entropy of the
    source, below which no model can go on average.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    records = read_records(log_path)
    steps = [record for record in records if "loss" in record]
    evaluations = [record for record in records if "eval_nats_per_token" in record]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    millions = 1e-6
    axes.plot(
        [r["tokens"] * millions for r in steps],
        [r["loss"] for r in steps],
        lw=0.8,
        alpha=0.7,
        label="training",
    )
    tokens = [r["tokens"] * millions for r in evaluations]
    axes.plot(tokens, [r["eval_nats_per_token"] for r in evaluations], marker="o", ms=3, label="held out")
    floors = [r["source_nats_per_token"] for r in evaluations if "source_nats_per_token" in r]
    if floors:
        axes.axhline(
            floors[-1],
            ls="--",
            color="black",
            lw=1,
            label=f"entropy of the source: {floors[-1]:.3f} nats a token",
        )
    axes.set(xlabel="tokens trained on (millions)", ylabel="loss (nats per token)", title=title)
    losses = [r["loss"] for r in steps] + [r["eval_nats_per_token"] for r in evaluations]
    if losses and min(losses) > 0:
        axes.set_yscale(
            "log"
        )  # the last hundredths, where models differ, stay visible below the first fall from log(vocab_size)
        axes.yaxis.set_major_formatter("{x:.2f}")
        axes.yaxis.set_minor_formatter("{x:.2f}")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(image_path, dpi=150, metadata={"Software": None})
    return True
