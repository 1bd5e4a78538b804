"""Copies of a model that share its optimizer's state (ZeRO-1, arXiv 1910.02054, section 5.1).

Weights, and gradients while backwards run, are whole on every copy. After the last backward the sum of a
gradient is scattered: each rank gets that of its own rows alone. It updates these, and all rows are gathered.
A reduce-scatter and an all-gather together send what the all-reduce of plain copies sends, which is made of
the two; so the state that is saved costs no traffic, but for the padding of rows that do not divide. (An
all-reduce before the gathering would send half as much again.) A matrix that one rank updates whole is
reduced to that rank and broadcast from it, which all together again sends as much.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shunter.layout.grid import Grid
from shunter.layout.holding import Holding
from shunter.layout.zero import Kept, Whole, holdings, in_buckets, padded_rows, share_out
from shunter.parallel.gradients import BUCKET_BYTES
from shunter.parallel.mesh import Mesh, Peers


@dataclass(frozen=True)
class _Bucket:
    """names: of parameters that travel together. owner: their one owner's place; None: each has rows."""

    peers: Peers
    owner: int | None
    names: list[str]


class SharedState:
    """What this rank updates of the weights that it holds.

    weights: this rank's parts by name, whose memory never moves. held: which part of the whole each is.

    parameters: what the optimizer works on. Rows share memory with their weights; what another rank owns is
                left out, and what has no copies is the weight itself.
    held:       which part of the whole each of these is.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        held: Mapping[str, Holding],
        mesh: Mesh,
        whole: Whole,
    ) -> None:
        self.weights = weights
        trained = {name: held[name] for name, weight in weights.items() if weight.requires_grad}
        self.kept = share_out(trained, mesh.grid, mesh.rank, whole)
        self.held = holdings({name: held[name] for name in weights}, self.kept)
        self.parameters: dict[str, nn.Parameter] = {}
        for name in self.held:
            weight, kept = weights[name], self.kept.get(name)
            if kept is None or kept.owner is not None:
                self.parameters[name] = weight
            else:
                rows = _rows(weight, mesh.at(kept.grid).peers(*kept.axes))
                self.parameters[name] = nn.Parameter(weight.detach()[slice(*rows)])
        self.buckets = list(_buckets(weights, self.kept, mesh))

    @torch.no_grad()
    def scatter(self) -> None:
        """Of the gradients of weights that have copies, leave this rank the sum of what it updates; the rest
        is freed. Once a step; all copies call it."""
        for bucket in self.buckets:
            if bucket.owner is None:
                self._scatter_rows(bucket)
            else:
                self._reduce(bucket, bucket.owner)

    @torch.no_grad()
    def gather(self) -> None:
        """After an update: put together what each rank has updated. All copies call it."""
        for bucket in self.buckets:
            if bucket.owner is None:
                self._gather_rows(bucket)
            else:
                self._broadcast(bucket, bucket.owner)

    def _scatter_rows(self, bucket: _Bucket) -> None:
        peers, gradients = bucket.peers, [self._taken(name) for name in bucket.names]
        padded = [_padded(gradient, peers.size) for gradient in gradients]
        flat = padded[0].flatten() if len(padded) == 1 else torch.cat(padded, dim=1).flatten()
        mine = flat.new_empty(flat.numel() // peers.size)
        dist.reduce_scatter_single(mine, flat, group=peers.group)
        for name, part in zip(bucket.names, mine.split([each.shape[1] for each in padded]), strict=True):
            parameter = self.parameters[name]
            parameter.grad = part[: parameter.numel()].view_as(parameter)

    def _gather_rows(self, bucket: _Bucket) -> None:
        peers, weights = bucket.peers, [self.weights[name].detach() for name in bucket.names]
        sizes = [padded_rows(len(weight), peers.size) * weight[:1].numel() for weight in weights]
        parts = [
            _filled(self.parameters[name].detach().flatten(), size)
            for name, size in zip(bucket.names, sizes, strict=True)
        ]
        mine = torch.cat(parts)
        if len(weights) == 1 and weights[0].numel() == peers.size * sizes[0]:
            dist.all_gather_single(weights[0].view(-1), mine, group=peers.group)
            return
        every = mine.new_empty(peers.size * mine.numel())
        dist.all_gather_single(every, mine, group=peers.group)
        for weight, part in zip(weights, every.view(peers.size, -1).split(sizes, dim=1), strict=True):
            weight.copy_(part.reshape(-1)[: weight.numel()].view_as(weight))

    def _reduce(self, bucket: _Bucket, owner: int) -> None:
        peers, gradients = bucket.peers, [self._taken(name) for name in bucket.names]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.reduce(flat, peers.ranks[owner], group=peers.group)
        if peers.index == owner:
            for name, part in zip(bucket.names, flat.split([g.numel() for g in gradients]), strict=True):
                self.weights[name].grad = part.view_as(self.weights[name])

    def _broadcast(self, bucket: _Bucket, owner: int) -> None:
        weights = [self.weights[name].detach() for name in bucket.names]
        flat = torch.cat([weight.flatten() for weight in weights])
        dist.broadcast(flat, bucket.peers.ranks[owner], group=bucket.peers.group)
        if bucket.peers.index != owner:
            for weight, part in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
                weight.copy_(part.view_as(weight))

    def _taken(self, name: str) -> Tensor:
        """The gradient of a weight, which loses it; zeros where nothing here depends on the weight."""
        weight = self.weights[name]
        gradient, weight.grad = weight.grad, None
        return torch.zeros_like(weight) if gradient is None else gradient


def _buckets(weights: Mapping[str, Tensor], kept: Mapping[str, Kept], mesh: Mesh) -> list[_Bucket]:
    """In an order that all copies find alike."""
    together: dict[tuple[str, Grid | None, tuple[str, ...], int], list[tuple[str, int]]] = defaultdict(list)
    for name, each in kept.items():
        if weights[name].numel():  # of a sharded weight this rank may have no rows; nor have its copies
            owner = -1 if each.owner is None else each.owner
            together[str(each.grid), each.grid, each.axes, owner].append((name, weights[name].nbytes))
    return [
        _Bucket(mesh.at(key[1]).peers(*key[2]), None if key[3] < 0 else key[3], names)
        for key in sorted(together, key=lambda key: (key[0], *key[2:]))
        for names in in_buckets(together[key], BUCKET_BYTES)
    ]


def _rows(weight: Tensor, peers: Peers) -> tuple[int, int]:
    """This rank's, first and after the last; see Holding.sharded."""
    most = padded_rows(len(weight), peers.size)
    return min(peers.index * most, len(weight)), min((peers.index + 1) * most, len(weight))


def _padded(gradient: Tensor, ranks: int) -> Tensor:
    """[ranks, elements of a part]: with zeros behind the last rows."""
    size = padded_rows(len(gradient), ranks) * gradient[:1].numel()
    return _filled(gradient.flatten(), ranks * size).view(ranks, size)


def _filled(flat: Tensor, size: int) -> Tensor:
    return flat if flat.numel() == size else torch.cat([flat, flat.new_zeros(size - flat.numel())])
