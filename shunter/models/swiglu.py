"""SwiGLU, its product with a gradient written out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shunter.models.dropout import HIDDEN, Masks


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202), gate and up fused into one product.

    width: of the whole; first: number of the first of its columns that are here.
    """

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.width, self.first = ffn_dim, 0
        self.gate_up = nn.Linear(dim, 2 * ffn_dim, bias=False)
        self.down = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x: Tensor, masks: Masks | None = None, layer: int = 0) -> Tensor:
        """masks, layer: what is dropped of what enters `down`."""
        active = swiglu(self.gate_up(x))
        if masks is not None:
            active = masks.inside(active, layer, HIDDEN, self.first)
        return self.down(active)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up [..., N] from gate and up side by side [..., 2 N] (arXiv 2002.05202, equation 5).

    Autograd would keep silu(gate) too, and join two gradients into one by a copy. The compiler fuses
    such chains by itself, so it is given torch's own.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up
    found: Tensor = _SwiGLU.apply(gate_up)
    return found


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        return swiglu_backward(grad, gate_up)


def swiglu_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    """The gradient [..., 2 N] of gate and up from that of the product [..., N]."""
    gate, up = gate_up.chunk(2, dim=-1)
    into = torch.empty_like(gate_up)
    into_gate, into_up = into.chunk(2, dim=-1)
    torch.mul(F.silu(gate), grad, out=into_up)
    torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=into_gate)
    return into
