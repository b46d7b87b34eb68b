"""Names of characters and places: most are listed, some are spelled from syllables.

A spelled name ("Zumi", "Kelato") is two or three syllables of one consonant and one vowel. No listed
name and no other capitalised word of the grammar has that form, so that a name tells where it comes
from, and a model has to learn to copy names that it has never seen.
"""

from __future__ import annotations

import re

PLACE = "place_name"  # the table whose names are always spelled

SPELLED_PROBABILITY = 0.15
THIRD_SYLLABLE_PROBABILITY = 0.4

CONSONANTS = ("t", "m", "k", "l", "z", "n", "r", "p", "d", "b", "v", "f")
VOWELS = ("a", "i", "o", "u")

LISTED = {
    "girl": (
        "Lily", "Anna", "Mia", "Ella", "Daisy", "Ruby", "Emma", "Poppy", "Clara", "Ivy", "Rosie", "Hazel",
        "Molly", "Alice", "Nell", "Pearl", "Betty", "Wendy", "Olive", "Fern", "Tilly", "Grace", "June", "Dot",
    ),
    "boy": (
        "Tom", "Ben", "Max", "Sam", "Oliver", "Finn", "Jack", "Leo", "Toby", "Oscar", "Henry", "Charlie",
        "Peter", "Hugo", "George", "Will", "Arthur", "Ned", "Felix", "Gus", "Walter", "Rusty", "Otto",
        "Jasper",
    ),
}  # fmt: skip

_SYLLABLE = f"[{''.join(CONSONANTS)}][{''.join(VOWELS)}]"
_SPELLED = re.compile(f"(?:{_SYLLABLE}){{2,3}}")


def is_spelled_name(word: str) -> bool:
    """True if `word` has the form of a spelled name: capital first, two or three syllables."""
    return word == word.capitalize() and _SPELLED.fullmatch(word.lower()) is not None
