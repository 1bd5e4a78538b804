"""A stage: consecutive layers on one rank, its micro-batches in flight and their gradients."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from shunter.parallel.batchnorm import DeferredBatchNorm
from shunter.parallel.halves import Deferred, WeightQueue
from shunter.parallel.replay import Draws, light_forward
from shunter.parallel.saved import Held, SavedBytes
from shunter.parallel.tree import Tree

# (inputs, micro-batch) -> outputs. The first stage gets no inputs, the last returns only its `loss`; what
# else they need (tokens, targets) they find by the number of the micro-batch.
Compute = Callable[[Tree, int], Tree]

LOSS = "loss"


@dataclass
class _Flight:
    """A micro-batch between its forward and its backward. outputs: with their graph; none while `draws`
    wait for a recomputation."""

    inputs: Tree
    outputs: Tree
    draws: Draws | None = None
    held: list[Held] = field(default_factory=list)
    due: deque[Deferred] = field(default_factory=deque)


class Stage:
    """Runs one stage's forward and backward passes.

    module:  its parameters; `compute` calls it.
    defer:   let its linear layers defer weight gradients: needed for backwards in halves only.
    losses:  micro-batch -> loss, of the stage that ends with it (detached).
    saved:   counts what is held for backwards, while it is set.
    """

    def __init__(self, compute: Compute, module: nn.Module, *, defer: bool = True) -> None:
        self.compute, self.module = compute, module
        self.queue = WeightQueue()
        if defer:
            self.queue.attach(module)
        self.norms = [norm for norm in module.modules() if isinstance(norm, DeferredBatchNorm)]
        parameters = list(module.parameters())
        self.trains = any(parameter.requires_grad for parameter in parameters)
        self.device = parameters[0].device if parameters else torch.device("cpu")
        self.losses: dict[int, Tensor] = {}
        self.saved: SavedBytes | None = None
        self._flights: dict[int, _Flight] = {}

    @property
    def in_flight(self) -> int:
        """Micro-batches whose activations are held."""
        return len(self._flights)

    @property
    def graphs(self) -> int:
        """Micro-batches of which more than the inputs is held."""
        return sum(flight.draws is None for flight in self._flights.values())

    def forward(self, microbatch: int, inputs: Tree, *, train: bool = True, light: bool = False) -> Tree:
        """Outputs, detached: what the next stage does with them is its own graph.

        light: keep the inputs only; `recompute` comes before the backward.
        """
        if not train:
            with torch.no_grad(), self._uncounted():
                outputs = self.compute(inputs, microbatch)
            self._note_loss(microbatch, outputs)
            return outputs
        leaves = {
            name: tensor.detach().requires_grad_(tensor.requires_grad) for name, tensor in inputs.items()
        }
        if light:
            draws = Draws.now(self.device)
            outputs = light_forward(lambda: self.compute(leaves, microbatch), leaves, self.trains)
            self._flights[microbatch] = _Flight(leaves, {}, draws=draws, held=self._hold(leaves))
            self._note_loss(microbatch, outputs)
            return outputs
        with self.saved or nullcontext():
            outputs = self.compute(leaves, microbatch)
        self._flights[microbatch] = _Flight(leaves, outputs, held=self._hold(leaves))
        self._note_loss(microbatch, outputs)
        return {
            name: tensor.detach().requires_grad_(tensor.requires_grad) for name, tensor in outputs.items()
        }

    def recompute(self, microbatch: int) -> None:
        """A light forward once more, with the same random draws, now with its graph."""
        flight = self._flights[microbatch]
        assert flight.draws is not None, f"micro-batch {microbatch} was not computed light"
        with self._uncounted(), self.saved or nullcontext():
            flight.outputs = flight.draws.again(lambda: self.compute(flight.inputs, microbatch))
        flight.draws = None

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
        flight.inputs, flight.outputs, flight.held = {}, {}, []
        return back

    def weight_grad(self, microbatch: int) -> None:
        """The second half: gradients of the linear layers' weights."""
        WeightQueue.drain(self._flights.pop(microbatch).due)

    def commit(self) -> None:
        """The end of a mini-batch: running statistics of batch norms move."""
        for norm in self.norms:
            norm.commit()

    def drop(self) -> None:
        """Forget all micro-batches in flight, as after a step that failed."""
        self._flights.clear()
        self.losses.clear()
        for norm in self.norms:
            norm.forget()

    @contextmanager
    def _uncounted(self) -> Iterator[None]:
        """What is computed here is not seen for the first time, or not to be learnt from."""
        for norm in self.norms:
            norm.counting = False
        try:
            yield
        finally:
            for norm in self.norms:
                norm.counting = True

    def _hold(self, tree: Tree) -> list[Held]:
        return [self.saved.hold(tensor) for tensor in tree.values()] if self.saved is not None else []

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
