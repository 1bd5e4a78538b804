"""A graph of operators executed on ranks as a choice of layouts says, with the conversions between them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.layout.choose import Choice
from shunter.layout.placement import Broadcast, Partial, Placements, held
from shunter.layout.signatures import letter_ranges
from shunter.parallel.boxing import Axes, redistribute
from shunter.parallel.exchange import Moved, inside, neutral
from shunter.parallel.local import compute


def cut(whole: Tensor, placements: Placements, axes: Axes) -> Tensor:
    """This rank's part of a tensor that it has whole. Of parts of a sum, the first rank has it all."""
    ranges = held(tuple(whole.shape), placements, axes.hierarchy, axes.place)
    part = whole[inside(ranges, tuple((0, length) for length in whole.shape))].contiguous()
    for placement, place in zip(placements, axes.place, strict=True):
        if isinstance(placement, Partial) and place:
            return neutral(part.shape, placement.op, part, part.dtype)
    return part


def whole(part: Tensor, shape: tuple[int, ...], placements: Placements, axes: Axes) -> Tensor:
    """The tensor on every rank."""
    copies = (Broadcast(),) * len(placements)
    return redistribute(part.detach(), shape, placements, copies, axes)


@torch.no_grad()
def execute(
    choice: Choice, sources: Mapping[str, Tensor], axes: Axes, moved: Moved | None = None
) -> dict[str, Tensor]:
    """Run all operators in order; returns this rank's part of every tensor, as its maker leaves it.

    What is carried on is returned too, as `next ` and its source, lying as that does.
    sources: this rank's parts of what the graph starts with, in the layouts of `choice`. Each user converts
    for
    itself: what two users want alike is converted twice, as it is counted. moved: what this rank hands over.
    Raises ShunterError for a source that is not given.
    """
    if axes.hierarchy != choice.hierarchy:
        raise ShunterError(f"the layouts are for {choice.hierarchy}, and the ranks stand in {axes.hierarchy}")
    made: dict[str, Tensor] = {}
    layouts: dict[str, Placements] = {}
    for operator, signature in zip(choice.graph.operators, choice.signatures, strict=True):
        if operator.kind == "source":
            (name,) = operator.outputs
            if name not in sources:
                raise ShunterError(f"the graph starts with {name!r}, which is not given")
            made[name], layouts[name] = sources[name], signature.outputs[0]
            continue
        inputs = [
            redistribute(
                made[name], choice.graph.values[name].shape, layouts[name], wanted, axes, moved=moved
            )
            for name, wanted in zip(operator.inputs, signature.inputs, strict=True)
        ]
        ranges = letter_ranges(operator, signature, axes.hierarchy, axes.place)
        outputs = compute(operator, inputs, ranges)
        for name, part, placements in zip(operator.outputs, outputs, signature.outputs, strict=True):
            made[name], layouts[name] = part, placements
    for name, source in choice.graph.carried.items():
        shape = choice.graph.values[name].shape
        made[f"next {source}"] = redistribute(
            made[name], shape, layouts[name], layouts[source], axes, moved=moved
        )
    return made
