"""The backward pass in halves: gradients of inputs now, gradients of weights when there is time.

The backward of a linear layer, or of a mixture's experts, puts (input, gradient of its output) on a queue
instead of multiplying them; the later half drains the queue. Everything else (norms, embeddings, routers,
biases of other modules) takes its gradient in the first half: it is cheap there, and nothing is left out if
a module is of a kind unknown here.

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

from shunter.models.grouped import grouped_outer
from shunter.models.moe import Experts


class Deferred(NamedTuple):
    """A product that is still to be done: output gradient [..., O] and input [..., I].

    counts [E]: how many rows belong to each expert, where weight is [E, O, I].
    """

    weight: nn.Parameter
    input: Tensor
    grad: Tensor
    counts: Tensor | None = None


class WeightQueue:
    """Where linear layers and experts leave their weights' gradients while a first half runs.

    `open` is the list of the running first half; None: gradients are taken at once. It is a plain
    attribute and not thread-local: on CUDA, autograd calls backward functions from a thread of its own.
    """

    def __init__(self) -> None:
        self.open: deque[Deferred] | None = None

    def attach(self, module: nn.Module) -> int:
        """Let every nn.Linear and all experts within defer to this queue; returns how many there are.

        Subclasses of Linear are left alone: what they compute is not known here.
        """
        found = [child for child in module.modules() if type(child) is nn.Linear]
        for linear in found:
            linear.forward = _Forward(linear, self)  # type: ignore[assignment,method-assign]
        mixtures = [child for child in module.modules() if isinstance(child, Experts)]
        for experts in mixtures:
            experts.later = _Later(experts, self)
        return len(found) + len(mixtures)

    @staticmethod
    def drain(work: deque[Deferred]) -> None:
        """Add all gradients of weights to `.grad`, oldest first, each product freed before the next."""
        while work:
            weight, x, grad, counts = work.popleft()
            if counts is None:
                accumulate(weight, grad, x)
            else:
                accumulate_groups(weight, grad, x, counts)


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


@torch.no_grad()
def accumulate_groups(weight: nn.Parameter, grad: Tensor, x: Tensor, counts: Tensor) -> None:
    """weight.grad [E, O, I] += grad^T x over the rows of each expert."""
    product = grouped_outer(grad, x, counts).to(weight.dtype)
    if weight.grad is None:
        weight.grad = product
    else:
        weight.grad += product


class _Later:
    """Answers experts that ask whether their weights' gradients are taken later."""

    def __init__(self, experts: Experts, queue: WeightQueue) -> None:
        self.experts, self.queue = experts, queue

    def __call__(self, name: str, grad: Tensor, rows: Tensor, counts: Tensor) -> bool:
        if self.queue.open is None:
            return False
        self.queue.open.append(Deferred(self.experts.get_parameter(name), rows, grad, counts))
        return True


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
