"""Functions that say how good an answer is, by rule. Each takes the answer and what was asked for; 0 to 1.

`constraint` follows IFEval (arXiv 2311.07911): what the answer must be like can be checked by counting.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

from shunter.data.answers import last_boxed, last_number, mathematical, normal


def number(answer: str, target: str) -> float:
    """Whether the answer's last number is the target's (GSM8K, as in arXiv 2411.15124)."""
    found = last_number(answer)
    return float(found is not None and found == last_number(target))


def boxed(answer: str, target: str) -> float:
    r"""Whether the last \boxed{} holds the target, as TeX means it; a target may itself be boxed (MATH)."""
    found = last_boxed(answer)
    wanted = last_boxed(target)
    return float(found is not None and mathematical(found) == mathematical(wanted or target))


def exact(answer: str, target: str) -> float:
    """Whether both are the same but for white space."""
    return float(normal(answer, "text") == normal(target, "text"))


def contains(answer: str, target: str) -> float:
    """Whether the target stands in the answer, not as a part of a longer word or number."""
    wanted = normal(target, "text")
    before = r"(?<!\w)" if re.match(r"\w", wanted) else ""
    behind = r"(?!\w)" if re.search(r"\w\Z", wanted) else ""
    return float(re.search(before + re.escape(wanted) + behind, normal(answer, "text")) is not None)


def matches(answer: str, pattern: str) -> float:
    """Whether the whole answer, without white space at its ends, matches a regular expression."""
    return float(re.fullmatch(pattern, answer.strip(), re.DOTALL) is not None)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['\u2019-]\w+)*", text)


def _is_json(text: str) -> bool:
    inner = re.sub(r"\A```(?:json)?\s*|\s*```\Z", "", text.strip())
    try:
        json.loads(inner)
    except ValueError:
        return False
    return True


Check = Callable[[str, str], bool]

# name -> whether (answer, value) fulfils it. Values are texts: they come from data.
CONSTRAINTS: Mapping[str, Check] = {
    "words_at_least": lambda answer, value: len(_words(answer)) >= int(value),
    "words_at_most": lambda answer, value: len(_words(answer)) <= int(value),
    "sentences_at_least": lambda a, value: len(re.findall(r"[.!?](?:\s|$)", a)) >= int(value),
    "sentences_at_most": lambda a, value: len(re.findall(r"[.!?](?:\s|$)", a)) <= int(value),
    "paragraphs": lambda answer, value: len(re.split(r"\n\s*\n", answer.strip())) == int(value),
    "bullets": lambda answer, value: len(re.findall(r"^\s*[*-] ", answer, re.MULTILINE)) == int(value),
    "includes": lambda answer, value: value.lower() in answer.lower(),
    "excludes": lambda answer, value: value.lower() not in answer.lower(),
    "begins_with": lambda answer, value: answer.strip().startswith(value),
    "ends_with": lambda answer, value: answer.strip().endswith(value),
    "uppercase": lambda answer, value: answer == answer.upper(),
    "lowercase": lambda answer, value: answer == answer.lower(),
    "no_commas": lambda answer, value: "," not in answer,
    "quoted": lambda answer, value: len(a := answer.strip()) > 1 and a[0] == a[-1] == '"',
    "title": lambda answer, value: re.search(r"<<[^\n]+>>", answer) is not None,
    "json": lambda answer, value: _is_json(answer),
}


def constraints(answer: str, wanted: Mapping[str, str]) -> float:
    """The share of the constraints that an answer fulfils; an empty answer fulfils none (IFEval, loose on
    nothing). Raises KeyError for one that does not exist."""
    if not wanted:
        return 1.0
    if not answer.strip():
        return 0.0
    return sum(CONSTRAINTS[name](answer, value) for name, value in wanted.items()) / len(wanted)
