"""What two answers have in common when they are written differently."""

from __future__ import annotations

import re
from fractions import Fraction

# A sign belongs to a number unless something stands before it (5-12); commas part thousands only.
# More thousands than anybody writes are not looked for: each would be tried from each of them on.
_PLAIN = r"(?:(?<![\w.)])[-+])?(?:\d{1,3}(?:,\d{3}){1,20}(?!\d)|\d+)(?:\.\d+)?"
_NUMBER = re.compile(_PLAIN)
_VALUE = re.compile(rf"({_PLAIN})(?:[eE]([-+]?\d{{1,3}})(?!\w))?")
_OVER = re.compile(r"\s?/\s?")
_POWER, _RAISED = re.compile(r"\^\s?\{?\s?$|\*\*\s?$"), re.compile(r"\s?(?:\^|\*\*)")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_LONGEST = 1000  # digits of a number whose value is asked for
_BRACE = re.compile(r"[{}]")
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


def value(text: str) -> Fraction | None:
    """What the last number of a text is worth; None where there is none, where it has more than 1000 digits,
    and where it is a part of a power (2^8, x^{2}).

    1,234, 1e5, 1/2, 1 1/2 and TeX's \\frac{1}{2} are one number each; of a date such as 1/2/2026 each stands
    for itself.
    """
    chain: list[re.Match[str]] = []
    before: re.Match[str] | None = None
    text = _FRACTION.sub(r" \1/\2 ", text)
    for match in _VALUE.finditer(text):
        if chain and _OVER.fullmatch(text, chain[-1].end(), match.start()):
            chain.append(match)
        else:
            before = chain[-1] if chain else None
            chain = [match]
    if any(len(match[0]) > _LONGEST for match in chain) or not chain:
        return None
    if _POWER.search(text, 0, chain[0].start()) or _RAISED.match(text, chain[-1].end()):
        return None
    last = _worth(chain[-1])
    if len(chain) != 2 or last == 0:
        return last
    found = _worth(chain[0]) / last
    mixed = before is not None and text[before.end() : chain[0].start()] == " " and before[0].isdigit()
    if mixed and before is not None and len(before[0]) <= _LONGEST and 0 < found < 1:
        found += _worth(before)
    return found


def _worth(match: re.Match[str]) -> Fraction:
    return Fraction(match[1].replace(",", "")) * Fraction(10) ** int(match[2] or 0)


def last_boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{...}, braces balanced; None where there is none that ends. In one pass:
    an answer may be a thousand of them that do not end."""
    begins = {match.end() for match in _BOXED.finditer(text)}
    open_: list[int] = []
    begin, end = -1, -1
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            open_.append(brace.end())
        elif open_ and (here := open_.pop()) in begins and here > begin:
            begin, end = here, brace.start()
    return None if begin < 0 else text[begin:end]


# Spellings of one and the same: sizes of fractions and brackets, spaces, units and signs of currency.
_SPELLINGS = (
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (re.compile(r"\\left|\\right|\\!|\\,|\\;|\\ |~|\\\$|\$|\\%|%|\^\\circ|\^\{\\circ\}"), ""),
    (re.compile(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\frac\s*(\d)\s*(\w)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"\\sqrt\s*(\d|(?<=\s)[A-Za-z])"), r"\\sqrt{\1}"),
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),
    (re.compile(r"\s+"), ""),
)


# What may stand beside an answer: a unit behind a number, a variable's name before all. Units are those
# that are listed: other words may be half of the answer (2 million, 5 or more, 3i).
_WORDS = {
    "mm": "millimeter millimeters", "cm": "centimeter centimeters", "m": "meter meters metre metres",
    "km": "kilometer kilometers", "in": "inch inches", "ft": "foot feet", "yd": "yard yards",
    "mi": "mile miles",
    "mg": "milligram milligrams", "g": "gram grams", "kg": "kilogram kilograms", "lb": "lbs pound pounds",
    "oz": "ounce ounces", "ton": "tons", "s": "sec second seconds", "min": "minute minutes",
    "h": "hr hour hours",
    "day": "days", "week": "weeks", "month": "months", "year": "years", "ml": "milliliter milliliters",
    "l": "liter liters litre litres", "gal": "gallon gallons", "cup": "cups", "qt": "quart quarts",
    "mph": "", "km/h": "kph", "m/s": "", "unit": "units", "degree": "degrees", "rad": "radian radians",
    "dollar": "dollars",
}  # fmt: skip
_UNITS = {word: unit for unit, words in _WORDS.items() for word in (unit, *words.split())}
_UNIT = re.compile(
    r"(?<=[\d})])((?:\s|~|\\[,;! ])*)(?:\\(?:text|mathrm|mbox)\s*\{([^{}]{1,40})\}|([A-Za-z/]{1,20}))"
    r"(?:\^\{?(\d)\}?)?\Z"
)
_SQUARED = re.compile(r"(square|sq|cubic|cu)\.? (.+)")
_NAME = re.compile(r"([A-Za-z])=([^=]+)")
_QUOTIENT = re.compile(r"(-?)\\frac\{(-?\d+)\}\{(-?\d+)\}")


def alike(text: str, other: str) -> bool:
    r"""Whether two answers in TeX mean the same, about as the normaliser of MATH has it (arXiv 2103.03874):
    0.5 is \frac{1}{2}, and a name before it (x = 5) or a unit behind it (5\text{ cm}) may be left out. Unlike
    there, it must be the same where both have one, and words that are no units of measure count."""
    if mathematical(text) == mathematical(other):
        return True
    (name, bare, unit), (other_name, other_bare, other_unit) = _parted(text), _parted(other)
    if bare != other_bare:
        return False
    return all(not a or not b or a == b for a, b in ((name, other_name), (unit, other_unit)))


def _parted(text: str) -> tuple[str, str | Fraction, str]:
    """Name, answer and unit; a number as what it is worth."""
    text, unit = text.rstrip(" .\n"), ""
    if (match := _UNIT.search(text)) and (found := _unit(match)):
        text, unit = text[: match.start()], found
    text, name = mathematical(text), ""
    if match := _NAME.fullmatch(text):
        name, text = match[1], mathematical(match[2])
    return name, _exact(text), unit


def _unit(match: re.Match[str]) -> str:
    """A unit of measure as it is written short, with its power; "" for other words. A letter alone is one
    as text behind a space: 3 m may be three times m."""
    said = match[2] or match[3]
    words, power = " ".join(said.lower().split()), match[4] or ""
    if more := _SQUARED.fullmatch(words):
        words, power = more[2], "2" if more[1].startswith("s") else "3"
    if len(words) == 1 and (match[3] or not (match[1] or said[0].isspace())):
        return ""
    return f"{_UNITS[words]}{power}" if words in _UNITS else ""


def _exact(text: str) -> str | Fraction:
    if len(text) > _LONGEST:
        return text
    if match := _QUOTIENT.fullmatch(text):
        return Fraction(int(match[1] + "1") * int(match[2]), int(match[3])) if int(match[3]) else text
    return Fraction(text) if re.fullmatch(r"-?(?:\d+\.?\d*|\.\d+)", text) else text


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
