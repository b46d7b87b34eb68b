"""What one call of torch costs when there is nothing to compute, and what a small forward costs for that reason alone.

On a CPU a call goes through Python and torch's dispatcher, a microsecond or several; on a GPU a launch comes on top,
which the host pays for as long as the GPU keeps up. A forward of a small model, or of one token, is mostly that:

    overhead = measure_overhead()
    (graph,) = capture(model, tokens)
    overhead.forward_s(kind_counts(graph))      # seconds, whatever the sizes: the floor under its time
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from minillm.fusion import operators


@dataclass(frozen=True)
class Overhead:
    """Seconds of a call on tiny tensors, for each kind of `minillm.fusion.operation.kind`."""

    device: str
    call_s: dict[str, float]

    def forward_s(self, kinds: Mapping[str, int]) -> float:
        """Seconds of so many calls of each kind, one after the other. "other" counts as elementwise.

        A lower bound for a forward of that many operations: sizes, and the Python of modules between the calls, cost
        time besides. Raises ValueError for unknown kinds.
        """
        unknown = set(kinds) - set(self.call_s) - {"other"}
        if unknown:
            raise ValueError(f"expected kinds {', '.join(self.call_s)} or other, got {', '.join(sorted(unknown))}")
        return sum(count * self.call_s.get(kind, self.call_s["elementwise"]) for kind, count in kinds.items())


def measure_overhead(*, calls: int = 100, rounds: int = 20, device: str = "cpu") -> Overhead:
    """Time of one tiny call of each kind, the kinds taking turns; medians over rounds of `calls` calls each.

    The time of an empty loop is taken off. On "cuda" a batch of calls is launched and then waited for: if the GPU is
    faster than the host, that is the host's time. Raises ValueError for counts below 1 and a device that isn't there.
    """
    if calls < 1 or rounds < 1:
        raise ValueError(f"expected at least 1 call and 1 round, got {calls} and {rounds}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("expected a CUDA device, torch finds none")
    with torch.inference_mode():
        candidates = {"nothing": lambda: None, **tiny_calls(device)}
        wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        for call in candidates.values():
            _batch(call, calls, wait)  # off the record
        times: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(rounds):
            for name, call in candidates.items():
                times[name].append(_batch(call, calls, wait) / calls)
    empty = times.pop("nothing")
    pairs = {name: zip(seconds, empty, strict=True) for name, seconds in times.items()}
    return Overhead(
        device, {name: statistics.median(max(0.0, own - loop) for own, loop in both) for name, both in pairs.items()}
    )


def tiny_calls(device: str = "cpu") -> dict[str, Callable[[], object]]:
    """A call of each kind on a few numbers, so that arguments and results weigh nothing."""
    x = torch.ones(1, 8, device=device)
    weight, heads = torch.ones(8, 8, device=device), torch.ones(1, 1, 1, 8, device=device)
    return {
        "view": lambda: x.unsqueeze(0),
        "elementwise": lambda: x + x,
        "reduction": lambda: x.mean(-1, keepdim=True),
        "copy": lambda: torch.cat((x, x), dim=-1),
        "matmul": lambda: F.linear(x, weight),
        "attention": lambda: F.scaled_dot_product_attention(heads, heads, heads),
        "fused": lambda: operators.swiglu(x, x),
    }


def _batch(call: Callable[[], object], calls: int, wait: Callable[[], object]) -> float:
    wait()
    started = time.perf_counter()
    for _ in range(calls):
        call()
    wait()
    return time.perf_counter() - started
