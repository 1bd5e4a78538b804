"""Which experts a token passes through, with which weight, and what keeps their load even.

Shapes: B rows, T tokens of each, E experts, k of them for a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shunter.models.spec import ExpertsSpec


@dataclass(frozen=True)
class Routing:
    """experts [n, k]: of each token; E where a choice is void (padding, dropped). weights [n, k], wide.

    whole: no choice is void. room: most choices of an expert that can be, where a capacity is heeded.
    """

    experts: Tensor
    weights: Tensor
    whole: bool
    room: int | None = None


class Others(Protocol):
    """Ranks that hold other tokens of the same rows. Every one of them asks the same, in one order."""

    @property
    def ranks(self) -> int:
        """How many they are, with this one; each has as many tokens of a row."""

    def total(self, counts: Tensor) -> Tensor:
        """The sum [B, E] of all ranks' counts."""

    def gather(self, parts: list[Tensor]) -> tuple[list[Tensor], int]:
        """All ranks' tokens of each tensor [B, T, ...], and the number of the first that is ours."""

    def places(self, length: int) -> Tensor | None:
        """[T]: where in its row each gathered token stands; None: in the order in which they come."""


@dataclass
class Load:
    """What a layer's router did since the step began: summed when gradients are taken, once each, however
    often a forward pass is repeated. chosen [E]: before dropping. dropped: choices that lost their expert."""

    chosen: Tensor
    dropped: Tensor
    balance: Tensor
    z: Tensor


class Router(nn.Module):
    """Scores in float32 at least, whatever the precision of the model.

    The bias takes part in the choice alone; it is moved by `moe.rebalance`, not by a gradient. tokens: of
    the whole step, over all ranks and micro-batches, padding left out: losses are means over them. At 0
    each forward pass counts its own. rows: most of a micro-batch on any rank, for what has to be equally
    large on all; at 0 each takes its own.
    """

    bias: Tensor | None

    def __init__(self, dim: int, spec: ExpertsSpec) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(spec.num_experts, dim))
        nn.init.normal_(self.weight, std=0.02)
        self.register_buffer("bias", torch.zeros(spec.num_experts) if spec.biased else None)
        self.tokens = self.rows = 0
        self.others: Others | None = None
        self.load: Load | None = None

    def forward(self, x: Tensor, real: Tensor | None, *, drop: bool) -> Routing:
        """For x [B, T, D]; real [B, T]: False on padding. drop: heed the capacity, where there is one."""
        spec = self.spec
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.to(wide), self.weight.to(wide))
            scores = logits.softmax(-1) if spec.router == "softmax" else logits.sigmoid()
            ranked = scores.detach() if self.bias is None else scores.detach() + self.bias.to(wide)
            experts = ranked.topk(spec.per_token, dim=-1).indices
            weights = scores.gather(-1, experts)
            if spec.normalise:
                weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
            if spec.scale != 1.0:
                weights = weights * spec.scale
            valid = torch.ones_like(experts[..., 0], dtype=torch.bool) if real is None else real
            keep = valid[..., None].expand_as(experts)
            drops = drop and spec.capacity is not None
            if drops:
                keep = self._within_capacity(experts, weights.detach(), valid)
            if weights.requires_grad:
                weights = self._watch(weights, logits, scores, experts, valid, keep)
        whole = real is None and not drops
        if not whole:
            experts = experts.masked_fill(~keep, spec.num_experts)
        parts = 1 if self.others is None else self.others.ranks
        room = spec.room(max(len(x), self.rows), x.shape[1], parts) if drops else None
        return Routing(experts.flatten(0, 1), weights.flatten(0, 1), whole, room)

    def _within_capacity(self, experts: Tensor, weights: Tensor, valid: Tensor) -> Tensor:
        spec = self.spec
        assert spec.capacity is not None
        shape = experts.shape
        if spec.capacity_scope == "local":
            experts, weights, valid = (part.flatten(0, 1)[None] for part in (experts, weights, valid))
            kept = within_capacity(spec, experts, weights, valid)
            return kept.view(shape)
        if self.others is None:
            return within_capacity(spec, experts, weights, valid)
        (experts, weights, valid), begin = self.others.gather([experts, weights, valid])
        places = self.others.places(experts.shape[1])
        return within_capacity(spec, experts, weights, valid, places)[:, begin : begin + shape[1]]

    def _watch(
        self, weights: Tensor, logits: Tensor, scores: Tensor, experts: Tensor, valid: Tensor, keep: Tensor
    ) -> Tensor:
        """The weights, with which the losses' gradients will flow and the load be counted."""
        spec, rows = self.spec, len(experts)
        share = 1.0 / self.tokens if self.tokens else 1.0 / valid.sum().clamp_min(1)
        counts = torch.zeros(rows, spec.num_experts, dtype=torch.int64, device=experts.device)
        chosen = valid[..., None].expand_as(experts).flatten(1).to(torch.int64)
        counts.scatter_add_(1, experts.flatten(1), chosen)
        balance = z = weights.new_zeros(())
        if spec.balance_loss:
            among = counts if self.others is None else self.others.total(counts)
            if spec.balance_scope == "microbatch":
                among = among.sum(0, keepdim=True)
            among = among.to(scores.dtype)
            portion = among / among.sum(-1, keepdim=True).clamp_min(1)
            if spec.router == "sigmoid":
                scores = scores / (scores.sum(-1, keepdim=True) + 1e-20)
            each = (scores * portion[:, None]).sum(-1)
            balance = spec.balance_loss * spec.num_experts * share * (each * valid).sum()
        if spec.z_loss:
            z = spec.z_loss * share * (logits.logsumexp(-1).square() * valid).sum()
        lost = (valid[..., None] & ~keep).sum()
        seen = counts.sum(0), lost, balance.detach(), z.detach()
        attached: Tensor = _Attach.apply(weights, balance + z, lambda: self._count(*seen))
        return attached

    def _count(self, chosen: Tensor, dropped: Tensor, balance: Tensor, z: Tensor) -> None:
        if self.load is None:
            self.load = Load(chosen.clone(), dropped.clone(), balance.double(), z.double())
            return
        self.load.chosen += chosen
        self.load.dropped += dropped
        self.load.balance += balance
        self.load.z += z


