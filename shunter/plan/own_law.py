"""A scaling law of one's own text, from a ladder of small runs. Imports without torch.

L = E + A / N^a + B / D^b with the exponents of a published law: three numbers, none below 0, by least
squares. Small runs cannot tell the exponents, and hardly E, so what the line says far beyond them comes with
how much it moves where each run is left out in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from shunter.config.errors import ShunterError

LEAST = 4  # runs for three numbers


@dataclass(frozen=True)
class Point:
    """A run. loss: of held-out text, nats a token."""

    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class OwnLaw:
    """level, size, data: E, A and B. error: root of the mean square of what the line leaves. without: the
    same three numbers with each run left out."""

    level: float
    size: float
    data: float
    exponents: tuple[float, float]
    error: float
    without: tuple[tuple[float, float, float], ...]

    def loss(self, parameters: float, tokens: float) -> float:
        """Nats a token."""
        return _line((self.level, self.size, self.data), self.exponents, parameters, tokens)

    def band(self, parameters: float, tokens: float) -> tuple[float, float]:
        """The least and the most that it is with any one run left out."""
        every = [_line(each, self.exponents, parameters, tokens) for each in self.without]
        return min(every), max(every)


def own_law(points: Sequence[Point], exponents: tuple[float, float]) -> OwnLaw:
    """Fitted. Raises ShunterError for fewer runs than LEAST, or of a single size or number of tokens."""
    sizes, tokens = ({getattr(point, name) for point in points} for name in ("parameters", "tokens"))
    if len(points) < LEAST or len(sizes) < 2 or len(tokens) < 2:
        raise ShunterError(
            f"{len(points)} runs of {len(sizes)} sizes and {len(tokens)} numbers of tokens tell no law",
            mend=f"Run at least {LEAST}, of two of each.",
        )
    whole = _fit(points, exponents)
    left = [[*points[:n], *points[n + 1 :]] for n in range(len(points))]
    gaps = [_line(whole, exponents, p.parameters, p.tokens) - p.loss for p in points]
    error = float(np.sqrt(np.mean(np.square(gaps))))
    return OwnLaw(*whole, exponents, error, tuple(_fit(each, exponents) for each in left))


def _line(
    numbers: tuple[float, float, float], exponents: tuple[float, float], parameters: float, tokens: float
) -> float:
    level, size, data = numbers
    return level + size / parameters ** exponents[0] + data / tokens ** exponents[1]


def _fit(points: Sequence[Point], exponents: tuple[float, float]) -> tuple[float, float, float]:
    """Least squares over all choices of which numbers are 0: with three there are seven to try."""
    columns = np.array(
        [[1.0, p.parameters ** -exponents[0], p.tokens ** -exponents[1]] for p in points], dtype=float
    )
    scale = columns.max(axis=0)
    losses = np.array([p.loss for p in points])
    best: tuple[float, tuple[float, float, float]] | None = None
    for count in (1, 2, 3):
        for chosen in combinations(range(3), count):
            part = columns[:, chosen] / scale[list(chosen)]
            found = np.linalg.lstsq(part, losses, rcond=None)[0]
            if (found < 0).any():
                continue
            gap = float(np.square(part @ found - losses).sum())
            if best is None or gap < best[0] - 1e-15:
                numbers = np.zeros(3)
                numbers[list(chosen)] = found / scale[list(chosen)]
                best = gap, (float(numbers[0]), float(numbers[1]), float(numbers[2]))
    assert best is not None  # the level alone is a mean of losses, which is not negative
    return best[1]
