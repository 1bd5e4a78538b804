"""Dotted overrides of a configuration: `jobs.base.train.lr=3e-4`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from shunter.config import yaml
from shunter.config.errors import ShunterError
from shunter.config.nearest import nearest
from shunter.config.yaml import KeyPath, Source, dotted


def apply(source: Source, overrides: Sequence[str], *, closed: Collection[KeyPath] = (("jobs",),)) -> Source:
    """A new source with each `path=value` set, in order; the later of two equal paths wins.

    path:   keys joined by dots, list items by index (from 0, or -1 for the last); a key that holds
            dots is found when it exists, else written in double quotes.
    value:  YAML by the 1.2 core schema; nothing after '=' is null.
    closed: mappings whose members are names given by the file. A path through a member that is not
            there is an error here. Elsewhere a missing mapping is made, and the schema decides.

    Raises ShunterError for a malformed override, a path through a value that has no keys, an index
    out of range and an unknown member of a closed mapping.
    """
    data: Any = source.data
    texts = dict(source.overrides)
    for text in overrides:
        keys, value = _split(text)
        made: list[str | int] = []
        data = _set(data, keys, value, made, f"override {text!r}", closed)
        path = tuple(made)
        # What an earlier override set below this path is gone.
        texts = {old: was for old, was in texts.items() if old[: len(path)] != path}
        texts[path] = text
    return replace(source, data=data, overrides=texts)


def _split(text: str) -> tuple[list[str], Any]:
    """The path's parts and the parsed value. A quoted part is kept whole."""
    where = f"override {text!r}"
    parts, current, quoted, at = [], "", False, 0
    for at, char in enumerate(text):  # noqa: B007 - the position is used after the loop
        if char == '"':
            quoted = not quoted
        elif not quoted and char in ".=":
            parts.append(current)
            current = ""
            if char == "=":
                break
        else:
            current += char
    else:
        mend = "Close the quote." if quoted else "Write it as path.to.key=value."
        raise ShunterError(
            "no '=' in the override" if not quoted else "a quote is open", where=where, mend=mend
        )
    if not all(part.strip() == part and part for part in parts):
        raise ShunterError("an empty part in its path", where=where, mend="Write it as path.to.key=value.")
    value_text = text[at + 1 :]
    value = yaml.parse_value(value_text, where)
    if value is None and value_text.lstrip().startswith("#"):
        raise ShunterError("'#' begins a comment", where=where, mend="Put the value in quotes.")
    return parts, value


def _set(
    node: Any, keys: list[str], value: Any, made: list[str | int], where: str, closed: Collection[KeyPath]
) -> Any:
    """A copy of `node` with the value at `keys`; shares all that it does not touch."""
    if not keys:
        return value
    if isinstance(node, list):
        index = _index(node, keys[0], made, where)
        made.append(index)
        return [
            _set(item, keys[1:], value, made, where, closed) if i == index else item
            for i, item in enumerate(node)
        ]
    if node is None:
        node = {}
    if not isinstance(node, dict):
        raise ShunterError(
            f"{dotted(tuple(made))} is {node!r} and has no key {keys[0]!r}",
            where=where,
            mend=f"Set {dotted(tuple(made))} as a whole.",
        )
    # `matrix.train.lr` finds the key "train.lr": the longest existing join of the next parts.
    count = next((n for n in range(len(keys), 0, -1) if ".".join(keys[:n]) in node), 1)
    key, rest = ".".join(keys[:count]), keys[count:]
    if rest and key not in node and tuple(made) in closed:
        near = nearest(key, node)
        mend = f"Did you mean {near!r}?" if near else f"Known: {', '.join(map(str, node)) or 'none'}."
        raise ShunterError(f"{dotted(tuple(made))} has no {key!r}", where=where, mend=mend)
    made.append(key)
    return {**node, key: _set(node.get(key), rest, value, made, where, closed)}


def _index(node: list[Any], key: str, made: list[str | int], where: str) -> int:
    name = dotted(tuple(made))
    digits = key.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 9):
        raise ShunterError(
            f"{name} is a list and {key!r} is no index",
            where=where,
            mend=f"Write {name}.0 for its first item." if node else "The list is empty: set it as a whole.",
        )
    index = int(key)
    if not -len(node) <= index < len(node):
        count = f"{len(node)} item{'s' * (len(node) != 1)}"
        mend = f"Its last is {name}.{len(node) - 1}." if node else "Set it as a whole."
        raise ShunterError(f"{name} has {count}, none at {index}", where=where, mend=mend)
    return index % len(node)
