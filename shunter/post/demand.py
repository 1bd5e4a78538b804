"""What a kind of demand on an answer is: the values that it takes, and a function that counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Read = Callable[[Any], Any]


@dataclass(frozen=True)
class Kind:
    """check: of an answer and the values by name. needs: what reads each value, or raises ValueError."""

    check: Callable[..., bool]
    needs: Mapping[str, Read] = field(default_factory=dict)


def whole(value: Any) -> int:
    """A number of things; tables often hold such as 3.0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
        raise ValueError("no whole number from 0 on")
    return int(value)


def text(value: Any) -> str:
    """Some text."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("no text")
    return value


def letter(value: Any) -> str:
    """One sign."""
    found = text(value)
    if len(found) != 1:
        raise ValueError("not one letter")
    return found


def texts(value: Any) -> list[str]:
    """Some texts."""
    if not isinstance(value, list) or not value:
        raise ValueError("no list of texts")
    return [text(each) for each in value]


def one_of(*known: str) -> Read:
    """One of some words."""

    def read(value: Any) -> str:
        if value not in known:
            raise ValueError(f"not one of {', '.join(known)}")
        return str(value)

    return read


def bracketed(line: str, begin: str = "[", end: str = "]") -> int:
    """How many parts of a line stand between two signs, each begun anew after the last."""
    count, at = 0, line.find(begin)
    while at >= 0 and (close := line.find(end, at + len(begin))) >= 0:
        count, at = count + 1, line.find(begin, close + len(end))
    return count


# What no counting can tell: by the name that data has, what it would take.
LIBRARY = {
    "language:response_language": "a library that tells languages (langdetect)",
    "change_case:english_capital": "a library that tells English (langdetect)",
    "change_case:english_lowercase": "a library that tells English (langdetect)",
    "change_case:capital_word_frequency": "a library that parts words (nltk)",
    "length_constraints:number_sentences": "a library that parts sentences (nltk's punkt)",
    "validate_response_language": "a library that tells languages (langdetect)",
}
