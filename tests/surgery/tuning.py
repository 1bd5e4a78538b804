"""Adapters of a drawn layout's model: what one process learns, and what a rank of the layout does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from shunter.models.decoder import Decoder
from shunter.parallel.mesh import Groups
from shunter.surgery.config import AdapterConfig
from shunter.surgery.lora import attach
from shunter.train.optim import Optimizers
from shunter.train.passes import OnePass
from shunter.train.pipeline import LaidOutPasses
from shunter.train.shares import split
from shunter.train.world import World
from tests.parallel.pool import GROUPS
from tests.train import layouts
from tests.train.layouts import CPU, Case, Outcome


def attached(decoder: Decoder, adapter: dict[str, Any]) -> Decoder:
    """Every trainable tensor drawn: what is zero at first would hide mistakes."""
    attach(decoder, AdapterConfig(**adapter), seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.is_floating_point() and "frozen" not in name:
                parameter.data = parameter.data.double()
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.1 * noise)
    return decoder


@dataclass(frozen=True)
class Tuned:
    """A layout of a model, and what is trained of it."""

    case: Case
    adapter: dict[str, Any]

    @property
    def model(self) -> Decoder:
        return attached(layouts.model(self.case), self.adapter)


def alone(each: Tuned) -> Outcome:
    decoder = each.model
    passes = OnePass(decoder, decoder, CPU, "fp32")
    layouts.gradients(each.case, passes, lambda ids: [ids])
    found = {name: p.grad.clone() for name, p in decoder.named_parameters() if p.grad is not None}
    decoder.zero_grad()
    outcome = layouts.learn(
        each.case, passes, Optimizers(decoder, layouts.config(each.case)), lambda ids: [ids]
    )
    outcome.gradients = found
    outcome.weights = {name: p.detach() for name, p in decoder.named_parameters()}
    return outcome


def drawn_task(rank: int, groups: Groups, each: Tuned) -> Outcome:
    case, parallel = each.case, each.case.layout
    world = World.create(parallel.grid, rank, CPU, GROUPS)
    passes = LaidOutPasses(each.model, parallel, world, case.width, optimizer=case.optimizer)

    def parts(ids: np.ndarray) -> list[np.ndarray]:
        return split(split(ids, world.data.size)[world.data.index], parallel.parts)

    layouts.gradients(case, passes, parts, case.width)
    gradients = {name: p.grad.clone() for name, p in passes.parameters.items() if p.grad is not None}
    found = passes.whole(gradients, passes.part.kept)
    for parameter in passes.parameters.values():
        parameter.grad = None
    optimizers = Optimizers(passes.decoder, layouts.config(each.case), passes.part)
    outcome = layouts.learn(case, passes, optimizers, parts, case.width)
    weights = passes.whole(passes.part.weights)
    outcome.gradients, outcome.weights = found or {}, weights or {}
    return outcome
