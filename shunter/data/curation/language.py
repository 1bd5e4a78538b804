"""Which language a text is in: a naive Bayes model of character runs, trained from labelled texts.

Runs of one to four small letters are hashed into a table of log-probabilities, a column a language. It is
small, learns in seconds, and knows what it was taught: for a language without examples there is `lingua`,
which knows 75 and is many times slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from shunter.config.errors import MissingExtra, ShunterError
from shunter.data.curation import glyphs, saved
from shunter.data.curation.operators import Barrier, Facts, Keys, Operator, Verdicts
from shunter.data.curation.pages import Pages, Prefix, mixed
from shunter.data.curation.thresholds import confidence_cut

LENGTHS = (1, 2, 3, 4)
SEEN = 1000  # characters of a document that are looked at
SMOOTHING = 0.5
FILES = ("languages.json", "languages.safetensors")
FORMAT = 1
HELD = 5  # one text in so many fits the confidence, while the others teach


class LanguageModel:
    """labels: one a column. weights: float32 [2^bits, languages], log-probabilities. sharpness: what turns
    their differences into confidences."""

    def __init__(self, labels: Sequence[str], weights: np.ndarray, sharpness: float) -> None:
        self.labels, self.weights, self.sharpness = list(labels), weights, sharpness
        self.bits = int(weights.shape[0]).bit_length() - 1

    @staticmethod
    def train(
        texts: Sequence[str], labels: Sequence[str], bits: int = 16, held: np.ndarray | None = None
    ) -> LanguageModel:
        """Learn from texts with one label each.

        held: bool per text, those that fit the confidence while the others teach; default: every fifth.
        """
        names = sorted(set(labels))
        if len(names) < 2:
            raise ShunterError("a language model needs texts of two languages at least")
        if held is None:
            held = np.arange(len(texts)) % HELD == HELD - 1
        known = np.array([names.index(label) for label in labels])
        taught = LanguageModel(names, _weights(texts, known, ~held, len(names), bits), 1.0)
        sharpness = taught._fitted([t for t, h in zip(texts, held.tolist(), strict=True) if h], known[held])
        return LanguageModel(names, _weights(texts, known, held | True, len(names), bits), sharpness)

    def scores(self, texts: Sequence[str], seen: int = SEEN) -> np.ndarray:
        """float64 [texts, languages]: mean log-probability of a run, by the root of the number of runs.

        seen: characters of a text that are looked at, from its beginning; 0: all.
        """
        found = np.zeros((len(texts), len(self.labels)))
        for row, runs in zip(found, hashed(texts, self.bits, seen), strict=True):
            if len(runs):
                row += self.weights[runs].sum(axis=0, dtype=np.float64) / np.sqrt(len(runs))
        return found

    def confidences(self, texts: Sequence[str], seen: int = SEEN) -> np.ndarray:
        """float64 [texts, languages], each row of sum 1."""
        return _softmax(self.scores(texts, seen) * self.sharpness)

    def save(self, folder: Path) -> None:
        """Two files: languages.json and languages.safetensors."""
        facts = {"labels": self.labels, "sharpness": self.sharpness}
        saved.write(folder, FILES, FORMAT, facts, {"weights": self.weights})

    @staticmethod
    def load(folder: Path) -> LanguageModel:
        """What `save` wrote. Raises ShunterError when it is not there."""
        facts, arrays = saved.read(folder, FILES, FORMAT, "a language model", "languages")
        return LanguageModel(facts["labels"], arrays["weights"], facts["sharpness"])

    def _fitted(self, texts: Sequence[str], known: np.ndarray) -> float:
        """The sharpness that makes the held-out labels most likely."""
        if not len(texts):
            return 1.0
        scores = self.scores(texts)
        tried = np.geomspace(0.01, 100, 60)
        rows = np.arange(len(texts))
        loss = [-np.log(np.maximum(_softmax(scores * s)[rows, known], 1e-12)).mean() for s in tried]
        return float(tried[int(np.argmin(loss))])


def hashed(texts: Sequence[str], bits: int, seen: int = SEEN) -> list[np.ndarray]:
    """int64 per text: the places in the table of its runs of letters, spaces between words included."""
    pages = Pages([f" {text[: seen or None]} " for text in texts])
    codes = np.take(_lowered(), pages.codes, mode="clip")
    codes[pages.ends] = 10  # what crosses documents is left out below
    repeated = np.zeros(len(codes), bool)
    repeated[1:] = (codes[1:] == 32) & (codes[:-1] == 32)
    removed = np.flatnonzero(repeated)
    begins = pages.begins - np.searchsorted(removed, pages.begins)
    ends = pages.ends - np.searchsorted(removed, pages.ends)
    runs = Prefix(mixed(codes[~repeated].astype(np.uint64)))
    tables = [
        (mixed(runs.grams(length) + np.uint64(length)) >> np.uint64(64 - bits)).astype(np.int64)
        for length in LENGTHS
    ]
    return [
        np.concatenate(
            [table[low : max(low, high - length + 1)] for table, length in zip(tables, LENGTHS, strict=True)]
        )
        for low, high in zip(begins.tolist(), ends.tolist(), strict=True)
    ]


def _lowered() -> np.ndarray:
    """uint32 per code point: small letters and marks; a space for all else."""
    global _LOWERED
    if _LOWERED is None:
        table = np.full(glyphs.LIMIT, 32, np.uint32)
        kinds = glyphs.flags()
        for code in np.flatnonzero((kinds & glyphs.WORD != 0) & (kinds & glyphs.DIGIT == 0)).tolist():
            table[code] = ord(chr(code).lower()[0])
        _LOWERED = table
    return _LOWERED


_LOWERED: np.ndarray | None = None


def _weights(texts: Sequence[str], known: np.ndarray, chosen: np.ndarray, size: int, bits: int) -> np.ndarray:
    counts = np.zeros((size, 1 << bits))
    for number in range(size):
        mine = [texts[place] for place in np.flatnonzero(chosen & (known == number)).tolist()]
        for runs in hashed(mine, bits):
            counts[number] += np.bincount(runs, minlength=1 << bits)
    counts += SMOOTHING
    return np.ascontiguousarray(np.log(counts / counts.sum(axis=1, keepdims=True)).T.astype(np.float32))


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


class Language(Operator):
    """Labels each document with a language and its confidence, and drops what is not wanted.

    (FineWeb2, section 3.2: the label decides alone; below its confidence a document leaves.)
    """

    source: ClassVar[str] = "FineWeb2, arXiv 2506.20920, section 3.2"
    ours: ClassVar[tuple[str, ...]] = ("by", "seen")

    kind: Literal["language"] = Field("language", description="Labels documents with their language.")
    by: Literal["own", "lingua"] = Field(
        "own", description="own: a model of this project; lingua: its 75 languages, by ISO 639-3 code."
    )
    among: list[str] = Field([], description="lingua: codes that it chooses among; empty: all.")
    model: str = Field("", description="own: folder of a model; default: the job's `languages`.")
    keep: list[str] | None = Field(None, description="Languages that stay; null: all.")
    min_confidence: float = Field(0.0, ge=0, le=1, description="Least confidence in the label.")
    cuts: dict[str, float] = Field({}, description="Least confidence by language, instead of min_confidence.")
    seen: int = Field(
        SEEN, ge=0, description="Characters that are looked at, from the beginning of a document; 0: all."
    )

    def columns(self) -> dict[str, str]:
        return {"language": "string", "language_score": "double"}

    def ready(self) -> None:
        if self.by == "lingua" and find_spec("lingua") is None:
            raise MissingExtra("lingua-language-detector", extra="languages", purpose="language by lingua")

    def labels(self) -> list[str]:
        """What it may tell. Raises ShunterError for a code in `among` that lingua does not know."""
        return list(lingua(tuple(self.among))[1]) if self.by == "lingua" else loaded(self.model).labels

    def judge_with(self, pages: Pages, facts: Facts) -> Verdicts:
        if self.by == "lingua":
            detector, names = lingua(tuple(self.among))
            known = list(names)
            best, score = np.zeros(len(pages), np.int64), np.zeros(len(pages))
            for place, text in enumerate(pages.texts):
                first = detector.compute_language_confidence_values(text[: self.seen or None])[0]
                best[place], score[place] = names[_code(first.language)], first.value
        else:
            model = loaded(self.model)
            known = model.labels
            sure = model.confidences(pages.texts, self.seen)
            best = sure.argmax(axis=1) if len(pages) else np.zeros(0, np.int64)
            score = sure[np.arange(len(pages)), best]
        labels = np.array(known, object)[best]
        cut = np.array([self.cuts.get(label, self.min_confidence) for label in known])[best]
        wanted = np.array([self.keep is None or label in self.keep for label in known])[best]
        reason = np.where(~wanted, 0, np.where(score < cut, 1, -1)).astype(np.int16)
        told = {"language": labels, "language_score": score.round(6)}
        return Verdicts(["another language", "unsure of the language"], reason, score, cut, told)


class ConfidenceCut(Barrier):
    """Drops documents whose label is less sure than most of its language's: below the median of all
    confidences of that label less their standard deviation, between 0.3 and 0.9 (FineWeb2, section 3.2)."""

    source: ClassVar[str] = "FineWeb2, arXiv 2506.20920, section 3.2"

    kind: Literal["confidence-cut"] = Field(
        "confidence-cut", description="A language's own least confidence; after `language`."
    )

    def keys_with(self, pages: Pages, facts: Facts) -> Keys:
        if len(pages) and "language" not in facts:
            raise ShunterError("confidence-cut needs `language` before it in the chain")
        empty = np.zeros(0)
        return {
            "labels": facts.get("language", empty).astype(np.str_),
            "scores": facts.get("language_score", empty),
        }

    def settle(self, keys: Any) -> Keys:
        """score and cut: float64 per document. All scores and labels are held: about 60 bytes a document."""
        labels, scores = np.asarray(keys["labels"]), np.asarray(keys["scores"], np.float64)
        cuts = np.zeros(len(scores))
        for label in np.unique(labels):
            cuts[labels == label] = confidence_cut(scores[labels == label])
        return {"score": scores, "cut": cuts}

    def judge_settled(self, pages: Pages, settled: Keys) -> Verdicts:
        reason = np.where(settled["score"] < settled["cut"], 0, -1).astype(np.int16)
        return Verdicts(["unsure of the language"], reason, settled["score"], settled["cut"])


_LOADED: dict[str, LanguageModel] = {}


def loaded(folder: str) -> LanguageModel:
    """The model in a folder, read once a process."""
    if folder not in _LOADED:
        _LOADED[folder] = LanguageModel.load(Path(folder))
    return _LOADED[folder]


def _code(language: Any) -> str:
    return str(language.iso_code_639_3.name).lower()


@lru_cache(maxsize=4)
def lingua(among: tuple[str, ...]) -> tuple[Any, dict[str, int]]:
    """lingua's detector for languages of these codes (none: all), and the place of each code."""
    from lingua import Language as Known
    from lingua import LanguageDetectorBuilder

    every = {_code(language): language for language in Known.all()}
    if unknown := [code for code in among if code not in every]:
        raise ShunterError(
            f"lingua does not know {unknown[0]!r}", mend=f"It knows {', '.join(sorted(every))}."
        )
    codes = sorted(set(among) or every)
    if len(codes) < 2:
        raise ShunterError("lingua chooses among two languages at least", mend="Name more in `among`.")
    made = LanguageDetectorBuilder.from_languages(*(every[code] for code in codes)).build()
    return made, {code: place for place, code in enumerate(codes)}
