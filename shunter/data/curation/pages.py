"""Documents of one batch as arrays: characters, words, lines, and 64-bit hashes of any stretch of them.

Everything that an operator asks of a text is an expression over these arrays, so that the cost of Python is
paid once a batch, not once a word. A hash of a stretch is a difference of two prefix sums of a polynomial
modulo 2^64 with random values for characters: equal stretches have equal hashes wherever they stand, also
in other batches, and unequal ones of natural text collide with a chance below 2^-40 for stretches of a
million characters. Texts that are made to collide do: the constants are known, and the Thue-Morse word of
1,024 letters has the hash of its complement. Where a collision would cost others their text, a digest that
nobody can aim at is taken instead (`RepeatedParagraphs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from shunter.data.curation import glyphs

_RADIX = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse
_APOSTROPHES = (0x27, 0x2019)
_POINTS = (0x2E, 0x2C)


class Powers:
    """r^i and r^-i modulo 2^64 for i below a length that grows as needed."""

    def __init__(self) -> None:
        self.up = self.down = np.ones(1, np.uint64)

    def to(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Two uint64 arrays of at least `length`."""
        if length > len(self.up):
            size = 1 << (length - 1).bit_length()
            inverse = np.uint64(pow(int(_RADIX), -1, 1 << 64))
            up, down = np.full(size, _RADIX), np.full(size, inverse)
            up[0] = down[0] = 1
            self.up, self.down = np.cumprod(up), np.cumprod(down)
        return self.up, self.down


_POWERS = Powers()  # constants that are dear to make


def mixed(values: np.ndarray) -> np.ndarray:
    """uint64 -> uint64, one to one, every bit of the result hanging on every bit (splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))


class Prefix:
    """Hashes of stretches of a sequence of uint64 values."""

    def __init__(self, values: np.ndarray) -> None:
        up, self._down = _POWERS.to(len(values) + 1)
        self._sums = np.zeros(len(values) + 1, np.uint64)
        np.cumsum(values * up[: len(values)], out=self._sums[1:])

    def of(self, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """uint64 for each [begin, end)."""
        return np.asarray((self._sums[ends] - self._sums[begins]) * self._down[begins])

    def grams(self, size: int) -> np.ndarray:
        """uint64 for each stretch of `size` consecutive values; empty when there are fewer."""
        if len(self._sums) <= size:
            return np.zeros(0, np.uint64)
        count = len(self._sums) - size
        return np.asarray((self._sums[size:] - self._sums[:-size]) * self._down[:count])


def lowered(pages: Pages) -> Prefix:
    """Hashes of stretches of characters without case, at the places of the pages' own."""
    return Prefix(mixed(np.take(glyphs.small(), pages.codes, mode="clip").astype(np.uint64)))


