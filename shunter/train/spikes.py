"""Spikes of loss and gradient norm, noted with what may have caused them."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

RECENT = 20  # steps for which a restart or a change of device is named as a possible cause


class SpikeDetector:
    """Flags a value more than `threshold` standard deviations above the mean of the last `window`.

    Only upward deviations count. It needs `window` / 2 values before it speaks. A value that it flags
    is kept out of the window, so that one spike does not hide the next. Windows and seams are saved with
    the run: a detector that began anew would be silent for the very steps after a restart.
    """

    def __init__(self, window: int = 100, threshold: float = 6.0) -> None:
        self.threshold = threshold
        self.values: dict[str, deque[float]] = {
            "loss": deque(maxlen=window),
            "grad_norm": deque(maxlen=window),
        }
        self.seams: list[tuple[int, str]] = []

    def seam(self, step: int, cause: str) -> None:
        """Remember that something changed before the step `step`."""
        self.seams.append((step, cause))

    def look(self, step: int, loss: float, grad_norm: float, rows: Sequence[int]) -> dict[str, object] | None:
        """The record of a spike in this step, or None."""
        self.seams = [(at, cause) for at, cause in self.seams if step - at <= RECENT]
        scores = {"loss": self._score("loss", loss), "grad_norm": self._score("grad_norm", grad_norm)}
        high = {name: round(score, 1) for name, score in scores.items() if score > self.threshold}
        if not high:
            return None
        causes = list(dict.fromkeys(cause for at, cause in self.seams if at <= step))
        return {"step": step, "z": high, "causes": causes or ["data rows"], "rows": list(rows)}

    def state(self) -> dict[str, Any]:
        """Windows and seams as JSON."""
        return {**{name: list(seen) for name, seen in self.values.items()}, "seams": self.seams}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state; a checkpoint from before there was one leaves the windows empty."""
        for name, seen in self.values.items():
            seen.clear()
            seen.extend(state.get(name, ()))
        self.seams = [(int(at), str(cause)) for at, cause in state.get("seams", ())]

    def _score(self, name: str, value: float) -> float:
        seen = self.values[name]
        score = 0.0
        if math.isfinite(value) and len(seen) >= (seen.maxlen or 0) // 2:
            spread = statistics.pstdev(seen)
            score = (value - statistics.fmean(seen)) / max(spread, 1e-6 * abs(value) + 1e-12)
        if math.isfinite(value) and score <= self.threshold:
            seen.append(value)
        return score
