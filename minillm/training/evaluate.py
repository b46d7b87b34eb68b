"""Held-out loss, and for stories how far it is above the entropy of their source.

Cross entropy of a model = entropy of the source + KL(source ‖ model). For the stories the first term is known exactly,
so the distance to a perfect model can be read off; for other text only the sum can be measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from minillm.training.data import IGNORED_TARGET
from minillm.training.loop import summed_cross_entropy

TOKENS_PER_BATCH = 8192


@dataclass(frozen=True)
class StoryEvaluation:
    """Mean nats over the same whole held-out stories, by the model and by the generator that wrote them."""

    num_stories: int
    num_tokens: int
    model_nats_per_story: float
    source_nats_per_story: float

    @property
    def ratio(self) -> float:
        """Model nats over source nats: 1 is a perfect model."""
        return self.model_nats_per_story / self.source_nats_per_story

    @property
    def model_nats_per_token(self) -> float:
        return self.model_nats_per_story * self.num_stories / self.num_tokens

    @property
    def source_nats_per_token(self) -> float:
        return self.source_nats_per_story * self.num_stories / self.num_tokens

    def __str__(self) -> str:
        return (
            f"{self.num_stories} held-out stories: model {self.model_nats_per_story:.2f} nats a story, "
            f"source {self.source_nats_per_story:.2f}, ratio {self.ratio:.4f} "
            f"({self.model_nats_per_token:.4f} nats a token)"
        )


@dataclass(frozen=True)
class TextEvaluation:
    """Loss on held-out text. Nats per byte can be compared between tokenizers; nats per token cannot."""

    num_tokens: int
    num_bytes: int
    nats: float

    @property
    def model_nats_per_token(self) -> float:
        return self.nats / self.num_tokens

    @property
    def nats_per_byte(self) -> float:
        return self.nats / self.num_bytes

    @property
    def perplexity(self) -> float:
        return math.exp(self.model_nats_per_token)

    def __str__(self) -> str:
        return (
            f"{self.num_tokens} held-out tokens: {self.model_nats_per_token:.4f} nats a token, "
            f"{self.nats_per_byte:.4f} nats a byte, perplexity {self.perplexity:.2f}"
        )


@torch.no_grad()
def document_nats(model: nn.Module, documents: Sequence[Sequence[int]], *, dtype: str = "fp32") -> list[float]:
    """−log p of every document in nats, given its first token (bos): `documents` are token ids, bos first, eos last.

    Each document is a row of its own at position 0. Documents of similar length share a batch, padded on the right,
    where a causal model cannot see the padding. Leaves the model in the mode it came in.
    """
    device = next(model.parameters()).device
    by_length = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    nats = [0.0] * len(documents)
    was_training = model.training
    model.eval()
    start = 0
    while start < len(by_length):
        stop = start + 1
        while stop < len(by_length) and (stop + 1 - start) * len(documents[by_length[stop]]) <= TOKENS_PER_BATCH:
            stop += 1
        chosen = by_length[start:stop]
        width = len(documents[chosen[-1]])
        padded = torch.tensor([[*documents[i], *[IGNORED_TARGET] * (width - len(documents[i]))] for i in chosen])
        inputs, targets = padded[:, :-1].clamp(min=0).to(device), padded[:, 1:].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16"):
            logits = model(inputs)
        for row, i in enumerate(chosen):
            nats[i] = float(summed_cross_entropy(logits[row], targets[row]))
        start = stop
    model.train(was_training)
    return nats


def evaluate_documents(
    model: nn.Module, documents: Sequence[Sequence[int]], source_nats: Sequence[float], *, dtype: str = "fp32"
) -> StoryEvaluation:
    """Compares the model with the known −log p of the same documents (`source_nats`, one a document)."""
    if len(documents) != len(source_nats) or not documents:
        raise ValueError(f"expected one source −log p for each document, got {len(source_nats)} for {len(documents)}")
    nats = document_nats(model, documents, dtype=dtype)
    num_tokens = sum(len(token_ids) - 1 for token_ids in documents)  # bos is given, not predicted
    return StoryEvaluation(
        len(documents), num_tokens, math.fsum(nats) / len(nats), math.fsum(source_nats) / len(source_nats)
    )


def evaluate_text(
    model: nn.Module, documents: Sequence[Sequence[int]], *, num_bytes: int, dtype: str = "fp32"
) -> TextEvaluation:
    """Loss over `documents` (token ids, each at most the model's context long) that encode `num_bytes` bytes of
    UTF-8.
    """
    if not documents or num_bytes < 1:
        raise ValueError(f"expected some held-out text, got {len(documents)} documents and {num_bytes} bytes")
    nats = math.fsum(document_nats(model, documents, dtype=dtype))
    return TextEvaluation(sum(len(token_ids) - 1 for token_ids in documents), num_bytes, nats)
