"""Geometry of line charts: data in, positions and labels out. The templates draw them as SVG."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shunter.report.numbers import compact

Point = tuple[float, float]

WIDTH, HEIGHT = 360.0, 210.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 16.0, 8.0, 24.0
FAR = 2000.0  # a line that leaves the frame is cut by it; this only bounds the numbers in the file
MAX_POINTS = 360  # one a unit of width: more cannot be seen, and a long run would fill megabytes


@dataclass(frozen=True)
class Series:
    """One line: `points` in order of x, both finite. `faint` draws it thin, behind the others."""

    name: str
    points: Sequence[Point]
    color: int = 0
    faint: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Drawn:
    """A series ready to draw."""

    name: str
    path: str
    color: int
    faint: bool
    last: Point
    dots: list[Point]


@dataclass(frozen=True)
class Chart:
    """A chart ready to draw, in the units of its viewBox (WIDTH x HEIGHT)."""

    title: str
    unit: str
    series: list[Drawn]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    marks: list[tuple[float, str]]
    description: str
    note: str
    hover: str  # JSON for hover.js
    frame: tuple[float, float, float, float] = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)
    x_name: str = "step"
    width: float = WIDTH
    height: float = HEIGHT
    legend: bool = field(default=False)


def ticks(low: float, high: float, target: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that lie in [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / target
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most about `limit` points that keep each stretch's lowest and highest, so a spike survives."""
    if len(points) <= limit:
        return list(points)
    kept: list[Point] = []
    stretches = limit // 2
    for index in range(stretches):
        part = points[index * len(points) // stretches : (index + 1) * len(points) // stretches]
        low, high = min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])
        kept.extend(sorted({low, high}))
    return [points[0], *(p for p in kept if p not in (points[0], points[-1])), points[-1]]


def smooth(points: Sequence[Point], reach: int) -> list[Point]:
    """Mean over `reach` neighbours on either side, fewer but as many on both sides near the ends.

    Unlike an exponential average it does not lag behind a falling loss, and both ends stay where they are.
    """
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    result = []
    for index, (x, _) in enumerate(points):
        near = min(reach, index, len(points) - 1 - index)
        result.append((x, (sums[index + near + 1] - sums[index - near]) / (2 * near + 1)))
    return result


def line_chart(
    title: str,
    unit: str,
    series: Sequence[Series],
    *,
    from_zero: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    x_name: str = "step",
    limit: int = MAX_POINTS,
) -> Chart | None:
    """Lay out a chart of at most about `limit` points a line; None when there is nothing to draw.

    The frame holds the smoothed or sparse series whole; a faint raw series may leave it (the first steps
    of training would flatten the rest), and the note under the chart then says how far it went.
    """
    series = [line for line in series if line.points]
    if not series:
        return None
    solid = [line for line in series if not line.faint] or series
    xs = [x for line in series for x, _ in line.points]
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = _frame([line.points for line in solid], from_zero)
    if x_high == x_low:
        x_low, x_high = x_low - 1, x_high + 1

    def at_x(x: float) -> float:
        return round(LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def at_y(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    drawn, hover = [], []
    for line in series:
        points = thin(line.points, limit)
        places = [(at_x(x), min(max(at_y(y), -FAR), FAR)) for x, y in points]
        path = "M" + "L".join(f"{x:g},{y:g}" for x, y in places)
        dots = places if line.dots or len(places) == 1 else []
        drawn.append(Drawn(line.name, path, line.color, line.faint, places[-1], dots))
        hover.append({"name": line.name, "color": line.color, "points": [[*map(_short, p)] for p in points]})
    scale = {"x": [x_low, x_high], "y": [y_low, y_high], "frame": [LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM]}
    return Chart(
        title=title,
        unit=unit,
        series=sorted(drawn, key=lambda line: not line.faint),
        x_ticks=[(at_x(x), compact(x)) for x in ticks(x_low, x_high, 4)],
        y_ticks=[(at_y(y), compact(y)) for y in ticks(y_low, y_high, 4)],
        marks=[(at_x(x), text) for x, text in marks if x_low <= x <= x_high],
        description=_describe(title, unit, solid, x_name),
        note=_outside(series, y_low, y_high, compact, x_name),
        hover=json.dumps({"series": hover, "x_name": x_name, "unit": unit, **scale}),
        x_name=x_name,
        legend=len(series) > 1,
    )


def _frame(lines: Sequence[Sequence[Point]], from_zero: bool) -> tuple[float, float]:
    """The range of y with a little air. The first fiftieth of each line may lie above: training starts
    at ln(vocabulary), which says nothing, and would take half of the chart."""
    body = [y for line in lines for _, y in line[min(len(line) // 50, 20) :]]
    low, high = min(body), max(body)
    if from_zero:
        low = min(0.0, low)
    if high == low:
        margin = abs(high) * 0.1 or 1.0
        return (low if from_zero and low == 0 else low - margin), high + margin
    air = (high - low) * 0.06
    return (low if from_zero and low == 0 else low - air), high + air


def _outside(
    series: Sequence[Series], low: float, high: float, show: Callable[[float], str], x_name: str
) -> str:
    # A smoothed line repeats its raw one: count the raw.
    raw = [line for line in series if line.faint] or series
    out = [point for line in raw for point in line.points if not low <= point[1] <= high]
    if not out:
        return ""
    x, y = max(out, key=lambda point: max(low - point[1], point[1] - high))
    noun = "point lies" if len(out) == 1 else "points lie"
    return f"{len(out)} {noun} outside the frame; the farthest is {show(y)} at {x_name} {show(x)}."


def _describe(title: str, unit: str, series: Sequence[Series], x_name: str) -> str:
    """The chart in words, for those who do not see it."""
    parts = []
    for line in series:
        (x0, y0), (x1, y1) = line.points[0], line.points[-1]
        ys = [y for _, y in line.points]
        parts.append(
            f"{line.name}: {compact(y0)} at {x_name} {compact(x0)}, {compact(y1)} at {x_name} {compact(x1)}, "
            f"lowest {compact(min(ys))}, highest {compact(max(ys))}"
        )
    return f"{title}{f' in {unit}' if unit else ''}. " + "; ".join(parts) + "."


def _short(number: float) -> float:
    return float(f"{number:.6g}")
