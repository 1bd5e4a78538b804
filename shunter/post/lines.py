"""Splits of conversations and pairs, a JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.data import chat


def lines(path: Path, *needed: str) -> list[dict[str, Any]]:
    """The records, whose `messages` are a conversation. Raises ShunterError, with file and line, for one that
    is no JSON object, lacks a field of these, or holds something else in it."""
    found = []
    if not path.exists():
        raise ShunterError("there is no such split", where=str(path))
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ShunterError(f"the line is no JSON ({error})", where=f"{path}:{number}") from None
            if not isinstance(record, dict):
                raise ShunterError("the line is no JSON object", where=f"{path}:{number}")
            for name in needed:
                if name not in record:
                    raise ShunterError(
                        f"the line has no {name!r}, but {', '.join(sorted(record))}", where=f"{path}:{number}"
                    )
                if name in ("chosen", "rejected") and not isinstance(record[name], str):
                    raise ShunterError(f"{name} is no text", where=f"{path}:{number}")
            try:
                record["messages"] = chat.check(record["messages"])
            except ShunterError as error:
                raise ShunterError(error.what, where=f"{path}:{number}") from None
            found.append(record)
    return found