class Pages:
    """A batch of documents. All positions are in characters of `codes`.

    codes:  uint32; the documents one after another, a line feed after each.
    begins: int64 per document; ends: likewise, the place of that line feed.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        joined = "\n".join(texts) + "\n" if len(texts) else ""
        self.codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        after = np.cumsum(lengths + 1)
        self.begins, self.ends = after - lengths - 1, after - 1
        self.lengths = lengths
        self.removed = np.zeros(0, np.int64)  # places that a folded batch lacks, in the batch that it is of

    def __len__(self) -> int:
        return len(self.begins)

    def forget(self) -> None:
        """Let go of words, lines and paragraphs. They point back here, so that without this all arrays would
        stay until the interpreter looks for cycles, which it seldom does: they are few objects, but large."""
        for name in ("words", "lines", "paragraphs"):
            self.__dict__.pop(name, None)

    def folded(self) -> Pages:
        """The same documents without what near-duplicates may differ in: case, diacritics, punctuation,
        the digits of numbers. They have no `texts`."""
        codes = np.take(glyphs.folded(), self.codes, mode="clip")
        gone = codes == 0
        digits = codes == ord("0")
        gone[1:] |= digits[1:] & digits[:-1]
        removed = np.flatnonzero(gone)
        plain = Pages([])
        plain.codes = codes[~gone] if len(removed) else codes
        plain.begins = self.begins - np.searchsorted(removed, self.begins)
        plain.ends = self.ends - np.searchsorted(removed, self.ends)
        plain.lengths = plain.ends - plain.begins
        plain.removed = removed
        return plain

    def unfolded(self, places: np.ndarray) -> np.ndarray:
        """int64: the same characters' places in the batch that this one is the folded form of."""
        before = self.removed - np.arange(len(self.removed))
        return np.asarray(places + np.searchsorted(before, places, side="right"))

    @cached_property
    def sizes(self) -> np.ndarray:
        """int64 per document: its bytes in UTF-8."""
        sizes = self.lengths
        for least in (0x80, 0x800, 0x10000):
            places = np.flatnonzero(self.codes >= least)
            if not len(places):
                break
            sizes = sizes + self.per_document(places)
        return sizes

    @cached_property
    def flags(self) -> np.ndarray:
        """uint8 per character, see `glyphs.flags`."""
        return np.take(glyphs.flags(), self.codes, mode="clip")

    @cached_property
    def spaces(self) -> np.ndarray:
        """bool per character."""
        return np.asarray((self.flags & glyphs.SPACE) != 0)

    @cached_property
    def of_letters(self) -> np.ndarray:
        """bool per character: a letter, mark or number, or inside a word of these, as `Words` says."""
        codes, flags = self.codes, self.flags
        letter = (flags & glyphs.WORD) != 0
        # Both are looked up before either is added: "1.'2" joins nothing.
        joined = []
        for marks, needed in ((_APOSTROPHES, letter), (_POINTS, (flags & glyphs.DIGIT) != 0)):
            places = np.flatnonzero((codes == marks[0]) | (codes == marks[1]))
            places = places[(places > 0) & (places < len(codes) - 1)]
            joined.append(places[needed[places - 1] & needed[places + 1]])
        letter[np.concatenate(joined)] = True
        return letter

    @cached_property
    def hashes(self) -> Prefix:
        """Of stretches of characters."""
        return Prefix(mixed(self.codes.astype(np.uint64) + np.uint64(0x632BE59BD9B4E019)))

    @cached_property
    def words(self) -> Words:
        """The words of all documents."""
        return Words(self)

    @cached_property
    def lines(self) -> Lines:
        """The lines of all documents, also empty ones."""
        return Lines(self, np.flatnonzero(self.codes == 10))

    @cached_property
    def paragraphs(self) -> Spans:
        """The paragraphs of all documents: what two line feeds or more part; none is empty."""
        lines = self.lines
        # A paragraph begins with a line that has characters after one that has none, or first of all.
        filled = lines.ends > lines.begins
        heads = filled.copy()
        heads[1:] &= ~filled[:-1]
        heads[lines.first[:-1]] = filled[lines.first[:-1]]
        tails = filled.copy()
        tails[:-1] &= ~filled[1:]
        tails[lines.first[1:] - 1] = filled[lines.first[1:] - 1]
        return Spans(self, lines.begins[heads], lines.ends[tails])

    @cached_property
    def hashes_whole(self) -> np.ndarray:
        """uint64 per document, of its whole text."""
        return self.hashes.of(self.begins, self.ends)

    def per_document(self, places: np.ndarray) -> np.ndarray:
        """int64 per document: how many of the sorted `places` stand in it."""
        return np.asarray(np.searchsorted(places, self.ends) - np.searchsorted(places, self.begins))

    def count(self, character: str) -> np.ndarray:
        """int64 per document: how often the character stands in it."""
        return self.per_document(np.flatnonzero(self.codes == ord(character)))


