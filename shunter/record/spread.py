"""A measured value: the median of several, and how far they lie apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Median(NamedTuple):
    """spread: half the range between the quartiles, over the median."""

    value: float
    spread: float


def quick(samples: Sequence[float]) -> float:
    """The lower quartile of seconds: whatever else a machine does only ever adds to them."""
    return statistics.quantiles(samples, n=4, method="inclusive")[0] if len(samples) > 1 else samples[0]


def median(samples: Sequence[float]) -> Median:
    """Of at least one sample."""
    middle = statistics.median(samples)
    if len(samples) < 2 or not middle:
        return Median(middle, 0.0)
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Median(middle, abs((high - low) / 2 / middle))
