"""One frame of a film: tensors in HBM drawn to scale, the regions that a beat touches, and SRAM as a stack of tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from minillm import plots
from minillm.perf.meter.beats import Beat, Bounds
from minillm.perf.meter.counts import in_bytes
from minillm.perf.meter.machine import Meter
from minillm.plots.shapes import FittedText

READ_COLORS = (plots.BLUE, plots.ORANGE, plots.PURPLE, plots.SKY, plots.YELLOW)
WRITTEN_COLORS = (plots.GREEN, plots.RED, plots.INK, plots.YELLOW, plots.SKY)
LARGEST, SMALLEST = 10.0, 1.2  # units that the longest and the shortest side of a tensor are drawn with
GAP = 1.1  # units between things
# Inches, because text keeps its size whatever the scale: SRAM's width; above a tensor; below everything, and for a
# further line there; a letter of a name.
BAR, NAME, CAPTION, LINE, CHARACTER = 0.38, 0.24, 0.36, 0.16, 0.088
FONT = 9.0


@dataclass(frozen=True)
class Sheet:
    """A tensor's last two dimensions as they are drawn: lower left corner, size, rows and columns it stands for."""

    x: float
    y: float
    width: float
    height: float
    shape: tuple[int, int]
    color: str

    def part(self, bounds: Bounds) -> tuple[float, float, float, float]:
        """(x, y, width, height) of a region."""
        (top, bottom), (left, right) = _last_two(bounds)
        rows, columns = self.shape
        return (
            self.x + left / columns * self.width,
            self.y + (1 - bottom / rows) * self.height,
            (right - left) / columns * self.width,
            (bottom - top) / rows * self.height,
        )


@dataclass(frozen=True)
class Scene:
    """What stays the same from frame to frame."""

    sheets: dict[str, Sheet]
    sram_bytes: int
    hbm_bytes: int  # that the whole film moves
    several_kernels: bool
    width: float
    high: float  # of the tensors and their names
    inch: float  # in units
    is_roomy: bool  # whether the names leave the tensors the room they need

    @property
    def below(self) -> float:
        """Room for the caption, which names the kernel if there are several."""
        return (CAPTION + LINE * self.several_kernels) * self.inch

    @property
    def height_inches(self) -> float:
        """Of a panel as wide as the scene was laid out for."""
        return (self.high + self.below) / self.inch

    @classmethod
    def of(
        cls,
        meter: Meter,
        film: list[Beat],
        tensors: Sequence[str] | None,
        places: Mapping[str, tuple[int, int]] | None,
        inches: float,
    ) -> Scene:
        """Lay the tensors out on a panel so many inches wide: in a row, or in the grid that `places` says."""
        touched = dict.fromkeys(name for beat in film for name, _ in (*beat.loaded, *beat.stored))
        names = [name for name in touched if name in meter.tensors] if tensors is None else list(tensors)
        missing = [name for name in names if name not in meter.tensors]
        if missing or not names:
            raise ValueError(
                f"expected tensors in HBM, of {', '.join(meter.tensors)}; got {', '.join(missing) or 'none'}"
            )
        cells = {name: (0, i) for i, name in enumerate(names)} if places is None else dict(places)
        if set(cells) != set(names):
            raise ValueError(f"expected a place for each of {', '.join(names)}, got {', '.join(cells)}")
        shapes = {name: _matrix(meter.tensors[name].shape) for name in names}
        unit = LARGEST / max(max(shape) for shape in shapes.values())
        sizes = {name: tuple(max(side * unit, SMALLEST) for side in shape) for name, shape in shapes.items()}
        widths = [max((sizes[n][1] for n in names if cells[n][1] == c), default=0) for c in range(_count(cells, 1))]
        heights = [max((sizes[n][0] for n in names if cells[n][0] == r), default=0) for r in range(_count(cells, 0))]
        texts = [max((CHARACTER * len(n) for n in names if cells[n][1] == c), default=0) for c in range(len(widths))]
        inch, slots, is_roomy = _slots(widths, texts, inches - BAR)
        high = sum(heights) + NAME * inch * len(heights)
        written = {name for beat in film for name, _ in beat.stored}
        colors = {True: iter(WRITTEN_COLORS * 9), False: iter(READ_COLORS * 9)}
        sheets = {}
        for name in names:
            row, column = cells[name]
            y = high - sum(heights[:row]) - NAME * inch * (row + 1) - sizes[name][0]
            x = sum(slots[:column]) + GAP * column + (slots[column] - sizes[name][1]) / 2
            sheets[name] = Sheet(x, y, sizes[name][1], sizes[name][0], shapes[name], next(colors[name in written]))
        moved = film[-1].bytes_read + film[-1].bytes_written
        several = len({beat.kernel for beat in film}) > 1
        return cls(sheets, meter.sram_bytes, max(moved, 1), several, inches * inch, high, inch, is_roomy)


