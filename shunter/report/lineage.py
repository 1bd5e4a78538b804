"""Layout of the lineage graph: jobs in columns by depth, edges from an input to its user.

An edge that passes columns gets a narrow lane of its own in each of them, as Sugiyama's method does,
so that no edge runs behind a box.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BOX_WIDTH, BOX_HEIGHT = 158.0, 54.0
LANE_HEIGHT = 10.0
GAP_X, GAP_Y, MARGIN = 52.0, 16.0, 6.0
ARROW = 5.0  # room for the arrow's head before a box
SWEEPS = 8


@dataclass(frozen=True)
class Box:
    """Where the box of a job stands: its upper left corner."""

    name: str
    x: float
    y: float


@dataclass(frozen=True)
class Graph:
    """Boxes and edges in the units of a viewBox of `width` x `height`."""

    boxes: list[Box]
    paths: list[tuple[str, str, str]]  # from, to, SVG path of cubics
    width: float
    height: float


# A job's name, or the lane of an edge in one column: (from, to, column).
Node = str | tuple[str, str, int]


def lay_out(inputs: Mapping[str, Sequence[str]]) -> Graph:
    """`inputs`: for each job the jobs that it reads. Names without an entry are left out; a cycle (which
    no recipe can have, but a damaged record might) is cut where it is met."""
    depth = _depths(inputs)
    columns: list[list[Node]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for name in inputs:
        columns[depth[name]].append(name)
    edges = [(a, b) for b in inputs for a in dict.fromkeys(inputs[b]) if a in inputs and depth[a] < depth[b]]
    chains: dict[tuple[str, str], list[Node]] = {}
    for a, b in edges:
        lanes: list[Node] = [(a, b, column) for column in range(depth[a] + 1, depth[b])]
        for index, lane in enumerate(lanes, depth[a] + 1):
            columns[index].append(lane)
        chains[a, b] = [a, *lanes, b]
    _order(columns, [pair for chain in chains.values() for pair in itertools.pairwise(chain)])

    heights = [sum(_height(node) for node in column) + GAP_Y * (len(column) - 1) for column in columns]
    height = 2 * MARGIN + max(heights, default=0.0)
    place: dict[Node, tuple[float, float]] = {}
    for index, column in enumerate(columns):
        y = (height - heights[index]) / 2
        for node in column:
            place[node] = (MARGIN + index * (BOX_WIDTH + GAP_X), y)
            y += _height(node) + GAP_Y
    width = 2 * MARGIN + len(columns) * BOX_WIDTH + max(0, len(columns) - 1) * GAP_X
    boxes = [Box(name, *place[name]) for name in inputs]
    return Graph(boxes, [(a, b, _path(chain, place)) for (a, b), chain in chains.items()], width, height)


def _depths(inputs: Mapping[str, Sequence[str]]) -> dict[str, int]:
    depth: dict[str, int] = {}

    def measure(name: str, path: frozenset[str]) -> int:
        if name not in depth:
            path = path | {name}
            depth[name] = 1 + max(
                (measure(up, path) for up in inputs[name] if up in inputs and up not in path), default=-1
            )
        return depth[name]

    for name in inputs:
        measure(name, frozenset())
    return depth


def _height(node: Node) -> float:
    return BOX_HEIGHT if isinstance(node, str) else LANE_HEIGHT


def _order(columns: list[list[Node]], links: Sequence[tuple[Node, Node]]) -> None:
    """Order each column by the mean height of its neighbours, back and forth: fewer crossings."""
    before: dict[Node, list[Node]] = {}
    after: dict[Node, list[Node]] = {}
    for a, b in links:
        before.setdefault(b, []).append(a)
        after.setdefault(a, []).append(b)
    row: dict[Node, float] = {}
    for column in columns:
        _number(column, row)
    for sweep in range(SWEEPS):
        forward = sweep % 2 == 0
        near = before if forward else after
        for column in columns if forward else reversed(columns):
            mean = {n: sum(row[m] for m in near[n]) / len(near[n]) if n in near else row[n] for n in column}
            column.sort(key=mean.__getitem__)
            _number(column, row)


def _number(column: Sequence[Node], row: dict[Node, float]) -> None:
    """Heights of a column's nodes, centred on zero."""
    total = sum(_height(node) + GAP_Y for node in column)
    y = -total / 2
    for node in column:
        row[node] = y + _height(node) / 2
        y += _height(node) + GAP_Y


def _path(chain: Sequence[Node], place: Mapping[Node, tuple[float, float]]) -> str:
    """From the right side of the first box through the lanes to the left side of the last: cubics only."""
    x, y = place[chain[0]]
    x, y = x + BOX_WIDTH, y + BOX_HEIGHT / 2
    path = f"M{x:g},{y:g}"
    for node in chain[1:]:
        left, top = place[node]
        middle = top + _height(node) / 2
        end = left - ARROW if node == chain[-1] else left
        bend = (x + end) / 2
        path += f"C{bend:g},{y:g} {bend:g},{middle:g} {end:g},{middle:g}"
        x, y = end, middle
        if node != chain[-1]:
            x = left + BOX_WIDTH
            path += f"C{left + BOX_WIDTH / 3:g},{y:g} {x - BOX_WIDTH / 3:g},{y:g} {x:g},{y:g}"
    return path
