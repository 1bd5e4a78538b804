"""Which knob matters: permutation importance on a forest of random trees, with an interval.

The paper (arXiv 2312.12705) takes Shapley values of a fitted forest; how much worse a forest predicts when
one knob's values are shuffled answers the same question for less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shunter.plan.trials import Space, Trial

Floats = NDArray[np.float64]
LEAST = 12  # trials below which nothing can be said


@dataclass(frozen=True)
class Importance:
    """share: of the variance of values that goes with the knob, 0 to about 1; low, high: 95 % of forests."""

    share: float
    low: float
    high: float


def importance(
    space: Space, trials: Sequence[Trial], *, seed: int = 0, forests: int = 40, trees: int = 20
) -> dict[str, Importance]:
    """By knob, the most important first; empty for fewer than 12 trials or equal values. Failures count as 0.

    Each forest is grown on trials drawn with replacement and judged on those not drawn, so the interval has
    what the trials leave open and not only the chance of the trees.
    """
    x = np.array([space.row(trial.point) for trial in trials], dtype=np.float64)
    y = np.array([trial.value or 0.0 for trial in trials])
    if len(y) < LEAST or y.std() == 0:
        return {}
    draw = np.random.default_rng(seed)
    shares: list[list[float]] = [[] for _ in space.knobs]
    while len(shares[0]) < forests:
        inside = draw.integers(0, len(y), len(y))
        outside = np.setdiff1d(np.arange(len(y)), inside)
        if len(outside) < 2:
            continue
        forest = [grow(x[inside], y[inside], draw) for _ in range(trees)]
        error = _error(forest, x[outside], y[outside])
        for knob in range(x.shape[1]):
            worse = []
            for _ in range(3):
                shuffled = x[outside].copy()
                shuffled[:, knob] = draw.permutation(x[:, knob])[: len(outside)]
                worse.append(_error(forest, shuffled, y[outside]) - error)
            # A shuffle counts the variance twice: of the value that is gone, and of the one in its place.
            shares[knob].append(float(np.mean(worse)) / (2 * float(y.var())))
    found = {
        name: Importance(
            float(np.mean(values)), float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5))
        )
        for name, values in zip(space.knobs, shares, strict=True)
    }
    return dict(sorted(found.items(), key=lambda item: -item[1].share))


@dataclass(frozen=True)
class Leaf:
    """value: what the tree says here."""

    value: float


@dataclass(frozen=True)
class Fork:
    """Goes left where feature `knob` is at most `limit`."""

    knob: int
    limit: float
    left: Fork | Leaf
    right: Fork | Leaf


def grow(x: Floats, y: Floats, draw: np.random.Generator, least: int = 3) -> Fork | Leaf:
    """A tree whose forks are the best of one random cut for each feature (extremely randomised trees)."""
    if len(y) < 2 * least or y.std() == 0:
        return Leaf(float(y.mean()))
    best: tuple[float, int, float] | None = None
    for knob in range(x.shape[1]):
        low, high = x[:, knob].min(), x[:, knob].max()
        if low == high:
            continue
        limit = float(draw.uniform(low, high))
        left = x[:, knob] <= limit
        if left.all() or not left.any():
            continue
        cost = float(y[left].var() * left.sum() + y[~left].var() * (~left).sum())
        if best is None or cost < best[0]:
            best = cost, knob, limit
    if best is None:
        return Leaf(float(y.mean()))
    _, knob, limit = best
    left = x[:, knob] <= limit
    return Fork(knob, limit, grow(x[left], y[left], draw, least), grow(x[~left], y[~left], draw, least))


def predict(tree: Fork | Leaf, row: Floats) -> float:
    """What a tree says of a row."""
    while isinstance(tree, Fork):
        tree = tree.left if row[tree.knob] <= tree.limit else tree.right
    return tree.value


def _error(forest: Sequence[Fork | Leaf], x: Floats, y: Floats) -> float:
    """Mean square."""
    told = np.array([[predict(tree, row) for tree in forest] for row in x]).mean(axis=1)
    return float(((told - y) ** 2).mean())
