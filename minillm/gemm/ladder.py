"""The ladder: one product, six loop nests, each faster than the last for one reason.

All compute c[i, j] = Σₖ a[i, k] · b[k, j] with the same 2·M·N·K FLOPs and nearly the same rounding. What differs is the
order of the work, and with it where the numbers come from: memory (tens of bytes a clock for the whole chip), caches
(some 16 to 64 bytes a clock for each core), or registers (free).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from minillm.gemm.matrices import multiply_with


@dataclass(frozen=True)
class Rung:
    """One way to multiply, callable as rung(a, b) -> c.

    name           what tables and plots call it
    module         where its loop nest is, in `minillm.gemm`; imported when first called, since it needs numba
    what_changed   against the rung below
    expected_gain  over the rung below, in a word or two
    why            it should
    """

    name: str
    module: str
    what_changed: str
    expected_gain: str
    why: str

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """a (M, K) · b (K, N) -> (M, N), float32 on the CPU, without autograd.

        Inputs may have any strides; those that aren't contiguous by rows are copied first, and none is changed. Where
        K is 0 the result is zeros. The first call compiles, for seconds; later processes find the result on disk.
        Raises ValueError for other shapes, dtypes or devices, and without numba.
        """
        return multiply_with(self.function, a, b)

    @property
    def function(self) -> Callable[[Any, Any, Any], object]:
        """The loop nest, (a, b, c) -> None on contiguous float32 numpy arrays. Raises ValueError without numba."""
        try:
            module = importlib.import_module(f"minillm.gemm.{self.module}")
        except ImportError as error:
            raise ValueError("the ladder of matrix products needs numba: pip install minillm[fast]") from error
        multiply: Callable[[Any, Any, Any], object] = module.multiply
        return multiply


_RUNGS = (
    Rung(
        "naive ijk",
        "naive",
        what_changed="nothing: three loops as in the definition, a sum over k for each number of C",
        expected_gain="none",
        why="B is walked down its columns, one number from each 64-byte line, and each addition waits for the last",
    ),
    Rung(
        "reordered ikj",
        "reordered",
        what_changed="j runs innermost: row i of C becomes a sum of rows of B",
        expected_gain="10 to 100×",
        why="whole cache lines are used, and 4 to 16 sums are added to at once, as lanes of a vector",
    ),
    Rung(
        "tiled",
        "tiled",
        what_changed="k and j run over a block of B that fits the second cache before i moves on",
        expected_gain="1 to 2×",
        why="B is read from memory once and not M times; while B fits a cache anyway, that gains nothing",
    ),
    Rung(
        "register tile",
        "registers",
        what_changed="a tile of C is summed in vector registers while k runs",
        expected_gain="1.5 to 3×",
        why="no load and store of C for each multiply-add, and many FLOPs for each number of A and B loaded",
    ),
    Rung(
        "packed",
        "packed",
        what_changed="blocks of A and B are copied into panels, in the order in which the micro-kernel reads them",
        expected_gain="1 to 2×",
        why="the inner loop reads memory in order and blocks stay in their caches; small matrices do so unpacked",
    ),
    Rung(
        "threads",
        "threaded",
        what_changed="each core computes a part of C",
        expected_gain="× cores",
        why="parts of C need nothing of one another; the clock, the last cache and memory are shared",
    ),
)

LADDER: dict[str, Rung] = {rung.name: rung for rung in _RUNGS}
"""The rungs by name, slowest first."""
