"""Matrix products on a GPU, thread by thread: five rungs from naive to register tiles, in CUDA-Python.

A kernel is a plain function over the names of `numba.cuda`, written once. `simulate_matmul` runs it here and counts
what each warp asks of memory; `simt_matmul` compiles it with numba for a GPU.

Reading order: `naive`, `coalesced`, `shared_tile`, `register_column`, `register_tile`, then `ladder` (the rungs and how
they run) and `transpose` (bank conflicts).
"""

from minillm.kernels.simt.ladder import SIMT_LADDER, SimtRung, is_simulated, simt_matmul, simulate_matmul
from minillm.kernels.simt.transpose import transpose

__all__ = ["SIMT_LADDER", "SimtRung", "is_simulated", "simt_matmul", "simulate_matmul", "transpose"]
