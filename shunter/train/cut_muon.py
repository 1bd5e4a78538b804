"""Muon for matrices of which several ranks hold parts.

Muon's update is made of a whole matrix. So each matrix has one of its ranks as its owner, which gets the
others' parts of the gradient, keeps the momentum, and sends their parts of the update back: no update is made
twice, and owners take turns, so that work and momentum are spread over the ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from shunter.layout.grid import Grid
from shunter.layout.holding import Holding
from shunter.layout.piece import Piece
from shunter.parallel.collect import cut, place
from shunter.parallel.mesh import Mesh
from shunter.parallel.told import told_by_all
from shunter.train.muon import Muon


@dataclass
class _Matrix:
    """update, momentum: whole, at the owner only. pieces: of all its ranks, by global rank."""

    parameter: Tensor
    owner: int
    pieces: dict[int, Piece]
    update: Tensor | None = None
    momentum: Tensor | None = None


class CutMuon:
    """parameters: this rank's parts. rows: of the projections in each whole matrix."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        held: Mapping[str, Holding],
        mesh: Mesh,
        rows: Mapping[str, Sequence[int]],
        weight_decay: float,
        lr: float,
        momentum: float,
    ) -> None:
        self.mesh, self.weight_decay = mesh, weight_decay
        self.matrices: dict[str, _Matrix] = {}
        self._state: list[tuple[Tensor, Tensor]] = []
        # Numbered apart for each set of axes: of matrices that other axes cut, ranks that share this one may
        # have others (where copies share the state of dense ones), and would name another owner.
        numbers: Counter[tuple[Grid | None, tuple[str, ...]]] = Counter()
        for name in sorted(parameters):
            parameter, holding = parameters[name], held[name]
            its = mesh.at(holding.grid)
            axes = tuple(its.real(holding.cut))
            peers, number = its.peers(*axes), numbers[holding.grid, axes]
            numbers[holding.grid, axes] += 1
            told = told_by_all(holding.piece.ranges, peers, parameter.device)
            pieces = {
                rank: Piece(holding.piece.shape, tuple(tuple((b, e) for b, e in dim) for dim in ranges))
                for rank, ranges in zip(peers.ranks, told, strict=True)
            }
            matrix = _Matrix(parameter, peers.ranks[number % peers.size], pieces)
            self.matrices[name] = matrix
            if matrix.owner == mesh.rank:
                matrix.update = parameter.new_zeros(holding.piece.shape).detach()
                matrix.momentum = torch.zeros_like(matrix.update)
                split = list(rows[name]) if name in rows else None
                views, parts = matrices(matrix.update, split), matrices(matrix.momentum, split)
                self._state += zip(views, parts, strict=True)
        self.muon: Muon | None = None
        if self._state:
            self.muon = Muon(
                [view for view, _ in self._state],
                lr=lr,
                momentum=momentum,
                weight_decay=0.0,
                adjust_lr_fn="match_rms_adamw",
            )
        self.materialise()

    @property
    def momentum(self) -> dict[str, Tensor]:
        """Whole, by name: of the matrices that this rank owns."""
        return {name: each.momentum for name, each in self.matrices.items() if each.momentum is not None}

    def materialise(self) -> None:
        """Zero momentum, as the first step would make it."""
        for view, part in self._state:
            assert self.muon is not None
            part.zero_()
            self.muon.state[view] = {"momentum_buffer": part}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update at the learning rate `rate`. All ranks call it."""
        self._exchange(self._parts_of_gradients())
        if self.muon is not None:
            # The whole gradient stands where the update will: Muon moves a parameter that is zero.
            for view, _ in self._state:
                view.grad = view.detach().clone()
                view.zero_()
            self.muon.param_groups[0]["lr"] = rate
            self.muon.step()
            for view, _ in self._state:
                view.grad = None
        updates = {name: torch.empty_like(each.parameter) for name, each in self.matrices.items()}
        self._exchange(self._parts_of_updates(updates))
        for name, matrix in self.matrices.items():
            matrix.parameter.detach().mul_(1 - rate * self.weight_decay).add_(updates[name])

    def zero_grad(self) -> None:
        for matrix in self.matrices.values():
            matrix.parameter.grad = None

    def _parts_of_gradients(self) -> Iterator[tuple[int, int, Tensor, Piece, Tensor | None]]:
        """(from, to, part, its place, the receiver's whole) of each message, in one order on all ranks."""
        for matrix in self.matrices.values():
            mine = matrix.parameter.grad
            part = torch.zeros_like(matrix.parameter) if mine is None else mine
            for rank, piece in matrix.pieces.items():
                if rank == self.mesh.rank or matrix.owner == self.mesh.rank:
                    own = part if rank == self.mesh.rank else part.new_empty(piece.local_shape)
                    yield rank, matrix.owner, own, piece, matrix.update

    def _parts_of_updates(
        self, updates: Mapping[str, Tensor]
    ) -> Iterator[tuple[int, int, Tensor, Piece, Tensor | None]]:
        for name, matrix in self.matrices.items():
            for rank, piece in matrix.pieces.items():
                if rank == self.mesh.rank:
                    if matrix.update is not None:
                        updates[name].copy_(cut(matrix.update, piece))
                    else:
                        yield matrix.owner, rank, updates[name], piece, None
                elif matrix.update is not None:
                    yield matrix.owner, rank, cut(matrix.update, piece), piece, None

    def _exchange(self, messages: Iterator[tuple[int, int, Tensor, Piece, Tensor | None]]) -> None:
        me, group = self.mesh.rank, self.mesh.everyone.group
        operations, arrived = [], []
        for source, target, part, piece, whole in messages:
            if source != target and part.numel():
                contiguous = part.contiguous()
                if source == me:
                    operations.append(dist.P2POp(dist.isend, contiguous, target, group=group))
                else:
                    operations.append(dist.P2POp(dist.irecv, contiguous, source, group=group))
                    part = contiguous
            if target == me and whole is not None:
                arrived.append((part, piece, whole))
        for work in dist.batch_isend_irecv(operations) if operations else []:
            work.wait()
        for part, piece, whole in arrived:
            place(part, piece, whole)


def matrices(tensor: Tensor, rows: Sequence[int] | None) -> list[Tensor]:
    """Views: the matrices that a tensor [N, K], or [E, N, K], is made of. rows: of each projection in N."""
    if tensor.ndim == 3:
        return [view for matrix in tensor for view in matrices(matrix, rows)]
    return [tensor] if rows is None else list(tensor.split(list(rows)))
