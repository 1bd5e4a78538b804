"""Products of groups of rows, each with a matrix of its own, and the SwiGLUs of several experts.

Rows are sorted by group; counts [E] says how many each has. Groups may be empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from shunter.models.swiglu import swiglu_backward

# Asked in the backward pass with "gate_up" or "down", the gradient of the rows' products, the rows, and
# counts: True if it sees to that weight's gradient, `grouped_outer` of the three, itself.
Later = Callable[[str, Tensor, Tensor, Tensor], bool]

_FUSED = (torch.float32, torch.bfloat16, torch.float16)


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """[m, N]: each row of x [m, K] times its group's weight [E, N, K], transposed."""
    return _rows(x, weight.transpose(1, 2), counts)


def grouped_back(grad: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """[m, K]: each row of grad [m, N] times its group's weight [E, N, K]."""
    return _rows(grad, weight, counts)


def grouped_outer(grad: Tensor, x: Tensor, counts: Tensor) -> Tensor:
    """[E, N, K]: the sum, over a group's rows, of grad [m, N] times x [m, K]; zero for an empty group."""
    if len(x) and _fused(grad, x):
        made = F.grouped_mm(grad.t(), x, offs=_ends(counts))
        # Kernels need not write what no row belongs to.
        return made.masked_fill_((counts == 0)[:, None, None], 0)
    found = grad.new_zeros(len(counts), grad.shape[1], x.shape[1])
    for group, rows in _groups(counts):
        torch.mm(grad[rows].t(), x[rows], out=found[group])
    return found


def _rows(x: Tensor, matrices: Tensor, counts: Tensor) -> Tensor:
    if len(x) and _fused(x, matrices):
        return F.grouped_mm(x, matrices, offs=_ends(counts))
    found = x.new_empty(len(x), matrices.shape[2])
    for group, rows in _groups(counts):
        torch.mm(x[rows], matrices[group], out=found[rows])
    return found


def _fused(*operands: Tensor) -> bool:
    """Whether torch's grouped product takes them: no float64, and rows begin at multiples of 16 bytes."""
    return all(
        part.dtype in _FUSED
        and all(size * part.element_size() % 16 == 0 for size in part.shape[-2:] if part.ndim == 3)
        and part.shape[-1] * part.element_size() % 16 == 0
        for part in operands
    )


def _ends(counts: Tensor) -> Tensor:
    return counts.cumsum(0).to(torch.int32)


def _groups(counts: Tensor) -> Iterator[tuple[int, slice]]:
    """Groups that are not empty, and their rows. Waits for the device."""
    begin = 0
    for group, count in enumerate(counts.tolist()):
        if count:
            yield group, slice(begin, begin + count)
        begin += count


def experts_swiglu(
    x: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    counts: Tensor,
    later: Later | None = None,
) -> Tensor:
    """[m, D]: each row of x [m, D] through its expert's SwiGLU, times its weight [m].

    gate_up [E, 2 F, D], down [E, D, F], counts [E]. The weight scales what goes into `down`, so that its
    gradient needs neither the result nor, where an expert is cut along F, the other parts.
    """
    if torch.is_grad_enabled():
        found: Tensor = _Experts.apply(x, weights, gate_up, down, counts, later)
        return found
    gate, up = grouped_linear(x, gate_up, counts).chunk(2, dim=-1)
    return grouped_linear(_scaled(F.silu(gate).mul_(up), weights), down, counts)


def _scaled(active: Tensor, weights: Tensor) -> Tensor:
    return (active * weights[:, None]).to(active.dtype)


class _Experts(torch.autograd.Function):
    """Only the first product is kept: what is made of it is cheap to make again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        gate_up: Tensor,
        down: Tensor,
        counts: Tensor,
        later: Later | None,
    ) -> Tensor:
        ctx.later = later
        hidden = grouped_linear(x, gate_up, counts)
        ctx.save_for_backward(x, weights, gate_up, down, counts, hidden)
        gate, up = hidden.chunk(2, dim=-1)
        return grouped_linear(_scaled(F.silu(gate).mul_(up), weights), down, counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, gate_up, down, counts, hidden = ctx.saved_tensors
        gate, up = hidden.chunk(2, dim=-1)
        active = F.silu(gate).mul_(up)
        grad = grad.contiguous()
        inner = grouped_back(grad, down, counts)
        into_weights = (inner * active).sum(-1, dtype=weights.dtype)
        into_down = into_gate_up = into_x = None
        later: Later = ctx.later or _now
        if ctx.needs_input_grad[3]:
            entered = _scaled(active, weights)
            if not later("down", grad, entered, counts):
                into_down = grouped_outer(grad, entered, counts)
        into_hidden = swiglu_backward(_scaled(inner, weights), hidden)
        if ctx.needs_input_grad[2] and not later("gate_up", into_hidden, x, counts):
            into_gate_up = grouped_outer(into_hidden, x, counts)
        if ctx.needs_input_grad[0]:
            into_x = grouped_back(into_hidden, gate_up, counts)
        return into_x, into_weights, into_gate_up, into_down, None, None


def _now(name: str, grad: Tensor, rows: Tensor, counts: Tensor) -> bool:
    return False
