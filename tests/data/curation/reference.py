"""The rules of the filters once more, a document at a time and as plainly as possible."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from shunter.data.curation import glyphs

TERMINALS = set(glyphs.terminals())
PUNCTUATION = set(glyphs.punctuation())


def letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN" or character == "_"


def single(character: str) -> bool:
    return bool(glyphs.flags()[ord(character)] & glyphs.SINGLE)


def joins(text: str, at: int) -> bool:
    """Whether an apostrophe, point or comma belongs to the word around it."""
    if not 0 < at < len(text) - 1:
        return False
    before, after = text[at - 1], text[at + 1]
    if text[at] in "'\u2019":
        return letter(before) and letter(after)
    digits = unicodedata.category(before) == unicodedata.category(after) == "Nd"
    return text[at] in ".," and digits


def words(text: str) -> list[str]:
    """As `Words` says."""
    found: list[str] = []
    new = True
    for at, character in enumerate(text):
        inside = letter(character) or joins(text, at)
        if character.isspace():
            new = True
            continue
        if not new:
            last = text[at - 1]
            if inside:
                alone = single(character) or (
                    single(last) and unicodedata.category(character) in ("Lu", "Ll", "Lt", "Lm", "Lo", "Nd")
                )
                new = alone or not (letter(last) or joins(text, at - 1))
            else:
                new = last != character
        if new:
            found.append("")
        found[-1] += character
        new = False
    return found


def repeats(parts: list[str]) -> tuple[int, int]:
    """How many parts repeat an earlier one, and their characters."""
    again = [part for at, part in enumerate(parts) if part in parts[:at]]
    return len(again), sum(map(len, again))


def top(text: str, size: int) -> int:
    split = words(text)
    runs = [" ".join(split[i : i + size]) for i in range(len(split) - size + 1)]
    if not runs:
        return 0
    run, count = Counter(runs).most_common(1)[0]
    return len(run) * count


def covered(text: str, size: int) -> int:
    split, at, total = words(text), 0, 0
    met: set[tuple[str, ...]] = set()
    while at + size <= len(split):
        run = tuple(split[at : at + size])
        if run in met:
            total += len("".join(run))
            at += size
        else:
            met.add(run)
            at += 1
    return total


def quality(text: str, stopwords: tuple[str, ...]) -> dict[str, float]:
    """Gopher's measures of a text that has a word."""
    split, lines = words(text), text.split("\n")
    if lines[-1] == "":
        lines.pop()
    solid = [w for w in split if any(c not in PUNCTUATION for c in w)]
    return {
        "words": len(solid),
        "mean word": sum(map(len, solid)) / len(solid) if solid else float("nan"),
        "hashes": text.count("#") / len(split),
        "ellipses": (text.count("...") + text.count("…")) / len(split),
        "bullets": sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines),
        "ellipsis lines": sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines),
        "letters": sum(any(c.isalpha() for c in w) for w in split) / len(split),
        "stopwords": len(set(stopwords) & set(split)),
    }


def repetition(text: str, tops: list[int], runs: list[int]) -> dict[str, float]:
    lines = [line for line in text.split("\n") if line]
    parts = [part.strip("\n") for part in re.split(r"\n{2,}", text.strip("\n"))]
    line_number, line_chars = repeats(lines)
    part_number, part_chars = repeats(parts)
    return {
        "lines": line_number / len(lines),
        "line chars": line_chars / len(text),
        "paragraphs": part_number / len(parts),
        "paragraph chars": part_chars / len(text),
        **{f"top {n}": top(text, n) / len(text) for n in tops},
        **{f"runs of {n}": covered(text, n) / len(text) for n in runs},
    }


def fineweb(text: str) -> dict[str, float]:
    lines = [line for line in text.split("\n") if line.strip()]
    return {
        "lines": len(lines),
        "ended": sum(line[-1] in TERMINALS for line in lines) / len(lines),
        "short": sum(len(line) <= 30 for line in lines) / len(lines),
        "repeated": repeats(lines)[1] / len(text.replace("\n", "")),
        "feeds": text.count("\n") / len(words(text)),
    }


CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)


def sentences(line: str) -> int:
    """One more than the words that follow another with an end of sentence among the marks between."""
    count, ended, begun = 1, False, False
    for word in words(line):
        if letter(word[0]):
            count += ended and begun
            ended, begun = False, True
        else:
            ended |= word[0] in TERMINALS
    return count


def c4(text: str) -> tuple[str, str]:
    """Reason (empty: kept) and the text that stays."""
    kept, number, found = [], 0, {"lorem ipsum": False, "curly brackets": False}
    for raw in CITATION.sub("", text).split("\n"):
        line = raw.strip()
        low = line.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")
        if any(len(word) > 1000 for word in line.split()):
            continue
        if not line.endswith((".", "?", "!", '"', "'")) or line.endswith("...") or len(line.split()) < 3:
            continue
        found["lorem ipsum"] |= "lorem ipsum" in low
        if "javascript" in low:
            continue
        found["curly brackets"] |= "{" in line
        if any(policy in low for policy in POLICIES):
            continue
        number += sentences(line)
        kept.append(line)
    for reason, there in found.items():
        if there:
            return reason, ""
    return ("too few sentences", "") if number < 5 else ("", "\n".join(kept).strip())
