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
ALLOWED = ("sm", "グロ", "女の子", "性")


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
    allow: list[str] = Field(
        list(ALLOWED),
        description="Entries of lists that do not count; mC4's: they stand in too many words of Chinese and "
        "Japanese.",
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
            words = _words(tuple(map(_as_it_is, self.lists[language])), tuple(self.allow))
            mine = languages == language
            for document, hits in _found(pages, small, words, mine, language in self.anywhere):
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
    """entries: in small letters; hashes: length -> uint64, sorted, of the entries of that length."""

    entries: frozenset[str]
    hashes: dict[int, np.ndarray]


@lru_cache(maxsize=64)
def _words(files: tuple[tuple[str, int, int], ...], allow: tuple[str, ...]) -> _Words:
    """The entries of a language's files, read once a process. Raises ShunterError where there is none."""
    allowed, paths = frozenset(map(_small, allow)), [path for path, _, _ in files]
    found = sorted({_small(each) for path in paths for each in entries(Path(path))} - allowed)
    if not found:
        raise ShunterError("the list of bad words has no entry", where=", ".join(paths), mend=BadWords.hint)
    pages = Pages(found)
    hashes = lowered(pages).of(pages.begins, pages.ends)
    lengths = pages.lengths
    by_length = {size: np.sort(hashes[lengths == size]) for size in np.unique(lengths).tolist()}
    return _Words(frozenset(found), by_length)


def _as_it_is(path: str) -> tuple[str, int, int]:
    """A file, and what tells that it is no longer the one that was read."""
    told = Path(path).stat()
    return path, told.st_mtime_ns, told.st_size


def _found(
    pages: Pages, small: Prefix, words: _Words, mine: np.ndarray, anywhere: bool
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Document by document, begin and end in its characters of what has the hash of an entry, in order."""
    letter = (pages.flags & glyphs.WORD) != 0
    before = np.empty(len(letter), bool)
    before[:1], before[1:] = False, letter[:-1]
    starts = np.ones(len(letter), bool) if anywhere else ~before
    starts[pages.ends] = False
    begins = np.flatnonzero(starts)
    documents = np.searchsorted(pages.ends, begins)
    begins, documents = begins[mine[documents]], documents[mine[documents]]
    found: list[np.ndarray] = [np.zeros((0, 2), np.int64)]
    for size, known in words.hashes.items():
        ends = begins + size
        whole = ends <= pages.ends[documents]
        if not anywhere:
            whole[whole] = ~letter[ends[whole]]
        low, high = begins[whole], ends[whole]
        hashes = small.of(low, high)
        at = np.searchsorted(known, hashes)
        at[at == len(known)] = 0
        hits = np.flatnonzero(known[at] == hashes)
        found.append(np.stack([low[hits], high[hits]], axis=1))
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
