"""Ways of decoding the same continuation, by name: the rows of the demo's table. A new one registers one
entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minillm.bench.decode import fast_copy, fused_copy
from minillm.fast_linears import can_use_fast_linears
from minillm.generation.generate import generate, generate_batch, generate_uncached
from minillm.model.transformer import Transformer
from minillm.perf.traffic import decode_bytes_per_token, weight_bytes_per_step
from minillm.sampling import SamplingParams


@dataclass(frozen=True)
class DecodingMethod:
    """One row of the table.

    name             what the table calls it
    decode           (model, prompt_token_ids, params) -> the new tokens of each sequence that it decoded
    bytes_per_token  (model, seq_len) -> bytes that one new token moves when its sequence has `seq_len` tokens
    prepare          model -> the model that `decode` wants, over the same weights; leaves its argument as it is
    can_run          whether what it needs is installed
    """

    name: str
    decode: Callable[[Transformer, Sequence[int], SamplingParams], list[list[int]]]
    bytes_per_token: Callable[[Transformer, int], int] = decode_bytes_per_token
    prepare: Callable[[Transformer], Transformer] = lambda model: model
    can_run: Callable[[], bool] = lambda: True


_METHODS: dict[str, DecodingMethod] = {}


def register(method: DecodingMethod) -> DecodingMethod:
    """Add a row to the table, at its end. Raises ValueError for a name that is taken."""
    if method.name in _METHODS:
        raise ValueError(f"a decoding method {method.name!r} is registered already")
    _METHODS[method.name] = method
    return method


def decoding_methods() -> list[DecodingMethod]:
    """The registered methods that can run here, in order of registration."""
    return [method for method in _METHODS.values() if method.can_run()]


BATCH_SIZE = 8


def _generate_one(model: Transformer, prompt: Sequence[int], params: SamplingParams) -> list[list[int]]:
    return [generate(model, prompt, params)]


register(
    DecodingMethod(
        "no cache",
        decode=lambda model, prompt, params: [generate_uncached(model, prompt, params)],
        bytes_per_token=lambda model, seq_len: weight_bytes_per_step(model, batch_size=seq_len),
    )
)
register(DecodingMethod("KV cache", decode=_generate_one))
register(
    DecodingMethod(
        "  and fast linears",
        decode=_generate_one,
        prepare=fast_copy,
        can_run=can_use_fast_linears,
    )
)
register(
    DecodingMethod(
        "  and fused blocks",
        decode=_generate_one,
        prepare=fused_copy,
        can_run=can_use_fast_linears,
    )
)
register(
    DecodingMethod(
        f"  and a batch of {BATCH_SIZE}",
        decode=lambda model, prompt, params: generate_batch(model, [prompt] * BATCH_SIZE, params),
        bytes_per_token=lambda model, seq_len: decode_bytes_per_token(model, seq_len, batch_size=BATCH_SIZE),
        prepare=fused_copy,
    )
)
