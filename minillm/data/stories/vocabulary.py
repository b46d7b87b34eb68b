"""Every word that a story can contain, read off the templates themselves."""

from __future__ import annotations

import re
from functools import cache
from typing import cast

from minillm.data.stories import names
from minillm.data.stories.corpus import PLOTS
from minillm.data.stories.opening import open_story
from minillm.data.stories.teller import PRONOUNS, Teller, table
from minillm.data.stories.template import Choice, Draw, Parts, parse

_WORD = re.compile("[a-z]+(?:'[a-z]+)?")


def words_of(text: str) -> list[str]:
    """The words of `text`, spelled as there, without the "'s" of a possessive."""
    return [word.removesuffix("'s") for word in re.findall("[A-Za-z]+(?:'[a-z]+)?", text)]


@cache
def vocabulary() -> frozenset[str]:
    """All words of the grammar in lower case, listed names included, spelled names excluded."""
    words = {pronoun for pronouns in PRONOUNS.values() for pronoun in pronouns}
    for coin in (True, False):
        for child in PRONOUNS:
            listing = _Listing(coin, child)
            teller = cast(Teller, listing)  # it takes a teller's place, without being one
            open_story(teller)
            for plot in PLOTS.values():
                plot(teller)
            words |= listing.found
    return frozenset(words)


def unknown_words(text: str) -> list[str]:
    """The words of `text` that no story can contain, in order, each once."""
    strange = (word for word in words_of(text) if word.lower() not in vocabulary() and not names.is_spelled_name(word))
    return list(dict.fromkeys(strange))


class _Listing:
    """Stands in for a `Teller`: tells every option of every template, to collect the words."""

    def __init__(self, coin: bool, child: str):
        self._coin = coin
        self._child = child
        self.found: set[str] = set()

    def say(self, *templates: str) -> None:
        for template in templates:
            self._collect(parse(template))

    def maybe(self, *templates: str, p: float = 0.5) -> None:
        self.say(*templates)

    def paragraph(self) -> None:
        pass

    def chance(self, p: float) -> bool:
        return self._coin

    def cast(self, role: str) -> str:
        return self._child

    def _collect(self, parts: Parts) -> None:
        for part in parts:
            if isinstance(part, str):
                self.found.update(word.lower() for word in words_of(part))
            elif isinstance(part, Choice):
                for option in part.options:
                    self._collect(option)
            elif isinstance(part, Draw) and part.table in names.LISTED:
                self.found.update(name.lower() for name in names.LISTED[part.table])
            elif isinstance(part, Draw) and part.table != names.PLACE:
                self.found.update(word.lower() for entry in table(part.table)[0] for word in words_of(entry))
