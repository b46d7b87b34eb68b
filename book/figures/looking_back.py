"""Draw `looking_back.png`: which words an attention head reads before the model writes its next one.

    python book/figures/looking_back.py         # writes book/figures/looking_back.png

The weights are those of one head of the bundled model, recorded by an attend that keeps them; the story is from the
grammar that the model was trained on. The bytes are computed from the model's sizes.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import Tensor

from minillm import load_model, load_tokenizer, plots
from minillm.data.stories import sample_story

STORY, LAYER, HEAD = "figure/4", 5, 2
NEXT_TOKEN = 241  # its place in the story
WIDTH_CHARS, FONT_SIZE = 54, 12  # narrow, so that it can be read on a phone
MIB, KIB = 2**20, 2**10


@dataclass
class RecordingAttend:
    """Causal attention that keeps its weights: `weights[layer_idx]` (num_heads, seq_len, seq_len)."""

    weights: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[-2] // x.shape[-2], dim=-2) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * softmax_scale
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        self.weights[layer_idx] = scores.masked_fill(future, -torch.inf).softmax(dim=-1)
        return torch.einsum("hqk,khd->qhd", self.weights[layer_idx], v)


def trace() -> tuple[list[tuple[str, float]], str, float, int, str]:
    """([(text of a token, weight on it)], the next token, its probability, number of heads, what was read)."""
    model, tokenizer = load_model(), load_tokenizer()
    story = tokenizer.encode(sample_story(random.Random(STORY)).text)
    token_ids, next_id = story[:NEXT_TOKEN], story[NEXT_TOKEN]
    attend = RecordingAttend()
    with torch.inference_mode():
        logits = model(torch.tensor(token_ids), torch.arange(len(token_ids)), attend)
    weights = attend.weights[LAYER][HEAD, -1]
    spec = model.layer_specs[0]
    kv = 4 * len(model.layer_specs) * spec.num_kv_heads * (spec.k_head_dim + spec.v_head_dim)
    read = (
        f"Read for this word, in fp32: {sum(p.numel() for p in model.parameters()) * 4 / MIB:.1f} MiB of weights,\n"
        f"{len(token_ids)} tokens × {kv / KIB:g} KiB of keys and values."
    )
    heads = sum(spec.num_heads for spec in model.layer_specs)
    pieces = [(tokenizer.decode([token]), float(weight)) for token, weight in zip(token_ids, weights, strict=True)]
    return pieces[1:], tokenizer.decode([next_id]), float(logits[-1].softmax(-1)[next_id]), heads, read


def place(pieces: list[tuple[str, float]]) -> list[tuple[int, int, str, float]]:
    """(row, column, text, weight) of every token, words wrapped at WIDTH_CHARS."""
    placed: list[tuple[int, int, str, float]] = []
    row = column = 0
    for text, weight in pieces:
        before, *after = text.split("\n")
        if before:
            if column + len(before) > WIDTH_CHARS and before.startswith(" "):
                row, column, before = row + 1, 0, before[1:]
            placed.append((row, column, before, weight))
            column += len(before)
        if after:
            row, column = row + 1, 0
    return placed


def draw(path: Path) -> None:
    pieces, answer, probability, heads, read = trace()
    distance = len(pieces) - max(range(len(pieces)), key=lambda index: pieces[index][1])
    placed = place(pieces)
    fig, ax = plots.diagram(width=7.0, height=7.6)
    ax.set_aspect("auto")
    shade = plots.ramp(plots.BLUE)
    for row, column, text, weight in placed:
        if weight > 0.01 and text.strip():
            style, size = "round,pad=0,rounding_size=0.15", (len(text.strip()) + 0.3, 0.8)
            left = column + len(text) - len(text.lstrip()) - 0.15
            box = FancyBboxPatch((left, row - 0.4), *size, boxstyle=style, linewidth=0, zorder=2.5)
            box.set_facecolor(shade(0.12 + 0.88 * weight))
            ax.add_patch(box)
        ink = plots.ink_on(plots.BLUE) if weight > 0.5 else plots.INK
        for offset, character in enumerate(text):
            letter = {"family": "DejaVu Sans Mono", "fontsize": FONT_SIZE, "color": ink, "zorder": 3}
            ax.text(column + offset + 0.5, row, character, ha="center", va="center_baseline", **letter)
    row, column, text, _ = placed[-1]
    word = answer.strip()
    start, middle = column + len(text) + 1, column + len(text) + 1 + len(word) / 2
    blank = (start - 0.1, row - 0.42), len(word) + 0.2, 0.84
    ax.add_patch(Rectangle(*blank, facecolor=plots.tint(plots.ORANGE, 0.35), linewidth=0))
    ax.text(middle, row, "?", fontsize=FONT_SIZE + 2, ha="center", va="center", weight="bold")
    to_row, to_column, found, weight = max(placed, key=lambda item: item[3])
    arrow = FancyArrowPatch(
        (middle, row - 0.5),
        (to_column + 1 + len(found.strip()) / 2, to_row + 0.5),
        connectionstyle="arc3,rad=0.22",
        arrowstyle="-|>,head_length=8,head_width=5",
        color=plots.tint(plots.BLUE, 0.7),
        linewidth=3,
        zorder=2,
    )
    ax.add_patch(arrow)
    likely = f"{probability:.1%}" if probability < 0.9995 else "above 99.9%"
    finding = (
        f"One of the {heads} attention heads puts {weight:.1%} of its weight on one token,\n"
        f"{distance} tokens back, and the model says “{word}” with probability {likely}."
    )
    below = {"fontsize": 11.5, "va": "top", "linespacing": 1.5}
    ax.text(0.5, row + 1.7, finding, color=plots.INK, **below)
    ax.text(0.5, row + 4.1, read, color=plots.MUTED, **below)
    ax.set_xlim(-0.5, WIDTH_CHARS + 1.5)
    ax.set_ylim(row + 6.2, -1.0)
    plots.save(fig, path, alt=f"A story; an arrow from its next word back to the first {word}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"))
    draw(parser.parse_args().out)
