"""What a choice of layouts moves, edge by edge, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shunter.layout.choose import Choice
from shunter.layout.graph import Edge
from shunter.layout.placement import Broadcast, Partial, Placement, Split, told
from shunter.layout.signatures import Operator


@dataclass(frozen=True)
class Line:
    """One conversion: a tensor on its way from its maker to a user. bytes: moved, of all devices together."""

    tensor: str
    maker: str
    user: str
    source: str
    target: str
    bytes: int
    sentence: str


def lines(choice: Choice, axes: Sequence[str] = ()) -> list[Line]:
    """All edges whose ends do not lie alike, dearest first. axes: their names; else axis 0, axis 1."""
    names = tuple(axes) or tuple(f"axis {number}" for number in range(len(choice.hierarchy)))
    found = []
    for edge, source, target, moved in choice.conversions():
        if source == target:
            continue
        parts = [
            _sentence(a, b, size, name)
            for a, b, size, name in zip(source, target, choice.hierarchy, names, strict=True)
            if a != b
        ]
        operators = choice.graph.operators
        found.append(
            Line(
                edge.value,
                operators[edge.producer].name,
                _user(operators[edge.consumer], edge),
                told(source),
                told(target),
                moved,
                "; ".join(parts),
            )
        )
    return sorted(found, key=lambda line: -line.bytes)


def explain(choice: Choice, axes: Sequence[str] = (), most: int | None = None) -> str:
    """A table of the conversions and their bytes. most: lines at most; the rest is counted in one line."""
    every = lines(choice, axes)
    shown = every if most is None else every[:most]
    devices = " x ".join(map(str, choice.hierarchy))
    total = choice.bytes
    text = [
        f"{devices} devices move {total:,} bytes in all ({sum(line.bytes > 0 for line in every)} conversions)"
    ]
    rows = [(line.tensor, f"{line.source} -> {line.target}", f"{line.bytes:,} B", line) for line in shown]
    widths = [max((len(str(row[column])) for row in rows), default=0) for column in range(3)]
    for tensor, change, size, line in rows:
        text.append(
            f"  {tensor:<{widths[0]}}  {change:<{widths[1]}}  {size:>{widths[2]}}  "
            f"{line.user}: {line.sentence}"
        )
    if len(every) > len(shown):
        rest = sum(line.bytes for line in every[len(shown) :])
        text.append(f"  and {len(every) - len(shown)} more, {rest:,} B")
    return "\n".join(text)


def _user(operator: Operator, edge: Edge) -> str:
    if edge.input < 0:
        return f"to go on as {operator.name!r}"
    made = " and ".join(operator.outputs[:2]) + (" ..." if len(operator.outputs) > 2 else "")
    return f"for {operator.kind} -> {made}"


def _sentence(source: Placement, target: Placement, size: int, axis: str) -> str:
    match source, target:
        case Split(i), Split(j):
            return f"the {size} devices of {axis} exchange parts: cut along dim {i}, wanted along dim {j}"
        case Split(i), Broadcast():
            return f"the {size} devices of {axis} collect the parts of dim {i} (all-gather)"
        case Broadcast(), Split(j):
            return f"each device of {axis} keeps its part of dim {j}"
        case Partial(), Broadcast():
            return f"the {size} devices of {axis} add up and all keep the {_result(source)} (all-reduce)"
        case Partial(), Split(j):
            return f"the {size} devices of {axis} add up, each its part of dim {j} (reduce-scatter)"
        case Split(), Partial():
            return f"each device of {axis} fills up its part with neutral elements"
        case Broadcast(), Partial():
            return f"the first device of {axis} keeps it, the others take neutral elements"
    return f"nothing along {axis}"


def _result(placement: Placement) -> str:
    assert isinstance(placement, Partial)
    return {"sum": "sum", "max": "maximum", "min": "minimum"}[placement.op]
