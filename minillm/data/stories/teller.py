"""The teller: tells templates through a chooser, remembers words, keeps sentences and paragraphs apart."""

from __future__ import annotations

from functools import cache

from minillm.data.stories import names
from minillm.data.stories.chance import Chooser, Distribution, rank_weights
from minillm.data.stories.lexicon import TABLES
from minillm.data.stories.template import Choice, Draw, Parts, Slot, parse, parse_options

PRONOUNS = {"girl": ("she", "her", "her"), "boy": ("he", "him", "his")}


@cache
def table(name: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The words of a lexicon table and their weights."""
    if name not in TABLES:
        raise ValueError(f"expected a table of the lexicon, got {name!r}")
    choice = parse("{" + TABLES[name] + "}")[0]
    assert isinstance(choice, Choice)
    return tuple(str(option[0]) for option in choice.options), choice.weights


class Teller:
    """Tells one story. `words` holds what has been remembered: names, pronouns, colours, places."""

    def __init__(self, chooser: Chooser):
        self._chooser = chooser
        self._gap = ""
        self._latest: dict[str, str] = {}  # table -> the word drawn last, which is not drawn twice running
        self._initials: set[int] = set()  # first consonants of the names spelled so far
        self.words: dict[str, str] = {}

    def say(self, *templates: str) -> None:
        """Say one of the templates (a sentence or more), the first the likeliest."""
        self._chooser.emit(self._gap)
        self._gap = " "
        if len(templates) == 1:
            self._tell(parse(templates[0]))
        else:
            self._tell((parse_options(templates),))

    def maybe(self, *templates: str, p: float = 0.5) -> None:
        """Say one of the templates with probability `p`, else nothing."""
        if self.chance(p):
            self.say(*templates)

    def paragraph(self) -> None:
        """Begin a new paragraph."""
        self._gap = "\n\n"

    def chance(self, p: float) -> bool:
        """True with probability `p`."""
        return self._chooser.choose(Distribution.of((p, 1.0 - p)), lambda option: "") == 0

    def pick(self, *options: str) -> str:
        """One of the options, the first the likeliest. Nothing is said."""
        return options[self._chooser.choose(Distribution.of(rank_weights(len(options))), lambda option: "")]

    def cast(self, role: str) -> str:
        """Decide whether the character in `role` is a girl or a boy; remember pronouns; return which.

        The keys are `he`, `him` and `his` for the hero and `pal_he`, ... for the role "pal".
        """
        child = self.pick("girl", "boy")
        prefix = "" if role == "hero" else role + "_"
        for key, pronoun in zip(("he", "him", "his"), PRONOUNS[child], strict=True):
            self.words[prefix + key] = pronoun
        return child

    def _tell(self, parts: Parts) -> None:
        for part in parts:
            if isinstance(part, str):
                self._chooser.emit(part)
            elif isinstance(part, Slot):
                self._chooser.emit(self._remembered(part))
            elif isinstance(part, Draw):
                self._draw(part)
            else:
                self._tell(part.options[self._choose_option(part)])

    def _choose_option(self, choice: Choice) -> int:
        def head(option: int) -> str:
            parts = choice.options[option]
            if parts and isinstance(parts[0], str):
                return parts[0]
            return self._remembered(parts[0]) if parts and isinstance(parts[0], Slot) else ""

        return self._chooser.choose(Distribution.of(choice.weights), head)

    def _remembered(self, slot: Slot) -> str:
        word = self.words[slot.key]
        return word[0].upper() + word[1:] if slot.capital else word

    def _draw(self, draw: Draw) -> None:
        """Draw a word that is not remembered yet and was not the table's latest."""
        if draw.table in names.LISTED or draw.table == names.PLACE:
            word = self._name(draw.table)
        else:
            options, weights = table(draw.table)
            taken = {*self.words.values(), self._latest.get(draw.table)}
            excluded = frozenset(i for i, option in enumerate(options) if option in taken)
            distribution = Distribution.of(weights, excluded)
            word = options[self._chooser.choose(distribution, options.__getitem__)]
            self._latest[draw.table] = word
            self._chooser.emit(word)
        if draw.key:
            self.words[draw.key] = word

    def _name(self, kind: str) -> str:
        if kind == names.PLACE or self.chance(names.SPELLED_PROBABILITY):
            return self._spelled_name()
        options = names.LISTED[kind]
        taken = frozenset(i for i, option in enumerate(options) if option in self.words.values())
        distribution = Distribution.of(rank_weights(len(options)), taken)
        name = options[self._chooser.choose(distribution, options.__getitem__)]
        self._chooser.emit(name)
        return name

    def _spelled_name(self) -> str:
        """Spell a name whose first letter differs from those of the names spelled before."""
        weights = rank_weights(len(names.CONSONANTS))
        distribution = Distribution.of(weights, frozenset(self._initials))
        initial = self._choose_letter(names.CONSONANTS, distribution, capital=True)
        self._initials.add(names.CONSONANTS.index(initial.lower()))
        name = initial + self._choose_vowel() + self._choose_syllable()
        if self.chance(names.THIRD_SYLLABLE_PROBABILITY):
            name += self._choose_syllable()
        return name

    def _choose_syllable(self) -> str:
        weights = rank_weights(len(names.CONSONANTS))
        return self._choose_letter(names.CONSONANTS, Distribution.of(weights)) + self._choose_vowel()

    def _choose_vowel(self) -> str:
        return self._choose_letter(names.VOWELS, Distribution.of(rank_weights(len(names.VOWELS))))

    def _choose_letter(self, letters: tuple[str, ...], distribution: Distribution, capital: bool = False) -> str:
        cased = tuple(letter.upper() for letter in letters) if capital else letters
        letter = cased[self._chooser.choose(distribution, cased.__getitem__)]
        self._chooser.emit(letter)
        return letter
