"""Low-rank adapters beside frozen experts: one for each projection of each expert. Arithmetic only.

As in `adapter`, y = x W^T + scale * x A^T B^T, here for groups of rows that each have matrices of their own.
Shapes: m rows sorted by expert, E experts, D the model's width, F an expert's, r the rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shunter.models.adapter import FrozenWeight, Held
from shunter.models.grouped import grouped_back, grouped_linear, grouped_outer
from shunter.models.moe import Experts
from shunter.models.packed import PackedWeight
from shunter.models.swiglu import swiglu_backward

# Of each matrix the projections, in the order of their rows.
OF = {"gate_up": ("gate", "up"), "down": ("down",)}


class AdaptedExperts(nn.Module):
    """Stands in for `Experts`: their weights frozen, beside each an adapter for some of its projections.

    A [E, r, D] of gate and up and [E, r, F] of down, B [E, F, r] and [E, D, r], by the target's name, in `a`
    and `b`. frozen: gate_up [E, 2 F, D] and down [E, D, F] as they are, or packed as [E * 2 F, D] and
    [E * D, F].
    """

    def __init__(self, experts: Experts, adapted: Sequence[str], rank: int, scale: float, held: Held) -> None:
        """adapted: projections with an adapter; A and B are uninitialised."""
        super().__init__()
        self.rank, self.scale, self.held = rank, scale, held
        self.num_experts = len(experts.down)
        self.frozen = nn.ModuleDict()
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        for name in OF:
            weight = experts.get_parameter(name).detach()
            frozen: FrozenWeight | PackedWeight
            if held in ("int8", "nf4"):
                frozen = PackedWeight(weight.flatten(0, 1), held)
            else:
                frozen = FrozenWeight(weight.bfloat16() if held == "bf16" else weight)
            self.frozen[name] = frozen
            number, rows, columns = weight.shape
            rows //= len(OF[name])
            wide = torch.promote_types(weight.dtype, torch.float32)
            for target in OF[name]:
                if target in adapted:
                    a = torch.empty(number, rank, columns, dtype=wide, device=weight.device)
                    b = torch.empty(number, rows, rank, dtype=wide, device=weight.device)
                    self.a[target], self.b[target] = nn.Parameter(a), nn.Parameter(b)

    def forward(self, rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
        """[m, D] from rows [m, D], sorted by expert, each scaled by its weight [m]; counts [E]."""
        found: Tensor = _Adapted.apply(rows, weights, counts, self, *self.a.values(), *self.b.values())
        return found

    def matrices(self, name: str, number: int, dtype: torch.dtype) -> Tensor:
        """The frozen [E, rows, columns] of gate_up or down, of the `number` experts that are here."""
        frozen = self.frozen[name]
        assert isinstance(frozen, FrozenWeight | PackedWeight)
        weight = frozen.weight(dtype)
        return weight.view(number, -1, weight.shape[-1])

    def targets(self, name: str) -> list[str]:
        """Of gate_up or down, the projections that have an adapter."""
        return [target for target in OF[name] if target in self.a]

    @torch.no_grad()
    def merged(self, name: str, dtype: torch.dtype) -> Tensor:
        """gate_up or down of all experts with the adapters added; a tensor of its own."""
        whole = self.matrices(name, self.num_experts, torch.promote_types(dtype, torch.float32)).clone()
        for target, part in zip(OF[name], whole.chunk(len(OF[name]), dim=1), strict=True):
            if target in self.a:
                part += (self.scale * (self.b[target] @ self.a[target])).to(part.dtype)
        return whole.to(dtype)

    def both(self, name: str, parts: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """All A [E, ranks, columns] and all B [E, rows, ranks], scaled, of gate_up or down; parts: all A,
        then all B. Of two projections each B stands in its own rows and columns, zeros elsewhere."""
        order = list(self.a)
        places = [order.index(target) for target in self.targets(name)]
        down = torch.cat([parts[place] for place in places], dim=1).to(dtype)
        ups = [parts[len(order) + place] * self.scale for place in places]
        if name == "down":
            return down, ups[0].to(dtype)
        number, rows, rank = ups[0].shape
        whole = ups[0].new_zeros(number, 2 * rows, rank * len(ups))
        for column, (target, up) in enumerate(zip(self.targets(name), ups, strict=True)):
            first = rows * OF[name].index(target)
            whole[:, first : first + rows, rank * column : rank * (column + 1)] = up
        return down, whole.to(dtype)

    def apart(self, name: str, down: Tensor, up: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Gradients of A and B by target, from those of what `both` made of them."""
        found = {}
        rows = up.shape[1] // len(OF[name])
        for column, target in enumerate(self.targets(name)):
            here = slice(self.rank * column, self.rank * (column + 1))
            first = rows * OF[name].index(target)
            found[target] = down[:, here], up[:, first : first + rows, here] * self.scale
        return found


