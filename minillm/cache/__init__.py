"""KV caches: storage that outlives forwards. `cache.begin` returns the attend of one forward, `commit` advances."""

from minillm.cache.contiguous import ContiguousCache

__all__ = ["ContiguousCache"]
