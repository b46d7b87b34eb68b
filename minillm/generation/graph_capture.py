"""A recorded step, whatever device it runs on: `torch.cuda.CUDAGraph` on a GPU, a `Tape` on the CPU.

Both are made from a step without arguments, and replay it on the memory that it used. What a step may do is said in
`tape`. Source: the notes on CUDA graphs in PyTorch's documentation ("CUDA semantics", section "CUDA Graphs").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from minillm.generation.tape import Tape


class Graph(Protocol):
    """A recorded step. `output` is what the step returned, overwritten by each `replay`, which returns it as well."""

    output: Any

    def replay(self) -> Any: ...


class CudaGraph:
    """A step recorded on the current GPU: a replay is one call of the driver for all of its launches.

    The launches go to a stream, and so does a replay: later work on the current stream finds the output ready. Memory
    that the capture allocates belongs to a pool which lives as long as a graph or an output in it.
    """

    def __init__(self, step: Callable[[], Any], *, num_warmups: int = 2, pool: Any = None) -> None:
        """Run `step` num_warmups times on a stream beside the current one, then record it.

        Warming up compiles kernels, chooses algorithms and allocates workspaces, which is forbidden during a capture.
        pool   the `pool` of another graph, to share its memory: for graphs that never run side by side, and whose
               outputs are read before another one is replayed. None makes a new one

        Raises RuntimeError, from CUDA, when the step waits for the GPU, as reading a number from it does.
        """
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(num_warmups):
                step()
        torch.cuda.current_stream().wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self.output = step()

    @property
    def pool(self) -> Any:
        """For the next graph to share."""
        return self._graph.pool()

    def replay(self) -> Any:
        """Repeat the launches on the captured memory; returns `output`, which is written in stream order."""
        self._graph.replay()
        return self.output


def capture(
    step: Callable[[], Any], device: torch.device | str, *, num_warmups: int = 2, share_with: Graph | None = None
) -> Graph:
    """Record `step`, which works on `device`: after `num_warmups` runs of it, so that it is run num_warmups + 1 times.

    share_with   an earlier graph of the same GPU whose pool the new one shares (see `CudaGraph`); a tape has its own

    Raises ValueError for devices without graphs, CaptureError (CPU) and RuntimeError (GPU) for steps that can't be
    recorded.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return Tape(step, num_warmups=num_warmups)
    if device.type != "cuda":
        raise ValueError(f"graphs are recorded on cuda and, to study them, on cpu; got device {str(device)!r}")
    with torch.cuda.device(device):
        pool = share_with.pool if isinstance(share_with, CudaGraph) else None
        return CudaGraph(step, num_warmups=num_warmups, pool=pool)
