"""Documents that hold a word of a list leave (C4, arXiv 1910.10683, section 2.2; by language: mC4, arXiv
2010.11934, section 3.1).

No list comes along. C4's is LDNOOBW's `en`, mC4's the others of the same place, under CC BY 4.0:
https://github.com/LDNOOBW/List-of-Dirty-Naughty-Obscene-and-Otherwise-Bad-Words
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from shunter.config.errors import ShunterError
from shunter.data.curation import glyphs
from shunter.data.curation.operators import Facts, Operator, Verdicts
from shunter.data.curation.pages import Pages, Prefix, lowered
from shunter.data.curation.urls import entries

UNSPACED = ("jpn", "ja", "tha", "th", "zho", "zh", "cmn", "lao", "lo", "khm", "km", "mya", "my")
_JAPANESE, _CHINESE = ("sm", "グロ", "女の子"), ("性",)  # mC4's, which stand in too many words
ALLOWED = {"jpn": _JAPANESE, "ja": _JAPANESE, "zho": _CHINESE, "zh": _CHINESE, "cmn": _CHINESE}


class BadWords(Operator):
    """Drops documents in which a word or phrase of a list stands by itself, whatever its case.

    Lists are files with an entry a line, by language. What stands beside an entry must be no letter, mark,
    number or underscore. Documents in a language that has no list stay, and are counted.
    """

    source: ClassVar[str] = "C4, arXiv 1910.10683, section 2.2; `allow`: mC4's code"
    ours: ClassVar[tuple[str, ...]] = ("anywhere",)

    kind: Literal["bad-words"] = Field("bad-words", description="Words and phrases of lists.")
    lists: dict[str, list[str]] = Field(
        min_length=1, description="Language -> files of its words and phrases, an entry a line."
    )
    default: str = Field(
        "", description="Language of documents without a label; empty: that of the only list there is."
    )
    anywhere: list[str] = Field(
        list(UNSPACED), description="Languages whose entries count inside words too: those without spaces."
    )
    allow: dict[str, list[str]] = Field(
        {language: list(entries) for language, entries in ALLOWED.items()},
        description="Language -> entries of its list that do not count; mC4's, of Chinese and Japanese.",
    )
    keep: float = Field(
        0.0, ge=0, le=1, description="Share of documents with such a word that stay, drawn by their text."
    )

    hint: ClassVar[str] = (
        "C4's list is the file `en` of github.com/LDNOOBW/"
        "List-of-Dirty-Naughty-Obscene-and-Otherwise-Bad-Words (CC BY 4.0); it does not come along."
    )

    @model_validator(mode="after")
    def _lists_have_files(self) -> BadWords:
        if empty := [language for language, files in self.lists.items() if not files]:
            raise ValueError(f"the list of {empty[0]!r} has no file")
        if self.default and self.default not in self.lists:
            raise ValueError(f"default is {self.default!r}, of which there is no list")
        return self

    @property
    def needs_labels(self) -> bool:
        """Whether it cannot tell which list is a document's without its label."""
        return not self.default and len(self.lists) > 1

    def files(self) -> list[str]:
        return [path for paths in self.lists.values() for path in paths]

    def rooted(self, base: Path) -> BadWords:
        return self.model_copy(
            update={"lists": {name: [str(base / p) for p in paths] for name, paths in self.lists.items()}}
        )

    def judge_with(self, pages: Pages, facts: Facts) -> Verdicts:
        size = len(pages)
        alone = self.default or (next(iter(self.lists)) if len(self.lists) == 1 else "")
        languages = np.asarray(facts["language"] if "language" in facts else np.full(size, alone, object))
        number, first = np.zeros(size, np.int64), [""] * size
        small = lowered(pages)
        for language in sorted(set(languages.tolist()) & self.lists.keys()):
            files, inside = tuple(map(_as_it_is, self.lists[language])), language in self.anywhere
            words = _words(files, tuple(self.allow.get(language, ())), inside)
            for document, hits in _found(pages, small, words, languages == language, inside):
                said = (_small(pages.texts[document][begin:end]) for begin, end in hits)
                if word := next((word for word in said if word in words.entries), ""):  # no other of its hash
                    number[document], first[document] = len(hits), word
        reason = np.where(number > 0, 0, -1).astype(np.int16)
        if self.keep:
            for place in np.flatnonzero(number).tolist():
                reason[place] = -1 if _drawn(pages.texts[place]) < self.keep else 0
        without = sum(language not in self.lists for language in languages.tolist())
        return Verdicts(
            ["a bad word"],
            reason,
            number.astype(np.float64),
            np.zeros(size),
            counts={"in a language without a list": without} if without else {},
            told=[{"word": word} for word in first],
        )


