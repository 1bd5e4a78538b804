"""Layout of the lineage graph: jobs in columns by depth, edges from an input to its user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BOX_WIDTH, BOX_HEIGHT = 158.0, 54.0
GAP_X, GAP_Y, MARGIN = 52.0, 18.0, 6.0
SWEEPS = 4


@dataclass(frozen=True)
class Box:
    name: str
    x: float
    y: float


@dataclass(frozen=True)
class Graph:
    """Boxes and edges in the units of a viewBox of `width` x `height`."""

    boxes: list[Box]
    paths: list[tuple[str, str, str]]  # from, to, SVG path
    width: float
    height: float


def lay_out(inputs: Mapping[str, Sequence[str]]) -> Graph:
    """`inputs`: for each job the jobs that it reads. Names without an entry are left out; a cycle (which
    no recipe can have, but a damaged record might) is cut where it is met."""
    depth: dict[str, int] = {}

    def measure(name: str, path: frozenset[str]) -> int:
        if name not in depth:
            above = [
                measure(up, path | {name}) for up in inputs[name] if up in inputs and up not in path | {name}
            ]
            depth[name] = 1 + max(above, default=-1)
        return depth[name]

    for name in inputs:
        measure(name, frozenset())
    columns: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for name in inputs:
        columns[depth[name]].append(name)
    edges = [
        (up, name) for name in inputs for up in dict.fromkeys(inputs[name]) if up in inputs and up != name
    ]
    _order(columns, edges)

    tallest = max((len(column) for column in columns), default=0)
    height = 2 * MARGIN + tallest * BOX_HEIGHT + max(0, tallest - 1) * GAP_Y
    place: dict[str, Box] = {}
    for index, column in enumerate(columns):
        used = len(column) * BOX_HEIGHT + (len(column) - 1) * GAP_Y
        for row, name in enumerate(column):
            x = MARGIN + index * (BOX_WIDTH + GAP_X)
            place[name] = Box(name, x, (height - used) / 2 + row * (BOX_HEIGHT + GAP_Y))
    width = 2 * MARGIN + len(columns) * BOX_WIDTH + max(0, len(columns) - 1) * GAP_X
    paths = [(a, b, _curve(place[a], place[b])) for a, b in edges]
    return Graph(list(place.values()), paths, width, height)


def _order(columns: list[list[str]], edges: Sequence[tuple[str, str]]) -> None:
    """Order each column by the mean row of its neighbours, back and forth: fewer crossings."""
    for sweep in range(SWEEPS):
        row = {name: index - len(column) / 2 for column in columns for index, name in enumerate(column)}
        forward = sweep % 2 == 0
        for column in columns if forward else reversed(columns):
            near = {
                name: [row[a] if forward else row[b] for a, b in edges if (b if forward else a) == name]
                for name in column
            }
            mean = {n: sum(rows) / len(rows) if rows else row[n] for n, rows in near.items()}
            column.sort(key=mean.__getitem__)
            row.update({name: index - len(column) / 2 for index, name in enumerate(column)})


def _curve(a: Box, b: Box) -> str:
    """A cubic from the right side of `a` to the left side of `b`."""
    x0, y0 = a.x + BOX_WIDTH, a.y + BOX_HEIGHT / 2
    x1, y1 = b.x - 5, b.y + BOX_HEIGHT / 2
    bend = min(GAP_X * 0.7, abs(x1 - x0) * 0.5)
    # Long edges leave and arrive near the boxes, so that they do not run through the boxes between.
    return f"M{x0:g},{y0:g}C{x0 + bend:g},{y0:g} {x1 - bend:g},{y1:g} {x1:g},{y1:g}"
