"""The products of decode attention in vector registers of a CPU core (needs numba; `cpu_decoding` calls them).

A key or value is used by a few rows only, the query heads of its group. These kernels are made so that all the waiting
is for memory:

    scores   q (rows, dim) · one key      a sum in registers for each row, one number at last
    mix      weights (rows, keys) · v     a piece of acc stays in registers while the values of some keys are added

Memory is fast only in order: a processor fetches ahead along a line, not along a zigzag of heads and keys. So keys are
scored one after the other as they lie in memory. `mix` goes over all values of one head, then of the next; they have
been asked for in order before, beside the scores, a value for each key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from minillm.gemm.vectors import (
    BFLOAT16,
    FLOAT,
    INDEX,
    UNIT,
    at,
    broadcast,
    data_of,
    ir,
    larger,
    largest_lane,
    load,
    load_bfloat16,
    multiply_add,
    prefetch,
    store,
    sum_of_lanes,
    times,
)

LANES = UNIT.lanes
VECTOR = ir.VectorType(FLOAT, LANES)
FLOATS, COUNT = types.Array(types.float32, 1, "C"), types.intp


def make_scores(rows: int, parts: int) -> Any:
    """A numba function for one key and `rows` rows of q:

        scores(dim, q, q_start, q_row, k, k_start, v, v_start, out, out_start, out_row)

    writes out[out_start + r · out_row] = Σ q[q_start + r · q_row + i] · k[k_start + i] for i < dim, a multiple of
    LANES. It asks for as many numbers from v[v_start] on. Arrays have one dimension; q and out are float32, k and v
    float32, or bfloat16 as uint16. A row's sum is kept in `parts` vectors, since a multiply-add takes some cycles and
    several can be under way. Nothing is checked.
    """

    @intrinsic
    def scores(typing_context, dim, q, q_start, q_row, k, k_start, v, v_start, out, out_start, out_row):  # type: ignore[no-untyped-def]
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> None:
            dim, q, q_start, q_row, k, k_start, v, v_start, out, out_start, out_row = arguments
            kinds = signature.args
            element, read = _reading(kinds[4])
            q = at(builder, data_of(context, builder, kinds[1], q), q_start)
            k = at(builder, data_of(context, builder, kinds[4], k), k_start, element=element)
            v = at(builder, data_of(context, builder, kinds[6], v), v_start, element=element)
            out = at(builder, data_of(context, builder, kinds[8], out), out_start)
            sums = _registers(builder, rows, parts)

            def multiply(i: Any, part: int) -> None:
                numbers = read(builder, at(builder, k, i, element=element), LANES)
                prefetch(builder, at(builder, v, i, element=element))
                for r, totals in enumerate(sums):
                    q_numbers = load(builder, at(builder, q, times(builder, r, q_row), i), LANES)
                    _add_products(builder, [q_numbers], [numbers], [totals[part]])

            step = _index(parts * LANES)
            whole = builder.mul(builder.sdiv(dim, step), step)
            with cgutils.for_range_slice(builder, _index(0), whole, step, inc=True) as (i, _):
                for part in range(parts):
                    multiply(builder.add(i, _index(part * LANES)), part)
            with cgutils.for_range_slice(builder, whole, dim, _index(LANES), inc=True) as (i, _):
                multiply(i, 0)

            for r, totals in enumerate(sums):
                total = builder.load(totals[0])
                for part in totals[1:]:
                    total = builder.fadd(total, builder.load(part))
                builder.store(sum_of_lanes(builder, total), at(builder, out, times(builder, r, out_row)))

        return types.void(COUNT, FLOATS, COUNT, COUNT, k, COUNT, k, COUNT, FLOATS, COUNT, COUNT), codegen

    return scores


def make_mix(rows: int, vectors: int) -> Any:
    """A numba function for `rows` rows of weights and `vectors` · LANES columns of v:

        mix(num_keys, weights, w_start, w_row, v, v_start, v_step, acc, acc_start, acc_row)

    adds Σ weights[w_start + r · w_row + j] · v[v_start + j · v_step + i] for j < num_keys to
    acc[acc_start + r · acc_row + i]. Arrays have one dimension; weights and acc are float32, v as for `make_scores`.
    Nothing is checked.
    """

    @intrinsic
    def mix(typing_context, num_keys, weights, w_start, w_row, v, v_start, v_step, acc, acc_start, acc_row):  # type: ignore[no-untyped-def]
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> None:
            num_keys, weights, w_start, w_row, v, v_start, v_step, acc, acc_start, acc_row = arguments
            kinds = signature.args
            element, read = _reading(kinds[4])
            weights = at(builder, data_of(context, builder, kinds[1], weights), w_start)
            v = at(builder, data_of(context, builder, kinds[4], v), v_start, element=element)
            acc = at(builder, data_of(context, builder, kinds[7], acc), acc_start)
            columns = [_index(n * LANES) for n in range(vectors)]
            acc_rows = [at(builder, acc, times(builder, r, acc_row)) for r in range(rows)]
            sums = _registers(builder, rows, vectors)
            for row, totals in zip(acc_rows, sums, strict=True):
                for column, total in zip(columns, totals, strict=True):
                    builder.store(load(builder, at(builder, row, column), LANES), total)

            with cgutils.for_range(builder, num_keys) as loop:
                v_row = at(builder, v, builder.mul(loop.index, v_step), element=element)
                v_vectors = [read(builder, at(builder, v_row, column, element=element), LANES) for column in columns]
                for r, totals in enumerate(sums):
                    weight = builder.load(at(builder, weights, times(builder, r, w_row), loop.index))
                    _add_products(builder, [broadcast(builder, weight, LANES)] * vectors, v_vectors, totals)

            for row, totals in zip(acc_rows, sums, strict=True):
                for column, total in zip(columns, totals, strict=True):
                    store(builder, builder.load(total), at(builder, row, column))

        return types.void(COUNT, FLOATS, COUNT, COUNT, v, COUNT, COUNT, FLOATS, COUNT, COUNT), codegen

    return mix


@intrinsic
def largest(typing_context, x, start, count):  # type: ignore[no-untyped-def]
    """The largest of x[start : start + count], float32, `count` a multiple of LANES; NaN counts as missing."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, start, count = arguments
        x = at(builder, data_of(context, builder, signature.args[0], x), start)
        best = _registers(builder, 1, 1)[0][0]
        builder.store(broadcast(builder, ir.Constant(FLOAT, float("-inf")), LANES), best)
        with cgutils.for_range_slice(builder, _index(0), count, _index(LANES), inc=True) as (i, _):
            builder.store(larger(builder, load(builder, at(builder, x, i), LANES), builder.load(best)), best)
        return largest_lane(builder, builder.load(best))

    return types.float32(FLOATS, COUNT, COUNT), codegen


def _registers(builder: Any, rows: int, columns: int) -> list[list[Any]]:
    """Vectors of zeros. `alloca` asks for memory that nobody else sees; LLVM turns it into a register each."""
    vectors = [[cgutils.alloca_once(builder, VECTOR) for _ in range(columns)] for _ in range(rows)]
    for row in vectors:
        for vector in row:
            builder.store(VECTOR(None), vector)
    return vectors


def _add_products(builder: Any, xs: Sequence[Any], ys: Sequence[Any], totals: Sequence[Any]) -> None:
    for x, y, total in zip(xs, ys, totals, strict=True):
        builder.store(multiply_add(builder, x, y, builder.load(total)), total)


def _reading(array: Any) -> tuple[Any, Any]:
    """The element of an array in memory, and how a vector of it becomes float32."""
    return (BFLOAT16, load_bfloat16) if array.dtype == types.uint16 else (FLOAT, load)


def _index(number: int) -> Any:
    return ir.Constant(INDEX, number)
