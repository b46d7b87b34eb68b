"""A trace cut into beats: one round of loading, computing and storing each, the frames of a film."""

from __future__ import annotations

from dataclasses import dataclass, replace

from minillm.perf.meter.trace import Event

Bounds = tuple[tuple[int, int], ...]  # start and stop of each dimension
Places = tuple[tuple[str, Bounds], ...]  # regions: the tensor's name, bounds


@dataclass(frozen=True)
class Beat:
    """What one program does between one load and the next round of loads.

    Regions are of tensors in HBM. Bytes are those of the whole trace up to the end of the beat.
    """

    kernel: str
    program: tuple[int, ...]
    loaded: Places  # in this beat
    kept: Places  # loaded in an earlier beat and still on the chip
    stored: Places  # in this beat
    target: Places  # what the program stores next, if not in this beat
    written: Places  # by anyone up to now, this beat included
    held: tuple[tuple[str, int], ...]  # the tiles in SRAM when it was fullest: name, bytes
    bytes_read: int
    bytes_written: int

    @property
    def sram_bytes(self) -> int:
        """Bytes of SRAM held when it was fullest."""
        return sum(num_bytes for _, num_bytes in self.held)


def beats(trace: list[Event] | None) -> list[Beat]:
    """The beats of a trace.

    A load begins a new one if the program is another, if the tensor was loaded in this beat already, or if something
    was stored in it. Raises ValueError without events.
    """
    if not trace:
        raise ValueError("expected a trace with events: make the meter with trace=True, and run a kernel")
    groups: list[list[Event]] = []
    for event in trace:
        if not groups or _begins(event, groups[-1]):
            groups.append([])
        groups[-1].append(event)
    return _with_targets(_beats_of(groups))


def _begins(event: Event, group: list[Event]) -> bool:
    last = group[-1]
    if (event.kernel, event.program) != (last.kernel, last.program):
        return True
    again = any(other.kind == "load" and other.tensor == event.tensor for other in group)
    return event.kind == "load" and (again or any(other.kind in ("store", "atomic_add") for other in group))


def _beats_of(groups: list[list[Event]]) -> list[Beat]:
    found: list[Beat] = []
    places: dict[str, tuple[str, Bounds]] = {}  # of the regions by name
    written: dict[tuple[str, Bounds], None] = {}
    bytes_read = bytes_written = 0
    for group in groups:
        for event in group:
            if event.kind == "load":
                places[event.name] = (event.tensor, event.bounds)
                bytes_read += event.num_bytes
            elif event.kind == "store":
                bytes_written += event.num_bytes
            elif event.kind == "atomic_add":
                bytes_read += event.num_bytes // 2
                bytes_written += event.num_bytes // 2
        loaded = tuple(dict.fromkeys((event.tensor, event.bounds) for event in group if event.kind == "load"))
        stored = tuple((event.tensor, event.bounds) for event in group if event.kind in ("store", "atomic_add"))
        written.update(dict.fromkeys(stored))
        fullest = max(group, key=lambda event: event.sram_bytes)
        kept = dict.fromkeys(places[name] for event in group for name, _ in event.held if name in places)
        found.append(
            Beat(
                group[0].kernel,
                group[0].program,
                loaded,
                tuple(place for place in kept if place not in loaded),
                stored,
                (),
                tuple(written),
                fullest.held,
                bytes_read,
                bytes_written,
            )
        )
    return found


def _with_targets(found: list[Beat]) -> list[Beat]:
    done: list[Beat] = []
    following: Beat | None = None  # the next one of the same program that stores
    for beat in reversed(found):
        if following is not None and (following.kernel, following.program) != (beat.kernel, beat.program):
            following = None
        if beat.stored:
            following = beat
        target = following.stored if following is not None and following is not beat else ()
        done.append(replace(beat, target=target))
    return done[::-1]
