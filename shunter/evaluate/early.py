"""Which of several trainings will end well, by their beginnings (arXiv 2412.13337).

The paper finds that in early steps a lower norm of the gradient and a higher loss go with better scores at
the end, and gives no threshold. Here runs of one model on one set of data are compared at the same number of
samples: the score is z(mean loss) - z(mean log norm), z over the runs. It says nothing about runs of other
models, data or ways to average a loss, and a lower learning rate has a higher loss by itself: the end must
be measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shunter.config.errors import ShunterError
from shunter.record import events


@dataclass(frozen=True)
class Point:
    """A step: samples seen until then, loss, norm of the gradient before clipping."""

    samples: int
    loss: float
    norm: float


def read(log: Path, batch: int) -> list[Point]:
    """The steps of a training's events.jsonl; batch: samples of a step. Lines of several steps are means."""
    found = []
    for row in events.read_metrics(log):
        if "train/loss" in row and "train/grad_norm" in row:
            found.append(
                Point(int(row["step"]) * batch, float(row["train/loss"]), float(row["train/grad_norm"]))
            )
    return found


@dataclass(frozen=True)
class Best:
    """Where a training was at its best: after so many steps and samples, with that held-out loss."""

    steps: int
    samples: int
    loss: float


def best(log: Path, batch: int, before: int = 0) -> Best:
    """The lowest held-out loss of a training's events.jsonl; of equal ones the first.

    batch: samples of a step. before: steps of that batch that an earlier phase took. Larger batches need
    fewer steps and more samples: samples are what is paid for. Raises ShunterError for a log without
    validations.
    """
    found = [
        (float(row["valid/loss"]), before + int(row["step"]))
        for row in events.read_metrics(log)
        if "valid/loss" in row
    ]
    if not found:
        raise ShunterError(
            "the training was never validated", where=str(log), mend="Set train.validate_every."
        )
    loss, steps = min(found)
    return Best(steps, steps * batch, loss)


def scores(runs: Mapping[str, Sequence[Point]], until: int) -> dict[str, float]:
    """The score of each run from its points of at most `until` samples; higher is better.

    Raises ShunterError for fewer than two runs, or one that has no point until then.
    """
    if len(runs) < 2:
        raise ShunterError("runs are compared with each other: give at least two")
    losses, norms = [], []
    for name, points in runs.items():
        seen = [point for point in points if point.samples <= until]
        if not seen:
            raise ShunterError(
                f"{name} has no line of its log within {until} samples",
                mend="Lower how.log_every, or look later.",
            )
        losses.append(float(np.mean([point.loss for point in seen])))
        norms.append(float(np.mean([math.log(max(point.norm, 1e-12)) for point in seen])))
    found = _z(losses) - _z(norms)
    return {name: float(value) for name, value in zip(runs, found, strict=True)}


def stopped(found: Mapping[str, float], *, share: float = 0.5, tolerance: float = 0.0) -> set[str]:
    """The runs to stop: the lowest `share`, but for those within `tolerance` of the best of them.

    Equal scores are in the order of their names. A run that is stopped has a checkpoint: it can go on.
    """
    order = sorted(found, key=lambda name: (found[name], name))
    low = order[: int(len(order) * share)]
    if not low or not tolerance:
        return set(low)
    border = found[order[len(low)]] if len(low) < len(order) else math.inf
    return {name for name in low if found[name] < border - tolerance}


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """The correlation of ranks; equal values share the mean of their ranks. 0 where one side is constant."""
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / norm if norm else 0.0


def _z(values: Sequence[float]) -> np.ndarray:
    each = np.asarray(values, dtype=np.float64)
    spread = float(each.std())
    return (each - each.mean()) / spread if spread > 0 else np.zeros(len(each))


def _ranks(values: Sequence[float]) -> np.ndarray:
    each = np.asarray(values, dtype=np.float64)
    _, place, counts = np.unique(each, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2.0)[place], dtype=np.float64)
