"""The bundled model: what its card claims, measured again on fewer stories."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import minillm
from minillm.data.stories import stories, vocabulary
from minillm.hf_config import resolve_model_path
from minillm.training.corpus import HELD_OUT_SEED_OFFSET
from minillm.training.evaluate import evaluate_documents
from minillm.training.prepare import document_encoder

FOLDER = resolve_model_path("stories-5m")
RECORD = Path(__file__).parent.parent / "book" / "results" / "stories-5m"


@pytest.fixture(scope="module")
def model():
    return minillm.load_model("stories-5m")


@pytest.fixture(scope="module")
def tokenizer():
    return minillm.load_tokenizer("stories-5m")


def test_is_small_enough_to_come_along() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 12e6


def test_is_what_its_name_says(model) -> None:
    assert 4.5e6 < sum(parameter.numel() for parameter in model.parameters()) < 5.5e6
    assert model.config.tie_embeddings and model.config.num_kv_heads < model.config.num_heads
    assert minillm.load_model("stories-5m", dtype="auto").embed_tokens.weight.dtype == torch.bfloat16


@torch.inference_mode()
def test_transformers_loads_the_folder_and_gives_the_same_logits(model, tokenizer) -> None:
    peer = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, attn_implementation="eager")
    text = next(stories(seed=77)).text
    token_ids = tokenizer.encode(text)
    assert token_ids == AutoTokenizer.from_pretrained(FOLDER)(text)["input_ids"]
    tokens = torch.tensor([token_ids])
    torch.testing.assert_close(model(tokens), peer(tokens).logits, atol=1e-3, rtol=1e-4)


def test_held_out_loss_is_the_recorded_one(model, tokenizer) -> None:
    """60 of the recorded evaluation's stories: their ratio to the source differs from that of all by noise only."""
    records = [json.loads(line) for line in (RECORD / "log.jsonl").read_text().splitlines()]
    recorded = [record for record in records if "eval_nats_per_story" in record][-1]
    assert recorded["eval_stories"] == 2000
    seed = json.loads((RECORD / "train.json").read_text())["settings"]["train"]["seed"]
    drawn = list(islice(stories(seed + HELD_OUT_SEED_OFFSET), 60))
    encode = document_encoder(tokenizer)
    found = evaluate_documents(model, [encode(story.text) for story in drawn], [-story.log_prob for story in drawn])
    assert found.ratio == pytest.approx(recorded["eval_nats_per_story"] / recorded["source_nats_per_story"], rel=0.02)
    assert found.ratio > 1  # nothing beats the entropy of the source


@pytest.mark.parametrize("seed", range(3))
def test_a_story_has_a_beginning_paragraphs_and_an_end(seed: int, model, tokenizer) -> None:
    params = minillm.SamplingParams(max_new_tokens=400, temperature=0.5)
    generator = torch.Generator().manual_seed(seed)
    token_ids = minillm.generate(model, tokenizer.encode("Once upon a time"), params, generator=generator)
    text = tokenizer.decode(token_ids)
    assert token_ids[-1] in model.config.eos_token_ids
    assert text.count("\n\n") >= 3 and text.rstrip()[-1] in '.!?"'


def test_word_list_is_the_vocabulary_of_the_grammar() -> None:
    first, *words = (FOLDER / "words.txt").read_text().splitlines()
    assert first == "# new names are fine" and words == sorted(vocabulary())
