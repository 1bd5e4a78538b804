"""A run that is watched against its plan, line after line of its log. Imports without torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WARM = 1  # lines after a start that are not counted: kernels are chosen, memory is taken
IN_A_ROW = 3  # lines beyond the threshold, all on one side, until it is called a drift
SAID = 1.15  # measured over predicted, or the other way round: what is said where nobody gives a threshold


@dataclass(frozen=True)
class Drifted:
    """step: done when it was seen. seconds: of a step, the median of the lines that tell it. ratio: of them
    over what was predicted."""

    step: int
    seconds: float
    ratio: float


class Drift:
    """Holds lines of a log to the seconds that a step is to take.

    A drift is told once; again after steps have taken what they should, or after `expect`.
    """

    def __init__(self, seconds: float, threshold: float = SAID) -> None:
        self.threshold = threshold
        self.expect(seconds)

    def expect(self, seconds: float) -> None:
        """From the next line on, which begins anew."""
        self.seconds = seconds
        self._lines = 0
        self._recent: list[float] = []
        self._told = False

    def see(self, event: Mapping[str, Any]) -> Drifted | None:
        """One event of the log."""
        values = event.get("values")
        if event.get("event") != "metrics" or not isinstance(values, Mapping):
            return None
        seconds = values.get("train/step_seconds")
        if not isinstance(seconds, int | float) or not seconds > 0:
            return None
        self._lines += 1
        if self._lines <= WARM:
            return None
        self._recent = [*self._recent, float(seconds)][-IN_A_ROW:]
        ratios = [each / self.seconds for each in self._recent]
        slow = all(ratio > self.threshold for ratio in ratios)
        quick = all(ratio < 1 / self.threshold for ratio in ratios)
        if not slow and not quick:
            if 1 / self.threshold <= ratios[-1] <= self.threshold:
                self._told = False
            return None
        if len(ratios) < IN_A_ROW or self._told:
            return None
        self._told = True
        middle = statistics.median(self._recent)
        return Drifted(int(event.get("step", 0)), middle, middle / self.seconds)
