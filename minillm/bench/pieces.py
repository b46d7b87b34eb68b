"""A forward in three pieces that can be timed apart: its matrix products, its attention over a cache, and the rest.

Each function returns a call that does one piece of a step of `batch_size` sequences with `query_len` new tokens each,
for all layers, in the model's order, and nothing of the others. None of them is told how long a whole step takes.

    products    every linear of the model on rows of the right number, weights streamed as a step streams them
    attention   storing new keys and values, and attending to all, in a cache of the right lengths
    the rest    the model with linears that hand out a ready result, and an attend that does
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from minillm.cache.contiguous import ContiguousCache
from minillm.generation.generate import last_logits, make_cache
from minillm.model.transformer import Transformer
from minillm.transform import is_linear

Call = Callable[[], object]


def whole_step(model: Transformer, batch_size: int, query_len: int, seq_len: int) -> Call:
    """A prefill (query_len = seq_len) or decode step up to the logits of the last tokens: what is to be predicted."""
    cache = _filled_cache(model, batch_size, seq_len - query_len, seq_len)
    held = list(cache.seq_lens)
    tokens = [[1] * query_len] * batch_size

    @torch.inference_mode()
    def step() -> None:
        last_logits(model, cache, tokens)
        cache.crop(held)

    return step


def products(model: Transformer, batch_size: int, query_len: int) -> Call:
    """The linears of the blocks on all new tokens, lm_head on the last ones."""
    rows: dict[tuple[int, bool], Tensor] = {}
    work: list[tuple[nn.Module, Tensor]] = []
    for linear in _linears(model):
        in_features = int(linear.in_features)  # type: ignore[arg-type]
        is_last = linear is model.lm_head
        shape = (batch_size, in_features) if is_last else (batch_size, query_len, in_features)
        work.append((linear, rows.setdefault((in_features, is_last), torch.ones(shape, dtype=_dtype(model)))))

    @torch.inference_mode()
    def multiply() -> None:
        for linear, x in work:
            linear(x)

    return multiply


def attention(model: Transformer, batch_size: int, query_len: int, seq_len: int) -> Call:
    """What the attend of a contiguous cache does in every layer."""
    cache = _filled_cache(model, batch_size, seq_len - query_len, seq_len)
    inputs = []
    for spec in model.layer_specs:
        q = torch.ones(batch_size, query_len, spec.num_heads, spec.k_head_dim, dtype=_dtype(model))
        k = torch.ones(batch_size, query_len, spec.num_kv_heads, spec.k_head_dim, dtype=_dtype(model))
        v = torch.ones(batch_size, query_len, spec.num_kv_heads, spec.v_head_dim, dtype=_dtype(model))
        inputs.append((q, k, v, spec.k_head_dim**-0.5))

    @torch.inference_mode()
    def attend_everywhere() -> None:
        attend = cache.begin([query_len] * batch_size)  # never committed: the next call begins at the same place
        for layer_idx, (q, k, v, softmax_scale) in enumerate(inputs):
            attend(layer_idx, q, k, v, softmax_scale)

    return attend_everywhere


def the_rest(model: Transformer, batch_size: int, query_len: int) -> Call:
    """Embedding, norms, rotation, activation, residual sums, and all that Python does around them."""
    # A copy that shares the parameters and has a `_Ready` wherever the model has a linear.
    in_place_of: dict[int, object] = {id(parameter): parameter for parameter in model.parameters()}
    in_place_of |= {id(linear): _Ready(linear) for linear in _linears(model)}
    hollow = copy.deepcopy(model, in_place_of)
    rows = torch.arange(batch_size)
    last = torch.full((batch_size,), query_len - 1)
    tokens = [[1] * query_len] * batch_size
    positions = torch.arange(query_len).expand(batch_size, query_len)

    def attend(layer_idx: int, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
        return q

    @torch.inference_mode()
    def step() -> None:
        hidden = hollow.hidden(hollow.embed(torch.tensor(tokens)), positions, attend)
        hollow.unembed(hidden[rows, last])

    return step


class _Ready(nn.Module):
    """A linear that was done before: it hands out one tensor of ones for each shape."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.in_features, self.out_features = int(linear.in_features), int(linear.out_features)  # type: ignore[arg-type]
        self._results: dict[torch.Size, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        result = self._results.get(x.shape)
        if result is None:
            result = self._results[x.shape] = torch.ones((*x.shape[:-1], self.out_features), dtype=x.dtype)
        return result


def _linears(model: Transformer) -> list[nn.Module]:
    """In the order of the modules, which is that of a step; what is inside a wrapper is its own business."""
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        for child in module.children():
            if is_linear(child):
                found.append(child)
            else:
                visit(child)

    visit(model)
    return found


def _filled_cache(model: Transformer, batch_size: int, held: int, capacity: int) -> ContiguousCache:
    """A cache whose sequences hold `held` tokens each; their keys and values are small numbers."""
    cache = make_cache(model, batch_size=batch_size, max_seq_len=capacity)
    if held:
        slabs: Sequence[Tensor | None] = (*cache.k, *cache.v)
        for slab in slabs:
            if slab is not None:
                slab.fill_(0.01)
        cache.begin([held] * batch_size)
        cache.commit()
    return cache


def _dtype(model: Transformer) -> torch.dtype:
    return model.embed_tokens.weight.dtype
