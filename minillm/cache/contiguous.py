"""The contiguous KV cache: one slab of slots a sequence, filled from the left.

    cache  = ContiguousCache(model.layer_specs, batch_size=2)
    attend = cache.begin([5, 3])                            # reserves 5 and 3 slots
    logits = model(tokens, attend.positions, attend)        # tokens (2, 5), the second row padded on the right
    cache.commit()                                          # cache.seq_lens == [5, 3]

A forward that fails, or whose tokens turn out to be unwanted, is undone by not committing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minillm.attention.dispatch import attention
from minillm.model.layer_spec import LayerSpec


class ContiguousCache:
    """Keys and values of `batch_size` sequences, (batch, capacity, num_kv_heads, head_dim) for each layer.

    `seq_lens` (list of int) counts the committed tokens of each sequence; row b of the next forward is written at slot
    `seq_lens[b]`. With `max_seq_len` the slabs are allocated once and overflow raises ValueError; without it they
    double when they are full. Not for training: an attend raises RuntimeError when a gradient would flow into it.
    """

    def __init__(
        self,
        layer_specs: Sequence[LayerSpec],
        batch_size: int,
        *,
        max_seq_len: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if max_seq_len is not None and max_seq_len < 1:
            raise ValueError(f"max_seq_len must be at least 1 or None, got {max_seq_len}")
        self.layer_specs = list(layer_specs)
        self.max_seq_len = max_seq_len
        self.dtype = dtype
        self.device = torch.device("cpu" if device is None else device)
        self.seq_lens = [0] * batch_size
        self._query_lens: list[int] | None = None
        capacity = 64 if max_seq_len is None else max_seq_len
        self.k = [self._slab(batch_size, capacity, spec.num_kv_heads, spec.k_head_dim) for spec in self.layer_specs]
        # A layer whose V is a slice of K keeps no V.
        self.v = [
            None if spec.v_from_k else self._slab(batch_size, capacity, spec.num_kv_heads, spec.v_head_dim)
            for spec in self.layer_specs
        ]

    @property
    def batch_size(self) -> int:
        return len(self.seq_lens)

    @property
    def capacity(self) -> int:
        """Slots a sequence."""
        return self.k[0].shape[1]

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token of one sequence occupies, all layers together."""
        slabs = [slab for slab in (*self.k, *self.v) if slab is not None]
        return sum(slab.shape[2] * slab.shape[3] * slab.element_size() for slab in slabs)

    def begin(self, query_lens: Sequence[int], mask: Tensor | None = None) -> ContiguousAttend:
        """Reserve `query_lens[b]` slots for the new tokens of row b, and return the attend of this forward.

        mask: boolean (q_len, q_len) or (batch, q_len, q_len) with q_len = max(query_lens), True = attend, among the new
        tokens only (every committed token stays visible); ANDed with causal. A tree of drafts is such a mask, in
        an order where parents precede children, with explicit positions. Not for layers with a window, where slots
        are not positions: ValueError. A 0 in `query_lens` lets a row sit out.
        """
        query_lens = list(query_lens)
        if len(query_lens) != self.batch_size or min(query_lens) < 0 or max(query_lens) < 1:
            raise ValueError(f"expected {self.batch_size} query lengths ≥ 0, not all 0, got {query_lens}")
        needed = max(seq_len + query_len for seq_len, query_len in zip(self.seq_lens, query_lens, strict=True))
        # Padding is never stored, so only real tokens need room.
        if needed > self.capacity:
            if self.max_seq_len is not None:
                raise ValueError(f"cache overflow: {needed} tokens in {self.max_seq_len} slots")
            self._grow(max(needed, 2 * self.capacity))
        if mask is not None and any(spec.window is not None for spec in self.layer_specs):
            raise ValueError("a mask among new tokens can't be combined with sliding windows")
        attend = ContiguousAttend(self, query_lens, mask)
        self._query_lens = query_lens
        return attend

    def commit(self, keep: Sequence[Sequence[int]] | None = None) -> None:
        """Make the tokens of the last `begin` part of their sequences.

        keep[b] lists the new tokens of row b that stay, ascending (the accepted path of a tree); the other slots are
        given back. None keeps all. Raises RuntimeError without a `begin`.
        """
        if self._query_lens is None:
            raise RuntimeError("commit without begin")
        if keep is None:
            self.seq_lens = [seq_len + new for seq_len, new in zip(self.seq_lens, self._query_lens, strict=True)]
            self._query_lens = None
            return
        fits = len(keep) == self.batch_size and all(
            list(nodes) == sorted(set(nodes) & set(range(query_len)))
            for nodes, query_len in zip(keep, self._query_lens, strict=True)
        )
        if not fits:
            raise ValueError(
                f"keep must name new tokens of each row in ascending order (lengths {self._query_lens}), got {keep}"
            )
        for row, nodes in enumerate(keep):
            start = self.seq_lens[row]
            source = torch.tensor([start + node for node in nodes], dtype=torch.long, device=self.device)
            for slab in (*self.k, *self.v):
                if slab is not None:
                    slab[row, start : start + len(nodes)] = slab[row, source]
            self.seq_lens[row] = start + len(nodes)
        self._query_lens = None

    def crop(self, seq_lens: Sequence[int]) -> None:
        """Forget all but the first `seq_lens[b]` tokens of row b. Raises ValueError for more than there are."""
        fits = len(seq_lens) == self.batch_size and all(
            0 <= kept <= held for kept, held in zip(seq_lens, self.seq_lens, strict=False)
        )
        if not fits:
            raise ValueError(f"can't crop sequences of lengths {self.seq_lens} to {list(seq_lens)}")
        self.seq_lens = list(seq_lens)
        self._query_lens = None

    def reorder(self, rows: Sequence[int]) -> None:
        """Row b becomes what row `rows[b]` was. Rows may repeat or be left out; the batch size follows."""
        if not rows or not all(0 <= row < self.batch_size for row in rows):
            raise ValueError(f"rows must name rows 0…{self.batch_size - 1}, got {list(rows)}")
        index = torch.tensor(list(rows), dtype=torch.long, device=self.device)
        with torch.inference_mode(False):
            self.k = [slab.index_select(0, index) for slab in self.k]
            self.v = [None if slab is None else slab.index_select(0, index) for slab in self.v]
        self.seq_lens = [self.seq_lens[row] for row in rows]
        self._query_lens = None

    def _slab(self, *shape: int) -> Tensor:
        # A tensor made under inference_mode could not be written outside of it.
        with torch.inference_mode(False):
            return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def _grow(self, capacity: int) -> None:
        def grown(slab: Tensor) -> Tensor:
            larger = self._slab(slab.shape[0], capacity, *slab.shape[2:])
            larger[:, : slab.shape[1]] = slab
            return larger

        self.k = [grown(slab) for slab in self.k]
        self.v = [None if slab is None else grown(slab) for slab in self.v]


