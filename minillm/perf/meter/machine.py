"""The machine: HBM with named tensors in it, kernels that are launched on it, and what all of them moved."""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.perf.meter.cache import TileCache
from minillm.perf.meter.counts import Counts, add_up, in_bytes, report
from minillm.perf.meter.hbm import HbmTensor
from minillm.perf.meter.sram import Program
from minillm.perf.meter.trace import Event


class Meter:
    """A simulated GPU memory that counts.

    sram_bytes      capacity of the SRAM that each program has for itself
    dtype           of the numbers that floating-point tensors and tiles really hold
    stored_as       the dtype that their bytes are counted in; None = dtype. Accounting only: float64 numbers counted
                    as float16 are still float64 numbers
    register_tile   (rows, columns) of a product worked on at a time, see `Program.matmul`
    register_bytes  capacity of a program's registers; None = not limited
    hbm_bytes       capacity of HBM; None = not limited
    cache_bytes     size of a cache between HBM and the programs, see `TileCache`; 0 = none
    trace           keep a list of events in `meter.trace`, for pictures; without it `meter.trace` is None

    Raises ValueError for capacities below 1.
    """

    def __init__(
        self,
        sram_bytes: int,
        *,
        dtype: torch.dtype = torch.float32,
        stored_as: torch.dtype | None = None,
        register_tile: tuple[int, int] = (1, 1),
        register_bytes: int | None = None,
        hbm_bytes: int | None = None,
        cache_bytes: int = 0,
        trace: bool = False,
    ) -> None:
        capacities = {"sram_bytes": sram_bytes, "register_bytes": register_bytes, "hbm_bytes": hbm_bytes}
        for name, capacity in capacities.items():
            if capacity is not None and capacity < 1:
                raise ValueError(f"expected {name} of at least 1, got {capacity}")
        if not dtype.is_floating_point:
            raise ValueError(f"expected a floating-point dtype to compute in, got {dtype}")
        self.sram_bytes = sram_bytes
        self.register_bytes = register_bytes
        self.hbm_bytes = hbm_bytes
        self.dtype = dtype
        self.stored_as = stored_as or dtype
        self.register_tile = register_tile
        self.cache = TileCache(cache_bytes) if cache_bytes else None
        self.trace: list[Event] | None = [] if trace else None
        self.tensors: dict[str, HbmTensor] = {}
        self.kernels: dict[str, Counts] = {}
        self._running: Kernel | None = None

    def hbm(self, name: str, data: Tensor, *, stored_as: torch.dtype | None = None) -> HbmTensor:
        """Put a copy of a torch tensor into HBM; moving it there counts nothing.

        data       of the meter's dtype, or of integers or booleans (tables, masks), on the CPU
        stored_as  the dtype that its bytes are counted in; None = the meter's, or the data's own for integers
        """
        if not isinstance(data, Tensor):
            raise ValueError(f"expected a torch tensor for {name}, got a {type(data).__name__}")
        if data.is_floating_point() and data.dtype != self.dtype:
            raise ValueError(f"expected {name} as {self.dtype}, the meter's dtype, got {data.dtype}")
        own = self.stored_as if data.is_floating_point() else data.dtype
        return self._place(name, data.detach().to("cpu", copy=True), stored_as or own, is_written=True)

    def empty(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype | None = None,
        stored_as: torch.dtype | None = None,
    ) -> HbmTensor:
        """Allocate a tensor in HBM that programs write. Reading what none of them has written raises ValueError.

        dtype, stored_as  as for `hbm`; by default the meter's
        """
        own = dtype or self.dtype
        data = torch.zeros(shape, dtype=own)
        width = stored_as or (self.stored_as if own.is_floating_point else own)
        return self._place(name, data, width, is_written=False)

    def free(self, tensor: HbmTensor) -> None:
        """Give the HBM of a tensor back; its counts stay in the kernels' and leave the table of tensors."""
        self._refuse_launched()
        if self.tensors.get(tensor.name) is not tensor:
            raise ValueError(f"{tensor.name} is no tensor of this meter")
        del self.tensors[tensor.name]

    def kernel(self, name: str) -> Kernel:
        """A launch: `with meter.kernel("softmax") as kernel`. Launches of one name are counted together."""
        return Kernel(self, name)

    @property
    def total(self) -> Counts:
        """What all kernels did together."""
        return add_up(self.kernels.values())

    def report(self) -> str:
        """Tables of the kernels and of the tensors, for people; the exact numbers are in `total` and `kernels`."""
        return report(self.kernels, self.tensors.values(), self.sram_bytes)

    def _place(self, name: str, data: Tensor, stored_as: torch.dtype, *, is_written: bool) -> HbmTensor:
        self._refuse_launched()
        if name in self.tensors:
            raise ValueError(f"there is a tensor named {name} in HBM already: {self.tensors[name]}")
        tensor = HbmTensor(
            name, data, stored_as.itemsize, is_written=is_written, can_look=lambda: self._running is None
        )
        held = sum(other.num_bytes for other in self.tensors.values())
        if self.hbm_bytes is not None and held + tensor.num_bytes > self.hbm_bytes:
            names = ", ".join(f"{other.name} {other.num_bytes}" for other in self.tensors.values())
            raise ValueError(
                f"{name} {tensor.shape} needs {tensor.num_bytes} bytes, but HBM has {self.hbm_bytes - held} of "
                f"{self.hbm_bytes} ({in_bytes(self.hbm_bytes)}) free; held: {names or 'nothing'}"
            )
        self.tensors[name] = tensor
        return tensor

    def _refuse_launched(self) -> None:
        if self._running is not None:
            raise ValueError(f"HBM is allocated between launches, but kernel {self._running.name} is still running")


class Kernel:
    """One launch: a grid of programs that run in no order to rely on, each with an SRAM of its own."""

    def __init__(self, meter: Meter, name: str) -> None:
        self.meter = meter
        self.name = name
        self.counts = Counts()  # shared by all launches of this name from the start of the launch on
        self.running: Program | None = None
        self._num_programs = 0

    def __enter__(self) -> Kernel:
        running = self.meter._running
        if running is not None:
            raise ValueError(f"kernel {running.name} is still running: one launch ends before the next begins")
        self.meter._running = self
        self.counts = self.meter.kernels.setdefault(self.name, self.counts)
        self.counts.launches += 1
        return self

    def __exit__(self, *error: object) -> None:
        self.meter._running = None
        for tensor in self.meter.tensors.values():
            tensor._accesses = None

    def program(self, *coordinates: int) -> Program:
        """The next program of the grid: `with kernel.program(i, j) as sram`. Its coordinates name it in the trace."""
        return Program(self, coordinates)

    def _enter(self, program: Program) -> int:
        if self.meter._running is not self:
            raise ValueError(f"kernel {self.name} isn't running: with meter.kernel({self.name!r}) as kernel: …")
        if self.running is not None:
            raise ValueError("a program of this kernel is still running: one with block ends before the next begins")
        self.running = program
        self.counts.programs += 1
        self._num_programs += 1
        return self._num_programs

    def _leave(self) -> None:
        self.running = None
