"""Attention over gathered keys and values: each rank has all of them, for its own queries.

One collective in each direction, nothing overlapped: what Llama 3 (arXiv 2407.21783, section 3.3.2) does,
because with few key/value heads it is little and any mask is easy. Keys and values of the whole row are kept
for the backward pass.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from shunter.parallel.context.blockwise import Backward, Forward, wide
from shunter.parallel.context.sight import Sight
from shunter.parallel.context.zigzag import in_order, in_parts, spans
from shunter.parallel.mesh import Peers


def gather(q: Tensor, k: Tensor, v: Tensor, sight: Sight, peers: Peers) -> Tensor:
    """q [B, H, t, d], k and v [B, K, t, d] of this rank's tokens; returns [B, H, t, d]."""
    out: Tensor = _Gathered.apply(q, k, v, sight, peers)
    return out


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sight: Sight, peers: Peers) -> Tensor:
        mine = torch.stack([k, v])
        every = mine.new_empty(peers.size, *mine.shape)
        dist.all_gather_single(every.flatten(0, 1), mine, group=peers.group)
        both = in_order(every, 3)  # [2, B, K, T, d]
        where = spans(sight.length, peers.size, peers.index)
        run = Forward(q, where, sight)
        for span in _keys(where):
            run.visit(span, *both[:, :, :, span.start : span.stop])
        out, lse = run.result()
        ctx.save_for_backward(q, both, out, lse)
        ctx.sight, ctx.peers = sight, peers
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        q, both, out, lse = ctx.saved_tensors
        peers: Peers = ctx.peers
        where = spans(ctx.sight.length, peers.size, peers.index)
        run = Backward(grads[0], q, out, lse, where, ctx.sight)
        back = torch.zeros_like(both, dtype=wide(both.dtype))
        for span in _keys(where):
            part = slice(span.start, span.stop)
            run.visit(span, *both[:, :, :, part], *back[:, :, :, part])
        parts = in_parts(back, peers.size, 3)  # [n, 2, B, K, t, d]
        own = parts.new_empty(parts.shape[1:])
        dist.reduce_scatter_single(own, parts.flatten(0, 1), group=peers.group)
        back_k, back_v = own.to(both.dtype)
        return run.result(), back_k, back_v, None, None


def _keys(where: list[range]) -> list[range]:
    """The row up to the last query, cut where the rank's own spans begin and end; later spans first, so that
    a query meets itself before it meets others."""
    cuts = sorted({0, *(edge for span in where for edge in (span.start, span.stop))})
    return [range(begin, end) for begin, end in pairwise(cuts)][::-1]
