"""What is to be deployed and what it occupies: memory of each GPU, the largest batch, what would make it fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from minillm.perf.hardware import Hardware
from minillm.perf.model_shape import LayerShape, ModelShape
from minillm.perf.precision import FP16, Precision, stored_kv_bytes, stored_weight_bytes
from minillm.perf.sharding import shard

MOST_SEQUENCES = 2**20


@dataclass(frozen=True)
class Assumptions:
    """What no data sheet says. All can be changed; `minillm plan` prints those it used.

    mfu            share of peak FLOP/s that compute-bound operations reach. 0.6: TensorRT-LLM 0.5 prefills 2048 tokens
                   of Llama-7B on an A100 in 133 ms and of the 70B on four in 377 ms, 0.67 and 0.61 of 312 TFLOP/s
    mbu            share of bandwidth that memory-bound operations reach. 0.7: gpt-fast decodes Llama-2-7B on an A100
                   at 104.9 tokens/s, 1397 GB/s of 2039
    all_reduce_s   latency of an all-reduce beside its bytes. 20 µs: gpt-fast's times on 2 and 8 A100s exceed those that
                   were shared out evenly by 18 and 29 µs for each of Llama-2-7B's 64
    memory_share   of memory that weights, cache and workspace may take; the rest is the runtime's (vLLM's default, 0.9)
    prefill_chunk  most prompt tokens in one forward, which bounds the workspace

    Figures: github.com/NVIDIA/TensorRT-LLM docs/source/performance.md, github.com/pytorch-labs/gpt-fast README.md,
    docs.vllm.ai (gpu_memory_utilization).
    """

    mfu: float = 0.6
    mbu: float = 0.7
    all_reduce_s: float = 20e-6
    memory_share: float = 0.9
    prefill_chunk: int = 8192

    def __post_init__(self) -> None:
        for name in ("mfu", "mbu", "memory_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        if not self.all_reduce_s >= 0:
            raise ValueError(f"all_reduce_s must be at least 0, got {self.all_reduce_s}")
        if self.prefill_chunk < 1:
            raise ValueError(f"prefill_chunk must be at least 1, got {self.prefill_chunk}")


DEFAULTS = Assumptions()


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU."""

    weights: int
    kv_cache: int
    workspace: int
    budget: int

    @property
    def left(self) -> int:
        """Negative if it doesn't fit."""
        return self.budget - self.weights - self.kv_cache - self.workspace

    @property
    def fits(self) -> bool:
        return self.left >= 0


