"""The story corpus: exact probabilities, one derivation a text, coherent and well-formed stories."""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections import Counter
from itertools import islice

import pytest

from minillm.data import stories as corpus
from minillm.data.stories import names
from minillm.data.stories.chance import Distribution, Drawer, derivations, rank_weights
from minillm.data.stories.lexicon import TABLES
from minillm.data.stories.teller import Teller, table
from minillm.data.stories.template import parse

SAMPLES = list(islice(corpus.stories(seed=31), 400))


class Enumerator:
    """An independent oracle: repeats `path`, then takes option 0, and notes how many options there were."""

    def __init__(self, path):
        self.path, self.sizes, self.log_prob, self.text = list(path), [], 0.0, ""

    def choose(self, distribution, head):
        step = len(self.sizes)
        self.sizes.append(len(distribution.log_probs))
        if step == len(self.path):
            self.path.append(0)
        option = self.path[step]
        self.log_prob += distribution.log_probs[option]
        return option

    def emit(self, text):
        self.text += text


def enumerate_all(tell):
    """Every sequence of decisions of `tell`, by counting in mixed radix: (text, probability) pairs."""
    path = []
    while True:
        chooser = Enumerator(path)
        tell(chooser)
        yield chooser.text, math.exp(chooser.log_prob)
        path = chooser.path
        while path and path[-1] == chooser.sizes[len(path) - 1] - 1:
            path.pop()
        if not path:
            return
        path[-1] += 1


def tiny_grammar(chooser):
    t = Teller(chooser)
    t.words["hero"] = "Tom"
    t.say("{One|Long ago*5}, [hero] {saw|had} a {red|big {blue|green}} hat.", "[Hero] slept{ well|}.")
    t.maybe("It {rained|was <very>} cold.", p=0.3)
    t.paragraph()
    t.say("The end.")


def ambiguous_grammar(chooser):
    t = Teller(chooser)
    t.maybe("Tom slept.", p=0.5)
    t.maybe("Tom slept.", "Tom ran.", p=0.25)


def test_probabilities_of_a_tiny_grammar_sum_to_one():
    total = Counter()
    for text, probability in enumerate_all(tiny_grammar):
        total[text] += probability
    assert len(total) == (2 * 2 * 3 + 2) * (1 + 1 + 5)
    assert sum(total.values()) == pytest.approx(1.0, abs=1e-12)
    for text, probability in total.items():
        found = list(derivations(tiny_grammar, text))
        assert len(found) == 1
        assert math.exp(found[0]) == pytest.approx(probability, rel=1e-12)


def test_drawn_frequencies_are_the_probabilities():
    """Chi-square of 20,000 draws from the tiny grammar against enumeration."""
    total = Counter()
    for text, probability in enumerate_all(tiny_grammar):
        total[text] += probability
    rng, counts, num_draws = random.Random(5), Counter(), 20_000
    for _ in range(num_draws):
        drawer = Drawer(rng)
        tiny_grammar(drawer)
        counts[drawer.text] += 1
        assert math.exp(drawer.log_prob) == pytest.approx(total[drawer.text], rel=1e-9)
    statistic = sum((counts[text] - num_draws * p) ** 2 / (num_draws * p) for text, p in total.items())
    freedom = len(total) - 1
    assert abs(statistic - freedom) < 5 * math.sqrt(2 * freedom)


def test_ambiguity_is_detected():
    found = sorted(math.exp(value) for value in derivations(ambiguous_grammar, "Tom slept."))
    first, _ = rank_weights(2)
    share = first / sum(rank_weights(2))
    assert found == pytest.approx(sorted([0.5 * 0.75, 0.5 * 0.25 * share]))


@pytest.mark.parametrize("part", range(4))
def test_each_story_has_one_derivation_and_its_exact_probability(part):
    for story in SAMPLES[part::8]:
        found = list(derivations(corpus.tell_story, story.text))
        assert len(found) == 1, story.text
        assert found[0] == pytest.approx(story.log_prob, abs=1e-9)
        assert -math.inf < story.log_prob < 0.0


def test_log_prob_and_num_derivations():
    story = SAMPLES[0]
    assert corpus.log_prob(story.text) == pytest.approx(story.log_prob, abs=1e-9)
    assert corpus.num_derivations(story.text) == 1


@pytest.mark.parametrize("index", range(5))
def test_other_texts_have_probability_zero(index):
    text = SAMPLES[index].text
    for other in (
        text[:-1],
        text + " ",
        text + " And then it rained.",
        text.replace(", ", " ", 1),
        "",
        "Hello.",
    ):
        assert corpus.log_prob(other) == -math.inf
        assert corpus.num_derivations(other) == 0