def _slots(widths: list[float], texts: list[float], inches: float) -> tuple[float, list[float], bool]:
    """Room for columns of tensors (in units) and their names (in inches) side by side.

    Returns the units of an inch, the width of each column in units, and whether the names left enough room. Where
    names are wider than their tensors, everything is drawn smaller until they fit.
    """
    gaps = GAP * len(widths)
    natural = inch = (sum(widths) + gaps) / inches
    while True:
        slots = [max(width, text * inch) for width, text in zip(widths, texts, strict=True)]
        if sum(slots) + gaps <= inches * inch * 1.001 or inch > 3 * natural:
            return inch, slots, inch < 1.5 * natural
        inch *= 1.05


def draw(ax: Axes, scene: Scene, beat: Beat, number: int) -> None:
    """Draw one beat on an axes of its own."""
    ax.axis("off")
    ax.set_aspect("equal")
    ax.set(xlim=(0, scene.width), ylim=(-scene.below, scene.high))
    for name, sheet in scene.sheets.items():
        _write_name(ax, scene, name, sheet.x + sheet.width / 2, sheet.y + sheet.height, sheet.color)
        _draw_sheet(ax, name, sheet, beat)
    _draw_sram(ax, scene, beat)
    _draw_caption(ax, scene, beat, number)


def _draw_sheet(ax: Axes, name: str, sheet: Sheet, beat: Beat) -> None:
    corner = sheet.x, sheet.y
    ax.add_patch(Rectangle(corner, sheet.width, sheet.height, facecolor=plots.tint(plots.MUTED, 0.12), zorder=1))
    for tensor, bounds in beat.written:
        if tensor == name:
            _fill(ax, sheet, bounds, plots.tint(sheet.color, 0.4), zorder=2)
    for tensor, bounds in (*beat.loaded, *beat.stored):
        if tensor == name:
            _fill(ax, sheet, bounds, sheet.color, zorder=4)
    for tensor, bounds in beat.kept:
        if tensor == name:
            _outline(ax, sheet, bounds, "-")
    for tensor, bounds in beat.target:
        if tensor == name:
            _outline(ax, sheet, bounds, (0, (2, 1.5)))


def _draw_sram(ax: Axes, scene: Scene, beat: Beat) -> None:
    bar = BAR * scene.inch
    x, y, height = scene.width - bar, 0.0, scene.high - NAME * scene.inch
    _write_name(ax, scene, "SRAM", x + bar / 2, height, plots.INK)
    ax.add_patch(Rectangle((x, y), bar, height, facecolor=plots.tint(plots.MUTED, 0.12), zorder=1))
    for tile, num_bytes in beat.held:
        name = tile.split("[")[0]
        color = scene.sheets[name].color if name in scene.sheets else plots.GREY
        part = num_bytes / scene.sram_bytes * height
        ax.add_patch(Rectangle((x, y), bar, part, facecolor=color, edgecolor=plots.PAPER, linewidth=0.8, zorder=2))
        ax.add_artist(FittedText(x + bar / 2, y + part / 2, name, (bar, part), plots.ink_on(color), FONT, []))
        y += part


def _draw_caption(ax: Axes, scene: Scene, beat: Beat, number: int) -> None:
    """A bar that fills up with the bytes of the film, and what it means."""
    moved = beat.bytes_read + beat.bytes_written
    high = 0.05 * scene.inch
    for width, color in ((1.0, plots.tint(plots.MUTED, 0.12)), (moved / scene.hbm_bytes, plots.INK)):
        ax.add_patch(Rectangle((0, -3 * high), scene.width * width, high, facecolor=color))
    kernel = f"{beat.kernel}\n" if scene.several_kernels else ""
    text = f"{kernel}step {number + 1}: {in_bytes(moved)} moved"
    ax.text(0, -4 * high, text, size=FONT, color=plots.INK, va="top", parse_math=False)


def _write_name(ax: Axes, scene: Scene, name: str, x: float, y: float, color: str) -> None:
    ax.text(x, y + 0.05 * scene.inch, name, size=FONT + 1, color=color, ha="center", parse_math=False)


def _fill(ax: Axes, sheet: Sheet, bounds: Bounds, color: str, zorder: int) -> None:
    x, y, width, height = sheet.part(bounds)
    ax.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor=plots.PAPER, linewidth=0.5, zorder=zorder))


def _outline(ax: Axes, sheet: Sheet, bounds: Bounds, line: object) -> None:
    x, y, width, height = sheet.part(bounds)
    frame = Rectangle((x, y), width, height, fill=False, edgecolor=sheet.color, linewidth=1.6, zorder=5, clip_on=False)
    frame.set_linestyle(line)  # type: ignore[arg-type]
    ax.add_patch(frame)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of the last two dimensions; a vector stands upright."""
    return (1, 1) if not shape else (shape[0], 1) if len(shape) == 1 else (shape[-2], shape[-1])


def _last_two(bounds: Bounds) -> Bounds:
    return ((0, 1), (0, 1)) if not bounds else (bounds[0], (0, 1)) if len(bounds) == 1 else bounds[-2:]


def _count(cells: Mapping[str, tuple[int, int]], axis: int) -> int:
    return 1 + max(cell[axis] for cell in cells.values())
