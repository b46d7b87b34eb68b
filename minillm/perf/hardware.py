"""What a processor can do at most: FLOP/s for each number format, bytes/s, bytes of memory.

    find_hardware("h100").peak("bf16")        989.4e12 FLOP/s
    find_hardware("A10").bytes_per_s          600e9
    this_machine()                            this CPU, measured now

The table itself, with a source for every figure, is `minillm.perf.gpus`. Peaks are those of dense matrices: data sheets
print twice as much "with sparsity". Where they come from can be computed, for the A10 (Ampere, 2021):

    peak_flops_per_s(2, 9216, 1.695e9)        31.2e12: 2 FLOPs a clock (one fused multiply-add) · cores · clock
    peak_bytes_per_s(6.251e9, 384)            600e9: transfers a second on each of 384 wires, 8 wires to a byte
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

GIB = 2**30
FORMATS = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8")


@dataclass(frozen=True)
class Peaks:
    """FLOP/s (operations/s for int8) of dense matrix products; None where the hardware has no such units."""

    fp32: float | None = None
    tf32: float | None = None
    fp16: float | None = None
    bf16: float | None = None
    fp8: float | None = None
    int8: float | None = None


@dataclass(frozen=True)
class Source:
    """Where figures were read: `figures` says which."""

    figures: str
    title: str
    url: str


@dataclass(frozen=True)
class Hardware:
    """One processor and its memory.

    peaks                see `Peaks` and `peak`
    bytes_per_s          of its main memory: HBM, GDDR, or a CPU's DRAM
    memory_bytes         its size. The "GB" of a GPU's name count 2³⁰ bytes here; a card reports up to 6 % less
    num_cores, clock_hz  fp32 units and the clock that the fp32 peak holds at: 2 · num_cores · clock_hz
    num_sms              streaming multiprocessors; a CPU's threads
    shared_memory_bytes  that a kernel can use of one SM; 0 on a CPU
    l2_bytes             the last cache; None where its size is not published
    l2_bytes_per_s       None where not published
    link_bytes_per_s     to the other GPUs of a server, in one direction; 0 = nothing to connect
    """

    name: str
    peaks: Peaks
    bytes_per_s: float
    memory_bytes: int
    num_sms: int
    num_cores: int | None = None
    clock_hz: float | None = None
    shared_memory_bytes: int = 0
    l2_bytes: int | None = None
    l2_bytes_per_s: float | None = None
    link_bytes_per_s: float = 0.0
    sources: tuple[Source, ...] = ()

    def peak(self, number_format: str = "bf16") -> float:
        """FLOP/s in that format, one of `FORMATS`. Raises ValueError where the hardware has no units for it."""
        found: float | None = getattr(self.peaks, number_format) if number_format in FORMATS else None
        if found is None:
            known = [field.name for field in fields(Peaks) if getattr(self.peaks, field.name) is not None]
            raise ValueError(f"{self.name} computes in {', '.join(known)}; got {number_format!r}")
        return found

    def ridge(self, number_format: str = "bf16") -> float:
        """FLOPs for each byte moved above which the arithmetic units, and no longer memory, are the limit."""
        return self.peak(number_format) / self.bytes_per_s


def peak_flops_per_s(flops_per_clock: float, num_cores: int, clock_hz: float) -> float:
    """FLOP/s when every core is busy in every clock. A fused multiply-add counts as 2 FLOPs."""
    return flops_per_clock * num_cores * clock_hz


def peak_bytes_per_s(clock_hz: float, bus_bits: int, transfers_per_clock: int = 2) -> float:
    """Bytes/s of a memory bus: double data rate moves 2 bits a clock on every wire.

    A10: GDDR6 at 6.251 GHz on 384 wires, 2 · 6.251e9 · 384 / 8 = 600e9.
    """
    return clock_hz * transfers_per_clock * bus_bits / 8


def find_hardware(name: str) -> Hardware:
    """The GPU of that name: "h100", "H100-PCIe", "NVIDIA A100 80GB", "4090". The first of the table if several fit.

    Raises ValueError that lists the known names.
    """
    from minillm.perf.gpus import GPUS

    wanted = re.sub(r"nvidia|geforce|tensor ?core|gpu|[^a-z0-9]", "", name.lower())
    for hardware in GPUS:
        if re.fullmatch(_pattern(hardware.name), wanted):
            return hardware
    raise ValueError(f"no hardware {name!r} in the table; it has {', '.join(gpu.name for gpu in GPUS)}")


def this_machine(*, num_threads: int | None = None, probe_bytes: int = 512 * 2**20) -> Hardware:
    """This CPU, measured on the spot (about a second): an FMA probe and a read probe on `num_threads` threads
    (None = torch's number).

    fp16 and bf16 get the peak of fp32: the CPU code here widens them and computes in fp32. Figures are what was reached
    now, on a machine as busy as it is now. Raises ValueError without numba.
    """
    from minillm.perf.fma_probe import FmaProbe
    from minillm.perf.machine import cpu_name, last_cache_bytes, memory_bytes
    from minillm.perf.probe import ReadProbe

    flops_per_s = FmaProbe(num_threads).flops_per_s()
    probe = ReadProbe(probe_bytes, num_threads=num_threads)
    return Hardware(
        name=cpu_name() or "this CPU",
        peaks=Peaks(fp32=flops_per_s, fp16=flops_per_s, bf16=flops_per_s),
        bytes_per_s=probe.bytes_per_s(),
        memory_bytes=memory_bytes() or 0,
        num_sms=probe.num_threads,
        l2_bytes=last_cache_bytes(),
    )


def _pattern(name: str) -> str:
    """What may be typed for "A100 SXM 80GB": the word with the model's number, the rest if wanted, in any order."""
    words = name.lower().split()
    model = next(word for word in words if any(character.isdigit() for character in word))
    others = [word for word in words if word != model]
    rest = "|".join({"sxm": "sxm[0-9]?"}.get(word, re.sub(r"gb$", "(?:gb?)?", word)) for word in others)
    return f"(?:{rest})*{model}(?:{rest})*" if rest else model
