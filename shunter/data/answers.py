"""What two answers have in common when they are written differently."""

from __future__ import annotations

import re

# A sign belongs to a number unless something stands before it (5-12); commas part thousands only.
_NUMBER = re.compile(r"(?:(?<![\w.)])[-+])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
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


def last_boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{...}, braces balanced; None where there is none that ends."""
    found = None
    for match in _BOXED.finditer(text):
        depth, begin = 1, match.end()
        for at in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0:
                found = text[begin:at]
                break
    return found


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
