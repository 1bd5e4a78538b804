"""YAML by the 1.2 core schema, with the line of every key, strict and bounded.

PyYAML's parser gives events; values are made here. Its composer is not used: it implements YAML 1.1
(where `no` is false and `3e-4` a string), keeps the last of two equal keys, and its compiled form
overruns the C stack on deeply nested input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from shunter.config import scalar
from shunter.config.errors import ShunterError
from shunter.config.syntax import explain

KeyPath = tuple[str | int, ...]

# A recipe of a thousand jobs has some 30 000 values. The bounds stop a file that would fill memory.
MAX_BYTES = 8 << 20
MAX_VALUES = 200_000
MAX_DEPTH = 64

_TOO_MANY = f"more than {MAX_VALUES} values, with aliases counted in full"
_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAGS = {
    f"tag:yaml.org,2002:{name}": kinds
    for name, kinds in {
        "null": (type(None),),
        "bool": (bool,),
        "int": (int,),
        "float": (float, int),
    }.items()
}


@dataclass(slots=True)
class Node:
    """A value with the lines of its children: child -> (line of its key or item, node)."""

    value: Any
    line: int
    children: dict[str | int, tuple[int, Node]] = field(default_factory=dict)
    size: int = 1  # values it stands for, with every alias counted in full


@dataclass(frozen=True, slots=True)
class Source:
    """A tree of plain values and the place each came from.

    data:      dicts with string keys, lists, and scalars. Do not write into it: aliases share values.
    path:      as given, for messages; `<text>` for a string.
    node:      the lines.
    overrides: key path -> the override's text, set by `overrides.apply`.
    """

    data: dict[str, Any]
    path: str
    node: Node
    overrides: dict[KeyPath, str] = field(default_factory=dict)

    def line(self, keypath: KeyPath) -> int | None:
        """The line (from 1) of the key, or of its nearest ancestor in the file; None for the root."""
        line, node = None, self.node
        for part in keypath:
            if part not in node.children:
                break
            line, node = node.children[part]
        return line

    def where(self, keypath: KeyPath) -> str:
        """`recipe.yaml:12: jobs.base.train.lr`, or the override that set it."""
        for end in range(len(keypath), -1, -1):
            if keypath[:end] in self.overrides:
                place = f"override {self.overrides[keypath[:end]]!r}"
                break
        else:
            line = self.line(keypath)
            place = f"{self.path}:{line}" if line else self.path
        return f"{place}: {dotted(keypath)}" if keypath else place


def dotted(keypath: KeyPath) -> str:
    """`jobs.corpus.sources.0.path`; a key that holds a dot or '=' is quoted, as overrides take it."""
    return ".".join(f'"{p}"' if isinstance(p, str) and ("." in p or "=" in p) else str(p) for p in keypath)


def load(path: str | Path) -> Source:
    """Read a YAML file whose top is a mapping.

    Raises ShunterError, with file and line, for a file that cannot be read, is not UTF-8, is larger
    than 8 MiB, or is not what `parse` takes.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ShunterError("file not found", where=str(path), mend="Check the path.") from None
    except IsADirectoryError:
        raise ShunterError("this is a folder, not a file", where=str(path)) from None
    except OSError as error:
        raise ShunterError(f"cannot be read ({error.strerror})", where=str(path)) from None
    if len(raw) > MAX_BYTES:
        raise ShunterError(f"larger than {MAX_BYTES >> 20} MiB: not a configuration", where=str(path))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ShunterError(
            f"not UTF-8 (byte 0x{raw[error.start]:02x})", where=f"{path}:{line}", mend="Save it as UTF-8."
        ) from None
    return parse(text, str(path))


def parse(text: str, path: str = "<text>") -> Source:
    """Read YAML text whose top is a mapping. Raises ShunterError with file and line."""
    node = _Builder(text, path).document()
    if not isinstance(node.value, dict):
        what = "the file is empty" if node.value is None else "the top must be a mapping of 'key: value'"
        raise ShunterError(what, where=f"{path}:{node.line}")
    return Source(node.value, path, node)


def parse_value(text: str, path: str) -> Any:
    """Read any YAML value, such as the right side of an override. Raises ShunterError."""
    try:
        return _Builder(text, path).document().value
    except ShunterError as error:
        raise ShunterError(error.what, where=path, mend=error.mend) from None


