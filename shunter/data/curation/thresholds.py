"""One language's limits from its own statistics (FineWeb2, arXiv 2506.20920, sections 3.2 and 3.4).

A limit t of an English filter becomes one of another language by comparing how a measure is spread over
reference texts of both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from shunter.data.curation.chain import Documents
from shunter.data.curation.operators import Filter
from shunter.data.curation.pages import Pages

Method = Literal["english", "mean-std", "quantile", "ten-tail", "median-ratio"]
LEAST_CUT, GREATEST_CUT = 0.3, 0.9
MOST_REMOVED = 0.75  # a limit that removes more of the reference than this is not used


def confidence_cut(scores: np.ndarray) -> float:
    """The least confidence with which a document is kept as of a language, from the confidences of all that
    were labelled so: their median less their standard deviation, between 0.3 and 0.9.

    (Section 3.2. One passage says mean where the formula says median; the formula is used.)
    """
    if not len(scores):
        return LEAST_CUT
    return float(np.clip(np.median(scores) - np.std(scores), LEAST_CUT, GREATEST_CUT))


def mean_std(limit: float, english: np.ndarray, ours: np.ndarray, high: bool) -> float:
    """As many standard deviations from the mean as in English."""
    spread = float(np.std(english))
    steps = (limit - float(np.mean(english))) / spread if spread else 0.0
    return float(np.mean(ours) + steps * np.std(ours))


def quantile(limit: float, english: np.ndarray, ours: np.ndarray, high: bool) -> float:
    """The value that removes the share of our texts that the limit removes of English ones."""
    share = float(np.mean(english > limit if high else english < limit))
    return float(np.quantile(ours, 1 - share if high else share))


def ten_tail(limit: float, english: np.ndarray, ours: np.ndarray, high: bool) -> float:
    """The value beyond which the worst tenth of our texts lies."""
    return float(np.quantile(ours, 0.9 if high else 0.1))


def median_ratio(limit: float, english: np.ndarray, ours: np.ndarray, high: bool) -> float:
    """The limit, scaled as the medians are. Where English has a median of 0 it is the limit itself."""
    middle = float(np.median(english))
    return limit * float(np.median(ours)) / middle if middle else limit


METHODS: Mapping[Method, Callable[[float, np.ndarray, np.ndarray, bool], float]] = {
    "english": lambda limit, english, ours, high: limit,
    "mean-std": mean_std,
    "quantile": quantile,
    "ten-tail": ten_tail,
    "median-ratio": median_ratio,
}
# Which measures of which filter are adapted (section 3.4); the others keep their English limits.
ADAPTED = {
    "gopher-repetition": ("lines", *(f"top {n}" for n in (2, 3, 4)), *(f"runs of {n}" for n in range(5, 11))),
    "fineweb-quality": ("ended", "feeds"),
    "gopher-quality": ("mean word", "letters"),
}
# What the paper chose for each, by ablation.
CHOSEN: Mapping[str, Method] = {
    "gopher-repetition": "mean-std",
    "fineweb-quality": "ten-tail",
    "gopher-quality": "quantile",
}


def measured(operator: Filter, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Measure -> a value for each text, exact. A batch is held at a time, beside the values."""
    documents = Documents(np.arange(len(texts)), list(texts))
    parts = [operator.measures(Pages(texts[cut]), exact=True) for cut in documents.batches()]
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else {})}


def adapt(
    operator: Filter,
    english: Mapping[str, np.ndarray],
    ours: Mapping[str, np.ndarray],
    method: Method | None = None,
) -> dict[str, float | None]:
    """Limits by the rule's reason, for the rules of `operator` that are adapted.

    english, ours: what `measured` gives of reference texts. method: default, what the paper chose for this
    filter. None turns a rule off: when its limit would remove more than three quarters of the texts.
    """
    chosen = method or CHOSEN.get(operator.name, "mean-std")
    limits: dict[str, float | None] = {}
    for rule in operator.rules():
        bound = rule.high if rule.high is not None else rule.low
        if bound is None or rule.measure not in ADAPTED.get(operator.name, ()):
            continue
        values, base = (side[rule.measure][~np.isnan(side[rule.measure])] for side in (ours, english))
        if not len(values) or not len(base):
            continue
        limit = METHODS[chosen](bound, base, values, rule.high is not None)
        removed = float(np.mean(values > limit if rule.high is not None else values < limit))
        limits[rule.reason] = limit if removed <= MOST_REMOVED else None
    return limits
