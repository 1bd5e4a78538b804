"""Timelines as SVG and as one offline page: a row for each rank, a colour for each operation, the number of
the micro-batch inside, and the activations held as a curve below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby

from shunter.record.timeline import Span, Timeline

# Okabe and Ito's colours, which people with any colour vision tell apart.
COLOURS = {
    "F": ("#56b4e9", "forward"),
    "B": ("#009e73", "backward"),
    "I": ("#e69f00", "gradient of the input"),
    "W": ("#cc79a7", "gradient of the weights"),
    "S": ("#f0e442", "softmax of a vocabulary part"),
    "T": ("#e8834a", "its gradient"),
    "IF": ("#9db8e8", "embedding of a part"),
    "IB": ("#b8a1d9", "its gradient"),
    "R": ("#b2df8a", "recomputation"),
}
OTHER = ("#aaaaaa", "other")
ROW, CURVE, GAP, LEFT, WIDTH = 22.0, 10.0, 6.0, 58.0, 960.0
SEPARATE = 4000  # spans that get an element of their own; more are drawn as one path a row and colour
NUMBERED = 11.0  # width in pixels from which a number can be read

# Of a drawing that stands alone. One within a page has the page's colours, under the class `timeline`.
STYLE = (
    ":root{color-scheme:light dark}text{font:11px system-ui,sans-serif;fill:CanvasText}"
    ".n{font-size:10px;fill:#000;text-anchor:middle;pointer-events:none}.k{fill:none;stroke:CanvasText;"
    "stroke-opacity:.55}.g{stroke:CanvasText;stroke-opacity:.2}.t{font-weight:600}"
)

Held = Mapping[int, Sequence[tuple[float, float]]]  # rank -> (time, activations held from then on)


def svg(
    timelines: Sequence[Timeline],
    held: Held | None = None,
    unit: str = "",
    *,
    label: str = "a timeline",
    separate: int = SEPARATE,
    style: str = STYLE,
) -> str:
    """One drawing; timelines stand below each other on one scale, such as measured and simulated.

    held:     activations, drawn below the first timeline's rows.
    label:    for those who do not see it.
    separate: spans of a timeline that get an element of their own.
    """
    length = max((timeline.end - timeline.begin for timeline in timelines), default=0.0) or 1.0
    scale = (WIDTH - LEFT - 10) / length
    parts: list[str] = []
    y = 16.0
    most = max((amount for curve in (held or {}).values() for _, amount in curve), default=0.0)
    for number, timeline in enumerate(timelines):
        parts.append(
            f'<text class="t" x="0" y="{y:.0f}">{escape(timeline.name)}: {timeline.elapsed:.6g}{unit}</text>'
        )
        y += 8
        for rank in sorted({span.rank for span in timeline}):
            spans = [span for span in timeline if span.rank == rank and span.lane == "compute"]
            parts.append(f'<text x="0" y="{y + 15:.0f}">rank {rank}</text>')
            parts += _row(spans, timeline.begin, scale, y, unit, len(timeline) <= separate)
            y += ROW
            if number == 0 and held and most:
                parts.append(_curve(held.get(rank, ()), scale, y + CURVE, most, length))
                y += CURVE
            y += GAP
        y += 16
    parts = _axis(length, scale, y - 12, unit) + parts  # behind what is drawn on it
    y += 16
    ops = {str(span.args.get("op", "")) for timeline in timelines for span in timeline}
    x = LEFT
    for op in [*(op for op in COLOURS if op in ops), *(["other"] if ops - COLOURS.keys() else [])]:
        colour, meaning = COLOURS.get(op, OTHER)
        parts.append(f'<rect x="{x:.0f}" y="{y - 10:.0f}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{x + 17:.0f}" y="{y:.0f}">{meaning}</text>')
        x += 40 + 6.2 * len(meaning)
    if held and most:
        parts.append(f'<text x="{x:.0f}" y="{y:.0f}">curve: activations held, at most {most:g}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="timeline" viewBox="0 0 {WIDTH:.0f} {y + 8:.0f}" '
        f'role="img" aria-label="{escape(label)}">'
        f"{f'<style>{style}</style>' if style else ''}{''.join(parts)}</svg>\n"
    )


def page(title: str, picture: str, facts: Sequence[tuple[str, str]]) -> str:
    """The drawing in a page that needs nothing else."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width"><style>:root{color-scheme:light dark}'
        "body{font:15px system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}"
        "th{text-align:left;padding-right:2em;font-weight:500}svg{width:100%;height:auto}</style>"
        f"<h1>{escape(title)}</h1><table>{rows}</table>{picture}</html>\n"
    )


def _row(spans: Sequence[Span], zero: float, scale: float, y: float, unit: str, separate: bool) -> list[str]:
    if not separate:
        return _paths(spans, zero, scale, y)
    parts = []
    for span in spans:
        x, width = LEFT + (span.begin - zero) * scale, max(0.4, span.seconds * scale - 0.6)
        colour = COLOURS.get(str(span.args.get("op")), OTHER)[0]
        told = f"{span.name}, {span.begin - zero:.6g} to {span.end - zero:.6g}{unit}"
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.0f}" width="{width:.1f}" height="{ROW:.0f}" fill="{colour}">'
            f"<title>{escape(told)}</title></rect>"
        )
        number = span.args.get("microbatch", -1)
        if width >= NUMBERED and isinstance(number, int) and number >= 0:
            parts.append(f'<text class="n" x="{x + width / 2:.1f}" y="{y + 15:.0f}">{number}</text>')
    return parts


def _paths(spans: Sequence[Span], zero: float, scale: float, y: float) -> list[str]:
    def op(span: Span) -> str:
        return str(span.args.get("op"))

    parts = []
    for name, group in groupby(sorted(spans, key=op), key=op):
        path = ""
        for span in group:
            width = max(0.2, span.seconds * scale)
            path += f"M{LEFT + (span.begin - zero) * scale:.1f} {y:.0f}h{width:.1f}v{ROW:.0f}h{-width:.1f}z"
        parts.append(f'<path d="{path}" fill="{COLOURS.get(name, OTHER)[0]}"/>')
    return parts


def _curve(
    curve: Sequence[tuple[float, float]], scale: float, bottom: float, most: float, length: float
) -> str:
    path, last = f"M{LEFT:.1f} {bottom:.1f}", bottom
    for time, amount in curve:
        y = bottom - (CURVE - 1) * amount / most
        if y != last:
            path += f"H{LEFT + time * scale:.1f}V{y:.1f}"
            last = y
    return f'<path class="k" d="{path}H{LEFT + length * scale:.1f}"/>'


def _axis(length: float, scale: float, y: float, unit: str) -> list[str]:
    step = 10.0 ** len(str(int(length))) / 10 if length >= 1 else length / 5
    while length / step < 4:
        step /= 2
    while length / step > 12:
        step *= 2
    parts = []
    for number in range(int(length / step) + 1):
        x = LEFT + number * step * scale
        parts.append(f'<path class="g" d="M{x:.1f} 18V{y:.0f}"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 12:.0f}">{number * step:.4g}{unit}</text>')
    return parts
