"""The backward pass in halves: gradients of inputs now, gradients of weights when there is time.

A linear layer's backward puts (input, gradient of its output) on a queue instead of multiplying them; the
later half drains the queue. Everything else (norms, embeddings, biases of other modules) takes its gradient
in the first half: it is cheap there, and nothing is left out if a module is of a kind unknown here.

The graph is not cut. Cutting it at parameters, as torch.distributed.pipelining does, costs twice the work
under recomputation, and under FSDP2 it loses gradients where weights are resharded in between (torch 2.13).
The source of the idea: arXiv 2401.10241, section 2.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Deferred(NamedTuple):
    """A product that is still to be done: output gradient [..., O] and input [..., I]."""

    weight: nn.Parameter
    input: Tensor
    grad: Tensor


class WeightQueue:
    """Where linear layers leave their weights' gradients while a first half runs.

    `open` is the list of the running first half; None: gradients are taken at once. It is a plain
    attribute and not thread-local: on CUDA, autograd calls backward functions from a thread of its own.
    """

    def __init__(self) -> None:
        self.open: deque[Deferred] | None = None

    def attach(self, module: nn.Module) -> int:
        """Let every nn.Linear within defer to this queue; returns how many there are.

        Subclasses of Linear are left alone: what they compute is not known here.
        """
        found = [child for child in module.modules() if type(child) is nn.Linear]
        for linear in found:
            linear.forward = _Forward(linear, self)  # type: ignore[assignment,method-assign]
        return len(found)

    @staticmethod
    def drain(work: deque[Deferred]) -> None:
        """Add all gradients of weights to `.grad`, oldest first, each product freed before the next."""
        while work:
            weight, x, grad = work.popleft()
            accumulate(weight, grad, x)


@torch.no_grad()
def accumulate(weight: nn.Parameter, grad: Tensor, x: Tensor) -> None:
    """weight.grad += grad^T x, without a temporary where dtypes agree."""
    grad, x = grad.flatten(0, -2), x.flatten(0, -2)
    if weight.grad is None:
        weight.grad = (grad.t() @ x).to(weight.dtype)
    elif weight.grad.dtype == grad.dtype:
        weight.grad.addmm_(grad.t(), x)
    else:
        weight.grad += grad.t() @ x


class _Forward:
    """Stands in for a Linear's forward; a class, so that the module can still be copied."""

    def __init__(self, linear: nn.Linear, queue: WeightQueue) -> None:
        self.linear, self.queue = linear, queue

    def __call__(self, x: Tensor) -> Tensor:
        linear = self.linear
        if not (torch.is_grad_enabled() and linear.weight.requires_grad):
            return F.linear(x, linear.weight, linear.bias)
        y: Tensor = _Linear.apply(x, linear.weight, self.queue)
        return y if linear.bias is None else y + linear.bias.to(y.dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: nn.Parameter, queue: WeightQueue) -> Tensor:
        used: Tensor = weight
        if torch.is_autocast_enabled(x.device.type):
            compute = torch.get_autocast_dtype(x.device.type)
            x, used = x.to(compute), weight.to(compute)
        ctx.save_for_backward(x, used)
        ctx.weight, ctx.queue = weight, queue
        return F.linear(x, used)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, used = ctx.saved_tensors
        queue: WeightQueue = ctx.queue
        back = (grad @ used).to(x.dtype) if ctx.needs_input_grad[0] else None
        if queue.open is not None:
            queue.open.append(Deferred(ctx.weight, x, grad))
            return back, None, None
        return back, (grad.flatten(0, -2).t() @ x.flatten(0, -2)).to(ctx.weight.dtype), None
