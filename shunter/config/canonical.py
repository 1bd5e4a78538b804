"""One text for one value: what identities are digested from."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel


def dumps(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, UTF-8 text unescaped, shortest round-trip floats.

    Takes JSON's types, tuples (as lists) and pydantic models (as their JSON dump). Two equal trees give
    one text and unequal trees two; `1` and `1.0` are different, so give validated configurations.
    Raises TypeError for other types and for keys that are not strings, ValueError for NaN and
    infinities: these are bugs, because a validated configuration holds none.
    """
    return json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(value: Any) -> str:
    """SHA-256 of `dumps(value)`, as 64 hex digits."""
    return hashlib.sha256(dumps(value).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, dict):
        for key in value:
            # json.dumps would write 1 and "1" alike.
            if not isinstance(key, str):
                raise TypeError(f"canonical JSON takes string keys, not {key!r}")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"canonical JSON takes no {type(value).__name__}")
