"""Ring attention: keys and values travel from rank to rank while each computes with what it holds.

arXiv 2310.01889 with rows in zigzag order. Forward, a step's block is attended to while the next one arrives;
the softmax is put together block by block. Backward, keys and values travel again, and with them go the
gradients that the ranks add to. Kept between the two: local q, k, v, output and log-sum-exp.

On NCCL the first messages of a group need all its ranks, and a rank may have none to send: the group has to
have spoken before (a barrier, or `device_id` where the world was started).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from shunter.layout.context_traffic import chunk_length
from shunter.parallel.context.blockwise import Backward, Forward, wide
from shunter.parallel.context.routes import Hop, Routes
from shunter.parallel.context.sight import Sight
from shunter.parallel.context.zigzag import chunks, spans
from shunter.parallel.mesh import Peers


def ring(q: Tensor, k: Tensor, v: Tensor, sight: Sight, peers: Peers, routes: Routes) -> Tensor:
    """q [B, H, t, d], k and v [B, K, t, d] of this rank's tokens; returns [B, H, t, d]."""
    out: Tensor = _Ring.apply(q, k, v, sight, peers, routes)
    return out


class _Step:
    """Messages under way. Both ends list them in the same order, so that each finds its own."""

    def __init__(self, peers: Peers) -> None:
        self.peers = peers
        self._asked: list[dist.P2POp] = []
        self._works: list[Any] = []

    def add(self, hops: Sequence[Hop], given: dict[int, Tensor], like: Tensor) -> dict[int, Tensor]:
        """Send and receive; returns what will have arrived, by chunk, of the shape of `like`."""
        arriving = {}
        for hop in hops:
            if hop.source == self.peers.index:
                self._ask(dist.isend, given[hop.chunk], hop.target)
            elif hop.target == self.peers.index:
                arriving[hop.chunk] = torch.empty_like(like)
                self._ask(dist.irecv, arriving[hop.chunk], hop.source)
        return arriving

    def _ask(self, op: Any, tensor: Tensor, peer: int) -> None:
        self._asked.append(dist.P2POp(op, tensor, self.peers.ranks[peer], group=self.peers.group))

    def begin(self) -> None:
        """All at once: on NCCL ranks that send to each other would otherwise wait for each other."""
        if self._asked:
            self._works = dist.batch_isend_irecv(self._asked)

    def wait(self) -> None:
        """Until all has left and arrived; on CUDA the stream waits, not the process."""
        for work in self._works:
            work.wait()


def _own_chunks(k: Tensor, v: Tensor, peers: Peers) -> dict[int, Tensor]:
    """Chunk -> its keys and values [2, B, K, c, d], contiguous as messages have to be."""
    early, late = torch.stack([k, v]).unflatten(3, (2, -1)).unbind(3)
    return dict(zip(chunks(peers.index, peers.size), (early.contiguous(), late.contiguous()), strict=True))


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sight: Sight, peers: Peers, routes: Routes
    ) -> Tensor:
        length = chunk_length(sight.length, peers.size)
        run = Forward(q, spans(sight.length, peers.size, peers.index), sight)
        blocks = _own_chunks(k, v, peers)
        early, late = blocks.values()
        for turn in range(len(routes.keys) + 1):
            step = _Step(peers)
            arriving = step.add(routes.keys[turn] if turn < len(routes.keys) else (), blocks, early)
            step.begin()
            # The later chunk first: in the own block it holds the queries' own places.
            for chunk in sorted(blocks, reverse=True):
                run.visit(range(chunk * length, (chunk + 1) * length), *blocks[chunk])
            step.wait()
            blocks = arriving
        out, lse = run.result()
        # Not k and v themselves: they may be views that keep more than themselves.
        ctx.save_for_backward(q, early, late, out, lse)
        ctx.sight, ctx.peers, ctx.routes = sight, peers, routes
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        q, early, late, out, lse = ctx.saved_tensors
        sight, peers, routes = ctx.sight, ctx.peers, ctx.routes
        length = chunk_length(sight.length, peers.size)
        run = Backward(grads[0], q, out, lse, spans(sight.length, peers.size, peers.index), sight)
        names = chunks(peers.index, peers.size)
        blocks = dict(zip(names, (early, late), strict=True))
        like_grad = torch.empty_like(early, dtype=wide(early.dtype))
        own: dict[int, Tensor] = {}
        made: dict[int, Tensor] = {}
        for turn, hops in enumerate(routes.grads):
            step = _Step(peers)
            arriving = step.add(routes.keys[turn] if turn < len(routes.keys) else (), blocks, early)
            heard = step.add(hops, made, like_grad)
            step.begin()
            made = {chunk: torch.zeros_like(like_grad) for chunk in blocks}
            for chunk, block in blocks.items():
                run.visit(range(chunk * length, (chunk + 1) * length), *block, *made[chunk])
            step.wait()
            if turn == 0:
                own = made
            for chunk, grad in heard.items():
                into = own if chunk in own else made
                into[chunk] += grad
            blocks = arriving
        back_k, back_v = torch.cat([own[chunk] for chunk in names], dim=3).to(early.dtype)
        return run.result(), back_k, back_v, None, None, None
