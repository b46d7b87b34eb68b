"""Decode steps as graphs: captured once for a few batch sizes, replayed for every token.

    decoder = GraphDecoder(model, batch_size=4, max_seq_len=512)
    logits  = decoder.prefill([[5, 17, 9], [3]])            # eager: prompts have any length
    logits  = decoder.step(logits.argmax(-1))               # (2, vocab_size), one replay
    decoder.cache.reorder([1])                              # row 0 has ended, row 1 goes on as row 0

A step differs from the one before by its tokens, positions and lengths only. They are copied into the memory that the
graph was captured with; see `StaticCache` for what that asks of a cache, `tape` for the rules.

Batches of any size run in the next larger captured size, the rest of its rows sitting out: as vLLM does, which captures
1, 2, 4 and multiples of 8 (Kwon et al. 2023 is the engine's paper; its setting is `cudagraph_capture_sizes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from minillm.cache.contiguous import ContiguousCache
from minillm.cache.static import StaticCache
from minillm.generation.generate import last_logits
from minillm.generation.graph_capture import Graph, capture
from minillm.generation.graph_watch import ModelWatch
from minillm.model.transformer import Transformer


class GraphDecoder:
    """A model, a `StaticCache` of `batch_size` rows, and a graph for each of `batch_sizes`.

    `cache` may be cropped and reordered between steps: the graphs don't notice. The model may not be changed, except
    for numbers written into its weights (`load_state_dict`): `prefill` and `step` raise RuntimeError when a module, a
    parameter or a buffer was replaced, or its memory (`model.to`, `.data = …`), since a replay would go on reading the
    old one. Attributes that steer Python, like a layer's scale, were frozen by the capture: of those, `prefill` sees
    changes of the layer specs, and nothing sees the others.
    """

    def __init__(
        self,
        model: Transformer,
        batch_size: int,
        max_seq_len: int,
        *,
        batch_sizes: Sequence[int] | None = None,
        num_warmups: int = 2,
    ) -> None:
        """Allocate the cache and capture all graphs, the largest first: on a GPU the smaller share its memory.

        batch_sizes   sizes to capture; None = `capture_sizes(batch_size)`. `batch_size` is always among them

        Raises ValueError for sizes outside 1 … batch_size and for models on devices that have no graphs.
        """
        weight = model.embed_tokens.weight
        self.model = model
        self.cache = StaticCache(
            model.layer_specs, batch_size, max_seq_len=max_seq_len, dtype=weight.dtype, device=weight.device
        )
        self.batch_sizes = sorted({*(capture_sizes(batch_size) if batch_sizes is None else batch_sizes), batch_size})
        if self.batch_sizes[0] < 1 or self.batch_sizes[-1] > batch_size:
            raise ValueError(f"expected batch_sizes from 1 to {batch_size}, got {self.batch_sizes}")
        with torch.inference_mode(False):
            self._tokens = torch.zeros(batch_size, dtype=torch.long, device=weight.device)
        self._watch = ModelWatch(model)
        self._graphs: dict[int, Graph] = {}
        for num_rows in reversed(self.batch_sizes):
            self._graphs[num_rows] = self._captured(num_rows, num_warmups)

    @property
    def batch_size(self) -> int:
        return self.cache.batch_size

    @torch.inference_mode()
    def prefill(self, new_token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Feed the first rows of the cache their new tokens, at least one each, without a graph.

        Returns logits (len(new_token_ids), vocab_size) after each row's last token. Raises ValueError for more rows or
        tokens than fit.
        """
        self._watch.check()
        if self.model.layer_specs != self.cache.layer_specs:
            raise RuntimeError("the model's layer specs have changed after the capture: make a new GraphDecoder")
        if not new_token_ids or not all(new_token_ids):
            raise ValueError(f"expected at least one row, and at least one token in each, got {new_token_ids}")
        return last_logits(self.model, cast(ContiguousCache, self.cache), new_token_ids)  # the same interface

    @torch.inference_mode()
    def step(self, tokens: Tensor | Sequence[int]) -> Tensor:
        """One token for each of the first len(tokens) rows of the cache: logits (len(tokens), vocab_size) after them.

        tokens   integers (rows,), 1 ≤ rows ≤ batch_size, on any device. Those on a GPU aren't checked against the
                 vocabulary, since looking would wait

        Raises ValueError, before anything is replayed or written, for other shapes, dtypes and ids, and when a row is
        full; RuntimeError when the model has changed.
        """
        self._watch.check()
        tokens = self._checked(tokens)
        num_rows = len(tokens)
        padded_rows = next(size for size in self.batch_sizes if size >= num_rows)
        self.cache.begin([1] * num_rows + [0] * (padded_rows - num_rows))
        self._tokens[:num_rows].copy_(tokens, non_blocking=True)
        logits = self._graphs[padded_rows].replay()
        self.cache.commit()
        return logits[:num_rows].clone()  # the next step overwrites the graph's own

    @torch.inference_mode()
    def _captured(self, num_rows: int, num_warmups: int) -> Graph:
        attend = self.cache.begin([1] * num_rows)
        tokens = self._tokens[:num_rows]

        def step() -> Tensor:
            return self.model(tokens[:, None], attend.positions, attend)[:, 0]

        largest = self._graphs.get(self.batch_size)
        graph = capture(step, self._tokens.device, num_warmups=num_warmups, share_with=largest)
        self.cache.crop(self.cache.seq_lens)  # give back the slots that were written
        return graph

    def _checked(self, tokens: Tensor | Sequence[int]) -> Tensor:
        tokens = torch.as_tensor(tokens)
        is_integer = not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool)
        if tokens.dim() != 1 or not 1 <= len(tokens) <= self.batch_size or not is_integer:
            raise ValueError(
                f"expected integer tokens (rows,) of 1 … {self.batch_size} rows, got {tokens.dtype} "
                f"{tuple(tokens.shape)}"
            )
        vocab_size = self.model.config.vocab_size
        if tokens.is_cpu and not bool(((tokens >= 0) & (tokens < vocab_size)).all()):
            raise ValueError(f"expected token ids from 0 to {vocab_size - 1}, got {tokens.tolist()}")
        return tokens


def capture_sizes(batch_size: int) -> list[int]:
    """Batch sizes worth a graph, ascending: 1, 2, 4, multiples of 8, and `batch_size` itself.

    A size in between wastes less than half of the rows, from 8 on at most 7. The list of vLLM's first engine
    (`_BATCH_SIZES_TO_CAPTURE` in vllm/worker/model_runner.py). Raises ValueError for batch_size < 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return sorted({size for size in (1, 2, 4, *range(8, batch_size + 1, 8)) if size <= batch_size} | {batch_size})