@dataclass(frozen=True)
class _Words:
    """entries: in small letters. plain: uint64, sorted, hashes of those that are letters, marks, numbers and
    underscores alone; others: length -> the same of the others; heads: uint32, first characters of these."""

    entries: frozenset[str]
    plain: np.ndarray
    others: dict[int, np.ndarray]
    heads: np.ndarray


@lru_cache(maxsize=64)
def _words(files: tuple[tuple[str, int, int], ...], allow: tuple[str, ...], anywhere: bool) -> _Words:
    """The entries of a language's files, read once a process; with `anywhere` none is plain. Raises
    ShunterError where there is none."""
    allowed, paths = frozenset(map(_small, allow)), [path for path, _, _ in files]
    found = sorted({_small(each) for path in paths for each in entries(Path(path))} - allowed)
    if not found:
        raise ShunterError("the list of bad words has no entry", where=", ".join(paths), mend=BadWords.hint)
    pages = Pages(found)
    hashes, letter = lowered(pages).of(pages.begins, pages.ends), (pages.flags & glyphs.WORD) != 0
    marks = np.searchsorted(np.flatnonzero(~letter), pages.ends) - np.arange(len(found))  # and those before
    plain = (np.diff(marks, prepend=0) == 0) & (not anywhere)
    lengths = np.where(plain, 0, pages.lengths)
    others = {size: np.sort(hashes[lengths == size]) for size in np.unique(lengths[~plain]).tolist()}
    heads = np.unique(np.take(glyphs.small(), pages.codes[pages.begins[~plain]]))
    return _Words(frozenset(found), np.sort(hashes[plain]), others, heads)


def _as_it_is(path: str) -> tuple[str, int, int]:
    """A file, and what tells that it is no longer the one that was read."""
    told = Path(path).stat()
    return path, told.st_mtime_ns, told.st_size


def _found(
    pages: Pages, small: Prefix, words: _Words, mine: np.ndarray, anywhere: bool
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Document by document, begin and end in its characters of what has the hash of an entry, in order."""
    letter = (pages.flags & glyphs.WORD) != 0
    before = np.zeros(len(letter), bool)
    before[1:] = letter[:-1]
    found = [np.zeros((0, 2), np.int64)]

    def look(begins: np.ndarray, ends: np.ndarray, known: np.ndarray) -> None:
        hashes = small.of(begins, ends)
        at = np.searchsorted(known, hashes)
        at[at == len(known)] = 0
        hits = np.flatnonzero(known[at] == hashes)
        found.append(np.stack([begins[hits], ends[hits]], axis=1))

    if len(words.plain):  # such an entry is all that stands between two marks
        begins, ends = np.flatnonzero(letter & ~before), np.flatnonzero(~letter & before)
        chosen = mine[np.searchsorted(pages.ends, begins)]
        look(begins[chosen], ends[chosen], words.plain)
    if words.others:
        starts = np.isin(np.take(glyphs.small(), pages.codes, mode="clip"), words.heads)
        starts &= True if anywhere else ~before
        starts[pages.ends] = False
        begins = np.flatnonzero(starts)
        documents = np.searchsorted(pages.ends, begins)
        begins, documents = begins[mine[documents]], documents[mine[documents]]
        for size, known in words.others.items():
            ends = begins + size
            whole = ends <= pages.ends[documents]
            if not anywhere:
                whole[whole] = ~letter[ends[whole]]
            look(begins[whole], ends[whole], known)
    every = np.concatenate(found)
    every = every[np.lexsort((every[:, 1], every[:, 0]))]
    owner = np.searchsorted(pages.ends, every[:, 0])
    for document in np.unique(owner).tolist():
        places = every[owner == document] - pages.begins[document]
        yield document, [(low, high) for low, high in places.tolist()]


def _small(text: str) -> str:
    """Letter by letter, as `lowered` compares."""
    table: Sequence[int] = glyphs.small()  # type: ignore[assignment]
    return "".join(chr(table[ord(letter)]) for letter in text)


def _drawn(text: str) -> float:
    """In [0, 1), by the text alone: no order and no neighbour changes it."""
    digest = hashlib.blake2b(b"bad-words:" + text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
