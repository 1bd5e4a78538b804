"""A graph of operators executed on ranks as a choice of layouts says, with the conversions between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.layout.choose import Choice
from shunter.layout.graph import Graph
from shunter.layout.placement import Broadcast, Partial, Placements, held
from shunter.layout.signatures import letter_ranges
from shunter.parallel.boxing import Axes, redistribute
from shunter.parallel.local import compute
from shunter.parallel.moving import Moved, inside, neutral

WORDS = ("tokens", "targets")  # sources that are numbers of words


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


def draw(graph: Graph, seed: int, words: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Whole tensors for all sources: normal with a deviation of 0.2, or numbers of words."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for operator in graph.operators:
        if operator.kind == "source":
            shape = operator.shape(operator.expression.outputs[0])
            if operator.name in WORDS:
                found[operator.name] = torch.randint(0, words, shape, generator=generator)
            else:
                found[operator.name] = (
                    torch.randn(shape, generator=generator, dtype=torch.float64).mul_(0.2).to(dtype)
                )
    return found


@torch.no_grad()
def alone(graph: Graph, sources: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of the graph, computed by one process."""
    made = dict(sources)
    for operator in graph.operators:
        if operator.kind != "source":
            ranges = {letter: (0, length) for letter, length in operator.sizes.items()}
            outputs = compute(operator, [made[it] for it in operator.inputs], ranges)
            made.update(zip(operator.outputs, outputs, strict=True))
    return made


def trial(choice: Choice, axes: Axes, seed: int, words: int = 0) -> dict[str, Any]:
    """Execute a plan once in float64 and compare every tensor with one process. All ranks of `axes` call it.

    Returns `bytes` that all ranks together handed over, in elements of the graph's itemsize; `gap`, the
    largest difference of any tensor, relative to its largest element; `messages` of all ranks.
    """
    graph = choice.graph
    sources = draw(graph, seed, words)
    moved = Moved()
    parts = {name: cut(one, choice.layout(name), axes) for name, one in sources.items()}
    made = execute(choice, parts, axes, moved)
    gap = 0.0
    for name, truth in alone(graph, sources).items():
        found = whole(made[name], tuple(truth.shape), choice.layout(name), axes)
        most = float(truth.abs().max()) or 1.0
        gap = max(gap, float((found - truth).abs().max()) / most)
    totals = torch.tensor([moved.bytes, moved.messages])
    if axes.whole.group is not None:
        dist.all_reduce(totals, group=axes.whole.group)
    return {"bytes": int(totals[0]), "gap": gap, "messages": int(totals[1])}
