"""Plain scalars by the core schema of YAML 1.2 (section 10.3.2), and by nothing else."""

from __future__ import annotations

import re

from shunter.config.errors import ShunterError

_NULL = {"", "~", "null", "Null", "NULL"}
_TRUE = {"true", "True", "TRUE"}
_FALSE = {"false", "False", "FALSE"}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INF = re.compile(r"([-+]?)\.(inf|Inf|INF)")
_NAN = {".nan", ".NaN", ".NAN"}
# int() takes quadratic time and Python refuses more digits than this by default.
_MAX_DIGITS = 4000

Scalar = None | bool | int | float | str


def parse(text: str) -> Scalar:
    """The value of an unquoted scalar.

    `3e-4` is a number, `no`, `on`, `1_000`, `12:30` and dates are strings, `012` is twelve.
    Raises ShunterError for an integer of more than 4000 digits.
    """
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    first = text[0]
    if first not in "-+.0123456789":
        return text
    if _INT.fullmatch(text):
        if len(text) > _MAX_DIGITS:
            raise ShunterError(f"an integer of {len(text)} digits", mend="Quote it if it is text.")
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text[2:] if base != 10 else text, base)
    if _FLOAT.fullmatch(text):
        return float(text)
    if infinite := _INF.fullmatch(text):
        return float("-inf" if infinite[1] == "-" else "inf")
    if text in _NAN:
        return float("nan")
    return text


def needs_quotes(text: str) -> bool:
    """True if `text` would not come back as itself when written without quotes in block context."""
    return (
        parse(text[:_MAX_DIGITS]) is not text[:_MAX_DIGITS]
        or text != text.strip()
        or text[0] in "-?:,[]{}#&*!|>'\"%@`<"
        or ": " in text
        or " #" in text
        or text.endswith(":")
        or not text.isprintable()
        or text.startswith(("---", "..."))
    )
