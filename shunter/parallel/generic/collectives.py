"""Collectives between tensors that all ranks have and parts of them, with gradients of gradients.

Outside what is cut, each of the `peers` has the same activation and the same gradient of it. `enter` and
`leave` are f and g of arXiv 1909.08053; `take` and `bring` go from the whole to a part and back. Each is the
other's backward, so that a gradient may be differentiated again (second-order meta-learning does).

blocks: sizes, in the whole, of the projections along `dim`, each of which is cut by itself; () for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from shunter.parallel.collective import all_gather
from shunter.parallel.mesh import Peers

Blocks = Sequence[int]


def enter(x: Tensor, peers: Peers) -> Tensor:
    """x, which all ranks have, into what is cut; the gradients of all ranks are added up."""
    return x if peers.size == 1 else _Enter.apply(x, peers)


def leave(x: Tensor, peers: Peers) -> Tensor:
    """The sum of all ranks' tensors, on all."""
    return x if peers.size == 1 else _Leave.apply(x, peers)


def take(x: Tensor, dim: int, peers: Peers, blocks: Blocks = ()) -> Tensor:
    """This rank's part of x, which all have. Sizes must divide."""
    return x if peers.size == 1 else _Take.apply(x, dim, peers, tuple(blocks))


def bring(x: Tensor, dim: int, peers: Peers, blocks: Blocks = ()) -> Tensor:
    """All ranks' parts as the whole, on all; the gradient, the same on all, is cut."""
    return x if peers.size == 1 else _Bring.apply(x, dim, peers, tuple(blocks))


def _joined(x: Tensor, dim: int, peers: Peers, blocks: Blocks) -> Tensor:
    whole = all_gather(x, dim, peers)
    if len(blocks) < 2:
        return whole
    sizes = [size // peers.size for size in blocks]
    each = [part.split(sizes, dim) for part in whole.chunk(peers.size, dim)]
    return torch.cat([rank[block] for block in range(len(blocks)) for rank in each], dim)


def _own(x: Tensor, dim: int, peers: Peers, blocks: Blocks) -> Tensor:
    parts = x.split(list(blocks) or [x.shape[dim]], dim)
    mine = [part.chunk(peers.size, dim)[peers.index] for part in parts]
    # A copy even of one chunk: a view would keep the whole alive, and backward may write into it.
    return torch.cat(mine, dim) if len(mine) > 1 else mine[0].contiguous().clone()


def _sum(x: Tensor, peers: Peers) -> Tensor:
    total = x.contiguous().clone()
    dist.all_reduce(total, group=peers.group)
    return total


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers) -> Tensor:
        ctx.peers = peers
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _Leave.apply(grads[0], ctx.peers), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers) -> Tensor:
        ctx.peers = peers
        return _sum(x, peers)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _Enter.apply(grads[0], ctx.peers), None


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, peers: Peers, blocks: Blocks) -> Tensor:
        ctx.dim, ctx.peers, ctx.blocks = dim, peers, blocks
        return _own(x, dim, peers, blocks)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _Bring.apply(grads[0], ctx.dim, ctx.peers, ctx.blocks), None, None, None


class _Bring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, peers: Peers, blocks: Blocks) -> Tensor:
        ctx.dim, ctx.peers, ctx.blocks = dim, peers, blocks
        return _joined(x, dim, peers, blocks)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _Take.apply(grads[0], ctx.dim, ctx.peers, ctx.blocks), None, None, None
