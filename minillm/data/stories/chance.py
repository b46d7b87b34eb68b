"""The one mechanism through which every random decision of a story goes.

A story is told by a `Teller`, which makes its decisions through a `Chooser`. There are two choosers:

- `Drawer` draws each decision at random and adds up the log-probabilities: that is sampling;
- `Follower` decides so that a given text comes out, and notes the decisions it might have made
  otherwise: that is scoring. It knows nothing but the text.

`derivations(tell, text)` runs the same telling again and again under followers until every sequence
of decisions that yields the text has been found. If there is always exactly one, then the
probability of a text is the probability of its decisions, and the entropy of the source is exact
(Shannon, "A Mathematical Theory of Communication", 1948, sections 6 and 7).
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Protocol


@dataclass(frozen=True)
class Distribution:
    """Probabilities of the options of one decision; excluded options have log-probability -inf."""

    log_probs: tuple[float, ...]
    cumulative: tuple[float, ...]

    @staticmethod
    @cache
    def of(weights: tuple[float, ...], excluded: frozenset[int] = frozenset()) -> Distribution:
        """Normalise `weights` over the options not in `excluded`; ValueError if none is left."""
        kept = [0.0 if i in excluded else weight for i, weight in enumerate(weights)]
        total = sum(kept)
        if total <= 0.0:
            raise ValueError(f"expected an option left, got weights {weights} without {set(excluded)}")
        log_probs = tuple(math.log(weight / total) if weight > 0.0 else -math.inf for weight in kept)
        return Distribution(log_probs, tuple(accumulate(weight / total for weight in kept)))


@cache
def rank_weights(num_options: int) -> tuple[float, ...]:
    """Zipf-like weights 1/3, 1/4, 1/5, ...: the first option is the commonest."""
    return tuple(1.0 / (rank + 3) for rank in range(num_options))


class Chooser(Protocol):
    """Makes the decisions of a telling and takes in its text."""

    def choose(self, distribution: Distribution, head: Callable[[int], str]) -> int:
        """Pick an option; `head(i)` is a text that option `i` surely goes on with ("" if unknown)."""

    def emit(self, text: str) -> None:
        """Take in the next piece of the story."""


class Drawer:
    """Decides at random. `log_prob` is the natural log of the probability of all decisions so far."""

    def __init__(self, rng: random.Random):
        self._rng = rng
        self._pieces: list[str] = []
        self.log_prob = 0.0

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def choose(self, distribution: Distribution, head: Callable[[int], str]) -> int:
        option = bisect_right(distribution.cumulative, self._rng.random())
        # Rounding can leave the last cumulative value a hair under 1, or an excluded option at the end.
        while option == len(distribution.log_probs) or distribution.log_probs[option] == -math.inf:
            option -= 1
        self.log_prob += distribution.log_probs[option]
        return option

    def emit(self, text: str) -> None:
        self._pieces.append(text)


class Mismatch(Exception):
    """The telling can no longer become the text that is followed."""


class Follower:
    """Decides so that `text` comes out, after first repeating the decisions in `path`.

    Where several options fit, it takes the first and puts the paths of the others in `untried`.
    """

    def __init__(self, text: str, path: Sequence[int] = ()):
        self._text = text
        self._position = 0
        self._num_repeated = len(path)
        self._path = list(path)
        self._step = 0
        self.untried: list[tuple[int, ...]] = []
        self.log_prob = 0.0

    def choose(self, distribution: Distribution, head: Callable[[int], str]) -> int:
        if self._step < self._num_repeated:
            option = self._path[self._step]
        else:
            fitting = [
                i
                for i, log_prob in enumerate(distribution.log_probs)
                if log_prob > -math.inf and self._text.startswith(head(i), self._position)
            ]
            if not fitting:
                raise Mismatch
            option, *others = fitting
            self.untried.extend((*self._path, other) for other in others)
            self._path.append(option)
        self._step += 1
        self.log_prob += distribution.log_probs[option]
        return option

    def emit(self, text: str) -> None:
        if not self._text.startswith(text, self._position):
            raise Mismatch
        self._position += len(text)

    @property
    def finished(self) -> bool:
        return self._position == len(self._text)


def derivations(tell: Callable[[Chooser], None], text: str) -> Iterator[float]:
    """Yield the log-probability of each sequence of decisions under which `tell` tells `text`.

    Depth first, by running the telling again from its start: a telling is an ordinary program, which
    cannot be resumed in the middle. A wrong decision dies at the first piece of text that differs.
    """
    untried: list[tuple[int, ...]] = [()]
    while untried:
        follower = Follower(text, untried.pop())
        try:
            tell(follower)
        except Mismatch:
            pass
        else:
            if follower.finished:
                yield follower.log_prob
        untried.extend(follower.untried)
