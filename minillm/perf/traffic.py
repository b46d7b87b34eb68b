"""Bytes that a decode step must move, read from the live modules.

A step feeds one token to each of `batch_size` sequences that then hold `seq_len` tokens. With an ideal
cache of activations, memory sees

    weights     every parameter and buffer once, whatever the batch: linears, norms, biases, scales;
                the embedding table only if it is tied to `lm_head`, which reads all of it
    embedding   one row of the table for each sequence
    KV          Σ over layers  batch_size · (min(seq_len, window) read + 1 written)
                · num_kv_heads · (k_head_dim + v_head_dim) · bytes per number
                with v_head_dim = 0 where V is a slice of K

Bytes per step over the read bandwidth is the least time that a step can take: the bound decoding is held
against.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Protocol

from torch import Tensor, nn


class DecoderModel(Protocol):
    """The part of a `Transformer` that is asked here."""

    @property
    def embed_tokens(self) -> nn.Embedding: ...
    @property
    def lm_head(self) -> nn.Module: ...
    @property
    def layer_specs(self) -> Sequence[LayerShape]: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def buffers(self) -> Iterator[Tensor]: ...


class LayerShape(Protocol):
    """The part of a `LayerSpec` that decides what attention reads."""

    @property
    def num_kv_heads(self) -> int: ...
    @property
    def k_head_dim(self) -> int: ...
    @property
    def v_head_dim(self) -> int: ...
    @property
    def v_from_k(self) -> bool: ...
    @property
    def window(self) -> int | None: ...


def weight_bytes_per_step(model: DecoderModel, *, batch_size: int = 1) -> int:
    """Bytes of weights that one decode step reads; `model` is a Transformer, transformed or not."""
    embedding = model.embed_tokens.weight
    read_by_lm_head = {id(tensor) for tensor in _tensors(model.lm_head)}
    unique = {id(tensor): tensor for tensor in _tensors(model)}  # a tied tensor is stored, and read, once
    if id(embedding) not in read_by_lm_head:
        del unique[id(embedding)]
    row_bytes = embedding.shape[1] * embedding.element_size()
    return sum(tensor.nbytes for tensor in unique.values()) + batch_size * row_bytes


def kv_bytes_per_step(layer_specs: Sequence[LayerShape], seq_len: int, *, bytes_per_number: int) -> int:
    """Bytes of keys and values that one decode step reads and writes for one sequence, the new token
    included.
    """
    total = 0
    for spec in layer_specs:
        numbers = spec.num_kv_heads * (spec.k_head_dim + (0 if spec.v_from_k else spec.v_head_dim))
        read = seq_len if spec.window is None else min(seq_len, spec.window)
        total += (read + 1) * numbers * bytes_per_number
    return total


def decode_bytes_per_step(model: DecoderModel, seq_len: int, *, batch_size: int = 1) -> int:
    """Bytes of weights, keys and values that one decode step moves. KV is taken to be stored in the
    embedding's dtype.

    seq_len counts the tokens of each sequence with the new one. Raises ValueError for numbers below 1.
    """
    if seq_len < 1 or batch_size < 1:
        raise ValueError(f"seq_len and batch_size must be at least 1, got {seq_len} and {batch_size}")
    kv = kv_bytes_per_step(model.layer_specs, seq_len, bytes_per_number=model.embed_tokens.weight.element_size())
    return weight_bytes_per_step(model, batch_size=batch_size) + batch_size * kv


def decode_bytes_per_token(model: DecoderModel, seq_len: int, *, batch_size: int = 1) -> int:
    """`decode_bytes_per_step` shared out over the batch, in bytes, rounded down. The rows of a batch
    share the weights.
    """
    return decode_bytes_per_step(model, seq_len, batch_size=batch_size) // batch_size


def _tensors(module: nn.Module | DecoderModel) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())
