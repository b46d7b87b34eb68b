"""The formulas of the napkin, one line each. Units are in the names; sizes are in bytes, 1 GiB = 2³⁰ bytes.

Symbols: b sequences, s prompt tokens, n output tokens, L layers, h hidden size, m width of the feed-forward network.
`minillm.perf.cost` counts the same things for any `config.json`; these hold for a GPT-3-like block: as many KV heads as
heads, h numbers in all heads together, a network of two matrices.
"""

from __future__ import annotations

# ---- capacity


def block_weight_bytes(num_layers: int, hidden_size: int, intermediate_size: int, *, number_bytes: int = 2) -> int:
    """L(8h² + 4hm) bytes in fp16: wq, wk, wv, wo are 4h² numbers, the network 2hm. Without embeddings, biases, norms.

    OPT-175B: L = 96, h = 12288, m = 4h: 324 GiB (FlexGen, Sheng et al. 2023, section 3, calls it 325 GB).
    """
    return number_bytes * num_layers * (4 * hidden_size**2 + 2 * hidden_size * intermediate_size)


def kv_cache_bytes(
    batch_size: int, num_layers: int, hidden_size: int, prompt_len: int, output_len: int, *, number_bytes: int = 2
) -> int:
    """4 · b · L · h · (s + n) bytes in fp16: K and V, 2 bytes each, of every token.

    OPT-175B, 512 sequences of 512 + 32 tokens: 1.195 TiB, 3.8 times its weights (FlexGen, section 3).
    """
    return 2 * number_bytes * batch_size * num_layers * hidden_size * (prompt_len + output_len)


def kv_bytes_per_token(num_layers: int, num_kv_heads: int, head_dim: int, *, number_bytes: int = 2) -> int:
    """2 · L · KV heads · head size numbers. Llama-2-7B: 512 KiB; Llama-3-8B, with 8 KV heads for 32: 128 KiB."""
    return 2 * number_bytes * num_layers * num_kv_heads * head_dim


# ---- intensity


def gemm_flops(m: int, n: int, k: int) -> int:
    """2MNK: each of the M × N results is K multiplications and K additions."""
    return 2 * m * n * k


def gemm_bytes(m: int, n: int, k: int, *, number_bytes: int = 2) -> int:
    """bytes · (MK + KN + MN): both inputs read once and the result written once, which is the least possible."""
    return number_bytes * (m * k + k * n + m * n)


def gemm_intensity(m: int, n: int, k: int, *, number_bytes: int = 2) -> float:
    """FLOPs a byte of an (M, K) by (K, N) product: 2MNK / (bytes · (MK + KN + MN)). About M for few rows in fp16."""
    return gemm_flops(m, n, k) / gemm_bytes(m, n, k, number_bytes=number_bytes)


def decode_attention_intensity(num_heads: int, num_kv_heads: int, *, number_bytes: int = 2) -> float:
    """FLOPs for each byte of K and V read while decoding: every number meets the heads of its group, 2 FLOPs each.

    Neither the batch nor the sequence is in it: 1 for multi-head attention in fp16, 4 for Llama-3-8B.
    """
    return 2 * num_heads / num_kv_heads / number_bytes


def ridge_intensity(flops_per_s: float, bytes_per_s: float) -> float:
    """FLOPs a byte at which computing takes as long as moving. Below it memory is the limit, above it arithmetic."""
    return flops_per_s / bytes_per_s


# ---- mixture of experts


def experts_touched(num_experts: int, num_experts_per_token: int, num_tokens: int) -> float:
    """Distinct experts that T tokens visit, E(1 − (1 − k/E)^T) on average, if routing is uniform and independent."""
    return num_experts * (1 - (1 - num_experts_per_token / num_experts) ** num_tokens)


# ---- between processors


def all_reduce_bytes(num_tokens: int, hidden_size: int, tp_size: int, *, number_bytes: int = 2) -> float:
    """Bytes that each of `tp_size` ranks sends for one ring all-reduce: 2(p − 1)/p of the b · s · h numbers summed."""
    return 2 * (tp_size - 1) / tp_size * num_tokens * hidden_size * number_bytes


def compute_to_communication_ratio(flops: float, communicated_bytes: float) -> float:
    """CCR: FLOPs for each byte that has to cross a link."""
    return flops / communicated_bytes


def required_link_bytes_per_s(flops_per_s: float, ccr: float) -> float:
    """The link that arithmetic at `flops_per_s` keeps busy. More than the hardware has: communication is the limit."""
    return flops_per_s / ccr


# ---- inside the processor


def kv_bytes_loaded_by_head(
    batch_size: int, seq_len: int, num_heads: int, head_dim: int, *, number_bytes: int = 2
) -> int:
    """Bytes a layer of decode attention loads through L2 when every query head loads its K and V on its own.

    Grouped queries shrink what memory holds and L2 gets from it, by num_heads / num_kv_heads, and not this: such a
    kernel is bound by L2. Loading a KV head once for its whole group mends it.
    """
    return 2 * number_bytes * batch_size * seq_len * num_heads * head_dim
