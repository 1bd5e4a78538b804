"""Layers, and embedding and head, with degrees of their own, as the cost model of a whole layout sees them.
Imports without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from shunter.layout.grid import Grid
from shunter.plan import memory
from shunter.plan.choices import Choices, Floats, Question
from shunter.plan.estimate import Costs, costs
from shunter.plan.turning import turn


def alike(own: Mapping[int, Choices]) -> list[tuple[list[int], Choices]]:
    """Layers with the same degrees together."""
    found: dict[Grid, list[int]] = {}
    for number in sorted(own):
        found.setdefault(own[number].grid(0), []).append(number)
    return [(numbers, own[numbers[0]]) for numbers in found.values()]


def own_costs(
    asked: Sequence[Question], own: Mapping[int, Choices], bounds: Sequence[int], placement: Sequence[int]
) -> dict[int, Costs]:
    """Of each layer with its own degrees, on its rank's slowest device. asked: by rank of the pipeline."""
    found: dict[int, Costs] = {}
    known: dict[tuple[Grid, int, int], Costs] = {}
    for stage, rank in enumerate(placement):
        for layer in range(bounds[stage], bounds[stage + 1]):
            if layer in own:
                its = own[layer]
                ranks = int(its.stage_ranks[0])
                device = asked[rank].fabric.kind(rank * ranks, (rank + 1) * ranks)
                key = its.grid(0), id(asked[rank]), id(device)
                if key not in known:
                    known[key] = costs(asked[rank], its, device)
                found[layer] = known[key]
    return found


def end_costs(
    asked: Sequence[Question], ends: Choices | None, each: Sequence[Costs], placement: Sequence[int]
) -> tuple[Costs, Costs]:
    """Of the first stage and of the last, as embedding and head have them. asked: by rank of the pipeline.
    each: of all stages, under the layout's own degrees; ends: theirs, where they have others."""
    if ends is None:
        return each[0], each[-1]
    ranks, first, last = int(ends.stage_ranks[0]), placement[0], placement[-1]
    kinds = [asked[at].fabric.kind(at * ranks, (at + 1) * ranks) for at in (first, last)]
    found = costs(asked[first], ends, kinds[0])
    same = asked[first] is asked[last] and kinds[0] is kinds[1]
    return found, found if same else costs(asked[last], ends, kinds[1])


def turned(
    question: Question,
    choice: Choices,
    own: Mapping[int, Choices],
    begin: int,
    end: int,
    ends: Choices | None = None,
) -> float:
    """Seconds in which a micro-batch's hidden states change ranks within a stage, in one direction. ends: of
    embedding and head, where they are not those of the layout."""
    first = choice if ends is None or begin else ends
    last = choice if ends is None or end < question.spec.num_layers else ends
    each = [first, *(own.get(layer, choice) for layer in range(begin, end)), last]
    return sum(turn(question, before, after) for before, after in pairwise(each) if before is not after)


def sorts_of(question: Question, layers: Sequence[int]) -> tuple[Floats, Floats]:
    """How many of the layers are dense, and have experts."""
    experts = question.spec.experts
    mixtures = 0 if experts is None else sum(experts.inside(n) for n in layers)
    return np.array([float(len(layers) - mixtures)]), np.array([float(mixtures)])


def updated(question: Question, choice: Choices, dense: Floats, mixed: Floats, *, ends: bool) -> Floats:
    """Parameters that a rank updates."""
    shape = memory.held(question, choice)
    whole = dense * shape.dense + mixed * shape.mixture + ends * shape.end
    updates, expert_updates = choice.updates(question.practice)
    return whole / updates + mixed * shape.experts / expert_updates
