"""Streaming against a restatement that decodes everything first and cuts afterwards."""

from __future__ import annotations

import importlib
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.data import BPETokenizer
from minillm.generation import generate, generate_text, stream
from minillm.generation.stream import cut_at_stop
from minillm.sampling import SamplingParams

# By name: the attribute `stream` of the package is the function.
stream_module = importlib.import_module("minillm.generation.stream")
TEXTS = ["the dog saw the cat, and the cat saw the dog. " * 3, "über naïve café 🙂👩‍🚀 日本語 " * 3]


@pytest.fixture(scope="session")
def tokenizer() -> BPETokenizer:
    return BPETokenizer.train(TEXTS, 290, special_tokens=["<|end|>"])


@pytest.fixture(scope="session")
def model(make_model, tokenizer):
    end_token_id = tokenizer.special_tokens["<|end|>"]
    return make_model(1, vocab_size=tokenizer.vocab_size, eos_token_ids=(end_token_id,))


def cut_afterwards(text: str, stop: tuple[str, ...]) -> str:
    """Cut at the stop string whose first occurrence ends first; of several, the one that begins first."""
    found = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    return text[: min(found)[1]] if found else text


STOP_STRINGS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3).map(tuple)
PIECES = st.lists(st.text("ab", max_size=4), max_size=12)


@settings(max_examples=300, deadline=None)
@given(pieces=PIECES, stop=STOP_STRINGS)
def test_cutting_does_not_depend_on_the_pieces(pieces, stop):
    text = "".join(pieces)
    assert "".join(cut_at_stop(iter(pieces), stop)) == cut_afterwards(text, stop)
    assert "".join(cut_at_stop(iter(text), stop)) == cut_afterwards(text, stop)


@settings(max_examples=200, deadline=None)
@given(pieces=PIECES, stop=STOP_STRINGS)
def test_text_is_given_as_soon_as_it_is_certain_and_nothing_more_is_read_after_a_stop(pieces, stop):
    num_read, shown = 0, ""
    shown_after = {0: ""}

    def reading():
        nonlocal num_read
        for piece in pieces:
            num_read += 1
            yield piece
            shown_after[num_read] = shown

    for piece in cut_at_stop(reading(), stop):
        assert piece
        shown += piece
    texts = list(itertools.accumulate(pieces, initial=""))
    for n, shown_then in shown_after.items():
        text = texts[n]
        assert cut_afterwards(text, stop) == text, "read on after a stop string"
        # Certain: everything in front of the first place where a stop string may have begun.
        begins = [i for i in range(len(text)) if any(s.startswith(text[i:]) for s in stop)]
        assert shown_then == text[: min(begins, default=len(text))]
    ends = [n for n, text in enumerate(texts) if cut_afterwards(text, stop) != text or any(s in text for s in stop)]
    assert num_read == min(ends, default=len(pieces))


@settings(max_examples=25, deadline=None)
@given(data=st.data(), seed=st.integers(0, 200))
def test_a_stream_equals_decoding_everything_and_cutting(model, tokenizer, data, seed):
    params = SamplingParams(max_new_tokens=25, temperature=1.5, ignore_eos=data.draw(st.booleans()))
    prompt = "the dog"
    token_ids = generate(model, tokenizer.encode(prompt), params, generator=torch.Generator().manual_seed(seed))
    text = tokenizer.decode(token_ids)
    # Stop strings out of the text itself, or none would ever occur.
    spans = data.draw(st.lists(st.tuples(st.integers(0, max(len(text) - 1, 0)), st.integers(1, 5)), max_size=3))
    stop = tuple(text[start : start + length] for start, length in spans if text)
    generator = torch.Generator().manual_seed(seed)
    seen: list[int] = []
    pieces = list(stream(model, tokenizer, prompt, params, stop=stop, generator=generator, on_token=seen.append))
    assert "".join(pieces) == cut_afterwards(text, stop)
    assert all(pieces)
    assert seen == token_ids[: len(seen)]
    if not stop:
        assert seen == token_ids
    again = generate_text(model, tokenizer, prompt, params, stop=stop, generator=torch.Generator().manual_seed(seed))
    assert again == "".join(pieces)


@pytest.fixture
def scripted(monkeypatch, model, tokenizer):
    """scripted(token_ids, **arguments): the pieces of a stream of these tokens, and how many it asked for."""

    def run(token_ids, **arguments):
        asked = []

        def steps(*_, **__):
            for token_id in token_ids:
                asked.append(token_id)
                yield token_id

        monkeypatch.setattr(stream_module, "decode_steps", steps)
        return list(stream(model, tokenizer, "the", **arguments)), len(asked)

    return run


def test_a_character_of_several_tokens_comes_when_it_is_complete(scripted, tokenizer):
    first, *rest = (tokenizer.encode_bytes(bytes([byte])) for byte in "é🚀".encode())
    token_ids = [*first, *itertools.chain.from_iterable(rest)]
    assert len(token_ids) == 6
    assert scripted(token_ids) == (["é", "🚀"], 6)
    assert scripted(token_ids[:-1]) == (["é", "\ufffd"], 5)  # an end in the middle of a character
    assert scripted(token_ids, stop="🚀") == (["é"], 6)


def test_a_stop_string_may_span_tokens_and_generation_ends_with_it(scripted, tokenizer):
    token_ids = [tokenizer.encode(character)[0] for character in "a stop? no: STOP it"]
    assert len(token_ids) == 19
    pieces, num_tokens = scripted(token_ids, stop=["STOP"])
    assert ("".join(pieces), num_tokens) == ("a stop? no: ", 16)
    pieces, num_tokens = scripted(token_ids, stop=["it, never", "st", "no"])
    assert ("".join(pieces), num_tokens) == ("a ", 4)
    pieces, num_tokens = scripted(token_ids, stop="it, never")  # held back to the end, and then given
    assert ("".join(pieces), num_tokens) == ("a stop? no: STOP it", 19)
    assert pieces[-1] == "it"
    assert scripted(token_ids, stop="a") == ([], 1)


def test_ending_tokens_show_no_text(scripted, model, tokenizer):
    (end_token_id,) = model.config.eos_token_ids
    the, dog = tokenizer.encode("the")[0], tokenizer.encode("d")[0]
    assert scripted([the, end_token_id])[0] == [tokenizer.decode([the])]
    params = SamplingParams(stop_token_ids=(dog,))
    assert scripted([the, dog], params=params)[0] == [tokenizer.decode([the])]
    assert scripted([the, dog])[0] == [tokenizer.decode([the]), "d"]


@pytest.mark.parametrize("stop", ["", [""], ["a", ""], [1]])
def test_bad_stop_strings_raise_at_the_call(model, tokenizer, stop):
    with pytest.raises(ValueError, match="stop must be non-empty strings"):
        stream(model, tokenizer, "the", stop=stop)


def test_bad_prompts_raise_at_the_call(model, tokenizer):
    with pytest.raises(ValueError, match="empty"):
        stream(model, tokenizer, "")
    with pytest.raises(ValueError, match="expected at most 48"):
        stream(model, tokenizer, "x " * 60)
