"""A stage: consecutive layers on one rank, its micro-batches in flight and their gradients."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from shunter.parallel.halves import Deferred, WeightQueue
from shunter.parallel.tree import Tree

# (inputs, micro-batch) -> outputs. The first stage gets no inputs, the last returns only its `loss`; what
# else they need (tokens, targets) they find by the number of the micro-batch.
Compute = Callable[[Tree, int], Tree]

LOSS = "loss"


@dataclass
class _Flight:
    """A micro-batch between its forward and its backward."""

    inputs: Tree
    outputs: Tree
    due: deque[Deferred] = field(default_factory=deque)


class Stage:
    """Runs one stage's forward and backward passes.

    module:  its parameters; `compute` calls it.
    defer:   let its linear layers defer weight gradients: needed for backwards in halves only.
    losses:  micro-batch -> loss, of the stage that ends with it (detached).
    """

    def __init__(self, compute: Compute, module: nn.Module, *, defer: bool = True) -> None:
        self.compute, self.module = compute, module
        self.queue = WeightQueue()
        if defer:
            self.queue.attach(module)
        self.losses: dict[int, Tensor] = {}
        self._flights: dict[int, _Flight] = {}

    @property
    def in_flight(self) -> int:
        """Micro-batches whose activations are held."""
        return len(self._flights)

    def forward(self, microbatch: int, inputs: Tree, *, train: bool = True) -> Tree:
        """Outputs, detached: what the next stage does with them is its own graph."""
        if not train:
            with torch.no_grad():
                outputs = self.compute(inputs, microbatch)
            self._note_loss(microbatch, outputs)
            return outputs
        leaves = {
            name: tensor.detach().requires_grad_(tensor.requires_grad) for name, tensor in inputs.items()
        }
        outputs = self.compute(leaves, microbatch)
        self._flights[microbatch] = _Flight(leaves, outputs)
        self._note_loss(microbatch, outputs)
        return {
            name: tensor.detach().requires_grad_(tensor.requires_grad) for name, tensor in outputs.items()
        }

    def backward(self, microbatch: int, grads: Tree) -> Tree:
        """Both halves at once. grads: of the outputs; the loss's own is 1. Returns those of the inputs."""
        return self._back(self._flights.pop(microbatch), grads)

    def input_grad(self, microbatch: int, grads: Tree) -> Tree:
        """The first half: gradients of the inputs, and of weights that no linear layer holds."""
        flight = self._flights[microbatch]
        self.queue.open = flight.due
        try:
            back = self._back(flight, grads)
        finally:
            self.queue.open = None
        flight.inputs, flight.outputs = {}, {}
        return back

    def weight_grad(self, microbatch: int) -> None:
        """The second half: gradients of the linear layers' weights."""
        WeightQueue.drain(self._flights.pop(microbatch).due)

    def drop(self) -> None:
        """Forget all micro-batches in flight, as after a step that failed."""
        self._flights.clear()
        self.losses.clear()

    def _note_loss(self, microbatch: int, outputs: Tree) -> None:
        if LOSS in outputs:
            self.losses[microbatch] = outputs[LOSS].detach()

    @staticmethod
    def _back(flight: _Flight, grads: Tree) -> Tree:
        roots: list[Tensor] = []
        given: list[Tensor | None] = []
        for name, tensor in flight.outputs.items():
            if not tensor.requires_grad:
                continue
            if name == LOSS:
                roots.append(tensor)
                given.append(None)
            elif (grad := grads.get(name)) is not None:
                roots.append(tensor)
                given.append(grad)
        if roots:
            torch.autograd.backward(roots, given)
        back = {}
        for name, tensor in flight.inputs.items():
            if tensor.requires_grad:
                # An input that nothing depends on has a gradient all the same: the other side waits for it.
                back[name] = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
                tensor.grad = None
        return back
