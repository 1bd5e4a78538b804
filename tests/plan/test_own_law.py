"""The line through a ladder: what it was made of comes back, and it says how unsure it is.

What this cannot show: that a published law's exponents are those of one's own text.
"""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from shunter.config.errors import ShunterError
from shunter.plan.afford import STEPS, step_tokens
from shunter.plan.own_law import Point, own_law

POWERS = (0.35, 0.37)
RUNGS = [(4e5, 1e6), (8e5, 1e6), (1.5e6, 1e6), (8e5, 5e5), (8e5, 2.5e5)]


def ladder(level: float, size: float, data: float, noise: float = 0.0) -> list[Point]:
    draw = random.Random(0)

    def loss(n: float, d: float) -> float:
        return level + size / n ** POWERS[0] + data / d ** POWERS[1] + draw.gauss(0, noise)

    return [Point(n, d, loss(n, d)) for n, d in RUNGS]


def test_what_it_was_made_of_comes_back() -> None:
    for level, size, data in ((1.5, 100.0, 300.0), (0.0, 100.0, 300.0), (2.0, 0.0, 300.0), (3.0, 0.0, 0.0)):
        found = own_law(ladder(level, size, data), POWERS)
        assert (found.level, found.size, found.data) == pytest.approx((level, size, data), abs=1e-6)
        assert found.error < 1e-9
        at = 7e9, 1e11
        assert found.band(*at) == pytest.approx((found.loss(*at), found.loss(*at)))


def test_noise_widens_the_band_more_the_farther_one_looks() -> None:
    found = own_law(ladder(1.5, 100.0, 300.0, noise=0.02), POWERS)
    assert 0 < found.error < 0.05
    near, far = (found.band(*at) for at in ((8e5, 1e6), (7e9, 1e11)))
    assert far[1] - far[0] > 2 * (near[1] - near[0])
    assert near[0] <= found.loss(8e5, 1e6) <= near[1]
    assert min(found.level, found.size, found.data) >= 0


def test_too_few_runs() -> None:
    points = ladder(1.5, 100.0, 300.0)
    for few in (points[:3], [points[1], points[3], points[4], points[3]], points[:1] * 5):
        with pytest.raises(ShunterError, match="tell no law"):
            own_law(few, POWERS)


def test_a_step_grows_with_the_model() -> None:
    for parameters, tokens in STEPS:
        assert step_tokens(parameters) == pytest.approx(tokens)
    sizes = [step_tokens(10.0**n) for n in range(6, 13)]
    assert sizes == sorted(sizes)
    assert max(b / a for a, b in pairwise(sizes)) < 4
