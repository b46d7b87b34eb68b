"""Numbers inside numba: memory at an address, bfloat16 as float32 and back, the freedoms a sum may take."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic, overload

# A sum may be reordered, or LLVM can't keep several partial sums; NaN and infinity must stay what they are.
FASTMATH = {"reassoc", "contract", "nsz"}


@intrinsic
def pointer(typing_context, address):  # type: ignore[no-untyped-def]
    """An integer as a pointer: the one thing that numba has no spelling for."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.voidptr(types.uintp), codegen


def widen(value: Any) -> Any:
    """A stored number as float32; bfloat16, stored as uint16, is the upper half of one."""


@overload(widen, strict=False)
def widen_overload(value: Any) -> Any:
    if value == types.uint16:
        return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    return lambda value: value


def narrow(value: Any, like: Any) -> Any:
    """A float32 as a number of the kind of `like`; to bfloat16 it rounds to nearest, ties to even."""


@overload(narrow, strict=False)
def narrow_overload(value: Any, like: Any) -> Any:
    if like != types.uint16:
        return lambda value, like: value

    def to_bfloat16(value: Any, like: Any) -> Any:
        bits = np.float32(value).view(np.uint32)
        if value != value:  # rounding could carry a NaN's mantissa into infinity
            return np.uint16((bits >> np.uint32(16)) | np.uint32(0x40))
        return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

    return to_bfloat16
