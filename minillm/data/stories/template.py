"""Story templates: text with choices in it, compiled once.

    "[hero] {walked|ran|hopped} to the <place:goal>{ with [his] <pet>|}."

- `{a|b|c}`     one of the options; options may be nested and may be empty;
- `<table>`     a word from the lexicon's table of that name;
- `<table:key>` the same, remembered under `key`;
- `<phrase>`    a longer phrase of the lexicon (`lexicon.PHRASES`), itself a template;
- `[key]`       a remembered word again; `[Key]` with a capital first letter.

The first option is the commonest (weights 1/3, 1/4, 1/5, ...), unless weights are given: in
`{once*6|long ago*2|one day}` the weights are 6, 2 and 1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from minillm.data.stories.chance import rank_weights
from minillm.data.stories.lexicon import PHRASES


@dataclass(frozen=True)
class Slot:
    """A remembered word: `[key]`."""

    key: str
    capital: bool


@dataclass(frozen=True)
class Draw:
    """A word from a table, perhaps remembered: `<table:key>`."""

    table: str
    key: str | None


@dataclass(frozen=True)
class Choice:
    """One of several texts: `{a|b|c}`."""

    options: tuple[Parts, ...]
    weights: tuple[float, ...]


Part = str | Slot | Draw | Choice
Parts = tuple[Part, ...]

_TOKEN = re.compile(r"[{}|]|\[[^\]]*\]|<[^>]*>|[^{}|\[\]<>]+")
_WEIGHT = re.compile(r"\*(\d+)$")


@cache
def parse(template: str) -> Parts:
    """Compile a template; ValueError if its braces do not match or two options are the same."""
    tokens = _TOKEN.findall(template)
    if "".join(tokens) != template:
        raise ValueError(f"expected matching brackets, got {template!r}")
    parts, rest = _parse_parts(tokens)
    if rest:
        raise ValueError(f"expected no '}}' or '|' outside of braces, got {template!r}")
    return parts


@cache
def parse_options(templates: tuple[str, ...]) -> Choice:
    """Compile a choice between whole templates."""
    return _choice([parse(template) for template in templates], [None] * len(templates))


def _parse_parts(tokens: list[str]) -> tuple[Parts, list[str]]:
    """Compile tokens up to the end of this option; return what is compiled and what is left."""
    parts: list[Part] = []
    while tokens and tokens[0] not in "|}":
        token, tokens = tokens[0], tokens[1:]
        if token == "{":
            choice, tokens = _parse_choice(tokens)
            parts.append(choice)
        elif token[0] == "[":
            key = token[1:-1]
            parts.append(Slot(key.lower(), capital=key[0].isupper()))
        elif token[0] == "<":
            table, _, key = token[1:-1].partition(":")
            if table in PHRASES:
                parts.extend(parse(PHRASES[table]))
            else:
                parts.append(Draw(table, key or None))
        else:
            parts.append(token)
    return tuple(parts), tokens


def _parse_choice(tokens: list[str]) -> tuple[Choice, list[str]]:
    """Compile what follows an opening brace, up to and including the closing one."""
    options: list[Parts] = []
    weights: list[float | None] = []
    separator = "|"
    while separator == "|":
        parts, tokens = _parse_parts(tokens)
        weight = None
        if parts and isinstance(parts[-1], str) and (match := _WEIGHT.search(parts[-1])):
            weight = float(match[1])
            last = parts[-1][: match.start()]
            parts = parts[:-1] + ((last,) if last else ())
        options.append(parts)
        weights.append(weight)
        if not tokens:
            raise ValueError("expected a closing '}' for every '{'")
        separator, tokens = tokens[0], tokens[1:]
    return _choice(options, weights), tokens


def _choice(options: list[Parts], weights: list[float | None]) -> Choice:
    if len(set(options)) < len(options):
        raise ValueError(f"expected options that differ from each other, got {options}")
    if all(weight is None for weight in weights):
        return Choice(tuple(options), rank_weights(len(options)))
    return Choice(tuple(options), tuple(1.0 if weight is None else weight for weight in weights))
