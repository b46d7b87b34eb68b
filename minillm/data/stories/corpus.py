"""The corpus: sample stories, number them, score texts."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice

from minillm.data.stories import plots_heart, plots_home, plots_village, plots_wonder, plots_world
from minillm.data.stories.chance import Chooser, Drawer, derivations
from minillm.data.stories.opening import open_story
from minillm.data.stories.teller import Teller

# Commonest first: the weights are those of any other choice (`chance.rank_weights`).
PLOTS: dict[str, Callable[[Teller], None]] = {
    plot.__name__: plot
    for plot in (
        plots_home.lost_thing,
        plots_world.animal_friend,
        plots_heart.fear,
        plots_wonder.lonely_giant,
        plots_heart.wish,
        plots_village.baking_contest,
        plots_wonder.star,
        plots_heart.sharing,
        plots_village.storm,
        plots_wonder.garden,
        plots_home.broken_thing,
        plots_village.race,
        plots_world.boat_trip,
    )
}


@dataclass(frozen=True)
class Story:
    """One story. `log_prob` is the natural logarithm of its exact probability, in nats."""

    text: str
    log_prob: float


def tell_story(chooser: Chooser) -> None:
    """Tell one story through `chooser`: the whole grammar starts here."""
    teller = Teller(chooser)
    open_story(teller)
    PLOTS[teller.pick(*PLOTS)](teller)


def sample_story(rng: random.Random) -> Story:
    """Draw a story and its exact log-probability."""
    drawer = Drawer(rng)
    tell_story(drawer)
    return Story(drawer.text, drawer.log_prob)


def stories(seed: int, start: int = 0) -> Iterator[Story]:
    """The endless corpus of `seed`, from story number `start` on.

    Story i depends on `seed` and i only, so that any part can be made without the parts before it.
    Raises ValueError if `start` is negative.
    """
    if start < 0:
        raise ValueError(f"expected start >= 0, got {start}")
    return (sample_story(random.Random(f"{seed}/{number}")) for number in count(start))


def log_prob(text: str) -> float:
    """The exact log-probability of any text in nats: -inf if the grammar cannot tell it.

    The choices behind the text need not be known: they are searched for (see `chance.derivations`).
    """
    found = list(derivations(tell_story, text))
    if not found:
        return -math.inf
    highest = max(found)
    return highest + math.log(sum(math.exp(value - highest) for value in found))


def entropy_estimate(seed: int, num_stories: int = 2000) -> tuple[float, float]:
    """The entropy of the source in nats a story: (mean of -log p, its standard error).

    By Shannon (1948) it is the least mean loss that any model can reach on these stories.
    """
    if num_stories < 2:
        raise ValueError(f"expected at least 2 stories for a standard error, got {num_stories}")
    surprisals = [-story.log_prob for story in islice(stories(seed), num_stories)]
    return statistics.fmean(surprisals), statistics.stdev(surprisals) / math.sqrt(num_stories)


def num_derivations(text: str) -> int:
    """How many sequences of decisions tell `text`: 1 for each story, 0 for any other text."""
    return sum(1 for _ in derivations(tell_story, text))
