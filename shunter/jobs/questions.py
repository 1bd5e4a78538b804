"""The question that a recipe's job is to a planner: one piece of code for `shunter plan`, `parallel: auto`, a
plan that is looked at before a run, trials, and the account after it. Imports without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shunter.config.errors import ShunterError
from shunter.jobs.layouts import known
from shunter.models.spec import DecoderSpec
from shunter.recipe.attempt import environment_record
from shunter.recipe.graph import Graph, Node
from shunter.record.processor import multiplies_bf16
from shunter.train.config import TrainConfig, TrainHow

if TYPE_CHECKING:
    from shunter.cluster.cluster import Cluster
    from shunter.plan.choices import Question
    from shunter.plan.plan import Plan


@dataclass(frozen=True)
class Trained:
    """What a job trains, as far as its time and memory depend on it. notes: what was guessed."""

    spec: DecoderSpec
    row: int
    train: TrainConfig
    how: TrainHow
    notes: tuple[str, ...] = ()

    @property
    def batch(self) -> int:
        """Rows of a step."""
        return self.train.batch_rows

    def practice(self, cluster: Cluster, *, here: bool = False) -> str:
        """Whose program it is, and what it does otherwise: precision, layers, optimizer, tokens. here: the
        cluster is this machine, by whatever numbers it is described."""
        name = "shunter" if self._narrow(cluster, here) else "shunter-fp32"
        name += "+compiled" if self.how.compile else ""
        name += "+muon" if self.train.optimizer == "muon" else ""
        parallel = self.how.parallel
        return name + ("+unsplit" if parallel is not None and not parallel.sequence else "")

    def practice_on(self, plan: Plan) -> str:
        """The same on the cluster that a plan holds; the plan's own where it holds none."""
        if plan.machine is None:
            return plan.practice
        from shunter.cluster.cluster import Cluster as Made
        from shunter.cluster.description import Description

        return self.practice(Made.of(Description.model_validate(plan.machine)))

    def _narrow(self, cluster: Cluster, here: bool = False) -> bool:
        """Whether products are in bf16, as `train.device.choose_precision` decides on the spot."""
        if self.train.precision != "auto":
            return self.train.precision == "bf16"
        if all(device.spec.type == "gpu" for device in cluster.devices):
            return all("bf16" in device.spec.flops for device in cluster.devices)
        measured = cluster.description.measured
        here = here or (measured is not None and measured.machine.endswith(environment_record()["cpu"]))
        return here and multiplies_bf16()

    def said(self, cluster: Cluster) -> tuple[str, ...]:
        """notes, and how precision auto was counted."""
        if self.train.precision != "auto":
            return self.notes
        return (*self.notes, f"precision auto, counted as {'bf16' if self._narrow(cluster) else 'fp32'}")


def trained(graph: Graph, node: Node) -> Trained:
    """Of a job that trains on rows. Raises ShunterError where the recipe does not tell its model."""
    found = known(graph, node)
    train, how = (getattr(node.config, name, None) for name in ("train", "how"))
    if found is None or not isinstance(train, TrainConfig) or not isinstance(how, TrainHow):
        raise ShunterError(
            f"the model of {node.name} is not told by the recipe",
            where=node.where,
            mend="Name a recipe with a model:, or one that begins from an import.",
        )
    notes = list(found.guesses)
    if getattr(node.config, "adapter", None) is not None:
        notes.append("counted as if all weights were trained: adapters have gradients and state of their own")
    return Trained(found.spec, found.row_length, train, how, tuple(notes))


def question(
    spec: DecoderSpec,
    cluster: Cluster,
    batch: int,
    row: int,
    practised: str,
    calibration: Path | None = None,
    *,
    extrapolate: bool = False,
) -> Question:
    """With the coefficients of the cluster's devices. calibration: a file, by default the one that is kept
    for a measured cluster and the practice. extrapolate: however far it goes beyond what was measured.

    Raises ShunterError.
    """
    from shunter.plan.calibrate import coefficients_of
    from shunter.plan.choices import Question as Made
    from shunter.plan.fabric import Fabric
    from shunter.plan.practice import practice
    from shunter.plan.reach import must_reach

    path = calibration or kept(cluster, practised)
    coefficients = coefficients_of(cluster, path, practised)
    found = Made(spec, Fabric.of(cluster), batch, row, practice(practised), coefficients)
    if not extrapolate:
        must_reach(found)
    return found


def kept(cluster: Cluster, practised: str) -> Path | None:
    """The calibration that `shunter calibrate` kept for a cluster that was measured."""
    from shunter.plan.calibration import kept_at
    from shunter.plan.probe import cache

    if cluster.description.measured is None:
        return None
    path = kept_at(cache(), cluster, practised)
    return path if path.exists() else None


def cited(asked: Question) -> Sequence[str]:
    """What its numbers rest on: what was fitted to runs, and what is a guess."""
    from shunter.plan.sources import rests_on

    return rests_on(asked)
