"""HTML to its main text, by one of several extractors.

`fast` asks two quick ones that work differently, the walk of `article` and resiliparse. Where they say nearly
the same, the walk's text is taken, which is the more precise one; else a slow and careful one is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shunter.data import article

INSIDE = 0.9  # of the walk's words that resiliparse must have, for its text to be taken
COVERED = 0.8  # of resiliparse's words that the walk must have
LONG = 1 << 21  # characters from which `fast` asks no other: the walk is linear in time, others may not be


@dataclass(frozen=True)
class Extracted:
    """text: "" when there is none. by: the extractor whose text it is. error: what went wrong, or "".

    late: it took longer than it was given.
    """

    text: str
    by: str
    error: str = ""
    late: bool = False


def extract(html: str, method: str) -> Extracted:
    """The main text of a page. method:

    fast: `article.main_text`, where it is sure and resiliparse agrees; else trafilatura-precise, if that
    finds a text. Of very long pages the first alone.
    resiliparse: `extract_plain_text(main_content=True)`, without lists' marks, forms and links.
    trafilatura: with its defaults but comments; trafilatura-precise: with favor_precision, as FineWeb2 does.
    """
    if method == "fast":
        found = article.main_text(html)
        if len(html) > LONG:
            return Extracted(found.text, "fast")
        if found.sure and _agree(found.text, _guarded("resiliparse", html).text):
            return Extracted(found.text, "fast")
        other = _guarded("trafilatura-precise", html)
        return other if other.text else Extracted(found.text, "fast", other.error if not found.text else "")
    return _guarded(method, html)


def _agree(ours: str, theirs: str) -> bool:
    """Whether two texts have nearly the same words, each counted once."""
    mine, others = set(ours.split()), set(theirs.split())
    common = len(mine & others)
    return common >= INSIDE * len(mine) and common >= COVERED * len(others)


def _guarded(method: str, html: str) -> Extracted:
    """Foreign code on foreign pages: whatever it raises is one page's trouble, and is told."""
    try:
        return Extracted(
            _resiliparse(html) if method == "resiliparse" else _trafilatura(html, method), method
        )
    except Exception as error:
        return Extracted("", method, f"{type(error).__name__}: {error}"[:200])


def _resiliparse(html: str) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    text: str = extract_plain_text(
        html, main_content=True, list_bullets=False, alt_texts=False, links=False, form_fields=False
    )
    return text


def _trafilatura(html: str, method: str) -> str:
    import trafilatura

    options: dict[str, Any] = {"favor_precision": True} if method == "trafilatura-precise" else {}
    return trafilatura.extract(html, include_comments=False, **options) or ""
