"""Coefficients of a machine from runs on it: as many as there are rows to fit, and no more.

Imports without torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from shunter.cluster.cluster import Cluster
from shunter.config import yaml
from shunter.config.errors import ShunterError
from shunter.plan import calibration
from shunter.plan.choices import Choices, Question
from shunter.plan.practice import Coefficients
from shunter.plan.score import Prediction, predict
from shunter.plan.sited import Grounds

RINGS = ("all_reduce", "all_gather", "reduce_scatter")  # collectives that a ring's bytes are counted of
LEAST, MOST = 0.05, 20.0  # times its value beyond which a coefficient explains nothing any more


@dataclass(frozen=True)
class Run:
    """A measured step. question: with any coefficients; choice: of length 1. order: of the devices, where it
    matters which does what (`plan.Plan.ranks`). strategies: of its layers, where each has its own. cut:
    bounds of its stages, own: of layers that have degrees of their own, ends: of embedding and head that have
    some, likewise."""

    name: str
    question: Question
    choice: Choices
    seconds: float
    order: tuple[int, ...] = ()
    strategies: Sequence[int] | None = None
    cut: Sequence[int] | None = None
    own: Mapping[int, Choices] = field(default_factory=dict)
    ends: Choices | None = None

    def asked(self, coefficients: Coefficients) -> Question:
        """The question with other coefficients."""
        return replace(self.question, coefficients=coefficients)

    def predicted(self, coefficients: Coefficients) -> float:
        return self.prediction(coefficients).seconds

    def prediction(self, coefficients: Coefficients) -> Prediction:
        """Of the whole step, with its parts."""
        asked = self.asked(coefficients)
        if self.order and asked.fabric.terrain is not None:
            found = Grounds(asked, self.choice, asked.fabric.room(None)).predict(
                self.order, self.cut, strategies=self.strategies, own=self.own, ends=self.ends
            )
            if found is not None:
                return found
        return predict(
            asked, self.choice, strategies=self.strategies, cut=self.cut, own=self.own, ends=self.ends
        )


def fit(runs: Sequence[Run], names: Sequence[str], start: Coefficients, source: str = "") -> Coefficients:
    """The named coefficients such that the runs take the seconds that were measured, as closely as can be
    (least squares of the logarithms, Gauss-Newton from `start`).

    source: said of each. Raises ShunterError for fewer runs than coefficients.
    """
    if len(runs) < len(names):
        raise ShunterError(
            f"{len(runs)} runs cannot tell {len(names)} coefficients apart", mend="Fit fewer, or run more."
        )
    logs = np.zeros(len(names))
    # What is 0 by default has no scale of its own: it begins at 1/2.
    base = np.array([start[name] or 0.5 for name in names])
    source = source or f"fitted to {', '.join(run.name for run in runs)}"

    def at(logs: np.ndarray) -> Coefficients:
        values = base * np.exp(logs)
        return start.but(source, **dict(zip(names, map(float, values), strict=True)))

    def errors(logs: np.ndarray) -> np.ndarray:
        found = at(logs)
        return np.array([math.log(run.predicted(found) / run.seconds) for run in runs])

    now = errors(logs)
    for _ in range(20):
        slope = np.empty((len(runs), len(names)))
        for column in range(len(names)):
            moved = logs.copy()
            moved[column] += 1e-3
            slope[:, column] = (errors(moved) - now) / 1e-3
        step = np.linalg.lstsq(slope, -now, rcond=1e-6)[0]
        step = np.clip(step, -0.5, 0.5)
        size = 1.0
        while size > 1e-3:
            tried = np.clip(logs + size * step, math.log(LEAST), math.log(MOST))
            other = errors(tried)
            if other @ other < now @ now:
                break
            size /= 2
        else:
            break
        logs, now = tried, other
        if now @ now < 1e-10:
            break
    return at(logs)


@dataclass(frozen=True)
class Account:
    """Predicted over measured, minus one, by run."""

    errors: Mapping[str, float]

    @property
    def median(self) -> float:
        """Of the absolute errors."""
        return statistics.median(abs(error) for error in self.errors.values())

    @property
    def worst(self) -> float:
        return max(abs(error) for error in self.errors.values())


def account(runs: Sequence[Run], predicted: Callable[[Run], float]) -> Account:
    """How far predictions are from what was measured, as a share of throughput."""
    return Account({run.name: run.seconds / predicted(run) - 1 for run in runs})


CALIBRATED = Path(__file__).parent / "calibrated.yaml"


def coefficients_of(cluster: Cluster, path: Path | None = None, practised: str | None = None) -> Coefficients:
    """Those for a cluster's devices: the general ones, those fitted to published runs on that kind, and those
    of a calibration's file, each over the ones before. Of several kinds each has its own.

    practised: name of the practice that is planned for. Raises ShunterError for a file that is none, or is of
    other devices or of another practice.
    """
    kinds = sorted({device.kind for device in cluster.devices})
    found = {kind: _of_kind(cluster, kind, practised) for kind in kinds}
    start = Coefficients(found[calibration.slowest_kind(cluster)].known)
    if len(kinds) > 1:
        start = replace(start, kinds={kind: each.known for kind, each in found.items()})
    if (share := _collectives(cluster)) is not None:
        source = "measured by shunter probe"
        start = start.but(f"{source} between each two", links=1.0)
        start = start.but(f"{source}: long sums and gatherings over the slowest link", collectives=share)
    if path is None:
        return start
    return calibration.calibrated(start, cluster, practised, calibration.read(path), str(path))


def _collectives(cluster: Cluster) -> float | None:
    """The median share of their groups' slowest link that measured collectives reach."""
    measured = cluster.description.measured
    shares = [
        each.bandwidth / cluster.slowest(range(each.ranks)).bandwidth
        for each in (measured.collectives if measured else ())
        if each.op in RINGS and each.ranks <= cluster.world
    ]
    return statistics.median(shares) if shares else None


def _of_kind(cluster: Cluster, kind: str, practised: str | None) -> Coefficients:
    found, data = Coefficients(), yaml.load(CALIBRATED).data
    if cluster.description.devices[kind].type == "cpu":
        found = _with(found, data["cpu"], practised)
    return _with(found, data[kind], practised) if kind in data else found


def _with(found: Coefficients, data: Mapping[str, Any], practised: str | None) -> Coefficients:
    """Shipped ones. `practice` in them: of the program whose runs they were fitted to."""
    theirs = data.get("practice")
    alike = practised is None or theirs is None or practised.startswith(str(theirs))
    other = "" if alike else f" (runs of {theirs}, not of {practised})"
    for name, entry in data.items():
        if name != "practice":
            found = found.but(str(entry["source"]) + other, **{name: float(entry["value"])})
    return found
