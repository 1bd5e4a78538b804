"""Writes a tree as YAML that a person reads and edits: block style, a comment beside each key."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from shunter.config import scalar
from shunter.config.yaml import KeyPath

WIDTH = 110
Comment = Callable[[KeyPath], str | None]


def dumps(tree: dict[str, Any], comment: Comment = lambda path: None) -> str:
    """YAML of a tree of dicts with string keys, lists, and finite scalars, in the order given.

    comment: the sentence for a key path. It stands at the end of the key's line when that is at most
    110 characters long, else above it. `yaml.parse` gives the tree back.
    """
    return "\n".join(_mapping(tree, (), "", comment)) + "\n"


def _mapping(tree: dict[str, Any], path: KeyPath, indent: str, comment: Comment) -> list[str]:
    lines: list[str] = []
    for key, value in tree.items():
        here = (*path, key)
        head = f"{indent}{_text(key)}:"
        below: list[str] = []
        if isinstance(value, dict) and value:
            below = _mapping(value, here, indent + "  ", comment)
        elif isinstance(value, list) and any(isinstance(item, dict | list) and item for item in value):
            for index, item in enumerate(value):
                below += _item(item, (*here, index), indent + "  ", comment)
        else:
            head += f" {_inline(value)}"
        lines += _with_comment(head, comment(here), indent) + below
    return lines


def _item(item: Any, path: KeyPath, indent: str, comment: Comment) -> list[str]:
    if not (isinstance(item, dict) and item):
        return [f"{indent}- {_inline(item)}"]
    # The first key stands on the line of the dash, its comment above the dash.
    lines = _mapping(item, path, indent + "  ", comment)
    first = next(n for n, line in enumerate(lines) if not line.lstrip().startswith("#"))
    above = [indent + line.lstrip() for line in lines[:first]]
    return [*above, f"{indent}- {lines[first].lstrip()}", *lines[first + 1 :]]


def _with_comment(line: str, sentence: str | None, indent: str) -> list[str]:
    if not sentence:
        return [line]
    sentence = " ".join(sentence.split())
    if len(line) + 4 + len(sentence) <= WIDTH:
        return [f"{line}  # {sentence}"]
    rows, current = [], f"{indent}#"
    for word in sentence.split():
        if len(current) + 1 + len(word) > WIDTH:
            rows.append(current)
            current = f"{indent}#"
        current += f" {word}"
    return [*rows, current, line]


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(k, flow=True)}: {_inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_text(v, flow=True) if isinstance(v, str) else _inline(v) for v in value) + "]"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"{value:.1f}"
    return json.dumps(value, allow_nan=False)


def _text(text: str, *, flow: bool = False) -> str:
    if not text or scalar.needs_quotes(text) or (flow and any(c in ",[]{}:" for c in text)):
        # JSON's quoting is YAML's, but for characters above U+FFFF, which JSON escapes as two.
        return "".join(_escape(c) for c in json.dumps(text, ensure_ascii=False))
    return text


def _escape(char: str) -> str:
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
