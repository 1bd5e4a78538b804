"""A rank's part of embedding and head: the passes of Vocabulary Parallelism (arXiv 2411.05288, section 4).

Rank r of p holds the rows [r V / p, (r + 1) V / p) of both matrices, which may be one (a tied embedding).
What a token's loss weighs is known to all ranks beforehand, so the gradient of the loss is never sent, and
only tokens that have a weight take part. Algorithm 2 takes the gradient of the output from products with the
locally normalised softmax, made before the global statistics are known; algorithm 1 makes them after.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from shunter.models.head import BLOCK_ELEMENTS, accumulate_outer, active_tokens, chunk_tokens
from shunter.parallel.decoder import Rows
from shunter.parallel.executor import Handler
from shunter.parallel.mesh import Groups
from shunter.parallel.side import Side, Work
from shunter.parallel.tree import Tree
from shunter.schedule.action import EMBED, EMBED_BACK, HEAD, SOFTMAX
from shunter.schedule.meetings import GATHER, HEAD_GRAD, SHARE, SPREAD, STATS
from shunter.schedule.program import Node


def vocabulary_rows(total: int, rank: int, ranks: int) -> tuple[int, int]:
    """Those of both matrices that a rank holds; they differ by at most one in number."""
    return rank * total // ranks, (rank + 1) * total // ranks


@dataclass
class _Flight:
    """A micro-batch between S and T. n: its tokens with a weight, D: the width, v: this part's rows."""

    hidden: Tensor  # [n, D], in the dtype of products
    active: Tensor  # [n], indices among all tokens
    coefficient: Tensor  # [n]
    target: Tensor  # [n], row of this part; any where it is another's
    own: Tensor  # [n], whether it is this part's
    softmax: Tensor  # [n, v], normalised within this part
    stats: Tensor  # [3, n]: largest logit, sum of exponentials, the target's logit or 0
    near: Tensor | None = None  # [n, D]: softmax @ weight
    aim: Tensor | None = None  # [n, D]: the target's row or 0
    scale: Tensor | None = None  # [n]: of the softmax in the gradient of the logits
    grad: Tensor | None = None  # [n, D], algorithm 1: this part's gradient of the output

    def tensors(self) -> list[Tensor]:
        """All that a collective of this micro-batch may read."""
        return [value for value in vars(self).values() if isinstance(value, Tensor)]


