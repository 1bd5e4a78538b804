"""The weights of a model as steps without gradients use them, each product with what follows it.

On a CPU in float32 they are copied into the order in which oneDNN reads them: a product of few rows then
takes the time of reading the weight once, where one with the weight as it lies takes twice that, because it
is put in order at every call. The copy takes as much memory again, and as long as some eight steps.
The names of torch that this uses are not public (`torch.ops.mkldnn`); the compiler of torch uses them too.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shunter import private
from shunter.models.adapter import AdaptedLinear


class Weight(Protocol):
    """A weight [N, K], and a bias if there is one. Rows are [B, K]."""

    def __call__(self, x: Tensor) -> Tensor:
        """[B, N] of x."""

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        """[B, N]: `to` and the product of x; `to` is not changed."""


class Gated(Protocol):
    """Two weights [N, K] of which one is a gate."""

    def __call__(self, x: Tensor) -> Tensor:
        """[B, N]: silu of the product with the gate, times the other product."""


class Plain:
    """A weight where it is."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        return to + self(x)


class Rounded:
    """A copy of a weight in half precision. Rows are rounded before each product, as under autocast."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.exact = [part for part in (weight, bias) if part is not None]
        self.parts = [part.detach().to(dtype) for part in self.exact]
        self.weight, self.bias = self.parts[0], self.parts[1] if bias is not None else None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        return to + self(x)

    def renew(self) -> None:
        """Round again what the weight is now."""
        for part, exact in zip(self.parts, self.exact, strict=True):
            part.copy_(exact)


class Beside:
    """A frozen weight with its adapters: down [all ranks, K], and up [N, all ranks], scaled."""

    def __init__(self, linear: AdaptedLinear) -> None:
        self.linear, self.bias = linear, linear.bias
        self.down, self.up = linear.both()

    def __call__(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.linear.frozen.weight(x.dtype), self.bias)
        if not len(self.down):
            return y
        return y.addmm_(torch.mm(x, self.down.to(x.dtype).t()), self.up.to(x.dtype).t())

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        return self(x).add_(to)


class Ordered:
    """A copy of a weight in oneDNN's order."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = private.reordered(weight.detach())
        self.bias = bias

    def __call__(self, x: Tensor, then: str = "none") -> Tensor:
        return private.linear(x, self.weight, self.bias, then)

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        return self._with(x, to, "add")

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """[B, N]: the product of x times `other`, number by number."""
        return self._with(x, other, "mul")

    def _with(self, x: Tensor, other: Tensor, what: str) -> Tensor:
        return private.linear_with(x, other, self.weight, self.bias, what)


class PlainGate:
    """Both weights in one, as the model holds them."""

    def __init__(self, both: Weight) -> None:
        self.both = both

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, dim=-1)
        return F.silu(gate).mul_(up)


class OrderedGate:
    """Each in a copy of its own, so that silu and the product are part of the product with the weight."""

    def __init__(self, both: Tensor) -> None:
        gate, up = both.detach().chunk(2)
        self.gate, self.up = Ordered(gate), Ordered(up)

    def __call__(self, x: Tensor) -> Tensor:
        return self.up.times(x, self.gate(x, "swish"))


def ordered(weight: Tensor) -> bool:
    """Whether products of several rows with this weight are faster with a copy of it in oneDNN's order."""
    fits = weight.device.type == "cpu" and weight.dtype == torch.float32
    return fits and torch.backends.mkldnn.is_available()


@torch.no_grad()
def linear(module: nn.Module, copy: bool, rounded: torch.dtype | None = None) -> Weight:
    """Of a Linear, or of one with adapters, of which what they are now. copy: where that is faster.
    rounded: in this precision, where the weight is in a wider one."""
    if isinstance(module, AdaptedLinear):
        return Beside(module)
    assert isinstance(module, nn.Linear)
    if rounded is not None and module.weight.dtype != rounded:
        return Rounded(module.weight, module.bias, rounded)
    if copy and ordered(module.weight):
        return Ordered(module.weight, module.bias)
    return Plain(module.weight, module.bias)


@torch.no_grad()
def head(weight: Tensor, copy: bool, rounded: torch.dtype | None = None) -> Weight:
    """Of a head [V, D]."""
    if rounded is not None and weight.dtype != rounded:
        return Rounded(weight, None, rounded)
    return Ordered(weight) if copy and ordered(weight) else Plain(weight)


@torch.no_grad()
def gated(module: nn.Module, copy: bool, rounded: torch.dtype | None = None) -> Gated:
    """Of a Linear whose upper half is the gate."""
    if copy and rounded is None and isinstance(module, nn.Linear) and ordered(module.weight):
        return OrderedGate(module.weight)
    return PlainGate(linear(module, copy, rounded))
