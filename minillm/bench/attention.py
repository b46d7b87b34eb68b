"""What `minillm bench attention` measures: attention of a prompt to itself, ours and torch's, length by length.

Everything takes turns within a length (see `compare`), with readings of two probes in each round: how fast the machine
multiplies, and how fast it reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.attention.flash import flash_attention
from minillm.attention.flash_v1 import flash_attention_v1
from minillm.attention.flash_v2 import flash_attention_v2
from minillm.attention.naive import naive_attention
from minillm.bench.attention_check import Absence, Attention, Maker, check, refuse
from minillm.bench.attention_peers import BACKENDS, FLEX, SDPA, flex, sdpa
from minillm.bench.attention_race import Probes, Race, race
from minillm.bench.attention_shape import AttentionShape
from minillm.perf.device_probe import device_memory_bytes

NAIVE, V1, V2, FLASH = "naive", "flash v1", "flash v2", "flash_attention"
OURS = (NAIVE, V1, V2, FLASH)
MOST_TILES = 5000  # of a loop in Python: a second on a CPU, and mostly launches on a GPU


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    block_s      a short call is repeated within one timing until it lasts about this long
    probe_bytes  read by the read probe; `probe_s` is the length of a reading of the FMA probe, `probe_size` the size of
                 the matrices that a GPU multiplies instead
    compiles     whether FlexAttention is compiled, which takes seconds for each length
    """

    lengths: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    rounds: int = 12
    block_s: float = 0.01
    probe_bytes: int = 512 * 2**20
    probe_s: float = 0.01
    probe_size: int = 8192
    compiles: bool = True


GPU = Plan(lengths=(1024, 2048, 4096, 8192, 16384, 32768), block_s=0.02, probe_bytes=2 * 2**30)
QUICK = Plan(
    lengths=(64, 96), rounds=2, block_s=0.0, probe_bytes=4 * 2**20, probe_s=0.001, probe_size=128, compiles=False
)


def candidates(plan: Plan) -> dict[str, Maker]:
    """Everyone who may take part, ours first."""
    makers: dict[str, Maker] = {
        NAIVE: _ours(naive_attention),
        V1: _ours(flash_attention_v1),
        V2: _ours(flash_attention_v2),
        FLASH: _ours(flash_attention),
        SDPA: sdpa(),
    }
    makers |= {name: sdpa(backend) for name, backend in BACKENDS.items()}
    makers[FLEX] = flex() if plan.compiles else refuse("compiling it takes longer than all the rest")
    return makers


def measure(
    shape: AttentionShape,
    dtype: torch.dtype,
    device: torch.device,
    plan: Plan,
    probes: Probes,
    *,
    backward: bool = False,
    absent: Mapping[str, Absence] | None = None,
    on_round: Callable[[], object] = lambda: None,
) -> Race:
    """Times and memory at one length, without those already `absent` (see `check_all`) and those it is too much for."""
    left = dict(absent or {})
    for name in (NAIVE, "SDPA math", V1, V2):
        if name not in left and (reason := too_much(name, shape, device, backward=backward)):
            left[name] = Absence(reason)
    return race(
        candidates(plan),
        shape,
        dtype,
        device,
        probes,
        rounds=plan.rounds,
        block_s=plan.block_s,
        backward=backward,
        watch_memory=True,
        absent=left,
        on_round=on_round,
    )


def check_all(
    shape: AttentionShape, dtype: torch.dtype, device: torch.device, plan: Plan, *, backward: bool = False
) -> dict[str, Absence]:
    """Who refuses shapes of this kind, or computes a small one wrong."""
    return check(candidates(plan), shape, dtype, device, backward=backward)


def too_much(name: str, shape: AttentionShape, device: torch.device, *, backward: bool = False) -> str:
    """Why a length isn't for that candidate; "" if it is.

    The whole score matrix is held in float32 about four times on the way, eight times with gradients. It may take a
    quarter of the memory.
    """
    if name in (NAIVE, "SDPA math"):
        need, memory = 4 * shape.scores * (8 if backward else 4), device_memory_bytes(device)
        return f"the score matrix needs about {need / 2**30:.1f} GiB" if 4 * need > memory else ""
    if name in (V1, V2):
        tiles = math.ceil(shape.q_len / 64) * math.ceil(shape.k_len / 64)
        return f"{tiles:,} tiles are too many for a loop in Python" if tiles > MOST_TILES else ""
    return ""


def _ours(function: Callable[..., tuple[Tensor, Tensor]]) -> Maker:
    def make(shape: AttentionShape, _device: torch.device) -> Attention:
        return lambda q, k, v: function(q, k, v, causal=shape.causal, window=shape.window)[0]

    return make
