"""What an edit did to a text, the program that does the same by deleting alone (RefineX, arXiv 2507.03253,
section 3.2), and how good many edits are."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from shunter.data.curation.edits import Call, RemoveLines, RemoveString, execute, lines_of, runs, words

CHANGED, DELETED = 20, 10  # characters: from here on a rewriting is no deletion; below this it is no edit
CHANCE = 8  # characters: what is shorter may be equal by chance (this project's)
ALIKE = 0.6  # of the characters of two lines are in common, where one became the other
PAIRS = 4096  # of lines that are compared; where more changed, each with the one in its place
Operation = tuple[str, int, int, int, int]  # as difflib tells it: tag, [begin, end) before, and after
_PIECE = re.compile(r"\s+|\w+|[^\w\s]")


@dataclass(frozen=True)
class Difference:
    """What an edit did. deleted, replaced: [begin, end) in the original. inserted: characters that are in the
    edited text alone. longest: characters of the longest insertion or replacement, on either side."""

    deleted: list[tuple[int, int]]
    replaced: list[tuple[int, int]]
    inserted: int
    longest: int

    def kept(self, size: int) -> np.ndarray:
        """bool per character of an original of `size`: whether it stands in the edited text."""
        found = np.ones(size, bool)
        for low, high in (*self.deleted, *self.replaced):
            found[low:high] = False
        return found


def difference(original: str, edited: str) -> Difference:
    """By difflib, whose operations are not always the fewest: a mere deletion may come out as more.

    Changes that only a few equal characters part are one, if something is inserted: what two unlike sentences
    have in common by chance would hide that one was put in the other's place.
    """
    deleted, replaced, inserted, longest = [], [], 0, 0
    for tag, low, high, begin, end in _joined(_difference(original, edited), original):
        if tag == "delete":
            deleted.append((low, high))
        elif tag != "equal":
            inserted += end - begin
            longest = max(longest, high - low, end - begin)
            if high > low:
                replaced.append((low, high))
    return Difference(deleted, replaced, inserted, longest)


def distil(original: str, refined: str) -> tuple[list[Call] | None, str]:
    """The program that deletes what an expert deleted, by line, or None, and why.

    Insertions and replacements of 20 characters or more are rewriting: the pair is not used. Smaller ones are
    left undone. One to nine characters deleted are no edit worth learning; none at all is `keep_all()`.
    """
    found = difference(original, refined)
    if found.longest >= CHANGED:
        return None, "rewritten"
    if not found.deleted:
        return [], ""
    if sum(high - low for low, high in found.deleted) < DELETED:
        return None, "hardly anything deleted"
    calls = _calls(original, found.deleted)
    if execute(original, calls).text != without(original, found.deleted):
        return None, "not to be said in a program"
    return calls, ""


def without(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text less some [begin, end)."""
    kept = np.ones(len(text), bool)
    for low, high in spans:
        kept[low:high] = False
    return "".join(text[low:high] for low, high in runs(kept))


def new_words(original: str, edited: str) -> float:
    """Words of the edited text that the original has not, by 1,000 words of it."""
    known, found = set(words(original)), words(edited)
    return 1000 * sum(word not in known for word in found) / len(found) if found else 0.0


