"""95 % intervals: over items by resampling them, and for proportions in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shunter.config.seed import derive_seed

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
RESAMPLES = 2000
# Draws held at once while resampling: 16 MiB of indices.
_DRAWS = 1 << 21
# Beyond this many items the resampled distribution is normal to within its own noise.
_MANY = 50_000


def mean(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """sum(w x) / sum(w); nan when there is nothing to average."""
    x, w = _arrays(values, weights)
    return float((w * x).sum() / w.sum()) if w.sum() > 0 else math.nan


def bootstrap(
    values: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """95 % percentile interval of the (weighted) mean, items drawn with replacement (Efron 1979).

    A weight belongs to its item and is drawn with it: bits per byte is the mean over documents weighted
    by their bytes. With one item there is no spread to learn from: the interval is (-inf, inf). Above
    50 000 items the normal approximation of the same ratio estimate is taken.
    """
    x, w = _arrays(values, weights)
    if len(x) < 2 or w.sum() <= 0:
        return (-math.inf, math.inf)
    if len(x) > _MANY:
        center = (w * x).sum() / w.sum()
        error = math.sqrt(float(((w * (x - center)) ** 2).sum())) / float(w.sum())
        return (float(center - Z95 * error), float(center + Z95 * error))
    generator = np.random.default_rng(derive_seed(seed, "bootstrap"))
    numerators, denominators = w * x, w
    found = []
    at_once = max(1, _DRAWS // len(x))
    for begin in range(0, resamples, at_once):
        drawn = generator.integers(len(x), size=(min(at_once, resamples - begin), len(x)))
        weight = denominators[drawn].sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append(numerators[drawn].sum(axis=1) / weight)
    means = np.concatenate(found)
    low, high = np.quantile(means[np.isfinite(means)], [0.025, 0.975])
    return (float(low), float(high))


def wilson(successes: int, count: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927): not empty at 0 and 1, where resampling is."""
    if count == 0:
        return (0.0, 1.0)
    share, square = successes / count, Z95**2 / count
    center = (share + square / 2) / (1 + square)
    half = Z95 * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    # At the ends the bound is the end itself, which rounding would miss by an ulp.
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == count else min(1.0, center + half)
    return (low, high)


def sign_test(higher: int, lower: int) -> float:
    """Exact two-sided p-value that rises and falls are equally likely; ties are left out.

    On right-or-wrong scores this is McNemar's exact test.
    """
    count, few = higher + lower, min(higher, lower)
    if count == 0:
        return 1.0
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) - count * math.log(2)
        for k in range(few + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def _arrays(
    values: Sequence[float], weights: Sequence[float] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x = np.asarray(values, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    return x, w
