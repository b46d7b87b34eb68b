"""Byte-pair encoding: learn merges from a corpus, apply them to a word.

Byte-pair encoding (Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units",
algorithm 1) starts from an alphabet and repeats one step: find the pair of neighbouring tokens that occurs
most often, and make it a new token. A tokenizer is the list of those merges, in the order in which they were
found; the place of a merge in the list is its *rank*. To encode a word, apply to it the merges of lowest rank
first.

Merges stay inside words (see `minillm.data.pretokenize`, which cuts a text into words). A corpus is therefore
no more than its distinct words with their counts, and an encoded word can be looked up the next time.

Both halves come twice here: `learn_merges_naive` and `apply_merges_naive` say what is computed,
`learn_merges` and `apply_merges` compute the same with an index. Read the naive ones first.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise

from tqdm import tqdm

Pair = tuple[int, int]
Merges = Mapping[Pair, tuple[int, int]]
"""What a pair of token ids becomes: `(left, right) -> (rank, merged token id)`."""


# Learning ---------------------------------------------------------------------------------------------------


def learn_merges_naive(
    word_counts: Mapping[str, int], vocab: dict[str, int], vocab_size: int, min_frequency: int = 0
) -> list[Pair]:
    """Learn merges by counting every pair of the corpus anew before each merge: `O(merges · corpus)`.

    Args:
        word_counts: how often each distinct word occurs in the corpus. Its characters are in `vocab`.
        vocab: token -> id, ids `0 ... len(vocab) - 1`. *Extended in place* with the tokens learned.
        vocab_size: stop when `vocab` has this many tokens.
        min_frequency: stop when the most frequent pair occurs less often than this.

    Returns:
        The merged pairs of token ids, in order of rank. Where two pairs are equally frequent, the one of
        smaller ids is merged first: the rule of the `tokenizers` library, without which the result would be
        arbitrary.
    """
    tokens = sorted(vocab, key=vocab.__getitem__)  # id -> token
    words = [([vocab[character] for character in word], count) for word, count in word_counts.items()]
    merged_pairs: list[Pair] = []

    while len(vocab) < vocab_size:
        pair_counts: Counter[Pair] = Counter()
        for word, count in words:
            for pair in pairwise(word):
                pair_counts[pair] += count
        if not pair_counts:
            break  # every word is a single token
        best = min(pair_counts, key=lambda pair: (-pair_counts[pair], pair))
        if pair_counts[best] < min_frequency:
            break
        merged_id = _add_token(tokens[best[0]] + tokens[best[1]], vocab, tokens)
        merged_pairs.append(best)
        words = [(merge_pair(word, best, merged_id), count) for word, count in words]
    return merged_pairs


def learn_merges(
    word_counts: Mapping[str, int],
    vocab: dict[str, int],
    vocab_size: int,
    min_frequency: int = 0,
    *,
    progress: bool = False,
) -> list[Pair]:
    """Learn the merges of `learn_merges_naive` (same arguments, effect and result) without recounting.

    A merge changes few words and few counts. Three structures make a step cost no more than what it changes:

    - `pair_counts`: the count of every pair, kept exact while words change;
    - `words_with[pair]`: the words in which the pair occurs or once occurred, the only ones a merge must
      visit;
    - `queue`: a heap of `(-count, pair)` whose top is the pair to merge next. A count that *falls* leaves its
      entry in the heap untouched, since an entry too high up is noticed when it is popped, and pushed again
      with the count of that moment. A count *grows* only for pairs that contain the new token; those are
      pushed.

    Set `progress` to show a progress bar.
    """
    tokens = sorted(vocab, key=vocab.__getitem__)  # id -> token
    words = [[vocab[character] for character in word] for word in word_counts]
    counts = list(word_counts.values())

    pair_counts: Counter[Pair] = Counter()
    words_with: defaultdict[Pair, set[int]] = defaultdict(set)
    for word_idx, word in enumerate(words):
        for pair in pairwise(word):
            pair_counts[pair] += counts[word_idx]
            words_with[pair].add(word_idx)
    queue = [(-count, pair) for pair, count in pair_counts.items()]
    heapify(queue)

    merged_pairs: list[Pair] = []
    with tqdm(total=vocab_size - len(vocab), desc="merges", disable=not progress) as bar:
        while len(vocab) < vocab_size and queue:
            queued_count, best = heappop(queue)
            count = pair_counts[best]
            if count != -queued_count:  # the count fell since this entry was pushed
                if count > 0:
                    heappush(queue, (-count, best))
                continue
            if count < min_frequency:
                break
            num_tokens = len(tokens)
            merged_id = _add_token(tokens[best[0]] + tokens[best[1]], vocab, tokens)
            merged_pairs.append(best)

            grown: set[Pair] = set()
            for word_idx in words_with.pop(best):
                word, merged_word = words[word_idx], merge_pair(words[word_idx], best, merged_id)
                if len(merged_word) == len(word):
                    continue  # an earlier merge took the pair out of this word
                for pair in pairwise(word):
                    pair_counts[pair] -= counts[word_idx]
                for pair in pairwise(merged_word):
                    pair_counts[pair] += counts[word_idx]
                    if merged_id in pair:
                        words_with[pair].add(word_idx)
                        grown.add(pair)
                words[word_idx] = merged_word
            for pair in grown:
                heappush(queue, (-pair_counts[pair], pair))
            bar.update(len(tokens) - num_tokens)
    return merged_pairs


def _add_token(token: str, vocab: dict[str, int], tokens: list[str]) -> int:
    """The id of `token`, a new one unless a special token is already spelled that way."""
    if token not in vocab:
        vocab[token] = len(tokens)
        tokens.append(token)
    return vocab[token]


def merge_pair(word: Sequence[int], pair: Pair, merged_id: int) -> list[int]:
    """`word` with every `pair` replaced by `merged_id`, from left to right: `aaa` becomes `(aa) a`."""
    merged: list[int] = []
    position = 0
    while position < len(word):
        if position + 1 < len(word) and (word[position], word[position + 1]) == pair:
            merged.append(merged_id)
            position += 2
        else:
            merged.append(word[position])
            position += 1
    return merged


# Encoding ---------------------------------------------------------------------------------------------------


def apply_merges_naive(word: Sequence[int], merges: Merges) -> list[int]:
    """Encode one word, given as ids of single characters: merge the leftmost pair of lowest rank until none
    is left.

    `O(n²)` for a word of `n` characters.
    """
    word = list(word)
    while True:
        candidates = [(merges[pair], position) for position, pair in enumerate(pairwise(word)) if pair in merges]
        if not candidates:
            return word
        (_, merged_id), position = min(candidates)
        word[position : position + 2] = [merged_id]


def apply_merges(word: Sequence[int], merges: Merges) -> list[int]:
    """Encode one word as `apply_merges_naive` does, in `O(n log n)`: a word may be a megabyte of a.

    The word is a doubly linked list over its original positions: a merge writes its token at the position of
    the left half and unlinks the right half. A heap holds the merges on offer, `(rank, position, left, right,
    merged)`. An offer whose tokens have been merged with others meanwhile is recognised when it is popped,
    and dropped.
    """
    token_at: list[int | None] = list(word)  # None: unlinked
    end = len(token_at)
    next_of = list(range(1, end + 1))
    previous_of = list(range(-1, end - 1))
    queue: list[tuple[int, int, int, int, int]] = []

    def offer(position: int) -> None:
        if position < 0 or next_of[position] == end:
            return
        left, right = token_at[position], token_at[next_of[position]]
        if left is not None and right is not None and (left, right) in merges:
            rank, merged_id = merges[left, right]
            heappush(queue, (rank, position, left, right, merged_id))

    for position in range(end):
        offer(position)
    while queue:
        _, position, left, right, merged_id = heappop(queue)
        right_position = next_of[position]
        if token_at[position] != left or right_position == end or token_at[right_position] != right:
            continue
        token_at[position], token_at[right_position] = merged_id, None
        next_of[position] = next_of[right_position]
        if next_of[position] < end:
            previous_of[next_of[position]] = position
        offer(previous_of[position])
        offer(position)
    return [token for token in token_at if token is not None]