def test_a_wrong_pronoun_or_colour_has_probability_zero():
    tried = 0
    for story in SAMPLES[:40]:
        if (match := re.search(r"the (\w+) (\w+) was (gone|missing|lost)", story.text)) and match[1] in TABLES[
            "colour"
        ]:
            other = "white" if match[1] != "white" else "blue"
            assert corpus.log_prob(story.text.replace(match[0], match[0].replace(match[1], other))) == -math.inf
            tried += 1
    assert tried


def test_a_story_depends_on_seed_and_number_only():
    first = list(islice(corpus.stories(7), 12))
    assert first[5:] == list(islice(corpus.stories(7, start=5), 7))
    assert first != list(islice(corpus.stories(8), 12))
    assert corpus.sample_story(random.Random("7/3")) == first[3]


def test_the_corpus_has_not_changed():
    """The bundled weights were trained on exactly these stories, and their loss is measured against them."""
    digest = hashlib.sha256()
    for story in islice(corpus.stories(2024), 300):
        digest.update(story.text.encode() + repr(round(story.log_prob, 9)).encode())
    assert digest.hexdigest() == "203a0866fa1e050817cf29068dbba197a55f4147fdac0c5d2df30f4b8b1c672b"


def test_lengths_and_entropy():
    num_words = [len(story.text.split()) for story in SAMPLES]
    assert 110 <= min(num_words) and max(num_words) <= 265
    assert 175 <= sum(num_words) / len(num_words) <= 195
    mean, error = corpus.entropy_estimate(seed=31, num_stories=len(SAMPLES))
    assert mean == pytest.approx(-sum(story.log_prob for story in SAMPLES) / len(SAMPLES))
    assert abs(mean - 126.7) < 5 * error
    assert mean / (sum(num_words) / len(num_words)) > 0.6
    with pytest.raises(ValueError, match="at least 2"):
        corpus.entropy_estimate(0, num_stories=1)


def test_vocabulary():
    vocabulary = corpus.vocabulary()
    assert 900 <= len(vocabulary) <= 1300
    assert {"upon", "once", "lily", "dragon", "she", "he"} <= vocabulary
    for story in SAMPLES:
        assert corpus.unknown_words(story.text) == []
    assert corpus.unknown_words("Once Zumi met a wizard, a Wizard's quark and Lily's dragon.") == [
        "wizard",
        "Wizard",
        "quark",
    ]


def test_spelled_names_are_recognised_and_never_listed():
    assert all(corpus.is_spelled_name(name) for name in ("Zumi", "Kilato", "Rupo"))
    assert not any(corpus.is_spelled_name(name) for name in ("zumi", "Lily", "Zumilato", "Zu", "ZUMI", "Zumie", ""))
    listed = [name for kind in names.LISTED.values() for name in kind]
    assert len(listed) == len(set(listed)) >= 40
    assert not any(corpus.is_spelled_name(name) for name in listed)
    spelled = Counter()
    for story in SAMPLES:
        for word in set(re.findall(r"[A-Z][a-z]+", story.text)):
            if corpus.is_spelled_name(word):
                assert word.lower() not in corpus.vocabulary()
                spelled[word] += 1
    assert 0.15 < sum(spelled.values()) / len(SAMPLES) < 0.7
    assert len(spelled) > 0.8 * sum(spelled.values())


def test_table_words_follow_the_article_a():
    for name in (
        "trait",
        "size",
        "home_size",
        "animal",
        "wild",
        "wise",
        "colour",
        "treasure",
        "toy",
        "treat",
        "wear",
    ):
        assert all(word[0] not in "aeiou" for word in table(name)[0])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="start >= 0"):
        corpus.stories(0, start=-1)
    for template in ("{a|b", "a|b", "a}", "[a", "a > b"):
        with pytest.raises(ValueError, match="expected"):
            parse(template)
    with pytest.raises(ValueError, match="differ"):
        parse("{a|a}")
    with pytest.raises(ValueError, match="option left"):
        Distribution.of((1.0, 2.0), frozenset({0, 1}))
    with pytest.raises(ValueError, match="table of the lexicon"):
        table("nothing")


def test_excluded_options_are_never_drawn():
    distribution = Distribution.of((3.0, 2.0, 1.0), frozenset({0, 2}))
    drawer = Drawer(random.Random(0))
    assert {drawer.choose(distribution, lambda option: "") for _ in range(50)} == {1}
    assert drawer.log_prob == 0.0
