"""Text in, text out: generation shown as it happens, and stop strings.

A piece of text may be shown once nothing that follows can take it back. Two things can: the rest of a
character whose bytes are spread over several tokens (`StreamDecoder` waits for those), and the rest of a stop
string.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from minillm.data import StreamDecoder, Tokenizer
from minillm.generation.generate import check_prompt, decode_steps, ending_token_ids
from minillm.model.transformer import Transformer
from minillm.sampling import SamplingParams


def generate_text(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    params: SamplingParams = SamplingParams(),
    *,
    stop: str | Sequence[str] = (),
    generator: torch.Generator | None = None,
) -> str:
    """The text that continues `prompt`, without the prompt: the pieces of `stream`, joined."""
    return "".join(stream(model, tokenizer, prompt, params, stop=stop, generator=generator))


def stream(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    params: SamplingParams = SamplingParams(),
    *,
    stop: str | Sequence[str] = (),
    generator: torch.Generator | None = None,
    on_token: Callable[[int], None] | None = None,
) -> Iterator[str]:
    """Continue `prompt`, giving each non-empty piece of text as soon as it is certain.

    Generation ends where `generate` ends, or as soon as the text contains one of the strings `stop`; the text
    is cut in front of that. The ending token shows no text. `on_token` is called with every token id as it is
    chosen, the ending one included (to count and to time them).

    Raises ValueError at the call, not at the first piece, for an empty stop string and for the prompts that
    `generate` refuses.
    """
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(stop_string, str) and stop_string for stop_string in stop):
        raise ValueError(f"stop must be non-empty strings, got {stop!r}")
    prompt_token_ids = check_prompt(model.config, tokenizer.encode(prompt))
    steps = decode_steps(model, prompt_token_ids, params, generator=generator)
    pieces = _text_pieces(steps, ending_token_ids(model.config, params), StreamDecoder(tokenizer), on_token)
    return cut_at_stop(pieces, stop)


def _text_pieces(
    steps: Iterator[int], ending: set[int], decoder: StreamDecoder, on_token: Callable[[int], None] | None
) -> Iterator[str]:
    for token_id in steps:
        if on_token is not None:
            on_token(token_id)
        if token_id not in ending:
            yield decoder.push(token_id)
    yield decoder.flush()


def cut_at_stop(pieces: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    """Pass text on up to the first stop string, and take no further piece from `pieces` once one is complete.

    Where several are, the one complete first decides; where two are complete at the same character, the
    longer. Text that may be the beginning of a stop string is held back until it turns out not to be. Cutting
    does not depend on how the text is divided into pieces.
    """
    held = ""
    for piece in pieces:
        for character in piece:
            held += character
            stop_len = max((len(stop_string) for stop_string in stop if held.endswith(stop_string)), default=0)
            if stop_len:
                if len(held) > stop_len:
                    yield held[:-stop_len]
                return
        num_certain = len(held) - _longest_beginning(held, stop)
        if num_certain:
            yield held[:num_certain]
            held = held[num_certain:]
    if held:
        yield held


def _longest_beginning(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` that is the beginning of a stop string."""
    lengths = range(max(map(len, stop), default=1) - 1, 0, -1)
    return next((n for n in lengths if any(s.startswith(text[-n:]) for s in stop if len(text) >= n)), 0)
