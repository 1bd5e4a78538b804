"""Optimizer state that copies share (zero: 1), shared wrongly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

from torch import Tensor

from shunter.layout.holding import Holding
from shunter.parallel import part, zero
from shunter.parallel.mesh import Mesh
from shunter.parallel.zero import SharedState
from shunter.train.checkpoint.shared import SharedCheckpointer
from tests.mutants.mutant import Mutant


def of_own_rows_alone(original: Any) -> Any:
    """Each rank takes its rows of its own gradient."""

    def take(mine: Tensor, whole: Tensor, group: Any = None) -> None:
        place = zero.dist.get_rank(group)
        mine.copy_(whole[place * mine.numel() : (place + 1) * mine.numel()])

    def mutant(self: SharedState, bucket: Any) -> None:
        with mock.patch.object(zero.dist, "reduce_scatter_single", take):
            original(self, bucket)

    return mutant


def as_if_whole(original: Any) -> Any:
    """The norm of rows that one rank has, divided by the copies of their weight."""

    def mutant(parameters: Any, held: dict[str, Holding], mesh: Mesh, twice: Any) -> Tensor:
        copies = {
            name: replace(each, cut=tuple(axis for axis in each.cut if axis not in ("dp", "edp")))
            for name, each in held.items()
        }
        return original(parameters, copies, mesh, twice)

    return mutant


def over_context(original: Any) -> Any:
    def mutant(weights: Any, kept: Any, mesh: Mesh) -> Any:
        other = {n: replace(k, axes=("cp",) if k.axes == ("edp",) else k.axes) for n, k in kept.items()}
        return original(weights, other, mesh)

    return mutant


def first_bucket_only(original: Any) -> Any:
    def mutant(self: SharedState) -> None:
        every = self.buckets
        self.buckets = every[:1]
        original(self)
        self.buckets = every

    return mutant


def as_held(original: Any) -> Any:
    """Written as if each rank had the state of all that it holds."""

    def mutant(self: SharedCheckpointer, name: str) -> Any:
        self.kept = self.held
        return original(self, name)

    return mutant


MUTANTS = [
    Mutant(
        "shared state updated by a rank's own gradient",
        "Gradients are taken apart before they are added up: the two halves of an all-reduce, of which the "
        "first is left out.",
        "shared state",
        "gradient",
        SharedState,
        "_scatter_rows",
        of_own_rows_alone,
    ),
    Mutant(
        "updated rows not gathered",
        "Each copy goes on with its own rows new and the others' old.",
        "shared state",
        "weight",
        SharedState,
        "gather",
        lambda original: lambda self: None,
    ),
    Mutant(
        "updated rows of some parameters not gathered",
        "A bucket is left out: only what has copies along other axes too (norms with sequence parallelism).",
        "shared state",
        "weight",
        SharedState,
        "gather",
        first_bucket_only,
    ),
    Mutant(
        "norm of shared rows counts them as copies",
        "Once gradients are scattered each rank has other rows; the norm is still divided by the copies "
        "(DeepSpeed and Megatron reduce it over the data group for that reason).",
        "shared state",
        "norm",
        part,
        "squared_norm",
        as_if_whole,
    ),
    Mutant(
        "experts' gradients scattered over the context ranks",
        "Copies of an expert stand on other ranks than copies of the rest (arXiv 2504.14960): over those of "
        "a dense axis gradients of different experts are added up.",
        "shared experts",
        "gradient",
        zero,
        "_buckets",
        over_context,
    ),
    Mutant(
        "a matrix's owner changes between the sum and the sending",
        "The owner gets the gradient, and another rank's matrix is sent to all.",
        "shared matrices",
        "weight",
        SharedState,
        "_broadcast",
        lambda original: lambda self, bucket, owner: original(self, bucket, (owner + 1) % bucket.peers.size),
    ),
    Mutant(
        "shared state saved as if each rank had all",
        "A slice is described as the whole: no other layout could read it, nor this one.",
        "shared state saved",
        "error",
        SharedCheckpointer,
        "_holding",
        as_held,
    ),
]
