"""Collectives with gradients, on local tensors. All are the identity for one rank alone.

f and g of arXiv 1909.08053 (section 3) are `spread` and `add_up`; with tokens shared out between them
(arXiv 2205.05198, section 4.2.2) they become `gather` and `scatter_sum`. The compiler stops at each: what it
makes of collectives inside of hand-written gradients is not relied on.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from shunter.models.uncompiled import uncompiled
from shunter.parallel.mesh import Peers


@uncompiled
def gather(x: Tensor, dim: int, peers: Peers) -> Tensor:
    """All ranks' parts one after the other along `dim`; the gradient is added up and shared out."""
    return x if peers.size == 1 else _Gather.apply(x, dim, peers, False)


@uncompiled
def scatter_sum(x: Tensor, dim: int, peers: Peers) -> Tensor:
    """This rank's part along `dim` of the sum of all ranks' tensors; the gradient is gathered.

    The size along `dim` must be a multiple of the number of ranks.
    """
    return x if peers.size == 1 else _Gather.apply(x, dim, peers, True)


@uncompiled
def spread(x: Tensor, peers: Peers) -> Tensor:
    """x, which all ranks have; the gradient is the sum of theirs."""
    return x if peers.size == 1 else _Spread.apply(x, peers)


@uncompiled
def add_up(x: Tensor, peers: Peers) -> Tensor:
    """The sum of all ranks' tensors; the gradient goes to each."""
    return x if peers.size == 1 else _AddUp.apply(x, peers)


@uncompiled
def part(x: Tensor, dim: int, peers: Peers) -> Tensor:
    """This rank's part of x, which all have; the gradient is gathered."""
    return x if peers.size == 1 else _Part.apply(x, dim, peers)


def all_gather(x: Tensor, dim: int, peers: Peers) -> Tensor:
    """Without a gradient. Parts of one size."""
    if peers.size == 1:
        return x
    first = x.movedim(dim, 0).contiguous()
    whole = first.new_empty(peers.size * first.shape[0], *first.shape[1:])
    dist.all_gather_single(whole, first, group=peers.group)
    return whole.movedim(0, dim)


def reduce_scatter(x: Tensor, dim: int, peers: Peers) -> Tensor:
    """Without a gradient."""
    first = x.movedim(dim, 0).contiguous()
    size, odd = divmod(first.shape[0], peers.size)
    if odd:
        raise ValueError(f"{first.shape[0]} along dim {dim} is no multiple of {peers.size} ranks")
    mine = first.new_empty(size, *first.shape[1:])
    dist.reduce_scatter_single(mine, first, group=peers.group)
    return mine.movedim(0, dim)


class _Gather(torch.autograd.Function):
    """And, with `back`, its reverse: each is the other's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, peers: Peers, back: bool) -> Tensor:
        ctx.dim, ctx.peers, ctx.back = dim, peers, back
        return (reduce_scatter if back else all_gather)(x, dim, peers)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return (all_gather if ctx.back else reduce_scatter)(grads[0], ctx.dim, ctx.peers), None, None, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers) -> Tensor:
        ctx.peers = peers
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.peers.group)
        return total, None


class _AddUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total, group=peers.group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None


class _Part(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, peers: Peers) -> Tensor:
        ctx.dim, ctx.peers = dim, peers
        return x.tensor_split(peers.size, dim)[peers.index].contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return all_gather(grads[0], ctx.dim, ctx.peers), None, None
