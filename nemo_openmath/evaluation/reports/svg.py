"""Draw pictures as inline SVG, by small pure functions from numbers to markup.

Colours are CSS classes (``c0`` to ``c4``), so one picture serves light and dark pages; every picture carries a title
and a description for readers who do not see it, and every marked point its numbers as a tooltip. No script.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import ceil, floor, isfinite, log2, log10

from markupsafe import Markup, escape

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 40
POINTS = 300
"""Longer curves are drawn as means of this many buckets: finer than the eye, and the page stays small."""


@dataclass(frozen=True, slots=True)
class Line:
    """A curve."""

    x: Sequence[float]
    y: Sequence[float]
    label: str = ""
    low: Sequence[float | None] | None = None
    """Lower edge of the curve's band, where it has one."""
    high: Sequence[float | None] | None = None
    """Upper edge of the band."""
    colour: int = 0
    """Index of a CSS class."""
    faint: bool = False
    """Draw the curve behind the others, without label or points."""
    notes: Sequence[str] = ()
    """A tooltip for each point. Where it is given, the points are marked."""


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of a chart. ``start`` and ``end`` are in data units."""

    start: float
    end: float
    label: str = ""
    log: bool = False
    """Space the axis by powers of two, with a tick at each."""
    text: Callable[[float], str] = lambda v: f"{v:g}"
    """Writes the value of a tick."""

    def at(self, value: float) -> float:
        """Return the position of a value on the axis, 0 to 1."""
        first, last, here = (log2(v) if self.log else v for v in (self.start, self.end, value))
        return (here - first) / (last - first) if last > first else 0.5

    def ticks(self) -> list[float]:
        """Return the values that get a tick."""
        if self.log:
            return [2.0**i for i in range(ceil(log2(self.start) - 1e-9), floor(log2(self.end) + 1e-9) + 1)]
        return nice_ticks(self.start, self.end)


def nice_ticks(start: float, end: float, about: int = 5) -> list[float]:
    """Return at most some ``about`` round numbers (1, 2 or 5 times a power of ten) within [start, end]."""
    if not end > start:
        return [start]
    step = 10.0 ** floor(log10((end - start) / about))
    step *= next(m for m in (1, 2, 5, 10) if (end - start) / (step * m) <= about)
    first = ceil(start / step - 1e-9)
    return [round(i * step, 12) for i in range(first, floor(end / step + 1e-9) + 1)]


def line_chart(
    lines: Sequence[Line], *, x: Axis, y: Axis, title: str, description: str, width: int = WIDTH, height: int = HEIGHT
) -> Markup:
    """Draw curves with their bands. Curves with a label have it at their end."""
    named = [line for line in lines if line.label and not line.faint and line.x]
    right = RIGHT + (7.2 * max(len(line.label) for line in named) if named else 0)
    plot_width, plot_height = width - LEFT - right, height - TOP - BOTTOM

    def px(value: float) -> float:
        return LEFT + plot_width * min(1.0, max(0.0, x.at(value)))

    def py(value: float) -> float:
        return TOP + plot_height * (1 - min(1.0, max(0.0, y.at(value))))

    parts = [_axes(x, y, px, py, width - right, height)]
    drawn = [_thin(line) for line in lines if line.x]
    parts += [_band(line, px, py) for line in drawn]
    parts += [_curve(line, px, py) for line in sorted(drawn, key=lambda line: not line.faint)]
    ends = spread([py(line.y[-1]) for line in named], 15, TOP, TOP + plot_height)
    parts += [
        Markup('<text class="end c{}" x="{:.1f}" y="{:.1f}">{}</text>').format(
            line.colour, width - right + 8, end + 4, line.label
        )
        for line, end in zip(named, ends, strict=True)
    ]
    return _figure(parts, width, height, title, description)


def interval(
    value: float, low: float | None, high: float | None, *, start: float = 0.0, end: float = 1.0, zero: bool = False
) -> Markup:
    """Draw a value and its interval on a track from ``start`` to ``end``. ``zero`` adds a line at zero.

    The picture decorates the numbers beside it: it is hidden from those who read the text.
    """
    span = end - start or 1.0

    def px(v: float) -> float:
        return 100.0 * min(1.0, max(0.0, (v - start) / span))

    parts = [Markup('<line class="track" x1="0" x2="100" y1="6" y2="6"/>')]
    if zero:
        parts.append(Markup('<line class="zero" x1="{0:.2f}" x2="{0:.2f}" y1="0" y2="12"/>').format(px(0.0)))
    if low is not None and high is not None:
        parts.append(
            Markup('<rect class="range" x="{:.2f}" y="3" width="{:.2f}" height="6"/>').format(
                px(low), px(high) - px(low)
            )
        )
    parts.append(Markup('<line class="mark" x1="{0:.2f}" x2="{0:.2f}" y1="1" y2="11"/>').format(px(value)))
    return Markup(
        '<svg class="interval" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">{}</svg>'
    ).format(Markup("").join(parts))


def bar(share: float, colour: int = 0) -> Markup:
    """Draw a bar that fills ``share`` of its place. It decorates the number beside it."""
    return Markup(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="10"/><rect class="c{}" width="{:.2f}" height="10"/></svg>'
    ).format(colour, 100 * min(1.0, max(0.0, share)))


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Return means over ``window`` values to either side, which do not lag behind.

    Near the start both sides shrink alike, so a steep start stays in place. Near the end only the right side does, so
    the last point is a mean as well.
    """
    total = [0.0, *accumulate(values)]
    out = []
    for i in range(len(values)):
        left = min(window, i)
        right = min(left, len(values) - 1 - i)
        out.append((total[i + right + 1] - total[i - left]) / (left + right + 1))
    return out


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move the positions of labels apart by at least ``gap``, within [low, high], and keep their order."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    out = list(positions)
    for before, i in zip([None, *order], order, strict=False):
        out[i] = max(out[i], low if before is None else out[before] + gap)
    ceiling = high
    for i in reversed(order):
        out[i] = min(out[i], ceiling)
        ceiling = out[i] - gap
    return out


