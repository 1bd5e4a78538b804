"""One step of a task, written out in order; and what a person's own step is given."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.layout.piece import balanced
from shunter.parallel.counted import counted
from shunter.parallel.generic.laid import Laid
from shunter.parallel.generic.shards import parts_kept
from shunter.parallel.gradients import add_up_gradients, squared_norm
from shunter.train.device import autocast
from shunter.train.task.config import TaskConfig
from shunter.train.task.draws import Draws, Dropout, Shapes
from shunter.train.task.face import Task, moved, summed
from shunter.train.world import World

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Pass:
    """A micro-batch of this rank. numbers: of its examples in the epoch. counts: False for one that only
    keeps this rank in step with ranks that have more."""

    examples: list[Any]
    numbers: list[int]
    counts: bool = True


class Engine:
    """A task's functions on a laid-out model: passes, gradients, sums over ranks."""

    def __init__(
        self, task: Task, laid: Laid, world: World, config: TaskConfig, *, seed: int, micro_batch: int
    ) -> None:
        self.task, self.laid, self.world, self.config = task, laid, world, config
        self.seed, self.micro_batch = seed, micro_batch
        self.dropouts: Sequence[int | None] | None = ()  # None: the model drops nothing
        self.rows: Sequence[int | None] = ()  # for each dropout of a pass the dim of examples
        self.noting: Shapes | None = None  # in the place of dropout
        self.precision: str = config.precision
        self.forward: Counter[str] | None = None  # collectives of forward passes, where they are counted

    @property
    def model(self) -> nn.Module:
        return self.laid.module

    def passes(self, examples: Sequence[Any], numbers: Sequence[int]) -> list[Pass]:
        """This rank's share, in micro-batches; every rank has as many."""
        data = self.world.data
        most = -(-len(examples) // data.size)  # of any rank
        begin, end = balanced(len(examples), data.size, data.index)
        size = self.micro_batch
        found = []
        for at in range(0, most, size):
            low, high = min(begin + at, end), min(begin + at + size, end)
            mine = [(examples[i], numbers[i]) for i in range(low, high)]
            rows = mine or [(examples[0], numbers[0])]
            found.append(Pass([e for e, _ in rows], [n for _, n in rows], bool(mine)))
        return found

    def loss(self, part: Pass, step: int) -> tuple[Tensor, Tensor]:
        """Sum and count of one micro-batch."""
        if self.task.loss is None:
            raise ShunterError("the task has no function `loss`")
        with self.drawing(part.numbers, step) as draws, autocast(self.world.device, self.precision):
            batch = moved(self.task.collate(part.examples), self.world.device)
            total, count = summed(self.task.loss(self.model, batch, draws), len(part.examples))
        if part.counts:
            return total, count
        return torch.zeros_like(total), torch.zeros_like(count)  # an infinite one times 0 would be no number

    @contextmanager
    def drawing(self, numbers: Sequence[int], step: int, purpose: str = "") -> Iterator[Draws]:
        """Random numbers for a pass: the examples' own; and those of torch, numpy and python, which ranks
        with one batch share."""
        draws = Draws(self.seed, step, numbers, self.world.device, purpose)
        seed = derive_seed(self.seed, "torch", step, *numbers[:1], *([purpose] if purpose else []))
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        mode: AbstractContextManager[Any] = nullcontext()
        if self.noting is not None:
            mode = self.noting
        elif self.dropouts is not None:  # it costs a few percent of a small model's step
            mode = Dropout(draws, self.world.mesh.peers("tp"), self.dropouts, self.rows)
        with mode:
            yield draws

    def gradient(self, passes: Sequence[Pass], step: int) -> tuple[Tensor, Tensor]:
        """Add the gradient of the sum over these micro-batches to `.grad`. Returns sum and count, of this
        rank."""
        whole = torch.zeros((), dtype=torch.float64, device=self.world.device)
        count = torch.zeros_like(whole)
        with self.laid.gathered():
            for part in passes:
                if not part.counts:  # nobody waits for this rank within a pass
                    continue
                with parts_kept(), counted() if self.forward is not None else nullcontext() as sent:
                    total, count_here = self.loss(part, step)
                if self.forward is not None and sent is not None:
                    for (kind, _), calls in sent.calls.items():
                        self.forward[kind] += calls
                total.backward()
                whole += total.detach()
                count += count_here
            self.laid.add_up_gathered()
        return whole, count

    def norm(self) -> Tensor:
        """Of the gradient of the whole model; float64 scalar."""
        share = squared_norm(self.laid.parameters, self.laid.held, self.laid.mesh).to(self.world.device)
        return self.world.sum(share).sqrt()


class Step:
    """What a person's `step` is given. Its ranks share out examples; each has its part of each weight.

    examples, numbers: this rank's share of the step's. index: steps done before. rate: the learning rate.
    """

    def __init__(
        self,
        engine: Engine,
        examples: Sequence[Any],
        numbers: Sequence[int],
        index: int,
        rate: float,
        update: Callable[[float], None],
    ) -> None:
        self._engine, self._update = engine, update
        self.everyone = len(examples)
        data = engine.world.data
        begin, end = balanced(len(examples), data.size, data.index)
        self.examples, self.numbers = list(examples[begin:end]), list(numbers[begin:end])
        self.index, self.rate = index, rate

    @property
    def model(self) -> nn.Module:
        return self._engine.model

    def gradient(self, examples: Sequence[Any], numbers: Sequence[int]) -> tuple[Gradients, float, float]:
        """The gradient of the loss summed over these examples, with the sum and the count. By name, this
        rank's part of each weight."""
        engine = self._engine
        _clear(engine.laid)
        size = engine.micro_batch
        passes = [
            Pass(list(examples[at : at + size]), list(numbers[at : at + size]))
            for at in range(0, len(examples), size)
        ]
        total, count = engine.gradient(passes, self.index)
        found = {}
        for name, p in engine.laid.parameters.items():
            if p.requires_grad:
                grad = torch.zeros_like(p) if p.grad is None else p.grad
                if "tp" in engine.laid.held[name].partial:
                    grad = engine.world.sum(grad, engine.laid.mesh.peers("tp"))
                found[name] = grad
        _clear(engine.laid, forget=True)
        return found, float(total), float(count)

    def norm(self, gradients: Mapping[str, Tensor]) -> float:
        """Of a gradient of the whole model, from this rank's parts."""
        laid = self._engine.laid
        peers = laid.mesh.peers("tp")
        square = torch.zeros((), dtype=torch.float64, device=self._engine.world.device)
        for name, grad in gradients.items():
            share = 1.0 if "tp" in laid.held[name].cut else 1.0 / peers.size
            square += grad.double().square().sum() * share
        return math.sqrt(float(self._engine.world.sum(square, peers)))

    def add_up(self, gradients: Mapping[str, Tensor]) -> Gradients:
        """Over the ranks that have other examples."""
        world = self._engine.world
        return {name: world.sum(grad.contiguous().clone(), world.data) for name, grad in gradients.items()}

    def total(self, *values: float) -> list[float]:
        """The same for numbers."""
        world = self._engine.world
        told = torch.tensor(values, dtype=torch.float64, device=world.device)
        found: list[float] = world.sum(told, world.data).tolist()
        return found

    def noise(self, deviation: float, key: str = "noise") -> Gradients:
        """Normal numbers that lie as the gradient does: of the whole model the same on any layout."""
        engine = self._engine
        found = {}
        for name, p in engine.laid.parameters.items():
            draw = torch.Generator().manual_seed(derive_seed(engine.seed, key, self.index, name))
            whole = torch.randn(engine.laid.held[name].piece.shape, generator=draw) * deviation
            found[name] = engine.laid.own(name, whole).to(p)
        return found

    def update(self, gradients: Mapping[str, Tensor]) -> None:
        """One step of the optimizer with this gradient, which is that of the step's mean loss."""
        for name, p in self._engine.laid.parameters.items():
            p.grad = gradients.get(name)
        self._update(self.rate)
        _clear(self._engine.laid, forget=True)


@dataclass(frozen=True)
class Result:
    """loss: mean over what the task counts. norm: of its gradient, before clipping. updated: False where a
    number was not finite, and nothing was changed."""

    loss: float
    norm: float
    count: float
    updated: bool


def ordinary(
    engine: Engine, examples: Sequence[Any], numbers: Sequence[int], index: int, rate: float,
    update: Callable[[float], None],
) -> Result:  # fmt: skip
    """Gradient of the step's mean loss over all ranks, one update."""
    laid, world = engine.laid, engine.world
    _clear(laid)
    total, count = engine.gradient(engine.passes(examples, numbers), index)
    add_up_gradients(laid.parameters, laid.held, laid.mesh)
    told = world.sum(torch.stack([total, count]), world.data)
    whole, things = told.tolist()
    if things <= 0:
        raise ShunterError(f"step {index} counts {things:g} things to average over", mend="Look at `loss`.")
    scale = 1.0 / things
    norm = float(engine.norm()) * scale
    clip = engine.config.clip
    if clip is not None and norm > clip:
        scale *= clip / norm
    updated = math.isfinite(whole) and math.isfinite(norm)
    if updated:
        for p in laid.parameters.values():
            if p.grad is not None:
                p.grad.mul_(scale)
        update(rate)
    _clear(laid, forget=True)
    return Result(whole / things, norm, things, updated)


def _clear(laid: Laid, *, forget: bool = False) -> None:
    """No gradient is left over; and none is missing, where nothing here depends on a parameter."""
    for p in laid.parameters.values():
        p.grad = None if forget or not p.requires_grad else torch.zeros_like(p)