class _Adapted(torch.autograd.Function):
    """Keeps the first product, as `grouped._Experts` does, and what the A make of their rows. The weights are
    read again in the backward pass, so that packed ones are never held unpacked."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, counts: Tensor, module: AdaptedExperts, *parts: Tensor
    ) -> Tensor:
        kind, number = x.dtype, len(counts)
        hidden = grouped_linear(x, module.matrices("gate_up", number, kind), counts)
        small = inner = None
        if module.targets("gate_up"):
            a, b = module.both("gate_up", parts, kind)
            small = grouped_linear(x, a, counts)
            hidden += grouped_linear(small, b, counts)
        entered = _entered(hidden, weights)
        y = grouped_linear(entered, module.matrices("down", number, kind), counts)
        if module.targets("down"):
            a, b = module.both("down", parts, kind)
            inner = grouped_linear(entered, a, counts)
            y += grouped_linear(inner, b, counts)
        ctx.module = module
        ctx.save_for_backward(x, weights, counts, hidden, small, inner, *parts)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, counts, hidden, small, inner, *parts = ctx.saved_tensors
        module: AdaptedExperts = ctx.module
        kind, number = x.dtype, len(counts)
        found: dict[str, tuple[Tensor, Tensor]] = {}
        grad = grad.contiguous()
        into_entered = grouped_back(grad, module.matrices("down", number, kind), counts)
        if inner is not None:
            a, b = module.both("down", parts, kind)
            through = grouped_back(grad, b, counts)
            into_entered += grouped_back(through, a, counts)
            into_a = grouped_outer(through, _entered(hidden, weights), counts)
            found |= module.apart("down", into_a, grouped_outer(grad, inner, counts))
        gate, up = hidden.chunk(2, dim=-1)
        active = F.silu(gate).mul_(up)
        into_weights = (into_entered * active).sum(-1, dtype=weights.dtype)
        into_hidden = swiglu_backward((into_entered * weights[:, None]).to(kind), hidden)
        into_x = None
        if ctx.needs_input_grad[0]:
            into_x = grouped_back(into_hidden, module.matrices("gate_up", number, kind), counts)
        if small is not None:
            a, b = module.both("gate_up", parts, kind)
            through = grouped_back(into_hidden, b, counts)
            if into_x is not None:
                into_x += grouped_back(through, a, counts)
            into_a = grouped_outer(through, x, counts)
            found |= module.apart("gate_up", into_a, grouped_outer(into_hidden, small, counts))
        into = [*(found[name][0] for name in module.a), *(found[name][1] for name in module.b)]
        typed = [part.to(like.dtype) for part, like in zip(into, parts, strict=True)]
        return into_x, into_weights, None, None, *typed


def _entered(hidden: Tensor, weights: Tensor) -> Tensor:
    """What goes into `down`: the weight scales it, as in `grouped`."""
    gate, up = hidden.chunk(2, dim=-1)
    active = F.silu(gate).mul_(up)
    return (active * weights[:, None]).to(active.dtype)