def _thin(line: Line) -> Line:
    """Replace the points of a curve by means of buckets, where they are too many. Non-finite values are left out."""
    good = [i for i, v in enumerate(line.y) if isfinite(v)]
    if len(good) <= POINTS and len(good) == len(line.y):
        return line
    edges = [len(good) * b // min(POINTS, max(1, len(good))) for b in range(min(POINTS, len(good)) + 1)]
    buckets = [good[a:b] for a, b in pairwise(edges)]

    def means(values: Sequence[float]) -> list[float]:
        return [sum(values[i] for i in bucket) / len(bucket) for bucket in buckets]

    return Line(means(line.x), means(line.y), line.label, colour=line.colour, faint=line.faint)


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{a:.1f},{b:.1f}" for a, b in points)


def _band(line: Line, px: Callable[[float], float], py: Callable[[float], float]) -> Markup:
    if line.low is None or line.high is None:
        return Markup("")
    whole = [(a, b, c) for a, b, c in zip(line.x, line.low, line.high, strict=True) if b is not None and c is not None]
    if not whole:
        return Markup("")
    outline = [(px(a), py(c)) for a, _, c in whole] + [(px(a), py(b)) for a, b, _ in reversed(whole)]
    return Markup('<path class="band c{}" d="{}Z"/>').format(line.colour, _path(outline))


def _curve(line: Line, px: Callable[[float], float], py: Callable[[float], float]) -> Markup:
    points = [(px(a), py(b)) for a, b in zip(line.x, line.y, strict=True)]
    if not points:
        return Markup("")
    style = "faint " if line.faint else ""
    out = Markup('<path class="line {}c{}" d="{}"/>').format(style, line.colour, _path(points))
    for (a, b), note in zip(points, line.notes, strict=False):
        out += Markup('<circle class="point c{}" cx="{:.1f}" cy="{:.1f}" r="3.2"><title>{}</title></circle>').format(
            line.colour, a, b, note
        )
    return out


def _axes(
    x: Axis, y: Axis, px: Callable[[float], float], py: Callable[[float], float], right: float, height: int
) -> Markup:
    bottom = height - BOTTOM
    parts = []
    for tick in y.ticks():
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
                LEFT, right, py(tick), py(tick)
            )
        )
        parts.append(
            Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                LEFT - 7, py(tick) + 4, y.text(tick)
            )
        )
    for tick in x.ticks():
        parts.append(
            Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                px(tick), bottom + 17, x.text(tick)
            )
        )
    parts.append(Markup('<line class="axis" x1="{}" x2="{:.1f}" y1="{}" y2="{}"/>').format(LEFT, right, bottom, bottom))
    parts.append(
        Markup('<text class="label" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            (LEFT + right) / 2, height - 6, x.label
        )
    )
    return Markup("").join(parts)


def _figure(parts: Sequence[Markup], width: int, height: int, title: str, description: str) -> Markup:
    label = escape(f"{title}. {description}")
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title><desc>{}</desc>{}</svg>'
    ).format(width, height, label, title, description, Markup("").join(parts))
