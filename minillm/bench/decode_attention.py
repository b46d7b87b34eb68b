"""What `minillm bench decode-attention` measures: one new token of each sequence against a long cache.

A step reads all keys and values and does a few FLOPs with each, so its limit is the read bandwidth; where many heads
share a key (absorbed MLA), it can be arithmetic. Everything takes turns within a problem, probes included.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minillm.attention.dispatch import attention
from minillm.attention.flash_decoding import flash_decoding
from minillm.attention.naive import naive_attention
from minillm.attention.unified_max import flash_decoding_unified
from minillm.bench.attention_check import Absence, Attention, Maker, check, refuse
from minillm.bench.attention_peers import FLEX, SDPA, flex, sdpa
from minillm.bench.attention_race import Probes, Race, race
from minillm.bench.attention_shape import AttentionShape
from minillm.perf.device_probe import device_cache_bytes, device_memory_bytes

NAIVE, SPLITS, UNIFIED, CORES, ATTEND = "naive", "flash_decoding", "unified maximum", "decode_on_cpu", "attention()"
OURS = (NAIVE, SPLITS, UNIFIED, CORES, ATTEND)

HEADS = {
    "GQA": AttentionShape(1, 1, 1, num_heads=32, num_kv_heads=8, k_head_dim=128, v_head_dim=128),
    "MHA": AttentionShape(1, 1, 1, num_heads=32, num_kv_heads=32, k_head_dim=128, v_head_dim=128),
    # DeepSeek-V2-Lite: 16 heads share one latent of 512 numbers and 64 rotated ones.
    "MLA": AttentionShape(1, 1, 1, num_heads=16, num_kv_heads=1, k_head_dim=576, v_head_dim=512, v_from_k=True),
}
"""Heads by name: Llama-3-8B's, as many KV heads as heads, absorbed MLA. Other sizes are put in."""


@dataclass(frozen=True)
class Plan:
    """How much is measured: every kind of heads with every batch and every context whose cache fits.

    cache_bytes  the largest cache of keys and values; 0 = an eighth of the memory, on a CPU 2 GiB at most
    The rest as in `minillm.bench.attention.Plan`.
    """

    heads: tuple[str, ...] = ("GQA", "MHA", "MLA")
    batches: tuple[int, ...] = (1, 4, 16)
    contexts: tuple[int, ...] = (1024, 4096, 16384, 65536)
    rounds: int = 12
    cache_bytes: int = 0
    block_s: float = 0.01
    probe_bytes: int = 512 * 2**20
    probe_s: float = 0.01
    probe_size: int = 8192
    compiles: bool = True


GPU = Plan(block_s=0.02, probe_bytes=2 * 2**30)
QUICK = Plan(
    heads=("GQA", "MLA"),
    batches=(1, 2),
    contexts=(64,),
    rounds=2,
    block_s=0.0,
    probe_bytes=4 * 2**20,
    probe_s=0.001,
    probe_size=128,
    compiles=False,
)


def problems(plan: Plan, dtype: torch.dtype, device: torch.device) -> dict[str, list[AttentionShape]]:
    """By name of heads, batch by batch, the problems whose keys and values fit. Raises ValueError for unknown heads."""
    for name in plan.heads:
        if name not in HEADS:
            raise ValueError(f"heads must be of {', '.join(HEADS)}, got {name!r}")
    most = plan.cache_bytes or most_cache_bytes(device)
    found = {}
    for name in plan.heads:
        shapes = [replace(HEADS[name], batch=b, k_len=k_len) for b in plan.batches for k_len in plan.contexts]
        found[name] = [shape for shape in shapes if shape.kv_bytes(dtype.itemsize) <= most]
    return found


def most_cache_bytes(device: torch.device) -> int:
    """The largest cache that is measured unless a plan says otherwise."""
    eighth = device_memory_bytes(device) // 8
    return eighth if device.type == "cuda" else min(2 * 2**30, eighth)


def fits_last_cache(shape: AttentionShape, bytes_per_number: int, device: torch.device) -> bool:
    """Whether keys and values fit the processor's last cache: a call after another needn't read memory."""
    return shape.kv_bytes(bytes_per_number) <= device_cache_bytes(device)


def candidates(plan: Plan) -> dict[str, Maker]:
    """Everyone who may take part, ours first. `attention()` is what a cache's attend calls."""
    return {
        NAIVE: _ours(naive_attention),
        SPLITS: _ours(flash_decoding),
        UNIFIED: _ours(flash_decoding_unified),
        CORES: _on_cores,
        ATTEND: lambda _shape, _device: attention,
        SDPA: sdpa(),
        FLEX: flex() if plan.compiles else refuse("compiling it takes longer than all the rest"),
    }


def check_all(shape: AttentionShape, dtype: torch.dtype, device: torch.device, plan: Plan) -> dict[str, Absence]:
    """Who refuses such heads, or computes a small problem wrong."""
    return check(candidates(plan), shape, dtype, device, backward=False)


def measure(
    shape: AttentionShape,
    dtype: torch.dtype,
    device: torch.device,
    plan: Plan,
    probes: Probes,
    *,
    absent: Mapping[str, Absence] | None = None,
    on_round: Callable[[], object] = lambda: None,
) -> Race:
    """Times of one problem, without those already `absent` (see `check_all`)."""
    left = dict(absent or {})
    if NAIVE not in left and (reason := naive_is_too_much(shape, device)):
        left[NAIVE] = Absence(reason)
    return race(
        candidates(plan),
        shape,
        dtype,
        device,
        probes,
        rounds=plan.rounds,
        block_s=plan.block_s,
        bound_by_compute=False,
        absent=left,
        on_round=on_round,
    )


def naive_is_too_much(shape: AttentionShape, device: torch.device) -> str:
    """Why naive attention isn't timed: it copies keys and values to every head, in float32. "" if it is."""
    need = 4 * shape.batch * shape.k_len * shape.num_heads * (shape.k_head_dim + shape.v_head_dim)
    return f"its copies of K and V need {need / 2**30:.1f} GiB" if 16 * need > device_memory_bytes(device) else ""


def _ours(function: Callable[..., tuple[Tensor, ...]]) -> Maker:
    def make(_shape: AttentionShape, _device: torch.device) -> Attention:
        return lambda q, k, v: function(q, k, v)[0]

    return make


def _on_cores(shape: AttentionShape, device: torch.device) -> Attention:
    if device.type != "cpu":
        raise ValueError("it is for CPU cores")
    if shape.v_from_k:
        raise ValueError("it wants v apart from k")
    if importlib.util.find_spec("numba") is None:
        raise ValueError("it needs numba: pip install minillm[fast]")
    from minillm.attention.cpu_decoding import decode_on_cpu

    return lambda q, k, v: decode_on_cpu(q, k, v)[0]
