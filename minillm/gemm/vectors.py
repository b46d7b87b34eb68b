"""Vectors inside numba: the few LLVM instructions that a micro-kernel is written in (needs numba).

numba has no vector type; its `@intrinsic` lets a function write LLVM's own instructions instead. The functions here
append one instruction each: they run while numba compiles, and a Python loop around them is a loop written out. LLVM
then gives the values registers.
"""

from __future__ import annotations

from typing import Any

from numba.core import cgutils
from numba.core.cgutils import ir  # the module llvmlite.ir: types and values of LLVM

from minillm.gemm.tile import host_vector_unit

# Compiled code in numba's cache belongs to a processor and its features, and so do these.
UNIT = host_vector_unit()

FLOAT, INDEX = ir.FloatType(), ir.IntType(64)
FLOAT32_BYTES = 4


def data_of(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    """The address of an array's first number."""
    return context.make_array(array_type)(context, builder, array).data


def at(builder: Any, data: Any, *offsets: Any) -> Any:
    """The address that many numbers further on."""
    for offset in offsets:
        data = builder.gep(data, [offset], source_etype=FLOAT)
    return data


def times(builder: Any, count: int, stride: Any) -> Any:
    """count · stride, `count` known while compiling."""
    return builder.mul(ir.Constant(INDEX, count), stride)


def load(builder: Any, address: Any, lanes: int) -> Any:
    """`lanes` numbers that lie side by side, at any alignment."""
    vector = ir.VectorType(FLOAT, lanes)
    return builder.load(builder.bitcast(address, vector.as_pointer()), align=FLOAT32_BYTES, typ=vector)


def store(builder: Any, value: Any, address: Any) -> None:
    """A vector to memory."""
    builder.store(value, builder.bitcast(address, value.type.as_pointer()), align=FLOAT32_BYTES)


def broadcast(builder: Any, number: Any, lanes: int) -> Any:
    """One number in all lanes."""
    vector = ir.VectorType(FLOAT, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


def multiply_add(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """x · y + z lane by lane: one instruction where the processor has one, rounded once there; two elsewhere."""
    name = f"llvm.fmuladd.v{x.type.count}f32"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(x.type, [x.type] * 3), name)
    return builder.call(function, [x, y, z])


def prefetch(builder: Any, address: Any) -> None:
    """Ask for the cache line at an address, to be read soon. The address may be any: asking never fails."""
    byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    read, keep_near, is_data = (ir.Constant(word, flag) for flag in (0, 3, 1))
    builder.call(function, [builder.bitcast(address, byte), read, keep_near, is_data])
