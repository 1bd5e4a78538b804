"""A task's model laid out, and what can be found out about it with a few examples before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shunter.config.errors import ShunterError
from shunter.layout.anymodel import check_useful, plan
from shunter.parallel.generic.laid import Laid, heads_of, lay_out, rounding, weights_of
from shunter.parallel.generic.stored import reader
from shunter.private import AnyBatchNorm
from shunter.train.device import autocast
from shunter.train.task.config import TaskConfig
from shunter.train.task.draws import Shapes, cut_dims, example_dims
from shunter.train.task.face import Task
from shunter.train.task.step import Engine, Pass
from shunter.train.world import World

PROBED = 2  # examples whose loss is computed before and after the model is laid out
APART = 8  # examples whose losses are computed together and one by one


def laid_out(
    task: Task,
    module: nn.Module,
    world: World,
    config: TaskConfig,
    examples: Sequence[Any],
    *,
    seed: int,
    cut: bool,
) -> tuple[Laid, Sequence[int | None] | None, Sequence[int | None]]:
    """The module in parts; for each dropout of a pass the dim along which this rank has a part, None for a
    model that drops nothing; and for each the dim that examples are along.

    examples: the first few. cut: whether batches will be cut, over ranks or into micro-batches. Raises
    ShunterError where the model in parts, or a batch in parts, is not the whole one.
    """
    if world.mesh.grid.tp > 1 and not config.rules:  # a person's own rules may leave whole what they like
        weights, heads = list(weights_of(module).values()), heads_of(module)
        check_useful(plan(weights, world.mesh.grid.tp, heads), lambda parts: plan(weights, parts, heads))
    fill = None if task.weights is None else reader(Path(task.weights))
    few = list(examples[:PROBED])
    if task.loss is None or not few:
        found = lay_out(module, world.mesh, overrides=config.rules, fill=fill, device=world.device)
        return found, (), ()
    part = Pass(few, list(range(len(few))))
    uncut = Laid(module, world.mesh, None, dict(module.named_parameters()), {})
    trying = Engine(task, uncut, world, config, seed=seed, micro_batch=len(examples))
    trying.precision = "fp32"  # what is compared shall differ by mistakes, not by rounding

    def probe() -> Tensor:
        trying.noting = Shapes()  # nothing is dropped
        total, count = trying.loss(part, 0)
        trying.noting = None
        return total / count

    def dropped(found: Pass = part) -> list[tuple[int, ...]]:
        trying.noting = noted
        noted.seen = []
        with trying.laid.gathered():
            trying.loss(found, 0)
        trying.noting = None
        return noted.seen

    noted = Shapes()
    trying.laid = laid = lay_out(
        module, world.mesh, overrides=config.rules, probe=probe, fill=fill, device=world.device
    )
    if cut and task.step is None:
        _can_be_cut(trying, examples)
    two, three = (dropped(Pass(few[:1] * count, [0] * count)) for count in (2, 3))
    rows = example_dims(two, three, (2, 3))
    _told(laid, noted, two, rows)
    with laid.without_pairs():
        whole = dropped()
    if not whole and not two and not _may_drop(module):
        return laid, None, rows
    return laid, cut_dims(whole, dropped(), world.mesh.grid.tp) if world.mesh.grid.tp > 1 else (), rows


def _told(laid: Laid, noted: Shapes, shapes: Sequence[tuple[int, ...]], rows: Sequence[int | None]) -> None:
    """Draws that belong to a batch: they are others when batches are cut otherwise."""
    if noted.others:
        laid.notes.append(
            f"{', '.join(sorted(noted.others))}: drawn for a batch, not for each example, so another layout "
            "or micro_batch draws otherwise. `draws` has numbers of each example."
        )
    if alone := [shape for shape, dim in zip(shapes, rows, strict=False) if dim is None]:
        laid.notes.append(
            f"Dropout of a tensor of shape {list(alone[0])}, in which no dim is that of examples, draws "
            "for a batch: another layout or micro_batch draws otherwise."
        )


def _may_drop(module: nn.Module) -> bool:
    """Whether a number of any part of it, under a name with `drop`, is above zero. A rate that is written
    into the code alone is seen in the pass before this."""
    for each in module.modules():
        named = vars(each) | {type(each).__name__: getattr(each, "p", 0)}
        for name, value in named.items():
            if "drop" in name.lower() and isinstance(value, int | float) and value > 0:
                return True
    return False


def _can_be_cut(trying: Engine, examples: Sequence[Any]) -> None:
    """Raise ShunterError where another cut of a batch would be another loss."""
    for name, each in trying.model.named_modules():
        if isinstance(each, AnyBatchNorm) and each.training:
            raise ShunterError(
                f"{name} normalises over a batch, so the loss depends on how batches are cut",
                mend="Use one process with how.micro_batch=train.batch, or another norm (nn.GroupNorm).",
            )
    if len(examples) < 2:
        return
    with trying.laid.gathered(), Looking(trying.model, trying.precision, trying.world.device):
        together = trying.loss(Pass(list(examples), list(range(len(examples)))), 0)
        apart = [trying.loss(Pass([e], [n]), 0) for n, e in enumerate(examples)]
    for name, whole, parts in zip(("sum", "count"), together, zip(*apart, strict=True), strict=True):
        added = float(sum(parts).detach())
        if abs(float(whole.detach()) - added) > rounding(trying.laid) * abs(added) + 1e-6:
            raise ShunterError(
                f"`loss` gives {len(examples)} examples the {name} {float(whole):.6g}, "
                f"and one by one {added:.6g}",
                mend="Return (sum, count) without what fills a batch up; or leave batches whole: one "
                "process, how.micro_batch=train.batch.",
            )


class Looking:
    """Without dropout and without gradients."""

    def __init__(self, module: nn.Module, precision: str, device: torch.device) -> None:
        self.module, self.grad, self.cast = module, torch.no_grad(), autocast(device, precision)

    def __enter__(self) -> None:
        self.modes = [(each, each.training) for each in self.module.modules()]
        self.module.eval()
        self.grad.__enter__()
        self.cast.__enter__()

    def __exit__(self, *raised: Any) -> None:
        self.cast.__exit__(*raised)
        self.grad.__exit__(*raised)
        for each, training in self.modes:
            each.training = training