class _Builder:
    """Turns one stream of parser events into nodes."""

    def __init__(self, text: str, path: str) -> None:
        self.text, self.path = text, path
        self.events: Iterator[Any] = iter(())
        self.anchors: dict[str, Node] = {}
        self.merged_values = 0

    def document(self) -> Node:
        try:
            self.events = yaml.parse(self.text, _PARSER)
            next(self.events)  # the stream starts
            event = next(self.events)
            if isinstance(event, yaml.StreamEndEvent):
                return Node(None, 1)
            node = self.node(next(self.events), 0)
            next(self.events)  # the document ends
            event = next(self.events)
            if not isinstance(event, yaml.StreamEndEvent):
                raise self.error("a second document begins", event, "Keep one document in a file.")
            return node
        except yaml.YAMLError as error:
            raise explain(error, self.text, self.path) from None
        except UnicodeEncodeError:  # a lone surrogate: a byte of the command line that is not UTF-8
            raise ShunterError("not UTF-8 text", where=self.path) from None

    def node(self, event: Any, depth: int) -> Node:
        line = _line(event)
        if depth > MAX_DEPTH:
            raise self.error(f"nested deeper than {MAX_DEPTH} levels", event)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise self.error(
                    f"the alias '*{event.anchor}' has no anchor before it",
                    event,
                    f"Define '&{event.anchor}' above, or quote the text.",
                )
            return self.anchors[event.anchor]
        if isinstance(event, yaml.ScalarEvent):
            node = Node(self.leaf(event), line)
        elif isinstance(event, yaml.SequenceStartEvent):
            self.refuse_tag(event, "seq")
            node = self.sequence(line, depth)
        else:
            self.refuse_tag(event, "map")
            node = self.mapping(line, depth)
        if node.size > MAX_VALUES:
            raise self.error(_TOO_MANY, event)
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def sequence(self, line: int, depth: int) -> Node:
        node = Node([], line)
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            child = self.node(event, depth + 1)
            node.children[len(node.value)] = (_line(event), child)
            node.value.append(child.value)
            node.size += child.size
        return node

    def mapping(self, line: int, depth: int) -> Node:
        node = Node({}, line)
        merges: list[Node] = []
        merge_line = 0
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key, key_line = self.key(event, depth)
            is_merge = key == "<<" and event.implicit[0]
            before = merge_line if is_merge else node.children[key][0] if key in node.children else 0
            if before:
                raise ShunterError(
                    f"the key '{key}' stands twice, first on line {before}",
                    where=f"{self.path}:{key_line}",
                    mend="Remove one.",
                )
            child = self.node(following := next(self.events), depth + 1)
            if is_merge:
                merge_line = key_line
                merges = self.merged(child, following)
            else:
                node.children[key] = (key_line, child)
                node.value[key] = child.value
                node.size += child.size
        for parent in merges:
            self.merged_values += len(parent.value)
            if self.merged_values > MAX_VALUES:
                raise ShunterError(_TOO_MANY, where=f"{self.path}:{line}")
            for key, value in parent.value.items():
                if key not in node.value:
                    node.value[key] = value
                    node.children[key] = parent.children[key]
                    node.size += parent.children[key][1].size
        return node

    def key(self, event: Any, depth: int) -> tuple[str, int]:
        """Keys are text: `1`, `no` and `null` are names like any other."""
        if isinstance(event, yaml.AliasEvent):
            value = self.node(event, depth).value
            if not isinstance(value, str):
                raise self.error("a key must be text", event)
            return value, _line(event)
        if not isinstance(event, yaml.ScalarEvent):
            raise self.error("a key must be text, not a list or mapping", event, "Quote text with [ or {.")
        self.leaf(event)  # for its tag
        if event.anchor:
            self.anchors[event.anchor] = Node(event.value, _line(event))
        return event.value, _line(event)

    def merged(self, node: Node, event: Any) -> list[Node]:
        """The mappings that `<<:` names, first has precedence."""
        parents = [child for _, child in node.children.values()] if isinstance(node.value, list) else [node]
        for parent in parents:
            if not isinstance(parent.value, dict):
                raise self.error("'<<' takes a mapping or a list of mappings", event)
        return parents

    def leaf(self, event: Any) -> scalar.Scalar:
        tag, text = event.tag, event.value
        if tag in (None, "!") or tag == "tag:yaml.org,2002:str":
            if tag or not event.implicit[0]:
                return str(text)
            return self.resolve(event)
        if tag not in _TAGS:
            raise self.bad_tag(event)
        value = self.resolve(event)
        if type(value) not in _TAGS[tag]:
            raise self.error(f"{text!r} is not a value of its tag '!!{tag.rpartition(':')[2]}'", event)
        if tag.endswith(":float") and isinstance(value, int):
            try:
                return float(value)
            except OverflowError:
                raise self.error("a number too large for a float", event) from None
        return value

    def resolve(self, event: Any) -> scalar.Scalar:
        try:
            return scalar.parse(event.value)
        except ShunterError as error:
            raise self.error(error.what, event, error.mend) from None

    def refuse_tag(self, event: Any, name: str) -> None:
        if event.tag not in (None, "!", f"tag:yaml.org,2002:{name}"):
            raise self.bad_tag(event)

    def bad_tag(self, event: Any) -> ShunterError:
        tag = event.tag.replace("tag:yaml.org,2002:", "!!")
        return self.error(f"the tag '{tag}' is not allowed", event, "Remove it, or quote the text.")

    def error(self, what: str, event: Any, mend: str | None = None) -> ShunterError:
        return ShunterError(what, where=f"{self.path}:{_line(event)}", mend=mend)


def _line(event: Any) -> int:
    """The line, from 1, where an event begins."""
    return int(event.start_mark.line) + 1