class Spans:
    """Stretches of characters, none of which crosses documents, in order.

    begins, ends: int64 per stretch. first: int64, one more than documents; those of document d are
    first[d] to first[d + 1].
    """

    def __init__(self, pages: Pages, begins: np.ndarray, ends: np.ndarray) -> None:
        self.pages, self.begins, self.ends = pages, begins, ends
        self.first = np.append(np.searchsorted(begins, pages.begins), len(begins))

    def __len__(self) -> int:
        return len(self.begins)

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 per stretch, in characters."""
        return np.asarray(self.ends - self.begins)

    @cached_property
    def counts(self) -> np.ndarray:
        """int64 per document: how many stretches it has."""
        return np.diff(self.first)

    @cached_property
    def document(self) -> np.ndarray:
        """int64 per stretch: its document."""
        return np.repeat(np.arange(len(self.pages)), self.counts)

    @cached_property
    def hashes(self) -> np.ndarray:
        """uint64 per stretch: equal for equal text, in any batch."""
        return self.pages.hashes.of(self.begins, self.ends)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Per document: the sum of a value (or of true ones) per stretch."""
        total = np.zeros(len(self) + 1, np.float64 if values.dtype.kind == "f" else np.int64)
        np.cumsum(values, out=total[1:])
        return np.asarray(total[self.first[1:]] - total[self.first[:-1]])


class Words(Spans):
    """Words and marks, by one rule for all languages. Spaces belong to none.

    A word is a run of letters, marks, numbers and underscores; an apostrophe between two of them and a
    point or comma between two digits belong to it. In scripts without spaces each letter, with the marks
    after it, is a word. Of what remains, a run of one and the same character is a word.
    """

    def __init__(self, pages: Pages) -> None:
        codes, flags, space, letter = pages.codes, pages.flags, pages.spaces, pages.of_letters
        before = np.empty(len(codes), bool)  # whether the character goes on with the one before it
        before[:1] = False
        np.equal(letter[1:], letter[:-1], out=before[1:])
        before[1:] &= letter[1:] | (codes[1:] == codes[:-1])
        if (flags & glyphs.SINGLE).any():
            single = (flags & glyphs.SINGLE) != 0
            before &= ~single
            before[1:] &= ~(single[:-1] & ((flags[1:] & (glyphs.ALPHA | glyphs.DIGIT)) != 0))
        solid = ~space
        starts = solid & ~before
        stops = np.empty(len(codes), bool)  # the character after a word's last
        stops[:1] = False
        np.logical_and(solid[:-1], ~(solid[1:] & before[1:]), out=stops[1:])
        super().__init__(pages, np.flatnonzero(starts), np.flatnonzero(stops))

    @cached_property
    def kinds(self) -> np.ndarray:
        """uint8 per word: the flags of all its characters together (and of spaces after it)."""
        if not len(self):
            return np.zeros(0, np.uint8)
        return np.bitwise_or.reduceat(self.pages.flags, self.begins)

    @cached_property
    def sequence(self) -> Prefix:
        """Hashes of stretches of words."""
        return Prefix(mixed(self.hashes))

    def texts(self, document: int) -> list[str]:
        """The words of one document, for tests and examples."""
        text, begin = self.pages.texts[document], int(self.pages.begins[document])
        inside = slice(self.first[document], self.first[document + 1])
        places = zip(self.begins[inside].tolist(), self.ends[inside].tolist(), strict=True)
        return [text[low - begin : high - begin] for low, high in places]


class Lines(Spans):
    """Lines between line feeds. `feeds`: the places of all line feeds, also those after documents."""

    def __init__(self, pages: Pages, feeds: np.ndarray) -> None:
        begins = np.empty(len(feeds), np.int64)
        begins[:1], begins[1:] = 0, feeds[:-1] + 1
        super().__init__(pages, begins, feeds)

    @cached_property
    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """int64 per line: places of its first and last character that is no space; (-1, -1) if none."""
        solid = np.flatnonzero(~self.pages.spaces)
        low, high = np.searchsorted(solid, self.begins), np.searchsorted(solid, self.ends)
        solid = np.append(solid, -1)
        empty = low == high
        first, last = solid[low], solid[high - 1]
        first[empty] = last[empty] = -1
        return first, last

    @cached_property
    def blank(self) -> np.ndarray:
        """bool per line: nothing but spaces stands in it."""
        return np.asarray(self.edges[0] < 0)

    @cached_property
    def dotted(self) -> np.ndarray:
        """bool per line: its last three characters, spaces at its end aside, are points."""
        codes, last = self.pages.codes, self.edges[1]
        three = last - 2 >= self.begins
        for back in range(3):
            three &= codes[np.maximum(last - back, 0)] == 0x2E
        return np.asarray(three)
