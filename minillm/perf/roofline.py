"""The roofline (Williams, Waterman, Patterson 2009): how fast an operation can run, from its intensity alone.

    FLOP/s at most = min(peak, intensity · bandwidth)

Left of the ridge, where the two are equal, memory is the limit, right of it arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable

from minillm.perf.cost import Operation
from minillm.perf.hardware import Hardware


def attainable_flops_per_s(intensity: float, hardware: Hardware, number_format: str = "bf16") -> float:
    """The height of the roof above `intensity` FLOPs a byte."""
    return min(hardware.peak(number_format), intensity * hardware.bytes_per_s)


def operation_seconds(
    operation: Operation, hardware: Hardware, number_format: str = "bf16", *, mfu: float = 1.0, mbu: float = 1.0
) -> float:
    """Time of an operation that computes and moves at once: whichever takes longer.

    mfu, mbu: the shares of peak FLOP/s and of bandwidth that are reached; 1 and 1 is the roof.
    """
    computing = operation.flops / (mfu * hardware.peak(number_format))
    moving = operation.num_bytes / (mbu * hardware.bytes_per_s)
    return max(computing, moving)


def least_seconds(parts: Iterable[Operation], hardware: Hardware, number_format: str = "bf16") -> float:
    """Time that no implementation of all the operations together can beat, at full peaks, everything overlapped.

    All FLOPs, and every byte of weights and KV once; activations may stay on the chip, so they don't count.
    """
    parts = list(parts)
    computing = sum(part.flops for part in parts) / hardware.peak(number_format)
    moving = sum(part.weight_bytes + part.kv_bytes for part in parts) / hardware.bytes_per_s
    return max(computing, moving)


def bound(operation: Operation, hardware: Hardware, number_format: str = "bf16") -> str:
    """What limits an operation: "compute" or "memory"."""
    return "compute" if operation.intensity >= hardware.ridge(number_format) else "memory"
