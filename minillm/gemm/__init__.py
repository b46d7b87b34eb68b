"""Matrix products on the CPU: `LADDER`, from three loops to what the hardware can do, and kernels for decoding.

Reading order: `ladder` (the rungs and what each should gain), then one loop nest a file: `naive`, `reordered`,
`tiled`, `tile` (how large a tile registers hold), `registers`, `packed`, `threaded`; under them `micro_kernel`,
`vectors` (vector instructions inside numba) and `matrices` (tensors in and out). Products of a few rows: `gemv` with
`numbers` and `threads` under it, `flat`, and `fused` (half a transformer block in one call).

`ladder`, `tile` and `matrices` need nothing but torch; the others need numba and are imported when they are used.
"""

from minillm.gemm.ladder import LADDER, Rung

__all__ = ["LADDER", "Rung"]
