"""Mixture of experts (arXiv 1701.06538): arithmetic of one process, and what a step does around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shunter.models.grouped import Later, experts_swiglu
from shunter.models.router import Router, Routing
from shunter.models.spec import ExpertsSpec
from shunter.models.swiglu import SwiGLU
from shunter.models.uncompiled import uncompiled


class Experts(nn.Module):
    """SwiGLUs side by side: gate_up [E, 2 F, D] (gate above up), down [E, D, F].

    later: who takes the gradients of these weights at another time.
    """

    def __init__(self, num_experts: int, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.later: Later | None = None
        self.gate_up = nn.Parameter(torch.empty(num_experts, 2 * ffn_dim, dim))
        self.down = nn.Parameter(torch.empty(num_experts, dim, ffn_dim))
        for weight in (self.gate_up, self.down):
            nn.init.uniform_(weight, -(weight.shape[2] ** -0.5), weight.shape[2] ** -0.5)

    def forward(self, rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
        """[m, D] from rows [m, D], sorted by expert, each scaled by its weight [m]; counts [E]."""
        kind = rows.dtype
        gate_up, down = self.gate_up.to(kind), self.down.to(kind)
        return experts_swiglu(rows, weights, gate_up, down, counts, self.later)


# Rows [n, D] and where they go -> the sum over each token's experts [n, D].
Dispatch = Callable[[Tensor, Routing], Tensor]


class MoE(nn.Module):
    """A router, its experts, and a SwiGLU that every token passes through beside them.

    dispatch: how tokens reach experts that are not all here; None: they are. pad: where a capacity is heeded,
    each expert gets as many rows as it allows, zeros where it has fewer: sizes are known beforehand, and
    nothing waits for the device.
    """

    def __init__(self, dim: int, spec: ExpertsSpec) -> None:
        super().__init__()
        self.spec = spec
        self.router = Router(dim, spec)
        # Something of the same call may stand in its place: with adapters, say.
        self.experts: nn.Module = Experts(spec.num_experts, dim, spec.ffn_dim)
        self.shared = SwiGLU(dim, spec.shared_ffn_dim) if spec.shared_ffn_dim else None
        self.dispatch: Dispatch | None = None
        self.pad = False

    @uncompiled
    def forward(self, x: Tensor, real: Tensor | None = None, *, drop: bool = True) -> Tensor:
        """[B, T, D] from x [B, T, D]; real [B, T] is False on padding, which gets nothing of experts.

        drop: False drops nothing, whatever the capacity, which counts in training mode only.
        """
        routing = self.router(x, real, drop=drop and self.training)
        flat = x.flatten(0, 1)
        if torch.is_autocast_enabled(x.device.type):
            flat = flat.to(torch.get_autocast_dtype(x.device.type))
        y = (self.dispatch or self.here)(flat, routing).view(x.shape)
        return y if self.shared is None else y + self.shared(x)

    def here(self, x: Tensor, routing: Routing) -> Tensor:
        """All experts are in this process: x [n, D] sorted by expert, and back."""
        room = routing.room
        if self.pad and room is not None:
            x, routing, pairs = with_void(x, routing, self.spec.num_experts)
            rows, weights = spread(x, routing.weights, pairs)
            filled = torch.full((self.spec.num_experts,), room, device=x.device)
            return collect(self.experts(rows, weights, filled), pairs, *routing.experts.shape)[:-1]
        pairs, counts = by_expert(routing, self.spec.num_experts)
        if not routing.whole:  # waits for the device
            pairs = pairs[: int(counts.sum())]
        rows, weights = spread(x, routing.weights, pairs)
        return collect(self.experts(rows, weights, counts), pairs, *routing.experts.shape)


def by_expert(routing: Routing, num_experts: int) -> tuple[Tensor, Tensor]:
    """Choices [n * k], as numbers token * k + choice, in the order of their experts and then of tokens, void
    ones last; and how many each expert has [E]."""
    sorted_experts, pairs = routing.experts.flatten().sort(stable=True)
    bounds = torch.searchsorted(sorted_experts, torch.arange(num_experts + 1, device=pairs.device))
    return pairs, bounds.diff()


def with_void(x: Tensor, routing: Routing, num_experts: int) -> tuple[Tensor, Routing, Tensor]:
    """For experts that each get `routing.room` rows: choices [E * room] in the order of experts, those that
    an expert lacks of a void token, which stands last in x [n + 1, D] and in the routing. No shape depends
    on the choices."""
    assert routing.room is not None
    pairs, counts = by_expert(routing, num_experts)
    slot = torch.arange(routing.room, device=pairs.device)
    begin = counts.cumsum(0) - counts
    void = len(pairs)  # the first choice of the void token
    at = torch.where(slot < counts[:, None], begin[:, None] + slot, void)
    chosen = F.pad(pairs, (0, 1), value=void)[at.flatten()]
    experts = F.pad(routing.experts, (0, 0, 0, 1), value=num_experts)
    weights = F.pad(routing.weights, (0, 0, 0, 1))
    return F.pad(x, (0, 0, 0, 1)), replace(routing, experts=experts, weights=weights), chosen


def spread(x: Tensor, weights: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [m, D] of x [n, D] and weights [m] of weights [n, k], for choices `pairs` [m]."""
    rows: Tensor = _Spread.apply(x, pairs, weights.shape[1])
    return rows, weights.flatten()[pairs]


