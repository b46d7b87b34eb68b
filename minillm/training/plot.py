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
        from minillm import plots
    except ImportError:
        return False
    records = read_records(log_path)
    steps = [record for record in records if "loss" in record]
    evaluations = [record for record in records if "eval_nats_per_token" in record]
    losses = [record["loss"] for record in steps]
    held_out = [record["eval_nats_per_token"] for record in evaluations]
    fig, ax = plots.figure(8, 4.5)
    ax.plot([r["tokens"] / 1e6 for r in steps], losses, lw=1.2, color=plots.SKY, label="training")
    ax.plot([r["tokens"] / 1e6 for r in evaluations], held_out, marker="o", color=plots.BLUE, label="held out")
    floors = [record["source_nats_per_token"] for record in evaluations if "source_nats_per_token" in record]
    if floors:
        label = f"entropy of the source: {floors[-1]:.3f} nats a token"
        ax.axhline(floors[-1], ls="--", color=plots.GREEN, label=label)
    ax.set(xlabel="tokens trained on (millions)", ylabel="loss (nats per token)", title=title)
    if min(losses + held_out, default=0) > 0:
        # The last hundredths, where models differ, stay visible below the first fall from log(vocab_size).
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:.1f}")
        ax.yaxis.set_minor_formatter("{x:.1f}")
        ax.grid(True, which="both")
    ax.legend()
    plots.save(fig, image_path, alt="Loss over tokens trained on: training, held out, and the entropy of the source.")
    return True
