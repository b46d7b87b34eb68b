"""How many bits a number takes: weights, perhaps quantized, activations, the KV cache."""

from __future__ import annotations

import math
from dataclasses import dataclass

from minillm.perf.hardware import Hardware
from minillm.perf.model_shape import Matrix, ModelShape

WEIGHT_BITS = (32, 16, 8, 4, 3, 2)


@dataclass(frozen=True)
class Precision:
    """Bits of each kind of number.

    bits             of a weight of the blocks' linears. Below 16, embedding, lm_head, router, biases and norms stay 16
    group_size       weights of a row that share a scale. None = 128 for 4 bits and fewer, a whole row for 8
    scale_bits       of a scale; a zero point of `bits` bits comes with it at 4 bits and fewer (GPTQ, AWQ), not at 8
    activation_bits  32, 16, or 8: also the format computed in. None = 16, or 32 with weights of 32 bits
    kv_bits          of a number in the cache, its scales not counted. None = activation_bits, at least 16
    """

    bits: int = 16
    group_size: int | None = None
    scale_bits: int = 16
    activation_bits: int | None = None
    kv_bits: int | None = None

    def __post_init__(self) -> None:
        if self.bits not in WEIGHT_BITS:
            raise ValueError(f"bits must be one of {', '.join(map(str, WEIGHT_BITS))}, got {self.bits}")
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {self.group_size}")
        if self.activation_bits not in (None, 32, 16, 8):
            raise ValueError(f"activation_bits must be 32, 16 or 8, got {self.activation_bits}")
        if self.kv_bits not in (None, 32, 16, 8, 4, 2):
            raise ValueError(f"kv_bits must be 32, 16, 8, 4 or 2, got {self.kv_bits}")

    @property
    def activation_bytes(self) -> int:
        """Bytes of an activation in memory. Results of 8-bit products are written in 16 bits."""
        return 4 if self._computed_bits == 32 else 2

    @property
    def kv_bytes(self) -> float:
        """Bytes of a number in the cache."""
        return (self.activation_bytes * 8 if self.kv_bits is None else self.kv_bits) / 8

    @property
    def plain_bytes(self) -> int:
        """Bytes of a number that is never quantized: embedding, lm_head, router, biases, norms."""
        return 4 if self.bits == 32 else 2

    def number_format(self, hardware: Hardware) -> str:
        """The format of the matrix units that products use: "fp32", "bf16", or "fp8", "int8" where there is no fp8."""
        if self._computed_bits == 8:
            return "fp8" if hardware.peaks.fp8 is not None else "int8"
        return {32: "fp32", 16: "bf16"}[self._computed_bits]

    def matrix_bytes(self, matrix: Matrix) -> float:
        """Bytes of one copy of a linear's W, scales, zero points and bias."""
        rows, bias_bytes = matrix.out_features, matrix.out_features * self.plain_bytes if matrix.bias else 0
        if self.bits >= 16 or matrix.name in ("router", "lm_head", "shared.gate"):
            return matrix.num_weights * self.plain_bytes + bias_bytes
        zero_bits = self.bits if self.bits <= 4 else 0
        group_size = self.group_size or (128 if self.bits <= 4 else matrix.in_features)
        groups = rows * math.ceil(matrix.in_features / group_size)
        return (matrix.num_weights * self.bits + groups * (self.scale_bits + zero_bits)) / 8 + bias_bytes

    @property
    def _computed_bits(self) -> int:
        return self.activation_bits or (32 if self.bits == 32 else 16)


FP16 = Precision()
"""Sixteen bits for everything."""


def stored_weight_bytes(shape: ModelShape, precision: Precision) -> int:
    """Bytes that the whole model occupies: every expert, the embedding table and lm_head (once if tied)."""
    tables = (1 if shape.tie_embeddings else 2) * shape.vocab_size + shape.num_positions
    plain = tables * shape.hidden_size + shape.final_norm_numbers
    total = float(plain * precision.plain_bytes)
    for layer in shape.layers:
        total += layer.num_norm_parameters * precision.plain_bytes
        total += sum(matrix.copies * precision.matrix_bytes(matrix) for matrix in layer.matrices)
    return math.ceil(total)


def kv_cache_bytes_per_token(shape: ModelShape, precision: Precision) -> float:
    """Bytes that one token keeps occupied, while every layer sees it."""
    return shape.kv_numbers_per_token * precision.kv_bytes


def stored_kv_bytes(shape: ModelShape, precision: Precision, seq_len: int) -> int:
    """Bytes of the cache of one sequence of `seq_len` tokens. A layer with a window keeps no more than the window."""
    kept = sum(
        layer.attention.kv_numbers_per_token * min(seq_len, layer.attention.window or seq_len) for layer in shape.layers
    )
    return math.ceil(kept * precision.kv_bytes)
