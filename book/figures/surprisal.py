"""Draw `surprisal.png`: a story of the bundled model's grammar, each token shaded by how much it surprised the model.

    python book/figures/surprisal.py            # writes book/figures/surprisal.png

A pale token was certain, a dark one was news. Whatever the story has already said (a name, a colour, a thing that was
lost) is pale when it comes back: the model has looked it up in its context.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize

from minillm import load_model, load_tokenizer
from minillm.data.stories import sample_story

WIDTH_CHARS, FONT_SIZE, MAX_NATS = 86, 10.5, 4.0
PAPER, INK = "#fbfaf6", "#1f2430"
SHADES = LinearSegmentedColormap.from_list("surprise", [PAPER, "#ffd9a0", "#f0803c"])


def token_surprisals(text: str) -> list[tuple[str, float]]:
    """Each token of the text and its −log p under the bundled model, in nats, given all that precedes it."""
    model, tokenizer = load_model(), load_tokenizer()
    token_ids = tokenizer.encode(text)
    with torch.inference_mode():
        log_probs = model(torch.tensor(token_ids)).log_softmax(dim=-1)
    return [
        (tokenizer.decode([token_id]), -float(log_probs[place, token_id]))
        for place, token_id in enumerate(token_ids[1:])
    ]


def draw(pieces: list[tuple[str, float]], path: Path) -> None:
    """Set the pieces as text, wrapped at WIDTH_CHARS, each on its shade; a colour bar explains them."""
    lines: list[list[tuple[str, float]]] = [[]]
    column = 0
    for text, nats in pieces:
        before, *after = text.split("\n")
        if before:
            if column + len(before) > WIDTH_CHARS and before.startswith(" "):
                lines.append([])
                before, column = before[1:], 0
            lines[-1].append((before, nats))
            column += len(before)
        if after:
            lines.append([])
            column = 0
    line_height, char_width = 0.27, 0.0905
    width, height = (WIDTH_CHARS + 4) * char_width, (len(lines) + 4.6) * line_height
    figure, axes = plt.subplots(figsize=(width, height), dpi=200)
    figure.patch.set_facecolor(PAPER)
    axes.set_position((0, 0, 1, 1))
    axes.set_xlim(-2, WIDTH_CHARS + 2)
    axes.set_ylim(len(lines) + 3.4, -1.2)
    axes.axis("off")
    for row, line in enumerate(lines):
        column = 0
        for text, nats in line:
            shade = SHADES(min(nats, MAX_NATS) / MAX_NATS)
            axes.add_patch(plt.Rectangle((column, row - 0.42), len(text), 0.86, color=shade, linewidth=0))
            for offset, character in enumerate(text):
                axes.text(
                    column + offset + 0.5, row, character, family="DejaVu Sans Mono", fontsize=FONT_SIZE,
                    color=INK, ha="center", va="center_baseline",
                )  # fmt: skip
            column += len(text)
    bar_axes = figure.add_axes((0.33, 2.3 * line_height / height, 0.34, 0.32 * line_height / height))
    bar = figure.colorbar(ScalarMappable(Normalize(0, MAX_NATS), SHADES), cax=bar_axes, orientation="horizontal")
    bar.set_label("surprise of the model at each token (nats)", color=INK, fontsize=8.5)
    bar.ax.tick_params(labelsize=8, colors=INK, length=2)
    bar.outline.set_visible(False)
    figure.savefig(path, facecolor=PAPER)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"))
    arguments = parser.parse_args()
    draw(token_surprisals(sample_story(random.Random(f"figure/{arguments.seed}")).text), arguments.out)
