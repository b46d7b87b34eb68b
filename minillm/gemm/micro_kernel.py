"""The micro-kernel: a tile of C summed in vector registers (needs numba; `tile` draws it).

The one piece written instruction by instruction, because a compiler doesn't find it: it would have to see that C's
tile stays the same while k runs. Python's loops below run while numba compiles and write the instructions out; only
`depth` is a loop of the processor's.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from minillm.gemm.tile import Tile
from minillm.gemm.vectors import UNIT, at, broadcast, data_of, load, multiply_add, prefetch, store, times

LANES = UNIT.lanes


def make_micro_kernel(tile: Tile, *, ahead: int = 0) -> Any:
    """A numba function for tiles of that shape:

        multiply_tile(depth, a, a_start, a_row, a_step, b, b_start, b_step, c, c_start, c_row)

    adds the product of `depth` columns of A and `depth` rows of B to a tile of C. Each operand is a one-dimensional
    float32 array with the index of its first number and its strides, in numbers:

        a[a_start + i · a_row + k · a_step]         i < tile.rows
        b[b_start + k · b_step + j]                 j < tile.columns, side by side
        c[c_start + i · c_row + j]

    ahead  ask for the tile of B that many tiles to the right while this one is multiplied, so that it is on its
           way (double buffering: the cache holds both); 0 = don't

    Nothing is checked: indices outside an array touch memory that isn't theirs.
    """

    @intrinsic
    def multiply_tile(  # type: ignore[no-untyped-def]
        typing_context, depth, a, a_start, a_row, a_step, b, b_start, b_step, c, c_start, c_row
    ):
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> None:
            depth, a, a_start, a_row, a_step, b, b_start, b_step, c, c_start, c_row = arguments
            kinds = signature.args
            a = at(builder, data_of(context, builder, kinds[1], a), a_start)
            b = at(builder, data_of(context, builder, kinds[5], b), b_start)
            c = at(builder, data_of(context, builder, kinds[8], c), c_start)
            lane_starts = [context.get_constant(types.intp, v * tile.lanes) for v in range(tile.vectors)]

            # `alloca` asks for memory that nobody else sees; LLVM turns it into a register each.
            vector = broadcast(builder, context.get_constant(types.float32, 0), tile.lanes).type
            sums = [[cgutils.alloca_once(builder, vector) for _ in lane_starts] for _ in range(tile.rows)]
            for row in sums:
                for total in row:
                    builder.store(vector(None), total)  # zeros

            with cgutils.for_range(builder, depth) as loop:
                b_row = at(builder, b, builder.mul(loop.index, b_step))
                b_vectors = [load(builder, at(builder, b_row, start), tile.lanes) for start in lane_starts]
                if ahead:
                    for v in range(tile.vectors):
                        start = context.get_constant(types.intp, ahead * tile.columns + v * tile.lanes)
                        prefetch(builder, at(builder, b_row, start))
                a_column = at(builder, a, builder.mul(loop.index, a_step))
                for i, row in enumerate(sums):
                    number = builder.load(at(builder, a_column, times(builder, i, a_row)))
                    in_all_lanes = broadcast(builder, number, tile.lanes)
                    for total, b_vector in zip(row, b_vectors, strict=True):
                        builder.store(multiply_add(builder, in_all_lanes, b_vector, builder.load(total)), total)

            for i, row in enumerate(sums):
                c_row_start = at(builder, c, times(builder, i, c_row))
                for total, start in zip(row, lane_starts, strict=True):
                    address = at(builder, c_row_start, start)
                    store(builder, builder.fadd(load(builder, address, tile.lanes), builder.load(total)), address)

        array, index = types.Array(types.float32, 1, "C"), types.intp
        arguments = (index, array, index, index, index, array, index, index, array, index, index)
        return types.void(*arguments), codegen

    return multiply_tile
