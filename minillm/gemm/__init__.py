"""Matrix products on the CPU.

Reading order: `threads` (starting numba's), `gemv` (a few rows times a matrix, the product of decoding).
Both need numba and are imported by name only.
"""
