"""What decoding must move and compute, and what this machine can move.

Reading order: `traffic` (bytes per decoded token), `flops` (operations counted while a function runs), `probe` (the
read bandwidth reached here), `machine` (a description).
"""