@dataclass(frozen=True)
class Deployment:
    """A model on `tp_size` GPUs that share each layer, and `batch_size` requests of `prompt_len` + `output_len` tokens.

    Raises ValueError for numbers below 1, for layers that `tp_size` GPUs can't share evenly, for a number format that
    the hardware doesn't compute in, and for more tokens than learned positions.
    """

    shape: ModelShape
    hardware: Hardware
    batch_size: int
    prompt_len: int
    output_len: int
    precision: Precision = FP16
    tp_size: int = 1
    assumptions: Assumptions = DEFAULTS

    def __post_init__(self) -> None:
        for name in ("batch_size", "prompt_len", "output_len", "tp_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.tp_size > 1 and not self.hardware.link_bytes_per_s:
            raise ValueError(f"{self.hardware.name} has no link to a second one: tp_size must be 1, got {self.tp_size}")
        if self.shape.num_positions and self.seq_len > self.shape.max_seq_len:
            raise ValueError(f"{self.shape.name} knows {self.shape.max_seq_len} positions, got {self.seq_len} tokens")
        self.hardware.peak(self.number_format)  # these two raise what is to be raised
        shard(self.shape, self.tp_size)

    @property
    def seq_len(self) -> int:
        """Tokens of a finished sequence."""
        return self.prompt_len + self.output_len

    @property
    def number_format(self) -> str:
        """What the matrix units compute in."""
        return self.precision.number_format(self.hardware)

    @cached_property
    def rank_shape(self) -> ModelShape:
        """What one GPU holds."""
        return shard(self.shape, self.tp_size)

    @property
    def memory(self) -> Memory:
        """At the end of the output, when the cache is fullest."""
        return Memory(
            weights=stored_weight_bytes(self.rank_shape, self.precision),
            kv_cache=self.batch_size * stored_kv_bytes(self.rank_shape, self.precision, self.seq_len),
            workspace=self._workspace_bytes(),
            budget=int(self.assumptions.memory_share * self.hardware.memory_bytes),
        )

    def _workspace_bytes(self) -> int:
        """Activations alive at once in the largest forward, about, and its logits in fp32."""
        shape = self.rank_shape
        num_tokens = min(self.assumptions.prefill_chunk, self.batch_size * self.prompt_len)
        widest = max(_live_numbers(layer) for layer in set(shape.layers))
        logits = 4 * self.batch_size * shape.vocab_size
        return num_tokens * widest * self.precision.activation_bytes + logits

    def largest_batch(self) -> int:
        """The most requests of these lengths that fit at once; 0 if not even one does."""
        if not replace(self, batch_size=1).memory.fits:
            return 0
        too_many = 2
        while too_many < MOST_SEQUENCES and replace(self, batch_size=too_many).memory.fits:
            too_many *= 2
        enough = too_many // 2
        while too_many - enough > 1:
            half = (enough + too_many) // 2
            if replace(self, batch_size=half).memory.fits:
                enough = half
            else:
                too_many = half
        return enough

    def ways_to_fit(self) -> list[str]:
        """Single changes after which it would fit, as options of `minillm plan`, the mildest of each kind; if none
        does, the first combination of 4-bit weights, an 8-bit cache and more GPUs.
        """
        ways = {"--batch": str(batch)} if 0 < (batch := self.largest_batch()) < self.batch_size else {}
        for option, value, changed in self._single_changes():
            if changed.memory.fits:
                ways.setdefault(option, value)
        if ways:
            return [f"{option} {value}" for option, value in ways.items()]
        smallest = replace(self.precision, bits=min(4, self.precision.bits), kv_bits=8)
        for tp_size in (self.tp_size, *self._larger_groups()):
            changed = replace(self, precision=smallest, tp_size=tp_size)
            if changed.memory.fits:
                more = f" --tp {tp_size}" if tp_size > self.tp_size else ""
                return [f"--bits {smallest.bits} --kv-bits 8{more}"]
        return []

    def _single_changes(self) -> Iterator[tuple[str, str, Deployment]]:
        if self.precision.kv_bytes > 1:
            yield "--kv-bits", "8", replace(self, precision=replace(self.precision, kv_bits=8))
        for bits in (16, 8, 4):
            if bits < self.precision.bits:
                yield "--bits", str(bits), replace(self, precision=replace(self.precision, bits=bits))
        for tp_size in self._larger_groups():
            yield "--tp", str(tp_size), replace(self, tp_size=tp_size)

    def _larger_groups(self) -> Iterator[int]:
        """Numbers of GPUs in one server that can share the layers."""
        for tp_size in (2, 4, 8):
            if tp_size <= self.tp_size or not self.hardware.link_bytes_per_s:
                continue
            try:
                shard(self.shape, tp_size)
            except ValueError:
                continue
            yield tp_size


def _live_numbers(layer: LayerShape) -> int:
    """Activations of one token in a block's widest moment: the residual, its norm, a result, and what is between."""
    attention, ffn = layer.attention, layer.ffn
    heads = attention.num_heads * (attention.k_head_dim + attention.v_head_dim)
    keys = attention.num_kv_heads * (attention.k_head_dim + attention.v_head_dim)
    width = ffn.intermediate_size * (ffn.num_experts_per_token or 1) + ffn.shared_intermediate_size
    return 3 * layer.hidden_size + max(heads + keys, (3 if ffn.is_gated else 2) * width)
