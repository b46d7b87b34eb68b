"""An endless corpus of short children's stories whose entropy is known exactly.

A story is told by ordinary Python functions (the plots) that make every decision through one mechanism
with known probabilities. Each text arises from exactly one sequence of decisions, so the probability of
a text is the product of the probabilities of its decisions. The mean of -log p is the entropy of this
source, and by Shannon (1948) no language model can have a lower cross-entropy on it: the loss curve of a
model trained on these stories has a floor that is known before training begins.

Reading order: `chance` (decisions, sampling, scoring), `template` (the notation), `names`, `lexicon`,
`teller`, `opening`, the plots (`plots_home`, `plots_village`, `plots_heart`, `plots_world`,
`plots_wonder`), `corpus`, `vocabulary`.
"""

from minillm.data.stories.corpus import (
    Story,
    entropy_estimate,
    log_prob,
    num_derivations,
    sample_story,
    stories,
    tell_story,
)
from minillm.data.stories.names import is_spelled_name
from minillm.data.stories.vocabulary import unknown_words, vocabulary

__all__ = [
    "Story",
    "entropy_estimate",
    "is_spelled_name",
    "log_prob",
    "num_derivations",
    "sample_story",
    "stories",
    "tell_story",
    "unknown_words",
    "vocabulary",
]
