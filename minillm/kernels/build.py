"""The second gate: kernels built ahead of time for GPUs that needn't be there, and what the compiler says of them.

    built = build(some_build, 90)      # sm_90: H100, H200
    built.registers, built.spilled_bytes, built.shared_bytes, built.instructions

Triton ships the assembler it needs (ptxas), so that this works on any Linux machine. It catches what the interpreter
lets pass: shapes that no instruction has, tiles that don't fit, tensor cores that aren't used.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from minillm.kernels.gemm_tiles import shared_limit
from minillm.kernels.launch import is_interpreting

CAPABILITIES = (80, 90)  # A100; H100 and H200
# What is worth counting in the PTX, by the beginning of the instruction.
COUNTED = ("mma.sync", "wgmma.mma_async", "cp.async.cg", "cp.async.bulk.tensor")


@dataclass(frozen=True)
class Build:
    """One way to compile one kernel.

    signature  types of the arguments that aren't constants: "*fp16", "i32", "fp32", "tensordesc<fp16[64, 64]>"
    constants  values of the tl.constexpr arguments, and of others that are to be 1, say
    aligned    pointers and integers are multiples of 16, as torch's usually are: lets loads be wide
    expects    by compute capability: instructions of COUNTED that must be in the code
    """

    label: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    aligned: bool = True
    expects: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """What came out.

    registers      of a thread; 255 is the most
    spilled_bytes  of a thread's stack: registers that didn't fit and live in memory
    shared_bytes   of a program, and `shared_limit` of the device
    instructions   how often each of COUNTED stands in the code
    """

    label: str
    capability: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    shared_limit: int
    instructions: Mapping[str, int]
    missing: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.problem

    @property
    def problem(self) -> str:
        """Why the kernel wouldn't run, or not as intended; empty if it would."""
        if self.shared_bytes > self.shared_limit:
            return f"needs {self.shared_bytes} bytes of shared memory, sm_{self.capability} has {self.shared_limit}"
        return f"no {', '.join(self.missing)} in its code" if self.missing else ""


def build(wanted: Build, capability: int) -> Built:
    """Compile for sm_80 or sm_90. Raises ValueError where Triton interprets; the compiler's errors pass through."""
    if is_interpreting():
        raise ValueError("Triton interprets in this process and can't compile: ask processes.compiler()")
    names = wanted.kernel.arg_names
    if unknown := (wanted.signature.keys() | wanted.constants.keys()) ^ set(names):
        raise ValueError(f"{wanted.label}: arguments {sorted(unknown)} are unknown or neither typed nor constant")
    signature = {name: wanted.signature.get(name, "constexpr") for name in names}
    wide = [i for i, kind in enumerate(signature.values()) if kind.startswith("*") or kind in ("i32", "i64")]
    attributes = {(i,): [["tt.divisibility", 16]] for i in wide} if wanted.aligned else {}
    compiled = triton.compile(
        ASTSource(wanted.kernel, signature, dict(wanted.constants), attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": wanted.num_warps, "num_stages": wanted.num_stages},
    )
    registers, spilled_bytes = _resources(compiled.asm["cubin"])
    instructions = {name: compiled.asm["ptx"].count(name) for name in COUNTED}
    missing = tuple(name for name in wanted.expects.get(capability, ()) if not instructions[name])
    return Built(
        label=wanted.label,
        capability=capability,
        registers=registers,
        spilled_bytes=spilled_bytes,
        shared_bytes=compiled.metadata.shared,
        shared_limit=shared_limit(capability),
        instructions=instructions,
        missing=missing,
    )


def _resources(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of stack) of a thread, as cuobjdump reads them from the binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [_cuobjdump(), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump said something unexpected: {text}")
    return int(found.group(1)), int(found.group(2))


@cache
def _cuobjdump() -> str:
    return str(triton.knobs.nvidia.cuobjdump.path)
