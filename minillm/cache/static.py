"""The static KV cache: every forward of one shape reads and writes the same memory.

    cache  = StaticCache(model.layer_specs, batch_size=4, max_seq_len=512)
    attend = cache.begin([1, 1])                            # the first two rows; the others aren't computed
    logits = model(tokens, attend.positions, attend)        # tokens (2, 1)
    cache.commit()

A CUDA graph replays launches with the addresses and shapes of its capture. So nothing here may move, and no shape may
depend on a length:

                        ContiguousCache                       StaticCache
    new K and V         to a slice, or to real tokens only    all to slots by index; padding to a spare slot
    attention           over the longest row's keys           over the whole capacity, cut by lengths on the device
    lengths, positions  new tensors in each `begin`           two buffers that `begin` fills
    reorder, overflow   new slabs                             within the slabs

The price is attention over `max_seq_len` slots where a kernel can't stop at the length (see `StaticAttend`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from minillm.attention.dispatch import attention, gpu_kernel
from minillm.model.layer_spec import LayerSpec


class StaticCache:
    """Keys and values of `batch_size` sequences in slabs (batch, max_seq_len + 1, num_kv_heads, head_dim) a layer.

    `seq_lens` (list of int) counts the committed tokens of each row, as in `ContiguousCache`, whose interface this is;
    rows and capacity stay as they were made. The last slot of a row takes padding and is never read. Free slots may be
    read, with weight 0: they hold zeros or what an unfinished forward left, and what is given back is zeroed, so that a
    NaN or infinity can't outlive its sequence. Not for training.
    """

    def __init__(
        self,
        layer_specs: Sequence[LayerSpec],
        batch_size: int,
        *,
        max_seq_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        if batch_size < 1 or max_seq_len < 1:
            raise ValueError(f"expected batch_size and max_seq_len of at least 1, got {batch_size} and {max_seq_len}")
        self.layer_specs = list(layer_specs)
        self.max_seq_len = max_seq_len
        self.dtype = dtype
        self.device = torch.device("cpu" if device is None else device)
        self.seq_lens = [0] * batch_size
        self._query_lens: list[int] | None = None
        # A tensor made under inference_mode could not be written outside of it.
        with torch.inference_mode(False):
            self.k = [self._slab(spec.num_kv_heads, spec.k_head_dim) for spec in self.layer_specs]
            # A layer whose V is a slice of K keeps no V.
            self.v = [
                None if spec.v_from_k else self._slab(spec.num_kv_heads, spec.v_head_dim) for spec in self.layer_specs
            ]
            # What `begin` fills: for each row the first new slot and the end of its keys, the new ones included.
            self._bounds = torch.zeros(2, batch_size, dtype=torch.long, device=self.device)
            self.positions = torch.zeros(batch_size, max_seq_len, dtype=torch.long, device=self.device)
            self._masks: dict[int, Tensor] = {}  # q_len -> (batch, q_len, q_len), allocated at the first of its kind
            # What never changes.
            self.key_slots = torch.arange(max_seq_len, device=self.device)
            self.row_starts = torch.arange(batch_size, device=self.device) * (max_seq_len + 1)

    @property
    def batch_size(self) -> int:
        return len(self.seq_lens)

    @property
    def capacity(self) -> int:
        """Slots a sequence."""
        return self.max_seq_len

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token of one sequence occupies, all layers together."""
        return sum(slab.shape[2] * slab.shape[3] * slab.element_size() for slab in self._slabs())

    def begin(self, query_lens: Sequence[int], mask: Tensor | None = None) -> StaticAttend:
        """Fill the buffers for a forward of `query_lens[b]` new tokens in row b; return its attend.

        Fewer lengths than rows leave the last rows out: q, k, v then have len(query_lens) rows. A 0 lets a row sit out.
        Two forwards of one shape (rows, max(query_lens), with or without a mask) use the same memory, whatever their
        lengths. mask: as of `ContiguousCache.begin`, boolean (q_len, q_len) or (rows, q_len, q_len) among the new
        tokens, and not for layers with a window. Raises ValueError, and writes nothing, for lengths and masks that
        don't fit and for more tokens than there are slots.
        """
        query_lens = list(query_lens)
        num_rows = len(query_lens)
        if not 1 <= num_rows <= self.batch_size or min(query_lens) < 0 or max(query_lens) < 1:
            raise ValueError(f"expected 1 … {self.batch_size} query lengths ≥ 0, not all 0, got {query_lens}")
        ends = [seq_len + new for seq_len, new in zip(self.seq_lens, query_lens, strict=False)]
        if max(ends) > self.max_seq_len:
            raise ValueError(f"cache overflow: {max(ends)} tokens in {self.max_seq_len} slots")
        q_len = max(query_lens)
        filled_mask = None if mask is None else self._fill_mask(mask, num_rows, q_len)
        self._abandon()
        bounds = torch.tensor([self.seq_lens[:num_rows], ends])  # one small copy to the device
        self._bounds[:, :num_rows].copy_(bounds, non_blocking=True)
        positions = self.positions[:num_rows, :q_len]
        torch.add(self._bounds[0, :num_rows, None], self.key_slots[:q_len], out=positions)
        self._query_lens = query_lens + [0] * (self.batch_size - num_rows)
        return StaticAttend(self, positions, self._bounds[1, :num_rows], filled_mask)

    def commit(self, keep: Sequence[Sequence[int]] | None = None) -> None:
        """Make the tokens of the last `begin` part of their sequences.

        keep[b] lists the new tokens of row b that stay, ascending, for each row of `begin`; the other slots are given
        back. None keeps all. Raises RuntimeError without a `begin`.
        """
        if self._query_lens is None:
            raise RuntimeError("commit without begin")
        if keep is not None:
            self._keep_only(keep, self._query_lens)
        else:
            self.seq_lens = [seq_len + new for seq_len, new in zip(self.seq_lens, self._query_lens, strict=True)]
        self._query_lens = None

    def crop(self, seq_lens: Sequence[int]) -> None:
        """Forget all but the first `seq_lens[b]` tokens of row b. Raises ValueError for more than there are."""
        seq_lens = list(seq_lens)
        fits = len(seq_lens) == self.batch_size and all(
            0 <= kept <= held for kept, held in zip(seq_lens, self.seq_lens, strict=True)
        )
        if not fits:
            raise ValueError(f"can't crop sequences of lengths {self.seq_lens} to {seq_lens}")
        self._abandon()
        for row, (kept, held) in enumerate(zip(seq_lens, self.seq_lens, strict=True)):
            self._zero(row, kept, held)
        self.seq_lens = seq_lens

    def reorder(self, rows: Sequence[int]) -> None:
        """Row b becomes what row `rows[b]` was. Rows may repeat or be left out; those after the last named are emptied.

        The batch keeps its size: ValueError for more rows than it has, and for rows that it hasn't.
        """
        rows = list(rows)
        if not 1 <= len(rows) <= self.batch_size or not all(0 <= row < self.batch_size for row in rows):
            raise ValueError(f"expected 1 … {self.batch_size} rows from 0…{self.batch_size - 1}, got {rows}")
        self._abandon()
        index = torch.tensor(rows, dtype=torch.long, device=self.device)
        for slab in self._slabs():
            slab[: len(rows)] = slab.index_select(0, index)
            slab[len(rows) :] = 0.0
        self.seq_lens = [self.seq_lens[row] for row in rows] + [0] * (self.batch_size - len(rows))

    def _keep_only(self, keep: Sequence[Sequence[int]], query_lens: list[int]) -> None:
        padded = [list(nodes) for nodes in keep]
        padded += [[] for _ in query_lens[len(padded) :]]  # rows that `begin` left out
        fits = len(padded) == self.batch_size and all(
            nodes == sorted(set(nodes) & set(range(query_len)))
            for nodes, query_len in zip(padded, query_lens, strict=True)
        )
        if not fits:
            raise ValueError(f"keep must name new tokens of each row in ascending order ({query_lens}), got {keep}")
        for row, nodes in enumerate(padded):
            start, stop = self.seq_lens[row], self.seq_lens[row] + len(nodes)
            source = torch.tensor([start + node for node in nodes], dtype=torch.long, device=self.device)
            for slab in self._slabs():
                slab[row, start:stop] = slab[row, source]
            self._zero(row, stop, start + query_lens[row])
            self.seq_lens[row] = stop

    def _abandon(self) -> None:
        """Give back the slots of a forward that was begun and not committed."""
        for row, query_len in enumerate(self._query_lens or ()):
            self._zero(row, self.seq_lens[row], self.seq_lens[row] + query_len)
        self._query_lens = None

    def _zero(self, row: int, start: int, stop: int) -> None:
        if start < stop:
            for slab in self._slabs():
                slab[row, start:stop] = 0.0

    def _fill_mask(self, mask: Tensor, num_rows: int, q_len: int) -> Tensor:
        if any(spec.window is not None for spec in self.layer_specs):
            raise ValueError("a mask among new tokens can't be combined with sliding windows")
        square = (q_len, q_len)
        if mask.dtype != torch.bool or mask.shape not in (square, (1, *square), (num_rows, *square)):
            raise ValueError(
                f"expected a boolean mask {square} or {(num_rows, *square)} among the new tokens, got {mask.dtype} "
                f"{tuple(mask.shape)}"
            )
        if q_len not in self._masks:
            with torch.inference_mode(False):
                self._masks[q_len] = torch.ones(self.batch_size, *square, dtype=torch.bool, device=self.device)
        filled = self._masks[q_len][:num_rows]
        filled.copy_(mask)
        return filled

    def _slabs(self) -> Iterator[Tensor]:
        return (slab for slab in (*self.k, *self.v) if slab is not None)

    def _slab(self, heads: int, head_dim: int) -> Tensor:
        shape = (self.batch_size, self.max_seq_len + 1, heads, head_dim)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)


