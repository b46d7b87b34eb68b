"""The palette, measured: contrast by WCAG's formula, and how far colours stay apart for every colour vision."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from minillm import plots

NAMES = ("BLUE", "ORANGE", "GREEN", "RED", "PURPLE", "YELLOW", "SKY", "GREY")

# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
VISION = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def linear(color: str) -> np.ndarray:
    c = np.array(to_rgb(color))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Ottosson (2020): distances of 0.05 are seen at a glance between patches, 0.02 side by side."""
    to_lms = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
    to_lms += [[0.0883024619, 0.2817188376, 0.6299787005]]
    to_lab = [[0.2104542553, 0.793617785, -0.0040720468], [1.9779984951, -2.428592205, 0.4505937099]]
    to_lab += [[0.0259040371, 0.7827717662, -0.808675766]]
    return np.array(to_lab) @ np.cbrt(np.array(to_lms) @ rgb)


def test_contrast_formula() -> None:
    assert plots.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert plots.contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=1e-3)  # WebAIM's well-known near miss


@pytest.mark.parametrize("ink", [plots.INK, plots.MUTED])
def test_text_is_legible_on_the_card(ink: str) -> None:
    assert plots.contrast(ink, plots.PAPER) >= 4.5


@pytest.mark.parametrize("name", NAMES)
def test_series_stand_out_and_carry_text(name: str) -> None:
    color = getattr(plots, name)
    assert plots.contrast(color, plots.PAPER) >= 3
    assert plots.contrast(plots.ink_on(color), color) >= 4.5
    assert plots.contrast(plots.INK, plots.tint(color)) >= 4.5


@pytest.mark.parametrize("vision", VISION)
def test_series_stay_apart(vision: str) -> None:
    labs = {name: oklab(np.clip(VISION[vision] @ linear(getattr(plots, name)), 0, 1)) for name in NAMES}
    pairs = {(a, b): np.linalg.norm(labs[a] - labs[b]) for a, b in itertools.combinations(NAMES, 2)}
    closest = min(pairs, key=lambda pair: pairs[pair])
    assert pairs[closest] >= 0.05, (closest, pairs[closest])


def test_series_hold_every_colour_once() -> None:
    assert sorted(plots.SERIES) == sorted(getattr(plots, name) for name in NAMES)
