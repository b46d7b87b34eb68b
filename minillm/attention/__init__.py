"""Attention as pure functions `q, k, v -> (out, lse)`, and the stateless attend built on them.

Reading order:

    naive            the oracle: by the book, with the whole score matrix
    online_softmax   softmax in fewer passes, and the state (m, l, acc) that makes tiles possible
    merge            attention over two sets of keys from the attention over each
    tiles            which tiles of the score matrix are skipped, which are masked
    flash_v1         FlashAttention: outer loop over K and V
    flash_v2         FlashAttention-2: outer loop over Q
    flash_backward   gradients with the weights computed again
    flash            the attention to call for prefill and training
    splits           how many splits a decode step is worth
    flash_decoding   few queries, many keys, split among the processors
    unified_max      FlashDecoding++: splits without a maximum, and the fallback
    dispatch         which implementation an attend calls
    full             the attend of a whole sequence

Imported by name only:

    metered          naive, v1, v2 on the memory-hierarchy meter, with metered_flash, sram_budget, metered_decoding
    cpu_decoding     FlashDecoding on CPU cores, a split a thread (needs numba), with the products of `cpu_tiles`
"""

from minillm.attention.flash import flash_attention
from minillm.attention.flash_decoding import flash_decoding
from minillm.attention.flash_v1 import flash_attention_v1
from minillm.attention.flash_v2 import flash_attention_v2
from minillm.attention.full import FullAttend
from minillm.attention.merge import merge_many, merge_states
from minillm.attention.naive import naive_attention
from minillm.attention.online_softmax import OnlineSoftmax, online_attention, online_softmax, safe_softmax
from minillm.attention.splits import assign_units, choose_num_splits, split_keys
from minillm.attention.unified_max import choose_phi, flash_decoding_unified, safe_band, share_in_band

__all__ = [
    "FullAttend",
    "OnlineSoftmax",
    "assign_units",
    "choose_num_splits",
    "choose_phi",
    "flash_attention",
    "flash_attention_v1",
    "flash_attention_v2",
    "flash_decoding",
    "flash_decoding_unified",
    "merge_many",
    "merge_states",
    "naive_attention",
    "online_attention",
    "online_softmax",
    "safe_band",
    "safe_softmax",
    "share_in_band",
    "split_keys",
]
