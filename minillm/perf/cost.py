"""FLOPs and bytes of every operation of a forward, for any shape, phase and precision.

    shape = read_shape("config.json")
    for operation in operations(shape, Phase.decode(batch_size=8, seq_len=4096), Precision(bits=4)):
        print(operation.name, operation.flops, operation.num_bytes, operation.intensity)

A forward is described by how many new tokens each sequence brings and how many it then holds: prefill brings all of
them, decoding one, a chunk of a prompt something between. What is counted:

    FLOPs        of matrix products, 2 for a multiply-add; a causal query meets the keys up to itself and no others
    weights      each matrix read once, whatever the number of tokens; of experts those that are expected to be visited
    activations  each operation reads its inputs from memory and writes its results there, once
    KV           the new tokens' keys and values written, those of all visible tokens read once

That is the least an unfused implementation moves. What fusing saves, and what tiles that don't fit read twice, is
counted by `minillm.perf.meter`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from minillm.perf.formulas import experts_touched
from minillm.perf.model_shape import AttentionShape, LayerShape, Matrix, ModelShape
from minillm.perf.precision import FP16, Precision


@dataclass(frozen=True)
class Phase:
    """`batch_size` sequences that each bring `query_len` new tokens and then hold `seq_len`.

    num_logits  tokens of each sequence that meet the vocabulary: generation needs 1, the last
    """

    batch_size: int
    query_len: int
    seq_len: int
    num_logits: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 1 <= self.query_len <= self.seq_len:
            raise ValueError(
                "expected batch_size of at least 1 and 1 ≤ query_len ≤ seq_len, got "
                f"{self.batch_size}, {self.query_len} and {self.seq_len}"
            )
        if not 0 <= self.num_logits <= self.query_len:
            raise ValueError(f"expected num_logits from 0 to query_len {self.query_len}, got {self.num_logits}")

    @classmethod
    def prefill(cls, batch_size: int, prompt_len: int) -> Phase:
        """Whole prompts at once, up to the logits of their last tokens."""
        return cls(batch_size, prompt_len, prompt_len)

    @classmethod
    def decode(cls, batch_size: int, seq_len: int) -> Phase:
        """One token each, the `seq_len`-th of its sequence."""
        return cls(batch_size, 1, seq_len)

    @property
    def num_tokens(self) -> int:
        """New tokens, all sequences together: the rows of every product."""
        return self.batch_size * self.query_len

    def num_pairs(self, window: int | None) -> int:
        """Pairs of a query and a key it sees, in all sequences: Σ min(i, window) over positions i of the new tokens."""
        first, last = self.seq_len - self.query_len + 1, self.seq_len
        limit = last if window is None else min(window, last)
        growing_to = max(first - 1, limit)  # up to here query i sees i keys, beyond it `limit`
        growing = (first + growing_to) * (growing_to - first + 1) // 2
        return self.batch_size * (growing + limit * (last - growing_to))

    def num_keys_read(self, window: int | None) -> int:
        """Keys that some new token sees, in all sequences."""
        visible = self.seq_len if window is None else min(self.seq_len, window + self.query_len - 1)
        return self.batch_size * visible


@dataclass(frozen=True)
class Operation:
    """What one operation computes and moves, summed over the layers that have it. `kind`: "linear", "attention",
    "other".
    """

    name: str
    kind: str
    flops: float
    weight_bytes: float
    activation_bytes: float
    kv_bytes: float = 0.0

    @property
    def num_bytes(self) -> float:
        """Weights, activations and KV."""
        return self.weight_bytes + self.activation_bytes + self.kv_bytes

    @property
    def intensity(self) -> float:
        """FLOPs for each byte moved."""
        return self.flops / self.num_bytes

    def __add__(self, other: Operation) -> Operation:
        """Both together, under the name and kind of the first."""
        return Operation(
            self.name,
            self.kind,
            self.flops + other.flops,
            self.weight_bytes + other.weight_bytes,
            self.activation_bytes + other.activation_bytes,
            self.kv_bytes + other.kv_bytes,
        )

    def __mul__(self, count: float) -> Operation:
        """`count` times the same."""
        numbers = (self.flops, self.weight_bytes, self.activation_bytes, self.kv_bytes)
        return Operation(self.name, self.kind, *(count * number for number in numbers))


def operations(shape: ModelShape, phase: Phase, precision: Precision = FP16) -> list[Operation]:
    """Every operation of one forward, in the order in which a token meets them, equal ones of all layers as one."""
    found = [_embedding(shape, phase, precision)]
    for layer, count in Counter(shape.layers).items():
        rotated = 0 if shape.num_positions else _rotated_numbers(layer.attention)
        found.append(_elementwise(layer, rotated, phase, precision) * count)
        found += [operation * count for operation in _block(layer, phase, precision)]
    norm = shape.final_norm_numbers
    rows = phase.batch_size * phase.num_logits
    activations = 2 * phase.num_tokens * shape.hidden_size * precision.activation_bytes if norm else 0
    found.append(Operation(_ELEMENTWISE, "other", 0, norm * precision.plain_bytes, activations))
    if rows:
        found.append(_linear(shape.lm_head, rows, precision))
    return _merged(found)


def total(parts: Iterable[Operation], name: str = "total", kind: str = "other") -> Operation:
    """The sum of several operations."""
    return sum(parts, start=Operation(name, kind, 0, 0, 0))


_ELEMENTWISE = "norms, elementwise"


def _block(layer: LayerShape, phase: Phase, precision: Precision) -> Iterator[Operation]:
    attention = layer.attention
    for matrix in attention.matrices(layer.hidden_size):
        if matrix.name == "wo":
            yield _attention(attention, phase, precision)
        yield _linear(matrix, phase.num_tokens, precision)
    for matrix in layer.ffn.matrices(layer.hidden_size):
        yield _linear(matrix, phase.num_tokens, precision)


def _linear(matrix: Matrix, num_tokens: int, precision: Precision) -> Operation:
    rows = num_tokens * matrix.copies_per_token
    copies_read = 1.0
    if matrix.copies > 1:
        copies_read = experts_touched(matrix.copies, matrix.copies_per_token, num_tokens)
    return Operation(
        matrix.name,
        "linear",
        flops=2 * rows * matrix.num_weights,
        weight_bytes=copies_read * precision.matrix_bytes(matrix),
        activation_bytes=rows * (matrix.in_features + matrix.out_features) * precision.activation_bytes,
    )


def _attention(attention: AttentionShape, phase: Phase, precision: Precision) -> Operation:
    """Scores and weighted sum: 2 FLOPs for every pair, head, and number of K and of V.

    MLA works on expanded heads while nothing is cached. Later each head multiplies the latents themselves (absorption):
    more FLOPs for a pair, and nothing to expand.
    """
    k_dim, v_dim = attention.k_head_dim, attention.v_head_dim
    if attention.latent is not None and phase.query_len < phase.seq_len:
        k_dim = attention.latent.kv_lora_rank + attention.latent.qk_rope_head_dim
        v_dim = attention.latent.kv_lora_rank
    pairs, keys = phase.num_pairs(attention.window), phase.num_keys_read(attention.window)
    q_and_out = phase.num_tokens * attention.num_heads * (k_dim + v_dim)
    return Operation(
        "attention",
        "attention",
        flops=2 * pairs * attention.num_heads * (k_dim + v_dim),
        weight_bytes=0,
        activation_bytes=q_and_out * precision.activation_bytes,
        kv_bytes=(keys + phase.num_tokens) * attention.kv_numbers_per_token * precision.kv_bytes,
    )


def _rotated_numbers(attention: AttentionShape) -> int:
    """Of q and k of one token; MLA rotates a part of each q and one key that all heads share."""
    if attention.latent is not None:
        return (attention.num_heads + 1) * attention.latent.qk_rope_head_dim
    return (attention.num_heads + attention.num_kv_heads) * attention.k_head_dim


def _elementwise(layer: LayerShape, rotated: int, phase: Phase, precision: Precision) -> Operation:
    """Two norms (read, write), two residual sums (read twice, write), the rotation of q and k, the activation."""
    ffn = layer.ffn
    width = ffn.intermediate_size * (ffn.num_experts_per_token or 1) + ffn.shared_intermediate_size
    numbers = 10 * layer.hidden_size + 2 * rotated + (3 if ffn.is_gated else 2) * width
    return Operation(
        _ELEMENTWISE,
        "other",
        0,
        layer.num_norm_parameters * precision.plain_bytes,
        phase.num_tokens * numbers * precision.activation_bytes,
    )


def _embedding(shape: ModelShape, phase: Phase, precision: Precision) -> Operation:
    """A row of the table for every token, and of the table of positions if there is one."""
    rows = phase.num_tokens * (2 if shape.num_positions else 1)
    return Operation(
        "embedding",
        "other",
        0,
        rows * shape.hidden_size * precision.plain_bytes,
        phase.num_tokens * shape.hidden_size * precision.activation_bytes,
    )


def _merged(found: list[Operation]) -> list[Operation]:
    by_name: dict[str, list[Operation]] = {}
    for operation in found:
        by_name.setdefault(operation.name, []).append(operation)
    return [total(parts, name, parts[0].kind) for name, parts in by_name.items()]
