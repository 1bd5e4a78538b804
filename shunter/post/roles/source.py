"""Where a value stands, without the value: what the controller hands on between roles.

A part is a result of one worker. Sources are joined row by row and shared out without anyone knowing how many
rows there are: who needs the rows asks who has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from shunter.config.errors import ShunterError
from shunter.post.roles.rows import Rows, share

_MARK = "@source"


@dataclass(frozen=True)
class Part:
    """The result `key` of a worker."""

    worker: int
    key: int


@dataclass(frozen=True)
class Joined:
    """The rows of all parts, one after the other."""

    parts: tuple[Source, ...]


@dataclass(frozen=True)
class Share:
    """Part `index` of `count` of the rows, at whole runs (`Rows.unit`)."""

    of: Source
    index: int
    count: int


Source = Part | Joined | Share


class Extent(NamedTuple):
    """What a result is: rows in runs of `unit`; None where it is no `Rows`."""

    rows: int | None
    unit: int


class Reach(Protocol):
    """How results of workers are reached. Both wait until the result is there."""

    def extent(self, part: Part) -> Extent:
        """What the result is."""

    def read(self, part: Part, begin: int | None = None, end: int | None = None) -> Any:
        """The result, or some of its rows."""


def joined(parts: Sequence[Source]) -> Source:
    """All parts as one source."""
    return parts[0] if len(parts) == 1 else Joined(tuple(parts))


def parts_of(value: Any) -> Iterator[Part]:
    """All results that a value names."""
    if isinstance(value, Part):
        yield value
    elif isinstance(value, Joined):
        for each in value.parts:
            yield from parts_of(each)
    elif isinstance(value, Share):
        yield from parts_of(value.of)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from parts_of(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from parts_of(each)


def to_json(value: Any) -> Any:
    """A value in which sources may stand, as JSON values."""
    if isinstance(value, Part):
        return {_MARK: [value.worker, value.key]}
    if isinstance(value, Joined):
        return {_MARK: {"joined": [to_json(each) for each in value.parts]}}
    if isinstance(value, Share):
        return {_MARK: {"of": to_json(value.of), "share": [value.index, value.count]}}
    if isinstance(value, Mapping):
        return {key: to_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(each) for each in value]
    return value


def from_json(value: Any) -> Any:
    """And back."""
    if isinstance(value, list):
        return [from_json(each) for each in value]
    if not isinstance(value, dict):
        return value
    if _MARK not in value:
        return {key: from_json(each) for key, each in value.items()}
    told = value[_MARK]
    if isinstance(told, list):
        return Part(*told)
    if "joined" in told:
        return Joined(tuple(from_json(each) for each in told["joined"]))
    return Share(from_json(told["of"]), *told["share"])


def resolve(value: Any, reach: Reach) -> Any:
    """The value with every source in it replaced by what it names."""
    if isinstance(value, Part | Joined | Share):
        return _read(value, reach)
    if isinstance(value, Mapping):
        return {key: resolve(each, reach) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [resolve(each, reach) for each in value]
    return value


def _read(source: Source, reach: Reach) -> Any:
    if isinstance(source, Part):
        return reach.read(source)
    pieces, _ = _pieces(source, reach)
    # Columns have names where no rows are, so one piece is read though it be empty.
    wanted = [piece for piece in pieces if piece[2] > piece[1]] or pieces[:1]
    return Rows.join([reach.read(part, begin, end) for part, begin, end in wanted])


def _pieces(source: Source, reach: Reach) -> tuple[list[tuple[Part, int, int]], int]:
    """Which rows of which results, in order, and their unit."""
    if isinstance(source, Part):
        rows, unit = reach.extent(source)
        if rows is None:
            raise ShunterError(
                "a result that is not Rows cannot be joined or shared out",
                mend="Return Rows, or give the operation a protocol that hands its results on as they are.",
            )
        return [(source, 0, rows)], unit
    if isinstance(source, Joined):
        found, unit = [], 1
        for each in source.parts:
            pieces, unit = _pieces(each, reach)
            found += pieces
        return found, unit
    pieces, unit = _pieces(source.of, reach)
    begin, end = share(sum(last - first for _, first, last in pieces), unit, source.count, source.index)
    found, at = [], 0
    for part, first, last in pieces:
        low, high = max(begin - at, 0), min(end - at, last - first)
        if low < high or not found:
            low = min(low, last - first)
            found.append((part, first + low, first + max(low, high)))
        at += last - first
    return found, unit