def collect(rows: Tensor, pairs: Tensor, tokens: int, k: int) -> Tensor:
    """[n, D]: the sum of each token's rows, always in the order of its choices."""
    found: Tensor = _Collect.apply(rows, pairs, tokens, k)
    return found


def _sum(rows: Tensor, pairs: Tensor, tokens: int, k: int) -> Tensor:
    # Not index_add: on CUDA its order, and so the last bits, would vary from run to run.
    by_choice = rows.new_zeros(tokens * k, rows.shape[1])
    by_choice[pairs] = rows
    return by_choice.view(tokens, k, rows.shape[1]).sum(1)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pairs: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(pairs)
        ctx.shape = len(x), k
        return x.index_select(0, pairs // k)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _sum(grad, *ctx.saved_tensors, *ctx.shape), None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, pairs: Tensor, tokens: int, k: int) -> Tensor:
        ctx.save_for_backward(pairs)
        ctx.k = k
        return _sum(rows, pairs, tokens, k)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (pairs,) = ctx.saved_tensors
        return grad.index_select(0, pairs // ctx.k), None, None, None


def routers(model: nn.Module) -> Iterator[tuple[str, Router]]:
    """All routers and their names."""
    return ((name, part) for name, part in model.named_modules() if isinstance(part, Router))


def begin_step(model: nn.Module, tokens: int, rows: int = 0) -> None:
    """Before a step's first forward pass: its tokens, padding left out, over all ranks and micro-batches, and
    the rows of the largest micro-batch on any rank, where experts are filled up."""
    for _, router in routers(model):
        router.tokens, router.rows, router.load = tokens, rows, None


@torch.no_grad()
def rebalance(model: nn.Module) -> None:
    """After a step: move the biases against the load (arXiv 2408.15664, algorithm 1).

    The load of every router has to be that of the whole step: on several ranks, sum `load.chosen` first.
    """
    for _, router in routers(model):
        if router.spec.bias_update and router.bias is not None and router.load is not None:
            chosen = router.load.chosen.double()
            router.bias += router.spec.bias_update * (chosen.mean() - chosen).sign()


def expert_load(model: nn.Module) -> dict[str, float]:
    """Of the last step: the busiest expert's load over the mean, the mean of layers and the worst; the
    share of choices that were dropped; the losses, summed over layers. Empty without experts or a step.

    Waits for the device.
    """
    loads = [router.load for _, router in routers(model) if router.load is not None]
    if not loads:
        return {}
    chosen = torch.stack([load.chosen for load in loads]).double()
    uneven = chosen.amax(1) / chosen.mean(1).clamp_min(1e-9)
    dropped = torch.stack([load.dropped for load in loads]).sum() / chosen.sum().clamp_min(1)
    losses = [
        torch.stack(values).sum() for values in ([part.balance for part in loads], [part.z for part in loads])
    ]
    values = torch.stack([uneven.mean(), uneven.max(), dropped.double(), *losses]).tolist()
    names = ("load_mean", "load_max", "dropped", "balance_loss", "z_loss")
    return {f"experts/{name}": value for name, value in zip(names, values, strict=True)}
