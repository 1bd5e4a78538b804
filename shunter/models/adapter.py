"""Low-rank adapters beside frozen projections (LoRA, arXiv 2106.09685): arithmetic only.

y = x W^T + scale * x A^T B^T, where W is frozen and may be held in fewer bits (QLoRA, arXiv 2305.14314). A
fused product has an adapter for each of its projections, as if they stood apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shunter.models.packed import PackedWeight
from shunter.models.spec import DecoderSpec
from shunter.models.uncompiled import uncompiled

Held = Literal["none", "bf16", "int8", "nf4"]  # none: as it is


class Place(NamedTuple):
    """Where a target stands in a dense block, and which dim a layout cuts its projection by.

    cut: "output", the rows of W: A is whole on every rank, B is cut as W is. "input", the columns: A is cut
    as W is, B is whole; products with B are then parts of a sum, as those with W are.
    """

    module: str
    cut: Literal["output", "input"]

    @property
    def dims(self) -> tuple[int | None, int | None]:
        """The dim by which A [r, I] and B [O, r] are cut; None: whole."""
        return (None, 0) if self.cut == "output" else (1, None)


TARGETS = {
    "q": Place("attention.qkv", "output"),
    "k": Place("attention.qkv", "output"),
    "v": Place("attention.qkv", "output"),
    "out": Place("attention.out", "input"),
    "gate": Place("ffn.gate_up", "output"),
    "up": Place("ffn.gate_up", "output"),
    "down": Place("ffn.down", "input"),
}


def projections(spec: DecoderSpec, layer: int) -> dict[str, dict[str, int]]:
    """module -> its targets in order of rows, each with its number of rows; routed experts left out."""
    query, key = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    attention = {"attention.qkv": {"q": query, "k": key, "v": key}, "attention.out": {"out": spec.dim}}
    place, width = "ffn", spec.ffn_dim
    if spec.experts is not None and spec.experts.inside(layer):
        place, width = "ffn.shared", spec.experts.shared_ffn_dim
        if not width:
            return attention
    return {
        **attention,
        f"{place}.gate_up": {"gate": width, "up": width},
        f"{place}.down": {"down": spec.dim},
    }


class FrozenWeight(nn.Module):
    """A weight [O, I] as it is, or rounded to bfloat16."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.whole = nn.Parameter(weight.detach(), requires_grad=False)

    @property
    def shape(self) -> tuple[int, int]:
        return self.whole.shape[0], self.whole.shape[1]

    def weight(self, dtype: torch.dtype) -> Tensor:
        """[O, I], the very tensor where it has this type."""
        return self.whole.to(dtype)


