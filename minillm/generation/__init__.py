"""Generation: from a prompt to its continuation.

Reading order: `generate` (the loop: with a cache, without, batched), `stream` (the same as text, while it
happens), `beam` (searching for the most probable continuation).
"""

from minillm.generation.beam import beam_search
from minillm.generation.generate import decode_steps, generate, generate_batch, generate_uncached
from minillm.generation.stream import generate_text, stream

__all__ = [
    "beam_search",
    "decode_steps",
    "generate",
    "generate_batch",
    "generate_text",
    "generate_uncached",
    "stream",
]
