"""Attention as pure functions `q, k, v -> (out, lse)`, and the stateless attend built on them.

Reading order: `naive` (the oracle), `dispatch` (which implementation to call), `full` (the attend of a whole sequence).
"""

from minillm.attention.full import FullAttend
from minillm.attention.naive import naive_attention

__all__ = ["FullAttend", "naive_attention"]
