"""Which of many stretches stand more than once in one document."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shunter.data.curation.pages import Prefix, Spans, Words, mixed

PACKED = 24  # bits of a place inside a sorted number
WIDE = 40  # bits of a place among characters, beside which a count has 23


@dataclass(frozen=True)
class Groups:
    """Stretches that stand at least twice in a document.

    places: int64, indices of all of them, group after group, in order within a group.
    heads:  int64, where in `places` each group begins; sizes: int64, how many it has.
    later:  bool per place: not the first of its group.
    """

    places: np.ndarray
    heads: np.ndarray
    sizes: np.ndarray
    later: np.ndarray


def groups(keys: np.ndarray, places: np.ndarray) -> Groups:
    """Groups of equal keys. places: int64, rising: where each key comes from."""
    order, near = _sorted(keys)
    member = np.zeros(len(keys), bool)
    later = np.zeros(len(keys), bool)
    member[near] = member[near + 1] = later[near + 1] = True
    chosen, later = order[member], later[member]
    heads = np.flatnonzero(~later)
    sizes = np.diff(np.append(heads, len(chosen)))
    return Groups(places[chosen], heads, sizes, later)


def _sorted(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The stable order of the keys, and where in it one is equal to the next.

    One sort of a single array, of 40 bits of the key above 24 of the place, is four times as fast as a
    stable argsort; equality is then decided by all 64 bits. More keys than 2^24 are sorted the other way.
    """
    bits = np.uint64(PACKED)
    if len(keys) <= 1 << PACKED:
        packed = (keys >> bits << bits) | np.arange(len(keys), dtype=np.uint64)
        packed.sort()
        order = (packed & np.uint64((1 << PACKED) - 1)).astype(np.int64)
        near = np.flatnonzero((packed[1:] ^ packed[:-1]) < np.uint64(1 << PACKED))
        if np.array_equal(keys[order[near]], keys[order[near + 1]]):  # else 40 bits were too few
            return order, near
    order = np.argsort(keys, kind="stable")
    return order, np.flatnonzero(keys[order[1:]] == keys[order[:-1]])


def keys_of(hashes: np.ndarray, document: np.ndarray) -> np.ndarray:
    """uint64 per stretch: equal for equal stretches of one document alone."""
    return mixed(hashes + mixed(document.astype(np.uint64) + np.uint64(0xD1B54A32D192ED03)))


def duplicates(spans: Spans, chosen: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Per document: how many stretches (of the chosen ones, bool) repeat an earlier one, their characters."""
    inside = np.arange(len(spans)) if chosen is None else np.flatnonzero(chosen)
    found = groups(keys_of(spans.hashes[inside], spans.document[inside]), inside)
    again = found.places[found.later]
    document, size = spans.document[again], len(spans.pages)
    return (
        np.bincount(document, minlength=size),
        np.bincount(document, weights=spans.lengths[again], minlength=size),
    )


class Grams:
    """Repeated runs of words, for growing sizes: what repeats at size n+1 repeats at size n, so each size
    looks only at what is left of the one before."""

    def __init__(self, words: Words) -> None:
        self.words = words
        self._letters = np.zeros(len(words) + 1, np.int64)  # characters of words before each word
        np.cumsum(words.lengths, out=self._letters[1:])
        self._left = np.arange(len(words))
        self._size = 0
        self._stop = words.first[1:][words.document]  # one past the last word of each word's document

    @property
    def sequence(self) -> Prefix:
        """Hashes of runs of words."""
        return self.words.sequence

    def characters(self, places: np.ndarray, size: int) -> np.ndarray:
        """int64 per place: characters of the `size` words from there, without what stands between."""
        return np.asarray(self._letters[places + size] - self._letters[places])

    def repeated(self, size: int) -> Groups:
        """Groups of runs of `size` words that stand at least twice. Sizes must be asked in rising order."""
        assert size > self._size, "sizes are asked in rising order"
        self._size = size
        places = self._left
        places = places[places + size <= self._stop[places]]
        hashes = self.sequence.of(places, places + size)
        found = groups(keys_of(hashes, self.words.document[places]), places)
        self._left = np.sort(found.places)
        return found

    def top(self, size: int, found: Groups) -> np.ndarray:
        """int64 per document: characters (one between words) of its most frequent run of `size` words,
        times its count; of equally frequent ones the first; 0 for a document with fewer words."""
        words = self.words
        first = words.first[:-1]
        long = words.counts >= size
        value = np.zeros(len(words.pages), np.int64)
        value[long] = self.characters(first[long], size) + size - 1
        if len(found.heads):
            heads = found.places[found.heads]
            # The count above, the place from behind below: the greatest is the first of the most frequent.
            rank = (found.sizes << WIDE) | ((1 << WIDE) - 1 - heads)
            order = np.argsort(heads)
            document = words.document[heads[order]]
            begin = np.flatnonzero(np.append(True, document[1:] != document[:-1]))
            best = np.maximum.reduceat(rank[order], begin)
            place, count = (1 << WIDE) - 1 - (best & ((1 << WIDE) - 1)), best >> WIDE
            value[document[begin]] = count * (self.characters(place, size) + size - 1)
        return value

    def covered(self, size: int, found: Groups, limit: np.ndarray) -> np.ndarray:
        """float64 per document: characters of repeated runs of `size` words, read from left to right: a run
        that has been met counts and is stepped over, another is remembered and one word stepped on.

        limit: per document; a value that cannot exceed it is a bound from above instead, which is cheap.
        (Gopher, table A1; the reading is datatrove's find_all_duplicate.)
        """
        words = self.words
        again = np.sort(found.places[found.later])
        document = words.document[again]
        sizes = self.characters(again, size)
        bound = np.bincount(document, weights=sizes, minlength=len(words.pages))
        for number in np.flatnonzero(bound > limit).tolist():
            low, high = np.searchsorted(document, [number, number + 1])
            bound[number] = self._read(number, size, again[low:high])
        return bound

    def _read(self, number: int, size: int, again: np.ndarray) -> int:
        """The exact value of one document; `again`: places of runs that stand earlier too."""
        begin, end = int(self.words.first[number]), int(self.words.first[number + 1])
        runs = np.arange(begin, end - size + 1)
        names = self.sequence.of(runs, runs + size).tolist()
        met: set[int] = set()
        total = at = 0
        for place in (again - begin).tolist():
            # No run between here and the next that stands earlier can have been met.
            if place < at:
                continue
            met.update(names[at:place])
            at = place
            if names[at] in met:
                total += int(self._letters[begin + at + size] - self._letters[begin + at])
                at += size
            else:
                met.add(names[at])
                at += 1
        return total
