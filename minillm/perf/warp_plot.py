"""A picture of one request of a warp: the sectors or banks that it touches, and which lanes ask for what there.

from minillm import plots
from minillm.perf.warp_plot import draw_request

fig, ax = plots.diagram()
draw_request(ax, run.select("global", "load", "a")[0])
plots.show(fig, alt="Each of 32 lanes reads 4 bytes of a sector of its own.")
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from minillm.perf.warp_requests import BANK_BYTES, NUM_BANKS, SECTOR_BYTES, Request, sectors_touched
from minillm.plots import BLUE, GREY, INK, MUTED, ORANGE, PAPER, cells

SECTORS_A_ROW = 4  # 128 bytes, a line of the cache
SECTOR_GAP = 0.7
MOST_PASSES = 8  # drawn; the rest is counted
SMALL = 9.0  # points


def draw_request(ax: Axes, request: Request, *, color: str = BLUE) -> None:
    """Draw a request on an empty sheet (`plots.diagram`).

    Global memory: every sector that is moved, as a box of elements; filled ones carry the numbers of the lanes that
    want them, pale ones travel for nothing. Shared memory: the 32 banks side by side; what stands below one another in
    a bank comes one pass after the other (the first eight are drawn). Raises ValueError for shared elements that
    aren't 4 bytes wide.
    """
    if request.space == "global":
        _draw_sectors(ax, request, color)
    else:
        _draw_banks(ax, request, color)


def _draw_sectors(ax: Axes, request: Request, color: str) -> None:
    lanes_of = _lanes_of(request, request.itemsize)
    per_sector = SECTOR_BYTES // request.itemsize
    sectors = sectors_touched(request.addresses, request.itemsize)
    width = 2.0 if len(sectors) == 1 else 1.0  # in one sector alone lanes share elements: room for "0–31"
    for number, sector in enumerate(sectors):
        row, column = divmod(number, SECTORS_A_ROW)
        x, y = column * (per_sector * width + SECTOR_GAP), -2.2 * row
        elements = range(sector * per_sector, (sector + 1) * per_sector)
        labels = [_named(lanes_of.get(element, [])) for element in elements]
        colors = [color if element in lanes_of else GREY for element in elements]
        cells(ax, x, y, labels, colors=colors, width=width, size=SMALL)
        ax.text(x + 0.05, y + 1.08, f"byte {sector * SECTOR_BYTES:,}", size=SMALL - 1, color=MUTED, va="bottom")
    ax.update_datalim([(SECTORS_A_ROW * (per_sector + SECTOR_GAP) - SECTOR_GAP, 0)])  # the same scale for all pictures
    moved = len(sectors) * SECTOR_BYTES
    wanted = len(lanes_of) * request.itemsize
    plural = "s" if len(sectors) != 1 else ""
    _headline(
        ax, f"{request.array}, one {request.kind}: {len(sectors)} sector{plural}, {wanted} of {moved} bytes are used"
    )


def _draw_banks(ax: Axes, request: Request, color: str) -> None:
    if request.itemsize != BANK_BYTES:
        raise ValueError(f"a picture of the banks needs elements of {BANK_BYTES} bytes, got {request.itemsize}")
    lanes_of = _lanes_of(request, BANK_BYTES)
    stacks: list[list[int]] = [[] for _ in range(NUM_BANKS)]
    for touched in sorted(lanes_of, key=lambda word: lanes_of[word][0]):
        stacks[touched % NUM_BANKS].append(touched)
    for row in range(min(request.passes, MOST_PASSES)):
        held = [stack[row] if row < len(stack) else None for stack in stacks]
        for bank, word in enumerate(held):
            if word is not None or row == 0:  # below the first row an unused bank is no news
                color_here = PAPER if word is None else color if row == 0 else ORANGE
                label = "" if word is None else _named(lanes_of[word])
                cells(ax, bank, -row, [label], colors=color_here, size=SMALL)
    if request.passes > MOST_PASSES:
        more = f"and {request.passes - MOST_PASSES} passes more"
        ax.text(0.1, -MOST_PASSES + 0.7, more, size=SMALL, color=MUTED, va="top")
        ax.update_datalim([(0, -MOST_PASSES - 0.2)])
    for bank in range(NUM_BANKS):
        if bank % 4 == 0 or bank == NUM_BANKS - 1:
            ax.text(bank + 0.5, 1.1, str(bank), size=SMALL - 1, color=MUTED, ha="center", va="bottom")
    ax.text(-0.4, 1.1, "bank", size=SMALL - 1, color=MUTED, ha="right", va="bottom")
    plural = "es" if request.passes != 1 else ""
    _headline(ax, f"{request.array}, one {request.kind}: {request.passes} pass{plural}")


def _headline(ax: Axes, text: str) -> None:
    left, _ = ax.get_xlim()
    ax.text(max(left, 0.0), 2.1, text, color=INK, va="bottom")
    ax.update_datalim([(0, 3.2)])
    ax.autoscale_view()


def _lanes_of(request: Request, itemsize: int) -> dict[int, list[int]]:
    """The lanes that ask for each element, by its number from the start of the array."""
    lanes: dict[int, list[int]] = {}
    for lane, address in enumerate(request.addresses):
        if address is not None:
            lanes.setdefault(address // itemsize, []).append(lane)
    return lanes


def _named(lanes: Sequence[int]) -> str:
    """ "3", "0–31" for a run, "0 +3" for others."""
    if len(lanes) <= 1:
        return "".join(map(str, lanes))
    if list(lanes) == list(range(lanes[0], lanes[-1] + 1)):
        return f"{lanes[0]}–{lanes[-1]}"
    return f"{lanes[0]} +{len(lanes) - 1}"
