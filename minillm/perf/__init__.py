"""What decoding must move, and what this machine can move.

Reading order: `traffic` (bytes per decoded token), `probe` (the read bandwidth reached here), `machine`
(a description).
"""
