"""What two answers have in common when they are written differently."""

from __future__ import annotations

import re

# A sign belongs to a number unless something stands before it (5-12); commas part thousands only.
_NUMBER = re.compile(r"(?:(?<![\w.)])[-+])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
_BEFORE, _BEHIND = re.compile(r"(?:\d\s*/\s*|\d[eE][-+]?|\^\{?)$"), re.compile(r"\s*/\s*\d|[eE][-+]?\d|\^")
_BOXED = re.compile(r"\\boxed\s*\{")


def normal(text: str, compare: str) -> str:
    """What is compared. text: white space is one space, none at the ends. number: the last number, without
    separators of thousands and without zeros after the point; the whole text when it has none."""
    if compare == "number" and (numbers := _NUMBER.findall(text)):
        number = numbers[-1].replace(",", "").lstrip("+")
        return number.rstrip("0").rstrip(".") if "." in number else number
    return " ".join(text.split())


def last_number(text: str) -> str | None:
    """The last number as `normal` writes it; None where there is none."""
    return normal(text, "number") if _NUMBER.search(text) else None


def plain_number(text: str) -> str | None:
    """The last number, or None where it is a part of a fraction or of a power (1/2, 1e5, 2^8)."""
    last = None
    for last in _NUMBER.finditer(text):  # noqa: B007 - the last one is wanted
        pass
    if last is None or _BEFORE.search(text, 0, last.start()) or _BEHIND.match(text, last.end()):
        return None
    return normal(text, "number")


def last_boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{...}, braces balanced; None where there is none that ends."""
    begins = {match.end() - 1 for match in _BOXED.finditer(text)}
    if not begins:
        return None
    # One pass: what a model repeats for ever is read once, not once for each repetition.
    opened: list[int] = []
    last = (-1, 0)
    for at, letter in enumerate(text):
        if letter == "{":
            opened.append(at)
        elif letter == "}" and opened:
            begin = opened.pop()
            if begin in begins and begin > last[0]:
                last = (begin, at)
    return text[last[0] + 1 : last[1]] if last[1] else None


# Spellings of one and the same: sizes of fractions and brackets, spaces, units and signs of currency.
_SPELLINGS = (
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (re.compile(r"\\left|\\right|\\!|\\,|\\;|\\ |~|\\\$|\$|\\%|%|\^\\circ|\^\{\\circ\}"), ""),
    (re.compile(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),
    (re.compile(r"\s+"), ""),
)


def mathematical(text: str) -> str:
    """An answer in TeX without what does not change its meaning; a plain fraction is written as one."""
    for pattern, instead in _SPELLINGS:
        text = pattern.sub(instead, text)
    text = text.rstrip(".")
    if match := re.fullmatch(r"(-?)(\d+)/(\d+)", text):
        text = rf"{match[1]}\frac{{{match[2]}}}{{{match[3]}}}"
    if re.fullmatch(r"-?\d+\.\d*", text):
        text = text.rstrip("0").rstrip(".")
    return text