class ContiguousAttend:
    """The attend of one forward over a `ContiguousCache`: stores the new k and v, attends to all so far.

    q, k, v are (batch, q_len, heads, head_dim), padded on the right; outputs at padding are undefined. `positions`
    (batch, q_len) int64 are those that follow each row's committed tokens.
    """

    def __init__(self, cache: ContiguousCache, query_lens: list[int], mask: Tensor | None) -> None:
        self.cache = cache
        self.query_lens = query_lens
        self.q_len = max(query_lens)
        self.k_len = max(seq_len + new for seq_len, new in zip(cache.seq_lens, query_lens, strict=True))
        # Rows in step are read and written as one slice; ragged ones by index, with a mask of their own.
        self.in_step = len(set(cache.seq_lens)) == 1 and len(set(query_lens)) == 1
        starts = torch.tensor(cache.seq_lens, device=cache.device)
        self.positions = starts[:, None] + torch.arange(self.q_len, device=cache.device)  # (batch, q_len)
        if not self.in_step:
            is_token = torch.arange(self.q_len, device=cache.device) < torch.tensor(
                query_lens, device=cache.device
            ).unsqueeze(1)
            self.rows, self.columns = is_token.nonzero(as_tuple=True)
            self.slots = self.positions[self.rows, self.columns]
        self._new_token_mask = None if mask is None else self._over_all_keys(mask)
        self._visible: dict[int | None, Tensor] = {}

    def __call__(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
        self._check(q, k, v)
        spec = self.cache.layer_specs[layer_idx]
        keys = self._store(self.cache.k[layer_idx], k)
        slab_v = self.cache.v[layer_idx]
        values = keys[..., : spec.v_head_dim] if slab_v is None else self._store(slab_v, v)
        if self.in_step:
            mask = self._new_token_mask
            return attention(q, keys, values, window=spec.window, softmax_scale=softmax_scale, mask=mask)
        mask = self._ragged_mask(spec.window)
        return attention(q, keys, values, causal=False, softmax_scale=softmax_scale, mask=mask)

    def _store(self, slab: Tensor, new: Tensor) -> Tensor:
        """Write the new tokens' rows into their slots; return the slots filled so far, (batch, k_len, heads, dim)."""
        if self.in_step:
            slab[:, self.k_len - self.q_len : self.k_len] = new
        else:
            slab[self.rows, self.slots] = new[self.rows, self.columns]
        return slab[:, : self.k_len]

    def _ragged_mask(self, window: int | None) -> Tensor:
        """(batch, 1, q_len, k_len): each row's own causal triangle, cut to the window; made once for each window."""
        if window not in self._visible:
            key_slot = torch.arange(self.k_len, device=self.cache.device)
            query_slot = self.positions.unsqueeze(-1)  # (batch, q_len, 1)
            visible = key_slot <= query_slot
            if window is not None:
                visible &= key_slot > query_slot - window
            visible = visible.unsqueeze(1)
            self._visible[window] = visible if self._new_token_mask is None else visible & self._new_token_mask
        return self._visible[window]

    def _over_all_keys(self, mask: Tensor) -> Tensor:
        """A mask among new tokens as (batch, 1, q_len, k_len): shifted to each row's slots, old keys visible."""
        batch_size, square = len(self.query_lens), (self.q_len, self.q_len)
        if mask.dtype != torch.bool or mask.shape not in (square, (1, *square), (batch_size, *square)):
            raise ValueError(
                f"expected a boolean mask {square} or {(batch_size, *square)} among the new tokens, got {mask.dtype} "
                f"{tuple(mask.shape)}"
            )
        mask = mask.expand(batch_size, *square)
        over_all = torch.ones(batch_size, self.q_len, self.k_len, dtype=torch.bool, device=self.cache.device)
        for row, start in enumerate(self.cache.seq_lens):
            width = min(self.q_len, self.k_len - start)
            over_all[row, :, start : start + width] = mask[row, :, :width]
        return over_all.unsqueeze(1)

    def _check(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
            raise RuntimeError("a KV cache does not carry gradients; call the model under torch.inference_mode()")
        expected = (len(self.query_lens), self.q_len)
        if q.dim() != 4 or q.shape[:2] != expected:
            raise ValueError(f"expected q (batch, q_len, …) = {expected} as in begin, got {tuple(q.shape)}")
        if k.dtype != self.cache.dtype:
            raise ValueError(f"the cache holds {self.cache.dtype}, the model gave {k.dtype}")
