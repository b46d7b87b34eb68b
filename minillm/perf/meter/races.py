"""Races: two programs of one launch touch the same number, and one of them writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from minillm.perf.meter.hbm import Region

NOBODY, SEVERAL = 0, -1  # programs of a launch are numbered from 1


class Runner(Protocol):
    """The part of a `Program` that is asked here."""

    @property
    def number(self) -> int: ...
    @property
    def coordinates(self) -> tuple[int, ...]: ...


class Accesses:
    """Which program of a launch read, wrote and atomically added to each number of one tensor.

    Programs of a launch run in no order that a kernel may rely on: what one of them writes, no other may write or
    read; what one of them adds to, others may only add to. The maps are made at the first write; until then reads are
    only noted.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.notes: list[tuple[Region, Runner]] = []
        self.programs: dict[int, Runner] = {}
        self.maps: dict[str, np.ndarray] = {}  # by what was done: the program that did it

    def read(self, region: Region, program: Runner) -> None:
        if not self.maps:
            self.notes.append((region, program))
            return
        self._mark("reads", region, program, never_with=("writes", "adds to"))

    def write(self, region: Region, program: Runner) -> None:
        self._make_maps()
        self._mark("writes", region, program, never_with=("writes", "reads", "adds to"))

    def add(self, region: Region, program: Runner) -> None:
        self._make_maps()
        self._mark("adds to", region, program, never_with=("writes", "reads"))

    def _make_maps(self) -> None:
        if not self.maps:
            self.maps = {does: np.zeros(self.shape, dtype=np.int32) for does in ("reads", "writes", "adds to")}
            for region, program in self.notes:
                self._mark("reads", region, program)
            self.notes.clear()

    def _mark(self, does: str, region: Region, program: Runner, never_with: tuple[str, ...] = ()) -> None:
        for did in never_with:
            owners = np.asarray(self.maps[did][region.index])
            others = owners[(owners != NOBODY) & (owners != program.number)]
            if others.size:
                raise ValueError(
                    f"race: program {program.coordinates} {does} {region.name}, and {self._who(others.flat[0])} of the "
                    f"same launch {did} a part of it; programs run in any order. Split the output, launch a second "
                    "kernel, or use sram.atomic_add"
                )
        owners = self.maps[does][region.index]
        mine = (owners == NOBODY) | (owners == program.number)
        self.maps[does][region.index] = np.where(mine, program.number, SEVERAL)
        self.programs[program.number] = program

    def _who(self, number: int) -> str:
        return "another program" if number == SEVERAL else f"program {self.programs[int(number)].coordinates}"
