"""A measured value: the median of several, and how far they lie apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Median(NamedTuple):
    """spread: half the range between the quartiles, over the median."""

    value: float
    spread: float


def median(samples: Sequence[float]) -> Median:
    """Of at least one sample."""
    middle = statistics.median(samples)
    if len(samples) < 2 or not middle:
        return Median(middle, 0.0)
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Median(middle, abs((high - low) / 2 / middle))