class VocabularyPart:
    """Handlers of S, T, IF, IB and their collectives on one rank.

    embed, head: parameters [v, D] whose first row is `begin` of the whole; their `.grad` is added to, unless
                 they are frozen.
    first, last: ranks of the first and the last stage. rows: micro-batch -> its rows.
    algorithm:   1 or 2, as in the program.
    losses:      micro-batch -> loss, on the last stage's rank.
    """

    def __init__(
        self,
        embed: Tensor,
        head: Tensor,
        begin: int,
        groups: Groups,
        rank: int,
        first: int,
        last: int,
        rows: Callable[[int], Rows],
        *,
        algorithm: int = 2,
    ) -> None:
        self.embed, self.head, self.begin = embed, head, begin
        self.groups, self.rank, self.first, self.last, self.rows = groups, rank, first, last, rows
        self.device = head.device
        self.side = Side(rank, self.device)
        self.dtype: torch.dtype | None = None
        self.algorithm, self.train = algorithm, True
        self.losses: dict[int, Tensor] = {}
        self._flights: dict[int, _Flight] = {}
        self._embeds: dict[int, Tensor] = {}  # parts of embeddings, and gradients of embeddings
        self._buffer = torch.empty(0)  # of the one softmax that is kept: fresh memory costs page faults

    def handlers(self) -> dict[str, Handler]:
        """For an Executor."""
        return {
            EMBED: self._embed,
            GATHER: self._gather,
            SHARE: self._share,
            SOFTMAX: self._softmax,
            STATS: self._stats,
            HEAD: self._head,
            HEAD_GRAD: self._head_grad,
            SPREAD: self._spread,
            EMBED_BACK: self._embed_back,
        }

    def prepare(self, train: bool, dtype: torch.dtype | None = None) -> None:
        """Before a walk. dtype: of matrix products; None: that of the parameters."""
        self.train, self.dtype = train, dtype

    def drop(self) -> None:
        """Forget all micro-batches, at the end of a walk or of one that failed."""
        self.losses, self._flights, self._embeds = {}, {}, {}

    # The embedding

    def _rows_here(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Row of this part for each token, and whether it is one of this part's."""
        row = tokens - self.begin
        own = (row >= 0) & (row < len(self.head))
        return row.clamp(0, len(self.head) - 1), own

    def _embed(self, node: Node, _: Tree) -> None:
        tokens = self.rows(node.microbatch).tokens
        row, own = self._rows_here(tokens)
        with torch.no_grad():
            self._embeds[node.microbatch] = F.embedding(row, self.embed).mul_(own[..., None])

    def _gather(self, node: Node, _: Tree) -> Work:
        part, train = self._embeds.pop(node.microbatch), self.train

        def collective() -> Tree:
            dist.reduce(part, self.groups.ranks[self.first], group=self.groups.side)
            return {"hidden": part.requires_grad_(train)} if self.rank == self.first else {}

        return self.side.begin(f"add up the embeddings ({node.action})", collective, [part])

    def _spread(self, node: Node, inputs: Tree) -> Work:
        shape = (*self.rows(node.microbatch).tokens.shape, self.embed.shape[1])
        if self.rank == self.first:
            grad = inputs["hidden"].to(self.embed.dtype).contiguous()
        else:
            grad = torch.empty(shape, dtype=self.embed.dtype, device=self.device)
        self._embeds[node.microbatch] = grad

        def collective() -> Tree:
            dist.broadcast(grad, self.groups.ranks[self.first], group=self.groups.side)
            return {}

        return self.side.begin(f"hear the embeddings' gradient ({node.action})", collective, [grad])

    def _embed_back(self, node: Node, _: Tree) -> None:
        grad = self._embeds.pop(node.microbatch).flatten(0, -2)
        if not self.embed.requires_grad:
            return
        row, own = self._rows_here(self.rows(node.microbatch).tokens.flatten())
        if self.embed.grad is None:
            self.embed.grad = torch.zeros_like(self.embed)
        self.embed.grad.index_add_(0, row[own], grad[own])

    # The head

    def _share(self, node: Node, inputs: Tree) -> Work:
        rows = self.rows(node.microbatch)
        active = active_tokens(rows.coefficients.flatten())
        compute = self.dtype or self.head.dtype
        if self.rank == self.last:
            hidden = inputs["hidden"].detach().flatten(0, -2)[active].to(compute)
        else:
            hidden = torch.empty(len(active), self.head.shape[1], dtype=compute, device=self.device)
        coefficient = rows.coefficients.flatten()[active].to(torch.promote_types(compute, torch.float32))
        target, own = self._rows_here(rows.targets.flatten()[active])
        empty = hidden.new_empty(0)
        self._flights[node.microbatch] = _Flight(hidden, active, coefficient, target, own, empty, empty)

        def collective() -> Tree:
            if len(active):
                dist.broadcast(hidden, self.groups.ranks[self.last], group=self.groups.side)
            return {}

        return self.side.begin(f"hear the last stage's output ({node.action})", collective, [hidden, active])

    @torch.no_grad()
    def _softmax(self, node: Node, _: Tree) -> None:
        """S: this part's logits, their largest, their sum and the softmax within the part."""
        flight = self._flights[node.microbatch]
        hidden, weight = flight.hidden, self.head.to(flight.hidden.dtype)
        count, size = len(hidden), len(weight)
        if self._buffer.numel() < count * size or self._buffer.dtype != weight.dtype:
            self._buffer = torch.empty(count * size, dtype=weight.dtype, device=self.device)
        flight.softmax = self._buffer[: count * size].view(count, size)
        flight.stats = flight.coefficient.new_zeros(3, count)
        ahead = self.train and self.algorithm == 2
        if ahead:
            flight.near = torch.empty_like(hidden)
            flight.aim = weight[flight.target] * flight.own[:, None]
        chunk = chunk_tokens(size, weight.dtype, weight.device)
        block = max(16, BLOCK_ELEMENTS // max(size, 1)) if self.device.type == "cpu" else chunk
        for begin in range(0, count, chunk):
            piece = slice(begin, begin + chunk)
            logits = torch.mm(hidden[piece], weight.t(), out=flight.softmax[piece])
            for start in range(0, len(logits), block):
                rows = slice(begin + start, min(begin + start + block, begin + len(logits)))
                self._normalise(flight, rows)
            if ahead:
                assert flight.near is not None
                torch.mm(logits, weight, out=flight.near[piece])

    def _normalise(self, flight: _Flight, rows: slice) -> None:
        """Logits of some rows become their softmax; few at a time, so that they stay in cache."""
        logits = flight.softmax[rows]
        wide = logits.to(flight.stats.dtype)
        top = wide.amax(dim=-1)
        picked = wide.gather(1, flight.target[rows, None]).squeeze(1)
        total = wide.sub_(top[:, None]).exp_().sum(dim=-1)
        wide.div_(total[:, None])
        if wide is not logits:
            logits.copy_(wide)
        flight.stats[0, rows], flight.stats[1, rows] = top, total
        flight.stats[2, rows] = picked * flight.own[rows]

    def _stats(self, node: Node, _: Tree) -> Work:
        """The barrier: statistics of the whole vocabulary; in algorithm 2 the output's gradient too."""
        flight, rows = self._flights[node.microbatch], self.rows(node.microbatch)
        ranks = len(self.groups.ranks)
        reads, left = flight.tensors(), list[Tensor]()

        def collective() -> Tree:
            count = len(flight.active)
            every = flight.stats.new_empty(ranks, 3, count)
            if count:
                flat = every.view(ranks * 3, count)
                dist.all_gather_single(flat, flight.stats, group=self.groups.side)
            top = every[:, 0].amax(dim=0)
            parts = every[:, 1] * (every[:, 0] - top).exp()
            total = parts.sum(dim=0)
            normaliser = top + total.log()
            factor = flight.coefficient
            scale = -factor
            if rows.z_loss:
                scale = scale + 2 * rows.z_loss * factor.abs() * normaliser
            flight.scale = scale * parts[self.rank] / total
            left.append(flight.scale)
            if self.rank == self.last:
                left.extend(
                    self._note_loss(node.microbatch, rows, factor, every[:, 2].sum(dim=0), normaliser)
                )
            if not self.train or self.algorithm == 1:
                return {}
            assert flight.near is not None
            assert flight.aim is not None
            grad = flight.near.to(factor.dtype).mul_(flight.scale[:, None])
            grad += flight.aim * factor[:, None]
            flight.near = flight.aim = None
            return self._to_last(grad, flight, rows)

        return self.side.begin(f"add up the softmax ({node.action})", collective, reads, left)

    def _note_loss(
        self, microbatch: int, rows: Rows, factor: Tensor, picked: Tensor, normaliser: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The sum of coefficient x log-probability over all tokens, with and without the z-loss."""
        rows.plain = loss = (factor.double() * (picked - normaliser).double()).sum()
        if rows.z_loss:
            loss = loss + rows.z_loss * (factor.abs().double() * normaliser.double().square()).sum()
        self.losses[microbatch] = loss
        return loss, rows.plain

    def _to_last(self, grad: Tensor, flight: _Flight, rows: Rows) -> Tree:
        """Parts of the output's gradient [n, D] added up, on the last stage's rank among all tokens."""
        if len(grad):
            dist.reduce(grad, self.groups.ranks[self.last], group=self.groups.side)
        if self.rank != self.last:
            return {}
        whole = grad.new_zeros(rows.tokens.numel(), grad.shape[1])
        whole[flight.active] = grad
        return {"hidden": whole.view(*rows.tokens.shape, -1)}

    @torch.no_grad()
    def _head(self, node: Node, _: Tree) -> None:
        """T: the gradient of this part of the head; in algorithm 1 this part's gradient of the output too."""
        flight = self._flights[node.microbatch]
        assert flight.scale is not None
        compute = flight.hidden.dtype
        weight = self.head.to(compute)
        own = flight.coefficient * flight.own
        first, trains = self.head.grad is None, self.head.requires_grad
        if self.head.grad is None and trains:
            self.head.grad = torch.empty_like(self.head)
        if self.algorithm == 1:
            flight.grad = torch.empty_like(flight.hidden, dtype=flight.scale.dtype)
        chunk = chunk_tokens(len(weight), weight.dtype, weight.device)
        for begin in range(0, len(flight.hidden), chunk):
            piece = slice(begin, begin + chunk)
            logits = flight.softmax[piece].mul_(flight.scale[piece, None])
            logits.scatter_add_(1, flight.target[piece, None], own[piece, None].to(compute))
            if flight.grad is not None:
                flight.grad[piece] = logits @ weight
            if self.head.grad is not None:
                accumulate_outer(self.head.grad, logits, flight.hidden[piece], first and begin == 0)
        if first and self.head.grad is not None and not len(flight.hidden):
            self.head.grad.zero_()
        flight.softmax = flight.softmax.new_empty(0)
        if self.algorithm == 2:
            del self._flights[node.microbatch]

    def _head_grad(self, node: Node, _: Tree) -> Work:
        flight, rows = self._flights.pop(node.microbatch), self.rows(node.microbatch)

        def collective() -> Tree:
            assert flight.grad is not None
            return self._to_last(flight.grad, flight, rows)

        what = f"add up the output's gradient ({node.action})"
        return self.side.begin(what, collective, flight.tensors())