class AdaptedLinear(nn.Module):
    """Stands in for a Linear: its weight frozen, beside it an adapter for some of its projections.

    A [r, I] and B [O of the projection, r] by the target's name, in `a` and `b`. Without adapters it is the
    frozen product alone. There is no `weight`: what reads a Linear's own would not see the adapters.
    """

    def __init__(
        self, linear: nn.Linear, rows: Mapping[str, int], adapted: Sequence[str], rank: int, scale: float,
        held: Held,
    ) -> None:  # fmt: skip
        """rows: of each projection, in order. adapted: those with an adapter; A and B are uninitialised."""
        super().__init__()
        weight = linear.weight.detach()
        self.frozen: FrozenWeight | PackedWeight
        if held in ("int8", "nf4"):
            self.frozen = PackedWeight(weight, held)
        else:
            self.frozen = FrozenWeight(weight.bfloat16() if held == "bf16" else weight)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)
        self.rank, self.scale, self.held = rank, scale, held
        wide = torch.promote_types(weight.dtype, torch.float32)
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        for name, count in rows.items():
            if name in adapted:
                self.a[name] = nn.Parameter(
                    torch.empty(rank, weight.shape[1], dtype=wide, device=weight.device)
                )
                self.b[name] = nn.Parameter(torch.empty(count, rank, dtype=wide, device=weight.device))
        self.place(rows)

    def place(self, rows: Mapping[str, int]) -> None:
        """Say how many rows of W each projection has here, in order, where W was cut."""
        self.rows = dict(rows)
        self.bounds: dict[str, tuple[int, int]] = {}  # of each adapter
        begin = 0
        for name, count in rows.items():
            if name in self.a:
                self.bounds[name] = begin, begin + count
            begin += count

    def forward(self, x: Tensor) -> Tensor:
        # The compiler would keep a packed weight unpacked for the backward, so it is given whole ones only.
        compiled = torch.compiler.is_compiling() and isinstance(self.frozen, FrozenWeight)
        if torch.is_grad_enabled() and not compiled:
            return _adapted(x, self)
        down, up = list(self.a.values()), list(self.b.values())
        y = F.linear(x, self.frozen.weight(_compute_dtype(x)), self.bias)
        return y + F.linear(F.linear(x, torch.cat(down)), self._spread(up)) if down else y

    def delta(self, name: str) -> Tensor:
        """[O, I] of the projection: what the adapter adds to its weight."""
        return self.scale * (self.b[name] @ self.a[name])

    @torch.no_grad()
    def merged(self, dtype: torch.dtype) -> Tensor:
        """[O, I]: the frozen weight as it is read, with the adapters added; a tensor of its own."""
        wide = torch.promote_types(dtype, torch.float32)
        whole = self.frozen.weight(wide).clone()
        for name, (begin, end) in self.bounds.items():
            whole[begin:end] += self.delta(name).to(wide)
        return whole.to(dtype)

    def both(self) -> tuple[Tensor, Tensor]:
        """All A [all ranks, I], and all B [O, all ranks] in their rows, scaled, as they are now."""
        down = list(self.a.values())
        if not down:
            rows, columns = self.frozen.shape
            return torch.empty(0, columns), torch.empty(rows, 0)
        return torch.cat(down), self._spread(list(self.b.values()))

    def _spread(self, up: Sequence[Tensor]) -> Tensor:
        """[O, all ranks]: each B in its own rows and columns, scaled.

        One product with the zeros is faster than three without: 1.7 ms to 7.6 ms at [2048, 1536] and rank 8.
        """
        whole = up[0].new_zeros(self.frozen.shape[0], self.rank * len(up))
        for number, ((begin, end), part) in enumerate(zip(self.bounds.values(), up, strict=True)):
            whole[begin:end, self.rank * number : self.rank * (number + 1)] = part * self.scale
        return whole


def _compute_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


@uncompiled
def _adapted(x: Tensor, module: AdaptedLinear) -> Tensor:
    y: Tensor = _Adapted.apply(x, module, *module.a.values(), *module.b.values())
    return y


class _Adapted(torch.autograd.Function):
    """Keeps the input and x A^T for the backward pass, and of the weight nothing: it is read again, so that a
    packed one is never held unpacked, nor one in float32 in bfloat16 besides."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: AdaptedLinear, *parts: Tensor) -> Tensor:
        compute = _compute_dtype(x)
        flat = x.flatten(0, -2).to(compute)
        bias = None if module.bias is None else module.bias.to(compute)
        with torch.autocast(x.device.type, enabled=False):
            y = F.linear(flat, module.frozen.weight(compute), bias)
            small = None
            if parts:
                down, up = _both(module, parts, compute)
                small = flat @ down.t()
                y.addmm_(small, up.t())
        ctx.module, ctx.like, ctx.shape = module, x.dtype, x.shape
        # Without adapters only the weight is needed.
        ctx.save_for_backward(flat if parts else None, small, *parts)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        flat, small, *parts = ctx.saved_tensors
        module: AdaptedLinear = ctx.module
        grad: Tensor = grads[0].flatten(0, -2)
        back: Tensor | None = None
        if ctx.needs_input_grad[0]:
            back = grad @ module.frozen.weight(grad.dtype)
        if not parts:
            return (None if back is None else back.to(ctx.like).view(ctx.shape)), None
        down, up = _both(module, parts, grad.dtype)
        inner = grad @ up
        if back is not None:
            back = back.addmm_(inner, down).to(ctx.like).view(ctx.shape)
        into_down = (inner.t() @ flat).split(module.rank)
        outer = grad.t() @ small
        into_up = [
            outer[begin:end, module.rank * number : module.rank * (number + 1)] * module.scale
            for number, (begin, end) in enumerate(module.bounds.values())
        ]
        found = [part.to(like.dtype) for part, like in zip((*into_down, *into_up), parts, strict=True)]
        return back, None, *found


def _both(module: AdaptedLinear, parts: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """All A [all ranks, I] and all B [O, all ranks] of a module as two matrices."""
    count = len(module.bounds)
    return torch.cat(list(parts[:count])).to(dtype), module._spread(parts[count:]).to(dtype)