@dataclass
class Marks:
    """Counts over edited documents; what the properties are made of.

    known, improved: documents of which the clean text is known and that had noise; those of them that the
    edit brought nearer to it, by characters to delete and insert. found, planted, both: characters that
    the edit took away, that are noise, and that are both. tokens: that a model wrote for them.
    """

    documents: int = 0
    characters: int = 0
    deleted: int = 0
    words: int = 0
    new: int = 0
    tokens: int = 0
    known: int = 0
    improved: int = 0
    found: int = 0
    planted: int = 0
    both: int = 0

    def add(
        self,
        original: str,
        edited: str,
        noise: Sequence[tuple[int, int]] | None = None,
        tokens: int = 0,
    ) -> None:
        """One document; "" where nothing is left of it. noise: [begin, end) of the original, if known."""
        kept = difference(original, edited).kept(len(original))
        known, found = set(words(original)), words(edited)
        self.documents += 1
        self.characters += len(original)
        self.deleted += int((~kept).sum())
        self.words += len(found)
        self.new += sum(word not in known for word in found)
        self.tokens += tokens
        if noise is None:
            return
        wrong = np.zeros(len(original), bool)
        for low, high in noise:
            wrong[low:high] = True
        self.found += int((~kept).sum())
        self.planted += int(wrong.sum())
        self.both += int((~kept & wrong).sum())
        if noise:
            self.known += 1
            clean = without(original, noise)
            self.improved += distance(edited, clean) < len(original) - len(clean)

    @property
    def new_words(self) -> float:
        """Words that the original has not, by 1,000 words that are left."""
        return 1000 * self.new / max(self.words, 1)

    @property
    def deletion_ratio(self) -> float:
        """Share of the characters that was taken away."""
        return self.deleted / max(self.characters, 1)

    @property
    def improved_share(self) -> float:
        """Of the documents that had noise."""
        return self.improved / max(self.known, 1)

    @property
    def tokens_written(self) -> float:
        """A document."""
        return self.tokens / max(self.documents, 1)

    @property
    def span_f1(self) -> float:
        """Harmonic mean of precision and recall of the characters taken away, against the noise."""
        return 2 * self.both / max(self.found + self.planted, 1)


def distance(a: str, b: str) -> int:
    """Characters to delete and to insert to make b of a, by difflib: an upper bound."""
    return sum(
        (high - low) + (end - begin) for tag, low, high, begin, end in _difference(a, b) if tag != "equal"
    )


def _calls(text: str, spans: Sequence[tuple[int, int]]) -> list[Call]:
    """Calls for deleted spans, by line: lines that go with a line feed as a whole, parts of others as
    strings."""
    gone = np.zeros(len(text) + 1, bool)
    for low, high in spans:
        gone[low:high] = True
    bounds = lines_of(text)
    full = [bool(gone[low:high].all()) for low, high in bounds]
    calls: list[Call] = []
    number = 0
    while number < len(bounds):
        last = number
        while full[last] and last + 1 < len(bounds) and full[last + 1] and gone[bounds[last][1]]:
            last += 1
        # Lines go with as many line feeds: those between them and one at either end. Else one stays, empty.
        (low, _), (_, high) = bounds[number], bounds[last]
        ends = bool(low and gone[low - 1]) or bool(high < len(text) and gone[high])
        whole = last + 1 if full[last] and (ends or high - low == len(text)) else last
        if whole > number:
            before = calls[-1] if calls else None
            if isinstance(before, RemoveLines) and before.last == number - 1:
                calls[-1] = RemoveLines(before.first, whole - 1)
            else:
                calls.append(RemoveLines(number, whole - 1))
        if whole == last:
            low, high = bounds[last]
            cuts = runs(gone[low:high])
            calls += [RemoveString(last, text[low + begin : low + end]) for begin, end in cuts]
        number = last + 1
    return calls


def _joined(found: list[Operation], text: str) -> list[Operation]:
    """With changes in a line that fewer than CHANCE characters part made one."""
    joined: list[Operation] = []
    for each in found:
        joined.append(each)
        if each[0] == "equal" or len(joined) < 3 or joined[-2][0] != "equal" or joined[-3][0] == "equal":
            continue
        before, between, after = joined[-3:]
        if (
            between[2] - between[1] < CHANCE
            and not before[0] == after[0] == "delete"
            and "\n" not in text[between[1] : between[2]]
        ):
            joined[-3:] = [("replace", before[1], after[2], before[3], after[4])]
    return joined


def _difference(original: str, refined: str) -> list[Operation]:
    """Character operations. By lines first, then by words and characters of lines that became others:
    difflib is quadratic, and most lines are equal."""
    if not original or not refined:
        return [("delete", 0, len(original), 0, 0)] if original else [("insert", 0, 0, 0, len(refined))]
    # With a line feed behind both, the last line that stays is the same line, whatever follows it.
    return _unended(list(_by_lines(original + "\n", refined + "\n")))


