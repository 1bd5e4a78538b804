"""Gradients of a model that is spread over ranks: added up where each has a part, and their norm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from shunter.layout.holding import Holding
from shunter.parallel.mesh import Mesh, Peers

BUCKET_BYTES = 64 << 20  # gradients that travel together


@torch.no_grad()
def add_up_gradients(parameters: Mapping[str, Tensor], held: Mapping[str, Holding], mesh: Mesh) -> None:
    """Make each `.grad` the whole one for this rank's part. Once a step; all ranks of a stage call it.

    A parameter that nothing here depends on has a gradient of zeros: other ranks may have used theirs.
    """
    add_up_shared(parameters, held, mesh)
    by_axes: dict[tuple[str, ...], list[Tensor]] = defaultdict(list)
    meshes: dict[tuple[str, ...], Mesh] = {}
    for name, parameter in parameters.items():
        its = mesh.at(held[name].grid)
        # Without a gradient: frozen, or nobody's.
        if parameter.grad is not None and (axes := its.real(held[name].partial)):
            key = (str(held[name].grid), *axes)
            by_axes[key].append(parameter.grad)
            meshes[key] = its
    for key in sorted(by_axes):
        for bucket in _buckets(by_axes[key]):
            _sum(bucket, meshes[key].peers(*key[1:]))


@torch.no_grad()
def add_up_shared(parameters: Mapping[str, Tensor], held: Mapping[str, Holding], mesh: Mesh) -> None:
    """The first half of it: rows that some neighbours alone hold alike, and zeros where nothing was used."""
    for name, parameter in parameters.items():
        if parameter.grad is None and parameter.requires_grad and (held[name].partial or held[name].shared):
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad is None:
            continue
        for shared in held[name].shared:
            rows = parameter.grad[shared.begin : shared.end]
            _sum_neighbours(rows, mesh.at(held[name].grid).peers(shared.axis), shared.every)


@torch.no_grad()
def squared_norm(
    parameters: Mapping[str, Tensor],
    held: Mapping[str, Holding],
    mesh: Mesh,
    twice: frozenset[str] = frozenset(),
) -> Tensor:
    """This rank's share of the gradient's squared norm, a float64 scalar; all ranks' add up to the whole.

    What several ranks hold is counted by each in part, so that it counts once. twice: parameters that two
    stages hold.
    """
    total: Tensor | None = None
    for name, parameter in parameters.items():
        if parameter.grad is None:
            continue
        square = _square(parameter.grad)
        for shared in held[name].shared:
            rows = _square(parameter.grad[shared.begin : shared.end])
            square = square - rows * (1 - 1 / shared.every)
        square = square / (held[name].copies(mesh.grid) * (2 if name in twice else 1))
        total = square if total is None else total + square
    return torch.zeros((), dtype=torch.float64) if total is None else total


def _square(gradient: Tensor) -> Tensor:
    if not gradient.numel():
        return torch.zeros((), dtype=torch.float64, device=gradient.device)
    return torch.linalg.vector_norm(gradient).double().square()


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size + gradient.nbytes > BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket


def _sum(gradients: list[Tensor], peers: Peers) -> None:
    if len(gradients) == 1 and gradients[0].is_contiguous():
        dist.all_reduce(gradients[0], group=peers.group)
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat, group=peers.group)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _sum_neighbours(rows: Tensor, peers: Peers, every: int) -> None:
    """Among `every` neighbours along the axis only: few rows, so all are fetched and some are added."""
    each = rows.new_empty(peers.size * rows.shape[0], *rows.shape[1:])
    dist.all_gather_single(each, rows.contiguous(), group=peers.group)
    first = peers.index - peers.index % every
    rows.copy_(each.view(peers.size, *rows.shape)[first : first + every].sum(dim=0))
