"""The stories as texts: well-formed English, consistent characters, what is told early comes back late."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import islice

import pytest

from minillm.data import stories as corpus
from minillm.data.stories.chance import Drawer
from minillm.data.stories.corpus import PLOTS
from minillm.data.stories.opening import open_story
from minillm.data.stories.teller import Teller

SAMPLES = list(islice(corpus.stories(seed=32), 400))


def test_once_upon_a_time_is_the_commonest_opening():
    openings = Counter(" ".join(story.text.split()[:4]) for story in SAMPLES)
    assert openings.most_common(1)[0][0].startswith("Once upon a time")
    assert len({story.text.split()[0] for story in SAMPLES}) > 8


@pytest.mark.parametrize(
    "fault",
    [
        r"[^A-Za-z.,:!?\"' \n]",
        r"  |\n\n\n| \n|\n |(?<!\n)\n(?!\n)",
        r"\b[Aa] [aeiou]",
        r"\b[Aa]n (?!hour)[^aeiou]",
        r" [.,!?]|[.,!?][.,!?]|[.,!?][A-Za-z]",
        r"\b(?!long)(\w+) \1\b",
    ],
)
def test_well_formed(fault):
    for story in SAMPLES:
        assert not (match := re.search(fault, story.text)), match


def test_sentences_begin_with_capitals():
    for story in SAMPLES:
        narration = re.sub(r'"[^"\n]*"', "-", story.text)  # after speech the sentence may go on
        narration = re.sub("(Boom|Crash|Bang|Crack|Click)! (went|said)", "It said", narration)
        assert not (match := re.search(r"[.!?]\s+[a-z]", narration)), match
        for speech in re.findall(r'[.!?] "([^"\n]*)"', story.text):
            assert speech[0].isupper()


def test_quotes_are_balanced_and_stories_end():
    for story in SAMPLES:
        assert all(paragraph.count('"') % 2 == 0 for paragraph in story.text.split("\n\n"))
        assert story.text[0].isupper() and story.text[-1] in '.!?"'


def told(plot, number):
    drawer = Drawer(random.Random(f"{plot}/{number}"))
    teller = Teller(drawer)
    open_story(teller)
    PLOTS[plot](teller)
    return drawer.text, teller.words


@pytest.mark.parametrize("plot", PLOTS)
def test_characters_stay_consistent(plot):
    """Names and kinds differ, pronouns fit, and often both friends come back in the last third."""
    num_returns = 0
    for number in range(30):
        text, words = told(plot, number)
        assert words["hero"] != words["pal"] and words["kind"] != words["pal_kind"]
        narration = set(re.findall(r"[a-z]+", re.sub(r'"[^"]*"', "", text).lower()))
        if words["he"] == words["pal_he"] == "he":
            assert "she" not in narration
            assert "her" not in narration or plot == "animal_friend"  # the lost animal's mother
        if words["he"] == words["pal_he"] == "she":
            assert not narration & {"he", "him", "his"}
        ending = text[2 * len(text) // 3 :]
        num_returns += all(
            words[name] in ending or words[kind] in ending or "two friends" in ending
            for name, kind in (("hero", "kind"), ("pal", "pal_kind"))
        )
    assert num_returns >= 8


@pytest.mark.parametrize(
    ("plot", "keys"),
    [
        ("lost_thing", ("thing",)),
        ("broken_thing", ("toy",)),
        ("baking_contest", ("treat",)),
        ("storm", ("wild",)),
        ("fear", ("fear",)),
        ("wish", ("wish",)),
        ("sharing", ("first", "second")),
        ("race", ("prize",)),
        ("animal_friend", ("baby",)),
        ("boat_trip", ("tool",)),
        ("garden", ("bloom", "keeper")),
        ("lonely_giant", ("monster_name",)),
    ],
)
def test_what_a_story_begins_with_comes_back_late(plot, keys):
    for key in keys:
        num_returns = 0
        for number in range(30):
            text, words = told(plot, number)
            first = text.index(words[key])
            num_returns += words[key] in text[first + len(words[key]) + 100 :]
        assert num_returns >= 20
