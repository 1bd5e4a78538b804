"""Sweeps: `matrix:` makes variants of a job; what reads a variant is multiplied or gathers."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shunter.config import canonical
from shunter.config.errors import ShunterError
from shunter.config.yaml import KeyPath, Node, Source

Axis = tuple[str, str]  # (job that declares the sweep, dotted key)
Labels = Mapping[Axis, str]

# Names are folder names: 255 bytes hold the name, its id and a revision.
MAX_NAME = 200
MAX_LABEL = 40


@dataclass(frozen=True)
class Point:
    """One combination of a job's own sweep: its labels, and the recipe with the values put in place."""

    labels: Labels
    data: dict[str, Any]
    source: Source


def points(stem: str, data: Mapping[str, Any], source: Source) -> Iterator[Point]:
    """The combinations of `matrix:` in a job's data, in order, the last key varying fastest.

    Each source carries the line of the swept value, so that an error in it points there. A job
    without `matrix:` is one point. Raises ShunterError for a malformed matrix.
    """
    at: KeyPath = ("jobs", stem, "matrix")
    rest = {key: value for key, value in data.items() if key != "matrix"}
    if "matrix" not in data:
        yield Point({}, rest, source)
        return
    matrix = data["matrix"]
    if not isinstance(matrix, dict) or not matrix:
        raise ShunterError(
            "must be a mapping of keys to lists of values",
            where=source.where(at),
            mend="Write matrix: {train.lr: [1e-3, 3e-3]}.",
        )
    axes = []
    for key, values in matrix.items():
        where = source.where((*at, key))
        if not isinstance(values, list) or not values:
            raise ShunterError("must be a list of at least one value", where=where)
        if key.split(".")[0] in ("kind", "matrix", "stop_early"):
            raise ShunterError(f"{key!r} cannot be swept", where=where)
        axes.append([(key, index, label) for index, label in enumerate(_labels(values, where))])
    for combination in itertools.product(*axes):
        varied: Any = rest
        node = source.node
        for key, index, _ in combination:
            keys = [int(part) if part.isdigit() else part for part in key.split(".")]
            value_node = _child(source.node, (*at, key, index))
            varied = _put(varied, keys, matrix[key][index], source.where((*at, key)))
            node = _graft(node, ("jobs", stem, *keys), value_node)
        labels = {(stem, key): label for key, _, label in combination}
        yield Point(labels, varied, replace(source, node=node))


def name(stem: str, labels: Labels) -> str:
    """`base[train.lr=0.001]`; a key that two jobs sweep is preceded by its job."""
    if not labels:
        return stem
    keys = [key for _, key in labels]
    parts = [
        f"{key}={label}" if keys.count(key) == 1 or origin == stem else f"{origin}.{key}={label}"
        for (origin, key), label in labels.items()
    ]
    text = f"{stem}[{','.join(parts)}]"
    if len(text.encode()) > MAX_NAME:
        text = f"{stem}[{_digest(text, 12)}]"
    return text


def join(left: Labels, right: Labels) -> Labels | None:
    """Both sets of labels as one; None when they differ on a shared axis."""
    if any(left.get(axis, label) != label for axis, label in right.items()):
        return None
    return {**left, **right}


def _labels(values: Sequence[Any], where: str) -> list[str]:
    """One short file-safe text a value, no two alike."""
    whole = [value if isinstance(value, str) else canonical.dumps(value) for value in values]
    if len(set(whole)) < len(whole):
        twice = next(text for text in whole if whole.count(text) > 1)
        raise ShunterError(f"the value {twice!r} stands twice", where=where, mend="Remove one.")
    safe = [re.sub(r"[^A-Za-z0-9_.+-]+", "_", text) for text in whole]
    return [
        text if len(text) <= MAX_LABEL and safe.count(text) == 1 else f"{text[:31]}~{_digest(full, 8)}"
        for text, full in zip(safe, whole, strict=True)
    ]


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _put(data: Any, keys: Sequence[str | int], value: Any, where: str) -> Any:
    """A copy of `data` with `value` at `keys`; missing mappings are made, and the schema decides."""
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(data, list):
        if not isinstance(key, int) or key >= len(data):
            raise ShunterError(f"a list of {len(data)} has no item {key!r}", where=where)
        return [_put(item, rest, value, where) if index == key else item for index, item in enumerate(data)]
    if data is not None and not isinstance(data, dict):
        raise ShunterError(f"{data!r} has no key {key!r}", where=where)
    data = data or {}
    return {**data, str(key): _put(data.get(str(key)), rest, value, where)}


def _child(node: Node, path: KeyPath) -> tuple[int, Node]:
    """Line and node at a path; the nearest ancestor's when the value came from an override."""
    line = node.line
    for part in path:
        if part not in node.children:
            return line, Node(None, line)
        line, node = node.children[part]
    return line, node


def _graft(node: Node, path: KeyPath, child: tuple[int, Node]) -> Node:
    key, rest = path[0], path[1:]
    if rest:
        _, below = node.children.get(key, (child[0], Node({}, child[0])))
        # The key's own line stays: only the swept value is somewhere else.
        child = (node.children[key][0] if key in node.children else child[0], _graft(below, rest, child))
    return replace(node, children={**node.children, key: child})