class _Attach(torch.autograd.Function):
    """Adds a loss to whatever will be differentiated: its gradient is 1, since all coefficients are global
    constants (compare MoEAuxLossAutoScaler of Megatron-LM). `then` is called when gradients are taken: a
    forward pass may be repeated for recomputation, a backward pass is not."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, loss: Tensor, then: Callable[[], None]) -> Tensor:
        ctx.then, ctx.dtype = then, loss.dtype
        return weights.view_as(weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        ctx.then()
        return grad, torch.ones((), dtype=ctx.dtype, device=grad.device), None


def within_capacity(
    spec: ExpertsSpec, experts: Tensor, weights: Tensor, valid: Tensor, places: Tensor | None = None
) -> Tensor:
    """[B, T, k]: which choices stay, at most ceil(tokens * k / E * capacity) of each expert in each row.

    experts, weights [B, T, k]; valid [B, T]: others count for nothing. places [T]: a token's place in its
    row, default its index. Ties go to the token that comes first, and so do weights that rounding alone
    parts: the same word at the beginning of two documents weighs the same, and which of the two products
    came out larger depends on what else was in the batch.
    """
    assert spec.capacity is not None
    rows, length, k = experts.shape
    size = spec.num_experts
    room = (valid.sum(1).double() * (k * spec.capacity / size) - 1e-9).ceil().to(torch.int64)
    order = torch.arange(length, device=experts.device) if places is None else places
    first = order[None, :, None].expand_as(experts).flatten().argsort(stable=True)
    if spec.drop == "probs":
        steps = 2.0**40 if weights.dtype == torch.float64 else 2.0**16
        steady = (weights.double() * steps).round().flatten()
        first = first[steady[first].argsort(descending=True, stable=True)]
    row = torch.arange(rows, device=experts.device)[:, None, None]
    group = torch.where(valid[..., None], row * size + experts, rows * size).flatten()
    pairs = first[group[first].argsort(stable=True)]
    group = group[pairs]
    begin = torch.searchsorted(group, torch.arange(rows * size + 1, device=group.device))
    place = torch.arange(len(group), device=group.device) - begin[group]
    room = torch.cat([room.repeat_interleave(size), room.new_zeros(1)])
    keep = torch.empty_like(group, dtype=torch.bool)
    keep[pairs] = place < room[group]
    return keep.view(rows, length, k)
