"""Matrix products on the CPU.

Reading order: `gemv` (a few rows times a matrix, the product of decoding) with `numbers` and `threads` under it, then
`fused` (half a transformer block in one call). All need numba and are imported by name only.
"""
