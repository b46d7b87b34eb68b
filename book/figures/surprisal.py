"""Draw `surprisal.png`: a story of the bundled model's grammar, each token shaded by how much it surprised the model.

    python book/figures/surprisal.py            # writes book/figures/surprisal.png

A pale token was certain, a dark one was news. Whatever the story has already said (a name, a colour, a thing that was
lost) is pale when it comes back: the model has looked it up in its context.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from minillm import load_model, load_tokenizer, plots
from minillm.data.stories import sample_story

WIDTH_CHARS, LINE_HEIGHT = 86, 2.3  # a line, and its height in widths of a character
FONT_SIZE, MAX_NATS = 10.5, 4.0
SHADES = plots.ramp(plots.ORANGE)


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
    lines = wrap(pieces)
    fig, ax = plots.diagram(8.2, 6)
    ax.set(xlim=(0, WIDTH_CHARS), ylim=(len(lines) * LINE_HEIGHT, 0))
    scale = ScalarMappable(Normalize(0, MAX_NATS, clip=True), SHADES)
    for row, line in enumerate(lines):
        column, y = 0, row * LINE_HEIGHT
        for text, nats in line:
            shade = scale.to_rgba(nats)
            ax.add_patch(Rectangle((column, y), len(text), 0.86 * LINE_HEIGHT, color=shade, linewidth=0))
            for place, character in enumerate(text, column):
                x = place + 0.5
                ax.text(
                    x, y + 0.45 * LINE_HEIGHT, character, family="DejaVu Sans Mono", size=FONT_SIZE,
                    ha="center", va="center_baseline", parse_math=False,
                )  # fmt: skip
            column += len(text)
    bar = fig.colorbar(scale, ax=ax, orientation="horizontal", shrink=0.4, aspect=28, pad=0.03)
    bar.set_label("surprise of the model at each token (nats)", size=FONT_SIZE)
    bar.ax.tick_params(labelsize=FONT_SIZE - 1)
    bar.outline.set_visible(False)
    plots.save(fig, path, alt="A story, each token shaded by its surprise: new names are dark, repeated ones pale.")


def wrap(pieces: list[tuple[str, float]]) -> list[list[tuple[str, float]]]:
    """Lines of at most WIDTH_CHARS, broken at spaces and where the text has line ends."""
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
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"))
    arguments = parser.parse_args()
    draw(token_surprisals(sample_story(random.Random(f"figure/{arguments.seed}")).text), arguments.out)
