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

FLOAT, BFLOAT16, INDEX = ir.FloatType(), ir.IntType(16), ir.IntType(64)  # numba knows no bfloat16: uint16, its bits
FLOAT32_BYTES = 4


def data_of(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    """The address of an array's first number."""
    return context.make_array(array_type)(context, builder, array).data


def at(builder: Any, data: Any, *offsets: Any, element: Any = FLOAT) -> Any:
    """The address that many numbers further on."""
    for offset in offsets:
        data = builder.gep(data, [offset], source_etype=element)
    return data


def times(builder: Any, count: int, stride: Any) -> Any:
    """count · stride, `count` known while compiling."""
    return builder.mul(ir.Constant(INDEX, count), stride)


def load(builder: Any, address: Any, lanes: int) -> Any:
    """`lanes` numbers that lie side by side, at any alignment."""
    vector = ir.VectorType(FLOAT, lanes)
    return builder.load(builder.bitcast(address, vector.as_pointer()), align=FLOAT32_BYTES, typ=vector)


def load_bfloat16(builder: Any, address: Any, lanes: int) -> Any:
    """`lanes` bfloat16 numbers that lie side by side, as float32: their bits are the upper half of one."""
    halves, words = (ir.VectorType(ir.IntType(bits), lanes) for bits in (16, 32))
    loaded = builder.load(builder.bitcast(address, halves.as_pointer()), align=2, typ=halves)
    shifted = builder.shl(builder.zext(loaded, words), ir.Constant(words, [16] * lanes))
    return builder.bitcast(shifted, ir.VectorType(FLOAT, lanes))


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


def sum_of_lanes(builder: Any, vector: Any) -> Any:
    """The sum of a vector's numbers, in an order that the processor likes."""
    name = f"llvm.vector.reduce.fadd.v{vector.type.count}f32"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(FLOAT, [FLOAT, vector.type]), name)
    return builder.call(function, [ir.Constant(FLOAT, -0.0), vector], fastmath=("reassoc",))


def larger(builder: Any, x: Any, y: Any) -> Any:
    """The larger of two vectors' numbers lane by lane; NaN counts as missing."""
    name = f"llvm.maxnum.v{x.type.count}f32"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(x.type, [x.type] * 2), name)
    return builder.call(function, [x, y])


def largest_lane(builder: Any, vector: Any) -> Any:
    """The largest of a vector's numbers; NaN counts as missing."""
    name = f"llvm.vector.reduce.fmax.v{vector.type.count}f32"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(FLOAT, [vector.type]), name)
    return builder.call(function, [vector])


def prefetch(builder: Any, address: Any) -> None:
    """Ask for the cache line at an address, to be read soon. The address may be any: asking never fails."""
    byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    read, keep_near, is_data = (ir.Constant(word, flag) for flag in (0, 3, 1))
    builder.call(function, [builder.bitcast(address, byte), read, keep_near, is_data])
