"""Generation: from a prompt to its continuation.

Reading order: `generate` (the loop: with a cache, without, batched), `stream` (the same as text, while it
happens), `beam` (searching for the most probable continuation).

Steps recorded once and replayed: `tape` (a graph on the CPU, and the rules), `graph_capture` (the same interface over
`torch.cuda.CUDAGraph`), `graph_watch` (is it still that model?), `graph_decode` (a graph for each batch size),
`graph_generate` (the loop over them), `graph_counts` (what a step costs the host).
"""

from minillm.generation.beam import beam_search
from minillm.generation.generate import decode_steps, generate, generate_batch, generate_uncached
from minillm.generation.graph_capture import CudaGraph, capture
from minillm.generation.graph_counts import count_step
from minillm.generation.graph_decode import GraphDecoder
from minillm.generation.graph_generate import generate_with_graphs
from minillm.generation.stream import generate_text, stream
from minillm.generation.tape import CaptureError, Tape

__all__ = [
    "CaptureError",
    "CudaGraph",
    "GraphDecoder",
    "Tape",
    "beam_search",
    "capture",
    "count_step",
    "decode_steps",
    "generate",
    "generate_batch",
    "generate_text",
    "generate_uncached",
    "generate_with_graphs",
    "stream",
]
