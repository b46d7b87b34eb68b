"""Held-out loss against a document-by-document computation in float64, and against `transformers`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from minillm.model.checkpoint import save_model
from minillm.training import evaluate
from minillm.training.corpus import (
    distinct_words,
    held_out_stories,
    hold_out,
    read_text_files,
    training_stories,
)
from minillm.training.evaluate import document_nats, evaluate_documents, evaluate_text
from minillm.training.plot import plot_losses
from tests.training.tiny import tiny_model


def documents(num_documents: int = 23) -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    lengths = torch.randint(2, 40, (num_documents,), generator=generator).tolist()
    return [torch.randint(40, (length,), generator=generator).tolist() for length in lengths]


def test_nats_equal_one_document_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "TOKENS_PER_BATCH", 100)  # several batches, padded ones among them
    model = tiny_model().train()
    nats = document_nats(model, documents())
    assert model.training
    exact = tiny_model().double()
    for token_ids, found in zip(documents(), nats, strict=True):
        log_probs = torch.log_softmax(exact(torch.tensor(token_ids)), dim=-1)
        expected = -sum(float(log_probs[i, token_ids[i + 1]].detach()) for i in range(len(token_ids) - 1))
        assert found == pytest.approx(expected, rel=1e-4)


def test_nats_equal_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = tiny_model()
    save_model(model, tmp_path)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    nats = document_nats(model, documents(4))
    for token_ids, found in zip(documents(4), nats, strict=True):
        tokens = torch.tensor([token_ids])
        loss = peer(tokens, labels=tokens).loss  # mean over the len - 1 targets
        assert found == pytest.approx(float(loss.detach()) * (len(token_ids) - 1), rel=1e-4)


def test_story_evaluation_counts_what_is_predicted() -> None:
    model, tokens = tiny_model(), documents()
    result = evaluate_documents(model, tokens, [2.0] * 22 + [25.0])
    nats = document_nats(model, tokens)
    assert result.num_tokens == sum(map(len, tokens)) - 23
    assert result.model_nats_per_story == pytest.approx(sum(nats) / 23)
    assert result.source_nats_per_story == pytest.approx(3.0)
    assert result.ratio == pytest.approx(sum(nats) / 69)
    assert result.model_nats_per_token == pytest.approx(sum(nats) / result.num_tokens)
    assert result.source_nats_per_token == pytest.approx(69 / result.num_tokens)
    with pytest.raises(ValueError, match="one source"):
        evaluate_documents(model, tokens, [1.0])


def test_text_evaluation() -> None:
    model, tokens = tiny_model(), documents(3)
    result = evaluate_text(model, tokens, num_bytes=200)
    nats = sum(document_nats(model, tokens))
    assert result.nats_per_byte == pytest.approx(nats / 200)
    assert result.perplexity == pytest.approx(math.exp(nats / (sum(map(len, tokens)) - 3)))


def test_held_out_stories_are_not_trained_on() -> None:
    texts, nats = held_out_stories(3, 20)
    source = training_stories(3)
    assert not set(texts) & {next(source) for _ in range(200)}
    assert all(value > 20 for value in nats)


def test_hold_out_takes_the_end() -> None:
    words = " ".join(f"w{i}" for i in range(1000))
    training, held_out = hold_out([words])
    assert f"{training[0]} {held_out[0]}" == words
    assert len(held_out[0]) == pytest.approx(0.05 * len(words), rel=0.02)
    training, held_out = hold_out(["ab" * 10] * 100)
    assert len(training) == 95 and held_out == ["ab" * 10] * 5
    assert "".join(hold_out(["x" * 99, "y"])[0]) + "".join(hold_out(["x" * 99, "y"])[1]) == "x" * 99 + "y"


def test_text_files(tmp_path: Path) -> None:
    one, two, bad = tmp_path / "one.txt", tmp_path / "two.txt", tmp_path / "bad.txt"
    one.write_text("\nFirst.\n\n<|endoftext|>\n\nSecond.\n<|endoftext|>", encoding="utf-8")
    two.write_text("Third: señor.", encoding="utf-8")
    assert read_text_files([one, two]) == ["First.", "Second.", "Third: señor."]
    bad.write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match="not UTF-8.*byte 2"):
        read_text_files([bad])
    bad.write_text("  ")
    with pytest.raises(ValueError, match="no text"):
        read_text_files([bad])


def test_distinct_words() -> None:
    assert distinct_words(["Don't run, Run! 42 été_x", "run"]) == ["don't", "run", "x", "été"]


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    log = tmp_path / "log.jsonl"
    records = [{"step": i, "tokens": i * 1000, "loss": 7 / i} for i in range(1, 9)]
    records.append({"step": 8, "tokens": 8000, "eval_nats_per_token": 1.0, "source_nats_per_token": 0.5})
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert plot_losses(log, tmp_path / "loss.png", title="t")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
