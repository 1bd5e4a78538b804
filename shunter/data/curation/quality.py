"""A linear model that tells wanted texts from others by their words and pairs of words, and operators that
keep by it, or by the perplexity of a model of runs.

Each folded word and pair of neighbours is hashed to one of 2^bits weights; a text's logit is their mean times
a scale, and a bias: what fastText's classifier comes to when its vectors and its matrix are multiplied out
(Joulin et al. 2016, arXiv 1607.01759; DCLM, arXiv 2406.11794, section 4.4, filters with one).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from shunter.config.errors import ShunterError
from shunter.data.curation import ngrams, saved
from shunter.data.curation.pages import Pages, Prefix, mixed
from shunter.data.curation.ranked import Ranked

FILES = ("classifier.json", "classifier.safetensors")
FORMAT = 1
BATCH = 128  # texts a step
SCALE = 10.0  # of the mean: a text has hundreds of features, each of which then moves the logit


class Classifier:
    """weights: float32 [2^bits]. bias: of the logit. grams: words in the longest feature."""

    def __init__(self, weights: np.ndarray, bias: float, grams: int) -> None:
        self.weights, self.bias, self.grams = weights, bias, grams
        self.bits = len(weights).bit_length() - 1

    @staticmethod
    def train(
        texts: Sequence[str],
        wanted: np.ndarray,
        *,
        bits: int = 18,
        grams: int = 2,
        epochs: int = 5,
        rate: float = 0.5,
        seed: int = 0,
    ) -> Classifier:
        """Logistic regression by Adagrad. wanted: bool per text. Both kinds count alike, however many there
        are of each."""
        if wanted.all() or not wanted.any():
            raise ShunterError("a classifier needs texts of both kinds, wanted and others")
        found = features(Pages(texts), bits, grams)
        model = Classifier(np.zeros(1 << bits, np.float32), 0.0, grams)
        weights, squares = np.zeros(1 << bits), np.full(1 << bits, 1e-8)
        bias = square = 0.0
        each = np.where(wanted, 0.5 / wanted.mean(), 0.5 / (1 - wanted.mean()))
        draw = np.random.default_rng(seed)
        for _ in range(epochs):
            order = draw.permutation(len(texts))
            for at in range(0, len(order), BATCH):
                chosen = order[at : at + BATCH]
                rows = [found[number] for number in chosen.tolist()]
                sizes = np.array([len(row) for row in rows])
                places, owner = np.concatenate(rows), np.repeat(np.arange(len(rows)), sizes)
                share = SCALE / np.maximum(sizes, 1)
                logits = np.bincount(owner, weights=weights[places], minlength=len(rows)) * share + bias
                wrong = (_logistic(logits) - wanted[chosen]) * each[chosen] / len(rows)
                touched, inverse = np.unique(places, return_inverse=True)
                slope = np.bincount(inverse, weights=(wrong * share)[owner])
                squares[touched] += slope**2
                weights[touched] -= rate * slope / np.sqrt(squares[touched])
                square += float(wrong.sum()) ** 2
                bias -= rate * float(wrong.sum()) / np.sqrt(square + 1e-8)
        model.weights, model.bias = weights.astype(np.float32), float(bias)
        return model

    def scores(self, pages: Pages) -> np.ndarray:
        """float64 per document: the probability that it is wanted; not a number for one without words."""
        rows = features(pages, self.bits, self.grams)
        logits = np.array(
            [
                self.weights[row].sum(dtype=np.float64) * SCALE / len(row) + self.bias if len(row) else np.nan
                for row in rows
            ]
        )
        return _logistic(logits)

    def save(self, folder: Path) -> None:
        """Two files: classifier.json and classifier.safetensors."""
        facts = {"bias": self.bias, "grams": self.grams}
        saved.write(folder, FILES, FORMAT, facts, {"weights": self.weights})

    @staticmethod
    def load(folder: Path) -> Classifier:
        """What `save` wrote. Raises ShunterError when it is not there."""
        facts, arrays = saved.read(folder, FILES, FORMAT, "a classifier", "classifier")
        return Classifier(arrays["weights"], facts["bias"], facts["grams"])


def features(pages: Pages, bits: int, grams: int) -> list[np.ndarray]:
    """int64 per document: the weights of its words and runs of words, those of one length after another."""
    values, first = ngrams.tokens(pages, "word")
    prefix = Prefix(values)
    tables = [
        (mixed(prefix.grams(size) + np.uint64(size)) >> np.uint64(64 - bits)).astype(np.int64)
        for size in range(1, grams + 1)
    ]
    return [
        np.concatenate([table[low : max(low, high - size)] for size, table in enumerate(tables)])
        for low, high in zip(first[:-1].tolist(), first[1:].tolist(), strict=True)
    ]


def ranking(scores: np.ndarray, wanted: np.ndarray) -> float:
    """The chance that a wanted text scores above another one (area under the curve); ties count half."""
    order = np.argsort(scores, kind="stable")
    _, inverse, counts = np.unique(scores[order], return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    good = int(wanted.sum())
    total = ranks[wanted[order]].sum() - good * (good + 1) / 2
    return float(total / max(good * (len(scores) - good), 1))


def _logistic(values: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -60, 60))))


_LOADED: dict[str, Classifier] = {}


def loaded(folder: str) -> Classifier:
    """The classifier in a folder, read once a process."""
    if folder not in _LOADED:
        _LOADED[folder] = Classifier.load(Path(folder))
    return _LOADED[folder]


class Quality(Ranked):
    """Keeps what a trained classifier takes for the wanted kind. Default: the best tenth (DCLM, 4.4)."""

    source: ClassVar[str] = "DCLM, arXiv 2406.11794, section 4.4"
    ours: ClassVar[tuple[str, ...]] = ("by_language",)

    kind: Literal["quality"] = Field("quality", description="Keeps by a trained classifier.")
    model: str = Field("", description="Folder of a classifier; default: the job's `classifier`.")
    share: float | None = Field(0.1, gt=0, le=1, description="Share of documents that stays, best first.")

    def files(self) -> list[str]:
        return [f"{self.model}/{name}" for name in FILES] if self.model else []

    def rooted(self, base: Path) -> Quality:
        return self.model_copy(update={"model": str(base / self.model)}) if self.model else self

    column: ClassVar[str] = "quality"

    def scores(self, pages: Pages) -> np.ndarray:
        return loaded(self.model).scores(pages)


class Perplexity(Ranked):
    """Keeps what a model of runs finds least surprising. Default: the lowest fifth (POINTS, arXiv 2409.04828,
    section 3.3). The thirds that CCNet calls head, middle and tail stand in `perplexity_part` (arXiv
    1911.00359, section 4.3)."""

    source: ClassVar[str] = "POINTS, arXiv 2409.04828, section 3.3"
    ours: ClassVar[tuple[str, ...]] = ("by_language",)

    kind: Literal["perplexity"] = Field("perplexity", description="Keeps by the perplexity of a small model.")
    model: str = Field("", description="Folder of a model of runs; default: the job's `ngrams`.")
    share: float | None = Field(0.2, gt=0, le=1, description="Share of documents that stays, best first.")

    def files(self) -> list[str]:
        return [f"{self.model}/{name}" for name in ngrams.FILES] if self.model else []

    def rooted(self, base: Path) -> Perplexity:
        return self.model_copy(update={"model": str(base / self.model)}) if self.model else self

    column: ClassVar[str] = "perplexity"
    low_is_good: ClassVar[bool] = True

    def scores(self, pages: Pages) -> np.ndarray:
        return ngrams.loaded(self.model).perplexities(pages)