def _by_lines(original: str, refined: str) -> Iterator[Operation]:
    before, after = ([f"{line}\n" for line in text.split("\n")[:-1]] for text in (original, refined))
    if (fewest := _only_deleted(before, after)) is not None:
        yield from fewest
        return
    starts = [np.cumsum([0, *map(len, lines)]).tolist() for lines in (before, after)]
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag != "replace":
            yield tag, starts[0][a], starts[0][b], starts[1][c], starts[1][d]
            continue
        at, to = a, c
        for x, y in [*_alike(before[a:b], after[c:d]), (b - a, d - c)]:
            gap = (starts[0][at], starts[0][a + x], starts[1][to], starts[1][c + y])
            if a + x > at or c + y > to:
                yield ("insert" if a + x == at else "delete" if c + y == to else "replace"), *gap
            if a + x == b:
                break
            for kind, i, j, k, m in _by_words(before[a + x], after[c + y]):
                yield kind, gap[1] + i, gap[1] + j, gap[3] + k, gap[3] + m
            at, to = a + x + 1, c + y + 1


def _alike(before: Sequence[str], after: Sequence[str]) -> list[tuple[int, int]]:
    """Which lines became which, in order, of lines that have all changed: those that are most alike."""
    if len(before) == len(after) == 1:
        return [(0, 0)]
    likeness = np.zeros((len(before), len(after)))
    every = np.ndindex(*likeness.shape) if likeness.size <= PAIRS else enumerate(range(min(likeness.shape)))
    for i, j in every:
        matcher = difflib.SequenceMatcher(None, before[i], after[j], autojunk=False)
        if matcher.real_quick_ratio() >= ALIKE and matcher.quick_ratio() >= ALIKE:
            found = matcher.ratio()
            likeness[i, j] = found if found >= ALIKE else 0.0
    best = np.zeros((len(before) + 1, len(after) + 1))  # of what is behind i and j
    for i, j in np.ndindex(*likeness.shape):
        i, j = len(before) - 1 - i, len(after) - 1 - j
        best[i, j] = max(best[i + 1, j], best[i, j + 1], likeness[i, j] + best[i + 1, j + 1])
    pairs, i, j = [], 0, 0
    while i < len(before) and j < len(after):
        if likeness[i, j] and best[i, j] == likeness[i, j] + best[i + 1, j + 1]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif best[i, j] == best[i + 1, j]:
            i += 1
        else:
            j += 1
    return pairs


def _by_words(original: str, refined: str) -> Iterator[Operation]:
    pieces = (_PIECE.findall(original), _PIECE.findall(refined))
    for kind, i, j, k, m in _operations(*pieces):
        if kind != "replace":
            yield kind, i, j, k, m
            continue
        for each, p, q, r, t in _operations(list(original[i:j]), list(refined[k:m])):
            yield each, i + p, i + q, k + r, k + t


def _only_deleted(before: Sequence[str], after: Sequence[str]) -> list[Operation] | None:
    """Where lines went and nothing else, just that, which difflib does not always find; else None."""
    found: list[Operation] = []
    place = low = begin = 0
    for line in before:
        stays = place < len(after) and line == after[place]
        place += stays
        end = begin + len(line) if stays else begin
        tag = "equal" if stays else "delete"
        if found and found[-1][0] == tag:
            found[-1] = (tag, found[-1][1], low + len(line), found[-1][3], end)
        else:
            found.append((tag, low, low + len(line), begin, end))
        low, begin = low + len(line), end
    return found if place == len(after) else None


def _unended(found: list[Operation]) -> list[Operation]:
    """Without the last character of both sides, which is a line feed."""
    tag, low, high, begin, end = found.pop()
    if tag in ("delete", "insert"):
        # The other side's line feed is the last of what is equal: that is in the text, this one is not.
        _, i, j, k, m = found.pop()
        found.append(("equal", i, j - 1, k, m - 1))
        found.append((tag, low - 1, high - 1, begin - 1, end - 1))
    else:
        before, after = high - 1 > low, end - 1 > begin
        tag = tag if tag == "equal" or (before and after) else "delete" if before else "insert"
        found.append((tag, low, high - 1, begin, end - 1))
    return [each for each in found if each[2] > each[1] or each[4] > each[3]]


def _operations(before: Sequence[str], after: Sequence[str]) -> Iterator[Operation]:
    """Operations on sequences of pieces, in characters."""
    starts = [np.cumsum([0, *map(len, pieces)]).tolist() for pieces in (before, after)]
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        yield tag, starts[0][a], starts[0][b], starts[1][c], starts[1][d]