class StaticAttend:
    """The attend of a forward over a `StaticCache`; of every later forward of that shape, too, once captured.

    q, k, v are (rows, q_len, heads, head_dim), padded on the right; outputs at padding are undefined. `positions`
    (rows, q_len) int64 are those that follow each row's committed tokens; they lie in the cache's buffer. What is
    derived from the buffers is computed on the device within the forward, and so again at each replay. Which way
    attention goes follows from shapes alone: one new token a row on a GPU, without window and mask, to
    `minillm.kernels.flash_decoding`, which stops at each row's length; everything else to torch, with a boolean mask
    over the whole capacity.
    """

    def __init__(self, cache: StaticCache, positions: Tensor, key_lens: Tensor, mask: Tensor | None) -> None:
        self.cache = cache
        self.positions = positions
        self.key_lens = key_lens  # (rows,), the new keys included
        self._mask = mask
        self._last_layer_idx = -1
        self._slots: Tensor | None = None
        self._visible: dict[int | None, Tensor] = {}

    def __call__(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
        self._check(q, k, v)
        if layer_idx <= self._last_layer_idx:
            # Another forward, as warm-up and capture are. A capture that finds something computed doesn't record how.
            self._slots, self._visible = None, {}
        self._last_layer_idx = layer_idx
        spec = self.cache.layer_specs[layer_idx]
        keys = self._store(self.cache.k[layer_idx], k)
        slab_v = self.cache.v[layer_idx]
        values = keys[..., : spec.v_head_dim] if slab_v is None else self._store(slab_v, v)
        if q.shape[1] == 1 and spec.window is None and self._mask is None:
            if (kernel := gpu_kernel("flash_decoding", q)) is not None:
                return kernel(q, keys, values, softmax_scale=softmax_scale, seq_lens=self.key_lens)[0]
        mask = self._visible_keys(spec.window)
        return attention(q, keys, values, causal=False, softmax_scale=softmax_scale, mask=mask)

    def _store(self, slab: Tensor, new: Tensor) -> Tensor:
        """Write the new tokens into their slots; return all slots but the spare one, (rows, max_seq_len, …)."""
        if self._slots is None:
            is_padding = self.positions >= self.key_lens[:, None]
            slots = self.positions.masked_fill(is_padding, self.cache.max_seq_len)
            self._slots = (slots + self.cache.row_starts[: len(slots), None]).flatten()  # counted through all rows
        slab.flatten(0, 1).index_copy_(0, self._slots, new.flatten(0, 1))
        return slab[: new.shape[0], : self.cache.max_seq_len]

    def _visible_keys(self, window: int | None) -> Tensor:
        """(rows, 1, q_len, max_seq_len): the slots up to each query's own, cut to the window; once for each window."""
        if window not in self._visible:
            key_slot = self.cache.key_slots
            query_slot = self.positions.unsqueeze(-1)  # (rows, q_len, 1)
            visible = key_slot <= query_slot
            if window is not None:
                visible = visible & (key_slot > query_slot - window)
            if self._mask is not None:
                visible = visible & self._mask_over_slots(self._mask)
            self._visible[window] = visible.unsqueeze(1)
        return self._visible[window]

    def _mask_over_slots(self, mask: Tensor) -> Tensor:
        """A mask among new tokens as (rows, q_len, max_seq_len): shifted to each row's slots, old keys visible."""
        q_len = mask.shape[-1]
        new_token = self.cache.key_slots - self.positions[:, :1]  # (rows, max_seq_len): its number, if it is a new one
        is_new = (new_token >= 0) & (new_token < q_len)
        columns = new_token.clamp(0, q_len - 1).unsqueeze(1).expand(-1, q_len, -1)
        return mask.gather(2, columns) | ~is_new.unsqueeze(1)

    def _check(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
            raise RuntimeError("a KV cache does not carry gradients; call the model under torch.inference_mode()")
        expected = tuple(self.positions.shape)
        if q.dim() != 4 or q.shape[:2] != expected:
            raise ValueError(f"expected q (rows, q_len, …) = {expected} as in begin, got {tuple(q.shape)}")
        if k.dtype != self.cache.dtype:
            raise ValueError(f"the cache holds {self.cache.dtype}, the model gave {k.dtype}")
