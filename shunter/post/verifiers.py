"""Functions that say how good an answer is, by rule. Each takes the answer and what was asked for; 0 to 1.

`constraint` follows IFEval (arXiv 2311.07911): what the answer must be like can be checked by counting.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping

from shunter.data.answers import alike, last_boxed, normal, value

_NO_PUNCTUATION = dict.fromkeys(map(ord, string.punctuation))


def number(answer: str, target: str) -> float:
    """Whether the answer's last number is worth what the target's is (GSM8K, as in arXiv 2411.15124): 1/2 and
    0.5 are the same, and so are 1e5 and 100,000."""
    found = value(answer)
    return float(found is not None and found == value(target))


def boxed(answer: str, target: str) -> float:
    r"""Whether the last \boxed{} holds the target, as TeX means it (`alike`); a target may itself be boxed
    (MATH)."""
    found = last_boxed(answer)
    wanted = last_boxed(target)
    return float(found is not None and alike(found, wanted or target))


def exact(answer: str, target: str) -> float:
    """Whether both are the same but for white space."""
    return float(normal(answer, "text") == normal(target, "text"))


def contains(answer: str, target: str) -> float:
    """Whether the target stands in the answer, not within a word or a number: 12 is not in 120 or 0.12. An
    empty target is in every answer."""
    said, wanted = normal(answer, "text"), normal(target, "text")
    at = said.find(wanted)
    while at >= 0 and not _alone(said, at, at + len(wanted)):
        at = said.find(wanted, at + 1)
    return float(at >= 0)


def f1(answer: str, target: str) -> float:
    """How much of the target is said, and how little else: the harmonic mean of recall and precision of
    words, each as often as it stands there, in any order. Words are as SQuAD has them (arXiv 1606.05250):
    without case, ASCII punctuation and the English articles. Two texts without any are the same."""
    said, wanted = (Counter(_compared(text)) for text in (answer, target))
    if not said or not wanted:
        return float(said == wanted)
    return 2 * (said & wanted).total() / (said.total() + wanted.total())


def _compared(text: str) -> list[str]:
    bare = text.lower().translate(_NO_PUNCTUATION)
    return [word for word in bare.split() if word not in ("a", "an", "the")]


def _alone(text: str, begin: int, end: int) -> bool:
    """Whether neither a word nor a number goes on beyond a part of a text."""
    if begin == end:
        return True
    before, after = text[max(0, begin - 2) : begin], text[end : end + 2]
    point = r"\d[.,]" if text[begin].isdigit() else None, r"[.,]\d" if text[end - 1].isdigit() else None
    return not (
        _joined(before[-1:], text[begin])
        or _joined(text[end - 1], after[:1])
        or (point[0] and re.fullmatch(point[0], before))
        or (point[1] and re.fullmatch(point[1], after))
    )


def _joined(a: str, b: str) -> bool:
    """Whether two signs are of one word. Letters without upper case are of scripts that do not part words, or
    hang words together otherwise: there, nothing is known."""
    return all(c != "" and (c.isdigit() or c == "_" or c.lower() != c.upper()) for c in (a, b))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['\u2019-]\w+)*", text)


def _is_titled(line: str) -> bool:
    """Whether something stands between << and >>."""
    begin = line.find("<<")
    return begin >= 0 and line.rfind(">>") > begin + 2


def _is_json(text: str) -> bool:
    inner = re.sub(r"\A```(?:json)?", "", text.strip()).removesuffix("```").strip()
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
    "bullets": lambda answer, value: len(re.findall(r"^[^\S\n]*[*-] ", answer, re.MULTILINE)) == int(value),
    "includes": lambda answer, value: value.lower() in answer.lower(),
    "excludes": lambda answer, value: value.lower() not in answer.lower(),
    "begins_with": lambda answer, value: answer.strip().startswith(value),
    "ends_with": lambda answer, value: answer.strip().endswith(value),
    "uppercase": lambda answer, value: answer == answer.upper(),
    "lowercase": lambda answer, value: answer == answer.lower(),
    "no_commas": lambda answer, value: "," not in answer,
    "quoted": lambda answer, value: len(a := answer.strip()) > 1 and a[0] == a[-1] == '"',
    "title": lambda answer, value: any(_is_titled(line) for line in answer.split("\n")),
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
