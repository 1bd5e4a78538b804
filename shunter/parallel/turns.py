"""Hidden states between layers of one stage whose grids differ, over the same ranks.

Each rank hands over what others have under the next grid, and keeps the rest (`shunter.layout.seats`); the
gradient takes the same way back. That holds for copies too: tensor ranks without `sequence` have the same
hidden states, and each the whole gradient of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from shunter.layout.grid import Grid
from shunter.layout.piece import Piece
from shunter.layout.seats import Seats, givers
from shunter.parallel.exchange import exchange
from shunter.parallel.mesh import Peers


class Way:
    """One rank's part of a change from `source` to `target`, in one direction."""

    def __init__(self, source: Seats, target: Seats, peers: Peers, device: torch.device) -> None:
        """peers: the ranks of the stage, in the order of the seats."""
        me, chosen = peers.index, givers(source, target)
        mine, wanted = source[me], target[me]
        none = np.empty(0, dtype=np.int64)
        take = [_within(mine, other) if me in chosen[r] else none for r, other in enumerate(target)]
        put = [_within(wanted, other) if r in chosen[me] else none for r, other in enumerate(source)]
        self.peers = peers
        self.send, self.receive = [len(part) for part in take], [len(part) for part in put]
        self.take, self.put = (torch.from_numpy(np.concatenate(parts)).to(device) for parts in (take, put))
        self.rows, self.tokens = wanted.local_shape

    def go(self, x: Tensor) -> Tensor:
        """[B, t, D] under the target from [b, s, D] under the source. A rank without rows has one of zeros,
        which nobody asks for back, so that its layers have something to take part with."""
        arrived = exchange(x.flatten(0, 1).index_select(0, self.take), self.send, self.receive, self.peers)
        found = x.new_zeros(max(self.rows, 1), self.tokens, x.shape[-1])
        found.view(-1, x.shape[-1])[self.put] = arrived
        return found


def _within(piece: Piece, other: Piece) -> np.ndarray:
    """Where in `piece`, its tokens one after the other, those stand that are in both, in the order of the
    whole."""
    return np.intersect1d(_numbers(piece), _numbers(other), assume_unique=True, return_indices=True)[1]


def _numbers(piece: Piece) -> np.ndarray:
    """Of each token, in the piece's order, its number in the whole."""
    rows, places = (
        np.concatenate([np.arange(a, b) for a, b in held] or [np.empty(0, dtype=np.int64)])
        for held in piece.ranges
    )
    found: np.ndarray = (rows[:, None] * piece.shape[1] + places).ravel()
    return found


class Turns:
    """All changes between the grids of a stage, for micro-batches of one size.

    seats: of the layout's own grid (None) and of the others.
    """

    def __init__(self, seats: Mapping[Grid | None, Seats], peers: Peers, device: torch.device) -> None:
        self.seats, self.peers, self.device = seats, peers, device
        self._made: dict[tuple[Grid | None, Grid | None], Way] = {}

    def __call__(self, x: Tensor, before: Grid | None, after: Grid | None) -> Tensor:
        """x [b, s, D] under `before` as it is under `after`; all ranks of the stage call it."""
        found: Tensor = _Turn.apply(x, self._way(before, after), self._way(after, before))
        return found

    def _way(self, before: Grid | None, after: Grid | None) -> Way:
        key = before, after
        if key not in self._made:
            self._made[key] = Way(self.seats[before], self.seats[after], self.peers, self.device)
        return self._made[key]


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, way: Way, back: Way) -> Tensor:
        ctx.back, ctx.shape = back, x.shape
        return way.go(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back.go(grad.contiguous()), None, None
