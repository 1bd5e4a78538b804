"""A model of runs of words or characters with interpolated Kneser-Ney smoothing, over arrays.

P(w | h) = max(c(hw) - D, 0) / c(h.) + b(h) P(w | h less its first), with c the count of the longest runs and,
of shorter ones, the number of different tokens seen before them (Chen and Goodman 1998, section 3; one
discount D = n1 / (n1 + 2 n2) an order). b(h) is what the kept runs after h leave, so probabilities sum to 1
also when rare runs are pruned. Below words is 1 / V for each of V - 1 known words and one unknown.

Runs are 64-bit hashes in sorted arrays: a lookup is a binary search, done for a whole batch at once. This is
KenLM's kind of model (Heafield 2011), whose tables are faster and whose words come from SentencePiece in
CCNet; words here are those of `Pages`, without case, diacritics and punctuation, as CCNet normalises.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shunter.config.errors import ShunterError
from shunter.data.curation import saved
from shunter.data.curation.pages import Pages, Prefix, mixed

Unit = Literal["word", "character"]
FILES = ("ngrams.json", "ngrams.safetensors")
FORMAT = 1
HELD = 1 << 22  # rows of a count that are put together before they are merged


@dataclass(frozen=True)
class Level:
    """One order. runs: uint64, sorted; share: float32, of each, what is left of it after the discount.
    contexts: uint64, sorted: what stands before the last token; rest: float32, b of each."""

    runs: np.ndarray
    share: np.ndarray
    contexts: np.ndarray
    rest: np.ndarray


class NGramModel:
    """levels: by order, 1 first. vocabulary: known words and the unknown one."""

    def __init__(self, levels: Sequence[Level], vocabulary: int, unit: Unit) -> None:
        self.levels, self.vocabulary, self.unit = list(levels), vocabulary, unit

    @property
    def order(self) -> int:
        """Tokens in the longest run."""
        return len(self.levels)

    @staticmethod
    def train(
        batches: Iterable[Sequence[str]],
        order: int = 5,
        unit: Unit = "word",
        least: Sequence[int] = (1, 1, 2),
    ) -> NGramModel:
        """Count texts. least: fewest counts of a run of 1, 2, 3... tokens that is kept; the last is for all
        longer ones."""
        counts = [_Counts() for _ in range(order)]
        for texts in batches:
            values, first = tokens(Pages(texts), unit)
            prefix, after, before = Prefix(values), _after(len(values), first), _before(len(values), first)
            for size in range(1, order + 1):
                starts = np.flatnonzero(after >= size)
                runs = prefix.of(starts, starts + size)
                heads, tails = prefix.of(starts, starts + size - 1), prefix.of(starts + 1, starts + size)
                counts[size - 1].add(runs, heads, tails, runs[before[starts] == 0])
        whole = [each.whole() for each in counts]
        if not len(whole[0][0]):
            raise ShunterError("a model of runs needs texts with words in them")
        levels: list[Level] = []
        for size in range(1, order + 1):
            runs, heads, _, seen = whole[size - 1]
            if size < order:  # of shorter runs counts how many different tokens stand before them
                seen = _looked_up(*np.unique(whole[size][2], return_counts=True), runs, 0)
                seen = seen + np.isin(runs, counts[size - 1].opening())  # a document's begin is one more
            enough = whole[size - 1][3] >= least[min(size, len(least)) - 1]
            levels.append(_level(runs, heads, seen.astype(np.float64), enough))
        return NGramModel(levels, len(levels[0].runs) + 1, unit)

    def logs(self, pages: Pages) -> tuple[np.ndarray, np.ndarray]:
        """float64 per token: the log (base e) of its probability; int64, one more than documents: the places
        of their first tokens. A token has what stands before it in its document alone."""
        values, first = tokens(pages, self.unit)
        prefix, before = Prefix(values), _before(len(values), first)
        chance = np.full(len(values), 1.0 / self.vocabulary)
        for size, level in enumerate(self.levels, 1):
            ends = np.flatnonzero(before >= size - 1) + 1
            share = _looked_up(level.runs, level.share, prefix.of(ends - size, ends), 0.0)
            rest = _looked_up(level.contexts, level.rest, prefix.of(ends - size, ends - 1), 1.0)
            chance[ends - 1] = share + rest * chance[ends - 1]
        return np.log(chance), first

    def perplexities(self, pages: Pages) -> np.ndarray:
        """float64 per document: exp of minus the mean log; not a number for one without tokens."""
        logs, first = self.logs(pages)
        bounds = zip(first[:-1].tolist(), first[1:].tolist(), strict=True)
        # Each document is summed by itself: a running sum would round by what else is in the batch.
        means = [logs[low:high].sum() / (high - low) if high > low else np.nan for low, high in bounds]
        return np.exp(-np.array(means, np.float64))

    def save(self, folder: Path) -> None:
        """Two files: ngrams.json and ngrams.safetensors."""
        arrays = {
            f"{size}.{name}": np.ascontiguousarray(values)
            for size, level in enumerate(self.levels, 1)
            for name, values in vars(level).items()
        }
        facts = {"order": self.order, "vocabulary": self.vocabulary, "unit": self.unit}
        saved.write(folder, FILES, FORMAT, facts, arrays)

    @staticmethod
    def load(folder: Path) -> NGramModel:
        """What `save` wrote. Raises ShunterError when it is not there."""
        facts, arrays = saved.read(folder, FILES, FORMAT, "a model of runs", "ngrams")
        names = ("runs", "share", "contexts", "rest")
        levels = [
            Level(*(arrays[f"{size}.{name}"] for name in names)) for size in range(1, facts["order"] + 1)
        ]
        return NGramModel(levels, facts["vocabulary"], facts["unit"])


def tokens(pages: Pages, unit: Unit) -> tuple[np.ndarray, np.ndarray]:
    """uint64 per token of all documents, and int64, one more than documents: where each begins."""
    plain = pages.folded()
    if unit == "word":
        words = plain.words
        keep = words.kinds & 0b1110 != 0 if len(words) else np.zeros(0, bool)  # letters, marks, numbers
        first = np.concatenate([[0], np.cumsum(words.sums(keep))])
        return mixed(words.hashes[keep]), first
    inside = np.ones(len(plain.codes), bool)
    inside[plain.ends] = False
    first = np.concatenate([[0], np.cumsum(plain.lengths)])
    return mixed(plain.codes[inside].astype(np.uint64) + np.uint64(1)), first


def _after(size: int, first: np.ndarray) -> np.ndarray:
    """int64 per token: tokens from it to its document's end, itself included."""
    return np.asarray(np.repeat(first[1:], np.diff(first)) - np.arange(size))


