"""KV caches: storage that outlives forwards. `cache.begin` returns the attend of one forward, `commit` advances.

Reading order: `contiguous` (a slab that is filled from the left), `static` (the same with addresses and shapes that
never change, for CUDA graphs).
"""

from minillm.cache.contiguous import ContiguousCache
from minillm.cache.static import StaticCache

__all__ = ["ContiguousCache", "StaticCache"]
