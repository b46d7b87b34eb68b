"""The score matrix cut into tiles: which of them hold a visible key, which need a mask, how heads are laid out.

A tile is a block of queries against a block of keys. Under a causal mask (here with a window) most tiles are settled
by their corners alone:

               keys ->
    queries    ▓ ░ · · ·      ▓ boundary: some pairs are visible, the tile is masked
       |       ▓ █ ░ · ·      █ full: every pair is visible, no mask is needed
       v       · ▓ █ ░ ·      · nothing to see: skipped, neither loaded nor computed
               · · ▓ █ ░      ░ boundary, on the diagonal
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """The tiles of a q_len × k_len score matrix; blocks are slices, the last ones may be shorter.

    causal, window   as in `naive_attention`: aligned bottom-right, the window counts the query itself
    mask             boolean (batch, num_heads, q_len or 1, k_len or 1), True = attend, or None
    """

    q_len: int
    k_len: int
    block_q: int
    block_k: int
    causal: bool = True
    window: int | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.block_q < 1 or self.block_k < 1:
            raise ValueError(f"expected blocks of at least 1, got block_q={self.block_q}, block_k={self.block_k}")

    def query_blocks(self, keys: slice | None = None) -> Iterator[slice]:
        """The blocks of queries, or those that see one of `keys`."""
        for start in range(0, self.q_len, self.block_q):
            rows = slice(start, min(start + self.block_q, self.q_len))
            if keys is None or self.is_visible(rows, keys):
                yield rows

    def key_blocks(self, rows: slice | None = None) -> Iterator[slice]:
        """The blocks of keys, or those that one of the queries `rows` sees."""
        first, stop = (0, self.k_len) if rows is None else self.key_range(rows)
        for start in range(first - first % self.block_k, stop, self.block_k):
            yield slice(start, min(start + self.block_k, self.k_len))

    def key_range(self, rows: slice) -> tuple[int, int]:
        """(first, stop) of the keys that the queries `rows` see by causality and window; first = stop for none."""
        if not self.causal:
            return 0, self.k_len
        shift = self.k_len - self.q_len  # query i stands at the place of key i + shift
        stop = min(max(rows.stop + shift, 0), self.k_len)
        first = 0 if self.window is None else max(rows.start + shift - self.window + 1, 0)
        return min(first, stop), stop

    def is_visible(self, rows: slice, keys: slice) -> bool:
        """Whether causality and window leave any pair of these queries and keys."""
        first, stop = self.key_range(rows)
        return keys.start < stop and keys.stop > first

    def is_full(self, rows: slice, keys: slice) -> bool:
        """Whether causality and window leave every pair of these queries and keys."""
        if not self.causal:
            return True
        shift = self.k_len - self.q_len
        first_query_sees_last_key = keys.stop - 1 <= rows.start + shift
        last_query_sees_first_key = self.window is None or keys.start > rows.stop - 1 + shift - self.window
        return first_query_sees_last_key and last_query_sees_first_key

    def hide(self, scores: Tensor, rows: slice, keys: slice) -> None:
        """Set the scores of hidden pairs to −inf, in place. scores (batch · num_kv_heads, group · rows, keys)."""
        num_rows = rows.stop - rows.start
        if not self.is_full(rows, keys):
            by_query = scores.unflatten(1, (scores.shape[1] // num_rows, num_rows))
            by_query.masked_fill_(self.hidden(rows, keys, scores.device), float("-inf"))
        if self.mask is not None:
            batch, num_heads, mask_rows, mask_keys = self.mask.shape
            part = self.mask[:, :, rows if mask_rows > 1 else slice(None), keys if mask_keys > 1 else slice(None)]
            by_head = scores.view(batch, num_heads, num_rows, scores.shape[-1])
            by_head.masked_fill_(~part, float("-inf"))

    def hidden(self, rows: slice, keys: slice, device: torch.device | None = None) -> Tensor:
        """Boolean (rows, keys), True where causality or window hide a key of the block from a query of the block."""
        place = torch.arange(rows.start, rows.stop, device=device)[:, None] + (self.k_len - self.q_len)
        key = torch.arange(keys.start, keys.stop, device=device)[None, :]
        hidden = key > place if self.causal else torch.zeros_like(key > place)
        return hidden if self.window is None else hidden | (key <= place - self.window)


def group_heads(x: Tensor, num_kv_heads: int) -> Tensor:
    """(batch, seq_len, num_heads, dim) -> (batch · num_kv_heads, group, seq_len, dim).

    The query heads of a group stand together: their rows meet the same keys, so a tile holds all of them and K is
    never repeated.
    """
    batch, seq_len, num_heads, dim = x.shape
    grouped = x.unflatten(2, (num_kv_heads, num_heads // num_kv_heads)).permute(0, 2, 3, 1, 4)
    return grouped.reshape(batch * num_kv_heads, num_heads // num_kv_heads, seq_len, dim)


def ungroup_heads(x: Tensor, num_kv_heads: int) -> Tensor:
    """The inverse of `group_heads`."""
    return x.unflatten(0, (x.shape[0] // num_kv_heads, num_kv_heads)).flatten(1, 2).transpose(1, 2)


def load_rows(x: Tensor, rows: slice) -> Tensor:
    """The rows of one block, all heads of a group stacked: x (n, group, q_len, dim) -> (n, group · rows, dim)."""
    return x[:, :, rows].flatten(1, 2)


def store_rows(x: Tensor, rows: slice, tile: Tensor) -> None:
    """Write a tile (n, group · rows, dim) back to x (n, group, q_len, dim), in place."""
    x[:, :, rows] = tile.unflatten(1, (x.shape[1], rows.stop - rows.start))