def _before(size: int, first: np.ndarray) -> np.ndarray:
    """int64 per token: tokens before it in its document."""
    return np.asarray(np.arange(size) - np.repeat(first[:-1], np.diff(first)))


def _looked_up(keys: np.ndarray, values: np.ndarray, asked: np.ndarray, absent: float) -> np.ndarray:
    """The value of each key that is asked for; `absent` where there is none. keys: sorted."""
    if not len(keys):
        return np.full(len(asked), absent)
    at = np.searchsorted(keys, asked)
    at[at == len(keys)] = 0
    return np.where(keys[at] == asked, values[at], absent)


def _level(runs: np.ndarray, heads: np.ndarray, seen: np.ndarray, enough: np.ndarray) -> Level:
    once, twice = float((seen == 1).sum()), float((seen == 2).sum())
    discount = once / (once + 2 * twice) if once else 0.5
    discount = min(max(discount, 0.1), 0.9)
    contexts, inverse = np.unique(heads, return_inverse=True)
    total = np.bincount(inverse, weights=seen)
    share = np.where(enough, np.maximum(seen - discount, 0.0) / np.maximum(total[inverse], 1e-300), 0.0)
    rest = 1.0 - np.bincount(inverse, weights=share)
    kept = share > 0
    # A context none of whose runs is kept says nothing: all is left to the shorter one.
    said = np.bincount(inverse[kept], minlength=len(contexts)) > 0
    return Level(
        runs[kept],
        share[kept].astype(np.float32),
        contexts[said],
        np.maximum(rest[said], 1e-9).astype(np.float32),
    )


class _Counts:
    """Counts of runs, with what stands before the last and after the first token of each."""

    def __init__(self) -> None:
        self._held: list[tuple[np.ndarray, ...]] = []
        self._opening: list[np.ndarray] = []
        self._rows = 0

    def opening(self) -> np.ndarray:
        """Runs that some document begins with."""
        return np.unique(np.concatenate(self._opening)) if self._opening else np.zeros(0, np.uint64)

    def add(self, runs: np.ndarray, heads: np.ndarray, tails: np.ndarray, opening: np.ndarray) -> None:
        self._opening.append(np.unique(opening))
        values, places, counts = np.unique(runs, return_index=True, return_counts=True)
        self._held.append((values, heads[places], tails[places], counts))
        self._rows += len(values)
        if self._rows > HELD and len(self._held) > 1:
            self._held = [self.whole()]
            self._rows = 0

    def whole(self) -> tuple[np.ndarray, ...]:
        """runs (sorted), heads, tails, counts."""
        if not self._held:
            empty = np.zeros(0, np.uint64)
            return empty, empty, empty, np.zeros(0, np.int64)
        runs, heads, tails, counts = (np.concatenate(part) for part in zip(*self._held, strict=True))
        values, places, inverse = np.unique(runs, return_index=True, return_inverse=True)
        total = np.bincount(inverse, weights=counts).astype(np.int64)
        return values, heads[places], tails[places], total


_LOADED: dict[str, NGramModel] = {}


def loaded(folder: str) -> NGramModel:
    """The model in a folder, read once a process."""
    if folder not in _LOADED:
        _LOADED[folder] = NGramModel.load(Path(folder))
    return _LOADED[folder]


def kinds_of(model: NGramModel) -> dict[str, Any]:
    """How many runs of each order it keeps, for people."""
    return {f"runs of {size}": len(level.runs) for size, level in enumerate(model.levels, 1)}
