"""The loop of the FMA probe (needs numba): multiply-adds on registers and nothing else.

Each sum is a chain, sum = sum · factor + addend: no step can start before the last one ended, so `NUM_SUMS` chains run
side by side. Nothing is loaded or stored while they do. The compiler can't shorten it: factor and addend are
arguments, floating-point sums may not be reordered, the chains start at different values (equal ones would be
computed once), and their total is returned.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange, types
from numba.core import cgutils
from numba.core.cgutils import ir
from numba.extending import intrinsic

from minillm.gemm.vectors import FLOAT, UNIT, broadcast, multiply_add

NUM_SUMS = UNIT.num_independent_sums()
FLOPS_PER_STEP = 2 * NUM_SUMS * UNIT.lanes
STEPS_PER_TURN = 8  # written out, so that counting the turns costs nothing


@intrinsic
def _chains(typing_context, turns, factor, addend):  # type: ignore[no-untyped-def]
    """STEPS_PER_TURN · `turns` steps of NUM_SUMS independent chains; returns their total."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        turns, factor, addend = arguments
        factors, addends = (broadcast(builder, number, UNIT.lanes) for number in (factor, addend))
        sums = [cgutils.alloca_once(builder, factors.type) for _ in range(NUM_SUMS)]
        for i, chain in enumerate(sums):
            start = builder.fadd(addend, ir.Constant(FLOAT, float(i)))
            builder.store(broadcast(builder, start, UNIT.lanes), chain)
        with cgutils.for_range(builder, turns):
            for _ in range(STEPS_PER_TURN):
                for chain in sums:
                    builder.store(multiply_add(builder, builder.load(chain), factors, addends), chain)
        total = builder.load(sums[0])
        for chain in sums[1:]:
            total = builder.fadd(total, builder.load(chain))
        lanes = [builder.extract_element(total, ir.Constant(ir.IntType(32), lane)) for lane in range(UNIT.lanes)]
        result = lanes[0]
        for lane in lanes[1:]:
            result = builder.fadd(result, lane)
        return result

    return types.float32(types.intp, types.float32, types.float32), codegen


@njit(cache=True, nogil=True)
def run_chains(turns: int, factor: Any, addend: Any) -> Any:  # pragma: no cover (compiled)
    """One thread's multiply-adds: FLOPS_PER_STEP · STEPS_PER_TURN · `turns` FLOPs; factor and addend are float32."""
    return _chains(turns, factor, addend)  # type: ignore[call-arg]  # the typing context is numba's to pass


@njit(cache=True, parallel=True)
def run_chains_in_parallel(
    turns: int, factor: Any, addend: Any, num_threads: int
) -> Any:  # pragma: no cover (compiled)
    """The same on each of `num_threads` threads; returns the sum of their totals."""
    total = np.float32(0)
    for _ in prange(num_threads):
        total += run_chains(turns, factor, addend)
    return total
