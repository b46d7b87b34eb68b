"""The shape of an attention problem, and what it must compute and move at the least, counted exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

CHECKED_LEN, CHECKED_WINDOW = 200, 67  # of the small problem: several blocks, the last of them not full


@dataclass(frozen=True)
class AttentionShape:
    """Queries against keys and values, heads as in `naive_attention`.

    causal    query i of q_len stands at the place of key i + k_len − q_len and sees the keys up to there
    window    the last keys that a query sees, its own included; None = all; needs `causal`
    v_from_k  v is the first v_head_dim numbers of k, and not stored (absorbed MLA)
    """

    batch: int
    q_len: int
    k_len: int
    num_heads: int
    num_kv_heads: int
    k_head_dim: int
    v_head_dim: int
    causal: bool = True
    window: int | None = None
    v_from_k: bool = False

    def __post_init__(self) -> None:
        lengths, heads = (self.batch, self.q_len, self.k_len), (self.num_heads, self.num_kv_heads)
        is_empty = min(*lengths, *heads, self.k_head_dim, self.v_head_dim) < 1
        if is_empty or (self.causal and self.q_len > self.k_len):
            raise ValueError(f"expected sizes from 1 on, and with causal no more queries than keys, got {self}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"heads must be a multiple of KV heads, got {self.num_heads} and {self.num_kv_heads}")
        if self.window is not None and (not self.causal or self.window < 1):
            raise ValueError(f"a window must be at least 1 key and needs causal attention, got window={self.window}")
        if self.v_from_k and self.v_head_dim > self.k_head_dim:
            raise ValueError(f"v is no part of k: {self.v_head_dim} numbers of {self.k_head_dim}")

    @property
    def scores(self) -> int:
        """Numbers of the whole score matrix, hidden ones included."""
        return self.batch * self.num_heads * self.q_len * self.k_len

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key that it sees, of one head of one sequence."""
        if not self.causal:
            return self.q_len * self.k_len
        # Query i sees first + i keys, but no more than the window.
        first, last = self.k_len - self.q_len + 1, self.k_len
        most = last if self.window is None else min(self.window, last)
        if first >= most:
            return self.q_len * most
        growing = most - first  # queries that see fewer than `most`
        return growing * (first + most - 1) // 2 + (self.q_len - growing) * most

    def flops(self, *, backward: bool = False) -> int:
        """FLOPs of the matrix products of visible pairs: q kᵀ and its product with v; four more with `backward`.

        Those four are dP = dO vᵀ, dv = Pᵀ dO, dq = dS k, dk = dSᵀ q. Scores that a fast backward computes again are
        work that a larger memory would spare, and don't count.
        """
        products = 3 if backward else 1
        return products * 2 * self.batch * self.num_heads * self.pairs * (self.k_head_dim + self.v_head_dim)

    def kv_bytes(self, bytes_per_number: int) -> int:
        """Bytes of the keys and values that are seen by any query, each once."""
        seen = self.k_len if self.window is None else min(self.k_len, self.window + self.q_len - 1)
        numbers = self.k_head_dim + (0 if self.v_from_k else self.v_head_dim)
        return self.batch * seen * self.num_kv_heads * numbers * bytes_per_number

    def least_bytes(self, bytes_per_number: int, *, backward: bool = False) -> int:
        """Bytes that memory sees at the least: q, k, v read and out written.

        `backward` adds a second pass: q, k, v, out and its gradient read, three gradients written.
        """
        queries = self.batch * self.q_len * self.num_heads * bytes_per_number
        q, out, kv = queries * self.k_head_dim, queries * self.v_head_dim, self.kv_bytes(bytes_per_number)
        forward = q + kv + out
        return forward + (2 * q + 2 * kv + 2 * out if backward else 0)

    def small(self) -> AttentionShape:
        """The same heads and rules with few tokens, for a comparison with the oracle."""
        k_len = min(self.k_len, CHECKED_LEN)
        window = None if self.window is None else min(self.window, CHECKED_WINDOW)
        return replace(self, batch=min(self.batch, 2), q_len=min(self.q_len, k_len), k_len=k_len, window=window)

    def tensors(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        """Normal q (batch, q_len, num_heads, k_head_dim), k and v (batch, k_len, num_kv_heads, …), always the same."""
        generator = torch.Generator(device).manual_seed(0)

        def normal(length: int, heads: int, dim: int) -> Tensor:
            size = (self.batch, length, heads, dim)
            return torch.randn(size, generator=generator, device=device, dtype=dtype)

        q = normal(self.q_len, self.num_heads, self.k_head_dim)
        k = normal(self.k_len, self.num_kv_heads, self.k_head_dim)
        v = k[..., : self.v_head_dim] if self.v_from_k else normal(self.k_len, self.num_kv_heads, self.v_head_dim)
        return q, k, v
